"""A gateway without a socket of its own: an ASGI application that another server's processes run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError
from edgec.gateway._gateway import follow
from edgec.gateway._guard import Guard
from edgec.gateway._options import GatewayOptions
from edgec.gateway._upstream import Upstream
from edgec.serving import Receive, Send, assemble

# As of a server: a thread that comes back from an engine does not wait long for the event loop.
_SWITCH_INTERVAL_S = 0.0005


class Replica:
    """One of several processes that answer; `ASGI` with its lifespan. Rates are shares of what is allowed."""

    def __init__(self, paths: Sequence[str], options: GatewayOptions, *, number: int, of: int) -> None:
        """Load the artifacts.

        Args:
            paths: Of the artifacts.
            options: As of a `Gateway`; addresses and certificates in it are left alone.
            number: Of this process, from 0.
            of: How many there are.

        Raises:
            EdgecError: As of `Gateway`.
        """
        self._options = _share(options, number, of)
        room = 0 if options.follow is None else options.follow.most
        self._assembly = assemble(paths, options.server, may_be_empty=True, room=room)
        following = None if self._options.follow is None else follow(self._options.follow)
        upstream = None if options.upstream is None else Upstream(options)
        self._guard = Guard(self._options, upstream, following)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._guard(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        app = self._assembly.app(lambda: False)
        try:
            await app.start()
            await self._guard.start(app, self._assembly.repository)
        except EdgecError as e:
            await send({"type": "lifespan.startup.failed", "message": str(e)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._guard.stop()
        self._assembly.close()
        await send({"type": "lifespan.shutdown.complete"})


def _share(options: GatewayOptions, number: int, of: int) -> GatewayOptions:
    """Return what one of several processes allows, and where it keeps its files."""
    rate = None if options.rate is None else options.rate / of
    own = options.follow
    if own is not None:
        own = replace(own, directory=Path(own.directory) / f"replica-{number}")
    return replace(options, rate=rate, burst=max(1.0, options.burst / of), follow=own)
