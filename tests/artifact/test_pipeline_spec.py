"""Pipelines as data: what is accepted, and how what is not is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.artifact import Pipeline, read_pipeline, steps
from edgec.errors import PipelineError

# The least that each step needs.
LEAST: dict[str, dict[str, Any]] = {
    "decode": {},
    "resize": {"width": 320, "height": 240},
    "crop": {"width": 224, "height": 224},
    "color": {"order": "BGR"},
    "layout": {"order": "NCHW"},
    "dtype": {"to": "float32"},
    "normalize": {},
    "reshape": {"shape": [1, -1]},
    "quantize": {},
    "tokenize": {"file": "tokenizer.json"},
    "dequantize": {},
    "softmax": {},
    "sigmoid": {},
    "top_k": {},
    "threshold": {"value": 0.5},
    "detection": {"format": "yolov8"},
    "nms": {},
    "embedding": {},
    "reconstruction_error": {},
}
WHOLE: dict[str, Any] = {
    "preprocess": [{"step": name, **LEAST[name]} for name in steps.PREPROCESS],
    "postprocess": [{"step": name, **LEAST[name]} for name in steps.POSTPROCESS],
    "labels": ["cat", "dög"],
}


def test_every_step_survives_the_manifest() -> None:
    pipeline = Pipeline.from_dict(WHOLE)
    assert [step.step for step in pipeline.preprocess] == list(steps.PREPROCESS)
    text = json.dumps(pipeline.to_dict(), allow_nan=False)
    again = Pipeline.from_dict(json.loads(text))
    assert again == pipeline
    assert hash(again.preprocess) == hash(pipeline.preprocess)
    assert json.dumps(again.to_dict()) == text


def test_a_manifest_says_the_defaults_too() -> None:
    # A later edgec may choose other defaults; an artifact must keep its meaning.
    described = Pipeline.from_dict({"preprocess": [{"step": "resize", "width": 8, "height": 4}]}).to_dict()
    assert described["preprocess"] == [
        {
            "step": "resize",
            "width": 8,
            "height": 4,
            "mode": "stretch",
            "interpolation": "linear",
            "pad": [114.0],
            "align": "center",
        }
    ]


def test_steps_are_values() -> None:
    assert steps.Crop(width=2, height=3) == steps.Crop(width=2, height=3)
    assert steps.Crop(width=2, height=3) != steps.Crop(width=3, height=3)
    assert steps.Softmax() != steps.Sigmoid()
    assert repr(steps.Crop(width=2, height=3)) == "Crop(width=2, height=3, input=None)"
    with pytest.raises(AttributeError, match="cannot be changed"):
        steps.Crop(width=2, height=3).width = 4  # type: ignore[misc]


def test_numbers_may_be_given_once_or_per_channel() -> None:
    step = steps.Normalize(scale=1, mean=[1, 2, 3])  # type: ignore[arg-type]
    assert step.scale == (1.0,)
    assert step.mean == (1.0, 2.0, 3.0)


def resize(**values: Any) -> dict[str, Any]:
    return {"preprocess": [{"step": "decode"}, {"step": "resize", "width": 8, "height": 8} | values]}


def before(**values: Any) -> dict[str, Any]:
    return {"preprocess": [values]}


def after(**values: Any) -> dict[str, Any]:
    return {"postprocess": [values]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected a table of preprocess"),
        (None, "expected a table of preprocess"),
        ({"preproces": []}, "unknown key 'preproces'"),
        ({"preprocess": {}}, r"preprocess: expected a list of steps"),
        ({"preprocess": ["resize"]}, "preprocess step 1: expected step = one of"),
        (before(step="softmax"), "preprocess step 1: .* got 'softmax'"),
        (after(step="decode"), "postprocess step 1: .* got 'decode'"),
        (before(step=["resize"]), "preprocess step 1: expected step"),
        (before(), "preprocess step 1: .* got none"),
        ({"preprocess": [{"step": "decode"}] * 65}, "at most 64 steps, got 65"),
        (resize(widht=3), "preprocess step 2: resize: unknown key 'widht'"),
        (before(step="crop", width=3), "crop: height is missing: expected an integer"),
        (resize(width="8"), "resize: width: expected an integer from 1 to 16384, got '8'"),
        (resize(width=8.0), "resize: width: expected an integer"),
        (resize(width=True), "resize: width: expected an integer"),
        (resize(width=0), "resize: width: expected an integer"),
        (resize(width=16385), "resize: width: expected an integer"),
        (resize(width=16384, height=16384), "resize: expected at most 67108864 pixels, got 16384 x 16384"),
        (before(step="crop", width=16384, height=4097), "crop: expected at most 67108864 pixels"),
        (resize(width=10**400), "resize: width: expected an integer"),
        (resize(pad=10**400), "resize: pad: expected a finite number"),
        (resize(mode="fit"), "resize: mode: expected one of 'stretch', 'letterbox', 'cover'"),
        (resize(mode=["stretch"]), "resize: mode: expected one of"),
        (resize(pad=[0, 0, 0, 0, 0]), "resize: pad: .* a list of 1 to 4"),
        (resize(pad=[]), "resize: pad: "),
        (resize(pad=256), "resize: pad: "),
        (resize(input=""), "resize: input: expected a text"),
        (resize(input="a\nb"), "resize: input: expected a text"),
        (resize(input="a" * 257), "resize: input: expected a text of 1 to 256"),
        (before(step="normalize", scale=float("nan")), "normalize: scale: .* got nan"),
        (before(step="normalize", mean=float("inf")), "normalize: mean: .* got inf"),
        (before(step="normalize", std=0), "normalize: std: expected numbers other than 0"),
        (before(step="normalize", mean=[1, 2, 3], std=[1, 2]), "have 1, 3 and 2 values"),
        (before(step="normalize", mean=[0] * 16385), "a list of 1 to 16384"),
        (before(step="reshape", shape=[-1, -1]), "at most one of them -1"),
        (before(step="reshape", shape=[0, 2]), "expected sizes from 1"),
        (before(step="reshape", shape=4), "reshape: shape: expected a list"),
        (before(step="quantize", scale=0.5), "quantize: scale and zero_point: give both"),
        (before(step="tokenize", file="../tokenizer.json"), "tokenize: file: expected a file name"),
        (before(step="tokenize", file="/etc/passwd"), "tokenize: file: "),
        (before(step="tokenize", file="a\\b"), "tokenize: file: "),
        (before(step="tokenize", file=".."), "tokenize: file: "),
        (before(step="tokenize", file="manifest.json\0"), "tokenize: file: "),
        (before(step="tokenize", file="manifest.json"), "tokenize: file: "),
        (before(step="tokenize", file="report.json"), "tokenize: file: "),
        (before(step="tokenize", file="model.onnx"), "tokenize: file: "),
        (before(step="tokenize", file=".json"), "tokenize: file: "),
        (before(step="tokenize", file="tökenizer.json"), "tokenize: file: "),
        (after(step="threshold", value="high"), "threshold: value: expected a finite number"),
        (after(step="nms", iou=1.5), "nms: iou: expected a number from 0 to 1, got 1.5"),
        ({"labels": "labels.txt"}, "labels: expected a list of texts, got str"),
        ({"labels": ["a", 3]}, "labels: .* got '3' as number 1"),
        ({"labels": ["a" * 257]}, "labels: expected texts of 1 to 256"),
        ({"labels": ["a"] * 65537}, "labels: expected at most 65536"),
    ],
)
def test_wrong_data_is_refused_with_step_and_key(data: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        Pipeline.from_dict(data)
    assert len(str(caught.value)) < 500


def test_a_step_in_the_wrong_stage_is_refused() -> None:
    with pytest.raises(PipelineError, match="postprocess step 1: decode does not belong here"):
        Pipeline(postprocess=(steps.Decode(),))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.data(), json_values)
def test_any_value_anywhere_is_accepted_or_refused_cleanly(data: st.DataObject, value: Any) -> None:
    whole = copy.deepcopy(WHOLE)
    stage = data.draw(st.sampled_from(["preprocess", "postprocess"]))
    step = data.draw(st.sampled_from(whole[stage]))
    kinds = steps.PREPROCESS | steps.POSTPROCESS
    step[data.draw(st.sampled_from(["step", *kinds[step["step"]].keys]))] = value
    try:
        pipeline = Pipeline.from_dict(whole)
    except PipelineError:
        return
    assert Pipeline.from_dict(json.loads(json.dumps(pipeline.to_dict(), allow_nan=False))) == pipeline


@settings(deadline=None)
@given(json_values, st.sampled_from(["preprocess", "postprocess", "labels", None]))
def test_any_json_is_accepted_or_refused_cleanly(value: Any, place: str | None) -> None:
    with contextlib.suppress(PipelineError):
        Pipeline.from_dict(value if place is None else {place: value})


def test_a_toml_file_names_its_files_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "labels.txt").write_text("cat\r\n dog \r\nbird\n\n", encoding="utf-8-sig")
    (tmp_path / "text" / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "pipeline.toml").write_text(
        'labels = "labels.txt"\n[[preprocess]]\nstep = "tokenize"\nfile = "text/tokenizer.json"\n',
        encoding="utf-8",
    )
    pipeline = read_pipeline(tmp_path / "pipeline.toml")
    assert pipeline.labels == ("cat", "dog", "bird")
    assert pipeline.files == ("tokenizer.json",)
    assert pipeline.read_source("tokenizer.json") == b"{}"
    # Where the file was is nothing that a device could use.
    assert str(tmp_path) not in json.dumps(pipeline.to_dict())
    with pytest.raises(PipelineError, match=r"'tokenizer.json' is not at hand"):
        Pipeline.from_dict(pipeline.to_dict()).read_source("tokenizer.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[[preprocess]\n", "not TOML: "),
        (b"labels = ['\xff']", "not UTF-8 text"),
        (b"a = " + b"[" * 5000, "not TOML: "),
        (b"a = " + b"1" * 5000, "not TOML: "),
        (b"labels = 'none.txt'", r"cannot read .*none.txt: No such file"),
        (b"labels = 'gap.txt'", "labels: .* got '' as number 1"),
        (b"labels = 'latin.txt'", r"latin.txt is not UTF-8 text"),
        (b"[[preprocess]]\nstep = 'resize'\nwidth = 3", "step 1: resize: height is missing"),
        (b"[[preprocess]]\nstep = 'tokenize'\nfile = 'no.json'", "there is no file .*no.json"),
        (b"[[preprocess]]\nstep = 'tokenize'\nfile = 3", "tokenize: file: expected a file"),
        (
            b"[[preprocess]]\nstep = 'tokenize'\nfile = 'a/t.json'\n"
            b"[[preprocess]]\nstep = 'tokenize'\nfile = 'b/t.json'",
            "two files are called 't.json'",
        ),
    ],
)
def test_a_wrong_toml_file_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "gap.txt").write_bytes(b"cat\n\ndog\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    path = tmp_path / "pipeline.toml"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=message) as caught:
        read_pipeline(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="No such file"):
        read_pipeline(tmp_path / "none.toml")
    with pytest.raises(PipelineError, match="Is a directory"):
        read_pipeline(tmp_path)
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(PipelineError, match="larger than 16 MiB"):
        read_pipeline(tmp_path / "huge.toml")
