"""``edgec run``: inputs of every form in, results of every form out, and wrong usage."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgec.artifact import EngineSpec, Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Decode, Dtype, Layout, Resize, Softmax, TopK
from edgec.cli import main_group
from edgec.errors import ArtifactError, DataError, EdgecError, OutputError
from edgec.runtime import load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, ["run", *map(str, arguments)])


def failure(*arguments: str | Path) -> BaseException:
    """Return the error that ends the command with one line and exit status 1."""
    result = edgec(*arguments)
    assert isinstance(result.exception, EdgecError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pipeline = Pipeline(postprocess=(Softmax(), TopK(k=2)), labels=("ant", "bee", "cat"))
    return tiny_artifact(tmp_path / "tiny.edgec", pipeline=pipeline)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=np.arange(5) % 3)
    return tmp_path / "data.npz"


def test_json_has_its_public_shape(path: Path, data: Path) -> None:
    result = edgec(path, "--input", data, "--json")
    assert result.exit_code == 0, result.output
    shape = json.loads(result.stdout)
    assert set(shape) == {
        "artifact", "engine", "engine_version", "state", "call", "samples", "seconds", "output", "results",
    }  # fmt: skip
    assert (shape["engine"], shape["state"], shape["call"], shape["samples"]) == (
        "onnxruntime",
        "ready",
        "predict",
        5,
    )
    assert shape["output"] is None
    first = shape["results"][0]
    assert set(first) == {"name", "classes", "scores", "labels"}
    assert first["labels"][0] == ("ant", "bee", "cat")[first["classes"][0]]


def test_results_are_those_of_the_session(path: Path, data: Path, tmp_path: Path) -> None:
    assert edgec(path, "-i", data, "-o", tmp_path / "out.npz").exit_code == 0
    with load(path) as session, np.load(data) as arrays, np.load(tmp_path / "out.npz") as out:
        assert out["names"].tolist() == ["0", "1", "2", "3", "4"]
        for i, x in enumerate(arrays["x"]):
            np.testing.assert_array_equal(out["scores"][i], session.predict(x)["scores"])


def test_raw_gives_bare_tensors(path: Path, data: Path, tmp_path: Path) -> None:
    assert edgec(path, "-i", data, "--raw", "-o", tmp_path / "out.npz").exit_code == 0
    with load(path) as session, np.load(data) as arrays, np.load(tmp_path / "out.npz") as out:
        assert set(out) == {"names", "y"}
        np.testing.assert_array_equal(out["y"][3], session.run({"x": arrays["x"][3:4]})["y"])


def test_csv_and_json_files_are_written(path: Path, data: Path, tmp_path: Path) -> None:
    result = edgec(path, "-i", data, "-o", tmp_path / "out.csv")
    assert "5 samples in " in result.stdout
    assert f"results in {tmp_path / 'out.csv'}" in result.stdout
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert list(rows[0]) == ["name", "rank", "class", "label", "score"]
    assert edgec(path, "-i", data, "-o", tmp_path / "out.json", "--json").exit_code == 0
    assert len(json.loads((tmp_path / "out.json").read_text())) == 5


def test_with_an_output_file_json_has_no_results(path: Path, data: Path, tmp_path: Path) -> None:
    shape = json.loads(edgec(path, "-i", data, "-o", tmp_path / "out.json", "--json").stdout)
    assert shape["output"] == str(tmp_path / "out.json")
    assert "results" not in shape


def test_text_is_for_people(path: Path, data: Path) -> None:
    lines = edgec(path, "-i", data).stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("0: ")
    assert lines[-1].startswith("5 samples in ")


def test_several_inputs_are_told_apart(path: Path, data: Path) -> None:
    shape = json.loads(edgec(path, "-i", data, "-i", data, "--json").stdout)
    assert shape["samples"] == 10
    assert [row["name"] for row in shape["results"]][4:6] == [f"{data}: 4", f"{data}: 0"]


def test_a_fallback_is_said(tmp_path: Path, data: Path) -> None:
    engine = EngineSpec(
        name="tensorrt", version=">=10", device="GPU", precision="fp16", files=("model.onnx",)
    )
    path = tiny_artifact(tmp_path / "jetson.edgec", engine=engine, fallback=onnxruntime_spec())
    assert "(fallback)" in edgec(path, "-i", data).stdout
    assert json.loads(edgec(path, "-i", data, "--json").stdout)["state"] == "fallback"


def test_a_single_image_is_a_sample(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv")
    inputs, outputs = (
        (TensorSpec("image", "float32", (1, 1, 4, 4)),),
        (TensorSpec("mean", "float32", (1, 1, 1, 1)),),
    )
    steps = (Decode(color="GRAY"), Resize(width=4, height=4), Layout(order="NCHW"), Dtype(to="float32"))
    manifest = Manifest(
        model="mean",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
        pipeline=Pipeline(preprocess=steps),
    )
    members = onnx_members([Node("GlobalAveragePool", ["image"], ["mean"])], inputs, outputs)
    path = pack(tmp_path / "mean.edgec", manifest, members)
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 7, np.uint8))
    result = edgec(path, "-i", tmp_path / "grey.png", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["results"] == [{"name": "grey.png", "mean": [[[[7.0]]]]}]


# Wrong usage and bad input


def test_nothing_to_run_on_is_wrong_usage(path: Path) -> None:
    result = edgec(path)
    assert result.exit_code == 2
    assert "give --input DATA or --text TEXT" in result.output


def test_raw_text_is_wrong_usage(path: Path) -> None:
    assert edgec(path, "--raw", "--text", "hello").exit_code == 2


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_an_output_of_another_form_is_wrong_usage(path: Path, data: Path, name: str) -> None:
    result = edgec(path, "-i", data, "-o", name)
    assert result.exit_code == 2
    assert "ends in .npz, .json, .csv" in result.output


def test_zero_threads_are_wrong_usage(path: Path, data: Path) -> None:
    assert edgec(path, "-i", data, "--threads", "0").exit_code == 2


def test_missing_data_is_refused(path: Path, tmp_path: Path) -> None:
    assert isinstance(failure(path, "-i", tmp_path / "missing.npz"), DataError)


def test_a_missing_artifact_is_refused(data: Path, tmp_path: Path) -> None:
    assert isinstance(failure(tmp_path / "missing.edgec", "-i", data), ArtifactError)


def test_data_of_other_names_is_refused(path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", image=np.zeros((2, 4), np.float32))
    assert "'x'" in str(failure(path, "-i", tmp_path / "other.npz"))


def test_a_place_that_cannot_be_written_is_refused(path: Path, data: Path, tmp_path: Path) -> None:
    error = failure(path, "-i", data, "-o", tmp_path / "missing" / "out.csv")
    assert isinstance(error, OutputError)
    assert list(tmp_path.glob("**/*.partial")) == []
