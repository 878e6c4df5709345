"""Benchmarks of artifacts, through the session that production uses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgec.runtime._energy import Energy
from edgec.runtime._fresh import run_fresh
from edgec.runtime._machine import Machine, this_machine
from edgec.runtime._thermal import ThermalState, thermal_state, throttling
from edgec.runtime._timing import Timing, load_options, time_calls, time_in_fresh_process
from edgec.runtime.conditions import WatchOptions, device_state, memory_short, read_vcgencmd
from edgec.runtime.measurement import LatencySamples, MedianRatio, measure_interleaved, median_ratio

__all__ = [
    "BenchmarkResult",
    "ColdStart",
    "Energy",
    "LatencySamples",
    "Machine",
    "MedianRatio",
    "ThermalState",
    "benchmark",
    "measure_cold_starts",
    "measure_interleaved",
    "median_ratio",
    "this_machine",
]


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """What a fresh process needs; medians over several of them, whose files were in the page cache.

    Attributes:
        load_ms: From calling `edgec.runtime.load` to a session, the import of the engine included.
        engine_import_ms: The import of the engine alone; None where it is imported in a process of its own.
        first_inference_ms: Of the first call of ``run``.
        peak_memory_mib: Largest resident memory of the process, Python and engine included, and where the
            engine has a process of its own, of that, too; None where the system does not tell.
        memory_before_mib: Resident memory before the engine was imported.
    """

    load_ms: float
    engine_import_ms: float | None
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
        latency: Of each call, of all runs.
        runs_p50_ms: Median of each run, in milliseconds: one, or one per process where there were several.
        cold_start: Of fresh processes.
        machine: As it was before.
        load_average_after: Of the machine, in the last minute of the measurement.
        thermal_before: Temperatures and clocks before.
        thermal_after: The same afterwards.
        memory_short: How memory was short afterwards, in a sentence; empty where it was not.
        isolated: Whether the engine ran in a process of its own.
        energy: What the calls used; None where the device has no meter.
        energy_absent: Why there is none; empty where there is one.
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
    runs_p50_ms: tuple[float, ...]
    cold_start: ColdStart
    machine: Machine
    load_average_after: float | None
    thermal_before: ThermalState
    thermal_after: ThermalState
    energy: Energy | None
    energy_absent: str
    memory_short: str = ""
    isolated: bool = False

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

    @property
    def concerns(self) -> list[str]:
        """What may have disturbed the measurement, in plain sentences: other work, the governor, heat."""
        memory = [self.memory_short] if self.memory_short else []
        return self.machine.concerns + throttling(self.thermal_before, self.thermal_after) + memory

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
            "isolated": self.isolated,
            "calls": latency.n,
            "latency_ms": latency.to_dict(),
            "runs_p50_ms": list(self.runs_p50_ms),
            "throughput_per_s": self.throughput_per_s,
            **asdict(self.cold_start),
            "cv": latency.cv,
            "drift_cv": latency.drift_cv,
            "verdict": self.verdict,
            "concerns": self.concerns,
            "machine": {**asdict(self.machine), "load_average_after": self.load_average_after},
            "thermal": {"before": self.thermal_before.to_dict(), "after": self.thermal_after.to_dict()},
            "energy": _energy_shape(self.energy),
        }


def benchmark(
    path: str | Path,
    *,
    samples: Sequence[object] | None = None,
    duration_s: float = 5.0,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    isolate: bool = False,
    cold_starts: int = 3,
    repeats: int = 1,
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
        delegate: Library through which LiteRT reaches an NPU; see `edgec.runtime.load`.
        isolate: Whether the engine runs in a process of its own; see `edgec.runtime.load`.
        cold_starts: Fresh processes to measure load time, first inference and memory in.
        repeats: Runs to divide the duration among, each in a fresh process, because runs differ by more
            than calls do: `edgec.runtime.comparison` needs at least five. 1 to measure in this process.
            With more, `samples` must be values that pickle.

    Raises:
        ArtifactError: The artifact cannot be read.
        InferenceError: It does not load, or fails on the inputs.
        ValueError: There are no samples, or a number is out of range.
    """
    if samples is not None and not samples:
        raise ValueError("expected at least one sample to call the model with, got none")
    if duration_s <= 0 or cold_starts < 1 or repeats < 1:
        raise ValueError(
            "expected a duration, cold starts and repeats above 0, "
            f"got {duration_s}, {cold_starts} and {repeats}"
        )
    machine, thermal = this_machine(), thermal_state(vcgencmd=read_vcgencmd)
    options = load_options(threads, cache_dir, delegate, isolate)
    time_run = time_calls if repeats == 1 else time_in_fresh_process
    timings = [time_run(path, options, samples, duration_s / repeats) for _ in range(repeats)]
    state = device_state(vcgencmd=read_vcgencmd)
    after, thermal_after = this_machine().load_average, state.thermal
    first = timings[0]
    return BenchmarkResult(
        artifact=str(path),
        call="run" if samples is None else "predict",
        threads=threads,
        isolated=isolate,
        latency=LatencySamples(np.concatenate([timing.samples_ms for timing in timings])),
        runs_p50_ms=tuple(float(np.median(timing.samples_ms)) for timing in timings),
        # When the session is closed, so that two models never share the memory of a small device.
        cold_start=measure_cold_starts(
            path,
            threads=threads,
            cache_dir=cache_dir,
            delegate=delegate,
            isolate=isolate,
            processes=cold_starts,
        ),
        machine=machine,
        load_average_after=after,
        thermal_before=thermal,
        thermal_after=thermal_after,
        memory_short=memory_short(state, WatchOptions()),
        energy=_sum_energy(timings),
        energy_absent=first.energy_absent,
        inputs=first.inputs,
        **first.facts,
    )


def measure_cold_starts(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    isolate: bool = False,
    processes: int = 3,
) -> ColdStart:
    """Load an artifact and run it once in fresh processes, one after the other.

    Raises:
        InferenceError: A process failed; the message is what it said last.
    """
    words = str(path), json.dumps(load_options(threads, cache_dir, delegate, isolate))
    rows = [json.loads(run_fresh(path, "edgec.runtime._cold_start", *words)) for _ in range(processes)]
    return ColdStart(**{key: _median([row[key] for row in rows]) for key in rows[0]})


def _median(values: list[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _sum_energy(timings: Sequence[Timing]) -> Energy | None:
    known = [timing.energy for timing in timings if timing.energy is not None]
    if len(known) < len(timings):
        return None
    return Energy(
        joules=sum(energy.joules for energy in known),
        seconds=sum(energy.seconds for energy in known),
        calls=sum(energy.calls for energy in known),
        source=known[0].source,
    )


def _energy_shape(energy: Energy | None) -> dict[str, Any] | None:
    if energy is None:
        return None
    return {**asdict(energy), "watts": energy.watts, "joules_per_call": energy.joules_per_call}
