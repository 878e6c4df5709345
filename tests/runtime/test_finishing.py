"""Engines of TensorRT are built, kept and run as the documented API wants it; fakes stand in for both.

No test here has seen a GPU. What they show is the order and the types of the calls, what is kept when
something fails, and that an engine runs only where it was built for.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

from tests.fakes.jetson import LINES, Jetson, jetson_artifact

from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    DigestMismatchError,
    IncompatibleArtifactError,
    InferenceError,
    ManifestError,
    OutputError,
    SelfTestError,
)
from edgec.runtime import load
from edgec.runtime.finishing import DlaCoreError, FinishResult, finish
from edgec.runtime.testing import tiny_artifact

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=sorted(LINES))
def jetson(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jetson]:
    device = Jetson(request.param)
    device.install(monkeypatch)
    yield device
    assert device.faults.violations == []
    assert device.driver.is_clean(), "memory, a stream or the context was not given back"


@pytest.fixture
def eleven(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jetson]:
    device = Jetson("11.4.1")
    device.install(monkeypatch)
    yield device
    assert device.faults.violations == []
    assert device.driver.is_clean()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def engines(cache: Path) -> list[str]:
    """Return the kinds of files that are in the cache, the lock left out."""
    return sorted(path.suffix for path in cache.iterdir() if path.name != ".lock")


def built(jetson: Jetson, path: Path, cache: Path, **options: Any) -> FinishResult:
    result = finish(path, cache_dir=cache, **options)
    assert result.state == "built"
    assert result.engine_version == jetson.version
    return result


def test_an_engine_is_built_tested_kept_and_run(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    steps: list[tuple[str, int, int]] = []
    result = built(jetson, path, cache, progress=lambda *step: steps.append(step))
    assert result.self_test is not None
    assert result.self_test.passed
    assert result.self_test.vectors == 2
    assert result.notes == ()
    assert result.device == "Fake Orin"
    assert ("Building Engine", 2, 3) in steps
    assert not any(step.startswith("Layer") for step, _, _ in steps)
    assert jetson.faults.builds == [
        {
            "dla": None,
            "flags": set(),
            "level": 3,
            "pools": {"WORKSPACE": 512 << 20},
            "known_timings": False,
            "verbosity": "LAYER_NAMES_ONLY",
        }
    ]
    x = np.linspace(-1, 1, 16, dtype=np.float32)[None]
    with load(path, cache_dir=cache) as session:
        assert (session.state, session.engine, session.engine_version) == (
            "ready", "tensorrt", jetson.version,
        )  # fmt: skip
        assert session.placement == {"GPU": 2}
        assert session.self_test().passed
        first = session.run({"x": x})["y"]
        second = session.run({"x": 2 * x})["y"]
        np.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    with pytest.raises(InferenceError, match="closed"):
        session.run({"x": x})


def test_what_is_beside_the_engine_says_what_it_is_for(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    plan = built(jetson, path, cache).plan
    assert plan is not None
    facts = json.loads(plan.with_suffix(".json").read_text())
    with load(path, cache_dir=cache) as session:
        assert session.manifest.model == facts["model"] == "tiny"
    key = facts["key"]
    assert key["tensorrt"] == jetson.version
    assert (key["compute_capability"], key["cuda"]) == ("8.7", "12.6")
    assert key["artifact"].startswith("sha256:")
    assert key["build"]["dla"] is None
    assert facts["golden_vectors"] == 2
    assert engines(cache) == [".cache", ".json", ".plan"]


def test_it_is_built_once(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    built(jetson, path, cache)
    again = finish(path, cache_dir=cache)
    assert again.state == "kept"
    assert again.self_test is not None
    assert again.self_test.passed
    assert len(jetson.faults.builds) == 1
    built(jetson, path, cache, force=True)
    assert [b["known_timings"] for b in jetson.faults.builds] == [False, True]


def test_without_an_engine_the_fallback_runs_and_says_what_to_do(
    jetson: Jetson, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    with caplog.at_level(logging.WARNING), load(path, cache_dir=cache) as session:
        assert (session.state, session.engine) == ("fallback", "onnxruntime")
        assert session.self_test().passed
    assert f"edgec finish ARTIFACT --cache-dir {cache}" in caplog.text
    with pytest.raises(BackendUnavailableError, match="edgec finish ARTIFACT"):
        load(path, cache_dir=cache, allow_fallback=False)


def test_engines_are_kept_at_home_if_nothing_is_said(
    jetson: Jetson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    plan = finish(path).plan
    assert plan is not None
    assert plan.parent == tmp_path / ".cache" / "edgec" / "engines"
    assert plan.parent.stat().st_mode & 0o077 == 0
    with load(path) as session:
        assert session.state == "ready"


def test_another_version_of_tensorrt_builds_another_engine(
    jetson: Jetson, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    before = built(jetson, path, cache).plan
    jetson.update(monkeypatch, {"10.3.0": "10.7.0", "11.4.1": "11.5.0"}[jetson.version])
    with load(path, cache_dir=cache) as session:
        assert session.state == "fallback"
    assert built(jetson, path, cache).plan != before
    with load(path, cache_dir=cache) as session:
        assert (session.state, session.engine_version) == ("ready", jetson.version)


@pytest.mark.parametrize("what", ["capability", "cuda"])
def test_another_gpu_or_cuda_builds_another_engine(
    what: str, jetson: Jetson, tmp_path: Path, cache: Path
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    before = built(jetson, path, cache)
    setattr(jetson.driver, what, {"capability": (11, 0), "cuda": 13020}[what])
    after = built(jetson, path, cache)
    assert after.plan != before.plan
    assert any("compute capability 8.7" in note for note in after.notes) == (what == "capability")


@pytest.mark.parametrize("damage", ["plan", "sidecar", "empty", "gone", "other"])
def test_a_damaged_engine_is_not_run_and_is_built_again(
    damage: str, jetson: Jetson, tmp_path: Path, cache: Path
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    plan = built(jetson, path, cache).plan
    assert plan is not None
    sidecar = plan.with_suffix(".json")
    if damage == "plan":
        plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    elif damage == "sidecar":
        sidecar.write_text('{"format": 1, "key":')
    elif damage == "empty":
        sidecar.write_text("[]")
    elif damage == "gone":
        plan.unlink()
    else:
        facts = json.loads(sidecar.read_text())
        facts["key"]["cuda"] = "11.4"
        sidecar.write_text(json.dumps(facts))
    with load(path, cache_dir=cache) as session:
        assert session.state == "fallback"
    built(jetson, path, cache)
    with load(path, cache_dir=cache) as session:
        assert session.state == "ready"


def test_an_engine_that_tensorrt_refuses_is_built_again(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    plan = built(jetson, path, cache).plan
    assert plan is not None
    from hashlib import sha256

    # As if another program had written it, with all that belongs to it.
    plan.write_bytes(b"not a plan")
    sidecar = plan.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    facts |= {"size_bytes": 10, "sha256": sha256(b"not a plan").hexdigest()}
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(BackendUnavailableError, match=r"does not load it.*edgec finish") as refusal:
        load(path, cache_dir=cache, allow_fallback=False)
    assert "\n" not in str(refusal.value)
    result = built(jetson, path, cache)
    assert any("was replaced" in note for note in result.notes)


def test_what_the_parser_refuses_is_told_whole(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.parse_errors = ["no importer registered for op: Foo", "static shapes only"]
    with pytest.raises(
        InferenceError, match=r"Conv_0 \(Conv\): no importer.*Conv_1 \(Conv\): static"
    ) as told:
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)
    assert "\n" not in str(told.value)
    assert engines(cache) == []


def test_many_errors_of_the_parser_are_counted(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.parse_errors = [f"wrong {i}" for i in range(40)]
    with pytest.raises(InferenceError, match=r"wrong 9; and 30 more$"):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)


def test_a_build_that_gives_nothing_is_told_with_the_log(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.build_error = "Could not find any implementation for node {ForeignNode[MatMul_0]}"
    with pytest.raises(InferenceError, match=r"cannot build the engine: .*Could not find any implementation"):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)
    assert engines(cache) == []


def test_an_engine_that_computes_something_else_is_not_kept(
    jetson: Jetson, tmp_path: Path, cache: Path
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    jetson.faults.offset = 0.5
    with pytest.raises(SelfTestError, match=r"y is off by 0\.5 .*it is not kept"):
        finish(path, cache_dir=cache)
    assert engines(cache) == [".cache"]
    with load(path, cache_dir=cache) as session:
        assert session.state == "fallback"


def test_an_engine_that_begins_to_compute_something_else_is_removed(
    jetson: Jetson, tmp_path: Path, cache: Path
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    built(jetson, path, cache)
    jetson.faults.offset = 0.5
    with pytest.raises(SelfTestError, match="it is not kept"):
        finish(path, cache_dir=cache)
    assert engines(cache) == [".cache"]


def test_without_golden_vectors_that_is_said(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    result = built(jetson, jetson_artifact(tmp_path / "a.edgec", jetson.version, golden=False), cache)
    assert any("no golden vectors" in note for note in result.notes)


def test_a_full_disk_leaves_no_engine(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # More than the members that are extracted need, and less than the engine does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2200, hard))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            finish(path, cache_dir=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert engines(cache) == [".cache"]


def test_a_cache_that_cannot_be_written_is_told(jetson: Jetson, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to the cache"):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=tmp_path / "file" / "engines")


KILLED = """
import sys
from pathlib import Path
import pytest
from tests.fakes.jetson import Jetson
from edgec.runtime.finishing import finish
device = Jetson(sys.argv[3])
device.faults.kill = True
with pytest.MonkeyPatch.context() as patch:
    device.install(patch)
    finish(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]))
"""


def test_killed_in_the_middle_it_leaves_nothing_that_counts(
    jetson: Jetson, tmp_path: Path, cache: Path
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    result = subprocess.run(
        [sys.executable, "-c", KILLED, path, cache, jetson.version],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    assert [p for p in cache.iterdir() if p.suffix in (".plan", ".json")] == []
    with load(path, cache_dir=cache) as session:
        assert session.state == "fallback"
    built(jetson, path, cache)
    # What the killed one left is gone too.
    assert engines(cache) == [".cache", ".json", ".plan"]


def test_ctrl_c_ends_the_build_and_keeps_nothing(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)
    assert engines(cache) == []
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_timings_of_another_version_are_measured_anew(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    built(jetson, path, cache)
    (timings,) = cache.glob("*.cache")
    timings.write_bytes(b"garbage")
    result = built(jetson, path, cache, force=True)
    assert any("measured anew" in note for note in result.notes)
    assert [b["known_timings"] for b in jetson.faults.builds] == [False, False]
    assert timings.read_bytes() != b"garbage"


def test_free_dimensions_have_the_range_of_the_recipe(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version, batch="n")
    built(jetson, path, cache)
    with load(path, cache_dir=cache) as session:
        for size in (1, 4, 2):
            x = np.full((size, 16), 0.5, np.float32)
            assert session.run({"x": x})["y"].shape == (size, 32)
        with pytest.raises(InferenceError, match=r"does not take x as \[5, 16\]"):
            session.run({"x": np.zeros((5, 16), np.float32)})
        assert session.run({"x": x})["y"].shape == (2, 32)


def test_inputs_that_are_not_contiguous_are_run_right(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version, batch=2)
    built(jetson, path, cache)
    x = np.random.default_rng(1).standard_normal((16, 2)).astype(np.float32).T
    with load(path, cache_dir=cache) as session:
        actual = session.run({"x": x})["y"]
        np.testing.assert_array_equal(actual, session.run({"x": np.ascontiguousarray(x)})["y"])


def test_threads_share_a_session(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    built(jetson, path, cache)
    wrong: list[float] = []
    with load(path, cache_dir=cache) as session:
        unit = session.run({"x": np.ones((1, 16), np.float32)})["y"]

        def work(factor: float) -> None:
            for _ in range(20):
                y = session.run({"x": np.full((1, 16), factor, np.float32)})["y"]
                if not np.allclose(y, factor * unit, rtol=1e-5):
                    wrong.append(factor)

        threads = [threading.Thread(target=work, args=(float(i),)) for i in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_little_free_memory_makes_a_smaller_workspace(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.driver.free_bytes = 64 << 20
    result = built(jetson, jetson_artifact(tmp_path / "a.edgec", jetson.version), cache)
    assert jetson.faults.builds[0]["pools"] == {"WORKSPACE": 64 << 20}
    assert any("64 MiB" in note for note in result.notes)


def test_an_engine_there_is_no_memory_for_is_told(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.no_context = True
    with pytest.raises(InferenceError, match=r"cannot run the engine here: .*out of memory"):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)


def test_a_tensor_that_must_be_in_main_memory_is_refused(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    jetson.faults.on_host = ("x",)
    with pytest.raises(InferenceError, match="the input x holds shapes"):
        finish(jetson_artifact(tmp_path / "a.edgec", jetson.version), cache_dir=cache)


def test_a_dla_core_has_an_engine_of_its_own(eleven: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", eleven.version, has_dla=True)
    on_dla = built(eleven, path, cache, dla=1)
    assert eleven.faults.builds[0]["dla"] == 1
    assert eleven.faults.builds[0]["flags"] == {"GPU_FALLBACK"}
    with load(path, cache_dir=cache) as session:
        assert (session.state, dict(session.placement)) == ("ready", {})
    on_gpu = built(eleven, path, cache)
    assert on_gpu.plan != on_dla.plan
    with load(path, cache_dir=cache) as session:  # what was finished last
        assert session.placement == {"GPU": 2}
    assert finish(path, cache_dir=cache, dla=1).state == "kept"
    with load(path, cache_dir=cache) as session:
        assert session.placement == {}


def test_a_dla_core_that_is_not_there_is_refused(eleven: Jetson, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DlaCoreError, match="is not for a DLA"):
        finish(jetson_artifact(tmp_path / "a.edgec", eleven.version), cache_dir=cache, dla=0)
    path = jetson_artifact(tmp_path / "b.edgec", eleven.version, has_dla=True)
    with pytest.raises(DlaCoreError, match="cores 0 to 1, got 2"):
        finish(path, cache_dir=cache, dla=2)
    eleven.faults.dla_cores = 0
    with pytest.raises(BackendUnavailableError, match="no DLA core 1 here"):
        finish(path, cache_dir=cache, dla=1)


def test_the_wrong_line_of_tensorrt_is_refused(eleven: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", "10.3.0")
    with pytest.raises(BackendUnavailableError, match=r"needs TensorRT >=10.3,<11, this is 11.4.1"):
        finish(path, cache_dir=cache)
    with load(path, cache_dir=cache) as session:
        assert session.state == "fallback"


def test_without_tensorrt_that_is_said(
    eleven: Jetson, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailableError, match="apt install python3-libnvinfer"):
        finish(jetson_artifact(tmp_path / "a.edgec", eleven.version), cache_dir=cache)


def test_without_a_driver_tensorrt_is_not_touched(tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", "10.3.0")
    with pytest.raises(BackendUnavailableError, match="working CUDA driver"):
        finish(path, cache_dir=cache)
    assert "tensorrt" not in sys.modules
    assert not cache.exists()


def test_other_artifacts_need_no_finishing(tmp_path: Path, cache: Path) -> None:
    result = finish(tiny_artifact(tmp_path / "a.edgec"), cache_dir=cache)
    assert (result.state, result.engine, result.plan) == ("not-needed", "onnxruntime", None)
    assert not cache.exists()


def test_a_damaged_artifact_is_not_built_from(jetson: Jetson, tmp_path: Path, cache: Path) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", jetson.version)
    data = bytearray(path.read_bytes())
    data[4096 + 5] ^= 1  # in the first member's data, which are the weights
    path.write_bytes(data)
    with pytest.raises(DigestMismatchError):
        finish(path, cache_dir=cache)
    assert jetson.faults.builds == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"builder": "nncase"}, IncompatibleArtifactError, "the recipe is for the builder 'nncase'"),
        ({"network": []}, ManifestError, "recipe.network must be an object"),
        ({"network": {"strongly_typed": False}}, IncompatibleArtifactError, "not strongly typed"),
        (
            {"network": {"strongly_typed": True, "creation_flags": ["REFIT"]}},
            IncompatibleArtifactError,
            "asks for 'REFIT'",
        ),
        (
            {
                "config": {
                    "memory_pools_mib": {"workspace": 1},
                    "builder_optimization_level": 3,
                    "profiling_verbosity": "NONE",
                    "flags": ["SPARSE_WEIGHTS", "REFIT"],
                }
            },
            IncompatibleArtifactError,
            "asks for 'REFIT'",
        ),
        ({"onnx": "../etc/passwd"}, ManifestError, "which the engine does not load"),
        ({"onnx": 3}, ManifestError, "recipe.onnx must be text"),
        ({"profiles": {}}, ManifestError, "recipe.profiles must be a list"),
        ({"profiles": [{"x": {"min": [1]}}]}, ManifestError, r"x.opt must be a list"),
        (
            {"profiles": [{"x": {"min": [2], "opt": [1], "max": [4]}}]},
            ManifestError,
            "min <= opt <= max",
        ),
        ({"profiles": [{"x": {"min": [-1], "opt": [1], "max": [1]}}]}, ManifestError, "sizes from 0"),
        ({"memory_budget_mib": "all"}, ManifestError, "must be a whole number"),
        ({"memory_budget_mib": True}, ManifestError, "must be a whole number"),
        ({"dla": {"cores": 999, "parser_flags": []}}, ManifestError, "from 1 to 16"),
        ({"dla": {"cores": 1, "parser_flags": ["X"]}}, IncompatibleArtifactError, "asks for 'X'"),
        ({"requires": None}, ManifestError, "recipe.requires must be an object"),
    ],
)
def test_a_recipe_from_outside_is_checked(
    eleven: Jetson,
    tmp_path: Path,
    cache: Path,
    changes: dict[str, Any],
    error: type[ArtifactError],
    message: str,
) -> None:
    path = jetson_artifact(tmp_path / "a.edgec", eleven.version, **changes)
    with pytest.raises(error, match=message):
        finish(path, cache_dir=cache)
    assert not cache.exists()
