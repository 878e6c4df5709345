"""What runs in other environments; each module has ``handle(request)``, and runs by path, never imported."""
