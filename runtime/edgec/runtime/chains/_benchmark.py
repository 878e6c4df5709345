"""How long a chain takes, end to end, and which share each stage has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgec.runtime._machine import Machine, this_machine
from edgec.runtime._synthetic import synthetic_inputs
from edgec.runtime._thermal import ThermalState, thermal_state, throttling
from edgec.runtime.chains._chain import Chain
from edgec.runtime.chains._loading import load_chain
from edgec.runtime.measurement import LatencySamples, measure_interleaved

_MOST_CALLS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """What one stage took.

    Attributes:
        stage: Its name; ``inputs`` for reading the sample.
        ms: Median per call, in milliseconds.
        share: Of the time of all stages together.
    """

    stage: str
    ms: float
    share: float


@dataclass(frozen=True, kw_only=True)
class ChainBenchmark:
    """What measuring a chain gave.

    Attributes:
        path: Of the chain.
        model: Its name.
        engine: Of its artifacts.
        engine_version: Of these.
        state: ``ready``, or ``fallback``.
        inputs: ``data`` or ``synthetic``.
        threads: Of one inference; None for the engine's own choice.
        latency: Of whole calls.
        stages: In order; measured in calls of their own, with a clock between stages.
        machine: As it was before.
        thermal_before: Temperatures and clocks before.
        thermal_after: The same afterwards.
    """

    path: str
    model: str
    engine: str
    engine_version: str
    state: str
    inputs: str
    threads: int | None
    latency: LatencySamples
    stages: tuple[StageTime, ...]
    machine: Machine
    thermal_before: ThermalState
    thermal_after: ThermalState

    @property
    def throughput_per_s(self) -> float:
        """Calls per second of one caller, one after the other."""
        return 1e3 / self.latency.mean_ms

    @property
    def concerns(self) -> list[str]:
        """What may have disturbed the measurement, in plain sentences."""
        return self.machine.concerns + throttling(self.thermal_before, self.thermal_after)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it; the shape is public, docs/chains.md describes it."""
        latency = self.latency
        return {
            "chain": self.path,
            "model": self.model,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "state": self.state,
            "inputs": self.inputs,
            "threads": self.threads,
            "calls": latency.n,
            "latency_ms": latency.to_dict(),
            "throughput_per_s": self.throughput_per_s,
            "stages": [asdict(stage) for stage in self.stages],
            "cv": latency.cv,
            "drift_cv": latency.drift_cv,
            "verdict": "stable" if latency.is_stable else "unstable",
            "concerns": self.concerns,
            "machine": asdict(self.machine),
            "thermal": {"before": self.thermal_before.to_dict(), "after": self.thermal_after.to_dict()},
        }


def benchmark_chain(
    path: str | Path,
    *,
    samples: Sequence[object] | None = None,
    duration_s: float = 5.0,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
) -> ChainBenchmark:
    """Measure a chain as production runs it: one stream of calls, one after the other, warmed up.

    Args:
        path: Of its TOML file.
        samples: What `Chain.predict` takes, used in turn; None for arrays made up.
        duration_s: Of the measurement of whole calls, in seconds, after a warm-up of a tenth of it; that of
            stages takes a quarter of it more.
        threads: Threads of one inference; None for the engine's own choice.
        cache_dir: Where engines may keep what they compiled.
        delegate: Library through which LiteRT reaches an NPU; see `edgec.runtime.load`.

    Raises:
        EdgecError: It does not load, or fails on the samples.
        DataError: There are no samples, and none can be made up for an image or a text.
        ValueError: A number is out of range, or `samples` is empty.
    """
    if duration_s <= 0 or (samples is not None and not samples):
        raise ValueError(f"expected a duration above 0 and samples, got {duration_s} and {samples}")
    machine, thermal = this_machine(), thermal_state()
    with load_chain(path, threads=threads, cache_dir=cache_dir, delegate=delegate) as chain:
        given: Sequence[object] = made_up(chain) if samples is None else samples
        stream, turn = chain.stream(), cycle(given)
        calls = {"call": lambda: stream.predict(next(turn))}
        measure_interleaved(calls, duration_s=duration_s / 10, min_rounds=2, warmup_s=0)
        latency = measure_interleaved(calls, duration_s=duration_s, warmup_s=0, max_rounds=_MOST_CALLS)
        return ChainBenchmark(
            path=str(path),
            model=chain.manifest.model,
            engine=chain.engine,
            engine_version=chain.engine_version,
            state=chain.state,
            inputs="synthetic" if samples is None else "data",
            threads=threads,
            latency=latency["call"],
            stages=stage_times(chain, given, duration_s / 4),
            machine=machine,
            thermal_before=thermal,
            thermal_after=thermal_state(),
        )


def made_up(chain: Chain) -> list[dict[str, Any]]:
    """Return samples for where there is no data.

    Raises:
        DataError: An input is an image or a text.
    """
    from edgec.errors import DataError

    if chain.manifest.pipeline is not None or any(not spec.is_static for spec in chain.inputs):
        told = ", ".join(map(str, chain.inputs))
        raise DataError(f"no samples can be made up for {told}: give data")
    return list(synthetic_inputs(chain.inputs, 16, 0))


def stage_times(chain: Chain, samples: Sequence[object], duration_s: float) -> tuple[StageTime, ...]:
    """Call a chain with a clock between its stages, at least 10 times, and return what each took."""
    taken: dict[str, list[float]] = {}
    state, turn = chain.new_state(), cycle(samples)
    end, calls = perf_counter() + duration_s, 0
    while calls < 10 or perf_counter() < end:
        last = perf_counter()

        def lap(stage: str) -> None:
            nonlocal last
            now = perf_counter()
            taken.setdefault(stage, []).append(now - last)
            last = perf_counter()

        chain.time_stages(next(turn), state, lap)
        calls += 1
    medians = {stage: float(np.median(seconds)) * 1e3 for stage, seconds in taken.items()}
    total = sum(medians.values()) or 1.0
    return tuple(StageTime(stage=stage, ms=ms, share=ms / total) for stage, ms in medians.items())
