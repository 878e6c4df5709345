"""The server as an ASGI application: addresses, statuses, and the life of a request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from edgec.errors import (
    DeadlineError,
    DeviceMemoryError,
    EdgecError,
    InferenceError,
    IsolationError,
    OverloadedError,
    PipelineError,
    RequestError,
)
from edgec.serving._access import Gate
from edgec.serving._body import Receive, compressed, read_body
from edgec.serving._contract import Terms, read_terms, told
from edgec.serving._datatypes import datatype_of
from edgec.serving._lanes import RETRY_AFTER_S, BusyError, ClientGoneError, hop_seconds
from edgec.serving._metrics import CONTENT_TYPE, exposition
from edgec.serving._models import Prediction
from edgec.serving._openapi import openapi
from edgec.serving._options import ServerOptions
from edgec.serving._repository import PREDICT, Entry, Loaded, Repository, Slot
from edgec.serving._scheduling import ScheduledModel
from edgec.serving._wire import Plan, header_size, read_json, read_plan, read_raw, write_response

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers: TypeAlias = "list[tuple[bytes, bytes]]"
Answer: TypeAlias = "tuple[int, Headers, bytes]"

EXTENSIONS = ("binary_tensor_data", "edgec_predict")
_JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
_CRASHING = "its process fails again and again, and is started again later"
# Headers of requests larger than this are parsed in a thread.
_LARGE_HEADER = 2**18
_LARGEST_KEPT_HEADER = 4096
_MOST_KEPT_PLANS = 64
# Requests may be this much larger than those a model was measured with, and still run on the event loop.
_INLINE_SLACK = 2
_INLINE_JSON = 4096
# On a machine that is busy when the server starts, a thread seems to cost more than it will.
_LONGEST_INLINE_S = 0.0005


@dataclass(frozen=True)
class _Call:
    """A request, as the handlers see it."""

    method: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    deadline: float | None = None


class _MethodError(RequestError):
    def __init__(self, allowed: str, method: str) -> None:
        super().__init__(f"expected {allowed}, got {method}", status=405)
        self.allowed = allowed


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
        self._changing = asyncio.Lock()
        self._hop_s = 0.0
        self._metadata = _json(
            {"name": "edgec", "version": version("edgec"), "extensions": self._extensions()}
        )

    async def start(self) -> None:
        """Measure what a thread costs, and decide which models do without."""
        self._hop_s = await hop_seconds(self._executor)
        for slot in self._repository.slots:
            if slot.loaded is not None:
                self._place(slot.loaded)

    async def adopt(self, path: Path, label: str) -> Slot:
        """Load one more artifact, and serve it.

        Args:
            path: Of the artifact.
            label: What its metrics are told apart by from those of the same model and version.

        Raises:
            EdgecError: It cannot be loaded or run.
        """
        async with self._changing:
            open_ = partial(self._repository.open, path, label)
            loaded = await asyncio.get_running_loop().run_in_executor(self._executor, open_)
            self._place(loaded)
            return self._repository.add(path, loaded)

    async def dismiss(self, slot: Slot) -> None:
        """Serve an artifact no longer; return when what is in flight was answered and its memory is free."""
        async with self._changing:
            await self._retire(self._repository.remove(slot))

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 has it."""
        assert scope["type"] == "http"
        headers = dict(scope["headers"])
        try:
            status, fields, body = await self._answer(scope, _Call(scope["method"], headers, receive))
        except ClientGoneError:
            return
        except RequestError as e:
            status, fields, body = _error(e)
        if body:
            body, coding = compressed(body, headers.get(b"accept-encoding"))
            fields = fields + coding
        fields = [*fields, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Mapping[str, Any], call: _Call) -> Answer:
        parts = scope["raw_path"].decode("latin-1").rstrip("/").split("/")[1:]
        if len(parts) > 3 and parts[0] == "v2" and parts[1] == "models":
            self._gate.check(call.headers)
            return await self._model(call, [_segment(part) for part in parts[2:]])
        match parts:
            case ["v2", "health", "live"]:
                _allow(call, "GET")
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                _allow(call, "GET")
                return self._ready()
        self._gate.check(call.headers)
        match parts:
            case ["v2"]:
                _allow(call, "GET")
                return self._metadata
            case ["v2", "models", name]:
                return await self._model(call, [_segment(name)])
            case ["v2", "repository", *rest]:
                return await self._repository_call(call, [_segment(part) for part in rest])
            case ["metrics"]:
                _allow(call, "GET")
                return await self._metrics()
            case ["openapi.json"]:
                _allow(call, "GET")
                return _json(openapi(self._options))
        raise _not_found()

    async def _metrics(self) -> Answer:
        body = exposition(entry.metrics for entry in self._repository.entries())
        observers = self._repository.observers()
        if observers:
            from edgec.runtime.exporters import exposed

            loop = asyncio.get_running_loop()
            body += await loop.run_in_executor(self._executor, exposed, observers)
        return 200, [(b"content-type", CONTENT_TYPE)], body

    async def _model(self, call: _Call, parts: list[str]) -> Answer:
        """Answer what is asked of ``/v2/models/{name}[/versions/{version}]``."""
        name, *rest = parts
        version = None
        if len(rest) > 1 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        match rest:
            case ["infer"]:
                _allow(call, "POST")
                return await self._infer(call, name, version)
            case ["predict"]:
                _allow(call, "POST")
                return await self._predict(call, name, version)
            case []:
                _allow(call, "GET")
                return self._model_metadata(self._repository.find(name, version))
            case ["ready"]:
                _allow(call, "GET")
                return self._model_ready(name, version)
        raise _not_found()

    async def _infer(self, call: _Call, name: str, version: str | None) -> Answer:
        call, terms = self._agreed(call, name, version)  # before a body is read for nothing
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        entry = self._repository.find(name, version, terms.digest, terms.source_digest)
        terms.check(entry)
        return await self._counted(entry, self._run(call, entry, body))

    async def _predict(self, call: _Call, name: str, version: str | None) -> Answer:
        call, terms = self._agreed(call, name + PREDICT, version)
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        entry = self._repository.find(name + PREDICT, version, terms.digest, terms.source_digest)
        terms.check(entry)
        assert isinstance(entry.model, Prediction)
        self._check_json(0 if entry.model.takes_bytes else len(body))
        return await self._counted(entry, self._run_prediction(call, entry, entry.model, body))

    def _agreed(self, call: _Call, name: str, version: str | None) -> tuple[_Call, Terms]:
        """Return a call with its deadline, and its terms, if they can be kept as far as is known."""
        terms = read_terms(call.headers)
        entry = self._repository.find(name, version, terms.digest, terms.source_digest)
        terms.check(entry)
        if terms.deadline is None:
            return call, terms
        entry.lane.admit(terms.deadline)
        return replace(call, deadline=terms.deadline), terms

    async def _counted(self, entry: Entry, answer: Awaitable[Answer]) -> Answer:
        start = time.perf_counter()
        entry.users += 1
        try:
            status, fields, body = await answer
        except RequestError as e:
            status, fields, body = _error(e)
        except (OverloadedError, DeadlineError, DeviceMemoryError, IsolationError) as e:
            status, fields, body = _error(RequestError(str(e), status=503))
        except (InferenceError, PipelineError) as e:
            # The model was proven when it was loaded: what it refuses is the request's doing.
            status, fields, body = _error(RequestError(str(e)))
        finally:
            entry.users -= 1
        entry.metrics.count(status, time.perf_counter() - start)
        return status, fields, body

    async def _run(self, call: _Call, entry: Entry, body: bytes) -> Answer:
        size = header_size(call.headers.get(b"inference-header-content-length"), len(body))
        if size == 0:
            plan, binary = read_raw(memoryview(body), entry.inputs, entry.outputs)
        else:
            at = len(body) if size is None else size
            self._check_json(at)
            binary = memoryview(body)[at:]
            plan = await self._plan(entry, memoryview(body)[:at])
        small = plan.is_reusable or len(body) <= _INLINE_JSON
        if small and entry.inline_bytes and len(binary) <= entry.inline_bytes:
            return _inference(entry, plan, binary)
        run = partial(_inference, entry, plan, binary, _latest_begin(entry, plan, call))
        return await entry.lane.run(run, partial(_gone, call.receive), plan.queue_timeout_s, call.deadline)

    async def _run_prediction(self, call: _Call, entry: Entry, model: Prediction, body: bytes) -> Answer:
        run = partial(model.predict_bytes, body)
        result = await entry.lane.run(run, partial(_gone, call.receive), None, call.deadline)
        return 200, [_JSON, *told(entry)], result

    async def _plan(self, entry: Entry, header: memoryview) -> Plan:
        """Read the header of a request, or return what was read of the same one before."""
        if len(header) > _LARGE_HEADER:
            read = partial(read_plan, header, entry.inputs, entry.outputs)
            return await asyncio.get_running_loop().run_in_executor(self._executor, read)
        key = bytes(header)
        plan = entry.plans.get(key)
        if plan is None:
            plan = read_plan(key, entry.inputs, entry.outputs)
            if plan.is_reusable and len(key) <= _LARGEST_KEPT_HEADER:
                if len(entry.plans) >= _MOST_KEPT_PLANS:
                    entry.plans.clear()
                entry.plans[key] = plan
        return plan

    def _check_json(self, size: int) -> None:
        if size > self._options.max_json_bytes:
            raise RequestError(
                f"the JSON has {size} bytes, at most {self._options.max_json_bytes} are taken: "
                "send tensors as binary data",
                status=413,
            )

    def _ready(self) -> Answer:
        if self._is_draining():
            return _error(RequestError("the server is about to stop", status=503))
        failed = [slot.name for slot in self._repository.slots if slot.loaded is None and slot.reason]
        if failed:
            return _error(RequestError(f"not ready: {', '.join(failed)}", status=503))
        crashing = [slot.name for slot in self._repository.slots if slot.is_crashing]
        if crashing:
            return _error(RequestError(f"{', '.join(crashing)}: {_CRASHING}", status=503))
        return _json({"ready": True})

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
        return _json({"name": entry.name, "ready": True})

    def _model_metadata(self, entry: Entry) -> Answer:
        batching = entry.metrics.batching
        return _json(
            {
                "name": entry.name,
                "versions": self._repository.versions(entry.name),
                "platform": entry.platform,
                "inputs": [_described(spec) for spec in entry.inputs],
                "outputs": [_described(spec) for spec in entry.outputs],
                **({"properties": {"batching": batching.sentence}} if batching else {}),
            }
        )

    async def _repository_call(self, call: _Call, parts: list[str]) -> Answer:
        if not self._options.allow_repository_calls:
            raise RequestError("repository calls are not allowed by this server", status=403)
        match parts:
            case ["index"]:
                _allow(call, "POST")
                return self._listing(await self._document(call))
            case ["models", name, "load"]:
                _allow(call, "POST")
                await self._document(call)
                return await self._load(name)
            case ["models", name, "unload"]:
                _allow(call, "POST")
                await self._document(call)
                return await self._unload(name)
        raise _not_found()

    async def _document(self, call: _Call) -> dict[str, Any]:
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        self._check_json(len(body))
        document = read_json(body) if body.strip() else {}
        if not isinstance(document, dict):
            raise RequestError("expected a JSON object")
        return document

    def _listing(self, document: Mapping[str, Any]) -> Answer:
        only_ready = document.get("ready", False)
        if not isinstance(only_ready, bool):
            raise RequestError("ready: expected true or false")
        rows = [
            {
                "name": slot.name,
                "version": slot.version,
                "state": "READY" if slot.loaded else "UNAVAILABLE",
                "reason": slot.reason,
            }
            for slot in self._repository.slots
            if slot.loaded or not only_ready
        ]
        return _json(rows)

    async def _load(self, name: str) -> Answer:
        """Load all versions of a model, again where they are there; those before serve until then."""
        loop, problems = asyncio.get_running_loop(), []
        async with self._changing:
            for slot in self._repository.named(name):
                try:
                    loaded = await loop.run_in_executor(self._executor, self._repository.open, slot.path)
                except EdgecError as e:
                    problems.append(f"{slot.path.name}: {e}")
                    slot.reason = str(e)
                    continue
                try:
                    before = self._repository.put(slot, loaded)
                except RequestError:
                    loaded.model.close()
                    raise
                self._place(loaded)
                slot.reason = ""
                await self._retire(before)
        if problems:
            raise RequestError("; ".join(problems))
        return _json({})

    async def _unload(self, name: str) -> Answer:
        async with self._changing:
            slots: list[Slot] = self._repository.named(name)
            for slot in slots:
                before = self._repository.put(slot, None)
                slot.reason = ""
                await self._retire(before)
        return _json({})

    async def _retire(self, loaded: Loaded | None) -> None:
        """Wait until nobody uses a model any more, then free it."""
        if loaded is None:
            return
        while any(entry.users for entry in loaded.entries):
            await asyncio.sleep(0.005)
        await loaded.entries[0].lane.drained()
        await asyncio.get_running_loop().run_in_executor(self._executor, loaded.model.close)

    def _place(self, loaded: Loaded) -> None:
        """Let a model run on the event loop if that takes less than waking a thread."""
        if isinstance(loaded.model, ScheduledModel) and loaded.model.waits:
            return
        if loaded.run_s < min(self._hop_s, _LONGEST_INLINE_S):
            loaded.entries[0].inline_bytes = max(1, _INLINE_SLACK * loaded.input_bytes)

    def _extensions(self) -> list[str]:
        return [*EXTENSIONS, *(["model_repository"] if self._options.allow_repository_calls else [])]


def _latest_begin(entry: Entry, plan: Plan, call: _Call) -> float | None:
    """Return when an inference has to begin, on the clock `time.monotonic`; None for whenever."""
    limits = []
    if plan.queue_timeout_s is not None:
        limits.append(time.monotonic() + plan.queue_timeout_s)
    if call.deadline is not None:
        limits.append(call.deadline - entry.lane.reserve_s())
    return min(limits, default=None)


def _inference(entry: Entry, plan: Plan, binary: memoryview, begin: float | None = None) -> Answer:
    inputs, model = plan.tensors(binary), entry.model
    outputs = model.run(inputs, begin) if isinstance(model, ScheduledModel) else model.run(inputs)
    headers, body = write_response(plan, entry.name, entry.version, outputs)
    return 200, [*headers, *told(entry)], body


async def _gone(receive: Receive) -> None:
    """Return when the client went away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _described(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": [n if isinstance(n, int) else -1 for n in spec.shape],
    }


def _json(document: object) -> Answer:
    return 200, [_JSON], json.dumps(document, separators=(",", ":")).encode()


def _error(error: RequestError) -> Answer:
    fields: Headers = [_JSON]
    if error.status in (429, 503):
        after = error.retry_after_s if isinstance(error, BusyError) else RETRY_AFTER_S
        fields.append((b"retry-after", b"%d" % after))
    elif error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    elif isinstance(error, _MethodError):
        fields.append((b"allow", error.allowed.encode()))
    elif error.status == 413:
        fields.append((b"connection", b"close"))  # what is left of the body is not read
    return error.status, fields, json.dumps({"error": str(error)}).encode()


def _allow(call: _Call, method: str) -> None:
    if call.method != method and not (method == "GET" and call.method == "HEAD"):
        raise _MethodError("GET, HEAD" if method == "GET" else method, call.method)


def _segment(part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as e:
        raise RequestError("the address is not UTF-8") from e


def _not_found() -> RequestError:
    return RequestError("no such address: see /openapi.json", status=404)
