from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.compiler import networks

from edgec.compiler.calibration import calibrate
from edgec.compiler.converters import Prepared
from edgec.compiler.converters.tensorrt import TensorRtConverter, build_typed_onnx, recipe
from edgec.compiler.model import opset_of
from edgec.errors import CalibrationError, ConversionError
from edgec.targets import load_target, target_names

TARGETS = [n for n in target_names() if load_target(n).family == "tensorrt"]
ORIN_6, ORIN_7 = load_target("jetson-agx-orin-jp6"), load_target("jetson-agx-orin-jp7")
PRECISIONS = ["fp32", "fp16", "int8", "mixed"]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_typed_model_is_within_the_targets_limits(name: str, precision: str) -> None:
    target = load_target(name)
    model = networks.residual()
    model.ir_version = 12
    made = build_typed_onnx(model, target, precision, calibrate(model, networks.samples(model, 8)))
    assert target.limits.max_opset is not None
    assert target.limits.max_ir_version is not None
    assert opset_of(made) <= target.limits.max_opset
    assert made.ir_version <= target.limits.max_ir_version
    onnx.checker.check_model(made, full_check=True)


def test_a_newer_opset_is_converted_down() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    model = networks.model_of(nodes, {"x": [1, 4]}, ["y"], opset=22)
    assert opset_of(build_typed_onnx(model, ORIN_6, "fp32", None)) == 20


def test_int8_needs_a_table() -> None:
    with pytest.raises(CalibrationError, match="--calibration"):
        build_typed_onnx(networks.cnn(), ORIN_6, "int8", None)


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ConversionError, match="no bf16"):
        build_typed_onnx(networks.cnn(), ORIN_6, "bf16", None)


def test_the_recipe_is_strongly_typed_on_both_lines() -> None:
    ten, eleven = (recipe(networks.cnn(), t, "fp16") for t in (ORIN_6, ORIN_7))
    for made in (ten, eleven):
        assert made["network"]["strongly_typed"] is True
        assert json.loads(json.dumps(made)) == made
        assert not {"--fp16", "--int8", "--best"} & set(made["trtexec"].split())
    assert ten["network"]["creation_flags"] == ["STRONGLY_TYPED"]
    assert eleven["network"]["creation_flags"] == []
    assert "--stronglyTyped" in ten["trtexec"].split()
    assert "--stronglyTyped" not in eleven["trtexec"].split()
    assert ten["version"] == ">=10.3,<11"


def test_the_recipe_has_the_memory_of_the_module() -> None:
    made = recipe(networks.cnn(), load_target("jetson-orin-nano-jp6"), "int8")
    assert made["memory_budget_mib"] == 4096
    assert made["config"]["memory_pools_mib"] == {"workspace": 512}
    assert "--memPoolSize=workspace:512" in made["trtexec"].split()
    assert made["requires"]["compute_capability"] == "8.7"


def test_the_dla_is_offered_where_there_is_one_for_strong_typing() -> None:
    assert recipe(networks.cnn(), ORIN_7, "fp16")["dla"] == {
        "cores": 2,
        "gpu_fallback": True,
        "parser_flags": ["ADJUST_FOR_DLA"],
    }
    assert "--useDLACore=0 --allowGPUFallback" in recipe(networks.cnn(), ORIN_7, "fp16")["trtexec_dla"]
    for target, precision in ((ORIN_7, "fp32"), (ORIN_6, "fp16"), (load_target("jetson-thor-jp7"), "fp16")):
        made = recipe(networks.cnn(), target, precision)
        assert made["dla"] is made["trtexec_dla"] is None


def test_caches_are_keyed_by_what_they_depend_on() -> None:
    made = recipe(networks.cnn(), ORIN_6, "fp16")
    assert {"artifact_digest", "tensorrt_version", "compute_capability", "cuda_version", "os"} <= set(
        made["engine_cache_key"]
    )
    assert "compute_capability" in made["timing_cache_key"]


def test_a_free_batch_has_a_profile_of_one() -> None:
    made = recipe(networks.mlp(), ORIN_6, "fp32")
    assert made["profiles"] == [{"x": {"min": [1, 16], "opt": [1, 16], "max": [1, 16]}}]
    assert "--optShapes=x:1x16" in made["trtexec"].split()
    assert recipe(networks.cnn(), ORIN_6, "fp32")["profiles"] == []


def test_a_range_of_shapes_can_be_asked_for() -> None:
    made = recipe(networks.mlp(), ORIN_6, "fp32", {"x": ((1, 16), (4, 16), (8, 16))})
    assert made["profiles"] == [{"x": {"min": [1, 16], "opt": [4, 16], "max": [8, 16]}}]
    assert "--maxShapes=x:8x16" in made["trtexec"].split()


def test_other_free_dimensions_must_be_pinned() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    model = networks.model_of(nodes, {"x": [1, "time", 4]}, ["y"])
    with pytest.raises(ConversionError, match="--shape x=1,1,4"):
        recipe(model, ORIN_6, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_convert_writes_onnx_that_onnx_runtime_computes_as_fallback(precision: str, tmp_path: Path) -> None:
    import onnxruntime as ort

    model = networks.cnn()
    made = build_typed_onnx(model, ORIN_6, precision, calibrate(model, networks.samples(model, 16)))
    converter = TensorRtConverter()
    converted = converter.convert(
        Prepared(model=made, precision=precision), ORIN_6.engines[0], ORIN_6, tmp_path
    )
    assert converted.engine.name == "tensorrt"
    assert converted.engine.files[0] == "model.onnx"
    assert converted.fallback is not None
    assert (converted.fallback.name, converted.fallback.precision) == ("onnxruntime", precision)
    assert converted.recipe["precision"] == precision
    assert "built on the device" in converted.not_run[0]
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    sample = networks.samples(model, 1, seed=9)[0]
    got = [np.asarray(value) for value in session.run(None, sample)]
    assert networks.snr_db(networks.run(model, sample), got) > 25


def test_convert_refuses_what_tensorrt_would_with_all_reasons(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], "first"),
        helper.make_node("Unheard", ["d"], ["y"], "second", domain="com.example"),
    ]
    model = networks.model_of(nodes, {"x": [2, 2]}, ["y"])
    with pytest.raises(ConversionError, match=r"first: .*second: ") as caught:
        TensorRtConverter().convert(
            Prepared(model=model, precision="fp32"), ORIN_6.engines[0], ORIN_6, tmp_path
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
