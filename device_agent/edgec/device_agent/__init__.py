"""The agent on a device: keeps its models as the fleet wants them, and tells how they do."""
