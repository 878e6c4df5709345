"""What is read of the machine."""

from __future__ import annotations

from pathlib import Path

from edgec.runtime._machine import this_machine


def board(root: Path, *, governor: str = "ondemand", load: str = "3.5 2.0 1.0 1/100 42") -> Path:
    files = {
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal:        8245164 kB\nMemFree: 1 kB\n",
        "proc/loadavg": load,
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": f"{governor}\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": f"{governor}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_board_is_described(tmp_path: Path) -> None:
    machine = this_machine(board(tmp_path))
    assert machine.cpu == "Raspberry Pi 5 Model B Rev 1.0"
    assert (machine.memory_mib, machine.governor, machine.load_average) == (8051, "ondemand", 3.5)


def test_what_may_disturb_a_measurement_is_said(tmp_path: Path) -> None:
    concerns = this_machine(board(tmp_path, load="900.5 1 1 1/1 1")).concerns
    assert len(concerns) == 2
    assert "load average was 900.5" in concerns[0]
    assert "'ondemand'" in concerns[1]
    assert this_machine(board(tmp_path, governor="performance", load="0.0 1 1 1/1 1")).concerns == []


def test_a_system_that_does_not_tell_is_no_error(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    assert (machine.cpu, machine.memory_mib, machine.governor, machine.load_average) == (
        "unknown",
        None,
        None,
        None,
    )
    assert machine.concerns == []


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.python.startswith("3.")
