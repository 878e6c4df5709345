"""What builds say of the data that they judge on, and that they judge on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.compiler.networks import cnn

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model, rebuild
from edgec.compiler.explanation import explain_with_source
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.report import ArtifactInfo
from edgec.errors import DataError

FP32 = CompileOptions(precision="fp32", measure_s=0.02, workers=0)
INT8 = CompileOptions(measure_s=0.02, workers=0)


def images(folder: Path, name: str, count: int, seed: int = 0, **more: Any) -> Path:
    data = np.random.default_rng(seed).standard_normal((count, 1, 3, 16, 16)).astype(np.float32)
    np.savez(folder / f"{name}.npz", allow_pickle=False, image=data, **more)
    return folder / f"{name}.npz"


def built(folder: Path, **arguments: Any) -> ArtifactInfo:
    (folder / "cnn.onnx").write_bytes(cnn().SerializeToString())
    result = compile_model(
        folder / "cnn.onnx", ["cpu-x86_64"], folder / "out", **{"options": FP32, **arguments}
    )
    return result.report["artifacts"][0]


def warnings(info: ArtifactInfo) -> list[str]:
    return info.get("warnings", [])


def reason(info: ArtifactInfo, name: str) -> str:
    [found] = [c for c in info["candidates"] if c["name"] == name]
    return found.get("reason") or ""


def test_part_of_the_calibration_data_judges(tmp_path: Path) -> None:
    info = built(tmp_path, calibration=images(tmp_path, "calibration", 64))
    assert "no labels; on 32 samples against the source in fp32" in reason(info, "onnxruntime fp32")
    assert (
        "of the 64 samples, ranges are taken from 32, and candidates are judged on the other 32"
        in info.get("decisions", [])
    )
    assert warnings(info) == []


@pytest.mark.slow
def test_too_few_samples_to_hold_some_out_is_a_warning(tmp_path: Path) -> None:
    info = built(tmp_path, calibration=images(tmp_path, "calibration", 20))
    assert "on 20 samples that it was calibrated with" in reason(info, "onnxruntime fp32")
    assert any(
        "20 samples are too few to hold some out" in w and "300 are wanted" in w for w in warnings(info)
    )


@pytest.mark.slow
def test_evaluation_data_without_labels_judges_and_can_be_built_with_again(tmp_path: Path) -> None:
    calibration = images(tmp_path, "calibration", 20)
    evaluation = images(tmp_path, "evaluation", 70, 1)
    info = built(tmp_path, calibration=calibration, evaluation=evaluation)
    # Of 70, because it is the same to float32's own precision; below, int8 is judged on all.
    assert "no labels; on 32 samples against the source in fp32" in reason(info, "onnxruntime fp32")
    assert info["accuracy"] is None
    assert warnings(info) == []
    path = tmp_path / "out" / "cnn-cpu-x86_64.edgec"
    again = rebuild(path, tmp_path / "again", compare=True, workers=0)
    assert again.same_content
    assert again.difference is not None
    assert again.difference.accuracy is None
    with pytest.raises(DataError, match="its source's outputs, not to top1: leave out --metric"):
        rebuild(path, tmp_path / "scored", metric="top1", workers=0)


@pytest.mark.slow
def test_labels_that_nothing_is_scored_with_are_mentioned(tmp_path: Path) -> None:
    calibration = images(tmp_path, "calibration", 20)
    evaluation = images(tmp_path, "evaluation", 40, 1, labels=np.zeros(40, np.int64))
    info = built(tmp_path, calibration=calibration, evaluation=evaluation)
    assert any("has labels that nothing is scored with: give --metric" in w for w in warnings(info))


def test_wrong_labels_and_other_data_are_in_the_report(tmp_path: Path) -> None:
    said: list[str] = []
    labels = np.random.default_rng(9).integers(0, 10, 60)
    calibration = images(tmp_path, "calibration", 40)
    with np.load(calibration) as data:
        np.savez(calibration, image=255 * data["image"])
    info = built(
        tmp_path,
        calibration=calibration,
        evaluation=images(tmp_path, "evaluation", 60, 1, labels=labels),
        metric="top1",
        progress=said.append,
    )
    with Artifact.open(tmp_path / "out" / "cnn-cpu-x86_64.edgec") as artifact:
        assert artifact.report is not None
        assert artifact.report["artifacts"][0]["warnings"] == warnings(info)
    chance, scale = warnings(info)
    assert "no better than chance" in chance
    assert "on another scale than the evaluation set" in scale
    assert f"warning: {chance}" in said


@pytest.mark.slow
def test_labelled_data_alone_calibrates_with_some_and_judges_on_the_rest(tmp_path: Path) -> None:
    evaluation = images(tmp_path, "evaluation", 80, 1)
    with np.load(evaluation) as data, ReferenceProgram(cnn(), optimize=True) as program:
        labels = [int(np.argmax(program.run({"image": i})["scores"])) for i in data["image"]]
        np.savez(evaluation, image=data["image"], labels=labels)
    info = built(tmp_path, evaluation=evaluation, metric="top1")
    assert info["accuracy"] is not None
    assert info["accuracy"].get("n") == 60
    assert any("all 60 labels of" in warning for warning in warnings(info))


@pytest.mark.slow
def test_an_explanation_takes_ranges_from_the_samples_that_the_build_took_them_from(tmp_path: Path) -> None:
    calibration = images(tmp_path, "calibration", 300)
    info = built(tmp_path, calibration=calibration, options=INT8)
    assert "on 147 samples" in reason(info, "onnxruntime int8")
    path = tmp_path / "out" / "cnn-cpu-x86_64.edgec"
    found = explain_with_source(path, tmp_path / "cnn.onnx", calibration=calibration)
    assert found.layers
