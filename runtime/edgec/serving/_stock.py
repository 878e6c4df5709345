"""Which models are served: loaded, unloaded, added and taken away while others are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError, RequestError
from edgec.serving._answers import Answer, Call, allow, answer_json, check_json, not_found
from edgec.serving._body import read_body
from edgec.serving._lanes import hop_seconds
from edgec.serving._options import ServerOptions
from edgec.serving._repository import Loaded, Repository, Slot, problem_of
from edgec.serving._scheduling import ScheduledModel
from edgec.serving._wire import read_json

# Requests may be this much larger than those a model was measured with, and still run on the event loop.
_INLINE_SLACK = 2
# On a machine that is busy when the server starts, a thread seems to cost more than it will.
_LONGEST_INLINE_S = 0.0005


class Stock:
    """The models of a server as they change, one change at a time; answers calls of the repository.

    Args:
        repository: The models.
        options: What clients may do.
        executor: Whose threads load and free models.
    """

    def __init__(self, repository: Repository, options: ServerOptions, executor: Executor) -> None:
        self._repository = repository
        self._options = options
        self._executor = executor
        self._changing = asyncio.Lock()
        self._hop_s = 0.0

    async def start(self) -> None:
        """Measure what a thread costs, and decide which models do without."""
        self._hop_s = await hop_seconds(self._executor)
        for slot in self._repository.slots:
            if slot.loaded is not None:
                self._place(slot.loaded)

    async def adopt(self, path: Path, label: str) -> Slot:
        """Load one more artifact, and serve it; see `App.adopt`."""
        async with self._changing:
            open_ = partial(self._repository.open, path, label)
            loaded = await asyncio.get_running_loop().run_in_executor(self._executor, open_)
            self._place(loaded)
            return self._repository.add(path, loaded)

    async def dismiss(self, slot: Slot) -> None:
        """Serve an artifact no longer; return when what is in flight was answered and its memory is free."""
        async with self._changing:
            await self._retire(self._repository.remove(slot))

    async def answer(self, call: Call, parts: list[str]) -> Answer:
        """Answer what is asked of ``/v2/repository``."""
        if not self._options.allow_repository_calls:
            raise RequestError("repository calls are not allowed by this server", status=403)
        match parts:
            case ["index"]:
                allow(call, "POST")
                return self._listing(await self._document(call))
            case ["models", name, "load"]:
                allow(call, "POST")
                await self._document(call)
                return await self._load(name)
            case ["models", name, "unload"]:
                allow(call, "POST")
                await self._document(call)
                return await self._unload(name)
        raise not_found()

    async def _document(self, call: Call) -> dict[str, Any]:
        body = await read_body(call.receive, call.headers, self._options.max_body_bytes)
        check_json(len(body), self._options.max_json_bytes)
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
        return answer_json(rows)

    async def _load(self, name: str) -> Answer:
        """Load all versions of a model, again where they are there; those before serve until then."""
        loop, problems = asyncio.get_running_loop(), []
        async with self._changing:
            for slot in self._repository.named(name):
                try:
                    loaded = await loop.run_in_executor(self._executor, self._repository.open, slot.path)
                except EdgecError as e:
                    problems.append(problem_of(slot.path, e))
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
        return answer_json({})

    async def _unload(self, name: str) -> Answer:
        async with self._changing:
            slots: list[Slot] = self._repository.named(name)
            for slot in slots:
                before = self._repository.put(slot, None)
                slot.reason = ""
                await self._retire(before)
        return answer_json({})

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
