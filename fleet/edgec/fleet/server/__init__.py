"""A fleet as one process: broker, API, dashboard and what directs devices, out of one directory."""

from edgec.fleet.server._options import FleetOptions
from edgec.fleet.server._server import FleetServer

__all__ = ["FleetOptions", "FleetServer"]
