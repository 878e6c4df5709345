"""Coral's Edge TPU: its compiler is a program of Google's that no package index has.

Where ``edgetpu_compiler`` is on the path it is run, and its report read; otherwise the artifact says what
remains to be run, and where.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from edgec.compiler.converters import Converted
from edgec.compiler.toolchain import run_tool
from edgec.errors import ConversionError
from edgec.targets import Target

FILE = "model_edgetpu.tflite"
_PROGRAM = "edgetpu_compiler"
_TIMEOUT_S = 900.0
_TOTAL = re.compile(r"Total number of operations: (\d+)")
_MAPPED = re.compile(r"Number of operations that will run on Edge TPU: (\d+)")
_LEFT = re.compile(r"Number of operations that will run on CPU: (\d+)")
# "MEAN    1    Operation is working on an unsupported data type"
_OPERATOR = re.compile(r"^(?P<operator>[A-Z][A-Z0-9_]+) +(?P<count>\d+) +(?P<status>\S.*)$", re.MULTILINE)
_MAPPED_STATUS = "Mapped to Edge TPU"


@dataclass(frozen=True, kw_only=True)
class EdgeTpuReport:
    """What the compiler says of a model.

    Attributes:
        version: As it names itself; empty where it does not.
        mapped: Operators on the Edge TPU.
        left: Operators on the host's CPU.
        reasons: Kinds of operators left to the CPU, how many, and why.
    """

    version: str
    mapped: int
    left: int
    reasons: tuple[str, ...]


def compile_for_edgetpu(plain: Converted, target: Target, directory: Path) -> Converted:
    """Compile an int8 file for the Edge TPU, if that can be done here.

    Raises:
        ConversionError: The compiler fails, or maps nothing.
    """
    (name,) = plain.engine.files
    command = f"{_PROGRAM} -s {name}"
    recipe = {**plain.recipe, "builder": _PROGRAM, "command": command}
    program = shutil.which(_PROGRAM)
    if program is None:
        remains = (
            f"{_PROGRAM} is not on this machine's path (it is in Google's apt repository, for x86-64 Linux): "
            f"the artifact holds the int8 file it takes; run  edgec compile  for {target.name} where it is "
            f"installed, or unpack {name} and run  {command}"
        )
        return replace(plain, recipe=recipe, not_run=(remains,))
    made, report = run_edgetpu_compiler(Path(program), plain.files[name], directory)
    return replace(
        plain,
        files={FILE: made, **plain.files},
        engine=replace(plain.engine, files=(FILE,)),
        recipe=recipe,
        not_run=(
            f"nothing was run on an Edge TPU: numerics are those of the int8 file on the CPU; {_PROGRAM} "
            f"{report.version} maps {report.mapped} of {report.mapped + report.left} operators",
        ),
        notes=tuple(f"{_PROGRAM} leaves to the CPU: {reason}" for reason in report.reasons),
    )


def run_edgetpu_compiler(
    program: Path, model: Path, directory: Path, *, timeout_s: float = _TIMEOUT_S
) -> tuple[Path, EdgeTpuReport]:
    """Compile a file, and read the report.

    Raises:
        ConversionError: The compiler fails, takes too long, or maps nothing.
    """
    folder = directory / "edgetpu"
    folder.mkdir()
    made = folder / f"{model.stem}_edgetpu.tflite"
    command: list[str | Path] = [program, "-s", "-o", folder, model]
    report = read_report("".join(run_tool(command, made, what=_PROGRAM, timeout_s=timeout_s)))
    if report.mapped == 0:
        raise ConversionError(
            f"{_PROGRAM} leaves every operator to the CPU: "
            f"{'; '.join(report.reasons) or 'it does not say why'}"
        )
    return made.replace(directory / FILE), report


def read_report(said: str) -> EdgeTpuReport:
    """Read what the compiler printed.

    Raises:
        ConversionError: It is not what the compiler is known to print.
    """
    total, mapped, left = (pattern.search(said) for pattern in (_TOTAL, _MAPPED, _LEFT))
    if total is None and mapped is None:
        raise ConversionError(f"{_PROGRAM} does not say how many operators it mapped: update edgec")
    on_cpu = int(left[1]) if left is not None else 0
    # Of a model that is mapped whole, it says how many operators there are and no more.
    on_tpu = int(mapped[1]) if mapped is not None else int(total[1]) - on_cpu if total is not None else 0
    named = re.search(r"Edge TPU Compiler version (\S+)", said)
    reasons = [
        f"{match['count']} x {match['operator']}: {match['status'].strip()}"
        for match in _OPERATOR.finditer(said)
        if match["status"].strip() != _MAPPED_STATUS
    ]
    return EdgeTpuReport(
        version=named[1] if named is not None else "",
        mapped=on_tpu,
        left=on_cpu,
        reasons=tuple(reasons),
    )
