"""A fleet without transports: store, releases, keys and repositories, opened together from a directory."""

from edgec.fleet.service._backup import back_up
from edgec.fleet.service._first import FirstStart
from edgec.fleet.service._fleet import Fleet

__all__ = ["FirstStart", "Fleet", "back_up"]
