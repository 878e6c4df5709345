"""A gateway: a server with a guard in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgec.errors import ServingError
from edgec.gateway._fleet import FleetSource
from edgec.gateway._following import Following
from edgec.gateway._guard import Guard
from edgec.gateway._options import FollowOptions, GatewayOptions
from edgec.gateway._upstream import Upstream
from edgec.serving import Loader, Server


class Gateway(Server):
    """Serves artifacts to devices: `run` it until it is told to stop, or use ``with`` to have it in a thread.

    Args:
        paths: Of the artifacts, and of the TOML files of chains; none where there is a fleet or an upstream.
        options: Who may ask, and limits.
        loader: Loads one artifact or chain; None for the runtime's own.

    Raises:
        MissingExtraError: The extra ``gateway`` is not installed.
        ServingError: As of `Server`; or there is nothing to serve.
        FleetError: The fleet's URL, token or certificates are none.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        options: GatewayOptions | None = None,
        *,
        loader: Loader | None = None,
    ) -> None:
        options = options or GatewayOptions()
        if not paths and options.upstream is None and options.follow is None:
            raise ServingError("nothing to serve: give artifacts, a fleet, an upstream, or several of them")
        upstream = None if options.upstream is None else Upstream(options)
        following = None if options.follow is None else follow(options.follow)
        room = 0 if options.follow is None else options.follow.most
        guard = Guard(options, upstream, following)
        super().__init__(paths, options.server, loader=loader, front=guard, room=room)


def follow(options: FollowOptions) -> Following:
    """Return what follows a fleet.

    Raises:
        FleetError: Its URL, token or certificates are none.
    """
    source = FleetSource(options.url, options.token, ca=options.ca, models=options.models)
    return Following(source, options.directory, every_s=options.every_s, most=options.most)
