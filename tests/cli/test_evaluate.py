"""``edgec evaluate``: what it prints, for people and machines, and when it refuses."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgec.artifact import Pipeline
from edgec.artifact.steps import Embedding, TopK
from edgec.cli import _progress, main_group
from edgec.cli._metrics import METRICS as OFFERED
from edgec.errors import DataError, EdgecError
from edgec.evaluation import METRICS
from edgec.runtime import load
from edgec.runtime.testing import tiny_artifact


def edgec(*arguments: object) -> Result:
    return CliRunner().invoke(main_group, [str(argument) for argument in arguments])


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


@pytest.fixture
def data(tmp_path: Path, artifact: Path) -> Path:
    """Forty inputs with the model's own answers as labels, the last ten made wrong."""
    x = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    with load(artifact) as session:
        labels = np.array([session.run({"x": row[None]})["y"].argmax() for row in x])
    labels[30:] = (labels[30:] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    return tmp_path / "data.npz"


def test_people_see_score_interval_data_and_engine(artifact: Path, data: Path) -> None:
    result = edgec("evaluate", artifact, "--data", data, "--metric", "top1")
    assert result.exit_code == 0
    score, source, ran = result.stdout.splitlines()
    assert score == "top1  0.75, 95 % interval 0.5981 .. 0.8581 (fraction, higher is better)"
    assert source.startswith(f"data  {data}, 40 samples in ")
    assert ran.startswith(f"ran   {artifact} on onnxruntime ")
    assert ran.endswith(" in fp32")


def test_machines_see_all_of_it(artifact: Path, data: Path) -> None:
    result = edgec("evaluate", artifact, "--data", data, "-m", "top1", "--limit", 20, "--json")
    shape = json.loads(result.stdout)
    assert shape.keys() == {
        "artifact", "metric", "value", "ci95", "samples", "unit", "higher_is_better", "data", "seconds",
    }  # fmt: skip
    assert shape["artifact"].keys() == {"path", "engine", "engine_version", "precision", "state"}
    assert (shape["artifact"]["path"], shape["artifact"]["state"]) == (str(artifact), "ready")
    assert (shape["metric"], shape["value"], shape["samples"]) == ("top1", 0.75, 20)
    assert shape["ci95"] == pytest.approx([0.531299, 0.888138], abs=1e-6)
    assert (shape["unit"], shape["higher_is_better"]) == ("fraction", True)
    assert shape["data"].keys() == {"source", "sha256", "samples", "notes"}
    assert (shape["data"]["source"], shape["data"]["samples"], shape["data"]["notes"]) == (str(data), 40, [])
    assert len(shape["data"]["sha256"]) == 64


def test_what_was_converted_is_said(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "doubles.npz"
    np.savez(path, x=np.zeros((2, 4)), labels=np.zeros(2, int))
    text = edgec("evaluate", artifact, "--data", path, "-m", "top1").stdout
    assert "x: float64 read as float32 (rounded)" in text
    shape = json.loads(edgec("evaluate", artifact, "--data", path, "-m", "top1", "--json").stdout)
    assert shape["data"]["notes"] == ["x: float64 read as float32 (rounded)"]


def test_what_is_infinite_is_null_for_machines(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, x=np.zeros((1, 4), np.float32), labels=np.zeros((1, 3)))
    shape = json.loads(edgec("evaluate", artifact, "--data", path, "-m", "mse", "--json").stdout)
    assert shape["ci95"] == [0.0, None]


def test_images_are_scored_with_labels_from_a_file(tmp_path: Path) -> None:
    import cv2

    from edgec.artifact.steps import Decode, Dtype, Layout, Reshape, Resize

    pipeline = Pipeline(
        preprocess=(
            Decode(color="GRAY"),
            Resize(width=2, height=2),
            Layout(order="CHW"),
            Dtype(to="float32"),
            Reshape(shape=(1, 4)),
        ),
        postprocess=(TopK(k=3),),
        labels=("a", "b", "c"),
    )
    artifact = tiny_artifact(tmp_path / "images.edgec", pipeline=pipeline)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((4, 4), 80 * i + 9, np.uint8))
    with load(artifact) as session:
        best = [session.predict(folder / f"{i}.png")["labels"][0] for i in range(3)]
    labels = tmp_path / "truth.csv"
    labels.write_text("file,label\n" + "".join(f"{i}.png,{name}\n" for i, name in enumerate(best)))
    result = edgec("evaluate", artifact, "--data", folder, "--labels", labels, "-m", "top1", "--json")
    assert json.loads(result.stdout)["value"] == 1.0


def test_pairs_of_texts_are_not_for_a_model_of_numbers(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text_a,text_b,score\na,b,1\nc,d,2\n")
    result = edgec("evaluate", artifact, "--data", path, "-m", "spearman")
    assert isinstance(result.exception, EdgecError)


def test_an_embedding_has_no_class(tmp_path: Path, data: Path) -> None:
    artifact = tiny_artifact(tmp_path / "e.edgec", pipeline=Pipeline(postprocess=(Embedding(),)))
    result = edgec("evaluate", artifact, "--data", data, "-m", "top1")
    assert isinstance(result.exception, DataError)
    assert "metric top1 needs" in str(result.exception)


def test_a_source_model_is_scored_for_comparison(tmp_path: Path, artifact: Path, data: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra compiler")
    from edgec.artifact import Artifact

    with Artifact.open(artifact) as opened:
        opened.extract(tmp_path / "source", ["model.onnx", "weights.bin"])
    source = tmp_path / "source" / "model.onnx"
    onnx.checker.check_model(str(source))
    shape = json.loads(edgec("evaluate", source, "--data", data, "-m", "top1", "--json").stdout)
    assert shape["value"] == 0.75
    assert shape["artifact"]["state"] == "source"
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text('labels = ["a", "b", "c"]\n[[postprocess]]\nstep = "top_k"\nk = 2\n')
    result = edgec("evaluate", source, "-p", pipeline, "--data", data, "-m", "top1", "--json")
    assert json.loads(result.stdout)["value"] == 0.75
    result = edgec("evaluate", source, "--data", data, "-m", "top1", "--threads", 2)
    assert result.exit_code == 2
    assert "--threads is for artifacts" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--data'"),
        (["--data", "x.npz"], "Missing option '--metric'"),
        (["--data", "x.npz", "-m", "top2"], "'top2' is not one of 'top1', 'top5'"),
        (["--data", "x.npz", "-m", "top1", "--limit", 0], "0 is not in the range"),
        (["--data", "x.npz", "-m", "top1", "-p", "p.toml"], "--pipeline is for an ONNX model"),
    ],
)
def test_wrong_usage_exits_with_2(artifact: Path, arguments: list[Any], message: str) -> None:
    result = edgec("evaluate", artifact, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_command_knows_every_metric() -> None:
    assert OFFERED == METRICS


def run_edgec(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgec.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_bad_data_is_one_line_and_exit_1(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((2, 4), np.float32))
    result = run_edgec("evaluate", artifact, "--data", path, "-m", "top1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"edgec: error: {path} has no array 'labels', it has 'x': add one")
    assert result.stderr.count("\n") == 1


def test_help_imports_neither_numpy_nor_an_engine() -> None:
    code = "import sys, edgec.cli.evaluate, edgec.cli.compare; print({'numpy', 'cv2'} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert result.stdout.strip() == "set()"


# Progress


def test_long_work_tells_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    advance = _progress._Lines("evaluating", 100, clock=lambda: now)
    for _ in range(100):
        now += 0.25
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 20 of 100, about 20 s left",
        "evaluating: 60 of 100, about 10 s left",
    ]


def test_short_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.progress("evaluating", 3) as advance:
        for _ in range(3):
            advance()
    assert capsys.readouterr().err == ""
    assert math.isfinite(_progress._SILENT_S)
