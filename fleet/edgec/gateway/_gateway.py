"""A gateway: a server with a guard in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgec.errors import ServingError
from edgec.gateway._guard import Guard
from edgec.gateway._options import GatewayOptions
from edgec.gateway._upstream import Upstream
from edgec.serving import Loader, Server


class Gateway(Server):
    """Serves artifacts to devices: `run` it until it is told to stop, or use ``with`` to have it in a thread.

    Args:
        paths: Of the artifacts, and of the TOML files of chains; none where there is an upstream.
        options: Who may ask, and limits.
        loader: Loads one artifact or chain; None for the runtime's own.

    Raises:
        MissingExtraError: The extra ``gateway`` is not installed.
        ServingError: As of `Server`; or there is neither an artifact nor an upstream.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        options: GatewayOptions | None = None,
        *,
        loader: Loader | None = None,
    ) -> None:
        options = options or GatewayOptions()
        if not paths and options.upstream is None:
            raise ServingError("nothing to serve: give artifacts, an upstream, or both")
        upstream = None if options.upstream is None else Upstream(options)
        super().__init__(paths, options.server, loader=loader, front=Guard(options, upstream))
