"""``edgec targets`` for humans and machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgec.cli import main_group
from edgec.errors import TargetError, UnknownTargetError
from edgec.targets import alias_names, load_target, target_names


def run(*args: str) -> Result:
    return CliRunner().invoke(main_group, ["targets", *args])


def output_of(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.output


def shape_of(*args: str) -> Any:
    return json.loads(output_of(*args, "--json"))


def test_the_list_shows_every_target_and_alias() -> None:
    lines = output_of().splitlines()
    assert lines[0].split() == ["TARGET", "ENGINE", "PRECISIONS", "MEMORY"]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(target_names())]}
    assert sorted(rows) == target_names()
    assert "tensorrt GPU" in rows["jetson-orin-nano-jp6"]
    assert "4 GiB" in rows["jetson-orin-nano-jp6"]
    assert "fp32 fp16 bf16 int8 int8-weights int4-weights mixed" in rows["intel-cpu"]
    aliases = "\n".join(lines[len(rows) :])
    assert all(alias in aliases for alias in alias_names())


def test_the_list_as_json_has_the_documented_shape() -> None:
    shape = shape_of()
    assert set(shape) == {"targets", "aliases"}
    assert [target["name"] for target in shape["targets"]] == target_names()
    assert shape["targets"] == [load_target(name).to_dict() for name in target_names()]
    assert shape["aliases"] == alias_names()


def test_one_target_as_json_has_the_documented_shape() -> None:
    shape = shape_of("jetson")
    assert set(shape) == {"asked", "note", "target"}
    assert shape["asked"] == "jetson"
    assert "'jetson' is jetson-orin-nano-jp6" in shape["note"]
    target = shape["target"]
    assert set(target) == {
        "name",
        "title",
        "family",
        "arch",
        "engines",
        "fallback",
        "quantization",
        "limits",
        "memory_mib",
        "storage_mib",
        "simd",
        "stand_in",
        "accelerator",
        "sources",
    }
    assert set(target["engines"][0]) == {"name", "version", "device", "precisions", "storage_only", "needs"}
    assert set(target["fallback"]) == set(target["engines"][0])
    assert set(target["stand_in"]) == {"arch", "features", "without", "ranking", "rule"}
    assert set(target["limits"]) == {
        "min_opset",
        "max_opset",
        "max_ir_version",
        "max_rank",
        "static_shapes",
        "max_batch",
        "refused_operators",
        "allowed_operators",
        "refused_dtypes",
        "attributes",
    }
    assert set(target["limits"]["attributes"][0]) == {
        "operator",
        "attribute",
        "minimum",
        "maximum",
        "allowed",
        "reason",
    }
    assert set(target["quantization"]) == {
        "activation_dtype",
        "activation_symmetric",
        "weight_dtype",
        "weight_symmetric",
        "per_channel",
        "bias_dtype",
        "io_dtype",
        "residual_one_input",
        "full_integer",
        "weight_qdq",
        "weight_zero_point",
        "saturates_without",
    }
    assert shape_of("intel-cpu")["target"]["engines"][0]["needs"] == {
        "bf16": ["avx512_bf16", "amx_bf16"],
        "mixed": ["avx512_bf16", "amx_bf16"],
    }
    assert shape_of("intel-cpu")["note"] is None


def test_one_target_is_shown_with_all_its_values_and_sources() -> None:
    target = load_target("jetson-orin-nano-jp6")
    words = " ".join(output_of("jetson").split())
    assert "'jetson' is jetson-orin-nano-jp6" in words
    assert "tensorrt >=10.3,<11 on GPU: fp32, fp16, int8, mixed" in words
    assert "onnxruntime >=1.23.2,<2 on CPU" in words
    assert "ONNX opset up to 20" in words
    assert "compute_capability: 8.7" in words
    assert target.stand_in.rule in words
    assert all(f"{key}: {where}" in words for key, where in target.sources)
    assert all(operator in words for operator, _ in target.limits.refused_operators)


@pytest.mark.parametrize("name", target_names())
def test_every_target_is_shown_in_lines_that_fit(name: str) -> None:
    lines = output_of(name).splitlines()
    assert lines[0] == f"{name}: {load_target(name).title}"
    assert all(len(line) <= 100 for line in lines if "https://" not in line)


def test_a_file_of_ones_own_is_checked_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "camera.toml"
    path.write_text(
        'name = "camera"\nextends = "rpi5"\nquantization = "none"\n[[engines]]\n', encoding="utf-8"
    )
    result = run(str(path))
    assert isinstance(result.exception, TargetError)
    assert "camera.toml: " in str(result.exception)
    assert "engines[0].name: is missing" in str(result.exception)
    path.write_text('name = "camera"\nextends = "rpi5"\nmemory_mib = 300\n', encoding="utf-8")
    shown = output_of(str(path))
    assert f"'{path}' describes the target camera" in shown
    assert "300 MiB" in shown


def test_a_target_without_int8_says_so(tmp_path: Path) -> None:
    path = tmp_path / "float.toml"
    text = """
name = "float"
title = "Floats only"
family = "onnxruntime"
arch = "any"
memory_mib = 1
storage_mib = 1
simd = []
[[engines]]
name = "onnxruntime"
version = ">=1.23"
device = "CPU"
precisions = ["fp32"]
[stand_in]
ranking = ["fp32"]
rule = "one candidate"
"""
    path.write_text(text, encoding="utf-8")
    shown = output_of(str(path))
    assert "none: this target has no int8" in shown
    assert "limits       none" in shown


def test_an_unknown_target_is_an_error_that_lists_the_known() -> None:
    result = run("jetson-nano")
    assert isinstance(result.exception, UnknownTargetError)
    assert "jetson-orin-nano-jp6" in str(result.exception)


def test_wrong_usage_exits_2() -> None:
    assert run("jetson", "rpi5").exit_code == 2
    assert run("--jsn").exit_code == 2


def test_help_has_examples() -> None:
    shown = output_of("--help")
    assert "edgec targets jetson" in shown
    assert "edgec targets ./camera.toml" in shown
