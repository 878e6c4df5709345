from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from tests.compiler import networks

from edgec.cli import main_group
from edgec.errors import ModelError, UnknownTargetError


@pytest.fixture
def clean(tmp_path: Path) -> str:
    onnx.save(networks.cnn(), tmp_path / "clean.onnx")
    return str(tmp_path / "clean.onnx")


@pytest.fixture
def odd(tmp_path: Path) -> str:
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], "scaler", domain="ai.onnx.ml", offset=[0.0], scale=[2.0]),
        helper.make_node("Relu", ["s"], ["y"], "\x1b[31mred"),
    ]
    onnx.save(networks.model_of(nodes, {"x": [1, 4]}, {"y": [1, 4]}), tmp_path / "odd.onnx")
    return str(tmp_path / "odd.onnx")


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main_group, ["check", *arguments], catch_exceptions=True)


def test_a_model_that_can_be_compiled_exits_0(clean: str) -> None:
    result = check(clean, "-t", "cpu-x86_64", "-t", "intel-cpu", "-t", "jetson-orin-nano-jp6")
    assert result.exit_code == 0
    assert result.output.count("can be compiled") == 3
    assert "ONNX Runtime" in result.output
    assert "OpenVINO" in result.output


def test_one_target_that_cannot_is_enough_for_exit_1(odd: str) -> None:
    result = check(odd, "-t", "cpu-x86_64", "-t", "intel-cpu")
    assert result.exit_code == 1
    assert "odd.onnx for cpu-x86_64: can be compiled" in result.output
    assert "odd.onnx for intel-cpu: cannot be compiled" in result.output
    assert "scaler: ai.onnx.ml.Scaler float32[1, 4]" in result.output
    assert "-> export it as standard ONNX operators" in result.output


def test_aliases_say_what_they_stand_for(clean: str) -> None:
    assert "'jetson' is jetson-orin-nano-jp6" in check(clean, "-t", "jetson").output


def test_json_has_every_node(odd: str) -> None:
    result = check(odd, "-t", "intel-cpu", "--json")
    assert result.exit_code == 1
    shape = json.loads(result.output)
    assert shape["model"] == odd
    (target,) = shape["targets"]
    assert set(target) == {
        "target",
        "can_compile",
        "decided_by",
        "judge",
        "notes",
        "nodes",
        "refused",
        "entries",
    }
    assert (target["can_compile"], target["nodes"], target["refused"]) == (False, 2, 1)
    assert set(target["entries"][0]) == {
        "node",
        "op",
        "domain",
        "inputs",
        "outputs",
        "attributes",
        "verdict",
        "reason",
        "fix",
        "decided_by",
    }


def test_names_from_the_model_cannot_command_the_terminal(odd: str) -> None:
    result = check(odd, "-t", "ethos-u55-128")
    assert result.exit_code == 1
    assert "\x1b" not in result.output


def test_an_npu_is_judged_by_its_rules(clean: str) -> None:
    result = check(clean, "-t", "coral-edgetpu")
    assert result.exit_code == 0
    assert "coral-edgetpu" in result.output


def test_shapes_can_be_pinned(tmp_path: Path) -> None:
    onnx.save(
        networks.model_of([helper.make_node("Relu", ["x"], ["y"], "r")], {"x": [1, "n"]}, ["y"]),
        tmp_path / "m.onnx",
    )
    model = str(tmp_path / "m.onnx")
    assert check(model, "-t", "jetson").exit_code == 1
    assert check(model, "-t", "jetson", "--shape", "x=1,8").exit_code == 0


def test_what_to_type_is_quoted_for_a_shell(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["images:0 (in)"], ["y"], "r")]
    onnx.save(networks.model_of(nodes, {"images:0 (in)": ["n", 3, "h", "w"]}, ["y"]), tmp_path / "m.onnx")
    told = check(str(tmp_path / "m.onnx"), "-t", "jetson").output
    assert "pin them: --shape 'images:0 (in)=1,3,h,w' with numbers for h, w" in told
    assert "(1 node, say the rules of jetson-orin-nano-jp6)" in told


@pytest.mark.parametrize(
    "arguments",
    [[], ["-t", "cpu"], ["MODEL"], ["MODEL", "-t", "cpu", "--shape", "x"], ["MODEL", "-t", "cpu", "--what"]],
)
def test_wrong_usage_exits_2(arguments: list[str], clean: str) -> None:
    assert check(*[clean if a == "MODEL" else a for a in arguments]).exit_code == 2


def test_bad_input_is_an_error_of_edgec(clean: str, tmp_path: Path) -> None:
    assert isinstance(check(str(tmp_path / "none.onnx"), "-t", "cpu").exception, ModelError)
    assert isinstance(check(clean, "-t", "toaster").exception, UnknownTargetError)
    assert isinstance(check(clean, "-t", "cpu", "--shape", "nope=1").exception, ModelError)


def test_help_shows_examples() -> None:
    output = check("--help").output
    assert "edgec check model.onnx --target jetson" in output
    assert "Exit status" in output
