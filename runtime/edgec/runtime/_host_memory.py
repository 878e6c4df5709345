"""Which models of a host are in memory: loaded when they are called, unloaded where it is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgec.errors import DeviceMemoryError, InferenceError, OverloadedError, UnknownModelError
from edgec.runtime._hosted import Entry, Loaded, end, observed, retire
from edgec.runtime._memory import resident_bytes

if TYPE_CHECKING:
    from edgec.runtime._observer import ObserveOptions
    from edgec.runtime._session import Session

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
_LOOKS = 2  # measurements that have to agree that a model is too large: one may have counted others' memory


class HostMemory:
    """All models of a host, and which of them are in memory. Safe from several threads.

    Args:
        loader: How artifacts are loaded.
        budget: Bytes of all loaded models together; None for no bound.

    Attributes:
        lock: Held by who reads or changes what follows.
        entries: Models by name and version.
        observing: How those that are loaded are observed; None where they are not.
        closed: Whether nothing is loaded any more.
    """

    def __init__(self, loader: Callable[[Path], Session], budget: int | None) -> None:
        self._loader, self._budget = loader, budget
        self.lock = Lock()
        self.entries: dict[tuple[str, str], Entry] = {}
        self.observing: ObserveOptions | None = None
        self.closed = False
        self._loading = Lock()
        self._clock = 0

    @contextmanager
    def lease(self, find: Callable[[], Entry]) -> Iterator[tuple[Entry, Loaded]]:
        """Give a model, loaded first if it is not; it is not unloaded for as long as this lasts.

        Args:
            find: Returns it; called with the lock.

        Raises:
            OverloadedError: Models in use take the memory that it needs.
            DeviceMemoryError: It needs more than there is.
            UnknownModelError: It was removed meanwhile.
            EdgecError: As of `find`, and of `edgec.runtime.load`.
        """
        entry, loaded = self._take(find)
        try:
            yield entry, loaded
        finally:
            with self.lock:
                loaded.calls -= 1
                over = loaded.retired and not loaded.calls
            if over:
                end(loaded.session)

    def run(self, entry: Entry, loaded: Loaded, inputs: Arrays) -> Outputs:
        """Run a model that is leased; its first calls are measured."""
        if loaded.first_calls > 0:
            return self._run_first(entry, loaded, inputs)
        return loaded.session.run(inputs)

    def take_out(self, entry: Entry) -> Session | None:
        """Return what is to be ended of a model that is to be in memory no longer; with the lock."""
        self._clock += 1  # as in `_take`: what ends beside a first call gives memory back
        return retire(entry)

    def check_open(self) -> None:
        """Refuse where the host is closed."""
        if self.closed:
            raise InferenceError("the host is closed: make another")

    def _take(self, find: Callable[[], Entry]) -> tuple[Entry, Loaded]:
        """Return a model in memory, and count it as in use."""
        with self.lock:
            entry = find()
            if entry.loaded is not None:
                return entry, self._count(entry, entry.loaded)
        with self._loading:  # one at a time, so that what each takes can be told
            with self.lock:
                self.check_open()
                if entry.loaded is not None:  # another thread was faster
                    return entry, self._count(entry, entry.loaded)
                self._clock += 1  # for first calls, which see by it that something began beside them
            return entry, self._load(entry)

    def _load(self, entry: Entry) -> Loaded:
        if self._budget is not None:
            if entry.size > self._budget or entry.too_large >= _LOOKS:
                raise self._too_large(entry)
            self._make_room(entry, min(entry.memory, self._budget))
        before = resident_bytes()
        session = self._loader(entry.path)
        try:
            entry.memory = max(resident_bytes() - before, session.size_bytes)
            if self._budget is not None and entry.memory > self._budget:
                entry.too_large += 1
                raise self._too_large(entry)
            entry.too_large = 0
            self._make_room(entry, entry.memory)
            with self.lock:
                self.check_open()
                if entry.removed:
                    raise UnknownModelError(f"{entry.name} {entry.version} was removed while it was loaded")
                if self.observing is not None:
                    entry.observer = observed(session, entry.observer, self.observing)
                entry.loaded = Loaded(session)
                return self._count(entry, entry.loaded)
        except BaseException:
            end(session)
            raise

    def _too_large(self, entry: Entry) -> DeviceMemoryError:
        return DeviceMemoryError(
            f"{entry.name} {entry.version} needs {entry.memory / 2**20:.1f} MiB, and all models together may "
            f"take {(self._budget or 0) / 2**20:.1f}: allow more memory"
        )

    def _run_first(self, entry: Entry, loaded: Loaded, inputs: Arrays) -> Outputs:
        """Run a model that was loaded just now, and note what it grows by where nothing runs beside it."""
        with self.lock:
            first = loaded.first_calls > 0  # others that were let in together may have been faster
            loaded.first_calls -= first
            started = self._clock
            calls = sum(e.loaded.calls for e in self.entries.values() if e.loaded is not None)
            alone = first and calls == 1 and not self._loading.locked()
        before = resident_bytes() if alone else 0
        outputs = loaded.session.run(inputs)
        if alone:
            grown = resident_bytes() - before - sum(array.nbytes for array in outputs.values())
            self._grow(entry, loaded, grown, started)
        return outputs

    def _grow(self, entry: Entry, loaded: Loaded, grown: int, started: int) -> None:
        """Count memory to a model, and unload what was called longest ago where it is too much together."""
        ended: list[Session | None] = []
        with self.lock:
            if grown <= 0 or self._clock != started or entry.loaded is not loaded:
                return
            entry.memory += grown
            there = [e for e in self.entries.values() if e.loaded is not None]
            over = 0 if self._budget is None else sum(e.memory for e in there) - self._budget
            for other in sorted(there, key=lambda e: e.used):
                if over > 0 and other.loaded is not None and not other.loaded.calls:
                    over -= other.memory
                    ended.append(retire(other))
        for session in ended:
            end(session)

    def _make_room(self, entry: Entry, needed: int) -> None:
        """Unload what was called longest ago, until a model fits; nothing where that would not be enough."""
        if self._budget is None:
            return
        while True:
            with self.lock:
                there = [(e, e.loaded) for e in self.entries.values() if e.loaded is not None]
                if sum(e.memory for e, _ in there) + needed <= self._budget:
                    return
                idle = [e for e, loaded in there if not loaded.calls]
                taken = sum(e.memory for e, loaded in there if loaded.calls)
                if taken + needed > self._budget:
                    raise OverloadedError(
                        f"{entry.name} {entry.version} needs {needed / 2**20:.1f} MiB, models in use take "
                        f"{taken / 2**20:.1f} of {self._budget / 2**20:.1f} MiB: call again later, or allow "
                        "more memory"
                    )
                ended = retire(min(idle, key=lambda e: e.used))
            end(ended)

    def _count(self, entry: Entry, loaded: Loaded) -> Loaded:
        self._clock += 1
        entry.used = self._clock
        loaded.calls += 1
        return loaded
