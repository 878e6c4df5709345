"""Answers that were given before, for inputs that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from threading import Lock
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgec.runtime._observer import Observer
    from edgec.runtime._session import Session

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Outputs]
# What an entry takes beside its arrays, about: key, times, the arrays' own heads.
_HEAD_BYTES = 512


class _Entry(NamedTuple):
    outputs: Outputs
    size_bytes: int
    run_s: float
    made: float


class ResultCache:
    """Answers of models by the content of their inputs, bounded by bytes and age; the oldest go first.

    Give it to ``load(..., cache=)`` or ``Session.use_cache``, to one session or to several. An answer is
    found only by the same bytes, dtypes and shapes, for the same artifact, engine and version of the engine.
    What is returned is a copy that belongs to the caller. An error is never kept. Two calls that ask the
    same at the same time both run. Safe from several threads.

    It pays where the same inputs come again often and a run takes much longer than reading and hashing them,
    about a millisecond per MiB: a camera before a still scene rarely sends the same bytes twice, for it has
    noise. `saved_s` tells.

    Attributes:
        max_bytes: Most that answers may take; an answer larger than that is not kept.
        max_age_s: How long an answer is good; None for as long as there is room.
        hits: Calls that were answered.
        misses: Calls that had to run.
        saved_s: What the answers would have taken to compute, less what asking and keeping took, those that
            were not found included. Negative: it costs more than it brings.
    """

    max_bytes: int
    max_age_s: float | None
    hits: int
    misses: int
    saved_s: float

    def __init__(
        self, *, max_bytes: int, max_age_s: float | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        """Make one that is empty.

        Args:
            max_bytes: Most that answers may take.
            max_age_s: How long an answer is good.
            clock: For ages, in seconds.

        Raises:
            ValueError: A bound is not above 0.
        """
        if max_bytes < 1 or (max_age_s is not None and not max_age_s > 0):
            raise ValueError(f"expected max_bytes and max_age_s above 0, got {max_bytes} and {max_age_s}")
        self.max_bytes = max_bytes
        self.max_age_s = max_age_s
        self.hits = self.misses = 0
        self.saved_s = 0.0
        self._clock = clock
        self._lock = Lock()
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._size = 0

    @property
    def size_bytes(self) -> int:
        """What all answers take now."""
        return self._size

    def __len__(self) -> int:
        """Return how many answers there are."""
        return len(self._entries)

    def clear(self, artifact: str | None = None) -> None:
        """Forget answers.

        Args:
            artifact: Digest of the content of the artifact whose answers go; None for all.
        """
        with self._lock:
            for key in [k for k in self._entries if artifact is None or k[0] == artifact]:
                self._drop(key)

    def around(self, session: Session, run: Run, observer: Observer | None) -> Run:
        """Return a function that answers what it can, and runs the rest; for sessions.

        Args:
            session: Whose model it is.
            run: Runs it.
            observer: That is told of hits and misses.
        """
        artifact = session.content_digest
        facts = f"{artifact} {session.engine} {session.engine_version} {session.promised}".encode()
        names = sorted(spec.name for spec in session.inputs)

        def cached(inputs: Arrays) -> Outputs:
            start = perf_counter()
            key = artifact, _digest(facts, names, inputs)
            entry = self._find(key)
            if entry is not None:
                outputs = _copied(entry.outputs)
                self._count(observer, hit=True, saved_s=entry.run_s - (perf_counter() - start))
                return outputs
            begin = perf_counter()
            outputs = run(inputs)
            end = perf_counter()
            self._keep(key, outputs, end - begin)
            self._count(observer, hit=False, saved_s=-(perf_counter() - end + begin - start))
            return outputs

        return cached

    def _find(self, key: tuple[str, bytes]) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if self.max_age_s is not None and self._clock() - entry.made > self.max_age_s:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry

    def _keep(self, key: tuple[str, bytes], outputs: Outputs, run_s: float) -> None:
        size = _HEAD_BYTES + sum(array.nbytes for array in outputs.values())
        if size > self.max_bytes or any(array.dtype.hasobject for array in outputs.values()):
            return  # texts live elsewhere than in the array, so that its size would not be known
        entry = _Entry(_copied(outputs), size, run_s, self._clock())
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = entry
            self._size += size
            while self._size > self.max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: tuple[str, bytes]) -> None:
        self._size -= self._entries.pop(key).size_bytes

    def _count(self, observer: Observer | None, *, hit: bool, saved_s: float) -> None:
        with self._lock:
            self.hits += hit
            self.misses += not hit
            self.saved_s += saved_s
        if observer is not None:
            observer.cached(hit=hit, saved_s=saved_s)


def _copied(arrays: Outputs) -> Outputs:
    return {name: array.copy() for name, array in arrays.items()}


def _digest(facts: bytes, names: list[str], inputs: Arrays) -> bytes:
    """Return what differs where anything does that an answer depends on."""
    state = blake2b(facts, digest_size=32)
    for name in names:
        array = inputs[name]
        state.update(f"\0{name}\0{array.dtype.str}{array.shape}\0".encode())
        if array.dtype.hasobject:
            state.update(repr(array.tolist()).encode(errors="surrogatepass"))
        else:
            state.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return state.digest()
