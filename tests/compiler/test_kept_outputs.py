"""What the source gives is computed once, whoever needs it, and is the same when it is read back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgec.compiler import kept_outputs
from edgec.compiler.accuracy import _judged_in_time
from edgec.compiler.kept_outputs import KeptProgram
from edgec.compiler.onnxruntime import ReferenceProgram

Arrays = dict[str, NDArray[Any]]


def two_outputs() -> onnx.ModelProto:
    """Return a model of ``x`` float32[1,4] with outputs of which one is named like a path, one a scalar."""
    nodes = [
        helper.make_node("Neg", ["x"], ["scores/negative"]),
        helper.make_node("ReduceSum", ["x"], ["file"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("scores/negative", TensorProto.FLOAT, [1, 4]),
         helper.make_tensor_value_info("file", TensorProto.FLOAT, [])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Slow(ReferenceProgram):
    """A program that takes long enough to be worth keeping, and counts."""

    runs = 0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        type(self).runs += 1
        time.sleep(0.01)
        return super().run(inputs)


@pytest.fixture
def slow() -> Callable[[], Slow]:
    Slow.runs = 0
    return lambda: Slow(two_outputs())


def sample(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((1, 4)).astype(np.float32)}


def test_who_comes_second_finds_what_the_first_computed(slow: Callable[[], Slow], tmp_path: Path) -> None:
    with KeptProgram(slow, tmp_path / "kept") as first, KeptProgram(slow, tmp_path / "kept") as second:
        computed = [first.run(sample(seed)) for seed in range(3)]
        found = [second.run(sample(seed)) for seed in (2, 1, 0)][::-1]
        assert Slow.runs == 1 + 3  # once to warm up
        for a, b in zip(computed, found, strict=True):
            assert list(a) == list(b) == ["scores/negative", "file"]
            for name, value in a.items():
                assert (b[name].dtype, b[name].shape) == (value.dtype, value.shape)
                np.testing.assert_array_equal(b[name], value)
        assert second.took_s >= 0.01  # which only the first did
        second.run(sample(3))
        assert Slow.runs == 4 + 2


def test_inputs_of_the_same_bytes_are_told_apart_by_name_type_and_shape(tmp_path: Path) -> None:
    asked: list[Arrays] = []

    class Echo(Slow):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
            asked.append(dict(inputs))
            time.sleep(0.01)
            return dict(inputs)

    zeros = np.zeros(4, np.float32)
    different: list[Arrays] = [
        {"x": zeros}, {"y": zeros}, {"x": zeros.view(np.int32)}, {"x": zeros.reshape(2, 2)},
        {"x": np.array(["a"], object)}, {"x": np.array(["b"], object)},
    ]  # fmt: skip
    with KeptProgram(lambda: Echo(two_outputs()), tmp_path) as program:
        for inputs in different:
            program.run(inputs)
    assert len(asked) == 1 + len(different)  # once to warm up


def test_what_cannot_be_read_is_computed_again(slow: Callable[[], Slow], tmp_path: Path) -> None:
    with KeptProgram(slow, tmp_path) as program:
        expected = program.run(sample(0))
        [kept] = tmp_path.glob("*.npz")
        kept.write_bytes(kept.read_bytes()[:40])
        again = program.run(sample(0))
    assert Slow.runs == 1 + 2
    np.testing.assert_array_equal(again["file"], expected["file"])


def test_without_a_directory_nothing_is_kept(slow: Callable[[], Slow], tmp_path: Path) -> None:
    with KeptProgram(slow, None) as program:
        program.run(sample(0))
        program.run(sample(0))
    assert Slow.runs == 1 + 2
    assert list(tmp_path.iterdir()) == []


def test_all_programs_together_keep_no_more_than_there_is_room_for(
    slow: Callable[[], Slow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_outputs, "_MOST_KEPT_BYTES", 3 * 5000)
    for name in ("source", "misrounded"):
        with KeptProgram(slow, tmp_path / name) as program:
            for seed in range(2):
                program.run(sample(seed))
    assert len(list(tmp_path.rglob("*.npz"))) == 3
    Slow.runs = 0
    with KeptProgram(slow, tmp_path / "source") as program:
        program.run(sample(1))  # what is kept is found still
    assert Slow.runs == 0


@pytest.mark.parametrize("taken", ["directory", "lock", "bytes"])
def test_where_nothing_can_be_kept_it_is_computed(
    slow: Callable[[], Slow], tmp_path: Path, taken: str
) -> None:
    """As on a full disk: no directory, no lock, or no file can be made."""
    kept = tmp_path / "kept"
    if taken == "directory":
        kept.write_bytes(b"")
    else:
        (kept / taken).mkdir(parents=True)
    with KeptProgram(slow, kept) as program:
        first, again = program.run(sample(0)), program.run(sample(0))
    np.testing.assert_array_equal(first["file"], again["file"])
    assert Slow.runs == 1 + 2
    assert list(tmp_path.rglob("*.npz")) == []


def test_candidates_of_unlike_speed_are_judged_on_samples_of_each_other() -> None:
    n = 20_000
    chosen = [{i * n // count for i in range(count)} for count in (888, 444, 222)]
    for each_s in (1e-4, 0.0095, 0.0115, 0.013, 0.0155, 0.019, 0.024, 0.031, 0.04, 10.0):
        count = _judged_in_time(each_s, 0.0, n)
        assert {i * n // count for i in range(count)} in chosen
    assert chosen[0] > chosen[1] > chosen[2]


def test_a_slow_source_is_run_no_more_often_for_a_fast_candidate() -> None:
    assert _judged_in_time(0.001, 0.4, 20_000) == 222
    assert _judged_in_time(0.001, 0.001, 20_000) == 888
    assert _judged_in_time(0.03, 0.001, 300) == 888  # that is all there are, and no more than 10 s
