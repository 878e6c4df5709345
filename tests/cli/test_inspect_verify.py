"""``edgec inspect`` and ``edgec verify``: what they print, for people and machines, and when they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tests.artifact.forge import ENVIRONMENT

from edgec.artifact import (
    GOLDEN,
    Artifact,
    Budgets,
    EngineSpec,
    GoldenVector,
    Manifest,
    Observation,
    Pipeline,
    Quantization,
    Scores,
    encode_golden,
    pack,
)
from edgec.artifact.steps import Softmax, TopK
from edgec.cli import main_group
from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    DigestMismatchError,
    InferenceError,
    SelfTestError,
)
from edgec.runtime.testing import tiny_artifact


def edgec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main_group, [str(argument) for argument in arguments])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


def changed(path: Path, *, report: dict[str, Any] | None = None, **members: bytes | None) -> Path:
    """Pack an artifact again with members changed, or left out where None; ``golden`` for short."""
    with Artifact.open(path) as artifact:
        kept = {name: artifact.read(name) for name in artifact.names() if name != "report.json"}
        manifest = artifact.manifest
    for name, data in members.items():
        name = GOLDEN if name == "golden" else name
        if data is None:
            del kept[name]
        else:
            kept[name] = data
    return pack(path, manifest, kept, report)


def with_manifest(path: Path, **fields: Any) -> Manifest:
    with Artifact.open(path) as artifact:
        kept = {name: artifact.read(name) for name in artifact.names()}
        manifest = replace(artifact.manifest, **fields)
    pack(path, manifest, kept)
    return manifest


# inspect


def test_inspect_tells_people_all_of_it(path: Path) -> None:
    with Artifact.open(path) as artifact:
        spec = artifact.manifest.outputs[0]
    with_manifest(
        path,
        model="a model",
        pipeline=Pipeline(postprocess=(Softmax(), TopK(k=2)), labels=("cat", "dog", "emu")),
        fallback=EngineSpec(
            name="onnxruntime", version="", device="CPU", precision="fp32", files=("model.onnx",)
        ),
        outputs=(replace(spec, quantization=Quantization((0.5,), (3,))),),
        budgets=Budgets(max_drop=0.01, latency_ms=2, memory_mib=64, size_bytes=5_000_000),
        reference={"y": {"0.99": 3.25, "0.01": -1.5}},
        input_reference={"x": {"mean": {"0.75": 0.5, "0.25": -0.25}}},
        observe=Observation(inputs={"x": ("mean", "std")}, scores=Scores(output="y", activation="softmax")),
        recipe={"workspace_mib": 512, "flags": []},
        provenance={"tools": {"onnx": "1.23"}, "seeds": list(range(20)), "synthetic": False, "data": None},
    )
    lines = edgec("inspect", path).output.splitlines()
    text = "\n".join(lines)
    assert lines[0] == "a model 1 for cpu-x86_64"
    for expected in [
        "  content   sha256:",
        "  engine    onnxruntime >=1.23, fp32 on CPU, from model.onnx, weights.bin",
        "  fallback  onnxruntime, fp32 on CPU, from model.onnx",
        "  held to   accuracy loss 1.00%, latency 2 ms, memory 64 MiB, size 5 MB",
        "  golden    2 vectors",
        "  watched   mean, std of x; confidence in y (softmax)",
        "\ninputs\n  x  float32[1, 4]\n     mean usually -0.25 (0.25), 0.5 (0.75)\n",
        "  y  float32[1, 3]    scale 0.5, zero point 3",
        "     golden vectors within 1e-05 (max_abs_error)",
        "     usually -1.5 (0.01), 3.25 (0.99)",
        "\npostprocess\n  softmax",
        "\nlabels\n  cat, dog, emu\n",
        "  weights.bin         76 bytes   at 4096  sha256 ",
        "\nrecipe\n  flags          none\n  workspace_mib  512\n",
        "  seeds      0, 1, 2, 3, 4, 5, 6, 7, ... (20 in all)",
        "  synthetic  no",
        "  tools\n    onnx     1.23",
        "  data       none",
    ]:
        assert expected in text


def test_inspect_tells_machines_all_of_it(path: Path) -> None:
    report = {"candidates": [{"p50": 1.5}], "decisions": ["int8 won"]}
    changed(path, report=report)
    shape = json.loads(edgec("inspect", path, "--json").output)
    assert list(shape) == [
        "path", "size_bytes", "content_digest", "manifest", "members", "golden_vectors", "report",
    ]  # fmt: skip
    with Artifact.open(path) as artifact:
        assert shape["path"] == str(path)
        assert shape["size_bytes"] == path.stat().st_size
        assert shape["content_digest"] == artifact.content_digest == shape["manifest"]["content_digest"]
        assert shape["manifest"]["model"] == "tiny"
        assert shape["golden_vectors"] == 2
        assert shape["report"] == report
        assert shape["members"][0] == {
            "name": "weights.bin",
            "offset": 4096,
            "size": 76,
            "sha256": artifact.manifest.members["weights.bin"].sha256,
        }
        assert [member["name"] for member in shape["members"]] == list(artifact.names())


def test_inspect_tells_people_what_the_report_has(path: Path) -> None:
    decisions = ["int8 was faster than fp32 by a factor of 2", "no"]
    changed(
        path, report={"candidates": [{"p50": 1.5}, {}], "passed": True, "decisions": decisions, "n": [1, 2]}
    )
    assert (
        "report\n"
        "  candidates\n"
        "    1\n"
        "      p50  1.5\n"
        "    2      none\n"
        "  decisions\n"
        "    1      int8 was faster than fp32 by a factor of 2\n"
        "    2      no\n"
        "  n        1, 2\n"
        "  passed   yes\n"
    ) in edgec("inspect", path).output


def test_text_from_an_artifact_cannot_command_the_terminal(path: Path) -> None:
    evil = "\x1b]0;owned\a\r\n\u202e\x9b31m"
    with_manifest(path, model=evil, model_version=evil, provenance={evil: [evil, {evil: evil}]})
    for arguments in (["inspect"], ["inspect", "--json"], ["verify"]):
        output = edgec(*arguments, path).output
        assert output.replace("\n", "").isprintable()
    assert r"\x1b]0;owned\x07\r\n\u202e\x9b31m" in edgec("inspect", path).output


def test_inspect_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08")
    result = edgec("inspect", tmp_path / "model.onnx")
    assert isinstance(result.exception, ArtifactError)
    run = subprocess.run(
        [sys.executable, "-m", "edgec.cli", "inspect", tmp_path / "model.onnx"],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith(f"edgec: error: {tmp_path}/model.onnx: not an edgec artifact")
    assert run.stderr.count("\n") == 1


# verify


def test_verify_runs_the_golden_vectors(path: Path) -> None:
    result = edgec("verify", path)
    assert result.exit_code == 0
    assert "digests  all 3 members right, " in result.output
    assert "engine   onnxruntime " in result.output
    assert "ran in   fp32; " in result.output
    assert "golden   y: 2 vectors within the tolerance of 1e-05, max abs error " in result.output


def test_verify_tells_machines(path: Path) -> None:
    shape = json.loads(edgec("verify", path, "--json").output)
    assert list(shape) == [
        "path", "size_bytes", "content_digest", "members", "golden_vectors", "self_test", "passed",
    ]  # fmt: skip
    assert list(shape["self_test"]) == [
        "passed", "engine", "engine_version", "state", "precision", "placement", "outputs",
    ]  # fmt: skip
    assert shape["passed"] is shape["self_test"]["passed"] is True
    assert shape["self_test"]["state"] == "ready"
    first = shape["self_test"]["outputs"][0]
    assert list(first) == [
        *("vector", "output", "max_abs_error", "tolerance", "rms_error", "rms_tolerance", "passed")
    ]
    assert 0 <= first["max_abs_error"] <= first["tolerance"] == 1e-5


def _wrong_golden(shape: tuple[int, int]) -> bytes:
    x = np.ones((1, 4), np.float32)
    return encode_golden([GoldenVector({"x": x}, {"y": np.full(shape, 1e3, np.float32)})])


def test_verify_fails_when_the_device_computes_something_else(path: Path) -> None:
    changed(path, golden=_wrong_golden((1, 3)))
    result = edgec("verify", path)
    assert result.exit_code == 1
    assert isinstance(result.exception, SelfTestError)
    assert "y differs from the golden vectors by more than the tolerance" in str(result.exception)
    assert "golden   y: 1 of 1 vectors outside the tolerance of 1e-05, max abs error 1e+03" in result.output
    assert edgec("verify", path, "--digests-only").exit_code == 0


def test_verify_tells_machines_what_failed(path: Path) -> None:
    changed(path, golden=_wrong_golden((1, 2)))
    result = edgec("verify", path, "--json")
    assert result.exit_code == 1
    shape = json.loads(result.stdout)
    assert shape["passed"] is shape["self_test"]["passed"] is False
    assert shape["self_test"]["outputs"] == [
        {
            "vector": 0,
            "output": "y",
            "max_abs_error": None,
            "tolerance": 1e-5,
            "rms_error": None,
            "rms_tolerance": None,
            "passed": False,
        }
    ]


@pytest.mark.parametrize("options", [[], ["--digests-only"], ["--json"]])
def test_verify_fails_when_a_byte_differs(options: list[str], path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096] ^= 1
    path.write_bytes(data)
    result = edgec("verify", path, *options)
    assert result.exit_code == 1
    assert result.output == ""
    assert isinstance(result.exception, DigestMismatchError)


def test_verify_says_when_nothing_was_run(path: Path) -> None:
    assert "golden   not run\n" in edgec("verify", path, "--digests-only").output
    assert json.loads(edgec("verify", path, "--digests-only", "--json").output)["self_test"] is None
    changed(path, golden=None)
    assert "the artifact has no golden vectors: nothing was run" in edgec("verify", path).output


def test_verify_says_which_engine_is_missing(path: Path) -> None:
    engine = EngineSpec(name="nosuch", version="", device="NPU", precision="int8", files=("model.onnx",))
    with_manifest(path, engine=engine)
    result = edgec("verify", path)
    assert result.exit_code == 1
    assert isinstance(result.exception, BackendUnavailableError)
    assert "'nosuch'" in str(result.exception)
    assert "the digests are right, but nothing was run (--digests-only" in str(result.exception)


def test_verify_says_that_the_fallback_ran(path: Path) -> None:
    engine = EngineSpec(name="nosuch", version="", device="NPU", precision="int8", files=("model.onnx",))
    with Artifact.open(path) as artifact:
        fallback = artifact.manifest.engine
    with_manifest(path, engine=engine, fallback=fallback)
    assert ", the declared fallback\n" in edgec("verify", path).output
    assert json.loads(edgec("verify", path, "--json").stdout)["self_test"]["state"] == "fallback"


@pytest.mark.parametrize(
    "words", [["verify"], ["run", "--input", "data.npz"], ["benchmark"], ["benchmark", "--sweep", "threads"]]
)
def test_the_users_delegate_is_what_is_loaded(words: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    spec = EngineSpec(name="litert", version="", device="NPU", precision="int8", files=("model.onnx",))
    path = tiny_artifact(tmp_path / "npu.edgec", engine=spec)
    none = edgec(words[0], path, *words[1:])
    assert isinstance(none.exception, BackendUnavailableError)
    assert "none was named" in str(none.exception)
    named = edgec(words[0], path, *words[1:], "--delegate", "/nowhere/libnpu.so")
    assert isinstance(named.exception, InferenceError)  # one was named, so that the file is looked at
    assert "is no TFLite file" in str(named.exception)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--repeats", "2"], ["--scenario", "offline"]])
def test_a_delegate_reaches_the_processes_that_measure(words: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    if "--scenario" in words:
        pytest.importorskip("mlperf_loadgen", reason="needs mlcommons-loadgen")
    spec = EngineSpec(name="litert", version="", device="NPU", precision="int8", files=("model.onnx",))
    path = tiny_artifact(tmp_path / "npu.edgec", engine=spec)
    assert "none was named" in str(edgec("benchmark", path, *words).exception)
    named = edgec("benchmark", path, *words, "--delegate", "/nowhere/libnpu.so")
    assert "is no TFLite file" in str(named.exception)


def test_verify_looks_for_engines_where_it_is_told(path: Path, tmp_path: Path) -> None:
    # ONNX Runtime keeps nothing; that the option reaches the session is what a bad value shows.
    assert edgec("verify", path, "--cache-dir", tmp_path / "engines").exit_code == 0
    assert edgec("verify", path, "--cache-dir", path).exit_code == 2
