"""Benchmarks of artifacts, through the session that production uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import InferenceError
from edgec.runtime._machine import Machine, this_machine
from edgec.runtime._session import Session, load
from edgec.runtime._synthetic import calling_inputs
from edgec.runtime.measurement import LatencySamples, MedianRatio, measure_interleaved, median_ratio

__all__ = [
    "BenchmarkResult",
    "ColdStart",
    "LatencySamples",
    "Machine",
    "MedianRatio",
    "benchmark",
    "measure_cold_starts",
    "measure_interleaved",
    "median_ratio",
    "this_machine",
]


_MOST_CALLS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What a fresh process needs; medians over several of them, whose files were in the page cache.

    Attributes:
        load_ms: From calling `edgec.runtime.load` to a session, the import of the engine included.
        engine_import_ms: The import of the engine alone.
        first_inference_ms: Of the first call of ``run``.
        peak_memory_mib: Largest resident memory of the process, Python and engine included; None where
            the system does not tell.
        memory_before_mib: Resident memory before the engine was imported.
    """

    load_ms: float
    engine_import_ms: float
    first_inference_ms: float
    peak_memory_mib: float | None
    memory_before_mib: float | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What was measured of an artifact, on what, and how far it is to be trusted.

    Attributes:
        artifact: Path of the artifact.
        model: Name of the model.
        engine: Name of the engine that ran.
        engine_version: Its version.
        state: Of the session: ``ready`` or ``fallback``.
        promised_precision: What the artifact promises.
        precision: What the engine says it ran in; the promise where it does not tell.
        precisions: How many layers compute in which precision; empty where the engine does not tell.
        placement: How many nodes ran where.
        call: ``predict``, the whole pipeline, or ``run``, bare tensors.
        inputs: ``data``, what was given; ``golden``, those of the golden vectors; or ``synthetic``.
        threads: Threads of one inference; None for the engine's own choice.
        latency: Of each call.
        cold_start: Of fresh processes.
        machine: As it was before.
        load_average_after: Of the machine, in the last minute of the measurement.
    """

    artifact: str
    model: str
    engine: str
    engine_version: str
    state: str
    promised_precision: str
    precision: str
    precisions: Mapping[str, int]
    placement: Mapping[str, int]
    call: str
    inputs: str
    threads: int | None
    latency: LatencySamples
    cold_start: ColdStart
    machine: Machine
    load_average_after: float | None

    @property
    def throughput_per_s(self) -> float:
        """Calls per second of one caller, one after the other."""
        return 1e3 / self.latency.mean_ms

    @property
    def verdict(self) -> str:
        """``stable`` where the typical call kept its speed during the run, else ``unstable``.

        See `LatencySamples.is_stable`.
        """
        return "stable" if self.latency.is_stable else "unstable"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it; the shape is public, docs/runtime.md describes it."""
        latency = self.latency
        return {
            "artifact": self.artifact,
            "model": self.model,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "state": self.state,
            "precision": {
                "promised": self.promised_precision,
                "effective": self.precision,
                "measured": bool(self.precisions),
                "layers": dict(self.precisions),
            },
            "placement": dict(self.placement),
            "call": self.call,
            "inputs": self.inputs,
            "threads": self.threads,
            "calls": latency.n,
            "latency_ms": {
                "p50": latency.p50_ms,
                "p90": latency.p90_ms,
                "p99": latency.p99_ms,
                "mean": latency.mean_ms,
                "min": latency.min_ms,
                "max": latency.max_ms,
            },
            "throughput_per_s": self.throughput_per_s,
            **asdict(self.cold_start),
            "cv": latency.cv,
            "drift_cv": latency.drift_cv,
            "verdict": self.verdict,
            "concerns": self.machine.concerns,
            "machine": {**asdict(self.machine), "load_average_after": self.load_average_after},
        }


def benchmark(
    path: str | Path,
    *,
    samples: Sequence[object] | None = None,
    duration_s: float = 5.0,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    cold_starts: int = 3,
) -> BenchmarkResult:
    """Measure an artifact as production runs it: one caller, one call after the other, warmed up.

    Args:
        path: Of the artifact.
        samples: What `Session.predict` takes, used in turn; None to call `Session.run` with the inputs
            of the golden vectors, or with synthetic ones where there are none.
        duration_s: Of the measurement, in seconds, after a warm-up of a tenth of it; at least 20 calls
            are measured.
        threads: Threads of one inference; None for the engine's own choice.
        cache_dir: Where the engine may keep what it compiled; see `edgec.runtime.load`.
        cold_starts: Fresh processes to measure load time, first inference and memory in.

    Raises:
        ArtifactError: The artifact cannot be read.
        InferenceError: It does not load, or fails on the inputs.
        ValueError: There are no samples, or a number is out of range.
    """
    if samples is not None and not samples:
        raise ValueError("expected at least one sample to call the model with, got none")
    if duration_s <= 0 or cold_starts < 1:
        raise ValueError(f"expected a duration and cold starts above 0, got {duration_s} and {cold_starts}")
    before = this_machine()
    with load(path, threads=threads, cache_dir=cache_dir) as session:
        call, kind = _call(path, session, samples)
        latency = measure_interleaved(
            {"call": call}, duration_s=duration_s, warmup_s=duration_s / 10, max_rounds=_MOST_CALLS
        )["call"]
        after = this_machine().load_average
        manifest = session.manifest
        spec = manifest.engine if session.state == "ready" else manifest.fallback or manifest.engine
        facts: dict[str, Any] = {
            "engine": session.engine,
            "engine_version": session.engine_version,
            "state": session.state,
            "precision": session.precision,
            "precisions": session.precisions,
            "placement": session.placement,
        }
    return BenchmarkResult(
        artifact=str(path),
        model=manifest.model,
        promised_precision=spec.precision,
        call="run" if samples is None else "predict",
        inputs=kind,
        threads=threads,
        latency=latency,
        # When the session is closed, so that two models never share the memory of a small device.
        cold_start=measure_cold_starts(path, threads=threads, cache_dir=cache_dir, processes=cold_starts),
        machine=before,
        load_average_after=after,
        **facts,
    )


def measure_cold_starts(
    path: str | Path, *, threads: int | None = None, cache_dir: str | Path | None = None, processes: int = 3
) -> ColdStart:
    """Load an artifact and run it once in fresh processes, one after the other.

    Raises:
        InferenceError: A process failed; the message is what it said last.
    """
    options = {"threads": threads, "cache_dir": None if cache_dir is None else str(cache_dir)}
    command = [sys.executable, "-m", "edgec.runtime._cold_start", str(path), json.dumps(options)]
    rows = []
    for _ in range(processes):
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            said = process.stderr.strip().splitlines()
            raise InferenceError(
                f"{path}: a fresh process could not run it (exit status {process.returncode}): "
                f"{said[-1] if said else 'it said nothing'}"
            )
        rows.append(json.loads(process.stdout))
    return ColdStart(**{key: _median([row[key] for row in rows]) for key in rows[0]})


def _median(values: list[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _call(
    path: str | Path, session: Session, samples: Sequence[object] | None
) -> tuple[Callable[[], object], str]:
    if samples is not None:
        turn = cycle(samples)
        return lambda: session.predict(next(turn)), "data"
    with Artifact.open(path) as artifact:
        inputs, kind = calling_inputs(artifact)
    bare = cycle(inputs)
    return lambda: session.run(next(bare)), kind
