"""Several models by name and version, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from edgec.artifact import Artifact
from edgec.errors import UnknownModelError
from edgec.runtime._host_memory import Arrays, HostMemory, Outputs
from edgec.runtime._hosted import Entry, HostedModel, Loaded, end, retire
from edgec.runtime._routes import Split

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgec.runtime._observer import ObserveOptions, Observer
    from edgec.runtime._session import Session
    from edgec.runtime._shadow import Shadow


class Host:
    """Models by name and version, loaded when they are first called; close it, or use ``with``.

    Where memory is short, the model that was called longest ago is unloaded, and loaded again when it is
    called again. Safe from several threads.
    """

    def __init__(
        self, loader: Callable[[Path], Session] | None = None, *, memory_budget_mib: float | None = None
    ) -> None:
        """Make a host without models.

        Args:
            loader: How artifacts are loaded: ``partial(load, threads=1, pool=pool)``; None for `load`.
            memory_budget_mib: Of all loaded models together; None for no bound.

        Raises:
            ValueError: The budget is not positive.
        """
        if memory_budget_mib is not None and not memory_budget_mib > 0:
            raise ValueError(f"expected a memory budget above 0 MiB, got {memory_budget_mib}")
        if loader is None:
            from edgec.runtime._session import load

            loader = load
        budget = None if memory_budget_mib is None else int(memory_budget_mib * 2**20)
        self._memory = HostMemory(loader, budget)
        self._lock, self._entries = self._memory.lock, self._memory.entries
        self._defaults: dict[str, str] = {}
        self._splits: dict[str, Split] = {}
        self._shadows: dict[str, Shadow] = {}

    def add(self, name: str, path: str | Path, version: str | None = None, *, default: bool = False) -> str:
        """Make a model known; it is loaded when it is first called, or by `load`.

        Args:
            name: To call it by.
            path: Of its artifact.
            version: None for what the artifact says.
            default: Whether calls that name no version go to it from now on; the first version of a name is
                the default in any case.

        Returns:
            The version.

        Raises:
            ArtifactError: The artifact cannot be read.
            ValueError: There is this version of this name.
        """
        path = Path(path)
        with Artifact.open(path) as artifact:
            version = artifact.manifest.model_version if version is None else version
            size = artifact.size_bytes
        with self._lock:
            self._memory.check_open()
            if (name, version) in self._entries:
                raise ValueError(
                    f"there is a version {version} of {name} already: remove it, or name another"
                )
            self._entries[name, version] = Entry(name, version, path, size)
            if default or name not in self._defaults:
                self._defaults[name] = version
        return version

    def models(self) -> list[HostedModel]:
        """Return all models, in the order in which they came."""
        with self._lock:
            return [
                HostedModel(
                    name=e.name,
                    version=e.version,
                    path=e.path,
                    default=self._defaults.get(e.name) == e.version,
                    loaded=e.loaded is not None,
                    memory_bytes=e.memory,
                )
                for e in self._entries.values()
            ]

    def load(self, name: str, version: str | None = None) -> None:
        """Load a model now, so that its first call need not.

        Raises:
            UnknownModelError: There is none.
            OverloadedError: Models in use take the memory that it needs.
            DeviceMemoryError: It needs more than there is.
            EdgecError: As of `edgec.runtime.load`.
        """
        with self.session(name, version):
            pass

    def set_default(self, name: str, version: str) -> None:
        """Send calls that name no version to another one from now on; it is loaded and tested before.

        Raises:
            UnknownModelError: There is none.
            EdgecError: It does not load; the default stays.
        """
        with self.session(name, version), self._lock:
            self._defaults[name] = version

    def split(self, name: str, shares: Mapping[str, float] | None) -> None:
        """Divide calls that name no version, and have a key, between versions.

        A key goes to the same version as long as the shares stay, on every host.

        Args:
            name: Of the model.
            shares: By version: ``{"1": 0.9, "2": 0.1}``; what they come to is the whole. None to end it.

        Raises:
            UnknownModelError: There is no such version.
            ValueError: A share is negative, or all are 0.
        """
        with self._lock:
            for version in shares or ():
                self._entry(name, version)
            if shares is None:
                self._splits.pop(name, None)
            else:
                self._splits[name] = Split(name, shares)

    def shadow(
        self,
        name: str,
        candidate: str | None,
        *,
        fraction: float = 0.1,
        max_queue: int = 8,
        agree: Callable[[Arrays, Arrays], bool] | None = None,
    ) -> Shadow | None:
        """Let another version see a sample of what is run, and record how it does; its answers are discarded.

        The live path pays for a copy of each sampled input and output, never for the candidate: it has a
        thread of its own, and what its queue has no room for is dropped and counted.

        Args:
            name: Of the model.
            candidate: Version that sees the sample; None to end this.
            fraction: Of calls that `run` answers from another version.
            max_queue: Calls that may wait for the candidate.
            agree: Whether two answers, the live one first, are the same to the application; None for:
                integers, texts and the place of the largest value along the last axis are.

        Returns:
            What is recorded; what was, where it ends; None where nothing was.

        Raises:
            UnknownModelError: There is no such version.
            IncompatibleArtifactError: It has other inputs or outputs than the default.
            ValueError: The fraction is not within 0 and 1, or the queue is below 1.
            EdgecError: It does not load.
        """
        from edgec.runtime._shadow import Shadow, check_same_interface

        if candidate is None:
            with self._lock:
                ended = self._shadows.pop(name, None)
            if ended is not None:
                ended.close()
            return ended
        with self.session(name) as live, self.session(name, candidate) as other:
            check_same_interface(live, other)

        def run(inputs: Arrays) -> Outputs:
            with self.session(name, candidate) as session:
                return session.run(inputs)

        shadow = Shadow(run, candidate, fraction=fraction, max_queue=max_queue, agree=agree)
        with self._lock:
            before, self._shadows[name] = self._shadows.get(name), shadow
        if before is not None:
            before.close()
        return shadow

    def observe(self, options: ObserveOptions | None = None) -> None:
        """Observe every model from now on, each on its own; see `observers` and ``Session.observe``.

        What was observed of a model stays when it is unloaded, and goes on when it is loaded again.

        Args:
            options: None for the defaults.
        """
        from edgec.runtime._observer import ObserveOptions

        options = options or ObserveOptions()
        with self._lock:
            self._memory.observing = options
            for entry in self._entries.values():
                if entry.loaded is not None:
                    entry.observer = entry.loaded.session.observe(options)

    def observers(self) -> dict[tuple[str, str], Observer]:
        """Return what observes each model, by its name and version; of those that were loaded by now."""
        with self._lock:
            return {key: e.observer for key, e in self._entries.items() if e.observer is not None}

    def run(
        self, name: str, inputs: Arrays, *, version: str | None = None, key: str | None = None
    ) -> Outputs:
        """Run a model once.

        Args:
            name: Of the model.
            inputs: As of ``Session.run``.
            version: None for the one that `split` gives the key, else for the default.
            key: Who asks, so that `split` is the same each time.

        Raises:
            UnknownModelError: There is none.
            OverloadedError: Models in use take the memory that it needs.
            DeviceMemoryError: It needs more than there is.
            InputError, InferenceError: As of ``Session.run``.
        """
        shadow = self._shadows.get(name)
        with self._leased(name, version, key) as (entry, loaded):
            if shadow is None or entry.version == shadow.candidate or not shadow.wants():
                return self._memory.run(entry, loaded, inputs)
            start = perf_counter()
            outputs = self._memory.run(entry, loaded, inputs)
            shadow.offer(inputs, outputs, perf_counter() - start)
            return outputs

    def submit(
        self,
        name: str,
        inputs: Arrays,
        *,
        version: str | None = None,
        key: str | None = None,
        priority: float | None = None,
        deadline_ms: float | None = None,
    ) -> Future[Outputs]:
        """Queue one run of a model, which is loaded first if it is not; see `run` and ``Session.submit``."""
        with ExitStack() as stack:
            _, loaded = stack.enter_context(self._leased(name, version, key))
            future = loaded.session.submit(inputs, priority=priority, deadline_ms=deadline_ms)
            leased = stack.pop_all()
        future.add_done_callback(lambda _: leased.close())
        return future

    @contextmanager
    def session(self, name: str, version: str | None = None, *, key: str | None = None) -> Iterator[Session]:
        """Give the session of a model, which is not unloaded for as long as this lasts; do not close it.

        Raises:
            UnknownModelError: There is none.
            OverloadedError: Models in use take the memory that it needs.
            DeviceMemoryError: It needs more than there is.
            EdgecError: As of `edgec.runtime.load`.
        """
        with self._leased(name, version, key) as (_, loaded):
            yield loaded.session

    def unload(self, name: str, version: str | None = None) -> None:
        """Take a model out of memory, after the calls that run; the next one loads it again.

        Raises:
            UnknownModelError: There is none.
        """
        with self._lock:
            ended = self._memory.take_out(self._entry(name, version))
        end(ended)

    def remove(self, name: str, version: str) -> None:
        """Forget a version, after the calls that run; the default has to be another one, or the last.

        Raises:
            UnknownModelError: There is none.
            ValueError: It is the default, or has a share of a split, while there are others.
        """
        with self._lock:
            entry = self._entry(name, version)
            others = any(n == name and v != version for n, v in self._entries)
            if others and self._defaults[name] == version:
                raise ValueError(f"version {version} is the default of {name}: set another one before")
            if name in self._splits and version in self._splits[name].versions:
                raise ValueError(f"version {version} has a share of {name}: split it otherwise before")
            del self._entries[name, version]
            if not others:
                del self._defaults[name]
            entry.removed = True
            ended = self._memory.take_out(entry)
        end(ended)

    def close(self) -> None:
        """Unload everything; calls that run end as they would have, later ones are refused."""
        with self._lock:
            self._memory.closed = True
            shadows, self._shadows = list(self._shadows.values()), {}
            sessions = [retire(entry) for entry in self._entries.values()]
        for shadow in shadows:
            shadow.close()
        for session in sessions:
            end(session)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leased(
        self, name: str, version: str | None, key: str | None
    ) -> AbstractContextManager[tuple[Entry, Loaded]]:
        return self._memory.lease(partial(self._route, name, version, key))

    def _route(self, name: str, version: str | None, key: str | None) -> Entry:
        if version is None and key is not None and name in self._splits:
            version = self._splits[name].version_of(key)
        return self._entry(name, version)

    def _entry(self, name: str, version: str | None) -> Entry:
        self._memory.check_open()
        wanted = self._defaults.get(name) if version is None else version
        entry = self._entries.get((name, wanted or ""))
        if entry is None:
            there = ", ".join(f"{n} {v}" for n, v in self._entries) or "none"
            raise UnknownModelError(
                f"no model {name}{'' if version is None else f' {version}'}; there are: {there}"
            )
        return entry
