"""A verified file from sources that fail: one at a time, resumed after a kill, at a bounded cost."""

from __future__ import annotations

import random as _random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from edgec.delta._chunk_map import CHUNK_BYTES, ChunkMap
from edgec.device_agent._disk import Disk
from edgec.device_agent._line import Cancel, Failure, Limits, Line, Spent
from edgec.device_agent._partial import Partial, leftovers
from edgec.device_agent._sources import Reader, Source
from edgec.errors import TransferError

_MOST_STRIKES = 2
_PIECE = 65536
_LEAST_REQUESTS = 256
_SLACK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The file that signed metadata promises.

    Attributes:
        length: Its bytes.
        sha256: Its digest, 64 hex digits.
        chunks: The digests of its chunks, by which damage is found before the file is whole.
    """

    length: int
    sha256: str
    chunks: ChunkMap | None = None

    def __post_init__(self) -> None:
        if self.chunks is not None and self.chunks.length != self.length:
            raise ValueError(f"the map is of a file of {self.chunks.length} bytes, not {self.length}")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that is there, whole and as promised.

    Attributes:
        path: Where.
        received: Bytes that came over the network or from the directory, headers included.
        requests: How many were made.
        resumed: Bytes that were here already.
    """

    path: Path
    received: int
    requests: int
    resumed: int


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a transfer takes from the world, for tests and simulations.

    Attributes:
        clock: Seconds that only grow.
        sleep: Waits.
        random: A number from 0 to 1.
        disk: Writes.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = _random.random
    disk: Disk = field(default_factory=Disk)


def fetch(
    wanted: Wanted,
    sources: Sequence[Source],
    path: str | Path,
    *,
    limits: Limits | None = None,
    cancel: Cancel | None = None,
    progress: Callable[[int, int], None] | None = None,
    spent: Spent | None = None,
    surroundings: Surroundings | None = None,
) -> Fetched:
    """Bring a file to `path`, or what is missing of it, and verify it.

    The space is reserved first. Chunks that are on disk and right are not fetched again, after a kill or a
    power cut either. One that is damaged is fetched again; a source that lies twice is out. Sources take
    turns where they fail; attempts, requests and bytes are bounded. Only the whole file with the promised
    digest gets its name.

    Args:
        wanted: What signed metadata promises.
        sources: Where it may be, the best first.
        path: Where it goes, in a directory that is there. `path` itself may be there already.
        limits: What it may cost.
        cancel: Ends it from another thread.
        progress: Called after each chunk with the bytes that are here and those of the file.
        spent: What it costs is added here, whether it fails or not.
        surroundings: Clock, randomness and disk.

    Raises:
        TransferError: With the reason ``cancelled``, ``disk_full``, ``disk`` or ``busy``; ``requests`` or
            ``bytes`` if the bounds are reached; else what the last source failed by: ``not_found``,
            ``refused``, ``redirects``, ``range``, ``length``, ``changed``, ``digest``, ``unavailable``,
            ``link`` or ``too_slow``. What came is kept for the next call, except where the disk is full.
    """
    path, limits, world = Path(path), limits or Limits(), surroundings or Surroundings()
    if is_there(path, wanted):
        return Fetched(path=path, received=0, requests=0, resumed=wanted.length)
    if not sources and wanted.length:
        raise TransferError("there is no source to fetch the file from", "not_found")
    partial = Partial(
        path,
        length=wanted.length,
        digest=wanted.sha256.lower(),
        chunk_bytes=wanted.chunks.chunk_bytes if wanted.chunks else CHUNK_BYTES,
        chunks=wanted.chunks,
        disk=world.disk,
        sync_bytes=limits.sync_bytes,
    )
    try:
        missing = partial.missing_bytes()
        chunks = -(-missing // partial.chunk_bytes)
        line = Line(
            limits,
            most_requests=limits.requests or max(_LEAST_REQUESTS, 4 * chunks),
            most_bytes=int(limits.excess * missing) + _SLACK_BYTES,
            spent=spent or Spent(),
            cancel=cancel,
            clock=world.clock,
            sleep=world.sleep,
        )
        _Transfer(partial, list(sources), line, world, progress, trusting=wanted.chunks is None).run()
    finally:
        partial.close()
    resumed = wanted.length - missing
    return Fetched(path=path, received=line.received, requests=line.requests, resumed=resumed)


def is_there(path: Path, wanted: Wanted) -> bool:
    """Return whether the file is there: a process may be killed between the last rename and its report."""
    try:
        if path.stat().st_size != wanted.length:
            return False
        digest = sha256()
        with path.open("rb") as file:
            while data := file.read(2**20):
                digest.update(data)
    except OSError:
        return False
    if digest.hexdigest() != wanted.sha256.lower():
        return False
    discard(path)
    return True


def discard(path: Path) -> None:
    """Remove what is here of a file that is not whole."""
    for leftover in leftovers(path):
        with suppress(OSError):
            leftover.unlink()


def is_begun(path: Path) -> bool:
    """Return whether a part of the file is here."""
    return all(leftover.exists() for leftover in leftovers(path))


class _Transfer:
    """One call of `fetch`."""

    def __init__(
        self,
        partial: Partial,
        sources: list[Source],
        line: Line,
        world: Surroundings,
        progress: Callable[[int, int], None] | None,
        *,
        trusting: bool,
    ) -> None:
        self._partial, self._sources, self._line, self._world = partial, sources, line, world
        self._progress, self._trusting = progress, trusting
        self._strikes: dict[int, int] = {}
        self._used: set[int] = set()
        self._not_before: dict[int, float] = {}
        self._failures = 0
        self._progress_at = world.clock()
        # What came of a chunk before the connection broke: source, place of the first byte, bytes.
        self._tail: tuple[int, int, bytearray] | None = None

    def run(self) -> None:
        """Fetch until the file has its name.

        Raises:
            TransferError: See `fetch`.
        """
        while True:
            run = next(self._partial.missing(), None)
            if run is None:
                if self._partial.publish():
                    return
                self._start_again()
                continue
            source = self._next_source()
            try:
                self._pull(source, *run)
            except Failure as failure:
                self._judge(source, failure)

    def _next_source(self) -> Source:
        """Return the first source that does not want to be left alone, having waited for one if need be."""
        now = self._world.clock()
        ready = [s for s in self._sources if self._not_before.get(id(s), now) <= now]
        if not ready:
            ready = [min(self._sources, key=lambda s: self._not_before[id(s)])]
            self._line.wait(self._not_before[id(ready[0])] - now)
        return ready[0]

    def _pull(self, source: Source, first: int, stop: int) -> None:
        """Read a run of chunks from a source, as far as it gives them."""
        data = bytearray()
        if self._tail is not None and self._tail[:2] == (id(source), first):
            data = self._tail[2]
        self._tail = None
        self._line.begin()
        known = self._partial.validator(source.name)
        try:
            with source.open(first + len(data), stop, self._partial.length, known, self._line) as reader:
                self._check_validator(source, reader, known)
                self._used.add(id(source))
                while first < stop:
                    index = first // self._partial.chunk_bytes
                    size = self._partial.size_of(index)
                    self._fill(reader, data, size)
                    self._keep(source, index, data)
                    first, data = first + size, bytearray()
        except Failure:
            if data and len(data) < self._partial.chunk_bytes:
                self._tail = (id(source), first, data)
            raise
        finally:
            if self._line.received:
                self._partial.sync()

    def _fill(self, reader: Reader, data: bytearray, size: int) -> None:
        while len(data) < size:
            part = reader.read(min(_PIECE, size - len(data)))
            if not part:
                # As much as was promised, which may be less than was asked for.
                raise Failure("the source ended before the file did", "later", "link")
            data += part

    def _keep(self, source: Source, index: int, data: bytearray) -> None:
        if not self._partial.put(index, data):
            data.clear()
            raise Failure(f"{source.name}: chunk {index} is damaged", "lie", "digest")
        self._failures, self._progress_at = 0, self._world.clock()
        if self._progress is not None:
            self._progress(self._partial.length - self._partial.missing_bytes(), self._partial.length)

    def _check_validator(self, source: Source, reader: Reader, known: str | None) -> None:
        """Begin again where a source has other content than before, and no map tells right from wrong."""
        said = reader.validator
        if known is not None and said != known and self._trusting:
            self._tail = None
            self._partial.reset()
            raise Failure(f"{source.name}: the file changed while it was fetched", "lie", "changed")
        if said is not None:
            self._partial.set_validator(source.name, said)

    def _start_again(self) -> None:
        """Blame every source that gave a part of a file that is not the one promised."""
        if not self._partial.length:
            raise TransferError("the digest that was promised is not that of an empty file", "digest")
        failure = Failure("the file that came is not the one promised", "lie", "digest")
        self._partial.reset()
        for source in [s for s in self._sources if id(s) in self._used]:
            self._strike(source, failure)
        self._used.clear()

    def _judge(self, source: Source, failure: Failure) -> None:
        if failure.kind == "gone":
            self._drop(source, failure)
        elif failure.kind == "lie":
            self._tail = None
            self._strike(source, failure)
        else:
            self._wait(source, failure)

    def _strike(self, source: Source, failure: Failure) -> None:
        self._strikes[id(source)] = self._strikes.get(id(source), 0) + 1
        if self._strikes[id(source)] >= _MOST_STRIKES:
            self._drop(source, failure)

    def _drop(self, source: Source, failure: Failure) -> None:
        self._sources.remove(source)
        if not self._sources:
            raise TransferError(str(failure), failure.reason) from failure

    def _wait(self, source: Source, failure: Failure) -> None:
        """Let the next source try; once all have failed, wait first."""
        limits = self._line.limits
        self._failures += 1
        now = self._world.clock()
        waited = now - self._progress_at
        if self._failures >= limits.attempts or waited > limits.patience_s:
            raise TransferError(
                f"no progress in {self._failures} attempts: {failure}", failure.reason
            ) from failure
        if failure.wait_s:
            self._not_before[id(source)] = now + min(failure.wait_s, limits.retry_after_s)
        self._sources.remove(source)
        self._sources.append(source)
        rounds, place = divmod(self._failures, len(self._sources))
        if not place:
            largest = min(limits.largest_delay_s, limits.first_delay_s * 2.0 ** min(rounds - 1, 32))
            self._line.wait(self._world.random() * largest)
