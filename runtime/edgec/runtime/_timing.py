"""One timed run of an artifact, in this process or in a fresh one.

    python -m edgec.runtime._timing TASK RESULT

TASK and RESULT are files that `time_in_fresh_process` makes and removes again.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Artifact
from edgec.errors import EdgecError
from edgec.runtime._energy import Energy, EnergyMeter
from edgec.runtime._fresh import run_fresh
from edgec.runtime._session import Session, load
from edgec.runtime._synthetic import calling_inputs
from edgec.runtime.measurement import measure_interleaved

_MOST_CALLS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one run gave.

    Attributes:
        samples_ms: Latency of each call, in milliseconds; float64[n].
        inputs: ``data``, ``golden`` or ``synthetic``.
        energy: What the calls used; None where the device has no meter.
        energy_absent: Why there is none.
        facts: What the session said: model, engine, engine_version, state, promised_precision, precision,
            precisions, placement.
    """

    samples_ms: NDArray[np.float64]
    inputs: str
    energy: Energy | None
    energy_absent: str
    facts: dict[str, Any]


def time_calls(
    path: str | Path, options: Mapping[str, Any], samples: Sequence[object] | None, duration_s: float
) -> Timing:
    """Load an artifact and time its calls for `duration_s`, after a warm-up of a tenth of that.

    Args:
        path: Of the artifact.
        options: Of `edgec.runtime.load`.
        samples: What `Session.predict` takes, used in turn; None to call `Session.run`.
        duration_s: In seconds; at least 20 calls are timed.

    Raises:
        ArtifactError: The artifact cannot be read.
        InferenceError: It does not load, or fails on the inputs.
    """
    with load(path, **options) as session:
        call, kind = calling(path, session, samples)
        measure_interleaved({"call": call}, duration_s=duration_s / 10, min_rounds=2, warmup_s=0)
        meter = EnergyMeter()
        with meter:
            latency = measure_interleaved(
                {"call": call}, duration_s=duration_s, warmup_s=0, max_rounds=_MOST_CALLS
            )["call"]
        manifest = session.manifest
        spec = manifest.engine if session.state == "ready" else manifest.fallback or manifest.engine
        return Timing(
            samples_ms=latency.samples_ms,
            inputs=kind,
            energy=meter.energy(latency.n + 2),  # two are made before the first that is timed
            energy_absent=meter.absent,
            facts={
                "model": manifest.model,
                "engine": session.engine,
                "engine_version": session.engine_version,
                "state": session.state,
                "promised_precision": spec.precision,
                "precision": session.precision,
                "precisions": dict(session.precisions),
                "placement": dict(session.placement),
            },
        )


def time_in_fresh_process(
    path: str | Path, options: Mapping[str, Any], samples: Sequence[object] | None, duration_s: float
) -> Timing:
    """Do what `time_calls` does in a process of its own.

    Raises:
        InferenceError: The process failed; the message is what it said last.
    """
    with tempfile.TemporaryDirectory(prefix="edgec-") as directory:
        task, result = Path(directory, "task"), Path(directory, "result")
        task.write_bytes(pickle.dumps((str(path), dict(options), samples, duration_s)))
        run_fresh(path, "edgec.runtime._timing", str(task), str(result))
        timing = pickle.loads(result.read_bytes())  # noqa: S301 - from our own process, in our own directory
        assert isinstance(timing, Timing)
        return timing


def load_options(
    threads: int | None, cache_dir: str | Path | None, delegate: str | Path | None, isolate: bool = False
) -> dict[str, Any]:
    """Return what `edgec.runtime.load` takes as keyword arguments, fit for a message to another process."""
    return {
        "threads": threads,
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "delegate": None if delegate is None else str(delegate),
        "isolate": isolate,
    }


def calling(
    path: str | Path, session: Session, samples: Sequence[object] | None
) -> tuple[Callable[[], object], str]:
    """Return a call without arguments, and what it is made on: ``data``, ``golden`` or ``synthetic``."""
    if samples is not None:
        turn = cycle(samples)
        return lambda: session.predict(next(turn)), "data"
    with Artifact.open(path) as artifact:
        inputs, kind = calling_inputs(artifact)
    bare = cycle(inputs)
    return lambda: session.run(next(bare)), kind


def _main(task: str, result: str) -> None:
    from edgec.runtime import _timing  # by its name, so that the parent finds the class of the result

    arguments = pickle.loads(Path(task).read_bytes())  # noqa: S301 - from our own parent, in its own directory
    try:
        Path(result).write_bytes(pickle.dumps(_timing.time_calls(*arguments)))
    except EdgecError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(*sys.argv[1:])
