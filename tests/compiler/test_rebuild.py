"""Rebuilds: the same build again, and what is said of the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from tests.compiler.networks import cnn, model_of

from edgec.artifact import Artifact, Budgets, Manifest, TensorSpec, pack
from edgec.cli import main_group
from edgec.compiler import CompileOptions, compile_model, open_source, rebuild
from edgec.compiler.difference import compare_builds
from edgec.errors import ArtifactError, DataError, EdgecError, ModelError, OutputError
from edgec.evaluation import open_dataset
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact

OPTIONS = CompileOptions(precision="fp32", measure_s=0.05, workers=0, max_drop=0.02, name="eyes", version="3")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its data, and its artifact."""
    folder = tmp_path_factory.mktemp("rebuild")
    (folder / "cnn.onnx").write_bytes(cnn().SerializeToString())
    rng = np.random.default_rng(3)
    images = rng.standard_normal((40, 1, 3, 16, 16)).astype(np.float32)
    with open_source(folder / "cnn.onnx") as program:
        labels = [int(program.run({"image": image})["scores"].argmax()) for image in images]
    np.savez(folder / "calibration.npz", image=images[:8])
    np.savez(folder / "evaluation.npz", image=images, labels=labels)
    compile_model(
        folder / "cnn.onnx",
        ["cpu-x86_64"],
        folder,
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
        metric="top1",
        options=OPTIONS,
    )
    return folder


def original(folder: Path) -> Path:
    return folder / "eyes-cpu-x86_64.edgec"


def repacked(
    path: Path, to: Path, change: Callable[[Manifest], Manifest], report: Mapping[str, Any] | None = None
) -> Path:
    """Pack an artifact again with another manifest."""
    with Artifact.open(path) as artifact:
        members = {n: artifact.read(n) for n in artifact.names() if n not in ("report.json", "manifest.json")}
        kept = artifact.report if report is None else report
        return pack(to, change(replace(artifact.manifest, members={})), members, kept)


def provenance(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, provenance={**manifest.provenance, **changes})


@pytest.mark.slow
def test_the_same_tools_give_the_same_artifact(built: Path, tmp_path: Path) -> None:
    found = rebuild(original(built), tmp_path / "new", compare=True, workers=0)
    assert found.same_content
    assert found.changed_tools == {}
    assert found.target_changes == ()
    assert found.recipes == ("fp32", "fp32")
    assert found.difference is not None
    assert [o.max_abs_error for o in found.difference.outputs] == [0]
    assert found.difference.accuracy is not None
    assert found.difference.accuracy.metric == "top1"
    assert found.difference.accuracy.paired.difference == 0
    assert found.difference.accuracy.paired.n == 40
    assert found.difference.accuracy.paired.max_drop == 0.02
    assert found.difference.latency is not None
    assert found.difference.latency.call == "run"
    with Artifact.open(found.artifact) as artifact:
        assert (artifact.manifest.model, artifact.manifest.model_version) == ("eyes", "3")


def test_tools_that_changed_are_named(built: Path, tmp_path: Path) -> None:
    with Artifact.open(original(built)) as artifact:
        tools = dict(artifact.manifest.provenance["toolchain"])
    tools["packages"] = {**tools["packages"], "onnxruntime": "1.0", "gone": "7"}
    del tools["packages"]["onnx"]
    path = repacked(original(built), tmp_path / "old.edgec", provenance(toolchain=tools))
    found = rebuild(path, tmp_path / "new", workers=0)
    assert found.changed_tools.keys() == {"onnxruntime", "gone", "onnx"}
    assert found.changed_tools["gone"] == ("7", None)
    assert found.changed_tools["onnx"][0] is None
    assert not found.same_content
    assert found.difference is None


def test_the_target_is_the_one_in_the_artifact(built: Path, tmp_path: Path) -> None:
    with Artifact.open(original(built)) as artifact:
        target = {**artifact.manifest.provenance["target"], "memory_mib": 77}
    path = repacked(original(built), tmp_path / "old.edgec", provenance(target=target))
    found = rebuild(path, tmp_path / "new", workers=0)
    assert found.target_changes == ("memory_mib",)
    with Artifact.open(found.artifact) as artifact:
        assert artifact.manifest.provenance["target"]["memory_mib"] == 77


def test_what_is_beside_the_artifact_is_found(built: Path, tmp_path: Path) -> None:
    with Artifact.open(original(built)) as artifact:
        report: Any = json.loads(json.dumps(artifact.report))
    report["model"]["file"] = "/nowhere/cnn.onnx"
    for what in ("calibration", "evaluation"):
        report["data"][what]["source"] = f"/nowhere/{what}.npz"
    path = repacked(original(built), built / "moved.edgec", lambda m: m, report)
    assert rebuild(path, tmp_path, workers=0).same_content


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": "other.onnx"}, ModelError, "is not the model of the artifact"),
        ({"source": "nowhere.onnx"}, ModelError, "say with --source"),
        ({"calibration": "evaluation.npz"}, DataError, "is not the calibration data of the artifact"),
        ({"evaluation": "relabelled.npz"}, DataError, "is not the evaluation data of the artifact"),
        ({"metric": "top5"}, DataError, "held to top1"),
        ({"output": "."}, OutputError, "would be overwritten"),
    ],
)
def test_another_model_or_other_data_is_refused(
    built: Path, change: dict[str, str], error: type[EdgecError], message: str
) -> None:
    other = cnn()
    other.producer_name = "somebody else"
    (built / "other.onnx").write_bytes(other.SerializeToString())
    with np.load(built / "evaluation.npz") as data:
        np.savez(built / "relabelled.npz", image=data["image"], labels=(data["labels"] + 1) % 5)
    paths: dict[str, Any] = {k: v if k == "metric" else built / v for k, v in change.items()}
    with pytest.raises(error, match=message):
        rebuild(original(built), paths.pop("output", built / "new"), workers=0, **paths)


def test_an_artifact_names_no_code_to_import(built: Path, tmp_path: Path) -> None:
    with Artifact.open(original(built)) as artifact:
        report: Any = json.loads(json.dumps(artifact.report))
    report["data"]["calibration"]["source"] = "antigravity:fly"
    path = repacked(original(built), tmp_path / "evil.edgec", lambda m: m, report)
    with pytest.raises(DataError, match="say with --calibration"):
        rebuild(path, tmp_path / "new", source=built / "cnn.onnx", workers=0)


@pytest.mark.slow
def test_files_of_the_pipeline_come_from_the_artifact(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "hot": 1, "cold": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    for name, text in {
        "tokenizer.json": words.to_str(),
        "pipeline.toml": '[[preprocess]]\nstep = "tokenize"\nfile = "tokenizer.json"\n',
        "texts.jsonl": '{"text": "hot cold"}\n{"text": "cold and cold"}\n',
    }.items():
        (tmp_path / name).write_text(text)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], "embed"),
        helper.make_node("ReduceMean", ["words"], ["embedding"], "mean", axes=[1], keepdims=0),
    ]
    table = {"table": np.random.default_rng(0).random((3, 8), np.float32)}
    model = model_of(nodes, {"input_ids": [1, "n"]}, ["embedding"], table, input_type=onnx.TensorProto.INT64)
    (tmp_path / "words.onnx").write_bytes(model.SerializeToString())
    (path,) = compile_model(
        tmp_path / "words.onnx",
        ["cpu-x86_64"],
        tmp_path,
        pipeline=tmp_path / "pipeline.toml",
        calibration=tmp_path / "texts.jsonl",
        options=replace(OPTIONS, name=None),
    ).artifacts
    (tmp_path / "tokenizer.json").unlink()
    found = rebuild(path, tmp_path / "new", compare=True, workers=0)
    assert found.same_content
    assert found.difference is not None
    assert found.difference.inputs == f"2 of {tmp_path / 'texts.jsonl'}"


def test_an_artifact_without_a_lock_cannot_be_rebuilt(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not say how to build it again"):
        rebuild(tiny_artifact(tmp_path / "tiny.edgec"), tmp_path / "new")


def scaling(path: Path, factor: float, nodes: int = 1, **changes: Any) -> Path:
    """Pack an artifact for ``y = x * factor ** nodes``."""
    inputs = (TensorSpec("x", "float32", (1, 4096)),)
    outputs = (TensorSpec("y", "float32", (1, 4096)),)
    names = ["x", *(f"t{i}" for i in range(nodes - 1)), "y"]
    chain = [Node("Pow", [names[i], "f"], [names[i + 1]]) for i in range(nodes)]
    manifest = Manifest(
        model="scaling",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
        budgets=Budgets(max_drop=0.01),
    )
    members = onnx_members(chain, inputs, outputs, {"f": np.array([factor], np.float32)})
    return pack(path, replace(manifest, **changes), members)


def test_outputs_that_changed_are_worse_without_labels(tmp_path: Path) -> None:
    a, b = scaling(tmp_path / "a.edgec", 1.0), scaling(tmp_path / "b.edgec", 2.0)
    found = compare_builds(a, b, duration_s=0.05, max_slowdown=1e9)
    assert len(found.worse) == 1
    assert found.worse[0].startswith("output y has SNR ")
    assert found.inputs == "8 synthetic inputs, seed 0"


def test_a_gate_that_was_off_stays_off(tmp_path: Path) -> None:
    a = scaling(tmp_path / "a.edgec", 1.0, budgets=Budgets())
    b = scaling(tmp_path / "b.edgec", 2.0, budgets=Budgets())
    assert compare_builds(a, b, duration_s=0.05, max_slowdown=1e9).worse == ()


def test_a_significant_slowdown_is_worse(tmp_path: Path) -> None:
    a, b = scaling(tmp_path / "a.edgec", 1.0), scaling(tmp_path / "b.edgec", 1.0, nodes=60)
    found = compare_builds(a, b, duration_s=0.2)
    assert found.latency is not None
    assert found.latency.significant
    assert len(found.worse) == 1
    assert "1.05x is allowed" in found.worse[0]
    back = compare_builds(b, a, duration_s=0.2)
    assert back.latency is not None
    assert back.latency.significant
    assert back.worse == ()


def test_accuracy_that_fell_beyond_the_budget_is_worse(tmp_path: Path) -> None:
    a, b = scaling(tmp_path / "a.edgec", 1.0), scaling(tmp_path / "b.edgec", -1.0)
    rng = np.random.default_rng(0)
    x = rng.random((60, 1, 4096)).astype(np.float32) + 0.5
    np.savez(tmp_path / "data.npz", x=x, labels=x[:, 0].argmax(-1))
    data = open_dataset(tmp_path / "data.npz", inputs=(TensorSpec("x", "float32", (1, 4096)),))
    found = compare_builds(a, b, labelled=data, metric="top1", duration_s=0.05, max_slowdown=1e9)
    assert found.accuracy is not None
    assert (found.accuracy.before.value, found.accuracy.after.value) == (1.0, 0.0)
    assert found.accuracy.paired.verdict == "fail"
    assert found.worse[0].startswith("top1 fell by 100.00%")


def edgec(*arguments: object) -> Result:
    return CliRunner().invoke(main_group, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_line_says_what_changed(built: Path, tmp_path: Path) -> None:
    result = edgec(
        "rebuild",
        original(built),
        "-o",
        tmp_path,
        "--compare",
        "--max-slowdown",
        "none",
        "--workers",
        0,
        "-q",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "original", "rebuilt", "content", "recipe", "tools", "outputs", "on", "accuracy", "size", "latency",
        "verdict",
    ]  # fmt: skip


@pytest.mark.slow
def test_machines_see_it_and_the_exit_status_says_worse(built: Path, tmp_path: Path) -> None:
    # An artifact whose payload is another model's: its rebuild computes something else.
    other = cnn()
    for tensor in other.graph.initializer:
        if tensor.name in ("w3", "b3"):
            tensor.raw_data = (-np.frombuffer(tensor.raw_data, np.float32)).tobytes()
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    mine, theirs = (
        compile_model(model, ["cpu-x86_64"], tmp_path / model.stem, options=OPTIONS).artifacts[0]
        for model in (built / "cnn.onnx", tmp_path / "other.onnx")
    )
    with Artifact.open(mine) as artifact:
        facts, report = artifact.manifest.provenance, artifact.report
    forged = repacked(theirs, tmp_path / "forged.edgec", provenance(**facts), report)
    result = edgec("rebuild", forged, "-o", tmp_path / "new", "--compare", "--workers", 0, "-q", "--json")
    assert result.exit_code == 1
    shape = json.loads(result.stdout)
    assert shape.keys() == {
        "original", "artifact", "same_content", "content_digests", "recipes", "tools", "target_changes",
        "difference",
    }  # fmt: skip
    assert not shape["same_content"]
    difference = shape["difference"]
    assert difference.keys() == {
        "inputs", "outputs", "accuracy", "size_bytes", "precision", "latency", "not_compared", "worse",
    }  # fmt: skip
    assert not difference["outputs"][0]["identical"]
    assert difference["latency"].keys() >= {"ratio", "ci95", "significant", "before_ms", "after_ms"}
    assert difference["worse"]


def test_the_lock_is_what_pip_takes(built: Path) -> None:
    lines = edgec("rebuild", original(built), "--lock").stdout.splitlines()
    assert lines[0].startswith("# Python 3.")
    assert all(line.count("==") == 1 for line in lines[1:])
    assert any(line.startswith("onnxruntime==") for line in lines)
    shape = json.loads(edgec("rebuild", original(built), "--lock", "--json").stdout)
    assert shape.keys() == {"python", "arch", "packages"}
