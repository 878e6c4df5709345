"""Inference requests: their terms, their turn, their answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

from edgec.errors import (
    DeadlineError,
    DeviceMemoryError,
    ExtraError,
    InferenceError,
    IsolationError,
    OverloadedError,
    PipelineError,
    RequestError,
)
from edgec.serving._answers import JSON, Answer, Call, answer_error, check_json
from edgec.serving._body import Receive, read_body
from edgec.serving._contract import Terms, read_terms, told
from edgec.serving._models import Prediction
from edgec.serving._options import ServerOptions
from edgec.serving._repository import PREDICT, Entry, Repository
from edgec.serving._scheduling import ScheduledModel
from edgec.serving._wire import Plan, header_size, read_plan, read_raw, write_response

# Headers of requests larger than this are parsed in a thread.
_LARGE_HEADER = 2**18
_LARGEST_KEPT_HEADER = 4096
_MOST_KEPT_PLANS = 64
# JSON of at most so many bytes is read on the event loop, with what it asks for.
_INLINE_JSON = 4096


class Inferences:
    """Answers ``infer`` and ``predict``.

    Args:
        repository: The models.
        options: Its limits.
        executor: Whose threads parse large headers.
    """

    def __init__(self, repository: Repository, options: ServerOptions, executor: Executor) -> None:
        self._repository = repository
        self._options = options
        self._executor = executor

    async def infer(self, call: Call, name: str, version: str | None) -> Answer:
        """Run a model on tensors."""
        call, terms = self._agreed(call, name, version)  # before a body is read for nothing
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        entry = self._repository.find(name, version, terms.digest, terms.source_digest)
        terms.check(entry)
        return await self._counted(entry, self._run(call, entry, body))

    async def predict(self, call: Call, name: str, version: str | None) -> Answer:
        """Run a whole pipeline on a sample."""
        call, terms = self._agreed(call, name + PREDICT, version)
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        entry = self._repository.find(name + PREDICT, version, terms.digest, terms.source_digest)
        terms.check(entry)
        assert isinstance(entry.model, Prediction)
        check_json(0 if entry.model.takes_bytes else len(body), self._options.max_json_bytes)
        return await self._counted(entry, self._run_prediction(call, entry, entry.model, body))

    def _agreed(self, call: Call, name: str, version: str | None) -> tuple[Call, Terms]:
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
            status, fields, body = answer_error(e)
        except (OverloadedError, DeadlineError, DeviceMemoryError, IsolationError, ExtraError) as e:
            status, fields, body = answer_error(RequestError(str(e), status=503))
        except (InferenceError, PipelineError) as e:
            # The model was proven when it was loaded: what it refuses is the request's doing.
            status, fields, body = answer_error(RequestError(str(e)))
        finally:
            entry.users -= 1
        entry.metrics.count(status, time.perf_counter() - start)
        return status, fields, body

    async def _run(self, call: Call, entry: Entry, body: bytes) -> Answer:
        size = header_size(call.headers.get(b"inference-header-content-length"), len(body))
        if size == 0:
            plan, binary = read_raw(memoryview(body), entry.inputs, entry.outputs)
        else:
            at = len(body) if size is None else size
            check_json(at, self._options.max_json_bytes)
            binary = memoryview(body)[at:]
            plan = await self._plan(entry, memoryview(body)[:at])
        small = plan.is_reusable or len(body) <= _INLINE_JSON
        if small and entry.inline_bytes and len(binary) <= entry.inline_bytes:
            return _inference(entry, plan, binary)
        run = partial(_inference, entry, plan, binary, _latest_begin(entry, plan, call))
        return await entry.lane.run(run, partial(_gone, call.receive), plan.queue_timeout_s, call.deadline)

    async def _run_prediction(self, call: Call, entry: Entry, model: Prediction, body: bytes) -> Answer:
        run = partial(model.predict_bytes, body)
        result = await entry.lane.run(run, partial(_gone, call.receive), None, call.deadline)
        return 200, [JSON, *told(entry)], result

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


def _latest_begin(entry: Entry, plan: Plan, call: Call) -> float | None:
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
