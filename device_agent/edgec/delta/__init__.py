"""Patches from one version of an artifact to the next."""
