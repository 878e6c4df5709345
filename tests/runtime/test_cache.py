"""The cache of results: what it answers, what it does not, what it forgets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.test_observe import doubling

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Softmax, TopK
from edgec.errors import InferenceError, InputError
from edgec.runtime import ResultCache, load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

MIB = 2**20


def x(value: float) -> dict[str, NDArray[Any]]:
    return {"x": np.full((1, 4), value, np.float32)}


def counts(cache: ResultCache) -> tuple[int, int]:
    return cache.hits, cache.misses


def test_the_same_inputs_are_answered_without_a_run(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=MIB)
    with load(doubling(tmp_path / "a.edgec"), cache=cache) as session:
        observer = session.observe()
        assert [float(session.run(x(v))["y"][0, 0]) for v in (1, 2, 1, 1)] == [2, 4, 2, 2]
        window = observer.take()
    assert counts(cache) == (2, 2)
    assert (window.calls, window.cache_hits, window.cache_misses) == (2, 2, 2)
    assert window.cache_saved_s == pytest.approx(cache.saved_s)
    assert len(cache) == 2


def test_every_kind_of_call_asks_it(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=MIB)
    pipeline = Pipeline(postprocess=(Softmax(), TopK(k=1)))
    with load(doubling(tmp_path / "a.edgec", pipeline=pipeline), cache=cache) as session:
        buffer = np.zeros((1, 4), np.float32)
        session.run(x(1))
        assert session.run(x(1), {"y": buffer})["y"] is buffer
        assert buffer[0, 0] == 2
        session.predict(x(1)["x"])
        session.submit(x(1)).result(60)
        session.run_batch([x(1), x(1)])
        with pytest.raises(InputError, match="expected y"):
            session.run(x(1), {"y": np.zeros((1, 3), np.float32)})
    assert counts(cache) == (5, 1)


def test_what_it_gives_is_the_callers(tmp_path: Path) -> None:
    with load(doubling(tmp_path / "a.edgec"), cache=ResultCache(max_bytes=MIB)) as session:
        for _ in range(3):
            answer = session.run(x(1))["y"]
            assert answer[0, 0] == 2
            answer[:] = 0


def test_other_bytes_shapes_and_dtypes_are_other_inputs(tmp_path: Path) -> None:
    inputs = (TensorSpec("a", "float32", ("n", "m")), TensorSpec("b", "int32", ("n", "m")))
    outputs = (TensorSpec("y", "float32", ("n", "m")), TensorSpec("z", "int32", ("n", "m")))
    members = onnx_members([Node("Identity", ["a"], ["y"]), Node("Identity", ["b"], ["z"])], inputs, outputs)
    manifest = Manifest(
        model="two", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False),
    )  # fmt: skip
    cache = ResultCache(max_bytes=MIB)
    with load(pack(tmp_path / "a.edgec", manifest, members), cache=cache) as session:
        for shape in ((1, 4), (4, 1), (2, 2), (0, 4), (4, 0)):
            one, none = np.ones(shape, np.float32), np.zeros(shape, np.int32)
            answer = session.run({"a": one, "b": none})
            assert answer["y"].shape == shape
        assert counts(cache) == (0, 5)
        # The same bytes, in the other input.
        bits = np.ones((1, 4), np.float32).view(np.int32)
        session.run({"a": np.zeros((1, 4), np.float32), "b": bits})
        assert counts(cache) == (0, 6)
        # The same values, laid out otherwise, are the same input.
        square = np.arange(4, dtype=np.float32).reshape(2, 2)
        session.run({"a": square, "b": np.zeros((2, 2), np.int32)})
        session.run({"a": np.asfortranarray(square), "b": np.zeros((2, 2), np.int32)})
        assert counts(cache) == (1, 7)


def test_answers_age(tmp_path: Path) -> None:
    now = [0.0]
    cache = ResultCache(max_bytes=MIB, max_age_s=10, clock=lambda: now[0])
    with load(doubling(tmp_path / "a.edgec"), cache=cache) as session:
        for now[0] in (0.0, 10.0, 10.1, 20.0):
            session.run(x(1))
    assert counts(cache) == (2, 2)


def test_it_stays_within_its_bytes_and_forgets_the_oldest(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=3 * (512 + 16))
    with load(doubling(tmp_path / "a.edgec"), cache=cache) as session:
        for value in (1, 2, 3, 1, 4):  # 2 was asked for longest ago
            session.run(x(value))
        assert cache.size_bytes <= cache.max_bytes
        assert len(cache) == 3
        before = cache.hits
        for value in (1, 3, 4):
            session.run(x(value))
        assert cache.hits == before + 3
        session.run(x(2))
        assert cache.hits == before + 3


def test_an_answer_that_is_too_large_is_not_kept(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=100)
    with load(doubling(tmp_path / "a.edgec"), cache=cache) as session:
        session.run(x(1))
        session.run(x(1))
    assert counts(cache) == (0, 2)
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_errors_are_not_kept(tmp_path: Path) -> None:
    inputs = (TensorSpec("i", "int64", (1,)),)
    outputs = (TensorSpec("y", "float32", (1,)),)
    weights = {"w": np.arange(3, dtype=np.float32)}
    members = onnx_members([Node("Gather", ["w", "i"], ["y"])], inputs, outputs, weights)
    manifest = Manifest(
        model="gather", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False),
    )  # fmt: skip
    cache = ResultCache(max_bytes=MIB)
    with load(pack(tmp_path / "a.edgec", manifest, members), cache=cache) as session:
        for _ in range(2):
            with pytest.raises(InferenceError):
                session.run({"i": np.array([9])})
        assert len(cache) == 0
        assert session.run({"i": np.array([2])})["y"] == 2


def test_a_swap_forgets_the_answers_of_the_old_model(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=MIB)
    first, second = (doubling(tmp_path / f"{f}.edgec", factor=f) for f in (2, 3))
    with load(first, cache=cache) as session:
        session.run(x(1))
        session.swap(second)
        assert len(cache) == 0
        assert session.run(x(1))["y"][0, 0] == 3
        assert session.run(x(1))["y"][0, 0] == 3
    assert counts(cache) == (1, 2)


def test_models_that_share_one_keep_apart(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=MIB)
    first, second = (doubling(tmp_path / f"{f}.edgec", factor=f) for f in (2, 3))
    with load(first, cache=cache) as a, load(second, cache=cache) as b, load(first, cache=cache) as c:
        assert [s.run(x(1))["y"][0, 0] for s in (a, b, c)] == [2, 3, 2]
        assert counts(cache) == (1, 2)
        cache.clear(a.content_digest)
        assert len(cache) == 1
        cache.clear()
        assert (len(cache), cache.size_bytes) == (0, 0)


def test_it_can_be_taken_away(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=MIB)
    with load(tiny_artifact(tmp_path / "a.edgec")) as session:
        session.use_cache(cache)
        session.run(x(1))
        session.use_cache(None)
        session.run(x(1))
    assert counts(cache) == (0, 1)


def test_several_threads_may_ask(tmp_path: Path) -> None:
    cache = ResultCache(max_bytes=8 * 528)
    with load(doubling(tmp_path / "a.edgec"), cache=cache) as session:

        def ask(seed: int) -> bool:
            values = np.random.default_rng(seed).integers(0, 12, 300).tolist()
            return all(session.run(x(v))["y"][0, 0] == 2 * v for v in values)

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(ask, range(4)))
    assert sum(counts(cache)) == 1200
    assert cache.size_bytes == 528 * len(cache) <= cache.max_bytes


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_bytes": 1, "max_age_s": 0.0}])
def test_bounds_are_above_zero(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ResultCache(**bounds)
