"""A benchmark over threads, batch sizes and engines: which setting is the best for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Artifact
from edgec.runtime._machine import Machine, this_machine
from edgec.runtime._session import load
from edgec.runtime._synthetic import calling_inputs
from edgec.runtime.measurement import LatencySamples, measure_interleaved

AXES = ("threads", "batch", "engine")
BATCHES = (1, 2, 4, 8, 16)
_MOST_CALLS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One setting, and what it gave.

    Attributes:
        artifact: Path of the artifact.
        engine: Name of the engine that ran.
        threads: Threads of one inference; None for the engine's own choice.
        batch: Samples in one call.
        latency: Of each call.
    """

    artifact: str
    engine: str
    threads: int | None
    batch: int
    latency: LatencySamples

    @property
    def samples_per_s(self) -> float:
        """Samples per second of one caller."""
        return self.batch * 1e3 / self.latency.mean_ms

    @property
    def label(self) -> str:
        """The setting in a few letters: ``t2 b8``."""
        return f"{'' if self.threads is None else f't{self.threads} '}b{self.batch}"

    def to_dict(self) -> dict[str, Any]:
        """Return the point as JSON has it."""
        latency = self.latency
        return {
            "artifact": self.artifact,
            "engine": self.engine,
            "threads": self.threads,
            "batch": self.batch,
            "calls": latency.n,
            "latency_ms": {"p50": latency.p50_ms, "p90": latency.p90_ms, "p99": latency.p99_ms},
            "samples_per_s": self.samples_per_s,
            "verdict": "stable" if latency.is_stable else "unstable",
        }


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep gave.

    Attributes:
        model: Name of the model, of the first artifact.
        axes: What was varied.
        points: One per setting.
        notes: What could not be varied, and why.
        machine: As it was before.
    """

    model: str
    axes: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    notes: tuple[str, ...]
    machine: Machine

    @property
    def title(self) -> str:
        """One line: the model, the axes, the machine."""
        return f"{self.model} over {', '.join(self.axes)}, {self.machine.cpu}"

    @property
    def fastest(self) -> SweepPoint:
        """The setting with the lowest median latency."""
        return min(self.points, key=lambda point: point.latency.p50_ms)

    @property
    def busiest(self) -> SweepPoint:
        """The setting with the most samples per second."""
        return max(self.points, key=lambda point: point.samples_per_s)

    def to_dict(self) -> dict[str, Any]:
        """Return the sweep as JSON has it."""
        return {
            "model": self.model,
            "axes": list(self.axes),
            "points": [point.to_dict() for point in self.points],
            "notes": list(self.notes),
            "machine": asdict(self.machine),
            "concerns": self.machine.concerns,
        }


def sweep(
    paths: Sequence[str | Path],
    axes: Sequence[str],
    *,
    duration_s: float = 5.0,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    isolate: bool = False,
) -> SweepResult:
    """Measure every combination of settings, bare tensors, one after the other.

    Args:
        paths: Of artifacts of one model, one per engine; several only with the axis ``engine``.
        axes: Of `AXES`. ``threads``: 1, 2, 4 ... up to the cores of this machine. ``batch``: `BATCHES`, where
            all inputs have a first axis of any size; elsewhere the one that the model has, and a note.
            ``engine``: the artifacts.
        duration_s: For all settings together, in seconds; each gets at least 20 calls.
        threads: Of one inference where they are not varied; None for the engine's own choice.
        cache_dir: See `edgec.runtime.load`.
        delegate: Likewise.
        isolate: Likewise.

    Raises:
        ArtifactError: An artifact cannot be read.
        InferenceError: One does not load, or fails.
        ValueError: An axis is unknown, or not for these artifacts.
    """
    unknown = sorted(set(axes) - set(AXES))
    if unknown or not axes or len(set(axes)) != len(axes):
        raise ValueError(f"expected axes of {', '.join(AXES)}, each once, got {', '.join(axes) or 'none'}")
    if ("engine" in axes) != (len(paths) > 1):
        raise ValueError(
            "the axis engine takes several artifacts of one model, one per engine; the others, one"
        )
    if duration_s <= 0:
        raise ValueError(f"expected a duration above 0, got {duration_s}")
    machine = this_machine()
    threads_values = _thread_counts(machine.cores) if "threads" in axes else (threads,)
    inputs, notes = {}, []
    for path in paths:
        with Artifact.open(path) as artifact:
            feeds = calling_inputs(artifact)[0]
            inputs[str(path)] = _batches(artifact, feeds, "batch" in axes)
            if "batch" in axes and len(inputs[str(path)]) == 1:
                notes.append(
                    f"{path} takes batches of {next(iter(inputs[str(path)]))} only: its shapes are fixed"
                )
    settings = [(path, count) for path in inputs for count in threads_values]
    share = duration_s / sum(len(inputs[path]) for path, _ in settings)
    points, model = [], ""
    for path, count in settings:
        with load(path, threads=count, cache_dir=cache_dir, delegate=delegate, isolate=isolate) as session:
            model = model or session.manifest.model
            for batch, feeds in inputs[path].items():
                turn = cycle(feeds)
                latency = measure_interleaved(
                    {"call": lambda turn=turn: session.run(next(turn))},  # type: ignore[misc]
                    duration_s=share,
                    warmup_s=share / 10,
                    max_rounds=_MOST_CALLS,
                )["call"]
                points.append(
                    SweepPoint(
                        artifact=path, engine=session.engine, threads=count, batch=batch, latency=latency
                    )
                )
    return SweepResult(
        model=model, axes=tuple(axes), points=tuple(points), notes=tuple(notes), machine=machine
    )


def _thread_counts(cores: int) -> tuple[int, ...]:
    counts = [1]
    while counts[-1] * 2 <= cores:
        counts.append(counts[-1] * 2)
    return tuple(dict.fromkeys([*counts, cores]))


def _batches(
    artifact: Artifact, feeds: Sequence[Mapping[str, NDArray[Any]]], varied: bool
) -> dict[int, list[dict[str, NDArray[Any]]]]:
    """Return inputs by batch size; those of a larger batch are the same samples over and over."""
    specs = artifact.manifest.inputs
    sizes = [len(array) for array in feeds[0].values() if array.ndim]
    own = sizes[0] if sizes else 1
    named = {spec.shape[0] if spec.shape else None for spec in specs}
    if not varied or len(named) != 1 or not isinstance(named.pop(), str):
        return {own: [dict(feed) for feed in feeds]}
    return {
        batch: [
            {name: np.ascontiguousarray(np.resize(a, (batch, *a.shape[1:]))) for name, a in feed.items()}
            for feed in feeds
        ]
        for batch in BATCHES
    }
