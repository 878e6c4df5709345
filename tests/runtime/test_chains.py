"""Chains: stages that fit each other, one state per stream, and files that cannot lead astray."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.chain_models import BOXES, classifier, detector, recurrent

from edgec.errors import (
    ArtifactError,
    IncompatibleArtifactError,
    InferenceError,
    InputError,
    PipelineError,
)
from edgec.runtime import Chain, load, load_chain
from edgec.runtime.chains import benchmark_chain, read_chain

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

SUM = """
name = "sum"
inputs.x = { shape = [4] }
outputs = { total = "b" }

[[stages]]
name = "a"
artifact = "a.edgec"
inputs = { x = "x" }
state = { input = "h", output = "hn", initial = "ones" }

[[stages]]
name = "b"
artifact = "b.edgec"
inputs = { x = "a" }
state = [{ input = "h", output = "hn" }]
"""

BOXED = """
name = "boxed"
version = "3"
inputs.photo = { kind = "image", color = "BGR" }
outputs = { which = "kept.labels", texts = "read.labels", all = "named" }

[[stages]]
name = "found"
artifact = "detector.edgec"
input = "photo"

[[stages]]
name = "kept"
step = "select"
input = "found"
min_score = 0.5
top_k = 2
classes = ["left", "top", "right"]
order = "left"

[[stages]]
name = "crops"
step = "crop"
image = "photo"
boxes = "kept"
margin = 0.25

[[stages]]
name = "read"
artifact = "classifier.edgec"
each = "crops"

[[stages]]
name = "named"
step = "relabel"
boxes = "kept"
by = "read"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "it.chain.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def total(tmp_path: Path) -> Iterator[Chain]:
    recurrent(tmp_path / "a.edgec")
    recurrent(tmp_path / "b.edgec")
    with load_chain(write(tmp_path, SUM), threads=1) as chain:
        yield chain


@pytest.fixture
def boxed(tmp_path: Path) -> Iterator[Chain]:
    pytest.importorskip("cv2", reason="needs the extra vision")
    detector(tmp_path / "detector.edgec")
    classifier(tmp_path / "classifier.edgec")
    with load_chain(write(tmp_path, BOXED), threads=1) as chain:
        yield chain


def test_each_stream_has_a_state_of_its_own(total: Chain) -> None:
    x = np.arange(4, dtype=np.float32)
    with total.stream() as first, total.stream() as second:
        sums = [first.run({"x": x})["total"] for _ in range(3)]
        other = second.predict([1.0, 1, 1, 1])["total"]
    # a: 1 + x, 1 + 2x, 1 + 3x; b adds these up.
    np.testing.assert_array_equal(sums, [[1 + x], [2 + 3 * x], [3 + 6 * x]])
    np.testing.assert_array_equal(other, [[2, 2, 2, 2]])
    assert [str(spec) for spec in total.outputs] == ["total: float32[1, 4]"]
    assert total.is_tensors


def test_streams_run_at_once(total: Chain) -> None:
    def go(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        stream, x = total.stream(), np.full(4, seed, np.float32)
        for _ in range(49):
            stream.run({"x": x})
        return np.asarray(stream.run({"x": x})["total"])

    with ThreadPoolExecutor(4) as pool:
        for seed, last in enumerate(pool.map(go, range(4))):
            np.testing.assert_array_equal(last, np.full((1, 4), 50 + seed * 50 * 51 / 2))


def test_a_state_is_needed_kept_where_a_call_fails_and_begun_anew(total: Chain) -> None:
    x = np.ones(4, np.float32)
    with pytest.raises(InputError, match=r"keeps a state \(a\.h, b\.h\).*chain\.stream\(\)"):
        total.run({"x": x})
    with pytest.raises(InputError, match="expected a state with"):
        total.run({"x": x}, {})
    stream = total.stream()
    stream.run({"x": x})
    with pytest.raises(InputError, match=r"expected x: float32\[4\]"):
        stream.run({"x": np.ones(5, np.float32)})
    with pytest.raises(PipelineError, match="got a sample"):
        stream.predict([1.0])
    state = total.new_state()
    state["b.h"] = np.zeros((2, 4), np.float32)  # refused by the second stage, after the first
    with pytest.raises(InputError, match=r"stage 'b': expected h: float32\[1, 4\]"):
        total.run({"x": x}, state)
    np.testing.assert_array_equal(state["a.h"], np.ones((1, 4)))
    np.testing.assert_array_equal(stream.run({"x": x})["total"], [[5, 5, 5, 5]])
    stream.reset()
    np.testing.assert_array_equal(stream.run({"x": x})["total"], [[2, 2, 2, 2]])


def test_what_a_caller_changes_does_not_reach_a_stream(tmp_path: Path) -> None:
    text = """
name = "echo"
inputs.x = { shape = [2] }
outputs = { y = "o" }
stages = [{ name = "w", step = "window", input = "x", size = 4 },
          { name = "o", step = "overlap_add", input = "w", hop = 2 }]
"""
    with load_chain(write(tmp_path, text)) as chain:
        stream, expected = chain.stream(), chain.stream()
        block = np.array([1, 2], np.float32)
        stream.run({"x": block})["y"][:] = 99
        block[:] = 77
        expected.run({"x": np.array([1, 2], np.float32)})
        given = np.array([3, 4], np.float32)
        np.testing.assert_array_equal(stream.run({"x": given})["y"], expected.run({"x": given})["y"])
        assert chain.engine == "none"


def test_submit_and_arun_run_in_the_pool(total: Chain) -> None:
    state = total.new_state()
    x = {"x": np.ones(4, np.float32)}
    np.testing.assert_array_equal(total.submit(x, state=state).result()["total"], [[2] * 4])
    np.testing.assert_array_equal(asyncio.run(total.arun(x, state=state))["total"], [[5] * 4])


def test_blocks_go_through_a_spectrum_and_come_back(tmp_path: Path) -> None:
    text = """
name = "through"
inputs.x = { shape = [64] }
outputs = { y = "sum", m = "s.magnitude" }
stages = [
  { name = "w", step = "window", input = "x", size = 128 },
  { name = "s", step = "rfft", input = "w", window = "sqrt_hann" },
  { name = "again", step = "polar", magnitude = "s.magnitude", phase = "s.phase" },
  { name = "b", step = "irfft", input = "again", window = "sqrt_hann" },
  { name = "sum", step = "overlap_add", input = "b", hop = 64 },
]
"""
    sound = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    with load_chain(write(tmp_path, text)) as chain:
        stream = chain.stream()
        out = [stream.predict(block) for block in sound]
    heard = np.concatenate([o["y"] for o in out])
    # Late by a block; windows squared add up to 1.
    np.testing.assert_allclose(heard[64:], sound.reshape(-1)[:-64], atol=1e-5)
    hann = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(128) / 128)).astype(np.float32)
    expected = np.abs(np.fft.rfft(sound[3:5].reshape(-1) * hann))
    np.testing.assert_array_equal(out[4]["m"], expected.astype(np.float32))


@pytest.mark.parametrize("batch", [1, "n"])
def test_boxes_are_kept_cut_out_and_read(tmp_path: Path, batch: int | str) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs the extra vision")
    detector(tmp_path / "detector.edgec")
    classifier(tmp_path / "classifier.edgec", batch=batch)
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert cv2.imwrite(str(tmp_path / "photo.png"), photo)
    with (
        load_chain(write(tmp_path, BOXED), threads=1) as chain,
        load(tmp_path / "classifier.edgec", threads=1) as alone,
    ):
        result = chain.predict(tmp_path / "photo.png")
        expected = []
        for x1, y1, x2, y2 in BOXES[0, [0, 2]].tolist():  # those of the two best scores
            room = 0.25 * max(x2 - x1, y2 - y1)
            left, top = (max(0, int(np.floor(v - room))) for v in (x1, y1))
            crop = photo[top : int(np.ceil(y2 + room)), left : int(np.ceil(x2 + room))]
            assert crop.shape[:2] != (0, 0)
            canvas = np.zeros((int(np.ceil(y2 + room) - np.floor(y1 - room)),
                               int(np.ceil(x2 + room) - np.floor(x1 - room)), 3), np.uint8)  # fmt: skip
            y, x = int(max(0, -np.floor(y1 - room))), int(max(0, -np.floor(x1 - room)))
            canvas[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
            expected.append(alone.predict(cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)))
        again = chain.run({"photo": photo})
    assert result["which"] == again["which"] == ["left", "top"]
    assert result["texts"] == [prediction["labels"] for prediction in expected]
    np.testing.assert_array_equal(result["all"]["boxes"], BOXES[0, [0, 2]])
    np.testing.assert_allclose(result["all"]["scores"], [p["scores"][0] for p in expected], rtol=1e-6)
    assert result["all"]["labels"] == [prediction["labels"][0] for prediction in expected]


def test_a_member_is_swapped_under_its_stage(total: Chain, tmp_path: Path) -> None:
    stream, x = total.stream(), {"x": np.ones(4, np.float32)}
    stream.run(x)
    total.swap("a", recurrent(tmp_path / "double.edgec", gain=2))
    # a: 2 before, 2 * 1 + 2 after; b held 2.
    np.testing.assert_array_equal(stream.run(x)["total"], [[6] * 4])
    with pytest.raises(IncompatibleArtifactError, match="stage 'a'"):
        total.swap("a", recurrent(tmp_path / "wide.edgec", size=5))
    with pytest.raises(ArtifactError, match="stage 'b'"):
        total.swap("b", tmp_path / "it.chain.toml")
    with pytest.raises(ValueError, match="no stage 'c' runs an artifact; those that do: a, b"):
        total.swap("c", tmp_path / "double.edgec")


def test_a_member_with_other_labels_is_no_swap(boxed: Chain, tmp_path: Path) -> None:
    other = detector(tmp_path / "other.edgec", labels=["left", "right", "bottom"])
    with pytest.raises(IncompatibleArtifactError, match=r"stage 'found'.*other labels"):
        boxed.swap("found", other)
    boxed.swap("read", classifier(tmp_path / "another.edgec", seed=1))
    assert boxed.predict(np.zeros((16, 16, 3), np.uint8))["which"] == ["left", "top"]


def test_errors_name_the_stage_and_closing_frees_all(total: Chain, boxed: Chain) -> None:
    with pytest.raises(PipelineError, match="decode: cannot read"):
        boxed.predict("nowhere.png")
    total.close()
    total.close()
    gc.collect()
    with pytest.raises(InferenceError, match="stage 'a': the session is closed"):
        total.stream().run({"x": np.ones(4, np.float32)})


def test_self_tests_are_told_by_stage(total: Chain) -> None:
    assert {name: result.passed for name, result in total.self_test().items()} == {"a": True, "b": True}


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    recurrent(tmp_path / "a.edgec")
    with pytest.raises(ArtifactError, match="stage 'b'"):
        load_chain(write(tmp_path, SUM))


def test_stages_that_do_not_fit_are_refused_together(tmp_path: Path) -> None:
    recurrent(tmp_path / "a.edgec")
    recurrent(tmp_path / "b.edgec", size=5)
    text = SUM.replace('output = "hn", initial', 'output = "nn", initial').replace('x = "x" }', 'q = "x" }')
    with pytest.raises(PipelineError) as refused:
        load_chain(write(tmp_path, text))
    assert "stage 'a': the model has no input 'q'; nothing fills its input 'x'" in str(refused.value)
    with pytest.raises(PipelineError, match=r"stage 'b': input x: float32\[1, 5\] cannot take a tensor"):
        load_chain(write(tmp_path, SUM))
    recurrent(tmp_path / "b.edgec")
    for old, new, told in (
        ('total = "b"', 'total = "b.z"', "output 'total': 'b' has no part 'z': it is several values"),
        (
            'output = "hn", initial = "ones"',
            'output = "z"',
            "state: the model has no output 'z'",
        ),
        ("shape = [4]", "shape = [3]", "stage 'a': input x: float32[1, 4] cannot take a tensor float32[3]"),
        ("shape = [4]", 'shape = [4], dtype = "float64"', "the dtypes differ"),
    ):
        assert old in SUM
        with pytest.raises(PipelineError) as refused:
            load_chain(write(tmp_path, SUM.replace(old, new)))
        assert told in str(refused.value)


BAD = [
    ("", "name: expected a text"),
    ("name = 3", "name: expected a text of 1 to 256 characters, got 3"),
    ("x = [", "not TOML"),
    ("name = 'a'\nspeed = 3", "unknown key 'speed'"),
    ("inputs = 5", "inputs: expected a table of 1 to 64"),
    ("inputs.x = 5", "input 'x': expected kind = one of tensor, image, text; got none"),
    ("inputs.x = {kind = 'file'}", "expected kind = one of tensor, image, text; got 'file'"),
    ("inputs.x = {shape = [0]}", "shape: expected a list of at most 8 sizes"),
    ("inputs.x = {shape = [99999999, 99]}", "shape: expected a list of at most 8 sizes"),
    ("inputs.'../x' = {shape = [1]}", "input '../x': expected a name"),
    ("stages = 4", "stages: expected 1 to 64 of them"),
    ("stages = [4]", "stage 1: expected a name"),
    ("stages = [{name = 'a', step = 'import os'}]", "stage 'a': expected step = one of select, crop"),
    ("stages = [{name = 'a', step = 'eval'}]", "or an artifact; got 'eval'"),
    ("stages = [{name = 'a', step = 'rfft'}]", "stage 'a': rfft: input is missing"),
    ("stages = [{name = 'a', step = 'rfft', input = 'x', of = 3}]", "unknown key 'of'"),
    ("stages = [{name = 'a', step = 'rfft', input = 'b'}]", "there is no value 'b' before it"),
    (
        "stages = [{name = 'a', step = 'rfft', input = 'a'}]",
        "there is no value 'a' before it (that is a later",
    ),
    (
        "stages = [{name = 'a', artifact = '/etc/passwd', input = 'x'}]",
        "artifact: expected the path of an .edgec",
    ),
    (
        "stages = [{name = 'a', artifact = '../a.edgec', input = 'x'}]",
        "artifact: expected the path of an .edgec",
    ),
    ("stages = [{name = 'a', artifact = 'a/../../a.edgec', input = 'x'}]", "artifact: expected the path"),
    ("stages = [{name = 'a', artifact = 'C:\\a.edgec', input = 'x'}]", "artifact: expected the path"),
    ("stages = [{name = 'a', artifact = 7, input = 'x'}]", "artifact: expected the path"),
    ("stages = [{name = 'a', artifact = 'a.edgec', step = 'crop'}]", "both a step and an artifact"),
    ("stages = [{name = 'a', artifact = 'a.edgec'}]", "expected one of input, each and inputs, got none"),
    ("stages = [{name = 'a', artifact = 'a.edgec', input = 'x', each = 'x'}]", "got input, each"),
    ("stages = [{name = 'a', artifact = 'a.edgec', inputs = {x = 4}}]", "inputs: expected a table of values"),
    ("stages = [{name = 'a', artifact = 'a.edgec', input = 'x', state = 4}]", "state: expected a table"),
    (
        "stages = [{name = 'a', artifact = 'a.edgec', inputs = {x = 'x'}, constants = {x = 4}}]",
        "x: filled by more than one",
    ),
    (
        "stages = [{name = 'a', artifact = 'a.edgec', inputs = {x = 'x'}, state = {input = 'h'}}]",
        "state: output is missing",
    ),
    ("stages = [{name = 'a', step = 'window', input = 'x', size = 1e9}]", "size: expected an integer from 1"),
    ("stages = [{name = 'x.y', step = 'window', input = 'x', size = 4}]", "stage 1: expected a name"),
    ("outputs = 5", "outputs: expected the name of a stage, or a table"),
    ("outputs = 'nothing'", "outputs: there is no stage 'nothing'"),
    ("outputs = {y = 'z.a'}", "output 'y': there is no value 'z.a'"),
    ("outputs = {y = 5}", "output 'y': expected a name, and a value such as stage or stage.part, got 5"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PipelineError) as refused:
        read_chain(write(tmp_path, text))
    assert told in str(refused.value)


def test_all_that_is_wrong_is_said_at_once_and_bounded(tmp_path: Path) -> None:
    stages = ",".join(f"{{name = 's{i}', step = 'rfft'}}" for i in range(60))
    with pytest.raises(PipelineError) as refused:
        read_chain(
            write(tmp_path, f"speed = 1\ninputs.x = {{shape = [-1]}}\nstages = [{stages}]\noutputs = 's1'")
        )
    told = str(refused.value)
    assert all(word in told for word in ("'speed'", "name: expected", "input 'x'", "'s0'", "'s9'", "more"))
    assert len(told) < 8000
    with pytest.raises(PipelineError, match="larger than 1 MiB"):
        read_chain(write(tmp_path, "#" * (1 << 20) + "\n"))
    with pytest.raises(PipelineError, match="cannot read"):
        read_chain(tmp_path / "nothing.toml")


def test_a_benchmark_says_the_share_of_each_stage(total: Chain, tmp_path: Path) -> None:
    result = benchmark_chain(tmp_path / "it.chain.toml", duration_s=0.02, threads=1).to_dict()
    assert [stage["stage"] for stage in result["stages"]] == ["inputs", "a", "b"]
    assert sum(stage["share"] for stage in result["stages"]) == pytest.approx(1)
    assert (result["model"], result["inputs"], result["calls"] >= 20) == ("sum", "synthetic", True)
