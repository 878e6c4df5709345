"""The example models reach the quality that their READMEs state, in fp32, as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.models.sources import Source, area_under_curve

from edgec.artifact import read_pipeline
from edgec.evaluation import Score, evaluate, open_dataset

EXAMPLES = Path(__file__).parents[2] / "examples"


def score(example: str, metric: str) -> Score:
    folder = EXAMPLES / example
    pipeline = read_pipeline(folder / "pipeline.toml")
    data = open_dataset(folder / "evaluation.npz", pipeline=pipeline, need_labels=True)
    return evaluate(Source(folder / f"{example}.onnx", pipeline), data, metric).score


def test_digits_are_read_as_the_readme_says() -> None:
    top1 = score("digits", "top1")
    assert top1.n == 500
    assert top1.value >= 0.985
    assert f"{top1.value:.1%}".replace("%", " %") in (EXAMPLES / "digits" / "README.md").read_text()


def test_defects_are_told_as_the_readme_says_and_not_by_energy_alone() -> None:
    auc = score("vibration", "auc")
    assert auc.n == 480
    assert 0.95 <= auc.value < 0.99
    assert f"AUC {auc.value:.3f}".replace("0.", ".") in (EXAMPLES / "vibration" / "README.md").read_text()
    with np.load(EXAMPLES / "vibration" / "evaluation.npz") as data:
        energy = np.square(data["signal"].astype(np.float64)).mean(axis=(1, 2))
        assert area_under_curve(energy, data["labels"]) < 0.65


@pytest.mark.parametrize(("example", "name"), [("digits", "image"), ("vibration", "signal")])
def test_no_held_out_sample_calibrates(example: str, name: str) -> None:
    with (
        np.load(EXAMPLES / example / "calibration.npz") as calibration,
        np.load(EXAMPLES / example / "evaluation.npz") as evaluation,
    ):
        seen = {sample.tobytes() for sample in calibration[name]}
        assert len(seen) >= 100
        assert not any(sample.tobytes() in seen for sample in evaluation[name])


@pytest.mark.parametrize("example", ["digits", "vibration"])
def test_models_are_sound_small_and_old_enough_for_every_device(example: str) -> None:
    path = EXAMPLES / example / f"{example}.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < 500_000
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    # ONNX Runtime 1.23, the last for Python 3.10, reads files up to this version.
    assert model.ir_version <= 11


def test_examples_are_small() -> None:
    files = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_500_000
