"""A fleet over its API, from Python."""

from edgec.fleet.client._client import FleetClient

__all__ = ["FleetClient"]
