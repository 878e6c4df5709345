"""The server as an ASGI application: its addresses, and what it says of itself and of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgec.errors import RequestError
from edgec.serving._access import Gate
from edgec.serving._answers import Answer, Call, allow, answer_error, answer_json, not_found, segment
from edgec.serving._body import Receive, compressed
from edgec.serving._contract import read_terms
from edgec.serving._datatypes import datatype_of
from edgec.serving._inferences import Inferences
from edgec.serving._lanes import ClientGoneError
from edgec.serving._metrics import CONTENT_TYPE, exposition
from edgec.serving._openapi import openapi
from edgec.serving._options import ServerOptions
from edgec.serving._repository import PREDICT, Entry, Repository, Slot
from edgec.serving._stock import Stock

Send = Callable[[dict[str, Any]], Awaitable[None]]

EXTENSIONS = ("binary_tensor_data", "edgec_predict")
_CRASHING = "its process fails again and again, and is started again later"


class App:
    """The application.

    Args:
        repository: Its models.
        options: Its limits.
        executor: Whose threads run what must not hold up the event loop.
        is_draining: Whether the server is about to stop.
    """

    def __init__(
        self,
        repository: Repository,
        options: ServerOptions,
        executor: Executor,
        is_draining: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._options = options
        self._executor = executor
        self._is_draining = is_draining
        self._gate = Gate(options.api_keys)
        self._inferences = Inferences(repository, options, executor)
        self._stock = Stock(repository, options, executor)
        self._metadata = answer_json(
            {"name": "edgec", "version": version("edgec"), "extensions": self._extensions()}
        )

    async def start(self) -> None:
        """Measure what a thread costs, and decide which models do without."""
        await self._stock.start()

    async def adopt(self, path: Path, label: str) -> Slot:
        """Load one more artifact, and serve it.

        Args:
            path: Of the artifact.
            label: What its metrics are told apart by from those of the same model and version.

        Raises:
            EdgecError: It cannot be loaded or run.
        """
        return await self._stock.adopt(path, label)

    async def dismiss(self, slot: Slot) -> None:
        """Serve an artifact no longer; return when what is in flight was answered and its memory is free."""
        await self._stock.dismiss(slot)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 has it."""
        assert scope["type"] == "http"
        headers = dict(scope["headers"])
        try:
            status, fields, body = await self._answer(scope, Call(scope["method"], headers, receive))
        except ClientGoneError:
            return
        except RequestError as e:
            status, fields, body = answer_error(e)
        if body:
            body, coding = compressed(body, headers.get(b"accept-encoding"))
            fields = fields + coding
        fields = [*fields, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Mapping[str, Any], call: Call) -> Answer:
        parts = scope["raw_path"].decode("latin-1").rstrip("/").split("/")[1:]
        if len(parts) > 3 and parts[0] == "v2" and parts[1] == "models":
            self._gate.check(call.headers)
            return await self._model(call, [segment(part) for part in parts[2:]])
        match parts:
            case ["v2", "health", "live"]:
                allow(call, "GET")
                return answer_json({"live": True})
            case ["v2", "health", "ready"]:
                allow(call, "GET")
                return self._ready()
        self._gate.check(call.headers)
        match parts:
            case ["v2"]:
                allow(call, "GET")
                return self._metadata
            case ["v2", "models", name]:
                return await self._model(call, [segment(name)])
            case ["v2", "repository", *rest]:
                return await self._stock.answer(call, [segment(part) for part in rest])
            case ["metrics"]:
                allow(call, "GET")
                return await self._metrics()
            case ["openapi.json"]:
                allow(call, "GET")
                return answer_json(openapi(self._options))
        raise not_found()

    async def _metrics(self) -> Answer:
        body = exposition(entry.metrics for entry in self._repository.entries())
        observers = self._repository.observers()
        if observers:
            from edgec.runtime.exporters import exposed

            loop = asyncio.get_running_loop()
            body += await loop.run_in_executor(self._executor, exposed, observers)
        return 200, [(b"content-type", CONTENT_TYPE)], body

    async def _model(self, call: Call, parts: list[str]) -> Answer:
        """Answer what is asked of ``/v2/models/{name}[/versions/{version}]``."""
        name, *rest = parts
        version = None
        if len(rest) > 1 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        match rest:
            case ["infer"]:
                allow(call, "POST")
                return await self._inferences.infer(call, name, version)
            case ["predict"]:
                allow(call, "POST")
                return await self._inferences.predict(call, name, version)
            case []:
                allow(call, "GET")
                terms = read_terms(call.headers)
                entry = self._repository.find(name, version, terms.digest, terms.source_digest)
                return self._model_metadata(entry)
            case ["ready"]:
                allow(call, "GET")
                return self._model_ready(name, version)
        raise not_found()

    def _ready(self) -> Answer:
        if self._is_draining():
            return answer_error(RequestError("the server is about to stop", status=503))
        failed = [slot.name for slot in self._repository.slots if slot.loaded is None and slot.reason]
        if failed:
            return answer_error(RequestError(f"not ready: {', '.join(failed)}", status=503))
        crashing = [slot.name for slot in self._repository.slots if slot.is_crashing]
        if crashing:
            return answer_error(RequestError(f"{', '.join(crashing)}: {_CRASHING}", status=503))
        return answer_json({"ready": True})

    def _model_ready(self, name: str, version: str | None) -> Answer:
        try:
            entry = self._repository.find(name, version)
        except RequestError:
            known = [slot for slot in self._repository.slots if slot.name == name.removesuffix(PREDICT)]
            if known and version in (None, *(slot.version for slot in known)):
                raise RequestError(f"model {name!r} is not loaded", status=503) from None
            raise
        if any(slot.is_crashing for slot in self._repository.slots if slot.holds(entry)):
            raise RequestError(f"model {name!r}: {_CRASHING}", status=503)
        return answer_json({"name": entry.name, "ready": True})

    def _model_metadata(self, entry: Entry) -> Answer:
        batching = entry.metrics.batching
        return answer_json(
            {
                "name": entry.name,
                "versions": self._repository.versions(entry.name),
                "platform": entry.platform,
                "inputs": [_described(spec) for spec in entry.inputs],
                "outputs": [_described(spec) for spec in entry.outputs],
                **({"properties": {"batching": batching.sentence}} if batching else {}),
            }
        )

    def _extensions(self) -> list[str]:
        return [*EXTENSIONS, *(["model_repository"] if self._options.allow_repository_calls else [])]


def _described(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": [n if isinstance(n, int) else -1 for n in spec.shape],
    }
