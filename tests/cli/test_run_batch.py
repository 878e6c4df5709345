"""``edgec run --output``: killed and resumed, past samples that fail, several at a time, drawn on images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Decode, Dtype, Layout, Resize
from edgec.cli import main_group
from edgec.errors import OutputError
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["run", *map(str, arguments)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


def vectors(path: Path, n: int) -> Path:
    np.savez(path, x=np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32))
    return path


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(path: Path, tmp_path: Path) -> None:
    n = 20_000
    data, out = vectors(tmp_path / "data.npz", n), tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.journal"
    options = ["-i", str(data), "-o", str(out), "--jobs", "2"]
    command = [sys.executable, "-m", "edgec.cli", "run", str(path), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 20_000) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    lines = journal.read_bytes().splitlines(keepends=True)
    finished = sum(line.endswith(b"\n") for line in lines) - 1
    assert 20 < finished < n
    # A finished row that nobody computes again can be told by what it was changed to; so can a torn one.
    row = json.loads(lines[5])
    row["values"] = {"y": "kept"}
    lines[5] = json.dumps(row).encode() + b"\n"
    journal.write_bytes(b"".join(lines[: finished + 1]) + b'{"index": 3, "na')
    result = edgec("-i", data, "-o", out, "--jobs", "2", "--json", path)
    shape = json.loads(result.stdout)
    assert (shape["samples"], shape["resumed"], shape["failed"]) == (n, finished, [])
    assert [r["name"] for r in rows(out)] == [str(i) for i in range(n)]
    assert [r["name"] for r in rows(out) if r["y"] == "kept"] == [row["name"]]
    assert not journal.exists()


def classifier(path: Path) -> Path:
    """Pack a segmentation of images: each pixel's class is 0 where it is dark, 1 where it is bright."""
    inputs = (TensorSpec("image", "float32", (1, 1, 8, 8)),)
    outputs = (TensorSpec("classes", "int32", (1, 1, 8, 8)),)
    steps = (Decode(color="GRAY"), Resize(width=8, height=8), Layout(order="NCHW"), Dtype(to="float32"))
    members = onnx_members(
        [Node("Greater", ["image", "half"], ["bright"]), Node("Cast", ["bright"], ["classes"], {"to": 6})],
        inputs, outputs, {"half": np.array(127, np.float32)},
    )  # fmt: skip
    manifest = Manifest(
        model="bright", model_version="1", target="cpu-x86_64", engine=onnxruntime_spec(weights=False),
        inputs=inputs, outputs=outputs, pipeline=Pipeline(preprocess=steps),
    )  # fmt: skip
    return pack(path, manifest, members)


def test_a_damaged_file_does_not_stop_the_run_and_is_tried_again(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv")
    path, folder, out = classifier(tmp_path / "bright.edgec"), tmp_path / "images", tmp_path / "out.jsonl"
    folder.mkdir()
    for name in "abc":
        cv2.imwrite(str(folder / f"{name}.png"), np.full((8, 8), 200, np.uint8))
    (folder / "b.png").write_bytes(b"no image")
    result = edgec(path, "-i", folder, "-o", out, "--jobs", "2")
    assert result.exit_code == 1
    assert "failed: b.png: " in result.stderr
    assert [(r["name"], "error" in r) for r in rows(out)] == [("a.png", 0), ("c.png", 0), ("b.png", 1)]
    cv2.imwrite(str(folder / "b.png"), np.zeros((8, 8), np.uint8))
    result = edgec(path, "-i", folder, "-o", out, "--json")
    shape = json.loads(result.stdout)
    assert (result.exit_code, shape["samples"], shape["resumed"], shape["failed"]) == (0, 3, 2, [])
    assert [r["name"] for r in rows(out)] == ["a.png", "b.png", "c.png"]


def test_what_the_model_does_not_take_is_wrong_usage(tmp_path: Path) -> None:
    path, texts = classifier(tmp_path / "bright.edgec"), tmp_path / "texts.jsonl"
    texts.write_text('{"text": "secret.png"}\n')
    for arguments in (["--text", "secret.png"], ["-i", texts]):
        result = edgec(path, *arguments)
        assert result.exit_code == 2
        assert "takes images" in result.stderr
    result = edgec(path, "-i", tmp_path, "--raw")
    assert result.exit_code == 2
    assert "--raw takes tensors" in result.stderr


def test_a_prediction_that_cannot_be_drawn_is_said(path: Path, tmp_path: Path) -> None:
    data = vectors(tmp_path / "data.npz", 3)
    result = edgec(path, "-i", data, "-o", tmp_path / "out.csv", "--annotate", tmp_path / "drawn")
    assert result.exit_code == 0
    assert "0 images annotated: only boxes and maps of classes are drawn" in result.stdout


def test_another_run_does_not_take_over_a_journal(path: Path, tmp_path: Path) -> None:
    data, out = vectors(tmp_path / "data.npz", 3), tmp_path / "out.csv"
    (tmp_path / "out.csv.journal").write_text('{"format": "edgec run journal 1", "artifact": "other"}\n')
    error = edgec(path, "-i", data, "-o", out).exception
    assert isinstance(error, OutputError)
    assert "another run" in str(error)
    (tmp_path / "out.csv.journal").write_text("x\n")
    assert isinstance(edgec(path, "-i", data, "-o", out).exception, OutputError)


def test_results_in_parquet(path: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    data, out = vectors(tmp_path / "data.npz", 3), tmp_path / "out.parquet"
    result = edgec(path, "-i", data, "-o", out)
    assert result.exit_code == 0, result.output
    table = parquet.read_table(out)
    assert table.column("name").to_pylist() == ["0", "1", "2"]
    assert np.shape(table.column("y").to_pylist()) == (3, 1, 3)


@pytest.mark.parametrize("arguments", [["--jobs", "2"], ["--annotate", "x"]])
def test_wrong_usage(path: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert edgec(path, "-i", vectors(tmp_path / "data.npz", 1), *arguments).exit_code == 2


def test_maps_of_classes_are_drawn(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv")
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, 8:] = 255
    cv2.imwrite(str(tmp_path / "half.png"), picture)
    arguments = ("-i", tmp_path / "half.png", "-o", tmp_path / "out.npz", "--annotate", tmp_path / "drawn")
    result = edgec(classifier(tmp_path / "bright.edgec"), *arguments)
    assert result.exit_code == 0, result.output
    assert "1 images annotated" in result.stdout
    drawn = cv2.imread(str(tmp_path / "drawn" / "half.png"))
    assert (drawn[:, :8] == 0).all()
    assert (drawn[:, 8:] != 255).any()
