"""Vela's report on real files, and what is made of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ethosu")
pytest.importorskip("ai_edge_litert")

from edgec.artifact import TensorSpec
from edgec.compiler.vela import CpuOperator, VelaReport, find_problems, options, run_vela
from edgec.errors import ConversionError
from edgec.runtime.testing import Node
from edgec.runtime.testing.litert import int8_convolution_members, litert_members
from edgec.targets import load_target

U55 = dict(load_target("ethos-u55-128").accelerator)


def written(directory: Path, members: dict[str, bytes]) -> Path:
    path = directory / "model.tflite"
    path.write_bytes(members["model.tflite"])
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> VelaReport:
    directory = tmp_path_factory.mktemp("vela")
    made, report = run_vela(written(directory, int8_convolution_members()), U55, directory)
    assert made.read_bytes()[4:8] == b"TFL3"
    assert b"ethos-u" in made.read_bytes()
    return report


@pytest.mark.slow
def test_the_report_is_read(report: VelaReport) -> None:
    assert report.cpu_operators == 0
    assert report.npu_operators == 1
    assert report.on_cpu == ()
    assert report.macs == 16 * 16 * 16 * 8 * 9
    assert report.inference_ms == pytest.approx(1e3 * report.cycles / (1e6 * report.clock_mhz), rel=1e-3)
    assert 16 * 16 * (8 + 16) / 1024 <= report.sram_kib < 64
    assert "0 of 1 operators on the CPU, estimated by Vela 5." in report.sentence
    assert find_problems(report, 2048) == []
    assert report.figures["cycles"] == report.cycles
    assert report.figures["sram_kib"] == report.sram_kib
    assert (report.figures["operators"], report.figures["cpu_share"]) == (1, 0.0)


@pytest.mark.slow
def test_operators_that_fall_back_are_named_with_the_reason(tmp_path: Path) -> None:
    specs = [TensorSpec("x", "float32", (1, 4))], [TensorSpec("y", "float32", (1, 4))]
    made = written(tmp_path, litert_members([Node("Relu", ["x"], ["y"])], *specs))
    _, report = run_vela(made, U55, tmp_path)
    assert (report.npu_operators, report.cpu_operators) == (0, 1)
    (operator,) = report.on_cpu
    assert (operator.operator, operator.output) == ("RELU", "y")
    assert "unsupported DataType Float32" in operator.reason
    assert "\n" not in operator.reason
    (problem,) = find_problems(report, 2048)
    assert problem.startswith("Vela leaves all 1 operators to the CPU: RELU 'y':")


def test_too_much_sram_is_a_problem_with_the_way_out() -> None:
    report = VelaReport(
        version="5.2.0", accelerator="ethos-u55-128", system_config="S", memory_mode="M", inference_ms=1.0,
        cycles=500_000, clock_mhz=500.0, sram_kib=2048.9, dram_kib=0.0, flash_kib=10.0, macs=1,
        npu_operators=3, cpu_operators=1,
        on_cpu=(CpuOperator(operator="MEAN", output="m", reason="too wide."),),
    )  # fmt: skip
    (problem,) = find_problems(report, 2048)
    assert "needs 2049 KiB of SRAM, the target has 2048" in problem
    assert "smaller inputs" in problem
    assert find_problems(replace(report, sram_kib=2048.0), 2048) == []


@pytest.mark.slow
def test_what_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"TFL3" * 100)
    with pytest.raises(ConversionError, match=r"Vela 5\.\S+ fails: ."):
        run_vela(path, U55, tmp_path)


def test_another_version_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"needs Vela >=99, this is 5\..*pip install"):
        run_vela(tmp_path / "m.tflite", {**U55, "vela_version": ">=99"}, tmp_path)


@pytest.mark.slow
def test_a_compiler_that_hangs_is_given_up(tmp_path: Path) -> None:
    path = written(tmp_path, int8_convolution_members())
    with pytest.raises(ConversionError, match="did not finish within 0 s"):
        run_vela(path, U55, tmp_path, timeout_s=0.01)


def test_the_command_line_has_the_budget_of_the_target() -> None:
    words = options(U55)
    assert words[words.index("--arena-cache-size") + 1] == str(2048 * 1024)
    assert words[words.index("--accelerator-config") + 1] == "ethos-u55-128"


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.skipif("EDGEC_TEST_MODELS" not in os.environ, reason="EDGEC_TEST_MODELS names no folder")
@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("mlperf_tiny_kws_dscnn/kws_ref_model.tflite", 2_664_792),
        ("tflm_person_detect/person_detect.tflite", 0),
    ],
)
def test_real_int8_models_run_on_the_npu_whole(name: str, macs: int, tmp_path: Path) -> None:
    _, report = run_vela(Path(os.environ["EDGEC_TEST_MODELS"], name), U55, tmp_path)
    assert report.cpu_operators == 0
    assert macs in (0, report.macs)
