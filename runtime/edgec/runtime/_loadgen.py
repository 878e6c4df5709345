"""The process that LoadGen runs in.

    python -m edgec.runtime._loadgen TASK FACTS

TASK and FACTS are files that `edgec.runtime.scenarios` makes and removes again; the result is in LoadGen's
logs.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, NoReturn

from edgec.artifact import Artifact
from edgec.errors import EdgecError
from edgec.runtime._session import Session, load
from edgec.runtime._synthetic import calling_inputs

SAMPLES_PER_QUERY = 8  # of multi-stream, as MLPerf has it
_LEAST_QUERIES = {"single-stream": 100, "multi-stream": 662, "server": 459, "offline": 1}
_PROBE_S = 0.5
# LoadGen makes its queries in advance, as many as it expects to need: more of them do no harm, too few end a
# run before its time.
_MARGIN = 1.3


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to do; see `edgec.runtime.scenarios.run_scenario`."""

    path: str
    options: dict[str, Any]
    samples: Sequence[object] | None
    scenario: str
    duration_s: float
    target_latency_ms: float | None
    target_qps: float | None
    concurrency: int
    log_dir: str


def run_task(task: Task) -> dict[str, Any]:
    """Run LoadGen, which leaves its logs in ``task.log_dir``.

    Returns:
        What the session said, and the settings that were chosen.

    Raises:
        EdgecError: The artifact does not load, or fails on a sample before LoadGen starts. Where it fails
            later, the process ends.
    """
    with load(task.path, **task.options) as session:
        calls, kind = _calls(task, session)
        rate = _probe(calls, task.concurrency)
        settings = {"expected_qps": rate * _MARGIN}
        if task.scenario == "server":
            settings = {
                "target_qps": task.target_qps or rate / 2,
                "target_latency_ms": task.target_latency_ms or 0,
            }
        _test(task, calls, settings)
        return {
            "model": session.manifest.model,
            "engine": session.engine,
            "engine_version": session.engine_version,
            "state": session.state,
            "inputs": kind,
            "settings": settings,
            "loadgen_version": _version(),
        }


def _calls(task: Task, session: Session) -> tuple[list[Callable[[], object]], str]:
    """Return one call per sample, and what they are made on."""
    if task.samples is not None:
        return [lambda sample=sample: session.predict(sample) for sample in task.samples], "data"  # type: ignore[misc]
    with Artifact.open(task.path) as artifact:
        inputs, kind = calling_inputs(artifact)
    return [lambda feeds=feeds: session.run(feeds) for feeds in inputs], kind  # type: ignore[misc]


def _probe(calls: Sequence[Callable[[], object]], concurrency: int) -> float:
    """Return calls per second, as many at once as there will be; every sample is tried once before."""
    for call in calls:
        call()
    start = time.perf_counter()
    counts = [0] * concurrency

    def work(lane: int) -> None:
        try:
            while time.perf_counter() < start + _PROBE_S or counts[lane] < 3:
                calls[counts[lane] % len(calls)]()
                counts[lane] += 1
        except EdgecError as e:
            _end(e)

    threads = [Thread(target=work, args=(lane,)) for lane in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def _test(task: Task, calls: Sequence[Callable[[], object]], chosen: dict[str, float]) -> None:
    import mlperf_loadgen as loadgen

    settings = _settings(loadgen, task, chosen)
    streaming = task.scenario in ("single-stream", "multi-stream")
    lanes = _Lanes(loadgen, calls, 0 if streaming else task.concurrency)
    system = loadgen.ConstructSUT(lanes.answer if streaming else lanes.enqueue, _nothing)
    library = loadgen.ConstructQSL(len(calls), len(calls), _nothing_loaded, _nothing_loaded)
    output = loadgen.LogOutputSettings()
    output.outdir = task.log_dir
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, logs)
    finally:
        lanes.close()
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)


def _settings(loadgen: Any, task: Task, chosen: dict[str, float]) -> Any:
    settings = loadgen.TestSettings()
    name = task.scenario.title().replace("-", "")  # multi-stream: MultiStream
    settings.scenario = getattr(loadgen.TestScenario, name)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(task.duration_s * 1e3)
    settings.min_query_count = _LEAST_QUERIES[task.scenario]
    if task.scenario == "server":
        settings.server_target_qps = chosen["target_qps"]
        settings.server_target_latency_ns = round(chosen["target_latency_ms"] * 1e6)
        return settings
    expected_ns = max(1, round(1e9 / chosen["expected_qps"]))
    settings.single_stream_expected_latency_ns = expected_ns
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    settings.multi_stream_expected_latency_ns = expected_ns * SAMPLES_PER_QUERY
    settings.offline_expected_qps = chosen["expected_qps"]
    return settings


class _Lanes:
    """Answers queries: at once, in LoadGen's own thread, or from a queue, in threads of ours."""

    def __init__(self, loadgen: Any, calls: Sequence[Callable[[], object]], threads: int) -> None:
        self._response = loadgen.QuerySampleResponse
        self._complete = loadgen.QuerySamplesComplete
        self._calls = calls
        self._queue: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def answer(self, samples: Sequence[Any]) -> None:
        """Answer all samples of a query together, as their latency is that of the query."""
        try:
            for sample in samples:
                self._calls[sample.index]()
        except EdgecError as e:
            _end(e)
        # Outputs are asked for in accuracy runs only.
        self._complete([self._response(sample.id, 0, 0) for sample in samples])

    def enqueue(self, samples: Sequence[Any]) -> None:
        """Note samples for the threads; a callback that waited would hold up the clock of arrivals."""
        for sample in samples:
            self._queue.put((sample.id, sample.index))

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            number, index = item
            try:
                self._calls[index]()
            except EdgecError as e:
                _end(e)
            self._complete([self._response(number, 0, 0)])


_ending = Lock()


def _end(error: EdgecError) -> NoReturn:
    """End the process: an error that reached LoadGen would end it too, and say nothing."""
    with _ending:
        print(str(error), file=sys.stderr, flush=True)
        os._exit(1)


def _nothing() -> None:
    """Flush no queue: nothing is held back."""


def _nothing_loaded(_: Sequence[int]) -> None:
    """Load no samples: all are in memory."""


def _version() -> str:
    from importlib.metadata import version

    return version("mlcommons-loadgen")


def _main(task: str, facts: str) -> None:
    # From our own parent, in its own directory.
    arguments = pickle.loads(Path(task).read_bytes())  # noqa: S301
    try:
        found = run_task(arguments)
    except EdgecError as error:
        sys.exit(str(error))
    Path(facts).write_text(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
