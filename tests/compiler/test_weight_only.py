"""Compressed weights: small in the file, float in the arithmetic, the same values in every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tests.compiler.networks import cnn, mlp, model_of, run, samples, snr_db, transformer

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.weight_only import (
    Form,
    block_of,
    compress,
    compress_weights,
    compressed_reference,
    unsuitable,
)
from edgec.errors import ConversionError
from edgec.runtime import load

FORMS: tuple[Form, ...] = ("nbits", "dequantize", "float")


def run_as_written(model: onnx.ModelProto, sample: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, sample)[0])


def dense(rows: int, columns: int = 33) -> onnx.ModelProto:
    """Gemm with transposed weights and a bias, ``x`` [4,rows] to ``y`` [4,columns]."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(columns, rows)).astype(np.float32),
        "b": rng.normal(size=columns).astype(np.float32),
    }
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", transB=1)
    return model_of([node], {"x": [4, rows]}, ["y"], weights)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [80, 97, 200, 384])
def test_every_form_computes_what_the_integers_stand_for(rows: int, bits: int) -> None:
    model = dense(rows)
    block = block_of(rows, bits)
    assert block is not None
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    matrix = compress(tensors["w"].T, bits, block).to_float()
    (sample,) = samples(model, 1)
    expected = sample["x"].astype(np.float64) @ matrix + tensors["b"]
    assert snr_db([tensors["w"].T], [matrix]) > (40 if bits == 8 else 17)
    for form in FORMS:
        made = compress_weights(model, bits, form)
        if form != "nbits":
            onnx.checker.check_model(made, full_check=True)
        assert snr_db([expected], [run_as_written(made, sample)]) > 110, form
        assert form == "float" or made.ByteSize() < model.ByteSize() * (0.45 if bits == 8 else 0.3)


def test_openvino_keeps_the_integers_and_computes_in_float() -> None:
    import openvino as ov

    model = dense(384)
    (sample,) = samples(model, 1)
    made = compress_weights(model, 4, "dequantize")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    core = ov.Core()
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", settings)
    assert snr_db([run_as_written(made, sample)], [compiled(sample)[0]]) > 110
    found = {
        str(op.get_rt_info()["layerType"].astype(str)): str(op.get_rt_info()["runtimePrecision"].astype(str))
        for op in compiled.get_runtime_model().get_ops()
    }
    assert found["FullyConnected"] == "u4"


def test_a_matrix_that_no_kernel_takes_stays_in_float() -> None:
    assert block_of(500, 8) is None
    with pytest.raises(ConversionError, match="left to compress"):
        compress_weights(dense(500), 8, "nbits")


def test_int4_clips_where_that_costs_less_than_it_gains() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(32, 8)).astype(np.float32)
    matrix[0] *= 3
    steps = (matrix.max(axis=0) - matrix.min(axis=0)) / 15
    zeros = np.rint(-matrix.min(axis=0) / steps)
    plain = (np.clip(np.rint(matrix / steps) + zeros, 0, 15) - zeros) * steps
    clipped = compress(matrix, 4, 32).to_float()
    assert np.square(clipped - matrix).sum() < np.square(plain - matrix).sum()


def test_zeros_stay_zeros() -> None:
    matrix = np.zeros((32, 2), np.float32)
    for bits in (8, 4):
        assert not compress(matrix, bits, 32).to_float().any()


def test_an_embedding_has_rows_of_int8() -> None:
    made = compress_weights(transformer(), 4, "nbits")
    types = {t.name: t.data_type for t in made.graph.initializer}
    assert types["words/int8_rows"] == onnx.TensorProto.INT8
    assert "words" not in types
    (sample,) = samples(transformer(), 1)
    assert snr_db(run(transformer(), sample), run(made, sample)) > 15


def test_excluded_layers_stay_as_they_are() -> None:
    made = compress_weights(mlp(), 8, "nbits", exclude=["dense1"])
    assert [n.op_type for n in made.graph.node].count("MatMulNBits") == 1


def test_same_arguments_same_bytes() -> None:
    model = transformer()
    before = model.SerializeToString(deterministic=True)
    for form in FORMS:
        first, second = (
            compress_weights(model, 4, form).SerializeToString(deterministic=True) for _ in range(2)
        )
        assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_it_is_for_models_of_large_products() -> None:
    assert "products and embeddings hold" in str(unsuitable(transformer()))
    assert "of the weights" in str(unsuitable(cnn()))
    large = dense(1024, 512)
    assert unsuitable(large) is None


def test_parity_finds_a_wrong_scale() -> None:
    from edgec.compiler.onnxruntime import ReferenceProgram
    from edgec.compiler.parity import check_parity

    reference = compressed_reference(mlp(), 8, samples(mlp(), 2))
    assert "weights of 8 bits" in reference.description
    made = compress_weights(mlp(), 8, "nbits")
    with ReferenceProgram(made, optimize=True) as program:
        assert check_parity(program.run, reference).passed
    tensor = next(t for t in made.graph.initializer if t.name.endswith("block_scale"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))
    with ReferenceProgram(made, optimize=True) as program:
        assert not check_parity(program.run, reference).passed


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu-x86_64", "intel-cpu"])
@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_it_ships_and_says_what_runs(precision: str, target: str, tmp_path: Path) -> None:
    model = tmp_path / "dense.onnx"
    onnx.save(dense(1024, 512), model)
    options = CompileOptions(precision=precision, workers=0, measure_s=0.05, objective="size", max_drop=None)
    built = compile_model(model, [target], output=tmp_path / "out", options=options)
    (path,) = built.artifacts
    with Artifact.open(path) as opened:
        assert opened.manifest.engine.precision == precision
    with load(path) as session:
        assert session.precision == precision
        assert session.self_test().passed
    assert path.stat().st_size < model.stat().st_size * (0.4 if precision == "int8-weights" else 0.3)
