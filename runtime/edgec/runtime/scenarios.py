"""MLPerf's four scenarios, driven by the real LoadGen (extra ``loadgen``). Not MLPerf results.

LoadGen decides when which sample is asked for, takes the times, and says whether a run is valid and whether
it may stop early. A run here is none of MLPerf's: its models, data sets, accuracy runs, seeds and durations
are prescribed, and results are reviewed. LoadGen runs in a process of its own, because it keeps global state,
and an error in its callbacks ends the process.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgec.errors import InferenceError, MissingExtraError
from edgec.runtime._loadgen import SAMPLES_PER_QUERY, Task
from edgec.runtime._machine import Machine, this_machine
from edgec.runtime._timing import load_options

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
LABEL = "not an MLPerf result"
_PREFIX = ":::MLLOG "
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")
_CONSTRAINTS = {
    "result_perf_constraints_met": "latency bound",
    "result_min_duration_met": "least duration",
    "result_min_queries_met": "least number of queries",
    "early_stopping_met": "early stopping",
}
_METRICS = {
    "single-stream": ("p90 latency, early-stopping estimate", "ms"),
    "multi-stream": (f"p99 latency of {SAMPLES_PER_QUERY} samples, early-stopping estimate", "ms"),
    "server": ("completed samples", "per second"),
    "offline": ("samples", "per second"),
}


@dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """What LoadGen said of a run; no MLPerf result.

    Attributes:
        artifact: Path of the artifact.
        model: Name of the model.
        engine: Name of the engine that ran.
        engine_version: Its version.
        state: Of the session: ``ready`` or ``fallback``.
        scenario: One of `SCENARIOS`.
        call: ``predict``, the whole pipeline, or ``run``, bare tensors.
        inputs: ``data``, ``golden`` or ``synthetic``.
        threads: Threads of one inference; None for the engine's own choice.
        concurrency: How many calls run at once in ``server`` and ``offline``; 1 in the others.
        valid: Whether LoadGen calls the run valid.
        constraints: Each thing that it asks for, and whether it was met.
        early_stopping: What it said of stopping early, in its words.
        metric: Name of the scenario's own figure.
        value: That figure; None where LoadGen could not give one.
        unit: Of it: ``ms`` or ``per second``.
        latency_ms: Of the queries: ``p50`` ... ``p99.9``, ``min``, ``mean``, ``max``; in ``server`` from when
            a query was due, in ``offline`` from when the only one was made.
        queries: How many were made.
        settings: Those of LoadGen that edgec chose: ``expected_qps``, ``target_qps`` ...
        loadgen_version: Of ``mlcommons-loadgen``.
        machine: As it was before.
    """

    artifact: str
    model: str
    engine: str
    engine_version: str
    state: str
    scenario: str
    call: str
    inputs: str
    threads: int | None
    concurrency: int
    valid: bool
    constraints: Mapping[str, bool]
    early_stopping: str
    metric: str
    value: float | None
    unit: str
    latency_ms: Mapping[str, float]
    queries: int
    settings: Mapping[str, float]
    loadgen_version: str
    machine: Machine

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it, with its label."""
        return {"label": LABEL, **asdict(self), "concerns": self.machine.concerns}


def run_scenario(
    path: str | Path,
    scenario: str,
    *,
    samples: Sequence[object] | None = None,
    duration_s: float = 10.0,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    isolate: bool = False,
    target_latency_ms: float | None = None,
    target_qps: float | None = None,
    concurrency: int = 1,
    log_dir: str | Path | None = None,
) -> ScenarioResult:
    """Let LoadGen measure an artifact in one of MLPerf's scenarios.

    Args:
        path: Of the artifact.
        scenario: One of `SCENARIOS`.
        samples: What `Session.predict` takes, which must pickle; None to call `Session.run` with the inputs
            of the golden vectors, or with synthetic ones.
        duration_s: The least, in seconds. A run lasts longer where the scenario asks for more queries:
            100, in ``multi-stream`` 662 of eight samples and in ``server`` 459, which is what early
            stopping needs to vouch for the 99th percentile.
        threads: Threads of one inference; None for the engine's own choice.
        cache_dir: See `edgec.runtime.load`.
        delegate: Likewise.
        isolate: Likewise.
        target_latency_ms: What 99 % of the queries of ``server`` must stay under; needed there.
        target_qps: Queries per second of ``server``, which arrive at random; None for half of what it
            answers one after the other.
        concurrency: Calls that run at once in ``server`` and ``offline``.
        log_dir: Directory that LoadGen's own logs are left in; None to throw them away.

    Raises:
        MissingExtraError: LoadGen is not installed.
        InferenceError: The artifact does not load, a call fails, or LoadGen says nothing.
        ValueError: An argument is out of range, or not for this scenario.
    """
    _check(scenario, samples, duration_s, target_latency_ms, target_qps, concurrency)
    if find_spec("mlperf_loadgen") is None:
        raise MissingExtraError("a scenario of MLPerf", "mlperf_loadgen", "loadgen")
    machine = this_machine()
    with tempfile.TemporaryDirectory(prefix="edgec-") as directory:
        logs = Path(directory if log_dir is None else log_dir)
        logs.mkdir(parents=True, exist_ok=True)
        task = Task(
            path=str(path),
            options=load_options(threads, cache_dir, delegate, isolate),
            samples=samples,
            scenario=scenario,
            duration_s=duration_s,
            target_latency_ms=target_latency_ms,
            target_qps=target_qps,
            concurrency=concurrency,
            log_dir=str(logs),
        )
        facts = _in_fresh_process(Path(directory), task)
        said = _read_log(logs / "mlperf_log_detail.txt")
    return ScenarioResult(
        artifact=str(path),
        scenario=scenario,
        call="run" if samples is None else "predict",
        threads=threads,
        concurrency=concurrency,
        machine=machine,
        **_figures(scenario, said),
        **facts,
    )


def _check(
    scenario: str,
    samples: Sequence[object] | None,
    duration_s: float,
    target_latency_ms: float | None,
    target_qps: float | None,
    concurrency: int,
) -> None:
    if scenario not in SCENARIOS:
        raise ValueError(f"expected a scenario of {', '.join(SCENARIOS)}, got {scenario!r}")
    if samples is not None and not samples:
        raise ValueError("expected at least one sample to call the model with, got none")
    numbers = [duration_s, concurrency, target_latency_ms or 1, target_qps or 1]
    if any(number <= 0 for number in numbers) or target_latency_ms == 0 or target_qps == 0:
        raise ValueError("expected a duration, a concurrency and targets above 0")
    if (scenario == "server") != (target_latency_ms is not None):
        raise ValueError("a target latency is needed in the scenario server, and is for no other")
    if scenario != "server" and target_qps is not None:
        raise ValueError("a target of queries per second is for the scenario server only")
    if scenario in ("single-stream", "multi-stream") and concurrency != 1:
        raise ValueError(f"{scenario} has one caller: a concurrency is for the scenarios server and offline")


def _in_fresh_process(directory: Path, task: Task) -> dict[str, Any]:
    before, after = directory / "task", directory / "facts"
    before.write_bytes(pickle.dumps(task))
    process = subprocess.run(
        [sys.executable, "-m", "edgec.runtime._loadgen", str(before), str(after)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0 or not after.exists():
        said = process.stderr.strip().splitlines()
        raise InferenceError(
            f"{task.path}: LoadGen's process failed (exit status {process.returncode}): "
            f"{said[-1] if said else 'it said nothing'}"
        )
    facts: dict[str, Any] = json.loads(after.read_text())
    return facts


def _read_log(path: Path) -> dict[str, Any]:
    """Return what LoadGen wrote to its log, the last value of each key: it has no other result."""
    found: dict[str, Any] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(_PREFIX):
                    entry = json.loads(line[len(_PREFIX) :])
                    found[entry["key"]] = entry["value"]
    except (OSError, ValueError, KeyError) as e:
        raise InferenceError(f"LoadGen left no log that can be read at {path}: {e}") from e
    if "result_validity" not in found:
        raise InferenceError(f"LoadGen ended without a result; its log is {path}")
    return found


def _figures(scenario: str, said: Mapping[str, Any]) -> dict[str, Any]:
    estimate = {"single-stream": "early_stopping_latency_ss", "multi-stream": "early_stopping_latency_ms"}
    if scenario in estimate:
        nanoseconds = said.get(estimate[scenario], 0)
        value = nanoseconds / 1e6 if nanoseconds else None  # 0 where there were too few queries
    else:
        value = said.get(
            "result_completed_samples_per_sec" if scenario == "server" else "result_samples_per_second"
        )
    infix = "percentile_per_query_latency_ns" if scenario == "multi-stream" else "percentile_latency_ns"
    latency = {f"p{float(p):g}": said.get(f"result_{p}_{infix}") for p in _PERCENTILES}
    query = "query_latency_ns" if scenario == "multi-stream" else "latency_ns"
    latency |= {key: said.get(f"result_{key}_{query}") for key in ("min", "mean", "max")}
    metric, unit = _METRICS[scenario]
    return {
        "valid": said["result_validity"] == "VALID",
        "constraints": {name: bool(said[key]) for key, name in _CONSTRAINTS.items() if key in said},
        "early_stopping": " ".join(str(said.get("early_stopping_result", "")).replace("*", "").split()),
        "metric": metric,
        "value": value,
        "unit": unit,
        "latency_ms": {key: value / 1e6 for key, value in latency.items() if value is not None},
        "queries": int(said.get("result_query_count", 0)),
    }
