from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.compiler import networks
from tests.compiler.test_quantization import NETWORKS

from edgec.compiler.check import MODEL, CheckReport, check_model, grouped
from edgec.compiler.model import load_model
from edgec.errors import ModelError, UnsupportedModelError
from edgec.targets import Limits, load_target, target_names

CPU, INTEL, JETSON = (load_target(n) for n in ("cpu-x86_64", "intel-cpu", "jetson-orin-nano-jp6"))
BUILT = [n for n in target_names() if load_target(n).family != "litert"]
# What the TFLite writer refuses, and what an NPU leaves to its CPU, is tested in test_litert.py.
NPUS = [n for n in target_names() if load_target(n).family == "litert"]


def forest() -> onnx.ModelProto:
    """A scaler of ai.onnx.ml before standard operators."""
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[2.0]),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Binarizer", ["r"], ["y"], "binarizer", domain="ai.onnx.ml", threshold=0.5),
    ]
    return networks.model_of(nodes, {"x": [1, 4]}, {"y": [1, 4]})


def branching(shape: list[int | str]) -> onnx.ModelProto:
    """An If whose branches differ in rank, and what follows on it."""

    def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
        )

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "second"], ["width"], "width"),
        helper.make_node("Equal", ["width", "one"], ["is_one"], "is_one"),
        helper.make_node(
            "If",
            ["is_one"],
            ["picked"],
            "branch",
            then_branch=body("then", helper.make_node("Squeeze", ["x", "axes"], ["squeezed"], "squeeze")),
            else_branch=body("else", helper.make_node("Identity", ["x"], ["same"], "same")),
        ),
        helper.make_node("Relu", ["picked"], ["y"], "after"),
    ]
    weights = {
        "second": np.array(1, np.int64),
        "one": np.array(1, np.int64),
        "axes": np.array([1], np.int64),
    }
    return networks.model_of(nodes, {"x": shape}, {"y": ["rows", "columns"]}, weights)


def refused(report: CheckReport) -> dict[str, str]:
    return {e.node: e.reason for e in report.refused}


@pytest.mark.parametrize("target", BUILT)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_can_be_compiled_is_told_node_by_node(name: str, target: str) -> None:
    model = NETWORKS[name]()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # NPUs want every size
    report = check_model(model, load_target(target))
    assert report.can_compile
    assert report.nodes == len(model.graph.node)
    assert [e.node for e in report.entries] == [n.name for n in model.graph.node]
    assert {e.verdict for e in report.entries} == {"ok"}
    family = load_target(target).family
    assert report.decided_by == ("rules" if family == "tensorrt" else "converter")
    assert {e.decided_by for e in report.entries} == {report.decided_by}
    report.require()


@pytest.mark.parametrize("target", NPUS)
def test_npus_are_judged_by_the_writer_and_their_limits(target: str) -> None:
    model = networks.cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    report = check_model(model, load_target(target))
    assert report.can_compile
    assert report.decided_by == "rules"


def test_a_family_that_is_not_built_yet_says_so() -> None:
    report = check_model(networks.cnn(), replace(load_target("cpu-x86_64"), family="vendor"))
    assert not report.can_compile
    assert "does not build for vendor targets yet" in refused(report)[MODEL]
    assert report.decided_by == "rules"


def test_all_that_openvino_refuses_is_told_at_once() -> None:
    report = check_model(forest(), INTEL)
    assert set(refused(report)) == {"scaler", "binarizer"}
    assert "there is no conversion rule for ai.onnx.ml.Scaler" in refused(report)["scaler"]
    assert [e.verdict for e in report.entries] == ["refused", "ok", "refused"]
    scaler = report.entries[0]
    assert (scaler.op, scaler.domain, scaler.decided_by) == ("Scaler", "ai.onnx.ml", "converter")
    assert scaler.inputs == ("float32[1, 4]",)
    assert scaler.attributes == {"offset": [0.0], "scale": [2.0]}
    assert "standard ONNX operators" in scaler.fix
    assert check_model(forest(), CPU).can_compile


def test_an_operator_that_nobody_knows_is_refused_everywhere() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Unheard", ["r"], ["y"], "odd", domain="com.example"),
    ]
    model = networks.model_of(nodes, {"x": [1, 4]}, ["y"])
    for target in BUILT:
        report = check_model(model, load_target(target))
        assert set(refused(report)) == {"odd"}
        with pytest.raises(UnsupportedModelError, match="odd"):
            report.require()


def test_what_only_onnx_runtime_refuses_cannot_be_proven() -> None:
    # TensorRT's rules have nothing against it; without a reference there is nothing to hold it against.
    nodes = [helper.make_node("Erf", ["x"], ["y"], "whole")]
    model = networks.model_of(
        nodes, {"x": [4]}, ["y"], input_type=TensorProto.UINT16, output_type=TensorProto.UINT16
    )
    report = check_model(model, replace(JETSON, limits=Limits()))
    assert "ONNX Runtime" in refused(report)["whole"]
    assert report.entries[0].decided_by == "converter"


def test_it_is_the_node_that_decides_not_the_name_of_its_operator() -> None:
    def pooled(dilation: int) -> onnx.ModelProto:
        sizes = {"kernel_shape": [2, 2], "dilations": [dilation, dilation]}
        nodes = [helper.make_node("MaxPool", ["x"], ["y"], "pool", **sizes)]  # type: ignore[arg-type]
        return networks.model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"])

    assert check_model(pooled(1), JETSON).can_compile
    report = check_model(pooled(2), JETSON)
    assert "MaxPool with dilations=[2, 2]" in refused(report)["pool"]
    assert report.entries[0].attributes["dilations"] == [2, 2]

    def erf(kind: int) -> onnx.ModelProto:
        nodes = [helper.make_node("Erf", ["x"], ["y"], "erf")]
        return networks.model_of(nodes, {"x": [1]}, ["y"], input_type=kind, output_type=kind)

    # ONNX has Erf of float64, ONNX Runtime's CPU has not.
    assert check_model(erf(TensorProto.FLOAT), CPU).can_compile
    report = check_model(erf(TensorProto.DOUBLE), CPU)
    assert refused(report) == {"erf": "ONNX Runtime refuses it: Could not find an implementation for Erf(13)"}
    assert report.entries[0].inputs == ("float64[1]",)


def test_nodes_inside_subgraphs_are_judged() -> None:
    report = check_model(branching([1, "width", 4]), CPU)
    assert {"branch", "squeeze", "same"} <= {e.node for e in report.entries}
    inner = helper.make_graph(
        [helper.make_node("Unheard", ["x"], ["u"], "inner", domain="com.example")],
        "inner",
        [],
        [helper.make_tensor_value_info("u", TensorProto.FLOAT, [1])],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner)]
    model = networks.model_of(
        [*nodes, helper.make_node("Unheard", ["x"], ["z"], "outer", domain="com.example")],
        {"x": [1]},
        {"y": [1], "z": [1]},
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    assert {"if", "inner", "outer"} <= set(refused(check_model(model, CPU)))


def test_pinned_shapes_change_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(branching([1, "width", 4]), path)
    report = check_model(path, INTEL)
    assert not report.can_compile
    assert any("--shape x=1,N,4" in e.fix for e in report.refused)
    assert check_model(path, INTEL, shapes={"x": (1, 3, 4)}).can_compile
    assert check_model(load_model(path, {"x": (1, 3, 4)}), INTEL).can_compile


def test_what_simplification_mends_can_be_compiled() -> None:
    # The axes are computed, but from constants: TensorRT's rule is against the former only.
    nodes = [
        helper.make_node("Add", ["zero", "one"], ["axes"], "compute"),
        helper.make_node("Unsqueeze", ["x", "axes"], ["y"], "unsqueeze"),
    ]
    weights = {"zero": np.array([0], np.int64), "one": np.array([1], np.int64)}
    model = networks.model_of(nodes, {"x": [2, 3]}, {"y": [2, 1, 3]}, weights)
    report = check_model(model, JETSON)
    assert report.can_compile
    assert report.notes == ("judged after simplification, as it would be compiled",)


def test_an_opset_that_is_too_new_is_lowered_or_refused() -> None:
    def activated(op: str, opset: int) -> onnx.ModelProto:
        return networks.model_of([helper.make_node(op, ["x"], ["y"], "n")], {"x": [1, 2]}, ["y"], opset=opset)

    report = check_model(activated("Relu", 22), JETSON)
    assert report.can_compile
    assert [e.node for e in report.warnings] == [MODEL]
    assert "is converted to 20" in report.warnings[0].reason
    report = check_model(activated("Swish", 24), JETSON)
    assert not report.can_compile
    assert "opset_version=20" in refused(report)[MODEL]


def test_a_target_file_of_ones_own_decides_by_its_rules_too() -> None:
    target = replace(CPU, limits=Limits(refused_operators=(("Relu", "use Clip"),), static_shapes=True))
    report = check_model(networks.mlp(), target)
    assert list(refused(report)) == [MODEL]
    report = check_model(networks.cnn(), target)
    assert refused(report) == {"relu1": "Relu is not supported"}
    assert report.refused[0].fix == "use Clip"
    assert report.refused[0].decided_by == "rules"


def test_one_reason_is_told_once() -> None:
    nodes = [
        helper.make_node("Unheard", [f"t{i}"], [f"t{i + 1}"], f"odd{i}", domain="com.example")
        for i in range(5)
    ]
    model = networks.model_of(nodes, {"t0": [1]}, ["t5"])
    for target in (CPU, INTEL, JETSON):
        groups = grouped(check_model(model, target).refused)
        assert [len(g) for g in groups.values()] == [5]


def test_the_report_is_fit_for_json() -> None:
    for model in (forest(), networks.lstm(), branching([1, 2, 3])):
        for target in (CPU, INTEL, JETSON):
            shape = check_model(model, target).to_dict()
            assert json.loads(json.dumps(shape)) == shape


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"", "is empty"), (b"not onnx", "is not ONNX")]
)
def test_what_is_no_model_is_an_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check_model(path, CPU)


# -- real models -------------------------------------------------------------------------------------------

MODELS = os.environ.get("EDGEC_TEST_MODELS")
CLEAN = [
    "FastestDet.onnx",
    "kws_ref_model_float32.onnx",
    "pretrainedResnet.onnx",
    "version-RFB-320.onnx",
    "model_1.onnx",
    "model_2.onnx",
    "nab_machine_temp_conv_ae.onnx",
    "nab_machine_temp_dense_ae.onnx",
    "silero_vad_openvino_16k.onnx",
]


def real(name: str) -> Path:
    if MODELS is None:
        pytest.skip("EDGEC_TEST_MODELS is not set")
    found = sorted(Path(MODELS).rglob(name))
    if not found:
        pytest.skip(f"there is no {name} below EDGEC_TEST_MODELS")
    return found[0]


@pytest.mark.models
@pytest.mark.parametrize("target", [CPU, INTEL, JETSON], ids=lambda t: t.name)
@pytest.mark.parametrize("name", CLEAN)
def test_real_models_can_be_compiled(name: str, target: object) -> None:
    report = check_model(real(name), target)  # type: ignore[arg-type]
    assert report.can_compile, refused(report)


@pytest.mark.models
@pytest.mark.parametrize(
    "name", ["breast_cancer_mlp.onnx", "wine_random_forest.onnx", "diabetes_gbdt_reg.onnx"]
)
def test_openvino_refuses_real_models_of_scikit_learn_and_nothing_else_of_them(name: str) -> None:
    path = real(name)
    report = check_model(path, INTEL)
    assert {e.domain for e in report.refused} == {"ai.onnx.ml"}
    assert check_model(path, CPU).can_compile


@pytest.mark.models
def test_openvino_takes_a_real_model_with_if_only_where_its_shapes_are_pinned() -> None:
    path = real("silero_vad_16k_op15.onnx")
    assert check_model(path, CPU).can_compile
    report = check_model(path, INTEL)
    assert "If" in {e.op for e in report.refused}
    assert all("--shape" in e.fix for e in report.refused)
    assert check_model(path, INTEL, shapes={"input": (1, 576), "state": (2, 1, 128)}).can_compile
