"""Models of tables, made of `ai.onnx.ml` operators: ONNX Runtime has them, OpenVINO does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.models.conftest import Build, Built

from edgec.compiler.check import check_model
from edgec.runtime import load
from edgec.targets import load_target

pytestmark = [pytest.mark.models, pytest.mark.slow]

COLUMNS = {"breast_cancer_logreg": 30, "breast_cancer_mlp": 30, "wine_random_forest": 13}
PUBLISHED_TOP1 = {"breast_cancer_logreg": 0.959, "breast_cancer_mlp": 0.953, "wine_random_forest": 1.0}


@pytest.fixture(scope="module", params=COLUMNS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(models: Path, build: Build, name: str) -> Built:
    return build(models / "tabular_sklearn" / f"{name}.onnx", shapes={"X": (1, COLUMNS[name])})


@pytest.fixture(scope="module")
def rows(models: Path, name: str) -> dict[str, NDArray[Any]]:
    return dict(np.load(models / "tabular_sklearn" / f"{name}_test.npz"))


def test_artifact_for_onnxruntime_predicts_what_scikit_learn_does(
    built: Built, rows: dict[str, NDArray[Any]], name: str
) -> None:
    built.assert_sound("cpu-x86_64")
    with load(built.artifacts["cpu-x86_64"]) as session:
        labels = np.concatenate([session.run({"X": row[None]})["label"] for row in rows["x"]])
    np.testing.assert_array_equal(labels, rows["ref"])
    assert (labels == rows["y"]).mean() == pytest.approx(PUBLISHED_TOP1[name], abs=0.001)


def test_openvino_is_skipped_and_the_reason_names_the_operator(built: Built) -> None:
    assert set(built.skipped) == {"intel-cpu"}
    assert "OpenVINO" in built.skipped["intel-cpu"]
    assert "ai.onnx.ml" in built.skipped["intel-cpu"]


def test_check_says_so_before_any_work(models: Path, name: str) -> None:
    model = models / "tabular_sklearn" / f"{name}.onnx"
    report = check_model(model, load_target("intel-cpu"))
    assert report.decided_by == "converter"
    assert {entry.domain for entry in report.refused} == {"ai.onnx.ml"}
    assert check_model(model, load_target("cpu-x86_64")).can_compile
