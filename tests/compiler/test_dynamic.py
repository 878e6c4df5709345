"""Dynamic int8: weights in eight bits, activations quantized in each call."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.compiler.networks import cnn, lstm, mlp, model_of, run, samples, snr_db, transformer

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.dynamic import quantize_dynamic
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.parity import Run, check_parity, dynamic_reference, first_divergence
from edgec.errors import ConversionError


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def snr(model: onnx.ModelProto, quantized: onnx.ModelProto) -> float:
    pairs = [(run(model, s), run(quantized, s)) for s in samples(model, 8)]
    wanted = [np.concatenate([a[0].ravel() for a, _ in pairs])]
    return snr_db(wanted, [np.concatenate([b[0].ravel() for _, b in pairs])])


def test_a_transformer_keeps_its_outputs() -> None:
    model = transformer()
    quantized = quantize_dynamic(model)
    onnx.checker.check_model(quantized)
    assert snr(model, quantized) > 30
    found = kinds(quantized)
    assert found["MatMulInteger"] == 6
    assert found["MatMul"] == 2  # activation by activation
    assert found["DynamicQuantizeLinear"] == 4  # queries, keys and values share one
    assert quantized.ByteSize() < 0.6 * model.ByteSize()


def test_an_embedding_has_one_scale_per_row() -> None:
    model = transformer()
    words = next(t for t in model.graph.initializer if t.name == "words")
    table = numpy_helper.to_array(words) * np.geomspace(1e-3, 1e3, 256, dtype=np.float32)[:, None]
    words.CopyFrom(numpy_helper.from_array(table, "words"))
    tensors = {t.name: numpy_helper.to_array(t) for t in quantize_dynamic(model).graph.initializer}
    assert "words" not in tensors
    again = tensors["words/int8_rows"] * tensors["words/row_scale"]
    assert np.all(np.abs(again - table).max(axis=1) <= np.abs(table).max(axis=1) / 250)


def test_a_table_that_is_also_taken_in_float_stays() -> None:
    model = transformer()
    model.graph.node.append(onnx.helper.make_node("ReduceMean", ["words"], ["mean"], "mean"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, None))
    names = {t.name for t in quantize_dynamic(model).graph.initializer}
    assert "words" in names
    assert not any(n.startswith("words/") for n in names)


def test_gemm_with_transposed_weights_and_bias() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(24, 16)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    gemm = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", transB=1)
    model = model_of([gemm], {"x": [4, 16]}, ["y"], {"w": w, "b": b})
    assert snr(model, quantize_dynamic(model)) > 38
    scaled = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], "dense", transB=1, alpha=0.5)
    with pytest.raises(ConversionError, match="no MatMul, Gemm or LSTM"):
        quantize_dynamic(model_of([scaled], {"x": [4, 16]}, ["y"], {"w": w, "b": b}))


def test_excluded_layers_stay_in_float() -> None:
    quantized = quantize_dynamic(mlp(), exclude=["dense1"])
    assert kinds(quantized)["MatMul"] == kinds(quantized)["MatMulInteger"] == 1


def test_a_column_of_zeros_stays_zero() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(16, 4)).astype(np.float32)
    w[:, 2] = 0
    model = model_of([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [3, 16]}, ["y"], {"w": w})
    values = run(quantize_dynamic(model), samples(model, 1)[0])[0]
    assert np.all(values[:, 2] == 0)
    assert np.all(values[:, 1] != 0)


def test_same_arguments_same_bytes() -> None:
    model = transformer()
    before = model.SerializeToString(deterministic=True)
    first, second = (quantize_dynamic(model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_a_model_of_other_layers_is_refused() -> None:
    with pytest.raises(ConversionError, match="of the weights, and dynamic int8 speeds up nothing else"):
        quantize_dynamic(cnn())


def test_an_lstm_keeps_its_outputs() -> None:
    model = lstm()
    quantized = quantize_dynamic(model)
    assert kinds(quantized)["DynamicQuantizeLSTM"] == 1
    assert kinds(quantized)["LSTM"] == 0
    assert snr(model, quantized) > 35
    integers = next(numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name == "w/gates_int8")
    scales = next(numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name == "w/gates_scale")
    source = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w")
    assert integers.shape == (1, 8, 24)
    assert np.all(
        np.abs(integers * scales[:, None] - source.transpose(0, 2, 1)) <= scales[:, None] / 2 * 1.001
    )


def test_states_bias_and_directions_of_an_lstm_are_kept() -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "w": rng.normal(size=(2, 24, 8)).astype(np.float32) / 3,
        "r": rng.normal(size=(2, 24, 6)).astype(np.float32) / 3,
        "b": rng.normal(size=(2, 48)).astype(np.float32),
    }
    node = onnx.helper.make_node(
        "LSTM",
        ["x", "w", "r", "b", "", "h0", "c0"],
        ["y", "h", "c"],
        direction="bidirectional",
        hidden_size=6,
    )
    model = model_of([node], {"x": [5, 1, 8], "h0": [2, 1, 6], "c0": [2, 1, 6]}, ["y", "h", "c"], weights)
    sample = samples(model, 1)[0]
    assert snr_db(run(model, sample), run(quantize_dynamic(model), sample)) > 30


def test_a_gru_is_refused_for_want_of_a_kernel() -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "w": rng.normal(size=(1, 18, 8)).astype(np.float32),
        "r": rng.normal(size=(1, 18, 6)).astype(np.float32),
    }
    node = onnx.helper.make_node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=6)
    with pytest.raises(ConversionError, match="no MatMul, Gemm or LSTM"):
        quantize_dynamic(model_of([node], {"x": [5, 1, 8]}, ["h"], weights))


def test_parity_passes_the_optimized_graph_and_finds_faults() -> None:
    quantized = quantize_dynamic(transformer())
    inputs = samples(transformer(), 3)
    reference = dynamic_reference(quantized, inputs)
    with ReferenceProgram(quantized, optimize=True) as program:
        assert check_parity(program.run, reference).passed
    for name, fault in (("wv/column_scale", 1.05), ("b1", 0.9), ("w2/column_scale", 0.9)):
        broken = onnx.ModelProto()
        broken.CopyFrom(quantized)
        tensor = next(t for t in broken.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor) * np.float32(fault)
        tensor.CopyFrom(numpy_helper.from_array(value, name))
        with ReferenceProgram(broken, optimize=True) as program:
            assert not check_parity(program.run, reference).passed, name


def test_the_first_diverging_tensor_is_named() -> None:
    quantized = quantize_dynamic(mlp())
    reference = dynamic_reference(quantized, samples(mlp(), 2))

    def broken(graph: onnx.ModelProto) -> Run:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        bias = next(t for t in copy.graph.initializer if t.name == "b1")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), "b1"))
        return ReferenceProgram(copy).run

    assert first_divergence(reference, broken) == "d1"


def test_it_competes_and_can_be_shipped(tmp_path: Path) -> None:
    model = tmp_path / "block.onnx"
    onnx.save(transformer(), model)
    options = CompileOptions(precision="int8-dynamic", workers=0, measure_s=0.05, objective="size")
    built = compile_model(model, ["cpu-x86_64"], output=tmp_path / "out", options=options)
    (path,) = built.artifacts
    with Artifact.open(path) as opened:
        assert opened.manifest.engine.precision == "int8-dynamic"


@pytest.mark.slow
def test_where_it_gains_nothing_the_reason_is_in_the_report(tmp_path: Path) -> None:
    model = tmp_path / "cnn.onnx"
    onnx.save(cnn(), model)
    options = CompileOptions(workers=0, measure_s=0.05)
    built = compile_model(model, ["cpu-x86_64"], output=tmp_path / "out", options=options)
    (info,) = built.report["artifacts"]
    candidate = next(c for c in info["candidates"] if c["precision"] == "int8-dynamic")
    assert candidate["status"] == "skipped"
    assert "dynamic int8 speeds up nothing else" in str(candidate)
