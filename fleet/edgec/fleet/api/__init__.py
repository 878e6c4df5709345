"""The fleet over HTTP: what people and programs may see and do, by role."""

from edgec.fleet.api._access import Admin, FleetOf, Needs, Operator, Releaser, Viewer
from edgec.fleet.api._app import create_app
from edgec.fleet.api._commands import CommandSender
from edgec.fleet.api._health import Check
from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.api._once import Once, OnceOf
from edgec.fleet.api._problems import ApiError, Problem

__all__ = [
    "Admin",
    "ApiError",
    "ApiLimits",
    "Check",
    "CommandSender",
    "FleetOf",
    "Needs",
    "Once",
    "OnceOf",
    "Operator",
    "Problem",
    "Releaser",
    "Viewer",
    "create_app",
]
