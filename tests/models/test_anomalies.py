"""Autoencoders of the temperature of a machine (Numenta Anomaly Benchmark)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.models.conftest import TARGETS, Build, Built
from tests.models.sources import Source

from edgec.artifact import Pipeline
from edgec.artifact.steps import ReconstructionError
from edgec.evaluation import Dataset, evaluate, open_dataset
from edgec.runtime import load

pytestmark = [pytest.mark.models, pytest.mark.slow]

FOLDER = Path("nab_autoencoders")
PUBLISHED_AUC = {"dense": 0.778, "conv": 0.824}
PIPELINE = Pipeline(postprocess=(ReconstructionError(),))

Windows = dict[str, Dataset]


@pytest.fixture(scope="module")
def windows(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """2571 windows per model, labelled 1 where most of one lies in an anomaly."""
    folder, data = tmp_path_factory.mktemp("windows"), {}
    for kind in PUBLISHED_AUC:
        arrays = np.load(models / FOLDER / f"nab_machine_temp_{kind}_ae_test.npz")
        np.savez(folder / f"{kind}.npz", window=arrays["x"], labels=arrays["y"].astype(np.int64))
        data[kind] = open_dataset(folder / f"{kind}.npz", pipeline=PIPELINE, need_labels=True)
    return data


@pytest.fixture(scope="module")
def built(models: Path, build: Build) -> dict[str, Built]:
    return {
        kind: build(
            models / FOLDER / f"nab_machine_temp_{kind}_ae.onnx",
            pipeline=PIPELINE,
            shapes={"window": (1, 64)},
        )
        for kind in PUBLISHED_AUC
    }


@pytest.mark.parametrize("kind", PUBLISHED_AUC)
def test_source_reaches_its_published_auc(models: Path, windows: Windows, kind: str) -> None:
    source = Source(models / FOLDER / f"nab_machine_temp_{kind}_ae.onnx", PIPELINE)
    assert evaluate(source, windows[kind], "auc").score.value == pytest.approx(PUBLISHED_AUC[kind], abs=0.001)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", PUBLISHED_AUC)
def test_artifact_passes_parity_and_reaches_the_same_auc(
    built: dict[str, Built], windows: Windows, kind: str, target: str
) -> None:
    built[kind].assert_sound(target)
    with load(built[kind].artifacts[target]) as session:
        auc = evaluate(session, windows[kind], "auc").score.value
    assert auc == pytest.approx(PUBLISHED_AUC[kind], abs=0.001)
