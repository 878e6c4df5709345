"""The fleet in a browser: pages that the server renders, kept up to date by htmx, with charts by uPlot."""

from edgec.fleet.dashboard._mount import mount

__all__ = ["mount"]
