"""What edgetpu_compiler prints, as its users have posted it; the program itself is on no package index."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edgec.compiler.edgetpu import EdgeTpuReport, read_report, run_edgetpu_compiler
from edgec.errors import ConversionError

WHOLE = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 3133 ms.

Input model: model.tflite
Number of Edge TPU subgraphs: 1
Total number of operations: 246
Operation log: model_edgetpu.log

Operator                       Count      Status

ADD                            3          Mapped to Edge TPU
RESHAPE                        6          Mapped to Edge TPU
"""
PARTLY = """Edge TPU Compiler version 15.0.340273435
Total number of operations: 267

Model successfully compiled but not all operations are supported by the Edge TPU.
Number of operations that will run on Edge TPU: 261
Number of operations that will run on CPU: 6

Operator                       Count      Status

DEQUANTIZE                     2          Operation is working on an unsupported data type
DEPTHWISE_CONV_2D              80         Mapped to Edge TPU
CONCATENATION                  1          More than one subgraph is not supported
"""


def program(directory: Path, text: str, *, makes: bool = True, status: int = 0) -> Path:
    """Return a program that prints a report, and leaves a file as the compiler does."""
    path = directory / "edgetpu_compiler"
    made = '[ "$1" = -s ] && cp "$4" "$3/model_edgetpu.tflite"' if makes else ":"
    path.write_text(f"#!/bin/sh\n{made}\ncat <<'END'\n{text}END\nexit {status}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_model_that_is_mapped_whole() -> None:
    expected = EdgeTpuReport(version="16.0.384591198", mapped=246, left=0, reasons=())
    assert read_report(WHOLE) == expected


def test_operators_left_to_the_cpu_come_with_the_reason() -> None:
    report = read_report(PARTLY)
    assert (report.mapped, report.left) == (261, 6)
    assert report.reasons == (
        "2 x DEQUANTIZE: Operation is working on an unsupported data type",
        "1 x CONCATENATION: More than one subgraph is not supported",
    )


@pytest.mark.parametrize("said", ["", "Internal compiler error. Aborting!"])
def test_an_unknown_report_is_refused(said: str) -> None:
    with pytest.raises(ConversionError, match="does not say how many"):
        read_report(said)


def test_the_program_is_run_and_its_file_taken(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(b"....TFL3")
    made, report = run_edgetpu_compiler(program(tmp_path, PARTLY), model, tmp_path)
    assert made == tmp_path / "model_edgetpu.tflite"
    assert made.read_bytes() == b"....TFL3"
    assert report.mapped == 261


@pytest.mark.parametrize(("makes", "status"), [(False, 0), (True, 1)])
def test_a_failure_is_told_by_its_last_line(tmp_path: Path, makes: bool, status: int) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(b"....TFL3")
    broken = program(tmp_path, "first\nInternal compiler error. Aborting!\n", makes=makes, status=status)
    with pytest.raises(ConversionError, match=r"fails: Internal compiler error\. Aborting!"):
        run_edgetpu_compiler(broken, model, tmp_path)


def test_a_model_of_which_nothing_is_mapped_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model.tflite"
    model.write_bytes(b"....TFL3")
    nothing = PARTLY.replace("261", "0")
    with pytest.raises(ConversionError, match="leaves every operator to the CPU: 2 x DEQUANTIZE"):
        run_edgetpu_compiler(program(tmp_path, nothing), model, tmp_path)
