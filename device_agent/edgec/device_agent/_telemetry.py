"""From what is observed of sessions to records for the fleet: small, and no more than the policy allows."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from edgec.artifact import GoldenVector, encode_golden
from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import MAX_RECORD_BYTES, Priority
from edgec.device_agent._policy import DAY_S, TelemetryPolicy
from edgec.errors import AgentError, ManifestError
from edgec.protocol._window import (
    LEAST_CLASSES,
    NOTE_KIND,
    SAMPLE_KIND,
    WINDOW_KIND,
    ModelSample,
    ModelWindow,
    SystemState,
    make_note,
)
from edgec.runtime._thermal import thermal_state
from edgec.runtime._window import Window
from edgec.sketch import Histogram, QuantileSketch

WINDOW_BYTES = 1500
# The first windows after a start are short, so that news are soon known; together with the next they have
# the bytes of one hour: seconds, bytes.
_FIRST = ((60.0, 300), (540.0, 300))
_FIRST_HOUR_BYTES = WINDOW_BYTES - sum(size for _, size in _FIRST)
_LEAST_BYTES = 250  # counters and a name always fit
_TOP_CLASSES = 20
_MOST_MODELS = 64
_MOST_TEXT = 64
# Of outputs and of inputs each, as the protocol has it.
_MOST_SKETCHES = 64
_DIGEST_BYTES = 8
Arrays = Mapping[str, NDArray[Any]]
_Sketch = TypeVar("_Sketch", Histogram, QuantileSketch)


class Source(Protocol):
    """What windows are taken of: an `edgec.runtime` ``Observer``."""

    def take_all(self) -> list[Window]:
        """Return what was observed since the last time, and begin anew."""
        ...


def encode_window(
    name: str, window: Window, *, system: SystemState | None = None, limit: int = WINDOW_BYTES
) -> bytes:
    """Return a window as a record of at most `limit` bytes.

    What does not fit goes in this order, and the record says so: statistics of inputs; classes beyond the
    most frequent; accuracy of latencies, halved until 64 bins are one; histograms of inputs and of outputs,
    the last first; confidence; the rest of what has names. One histogram of outputs and two of inputs go
    only after most of the accuracy of latencies.

    Args:
        name: Of the model on this device.
        window: Of an observer.
        system: State of the machine.
        limit: At least 250 bytes, for counters and a coarse latency.
    """
    data = b""
    for made in _smaller_and_smaller(_whole(name, window, system), window):
        data = made.to_bytes()
        if len(data) <= limit:
            break
    return data


def _whole(name: str, window: Window, system: SystemState | None) -> ModelWindow:
    inputs, bins = _flat(window.inputs), _flat(window.input_bins)
    return ModelWindow(
        model=name,
        digest=bytes.fromhex(window.artifact.partition(":")[2][: 2 * _DIGEST_BYTES]),
        since=max(round(window.since, 0), 0.0),
        seconds=round(window.seconds, 1),
        calls=window.calls,
        errors=window.error_count,
        non_finite=window.non_finite,
        latency_ms=window.latency_ms.to_bytes() if window.latency_ms.count else b"",
        confidence=window.confidence.to_bytes() if window.confidence is not None else b"",
        classes=_top(window.classes, _TOP_CLASSES),
        outputs=_bytes_of(window.outputs),
        inputs=_bytes_of(inputs),
        model_version=window.model_version[:_MOST_TEXT],
        sampled=window.sampled,
        error_types=_named(window.errors),
        drops=_named(window.drops),
        fallbacks=_named(window.fallbacks),
        system=system,
        # The fleet knows them by these names, which are longer than those of inputs by that of the statistic.
        input_bins=_bytes_of(bins, 2 * _MOST_TEXT),
        left_out=sum(max(len(of) - _MOST_SKETCHES, 0) for of in (window.outputs, inputs, bins)),
    )


def _smaller_and_smaller(made: ModelWindow, window: Window) -> Iterator[ModelWindow]:
    yield made
    made = replace(made, inputs={}, left_out=made.left_out + len(made.inputs))
    yield made
    for top in (10, LEAST_CLASSES):
        made = replace(made, classes=_top(window.classes, top))
        yield made
    joined = 1
    while joined < 64 and made.latency_ms:
        joined *= 2
        made = replace(made, latency_ms=window.latency_ms.coarsened(joined).to_bytes(), joined_bins=joined)
        yield made
        if joined == 4:  # beyond this, drift is worth more
            for name, least in (("outputs", 1), ("input_bins", 2)):
                while len(getattr(made, name)) > least:
                    made = _without_last(made, name)
                    yield made
    for name in ("input_bins", "outputs"):
        while getattr(made, name):
            made = _without_last(made, name)
            yield made
    yield (made := replace(made, confidence=b"", left_out=made.left_out + bool(made.confidence)))
    yield replace(made, error_types={}, drops={}, fallbacks={}, classes={}, latency_ms=b"", system=None)


def _without_last(made: ModelWindow, name: str) -> ModelWindow:
    """Return a window with one less of its histograms."""
    kept = dict(getattr(made, name))
    kept.popitem()
    changed: dict[str, Any] = {name: kept, "left_out": made.left_out + 1}
    return replace(made, **changed)


def _flat(of: Mapping[str, Mapping[str, _Sketch]]) -> dict[str, _Sketch]:
    return {f"{name}/{statistic}": one for name, by_name in of.items() for statistic, one in by_name.items()}


def _bytes_of(of: Mapping[str, _Sketch], most_text: int = _MOST_TEXT) -> dict[str, bytes]:
    return {name[:most_text]: one.to_bytes() for name, one in islice(of.items(), _MOST_SKETCHES)}


def _top(classes: Mapping[int, int], most: int) -> dict[int, int]:
    """Return the most frequent classes, and under -1 how often all others were."""
    ranked = sorted(((c, n) for c, n in classes.items() if c >= 0), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(n for _, n in ranked[most:]) + classes.get(-1, 0)
    return {**dict(ranked[:most]), **({-1: rest} if rest else {})}


def _named(counts: Mapping[str, int]) -> dict[str, int]:
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:8]
    return {name[:_MOST_TEXT]: count for name, count in ranked}


def system_state(disk: Path, root: Path = Path("/")) -> SystemState:
    """Return the state of this machine: temperature, memory, disk, throttling, load.

    Args:
        disk: A path on the disk that matters.
        root: Where ``proc`` and ``sys`` are.
    """
    thermal = thermal_state(root)
    hottest = max(thermal.temperatures_c.values(), default=None)
    limited = bool(thermal.firmware or thermal.cooling)
    return SystemState(
        cpu_decidegrees=None if hottest is None else max(-2000, min(round(hottest * 10), 5000)),
        memory_free_mib=_memory_free_mib(root),
        disk_free_mib=_disk_free_mib(disk),
        throttled=max(thermal.throttled or 0, int(limited)) if thermal.is_known else None,
        load_percent=_load_percent(),
    )


def _memory_free_mib(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) // 1024 if found and found[0].isdigit() else None


def _disk_free_mib(disk: Path) -> int | None:
    try:
        state = os.statvfs(disk)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize // 2**20


def _load_percent() -> int | None:
    try:
        return round(os.getloadavg()[0] * 100)
    except OSError:
        return None


@dataclass
class _Watched:
    """A model that windows are taken of."""

    source: Source
    due: float
    windows: int = 0


class Telemetry:
    """Takes windows of models when they are due, and samples where the policy lets them leave.

    Nothing is kept here: what the outbox cannot take is counted as lost. Safe from several threads.
    """

    def __init__(
        self,
        outbox: Outbox,
        policy: TelemetryPolicy | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        system: Callable[[], SystemState | None] = lambda: None,
    ) -> None:
        """Make one without models.

        Args:
            outbox: Where records go.
            policy: None for the default: metadata only.
            monotonic: Seconds, for what is due.
            system: State of the machine, asked for with each window: see `system_state`.
        """
        self._outbox = outbox
        self._policy = TelemetryPolicy() if policy is None else policy
        self._monotonic = monotonic
        self._system = system
        self._lock = Lock()
        self._watched: dict[str, _Watched] = {}
        self._start = self._day = monotonic()
        self._bytes = self._samples = 0

    @property
    def policy(self) -> TelemetryPolicy:
        """What may leave now."""
        return self._policy

    def set_policy(self, policy: TelemetryPolicy) -> None:
        """Let leave what another policy allows, from now on; what it does not is not kept for later."""
        with self._lock:
            self._policy = policy

    def watch(self, name: str, source: Source) -> None:
        """Take windows of a model from now on, the first of them short.

        Args:
            name: Of the model on this device.
            source: ``session.observe()``.

        Raises:
            AgentError: There are 64 already.
        """
        with self._lock:
            if name not in self._watched and len(self._watched) >= _MOST_MODELS:
                raise AgentError(f"at most {_MOST_MODELS} models are observed at a time")
            self._watched[name] = _Watched(source, self._due(0))

    def forget(self, name: str) -> None:
        """Take the last window of a model, and no more."""
        with self._lock:
            watched = self._watched.pop(name, None)
            if watched is not None:
                self._take(name, watched)

    def tick(self) -> float:
        """Do what is due; return in how many seconds there is something to do again, 3600 at the most."""
        with self._lock:
            now = self._monotonic()
            if now - self._day >= DAY_S:
                self._day, self._bytes, self._samples = now, 0, 0
            for name, watched in self._watched.items():
                if now >= watched.due:
                    self._take(name, watched)
            following = [watched.due - now for watched in self._watched.values()]
            return max(0.0, min(following, default=3600.0))

    def flush(self) -> None:
        """Take all windows now, as before the agent ends."""
        with self._lock:
            for name, watched in self._watched.items():
                self._take(name, watched)

    def sample(self, name: str, artifact: str, inputs: Arrays, outputs: Arrays) -> bool:
        """Keep one call for the fleet, as far as the policy allows.

        Args:
            name: Of the model on this device.
            artifact: Digest of the artifact's content: ``sha256:5e8f...``.
            inputs: Of the call; they leave only where the policy says `inputs`.
            outputs: Of the call; likewise.

        Returns:
            Whether it was kept. What a policy forbids, or no longer allows today, is not; nor is what has
            more than 90 KiB or a dtype that cannot be stored. It is counted as lost where it was allowed.
        """
        with self._lock:
            policy = self._policy
            if not policy.samples:
                return False
            call = GoldenVector(
                inputs=dict(inputs) if policy.inputs else {}, outputs=dict(outputs) if policy.outputs else {}
            )
            size = sum(a.nbytes for a in (*call.inputs.values(), *call.outputs.values()))
            if size > MAX_RECORD_BYTES - 6 * 1024 or self._samples >= policy.max_samples_per_day:
                self._outbox.count_loss(SAMPLE_KIND, Priority.SAMPLE, "rate", 1, size)
                return False
            try:
                tensors = encode_golden([call])
            except ManifestError:  # texts
                return False
            digest = bytes.fromhex(artifact.partition(":")[2][: 2 * _DIGEST_BYTES])
            record = ModelSample(model=name, digest=digest, tensors=tensors).to_bytes()
            self._samples += 1
            return self._put(SAMPLE_KIND, Priority.SAMPLE, record)

    def note(self, source: str, raw: str | bytes) -> None:
        """Keep a line of a log, whatever is in it: cleaned, and cut to 4096 characters.

        Raises:
            AgentError: The disk failed.
        """
        self._outbox.put(NOTE_KIND, Priority.EVENT, make_note(source, raw).to_bytes())

    def _bytes_of(self, windows: int) -> int:
        """Return how many bytes a window may have, by how many there were before it."""
        interval = self._policy.interval_s
        if interval < 3600.0 or windows > len(_FIRST):
            return math.floor(WINDOW_BYTES * min(interval / 3600.0, 1.0))
        return _FIRST[windows][1] if windows < len(_FIRST) else _FIRST_HOUR_BYTES

    def _due(self, windows: int) -> float:
        """Return when a window ends that begins now; all but the first end together, for one message."""
        now, interval = self._monotonic(), self._policy.interval_s
        if interval >= 3600.0 and windows < len(_FIRST):
            return now + _FIRST[windows][0]
        return self._start + (math.floor((now - self._start) / interval) + 1) * interval

    def _take(self, name: str, watched: _Watched) -> None:
        policy, limit = self._policy, self._bytes_of(watched.windows)
        share = policy.max_bytes_per_day * policy.interval_s / DAY_S / max(len(self._watched), 1)
        share *= limit / self._bytes_of(len(_FIRST) + 1)
        watched.windows += 1
        watched.due = self._due(watched.windows)
        windows = [window for window in watched.source.take_all() if not window.is_empty]
        if not policy.metrics or not windows:
            return
        # Several where the session was swapped: they share what there is for one.
        limit = max(math.floor(min(limit, max(share, _LEAST_BYTES)) / len(windows)), _LEAST_BYTES)
        system = self._system()
        for window in windows:
            self._put(WINDOW_KIND, Priority.METRIC, encode_window(name, window, system=system, limit=limit))

    def _put(self, kind: str, priority: Priority, record: bytes) -> bool:
        if self._bytes + len(record) > self._policy.max_bytes_per_day:
            self._outbox.count_loss(kind, priority, "rate", 1, len(record))
            return False
        try:
            kept = self._outbox.put(kind, priority, record) is not None
        except AgentError:  # counted by the outbox; a full disk must not end what takes windows
            return False
        self._bytes += len(record)
        return kept
