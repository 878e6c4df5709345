"""Arm Vela: from a TFLite file of integers to one whose operators are an Ethos-U's command streams.

Vela runs in a process of its own: it prints, and keeps state of the process. It exits with 0 also where it
leaves every operator to the CPU, so that its report is read, and never its exit status alone.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgec.compiler.converters import Converted, Estimate
from edgec.compiler.toolchain import run_tool
from edgec.errors import ConversionError
from edgec.runtime.backends._versions import is_in_line
from edgec.targets import Target

FILE = "model_vela.tflite"
_PACKAGE = "ethos-u-vela"
_TIMEOUT_S = 900.0
_FALLBACK = re.compile(
    r"Warning \(supported operators\) operator: (?P<operator>\S+), ofm: '(?P<output>[^\n]*)'\n"
    r"Reason: (?P<reason>[^\n]*(?:\n(?!\n|Warning )[^\n]+)*)"
)
_SHARE = re.compile(r"(CPU|NPU) operators = (\d+) \(")
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class CpuOperator:
    """An operator that Vela leaves to the CPU.

    Attributes:
        operator: As TFLite calls it: ``MEAN``.
        output: Name of its output.
        reason: Vela's, in one line.
    """

    operator: str
    output: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.output!r}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela says of a model. Time and cycles are its performance model's estimates.

    Attributes:
        version: Of Vela.
        accelerator: ``ethos-u55-128``.
        system_config: Clock and memories that the estimate is for.
        memory_mode: Where weights and feature maps lie.
        inference_ms: Of one inference.
        cycles: Likewise.
        clock_mhz: Of the NPU in the system configuration.
        sram_kib: SRAM used.
        dram_kib: DRAM used.
        flash_kib: Flash used, on chip and off.
        macs: Multiply-accumulates of one inference.
        npu_operators: On the NPU, after Vela took operators apart.
        cpu_operators: Left to the CPU.
        on_cpu: Those, with the reason.
    """

    version: str
    accelerator: str
    system_config: str
    memory_mode: str
    inference_ms: float
    cycles: int
    clock_mhz: float
    sram_kib: float
    dram_kib: float
    flash_kib: float
    macs: int
    npu_operators: int
    cpu_operators: int
    on_cpu: tuple[CpuOperator, ...]

    @property
    def source(self) -> str:
        """What the estimate is of, in words."""
        return f"estimated by Vela {self.version} for {self.system_config}, {self.memory_mode}"

    @property
    def figures(self) -> dict[str, float]:
        """What it says in numbers, by the names of a report."""
        total = self.npu_operators + self.cpu_operators
        return {
            "cycles": self.cycles,
            "clock_mhz": self.clock_mhz,
            "macs": self.macs,
            "sram_kib": self.sram_kib,
            "dram_kib": self.dram_kib,
            "flash_kib": self.flash_kib,
            "operators": total,
            "cpu_operators": self.cpu_operators,
            "cpu_share": self.cpu_operators / total if total else 0.0,
        }

    @property
    def sentence(self) -> str:
        """All that matters, in one line."""
        total = self.npu_operators + self.cpu_operators
        return (
            f"{self.inference_ms:.3g} ms, {self.cycles} cycles at {self.clock_mhz:.0f} MHz, "
            f"SRAM {self.sram_kib:.0f} KiB, {self.cpu_operators} of {total} operators on the CPU, "
            f"{self.source}"
        )


def compile_for_ethos_u(plain: Converted, target: Target, directory: Path) -> Converted:
    """Add to a file of integers what Vela makes of it; the file stays: its numerics can be run anywhere.

    Raises:
        ConversionError: Vela is not installed or fails, leaves every operator to the CPU, or the model needs
            more SRAM than the target has.
    """
    accelerator = dict(target.accelerator)
    (name,) = plain.engine.files
    made, report = run_vela(plain.files[name], accelerator, directory)
    problems = find_problems(report, int(accelerator["sram_kib"]))
    if problems:
        raise ConversionError(f"{target.name}: {'; '.join(problems)}")
    return replace(
        plain,
        files={FILE: made, **plain.files},
        engine=replace(plain.engine, files=(FILE,)),
        recipe={
            **plain.recipe,
            "builder": "vela",
            "command": " ".join(["vela", name, *options(accelerator)]),
            "flash": FILE,
        },
        not_run=(
            "nothing was run on an Ethos-U: numerics are those of the plain file with LiteRT's reference "
            f"kernels, and Vela estimates {report.sentence}",
        ),
        notes=tuple(f"Vela leaves to the CPU: {operator}" for operator in report.on_cpu[:_SHOWN]),
        estimate=Estimate(latency_ms=report.inference_ms, source=report.source, figures=report.figures),
    )


def find_problems(report: VelaReport, sram_kib: int) -> list[str]:
    """Return why a model cannot be shipped, with the way out; empty where it can."""
    problems = []
    if report.npu_operators == 0:
        reasons = "; ".join(map(str, report.on_cpu[:_SHOWN]))
        problems.append(
            f"Vela leaves all {report.cpu_operators} operators to the CPU: {reasons}; replace them in the "
            "model, or compile for a CPU"
        )
    if report.sram_kib > sram_kib:
        problems.append(
            f"Vela needs {report.sram_kib:.0f} KiB of SRAM, the target has {sram_kib}: give the model "
            "smaller inputs or fewer channels in its first layers, or say in a target of your own what SRAM "
            "there is"
        )
    return problems


def run_vela(
    model: Path,
    accelerator: Mapping[str, str | int],
    directory: Path,
    *,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[Path, VelaReport]:
    """Compile a TFLite file of integers, and read what Vela says of it.

    Args:
        model: The file.
        accelerator: Of the target: ``vela_accelerator_config``, ``vela_system_config`` and so on.
        directory: Where the result goes, as ``model_vela.tflite``.
        timeout_s: After which Vela is given up.

    Raises:
        ConversionError: Vela is not installed, of another version line, fails, or takes too long.
    """
    found = _version(str(accelerator.get("vela_version", "")))
    folder = directory / "vela"
    folder.mkdir()
    made = folder / f"{model.stem}_vela.tflite"
    words = [sys.executable, "-m", "ethosu.vela", str(model.resolve()), "--output-dir", "vela"]
    said, _ = run_tool(
        [*words, *options(accelerator)], made, what=f"Vela {found}", timeout_s=timeout_s, directory=directory
    )
    summaries = list(folder.glob("*_summary_*.csv"))
    if len(summaries) != 1:
        raise ConversionError(f"Vela {found} writes {len(summaries)} summaries, expected one: update edgec")
    with summaries[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    report = _report(rows[-1], said, found, str(accelerator["vela_accelerator_config"]))
    return made.replace(directory / FILE), report


def options(accelerator: Mapping[str, str | int]) -> list[str]:
    """Return Vela's command line for a target, but for files."""
    return [
        "--accelerator-config",
        str(accelerator["vela_accelerator_config"]),
        "--config",
        str(accelerator["vela_config"]),
        "--system-config",
        str(accelerator["vela_system_config"]),
        "--memory-mode",
        str(accelerator["vela_memory_mode"]),
        # Vela spills or reuses so that it stays below, as far as it can.
        "--arena-cache-size",
        str(int(accelerator["sram_kib"]) * 1024),
    ]


def _version(line: str) -> str:
    try:
        found = version(_PACKAGE)
    except PackageNotFoundError as e:
        raise ConversionError(
            "compiling for an Ethos-U needs Arm's compiler Vela: run  pip install 'edgec[ethos-u]'"
        ) from e
    if not is_in_line(found, line):
        raise ConversionError(
            f"the target needs Vela {line}, this is {found}: run  pip install '{_PACKAGE}{line}'"
        )
    return found


def _report(row: Mapping[str, str], said: str, found: str, accelerator: str) -> VelaReport:
    counts = {place: int(n) for place, n in _SHARE.findall(said)}
    if counts.keys() != {"CPU", "NPU"}:
        raise ConversionError(f"Vela {found} does not say how many operators it placed where: update edgec")
    try:
        return VelaReport(
            version=found,
            accelerator=accelerator,
            system_config=row["system_config"],
            memory_mode=row["memory_mode"],
            inference_ms=1e3 * float(row["inference_time"]),
            cycles=round(float(row["cycles_total"])),
            clock_mhz=float(row["core_clock"]) / 1e6,
            sram_kib=float(row["sram_memory_used"]),
            dram_kib=float(row["dram_memory_used"]),
            flash_kib=float(row["on_chip_flash_memory_used"]) + float(row["off_chip_flash_memory_used"]),
            macs=round(float(row["nn_macs"])),
            npu_operators=counts["NPU"],
            cpu_operators=counts["CPU"],
            on_cpu=tuple(_on_cpu(said)),
        )
    except (KeyError, ValueError) as e:
        raise ConversionError(
            f"Vela {found} writes a summary that edgec cannot read ({e}): update edgec"
        ) from e


def _on_cpu(said: str) -> list[CpuOperator]:
    return [
        CpuOperator(
            operator=match["operator"],
            output=match["output"],
            reason=" ".join(line.strip().rstrip(".") + "." for line in match["reason"].splitlines()),
        )
        for match in _FALLBACK.finditer(said)
    ]
