"""A transformer in dynamic int8 keeps its accuracy: smoothed where it is normalised, fragile layers named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.compiler.networks import run, samples, transformer

from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.passes.smooth_quant import smooth_activations
from edgec.compiler.steadying import row_snr_db, steadied

OUTLIER = 200.0


def test_only_what_is_normalised_is_smoothed() -> None:
    model = transformer(OUTLIER)
    inputs = samples(model, 4)
    result = steadied(model, inputs)
    assert result.smoothed == 2  # both normalisations; neither attention's mix nor the GELU
    assert [n.op_type for n in result.model.graph.node] == [n.op_type for n in model.graph.node]
    assert smooth_activations(model, inputs, 0.5)[1] > 2
    for sample in samples(model, 2, seed=3):
        assert np.array_equal(run(model, sample)[0], run(result.model, sample)[0])


def test_smoothing_raises_what_is_left_of_the_products() -> None:
    model = transformer(OUTLIER)
    inputs = samples(model, 8)
    before, after = row_snr_db(model, inputs), row_snr_db(steadied(model, inputs).model, inputs)
    assert before["wide"] < 30
    assert after["wide"] > before["wide"] + 6
    assert after["project"] == before["project"]


def test_a_layer_whose_small_rows_are_lost_is_fragile() -> None:
    model = transformer()
    inputs = samples(model, 8)
    assert steadied(model, inputs).fragile == ()
    # One unit of the GELU that is far larger than the others, and counts for nothing.
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "b1":
            array[5] = 2000.0
        elif tensor.name == "w2":
            array[5] = 0.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert steadied(copy, inputs).fragile == ("narrow",)


@pytest.mark.slow
def test_a_build_for_litert_makes_its_candidate_so(tmp_path: Path) -> None:
    model = tmp_path / "block.onnx"
    onnx.save(transformer(OUTLIER), model)
    options = CompileOptions(precision="int8-dynamic", workers=0, measure_s=0.05)
    built = compile_model(model, ["cpu-x86_64"], output=tmp_path / "out", options=options)
    (info,) = built.report["artifacts"]
    found = {c["name"]: c.get("source_snr_db") for c in info["candidates"]}
    reached = found["litert int8-dynamic"]
    assert reached is not None
    assert reached > 35
