"""Models in processes of their own: what those do to themselves, and what the application sees of it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, Manifest, TensorSpec, pack
from edgec.cli import main_group
from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    InferenceError,
    InputError,
    IsolationError,
)
from edgec.runtime import Batcher, Isolation, Session, load
from edgec.runtime._isolated_process import Worker
from edgec.runtime._isolation import IsolatedProgram
from edgec.runtime._shared_tensors import Segment, SharedTensors
from edgec.runtime.benchmark import benchmark
from edgec.runtime.testing import onnxruntime_spec, tiny_artifact

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation needs Linux")

# Does what its input says; the file `crashes` says at which calls it dies by itself, counted over processes.
UNRULY = """
import ctypes, os, signal, sys, time
from pathlib import Path
import numpy as np

hoard = []


class Program:
    engine_version = "1.0"
    precision = "fp32"
    precisions = {"fp32": 1}
    placement = {"CPU": 1}

    def __init__(self, options, factor):
        self.threads, self.factor = options.threads, factor
        self.calls = 0

    def run(self, inputs):
        self.calls += 1
        what, amount = inputs["x"][:2]
        if what == 1:
            ctypes.string_at(0)
        elif what == 2:
            os.abort()
        elif what == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == 4:
            os._exit(3)
        elif what == 5:
            Path(os.environ["UNRULY_FLAG"] + "-sleeps").touch()
            time.sleep(amount)
        elif what == 6:
            ctypes.PyDLL(None).sleep(int(amount))  # holds the interpreter
        elif what == 7:
            hoard.append(np.ones(int(amount) * 2**17))
        elif what == 8:
            raise ValueError("seven is eight")
        elif what == 9 and not Path(os.environ["UNRULY_FLAG"]).exists():
            Path(os.environ["UNRULY_FLAG"]).touch()
            os.abort()
        elif what == 10:
            return {"y": np.array([os.getpid(), self.calls, len(os.sched_getaffinity(0))], np.float64)}
        return {"y": inputs["x"] * self.factor}

    def close(self):
        pass


class Backend:
    def load(self, spec, payload, inputs, outputs, options):
        if Path(os.environ.get("UNRULY_BROKEN", "/nonexistent")).exists():
            os.abort()
        return Program(options, np.frombuffer(payload.view(spec.files[0]), np.float64)[0])
"""
SEGFAULT, ABORT, KILL, EXIT, SLEEP, HOLD, HOARD, RAISE, ONCE, WHO = range(1, 11)


@pytest.fixture
def unruly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact for an engine that does to its process what it is told."""
    (tmp_path / "unruly_engine.py").write_text(UNRULY)
    distribution = tmp_path / "unruly_engine-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: unruly-engine\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[edgec.backends]\nunruly = unruly_engine:Backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("UNRULY_FLAG", str(tmp_path / "flag"))
    return unruly_artifact(tmp_path / "unruly.edgec", 2.0)


def unruly_artifact(path: Path, factor: float, size: int | str = 3) -> Path:
    spec = EngineSpec(name="unruly", version="", device="CPU", precision="fp32", files=("factor.bin",))
    manifest = Manifest(
        model="unruly",
        model_version="1",
        target="cpu-x86_64",
        engine=spec,
        inputs=(TensorSpec("x", "float64", (size,)),),
        outputs=(TensorSpec("y", "float64", (size,)),),
    )
    return pack(path, manifest, {"factor.bin": np.float64(factor).tobytes()})


def x(what: float = 0, amount: float = 5) -> dict[str, NDArray[Any]]:
    return {"x": np.array([what, amount, 7], np.float64)}


def pid(session: Session) -> int:
    return int(session.run(x(WHO))["y"][0])


def program_of(session: Session) -> IsolatedProgram:
    program = session.current_program()
    assert isinstance(program, IsolatedProgram)
    return program


def worker_of(session: Session) -> Worker:
    worker = program_of(session)._worker
    assert worker is not None
    return worker


def is_gone(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def descriptors() -> set[str]:
    """What this process has open, but for what has no name of its own or comes and goes."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the list itself
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {name for name in found if "edgec" in name}


def test_a_session_does_in_another_process_what_it_does_in_this_one(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec", batch="n")
    feeds = [
        {"x": np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)} for n in (1, 3, 700, 0, 2)
    ]
    with load(path, threads=1) as here, load(path, threads=1, isolate=True) as there:
        assert (there.state, there.engine, there.engine_version) == (
            "ready",
            here.engine,
            here.engine_version,
        )
        assert (there.precision, there.placement) == (here.precision, here.placement)
        assert there.precisions == here.precisions
        assert there.self_test().passed
        for feed in feeds:
            np.testing.assert_array_equal(there.run(feed)["y"], here.run(feed)["y"])
        kept = there.run(feeds[0])["y"]
        want = kept.copy()
        there.run({"x": feeds[0]["x"] + 1})
        np.testing.assert_array_equal(kept, want)
        buffer = np.empty((3, 3), np.float32)
        there.run(feeds[1], {"y": buffer})
        np.testing.assert_array_equal(buffer, here.run(feeds[1])["y"])
        np.testing.assert_array_equal(there.bind(feeds[1])()["y"], buffer)
        np.testing.assert_array_equal(there.predict(feeds[1])["y"], buffer)
        np.testing.assert_array_equal(there.submit(feeds[1]).result()["y"], buffer)
        np.testing.assert_array_equal(asyncio.run(there.arun(feeds[1]))["y"], buffer)
        batch = there.run_batch(feeds[:3])
        np.testing.assert_allclose(batch[1]["y"], buffer, rtol=1e-6)
        observer = there.observe()
        with pytest.raises(InputError):
            there.run({"x": np.zeros((1, 5), np.float32)})
        there.run(feeds[0])
        window = observer.take()
        assert (window.calls, dict(window.errors)) == (2, {"InputError": 1})
        there.swap(path)
        np.testing.assert_array_equal(there.run(feeds[1])["y"], buffer)
    with pytest.raises(InferenceError, match="closed"):
        there.run(feeds[0])


def test_a_crash_fails_its_call_and_no_other(unruly: Path) -> None:
    with load(unruly, isolate=True) as session:
        first = pid(session)
        assert first != os.getpid()
        with pytest.raises(IsolationError, match="SIGABRT") as caught:
            session.run(x(ABORT))
        assert caught.value.reason == "crash"
        assert session.run(x())["y"].tolist() == [0, 10, 14]
        assert session.state == "ready"
        assert pid(session) != first
        with pytest.raises(InferenceError, match="the engine raised ValueError: seven is eight"):
            session.run(x(RAISE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "told"),
    [
        (SEGFAULT, "SIGSEGV"),
        (KILL, "SIGKILL, which the system sends where memory is short"),
        (EXIT, "exit status 3"),
    ],
)
def test_whatever_ends_the_process_is_told(unruly: Path, what: int, told: str) -> None:
    with load(unruly, isolate=True) as session:
        with pytest.raises(IsolationError, match=told):
            session.run(x(what))
        assert session.run(x())["y"].tolist() == [0, 10, 14]


@pytest.mark.slow
@pytest.mark.parametrize("how", [SLEEP, HOLD])
def test_a_call_that_hangs_is_ended(unruly: Path, how: int) -> None:
    with load(unruly, isolate=Isolation(timeout_s=2.0)) as session:
        before = pid(session)
        start = time.monotonic()
        with pytest.raises(IsolationError, match="did not answer within 2 s") as caught:
            session.run(x(how, 60))
        assert caught.value.reason == "timeout"
        assert time.monotonic() - start < 30
        assert is_gone(before)
        assert session.run(x())["y"].tolist() == [0, 10, 14]


@pytest.mark.slow
def test_a_call_is_made_again_where_that_is_asked_for(unruly: Path) -> None:
    with load(unruly, isolate=Isolation(retry=True, backoff_s=0.01)) as session:
        assert session.run(x(ONCE))["y"].tolist() == [18, 10, 14]
        with pytest.raises(IsolationError):  # once
            session.run(x(ABORT))


@pytest.mark.slow
def test_a_process_that_is_killed_between_calls_is_noticed_and_no_call_fails(unruly: Path) -> None:
    with load(unruly, isolate=True) as session:
        first = pid(session)
        os.kill(first, signal.SIGKILL)
        until(lambda: not worker_of(session).is_alive)
        assert pid(session) != first


@pytest.mark.slow
def test_a_crash_loop_is_reported_and_ends(
    unruly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    monkeypatch.setenv("UNRULY_BROKEN", str(broken))
    options = Isolation(backoff_s=0.05, longest_backoff_s=0.1, crash_loop=3, settle_s=1.0)
    with load(unruly, isolate=options) as session:
        broken.touch()
        with pytest.raises(IsolationError, match="SIGABRT"):
            session.run(x(ABORT))
        until(lambda: session.state == "crash-loop")
        start = time.monotonic()
        with pytest.raises(IsolationError, match=r"failed \d+ times in a row.*SIGABRT") as caught:
            session.run(x())
        assert caught.value.reason == "crash-loop"
        assert time.monotonic() - start < 30
        broken.unlink()
        until(lambda: program_of(session).pid is not None)
        assert session.run(x())["y"].tolist() == [0, 10, 14]
        until(lambda: session.state == "ready")


@pytest.mark.slow
def test_a_model_that_leaks_is_replaced_between_calls(unruly: Path) -> None:
    with load(unruly, isolate=Isolation(memory_mib=300)) as session:
        first = pid(session)
        seen = set()
        for _ in range(60):
            assert session.run(x(HOARD, 10))["y"][1] == 20
            seen.add(program_of(session).pid)
            time.sleep(0.03)
        assert len(seen - {None}) > 1
        until(lambda: is_gone(first))


@pytest.mark.slow
def test_a_call_that_takes_all_memory_is_ended_or_refused(unruly: Path) -> None:
    with load(unruly, isolate=Isolation(memory_mib=300)) as session:
        with pytest.raises(InferenceError, match=r"MemoryError|MiB"):
            session.run(x(HOARD, 20_000))
        assert session.run(x())["y"].tolist() == [0, 10, 14]


@pytest.mark.slow
def test_threads_take_turns_and_answers_do_not_mix(unruly: Path) -> None:
    with load(unruly, isolate=True) as session, ThreadPoolExecutor(8) as pool:

        def call(n: int) -> None:
            for i in range(50):
                assert session.run(x(0, n * 1000 + i))["y"].tolist() == [0, 2 * (n * 1000 + i), 14]

        list(pool.map(call, range(8)))


@pytest.mark.slow
def test_swapping_and_closing_leave_a_call_that_runs_alone(unruly: Path, tmp_path: Path) -> None:
    other = unruly_artifact(tmp_path / "other.edgec", 3.0)
    with load(unruly, isolate=True) as session, ThreadPoolExecutor(1) as pool:
        first, asleep = pid(session), tmp_path / "flag-sleeps"
        running = pool.submit(session.run, x(SLEEP, 1))
        until(asleep.exists)
        session.swap(other)
        assert session.run(x())["y"].tolist() == [0, 15, 21]
        assert running.result()["y"].tolist() == [10, 2, 14]
        until(lambda: is_gone(first))
        asleep.unlink()
        running = pool.submit(session.run, x(SLEEP, 1))
        until(asleep.exists)
        second = worker_of(session).pid
        session.close()
        assert running.result()["y"].tolist() == [15, 3, 21]
        until(lambda: is_gone(second))


@pytest.mark.slow
def test_nothing_is_left_behind(unruly: Path) -> None:
    before = descriptors()
    count = len(os.listdir("/proc/self/fd"))
    pids = []
    for i in range(4):
        session = load(unruly, isolate=Isolation(retry=True))
        pids.append(pid(session))
        if i % 2:
            with pytest.raises(IsolationError):
                session.run(x(ABORT))
            pids.append(pid(session))
        if i < 3:
            session.close()
        del session
    gc.collect()
    until(lambda: all(map(is_gone, pids)))
    assert descriptors() == before
    assert len(os.listdir("/proc/self/fd")) <= count


@pytest.mark.slow
@pytest.mark.parametrize("how", [0, SLEEP, HOLD])
def test_no_process_outlives_a_parent_that_is_killed(unruly: Path, how: int) -> None:
    code = f"""
import sys
sys.path[:0] = {[str(unruly.parent)]!r}
import numpy as np
from threading import Thread
from edgec.runtime import Isolation, load
session = load({str(unruly)!r}, isolate=True)
if {how}:
    Thread(target=session.run, args=({{"x": np.array([{how}, 600, 7.0])}},), daemon=True).start()
print(session.current_program().pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with closing(parent.stdout), closing(parent.stdin):  # type: ignore[type-var]
        child = int(parent.stdout.readline())  # type: ignore[union-attr]
        time.sleep(0.3)
        assert not is_gone(child)
        parent.kill()
        parent.wait()
        until(lambda: is_gone(child))


@pytest.mark.slow
def test_a_fork_of_the_application_has_a_process_of_its_own(unruly: Path) -> None:
    with load(unruly, isolate=True) as session:
        first = pid(session)
        number = os.fork()
        if number == 0:  # nothing of pytest may run on in here
            other = pid(session)
            os._exit(7 if other != first and os.path.exists(f"/proc/{other}") else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 7
        assert pid(session) == first


@pytest.mark.slow
def test_what_goes_wrong_while_loading_is_what_goes_wrong_without_isolation(tmp_path: Path) -> None:
    missing = EngineSpec(name="nothing", version="", device="CPU", precision="fp32", files=("model.onnx",))
    path = tiny_artifact(tmp_path / "tiny.edgec", engine=missing)
    with pytest.raises(BackendUnavailableError, match="no backend 'nothing'"):
        load(path, isolate=True)
    declared = tiny_artifact(tmp_path / "fallback.edgec", engine=missing, fallback=onnxruntime_spec())
    with load(declared, isolate=True) as session:
        assert (session.state, session.engine) == ("fallback", "onnxruntime")
        assert session.self_test().passed
    with pytest.raises(ArtifactError):
        load(tmp_path / "none.edgec", isolate=True)


@pytest.mark.slow
def test_a_process_that_does_not_survive_loading_is_an_error_of_load(
    unruly: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").touch()
    monkeypatch.setenv("UNRULY_BROKEN", str(tmp_path / "broken"))
    with pytest.raises(IsolationError, match="SIGABRT"):
        load(unruly, isolate=True)


@pytest.mark.slow
def test_the_artifact_may_be_replaced_or_removed_while_it_serves(unruly: Path) -> None:
    with load(unruly, isolate=Isolation(retry=True)) as session:
        unruly.unlink()
        unruly_artifact(unruly, 5.0)
        with pytest.raises(IsolationError):
            session.run(x(ABORT))
        assert session.run(x())["y"].tolist() == [0, 10, 14]


def test_texts_go_over_as_texts() -> None:
    tensors = SharedTensors((TensorSpec("t", "object", ("n",)),), Segment())
    texts = np.array(["", "naïve \ud800", "日本" * 5000, b"\x00\xff"], object)
    (got,) = tensors.read(tensors.write({"t": texts})).values()
    assert got.tolist() == texts.tolist()
    with pytest.raises(InputError, match="expected texts"):
        tensors.write({"t": np.array([1], object)})


def test_a_message_that_does_not_fit_is_refused() -> None:
    specs = (TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "int64", ()))
    tensors = SharedTensors(specs, Segment())
    told = tensors.write({"a": np.ones((2, 3), np.float32)[::-1], "b": np.array(7)})
    assert tensors.read(told)["b"] == 7
    for sizes in [(2, 3, 25, 8), (-1, 3, 24, 8), (10**9, 3, 12 * 10**9, 8), (2, 3, 24, 9)]:
        with pytest.raises(ValueError, match=r"cannot have|shared memory"):
            tensors.read(struct.pack("<4q", *sizes))
    with pytest.raises(ValueError, match="bytes of sizes"):
        tensors.read(told[:-1])
    tensors.close()


class FailingStarts:
    """Starts of processes of which the first succeeds."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.tries = 0

    def __call__(self) -> Worker:
        self.tries += 1
        if self.tries == 1:
            return self.worker
        raise InferenceError("no")


def test_starts_wait_longer_and_longer_and_not_all_alike(unruly: Path) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    with load(unruly, isolate=True) as session:
        worker = worker_of(session)
        starts = FailingStarts(worker)
        program = IsolatedProgram(
            starts, Isolation(backoff_s=1, longest_backoff_s=6, crash_loop=2), uniform=uniform
        )
        delays = []
        for _ in range(6):
            assert not program.try_start()
            program.next_delay_s()
            delays = [high for _, high in drawn]
        assert delays == [1, 2, 4, 6, 6]
        assert all(low == high / 2 for low, high in drawn)


@pytest.mark.slow
def test_a_batcher_and_a_pool_stand_in_front_of_it(tmp_path: Path) -> None:
    from edgec.runtime import Pool

    path = tiny_artifact(tmp_path / "tiny.edgec", batch="n")
    feed = {"x": np.ones((1, 4), np.float32)}
    with Pool(2) as pool, load(path, isolate=True, pool=pool) as session, Batcher(session) as batcher:
        want = session.run(feed)["y"]
        for future in [batcher.submit(feed) for _ in range(20)]:
            np.testing.assert_allclose(future.result()["y"], want, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"timeout_s": 0}, {"memory_mib": -1}, {"crash_loop": 0}, {"backoff_s": float("nan")}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Isolation(**wrong)


# On the command line


@pytest.mark.slow
def test_a_run_goes_on_past_a_sample_that_crashes_the_engine(unruly: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "out.jsonl"
    np.savez(data, x=np.array([[0, 1, 7], [SEGFAULT, 1, 7], [0, 2, 7]], np.float64))
    words = ["run", unruly, "--isolate", "--raw", "--input", data, "--output", out]
    result = CliRunner().invoke(main_group, list(map(str, words)))
    assert result.exit_code == 1, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    (error,) = [row["error"] for row in rows if "error" in row]
    assert len(rows) == 3
    assert "SIGSEGV" in error


@pytest.mark.slow
def test_a_benchmark_measures_the_engine_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    here, there = (
        benchmark(path, duration_s=0.1, cold_starts=1, isolate=isolate) for isolate in (False, True)
    )
    assert (here.isolated, there.isolated) == (False, True)
    assert here.cold_start.engine_import_ms
    assert there.cold_start.engine_import_ms is None
    assert (there.cold_start.peak_memory_mib or 0) > (here.cold_start.peak_memory_mib or 0)
    wrong = CliRunner().invoke(main_group, ["benchmark", str(path), "--isolate", "--profile"])
    assert wrong.exit_code == 2
