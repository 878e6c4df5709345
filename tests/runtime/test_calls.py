"""Ways to call a session: into buffers, bound, in batches, later, from an event loop, from many threads."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.errors import DeadlineError, InferenceError, InputError, OverloadedError
from edgec.runtime import Pool, load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

ENGINES = ("onnxruntime", "openvino", "litert")


def x(value: float = 1.0, rows: int = 1) -> NDArray[np.float32]:
    return np.full((rows, 4), value, np.float32)


def artifact(path: Path, engine: str, batch: int | str = 1) -> Path:
    """Pack ``y = relu(x), n = -x`` for an engine."""
    inputs = (TensorSpec("x", "float32", (batch, 4)),)
    outputs = (TensorSpec("y", "float32", (batch, 4)), TensorSpec("n", "float32", (batch, 4)))
    nodes = [Node("Relu", ["x"], ["y"]), Node("Neg", ["x"], ["n"])]
    members = onnx_members(nodes, inputs, outputs)
    if engine == "openvino":
        from edgec.runtime.testing.openvino import openvino_members, openvino_spec

        members = openvino_members(members)
        spec = openvino_spec(weights="model.bin" in members)
    elif engine == "litert":
        from edgec.runtime.testing.litert import litert_members, litert_spec

        members = litert_members(nodes, list(inputs), list(outputs))
        spec = litert_spec()
    else:
        spec = onnxruntime_spec(weights="weights.bin" in members)
    manifest = Manifest(
        model="two", model_version="1", target="cpu-x86_64", engine=spec, inputs=inputs, outputs=outputs
    )
    return pack(path, manifest, members)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    module = {"litert": "ai_edge_litert"}.get(name, name)
    pytest.importorskip(module, reason=f"needs {module}")
    return name


@pytest.fixture(params=["copied", "written"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small outputs are copied into buffers, large ones written there."""
    if request.param == "written":
        monkeypatch.setattr("edgec.runtime._buffers.COPIED_BYTES", 0)


# Buffers


@pytest.mark.usefixtures("written")
def test_outputs_are_written_where_the_caller_says(tmp_path: Path, engine: str) -> None:
    with load(artifact(tmp_path / "a.edgec", engine)) as session:
        y = np.full((1, 4), 7, np.float32)
        given = session.run({"x": x()}, {"y": y})
        assert given["y"] is y
        assert list(given) == ["y", "n"]
        np.testing.assert_allclose(y, np.maximum(x(), 0), rtol=1e-5)
        np.testing.assert_array_equal(given["n"], -x())
        # What is new stays as it is.
        kept = given["n"]
        both = {"n": np.empty((1, 4), np.float32), "y": y}
        session.run({"x": x(3)}, both)
        np.testing.assert_array_equal(both["n"], -x(3))
        np.testing.assert_array_equal(kept, -x())
        session.run({"x": x(5)})
        np.testing.assert_array_equal(both["n"], -x(3), "a later call writes elsewhere")


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [
        ({"y": np.empty((2, 4), np.float32)}, "expected y"),
        ({"y": np.empty((1, 4), np.float64)}, "expected y"),
        ({"z": np.empty((1, 4), np.float32)}, "no output 'z'"),
        ({"y": np.empty((4, 2), np.float32).T[:1]}, "expected y|contiguous"),
        ({"y": np.broadcast_to(np.float32(0), (1, 4))}, "writable and contiguous"),
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(
    tmp_path: Path, engine: str, buffer: dict[str, NDArray[Any]], reason: str
) -> None:
    with load(artifact(tmp_path / "a.edgec", engine)) as session:
        with pytest.raises(InputError, match=reason):
            session.run({"x": x()}, buffer)
        assert session.run({"x": x()})["n"][0, 0] == -1


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("engine_name", ["onnxruntime", "openvino"])
def test_a_buffer_of_another_size_than_the_call_is_refused(tmp_path: Path, engine_name: str) -> None:
    pytest.importorskip(engine_name, reason=f"needs {engine_name}")
    with load(artifact(tmp_path / "a.edgec", engine_name, batch="n")) as session:
        y = np.empty((3, 4), np.float32)
        with pytest.raises(InferenceError):
            session.run({"x": x(rows=2)}, {"y": y})
        with pytest.raises(InferenceError):
            session.run({"x": x(rows=200)}, {"y": y})
        session.run({"x": x(2, rows=3)}, {"y": y})
        np.testing.assert_allclose(y, np.maximum(x(2, rows=3), 0), rtol=1e-5)


# Bound calls


def test_a_bound_call_reads_and_writes_the_same_arrays(tmp_path: Path, engine: str) -> None:
    with load(artifact(tmp_path / "a.edgec", engine)) as session:
        call = session.bind()
        call.inputs["x"][...] = 2
        outputs = call()
        assert outputs is call.outputs
        np.testing.assert_allclose(outputs["y"], np.maximum(x(2), 0), rtol=1e-5)
        y = outputs["y"]
        call.inputs["x"][...] = -2
        call()
        np.testing.assert_allclose(y, np.maximum(x(-2), 0), rtol=1e-5)


def test_a_bound_call_takes_arrays_of_the_callers(tmp_path: Path, engine: str) -> None:
    mine, y = x(4), np.zeros((1, 4), np.float32)
    with load(artifact(tmp_path / "a.edgec", engine)) as session:
        call = session.bind({"x": mine}, {"y": y})
        np.testing.assert_allclose(y, np.maximum(mine, 0), rtol=1e-5)
        mine[...] = 0
        call()
        np.testing.assert_array_equal(y, 0)
        mine.flags.writeable = False
        again = session.bind({"x": mine})
        mine.flags.writeable = True
        mine[...] = 6
        np.testing.assert_array_equal(again()["n"], -mine)


def test_a_bound_call_of_a_closed_session_is_refused(tmp_path: Path) -> None:
    session = load(tiny_artifact(tmp_path / "a.edgec"))
    call = session.bind()
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        call()


def test_named_dimensions_are_bound_by_the_inputs(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec", batch="n")) as session:
        with pytest.raises(InputError, match="named dimensions"):
            session.bind()
        with pytest.raises(InputError, match="contiguous"):
            session.bind({"x": np.ones((4, 2), np.float32).T})
        assert session.bind({"x": x(rows=3)})()["y"].shape == (3, 3)


# Batches


def test_a_batch_gives_what_single_calls_give(tmp_path: Path) -> None:
    samples = [{"x": x(i, rows=1 + i % 3)} for i in range(11)]
    with load(tiny_artifact(tmp_path / "n.edgec", batch="n")) as session:
        want = [session.run(sample)["y"] for sample in samples]
        calls: list[int] = []
        run = session.run

        def counted(inputs: Any, outputs: Any = None) -> dict[str, NDArray[Any]]:
            calls.append(len(inputs["x"]))
            return run(inputs, outputs)

        session.run = counted  # type: ignore[method-assign]
        got = session.run_batch(samples, max_batch=5)
    assert len(calls) < len(samples)
    assert max(calls) <= 5
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a["y"], b, rtol=1e-6)


def test_a_model_without_a_free_batch_runs_one_by_one(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec")) as session:
        got = session.run_batch([{"x": x(1)}, {"x": x(2)}])
        np.testing.assert_array_equal(got[1]["y"], session.run({"x": x(2)})["y"])
        assert session.run_batch([]) == []
        with pytest.raises(InputError):
            session.run_batch([{"x": x(1)}, {"x": x(rows=2)}])
        with pytest.raises(ValueError, match="at least 1"):
            session.run_batch([], max_batch=0)


# Later


def test_a_submitted_call_gives_a_future(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec")) as session:
        future = session.submit({"x": x(3)})
        assert isinstance(future, Future)
        np.testing.assert_array_equal(future.result(60)["y"], session.run({"x": x(3)})["y"])
        with pytest.raises(InputError):
            session.submit({"x": x(rows=2)})


def test_an_event_loop_goes_on_while_models_run(tmp_path: Path) -> None:
    async def use() -> list[dict[str, NDArray[Any]]]:
        with load(tiny_artifact(tmp_path / "a.edgec")) as session:
            with pytest.raises(InputError):
                await session.arun({"wrong": x()})
            return await asyncio.gather(*(session.arun({"x": x(i)}) for i in range(20)))

    assert len(asyncio.run(use())) == 20


def held(pool: Pool) -> tuple[Event, Future[bool]]:
    """Keep the only worker of a pool busy until the event is set."""
    go, begun = Event(), Event()

    def wait() -> bool:
        begun.set()
        return go.wait(60)

    future = pool.submit(wait)
    assert begun.wait(60)
    return go, future


def test_sessions_share_a_pool_by_priority(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "a.edgec")
    order: list[str] = []

    def note(name: str) -> Callable[[Future[Any]], None]:
        return lambda _: order.append(name)

    with Pool(1) as pool, load(path, pool=pool) as low, load(path, pool=pool, priority=5) as high:
        go, _ = held(pool)
        futures = [low.submit({"x": x()}), high.submit({"x": x()}), low.submit({"x": x()}, priority=9)]
        for future, name in zip(futures, ("low", "high", "urgent"), strict=True):
            future.add_done_callback(note(name))
        assert pool.waiting == 3
        go.set()
        assert [f.result(60)["y"].shape for f in futures] == [(1, 3)] * 3
    assert order == ["urgent", "high", "low"]


def test_a_full_queue_refuses_and_takes_calls_again_later(tmp_path: Path) -> None:
    with Pool(1, max_queue=2) as pool, load(tiny_artifact(tmp_path / "a.edgec"), pool=pool) as session:
        go, _ = held(pool)
        futures = [session.submit({"x": x()}) for _ in range(2)]
        with pytest.raises(OverloadedError, match="2 calls wait already"):
            session.submit({"x": x()})
        go.set()
        for future in futures:
            future.result(60)
        assert session.submit({"x": x()}).result(60)["y"].shape == (1, 3)


def test_what_waits_past_its_deadline_or_is_cancelled_is_not_run(tmp_path: Path) -> None:
    with Pool(1) as pool, load(tiny_artifact(tmp_path / "a.edgec"), pool=pool) as session:
        go, _ = held(pool)
        late = session.submit({"x": x()}, deadline_ms=1)
        unwanted = session.submit({"x": x()})
        assert unwanted.cancel()
        sleep(0.01)
        go.set()
        with pytest.raises(DeadlineError):
            late.result(60)
        with pytest.raises(CancelledError):
            unwanted.result(60)
        assert session.submit({"x": x()}, deadline_ms=60_000).result(60)


def test_a_closed_pool_cancels_what_waits_and_refuses(tmp_path: Path) -> None:
    pool = Pool(1)
    with load(tiny_artifact(tmp_path / "a.edgec"), pool=pool) as session:
        go, first = held(pool)
        waiting = session.submit({"x": x()})
        with ThreadPoolExecutor(1) as other:
            ending = other.submit(pool.close)
            until = monotonic() + 60
            while not waiting.cancelled() and monotonic() < until:
                sleep(0.001)
            go.set()
            ending.result(60)
        assert first.result(0)
        assert waiting.cancelled()
        with pytest.raises(InferenceError, match="pool is closed"):
            session.submit({"x": x()})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no threads")
def test_workers_are_bound_to_cores() -> None:
    core = min(os.sched_getaffinity(0))
    with Pool(2, affinity=[core]) as pool:
        assert pool.submit(os.sched_getaffinity, 0).result(60) == {core}
        assert pool.run_here(lambda: os.sched_getaffinity(0)) == {core}
    assert Pool(affinity=[core]).workers == 1
    with pytest.raises(ValueError, match="expected cores of"):
        Pool(affinity=[100_000])


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"max_queue": 0}])
def test_numbers_below_one_are_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(**wrong)


# Many threads


def test_one_session_serves_many_threads_in_every_way(tmp_path: Path, engine: str) -> None:
    with Pool(4) as pool, load(artifact(tmp_path / "a.edgec", engine), pool=pool) as session:

        def use(seed: int) -> None:
            bound, buffer = session.bind(), np.empty((1, 4), np.float32)
            for i in range(25):
                value = float(seed * 100 + i)
                inputs = {"x": x(value)}
                assert session.run(inputs)["n"][0, 0] == -value
                assert session.run(inputs, {"n": buffer})["n"][0, 3] == -value
                bound.inputs["x"][...] = value
                assert bound()["n"][0, 1] == -value
                assert session.submit(inputs).result(60)["n"][0, 2] == -value
                if i % 10 == 0:
                    with pytest.raises(InputError):
                        session.run({"x": x().astype(np.float64)})

        with ThreadPoolExecutor(6) as callers:
            for done in [callers.submit(use, seed) for seed in range(6)]:
                done.result(60)
    gc.collect()
