"""Whole builds on tiny models and real engines."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.compiler.networks import cnn, model_of

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.converters import Converted, Prepared
from edgec.compiler.converters.onnxruntime import OnnxRuntimeConverter
from edgec.compiler.environments._store import MARKER
from edgec.errors import (
    BudgetError,
    CompileError,
    DataError,
    OutputError,
    ParityError,
    UnknownTargetError,
    UnsupportedModelError,
)
from edgec.runtime import load
from edgec.targets import Engine, Target, load_target

FAST = CompileOptions(measure_s=0.05, workers=0)  # worker processes have tests of their own
FASTEST = replace(FAST, precision="fp32")  # where the precision does not matter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(cnn().SerializeToString())
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "calibration.npz"
    np.savez(path, image=rng.standard_normal((24, 1, 3, 16, 16)).astype(np.float32))
    return path


@pytest.mark.parametrize("target", ["cpu-x86_64", pytest.param("intel-cpu", marks=pytest.mark.slow)])
def test_an_artifact_is_proven_and_runs(model: Path, calibration: Path, tmp_path: Path, target: str) -> None:
    options = CompileOptions(measure_s=0.05)
    result = compile_model(model, [target], tmp_path / "out", calibration=calibration, options=options)
    (path,) = result.artifacts
    (info,) = result.report["artifacts"]
    assert path == tmp_path / "out" / f"cnn-{target}.edgec"
    assert {c["precision"] for c in info["candidates"] if c["status"] != "skipped"} >= {
        "fp32",
        "fp16",
        "int8",
    }
    assert [c["status"] for c in info["candidates"]].count("winner") == 1
    assert info["parity"] is not None
    assert info["parity"]["passed"]
    with load(path) as session:
        assert session.self_test().passed
        assert session.precision == info.get("effective_precision")
        assert session.manifest.observe.inputs == {"image": ("mean", "std")}
        observer = session.observe()
        outputs = session.run({"image": np.zeros((1, 3, 16, 16), np.float32)})
        assert outputs["scores"].shape == (1, 5)
        window = observer.take()
        assert window.outputs["scores"].count == 5  # between the quantiles that the build has measured
        assert window.inputs["image"]["mean"].count == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == [path.name]


def test_the_same_inputs_give_the_same_bytes_but_for_figures(
    model: Path, calibration: Path, tmp_path: Path
) -> None:
    artifacts = []
    for out in ("a", "b"):
        options = CompileOptions(measure_s=0.05, precision="fp32", workers=0)
        result = compile_model(
            model, ["cpu-x86_64"], tmp_path / out, calibration=calibration, options=options
        )
        artifacts.append(Artifact.open(result.artifacts[0]))
    first, second = artifacts
    assert first.content_digest == second.content_digest
    assert first.names() == second.names()
    for name in first.names():
        if name != "report.json":
            assert first.read(name) == second.read(name)
    for artifact in artifacts:
        artifact.close()


@pytest.mark.slow
def test_int8_payload_is_deterministic(model: Path, calibration: Path, tmp_path: Path) -> None:
    digests = set()
    for out in ("a", "b"):
        result = compile_model(
            model,
            ["intel-cpu"],
            tmp_path / out,
            calibration=calibration,
            options=CompileOptions(measure_s=0.05, precision="int8", max_drop=None, workers=0),
        )
        digests.add(
            (result.report["artifacts"][0]["precision"], result.report["artifacts"][0]["content_digest"])
        )
    assert len({d for _, d in digests}) == len({p for p, _ in digests})


def test_without_data_it_says_loudly_that_inputs_were_made_up(model: Path, tmp_path: Path) -> None:
    result = compile_model(model, ["cpu-x86_64"], tmp_path / "out", options=FASTEST)
    (info,) = result.report["artifacts"]
    assert "inputs were synthetic (image: standard normal, seed 0)" in info.get("warnings", [""])[0]


def test_overhead_is_at_most_64_kb(model: Path, calibration: Path, tmp_path: Path) -> None:
    result = compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=FASTEST)
    with Artifact.open(result.artifacts[0]) as artifact:
        files = (*artifact.manifest.engine.files, "golden.safetensors")
        payload = sum(artifact.manifest.members[name].size for name in files)
        assert artifact.size_bytes - payload <= 64_000


class _Broken(OnnxRuntimeConverter):
    """A converter that loses the bias of the second convolution."""

    def convert(self, prepared: Prepared, engine: Engine, target: Target, directory: Path) -> Converted:
        graph = onnx.ModelProto()
        graph.CopyFrom(prepared.model)
        for tensor in graph.graph.initializer:
            if tensor.name == "b2":
                value = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value * 0, "b2"))
        broken = Prepared(model=graph, precision=prepared.precision)
        return super().convert(broken, engine, target, directory)


def test_a_broken_converter_ships_nothing_and_the_tensor_is_named(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.compiler.converters.onnxruntime.OnnxRuntimeConverter", _Broken)
    options = CompileOptions(measure_s=0.05, precision="fp32", workers=0)
    with pytest.raises(ParityError, match="first diverging tensor: 'c2'"):
        compile_model(model, [one_engine()], tmp_path / "out", calibration=calibration, options=options)
    assert list((tmp_path / "out").iterdir()) == []


def one_engine() -> Target:
    """Return the target without the engines that compete with ONNX Runtime."""
    target = load_target("cpu-x86_64")
    return replace(target, engines=target.engines[:1])


def labelled(tmp_path: Path, n: int = 400) -> Path:
    """Return random images with the labels that the model itself gives in fp32."""
    from edgec.compiler.onnxruntime import ReferenceProgram

    rng = np.random.default_rng(5)
    images = rng.standard_normal((n, 1, 3, 16, 16)).astype(np.float32)
    with ReferenceProgram(cnn(), optimize=True) as program:
        labels = [int(np.argmax(program.run({"image": i})["scores"])) for i in images]
    path = tmp_path / "labelled.npz"
    np.savez(path, image=images, labels=np.array(labels))
    return path


def test_accuracy_is_held_to_the_budget(model: Path, calibration: Path, tmp_path: Path) -> None:
    result = compile_model(
        model,
        ["cpu-x86_64"],
        tmp_path / "out",
        calibration=calibration,
        evaluation=labelled(tmp_path),
        metric="top1",
        options=FAST,
    )
    (info,) = result.report["artifacts"]
    assert info["accuracy"] is not None
    assert info["accuracy"].get("source") == 1.0
    bounds = {
        c["precision"]: (c["status"], a.get("drop_bound"))
        for c in info["candidates"]
        if (a := c.get("accuracy"))
    }
    for status, bound in bounds.values():
        assert bound is not None
        assert (bound <= 0.01) == (status in ("winner", "admissible"))


def test_a_target_that_cannot_be_built_does_not_stop_the_others(
    model: Path, calibration: Path, tmp_path: Path
) -> None:
    cpu = load_target("cpu-x86_64")
    engine = replace(cpu.engines[0], name="vendor")
    unbuilt = replace(cpu, name="vendor-npu", family="vendor", engines=(engine,))
    result = compile_model(
        model, [unbuilt, "cpu-x86_64"], tmp_path / "out", calibration=calibration, options=FASTEST
    )
    assert [a["target"] for a in result.report["artifacts"]] == ["cpu-x86_64"]
    (skipped,) = result.report.get("skipped", [])
    assert skipped["target"] == "vendor-npu"
    assert "builds nothing for the engine 'vendor'" in skipped["reason"]


def test_an_operator_that_the_engine_lacks_is_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    path = tmp_path / "custom.onnx"
    custom = model_of([node], {"x": [1, 4]}, ["y"])
    custom.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4]))
    path.write_bytes(custom.SerializeToString())
    with pytest.raises(UnsupportedModelError, match="Frobnicate"):
        compile_model(path, ["cpu-x86_64"], tmp_path / "out", options=FAST)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"targets": []}, CompileError, "no target was given"),
        ({"targets": ["abacus"]}, UnknownTargetError, "unknown target 'abacus'"),
        ({"metric": "top1"}, DataError, "--metric needs --evaluation"),
        ({"options": CompileOptions(precision="bf16")}, CompileError, "does not run bf16"),
        ({"options": CompileOptions(shapes={"z": (1,)})}, CompileError, "no input 'z' to pin"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    arguments: dict[str, Any] = {"targets": ["cpu-x86_64"], "options": FAST, **changes}
    with pytest.raises(error, match=says):
        compile_model(model, arguments.pop("targets"), tmp_path / "out", **arguments)


def test_an_evaluation_set_without_labels_is_refused(model: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        compile_model(
            model, ["cpu-x86_64"], tmp_path / "out", evaluation=calibration, metric="top1", options=FAST
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_directory_that_is_not_writable_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(OutputError, match="not writable"):
        compile_model(model, ["cpu-x86_64"], out, options=FAST)


def test_an_output_path_that_is_a_file_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="cannot be made"):
        compile_model(model, ["cpu-x86_64"], tmp_path / "out", options=FAST)
    assert (tmp_path / "out").read_text() == "mine"


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Make the system refuse larger files, as a full disk does."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_what_was_there(model: Path, calibration: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments: dict[str, Any] = {"calibration": calibration, "options": FASTEST}
    (path,) = compile_model(model, ["cpu-x86_64"], out, **arguments).artifacts
    before = path.read_bytes()
    with files_no_larger_than(3000), pytest.raises(OutputError):
        compile_model(model, ["cpu-x86_64"], out, **arguments)
    assert path.read_bytes() == before
    assert [p.name for p in out.iterdir()] == [path.name]


def test_no_candidate_within_the_budget_is_an_error_with_figures(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Labels that the model never predicts: int8 and fp32 are equally wrong, which is no loss; so
    # take fp32 out by its engine, which leaves int8 on too few samples to be conclusive.
    monkeypatch.setattr("edgec.compiler.accuracy.ENOUGH_AGREEMENT", 1.1)
    rng = np.random.default_rng(6)
    path = tmp_path / "few.npz"
    np.savez(path, image=rng.standard_normal((5, 1, 3, 16, 16)).astype(np.float32), labels=np.zeros(5, int))
    with pytest.raises(BudgetError, match=r"inconclusive; about \d+ samples would decide"):
        compile_model(
            model,
            ["cpu-x86_64"],
            tmp_path / "out",
            calibration=calibration,
            evaluation=path,
            metric="top1",
            options=CompileOptions(measure_s=0.05, workers=0),
        )


def test_what_is_over_budget_is_kept_as_a_whole_artifact_that_says_so(
    model: Path, calibration: Path, tmp_path: Path
) -> None:
    options = replace(FASTEST, budget_size_bytes=10, version="4")
    with pytest.raises(BudgetError, match="no candidate keeps the budgets") as caught:
        compile_model(model, ["cpu-x86_64"], tmp_path / "out", calibration=calibration, options=options)
    (kept,) = (tmp_path / "out").glob("*.edgec")
    assert kept.name == "cnn-cpu-x86_64.over-budget.edgec"
    assert str(kept) in str(caught.value)
    with Artifact.open(kept) as artifact:
        artifact.verify()
        assert (artifact.manifest.model, artifact.manifest.model_version) == ("cnn", "4")
        assert artifact.manifest.budgets.size_bytes == 10
        assert artifact.report is not None
        (told,) = artifact.report["artifacts"]
    assert told["over_budget"].endswith("MB is over the budget of 1e-05 MB")
    assert told["warnings"][0] == f"over budget: {told['over_budget']}"
    assert told["parity"]["passed"]
    with load(kept) as session:
        assert session.self_test().passed


def test_the_report_in_the_artifact_is_the_build(model: Path, calibration: Path, tmp_path: Path) -> None:
    result = compile_model(
        model,
        ["cpu-x86_64"],
        tmp_path / "out",
        calibration=calibration,
        options=FAST,
        command=["edgec", "compile"],
    )
    with Artifact.open(result.artifacts[0]) as artifact:
        report = artifact.report
        assert report is not None
        assert report["command"] == ["edgec", "compile"]
        assert report["artifacts"][0]["decisions"] == result.report["artifacts"][0]["decisions"]
    json.dumps(result.report, allow_nan=False)


def plant_converter(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Make worker processes, and only them, find a converter for OpenVINO that does `body`."""
    (directory / "planted.py").write_text(
        "from edgec.compiler.converters.openvino import OpenVinoConverter\n"
        "class Planted(OpenVinoConverter):\n"
        "    def convert(self, prepared, engine, target, directory):\n"
        "        if prepared.precision == 'fp16':\n"
        f"            {body}\n"
        "        return super().convert(prepared, engine, target, directory)\n"
    )
    (directory / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'edgec.compiler.worker' in sys.orig_argv:\n"
        "    from edgec.compiler import converters\n"
        "    converters._BUILTIN['openvino'] = 'planted:Planted'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(directory))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "print('about to fall', flush=True); import os; os.kill(os.getpid(), 11)",
            "crashed .SIGSEGV.*about to fall",
        ),
        (
            "print('still here', flush=True); import time; time.sleep(600)",
            "took longer than 30 s .*still here",
        ),
    ],
    ids=["crash", "hang"],
)
def test_a_converter_that_crashes_or_hangs_takes_its_candidate_only(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    plant_converter(tmp_path, monkeypatch, body)
    options = CompileOptions(measure_s=0.05, timeout_s=30)
    result = compile_model(model, ["intel-cpu"], tmp_path / "out", calibration=calibration, options=options)
    (info,) = result.report["artifacts"]
    candidates = {c["precision"]: c for c in info["candidates"]}
    assert candidates["fp16"]["status"] == "failed"
    assert re.search(says, candidates["fp16"].get("reason") or "")
    assert {candidates[p]["status"] for p in ("fp32", "int8")} <= {"winner", "admissible"}


@pytest.mark.slow
def test_ctrl_c_leaves_the_best_so_far(
    model: Path, calibration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_converter(tmp_path, monkeypatch, "import time; time.sleep(600)")
    out = tmp_path / "out"
    words: list[str | Path] = ["compile", model, "-t", "intel-cpu", "-o", out, "-c", calibration]
    with subprocess.Popen(
        [sys.executable, "-m", "edgec.cli", *words], stderr=subprocess.PIPE, text=True
    ) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if "openvino fp32" in line:
                break
        build.send_signal(signal.SIGINT)
        rest = build.stderr.read()
        assert build.wait(60) == 130, rest
    assert "interrupted: going on with the candidates that are finished" in rest
    with load(out / "cnn-intel-cpu.edgec") as session:
        assert session.self_test().passed


@pytest.mark.slow
def test_a_repeated_build_comes_from_the_cache(model: Path, calibration: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def build(out: str, options: CompileOptions = FASTEST, data: Path = calibration) -> tuple[bytes, bool]:
        said: list[str] = []
        result = compile_model(
            model,
            ["cpu-x86_64"],
            tmp_path / out,
            calibration=data,
            options=options,
            cache_dir=cache,
            progress=said.append,
        )
        cached = "cpu-x86_64: taken from the cache" in said
        assert cached == ("taken from the cache" in result.report["artifacts"][0]["decisions"][-1])
        return result.artifacts[0].read_bytes(), cached

    first, _ = build("a")
    assert build("b") == (first, True)
    assert build("c", options=replace(FASTEST, max_drop=0.02))[1] is False
    # What a converter could go through now, it could not before.
    environments = tmp_path / "environments"
    beside = replace(FASTEST, environments=environments)
    build("d", options=beside)
    assert build("d", options=beside)[1] is True
    (environments / "onnx2tf").mkdir(parents=True)
    (environments / "onnx2tf" / MARKER).write_text("{}")
    assert build("e", options=beside)[1] is False
    other = tmp_path / "other.npz"
    np.savez(other, image=np.load(calibration)["image"][:20])
    assert build("d", data=other)[1] is False
