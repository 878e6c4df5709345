"""GPUs through ONNX Runtime: what is asked for, and what happens where it is not there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgec.errors import BackendUnavailableError, PlacementError
from edgec.runtime import load
from edgec.runtime.backends import LoadOptions, get_backend
from edgec.runtime.backends._providers import check_started, choose_providers
from edgec.runtime.testing import onnxruntime_spec, tiny_artifact

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
FEED = {"x": np.ones((1, 4), np.float32)}
HERE = ort.get_available_providers()
without_gpu = pytest.mark.skipif(CUDA in HERE, reason="this ONNX Runtime has CUDA")


def chosen(
    device: str, available: list[str], precision: str = "fp32", **options: Any
) -> list[tuple[str, dict[str, str]]]:
    spec = replace(onnxruntime_spec(precision=precision), device=device)
    return choose_providers(spec, LoadOptions(**options), available, "1.24")


def test_the_device_of_the_artifact_decides_where_the_application_says_nothing() -> None:
    assert chosen("CPU", [TENSORRT, CUDA, CPU]) == [(CPU, {})]
    assert chosen("GPU", [CUDA, CPU]) == [(CUDA, {"use_tf32": "0"}), (CPU, {})]
    assert chosen("GPU", [TENSORRT, CUDA, CPU], "fp16") == [
        (TENSORRT, {"trt_fp16_enable": "1", "trt_int8_enable": "0"}),
        (CUDA, {}),
        (CPU, {}),
    ]


def test_engines_that_tensorrt_builds_are_kept_where_the_application_says(tmp_path: Path) -> None:
    (_, options), *_ = chosen("GPU", [TENSORRT, CPU], "int8", cache_dir=tmp_path)
    assert options == {
        "trt_fp16_enable": "0",
        "trt_int8_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }


def test_what_the_application_names_comes_first_and_its_options_win() -> None:
    asked: Mapping[str, Mapping[str, Any]] = {
        "CUDA": {"device_id": 1, "use_tf32": True},
        "TensorrtExecutionProvider": {"trt_max_workspace_size": 2**30},
    }
    assert chosen("CPU", [TENSORRT, CUDA, CPU], providers=asked) == [
        (CUDA, {"use_tf32": "1", "device_id": "1"}),
        (TENSORRT, {"trt_fp16_enable": "0", "trt_int8_enable": "0", "trt_max_workspace_size": str(2**30)}),
        (CPU, {}),
    ]
    assert chosen("GPU", [CUDA, CPU], providers={"CPU": {}}) == [(CPU, {})]


def test_what_is_not_there_is_told_with_the_remedy() -> None:
    with pytest.raises(BackendUnavailableError, match=r"reaches no GPU here, only CPU: .*onnxruntime-gpu"):
        chosen("GPU", [CPU])
    with pytest.raises(BackendUnavailableError, match=r"has no Tensorrt here, only CUDA, CPU: .*JetPack"):
        chosen("CPU", [CUDA, CPU], providers={"CUDA": {}, "Tensorrt": {}})
    with pytest.raises(BackendUnavailableError, match="has no QNN here, only CPU: install the build"):
        chosen("CPU", [CPU], providers={"QNN": {}})


def test_a_provider_that_does_not_start_is_not_passed_over() -> None:
    check_started([(CUDA, {}), (CPU, {})], [CUDA, CPU], "1.24")
    with pytest.raises(BackendUnavailableError, match=r"has CUDA, which does not start here: its libraries"):
        check_started([(CUDA, {}), (CPU, {})], [CPU], "1.24")


@without_gpu
def test_an_artifact_for_the_gpu_runs_on_its_fallback_or_says_what_is_missing(tmp_path: Path) -> None:
    gpu = replace(onnxruntime_spec(), device="GPU")
    with pytest.raises(BackendUnavailableError, match=r"reaches no GPU here.*declares no fallback"):
        load(tiny_artifact(tmp_path / "gpu.edgec", engine=gpu))
    path = tiny_artifact(tmp_path / "both.edgec", engine=gpu, fallback=onnxruntime_spec())
    with load(path) as session:
        assert (session.state, set(session.placement)) == ("fallback", {"CPU"})
        assert "reaches no GPU" in session.fallback_reason
        assert session.self_test().passed


@without_gpu
@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_provider_that_the_application_names_has_to_be_there(tmp_path: Path, isolate: bool) -> None:
    if isolate and sys.platform != "linux":
        pytest.skip("isolation needs Linux")
    path = tiny_artifact(tmp_path / "tiny.edgec")
    with pytest.raises(BackendUnavailableError, match="has no CUDA here"):
        load(path, providers={"CUDA": {"device_id": 0}}, isolate=isolate)


def test_options_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    opened = ort.InferenceSession

    def open_and_record(*arguments: Any, **options: Any) -> Any:
        seen.append(options)
        return opened(*arguments, **options)

    monkeypatch.setattr(ort, "InferenceSession", open_and_record)
    with load(tiny_artifact(tmp_path / "tiny.edgec"), providers={"CPU": {"an_option": 3}}) as session:
        assert session.run(FEED)["y"].shape == (1, 3)
    assert seen[0]["providers"] == [(CPU, {"an_option": "3"})]
    assert seen[0]["enable_fallback"] == 0


@pytest.mark.skipif("AzureExecutionProvider" not in HERE, reason="this ONNX Runtime has one provider only")
@pytest.mark.skipif(
    not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"),
    reason="ONNX Runtime tells from 1.24 on which provider runs which node",
)
def test_nodes_that_another_provider_leaves_to_the_cpu_are_refused_or_told(tmp_path: Path) -> None:
    # Azure's provider starts anywhere, and takes no node of this model: as CUDA leaves some.
    path = tiny_artifact(tmp_path / "tiny.edgec")
    with pytest.raises(PlacementError, match=r"promised is the Azure for every node, but 2 on CPU"):
        load(path, providers={"Azure": {}})
    with load(path, providers={"Azure": {}}, strict=False) as session:
        assert dict(session.placement) == {"CPU": 2}
        assert session.self_test().passed


def test_options_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected text or a number for the option 'a' of CPU, got list"):
        load(tiny_artifact(tmp_path / "tiny.edgec"), providers={"CPU": {"a": [1]}})


def test_devices_are_those_of_the_build() -> None:
    backend = get_backend("onnxruntime")
    assert backend.devices() == (("CPU", "GPU") if CUDA in HERE else ("CPU",))  # type: ignore[attr-defined]
