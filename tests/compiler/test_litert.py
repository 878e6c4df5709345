"""Builds for LiteRT's targets, and what an int8 file is held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.compiler.networks import cnn, model_of, samples

pytest.importorskip("ai_edge_litert")

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.calibration import calibrate
from edgec.compiler.converters import Converted, Estimate, Prepared, Quantities
from edgec.compiler.converters.litert import LiteRtConverter
from edgec.compiler.fake_quantization import fake_quantized
from edgec.compiler.lint_litert import lint_litert
from edgec.compiler.model import real_inputs, tensor_specs
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import check_parity, quantized_reference
from edgec.compiler.quantization import quantize_static
from edgec.errors import CalibrationError, ConversionError
from edgec.runtime import load
from edgec.runtime.backends import LoadOptions
from edgec.runtime.backends.litert import LiteRtBackend
from edgec.runtime.testing import MemoryPayload
from edgec.targets import load_target

FAST = CompileOptions(workers=0, measure_s=0.05, max_drop=None)
NPU = load_target("npu-tflite")


def network() -> onnx.ModelProto:
    model = cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.fixture(scope="module")
def inputs() -> list[dict[str, Any]]:
    return [dict(s) for s in samples(network(), 12)]


@pytest.fixture(scope="module")
def quantities(inputs: list[dict[str, Any]]) -> Quantities:
    return Quantities(table=calibrate(network(), inputs))


def convert(directory: Path, quantities: Quantities, *, target: str = "npu-tflite") -> Converted:
    chosen = load_target(target)
    prepared = Prepared(model=network(), precision="int8", quantities=quantities)
    return LiteRtConverter().convert(prepared, chosen.engines[0], chosen, directory)


def runner(converted: Converted) -> Any:
    assert converted.fallback is not None
    return LiteRtBackend().load(
        converted.fallback,
        MemoryPayload({name: path.read_bytes() for name, path in converted.files.items()}),
        tensor_specs(real_inputs(network())),
        tensor_specs(network().graph.output),
        LoadOptions(recipe=converted.recipe),
    )


def test_an_int8_file_keeps_parity_with_the_rounded_source(
    tmp_path: Path, inputs: list[dict[str, Any]], quantities: Quantities
) -> None:
    reference = quantized_reference(fake_quantized(network(), quantities), inputs[:4])
    parity = check_parity(runner(convert(tmp_path, quantities)).run, reference)
    assert parity.passed
    # Not because anything would pass: the tolerance is a small part of what the outputs span.
    (name,) = reference.tolerance
    spread = np.std([o[name] for o in reference.outputs])
    assert reference.tolerance[name].rms < 0.25 * spread


def test_activations_of_16_bits_keep_parity_and_lose_less(
    tmp_path: Path, inputs: list[dict[str, Any]], quantities: Quantities
) -> None:
    wide = replace(quantities, method="minmax", activation_bits=16)
    reference = quantized_reference(fake_quantized(network(), wide), inputs[:4])
    chosen = load_target("ethos-u55-128")
    prepared = Prepared(model=network(), precision="int16x8", quantities=wide)
    # Another device's engine, so that the test needs no Vela.
    converted = LiteRtConverter().convert(
        prepared, replace(chosen.engines[0], device="CPU-reference"), chosen, tmp_path
    )
    program = runner(converted)
    assert check_parity(program.run, reference).passed
    assert program.precisions == {"int16x8": 3}
    (name,) = reference.tolerance
    with (
        ReferenceProgram(network()) as source,
        ReferenceProgram(fake_quantized(network(), quantities)) as eight,
    ):
        exact = source.run(inputs[0])[name]
        error = np.abs(program.run(inputs[0])[name] - exact).mean()
        assert error < np.abs(eight.run(inputs[0])[name] - exact).mean()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_rounding_follows_the_parts_of_a_transposed_convolution(stride: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 2, 6)).astype(np.float32) * np.array([1, 10, 1, 10, 1, 10], np.float32)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[stride], kernel_shape=[6])
    model = model_of([node], {"x": [1, 4, 8]}, ["y"], {"w": weights})
    made = fake_quantized(model, Quantities(table=calibrate(model, samples(model, 4))))
    rounded = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "w")
    small = np.abs(rounded - weights)[:, :, ::2].max()
    # Where small and large weights share a scale, it is the large ones'.
    assert (small < 0.02) == (stride == 2)


@pytest.mark.parametrize("damage", ["zero point", "channels", "scale"])
def test_a_wrong_file_leaves_parity(
    damage: str, inputs: list[dict[str, Any]], quantities: Quantities
) -> None:
    made = fake_quantized(network(), quantities)
    reference = quantized_reference(made, inputs[:4])
    wrong = onnx.ModelProto()
    wrong.CopyFrom(made)
    constants = {t.name: t for t in wrong.graph.initializer}
    conv = next(n for n in wrong.graph.node if n.op_type == "Conv")
    pair = next(n for n in wrong.graph.node if n.op_type == "DequantizeLinear")
    where, index = {"zero point": (pair, 2), "channels": (conv, 1), "scale": (pair, 1)}[damage]
    value = numpy_helper.to_array(constants[where.input[index]])
    if damage == "zero point":
        value = np.asarray(value + np.int8(16 if value < 100 else -16), np.int8)
    elif damage == "channels":
        value = np.ascontiguousarray(value[::-1])
    else:
        value = np.asarray(value * np.float32(1.3))
    # Of this node alone: what quantizes stays right.
    wrong.graph.initializer.append(numpy_helper.from_array(value, "wrong"))
    where.input[index] = "wrong"
    with ReferenceProgram(wrong) as program:
        assert not check_parity(program.run, reference).passed


def test_rounding_needs_ranges() -> None:
    with pytest.raises(CalibrationError, match="calibration"):
        fake_quantized(network(), Quantities())


@pytest.mark.slow
def test_the_recipe_says_how_to_feed_a_microcontroller(tmp_path: Path, quantities: Quantities) -> None:
    pytest.importorskip("ethosu")
    converted = convert(tmp_path, quantities, target="ethos-u55-128")
    (image,) = [i.name for i in real_inputs(network())]
    entry = converted.recipe["boundary"][image]
    assert entry["dtype"] == "int8"
    assert entry["permutation"] == [0, 2, 3, 1]
    assert entry["scale"] > 0
    assert converted.engine.files == ("model_vela.tflite",)
    assert set(converted.files) == {"model_vela.tflite", "model.tflite"}
    assert isinstance(converted.estimate, Estimate)
    assert "nothing was run on an Ethos-U" in converted.not_run[0]


@pytest.mark.slow
def test_targets_with_npus_are_built_and_their_numerics_proven(
    tmp_path: Path, inputs: list[dict[str, Any]]
) -> None:
    pytest.importorskip("ethosu")
    source, data = tmp_path / "cnn.onnx", tmp_path / "data.npz"
    onnx.save(network(), source)
    np.savez(data, image=np.stack([s["image"] for s in inputs]))
    names = ["npu-tflite", "ethos-u55-128", "ethos-u85-256", "coral-edgetpu"]
    result = compile_model(source, names, tmp_path / "out", calibration=data, options=FAST)
    infos: dict[str, Any] = {a["target"]: a for a in result.report["artifacts"]}
    assert list(infos) == names
    assert {i["state"] for i in infos.values()} == {"fallback"}
    assert "estimated by Vela" in str(infos["ethos-u55-128"]["measured_on"])
    assert "edgetpu_compiler is not on" in infos["coral-edgetpu"]["not_run"][0]
    for path in result.artifacts:
        with load(path) as session:
            assert session.self_test().passed
            assert session.state == "fallback"
            assert session.precision == "int8"
    with Artifact.open(result.artifacts[1]) as artifact:
        assert artifact.manifest.recipe["flash"] == "model_vela.tflite"
        assert artifact.manifest.recipe["command"].startswith("vela model.tflite --accelerator-config")
        json.dumps(dict(artifact.manifest.recipe))


def test_limits_of_the_npu_are_told_all_at_once(tmp_path: Path, quantities: Quantities) -> None:
    target = load_target("ethos-u55-128")
    model = model_of(
        [onnx.helper.make_node("MaxPool", ["x"], ["y"], "wide", kernel_shape=[300, 300])],
        {"x": [2, 1, 300, 300]},
        {"y": [2, 1, 1, 1]},
    )
    prepared = Prepared(model=model, precision="int8", quantities=quantities)
    with pytest.raises(ConversionError, match=r"wide: .*256") as refusal:
        LiteRtConverter().convert(prepared, target.engines[0], target, tmp_path)
    assert "batch" in str(refusal.value)


def test_what_the_npu_lacks_is_a_warning_and_what_the_writer_lacks_an_error() -> None:
    nodes = [
        onnx.helper.make_node("Softplus", ["x"], ["a"], "soft"),
        onnx.helper.make_node("Det", ["a"], ["y"], "determinant"),
    ]
    model = model_of(nodes, {"x": [1, 4, 4]}, {"y": [1]})
    found = {(f.node, f.severity) for f in lint_litert(model, NPU)}
    assert ("determinant", "error") in found
    assert ("soft", "warning") in found


def test_int8_without_ranges_is_refused(tmp_path: Path) -> None:
    prepared = Prepared(model=network(), precision="int8")
    with pytest.raises(ConversionError, match="ranges"):
        LiteRtConverter().convert(prepared, NPU.engines[0], NPU, tmp_path)


@pytest.mark.parametrize(("axes", "errors"), [(1, 0), (2, 1)])
def test_only_transposed_convolutions_of_images_are_held_to_the_strides_of_ethos_u(
    axes: int, errors: int
) -> None:
    kernel, weights = [4] * axes, np.ones((2, 3, *[4] * axes), np.float32)
    up = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", kernel_shape=kernel, strides=kernel)
    model = model_of([up], {"x": [1, 2, *[8] * axes]}, ["y"], {"w": weights})
    found = [f for f in lint_litert(model, load_target("ethos-u55-128")) if f.severity == "error"]
    assert len(found) == errors
    assert all("strides" in f.message for f in found)


def test_a_model_that_its_author_quantized_is_refused_in_one_sentence(
    quantities: Quantities,
) -> None:
    scheme = load_target("cpu-arm64").quantization
    assert scheme is not None
    assert quantities.table is not None
    model = quantize_static(network(), quantities.table, scheme)
    (found,) = [f for f in lint_litert(model, NPU) if f.severity == "error"]
    assert "its author quantized it" in found.message
    assert "compile the float model" in found.fix
