"""Ranges of residual branches, and averages at the end of a model, cost int8 no more than they must."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from tests.compiler import networks
from tests.compiler.test_quantization import X86

from edgec.compiler.calibration import CalibrationTable, calibrate
from edgec.compiler.quantization import quantize_static
from edgec.compiler.residuals import with_floors


def residual(*, relu: bool = True, tail: bool = False) -> onnx.ModelProto:
    """Relu(x + Conv(x)), whose branch goes far below what x can make up for; then an average and a layer."""
    rng = np.random.default_rng(3)
    weight = np.asarray(rng.normal(size=(8, 8, 3, 3)) / 2, np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "skip"),
        helper.make_node("Conv", ["r", "w", "b"], ["c"], "branch", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r", "c"], ["s"], "sum"),
        helper.make_node("Relu" if relu else "Neg", ["s"], ["y"], "after"),
    ]
    weights = {"w": weight, "b": np.full(8, -6.0, np.float32)}
    if tail:
        nodes += [
            helper.make_node("GlobalAveragePool", ["y"], ["g"], "average"),
            helper.make_node("Flatten", ["g"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "h"], ["z"], "head"),
        ]
        weights["h"] = np.asarray(rng.normal(size=(8, 3)), np.float32)
    return networks.model_of(nodes, {"x": [1, 8, 16, 16]}, ["z" if tail else "y"], weights)


def tables(model: onnx.ModelProto) -> tuple[CalibrationTable, CalibrationTable]:
    inputs = networks.samples(model, 8)
    table = calibrate(model, inputs)
    return table, with_floors(model, table, inputs)


def test_what_the_relu_takes_away_gets_no_levels() -> None:
    model = residual()
    table, floored = tables(model)
    floor = floored.tensors["c"].floor
    assert floor is not None
    assert table.tensors["c"].minimum < floor < 0
    for method in ("mse", "percentile", "entropy"):
        assert floored.range("c", method)[0] >= floor
    assert floored.range("c", "minmax") == table.range("c", "minmax")
    assert floored.tensors["r"] == table.tensors["r"]
    assert snr(model, floored) > snr(model, table) + 1.0
    assert CalibrationTable.from_json(floored.to_json(), model) == floored


def snr(model: onnx.ModelProto, table: CalibrationTable) -> float:
    graph, noise, signal = quantize_static(model, table, X86, method="mse"), 0.0, 0.0
    for sample in networks.samples(model, 8):
        exact = networks.run(model, sample)[0]
        noise += float(((networks.run(graph, sample)[0] - exact) ** 2).sum())
        signal += float((exact**2).sum())
    return 10 * float(np.log10(signal / noise))


def test_without_a_relu_the_whole_range_matters() -> None:
    table, floored = tables(residual(relu=False))
    assert floored == table


def test_averages_at_the_end_and_the_small_layer_after_them_stay_in_float() -> None:
    model = residual(tail=True)
    graph = quantize_static(model, tables(model)[1], X86, method="mse")
    producers = {name: node.op_type for node in graph.graph.node for name in node.output}
    by_name = {node.name: node for node in graph.graph.node}
    assert producers[by_name["branch"].input[0]] == "DequantizeLinear"
    assert producers[by_name["flatten"].input[0]] == "GlobalAveragePool"
    assert producers[by_name["head"].input[0]] == "Flatten"
    assert by_name["head"].input[1] == "h"
