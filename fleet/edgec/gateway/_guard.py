"""What stands in front of the server: who asks, how often, and which requests go to the upstream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from edgec.errors import RequestError
from edgec.gateway._counters import Counters
from edgec.gateway._following import Following
from edgec.gateway._identities import Identities
from edgec.gateway._options import GatewayOptions
from edgec.gateway._replies import Reply, captured, refusal, reply
from edgec.gateway._upstream import Upstream
from edgec.protocol._rates import Rates
from edgec.serving import App, BusyError, ClientGoneError, Receive, Repository, Send

_INFERENCES = ("infer", "predict")


class Guard:
    """An ASGI application that lets pass what may pass. For one event loop."""

    def __init__(
        self, options: GatewayOptions, upstream: Upstream | None, following: Following | None = None
    ) -> None:
        """Stand in front of nothing yet; see `start`.

        Args:
            options: Who may ask, and how often.
            upstream: Asked for models that are not here; None for nobody.
            following: Brings models that devices run; None for none.
        """
        self._identities = Identities(options.keys, options.server.client_ca is not None)
        self._rates = Rates(options.rate, options.burst, time.monotonic)
        self._has_keys = bool(options.keys) or options.server.client_ca is not None
        self._upstream = upstream
        self._following = following
        self._counters = Counters()
        self._app: App | None = None
        self._repository: Repository | None = None

    async def start(self, app: App, repository: Repository) -> None:
        """Begin; `app` answers what is passed on."""
        self._app, self._repository = app, repository
        if self._upstream is not None:
            await self._upstream.start(self._counters)
        if self._following is not None:
            await self._following.start(app, self._counters)

    async def stop(self) -> None:
        """Follow no fleet any more, and close connections to the upstream."""
        if self._following is not None:
            await self._following.stop()
        if self._upstream is not None:
            await self._upstream.stop()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 has it."""
        try:
            answer = await self._answer(scope, receive, send)
        except ClientGoneError:
            return
        except RequestError as e:
            answer = refusal(e)
        if answer is not None:
            await reply(send, answer)

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> Reply | None:
        """Return an answer; None where the application, or the upstream, has sent it."""
        assert self._app is not None
        parts = scope["raw_path"].decode("latin-1").rstrip("/").split("/")[1:]
        if parts[:2] == ["v2", "health"]:
            if parts[2:] == ["ready"] and self._upstream is not None and not self._upstream.is_up:
                raise BusyError("the upstream is not ready")
            if parts[2:] == ["ready"] and self._following is not None and not self._following.is_ready:
                raise BusyError("the fleet has not said yet what its devices run")
            await self._app(scope, receive, send)
            return None
        self._admit(scope, parts)
        if parts == ["metrics"] and scope["method"] == "GET":
            status, headers, body = await captured(self._app, scope, receive)
            return status, headers, body + self._counters.exposition()
        if parts == ["openapi.json"] and scope["method"] == "GET":
            return self._described(await captured(self._app, scope, receive))
        if self._upstream is not None and self._goes_up(parts):
            await self._upstream.forward(scope, receive, send)
            return None
        await self._app(scope, receive, send)
        return None

    def _admit(self, scope: Mapping[str, Any], parts: list[str]) -> None:
        try:
            device = self._identities.of(scope, dict(scope["headers"]))
        except RequestError:
            self._counters.add("unauthorized_total")
            raise
        if parts[-1] in _INFERENCES and (wait := self._rates.wait_s(device)):
            self._counters.add("limited_total")
            raise BusyError(f"{device} asks too often", status=429, retry_after_s=wait)

    def _goes_up(self, parts: list[str]) -> bool:
        """Return whether a request is about a model that is not here."""
        if len(parts) < 3 or parts[:2] != ["v2", "models"]:
            return False
        assert self._repository is not None
        name = unquote(parts[2], errors="replace")
        return not self._repository.versions(name) and not any(
            slot.name == name.removesuffix(".predict") for slot in self._repository.slots
        )

    def _described(self, answer: Reply) -> Reply:
        """Return the description of the server with what this one may answer, too."""
        status, headers, body = answer
        document = json.loads(body)
        refused = {
            "description": "Refused",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for path, operations in document["paths"].items():
            for verb, operation in operations.items():
                if verb in ("get", "post") and "/health/" not in path:
                    for more in ("401", "429", "503"):
                        operation["responses"].setdefault(more, refused)
        if self._has_keys:
            document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return status, headers, json.dumps(document, separators=(",", ":")).encode()
