from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper
from tests.compiler import networks

from edgec.compiler.converters import Prepared
from edgec.compiler.converters.onnxruntime import OnnxRuntimeConverter
from edgec.compiler.model import opset_of
from edgec.compiler.passes.fit_limits import fit_limits
from edgec.errors import PassError
from edgec.targets import Limits, load_target


def model_of(op: str, opset: int) -> onnx.ModelProto:
    return networks.model_of([helper.make_node(op, ["x"], ["y"], "n")], {"x": [1, 2]}, ["y"], opset=opset)


def test_a_model_within_the_limits_is_returned_as_it_is() -> None:
    model = networks.cnn()
    assert fit_limits(model, Limits()) is model
    assert fit_limits(model, Limits(max_opset=17, max_ir_version=8)) is model


def test_opset_and_ir_version_are_lowered_and_the_result_is_the_same() -> None:
    model = model_of("Relu", 22)
    model.ir_version = 12
    before = model.SerializeToString(deterministic=True)
    fitted = fit_limits(model, Limits(max_opset=19, max_ir_version=9))
    assert (opset_of(fitted), fitted.ir_version) == (19, 9)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(fitted)
    sample = networks.samples(model, 1)[0]
    assert networks.run(fitted, sample)[0].tolist() == networks.run(model, sample)[0].tolist()


def test_an_operator_without_an_older_form_is_named() -> None:
    with pytest.raises(PassError, match=r"opset 24 is newer than the 20 .*Swish.*opset_version=20"):
        fit_limits(model_of("Swish", 24), Limits(max_opset=20))


def test_payloads_of_onnx_runtime_load_in_the_targets_oldest_release(tmp_path: Path) -> None:
    target = load_target("cpu-x86_64")
    model = model_of("Relu", 25)
    model.ir_version = 12
    OnnxRuntimeConverter().convert(
        Prepared(model=model, precision="fp32"), target.engines[0], target, tmp_path
    )
    written = onnx.load(tmp_path / "model.onnx")
    assert opset_of(written) == target.limits.max_opset
    assert written.ir_version == target.limits.max_ir_version
