"""Heat and energy, read from trees of files like those of real devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgec.runtime._energy import EnergyMeter
from edgec.runtime._thermal import ThermalState, thermal_state, throttling


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


PI = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 61234,
    "sys/class/thermal/cooling_device0/type": "pwm-fan",
    "sys/class/thermal/cooling_device0/cur_state": 3,
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 2400000,
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 2400000,
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": 2400000,
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0",
}


def test_a_cool_device_has_no_concerns(tmp_path: Path) -> None:
    state = thermal_state(write(tmp_path, PI))
    assert state.temperatures_c == {"cpu-thermal": 61.234}
    assert (state.clock_mhz, state.limit_mhz, state.nominal_mhz) == (2400.0, 2400.0, 2400.0)
    assert state.cooling == {}  # a fan slows nothing down
    assert throttling(state, state) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "5"}, "under-voltage and throttling"),
        (
            {
                "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0",
                "sys/class/thermal/cooling_device1/cur_state": 2,
            },
            "cpufreq-cpu0 at step 2",
        ),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 1500000}, "from 2400 to 1500 MHz"),
        ({"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 9}, "throttled 5 times"),
    ],
)
def test_throttling_is_said(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    count = {"sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 4}
    before = thermal_state(write(tmp_path, {**PI, **count}))
    concerns = throttling(before, thermal_state(write(tmp_path, changes)))
    assert len(concerns) == 1
    assert said in concerns[0]


def test_a_system_that_tells_nothing_is_unknown(tmp_path: Path) -> None:
    write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "", "sys/class/thermal/thermal_zone0/type": "x"})
    state = thermal_state(tmp_path)
    assert state == ThermalState()
    assert not state.is_known
    assert throttling(state, state) == []


def ticking() -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += 2.0


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 900_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 1_000_000_000,
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 1,
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": 5,
}


@pytest.mark.parametrize(("last", "joules"), [(950_000_000, 50.0), (20_000_000, 120.0)])
def test_rapl_counts_the_package_over_its_wrap(tmp_path: Path, last: int, joules: float) -> None:
    ticks = ticking()
    meter = EnergyMeter(write(tmp_path, RAPL), clock=lambda: next(ticks))
    with meter:
        write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": last})
    energy = meter.energy(10)
    assert energy is not None
    assert (energy.source, energy.seconds) == ("RAPL: package-0", 2.0)
    assert energy.joules == pytest.approx(joules)
    assert energy.joules_per_call == pytest.approx(joules / 10)
    assert energy.watts == pytest.approx(joules / 2)


def test_the_rail_of_a_board_is_integrated(tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon/hwmon1"
    files = {
        f"{hwmon}/name": "ina3221",
        f"{hwmon}/in1_label": "VDD_CPU", f"{hwmon}/in1_input": 5000, f"{hwmon}/curr1_input": 100,
        f"{hwmon}/in2_label": "VDD_IN", f"{hwmon}/in2_input": 5000, f"{hwmon}/curr2_input": 1000,
        "sys/class/hwmon/hwmon0/name": "coretemp",
    }  # fmt: skip
    ticks = ticking()
    meter = EnergyMeter(write(tmp_path, files), clock=lambda: next(ticks))
    with meter:
        pass
    energy = meter.energy(4)
    assert energy is not None
    assert energy.source == "INA: VDD_IN"
    # 5 W, from the first reading, a tick after the start, to the last, a tick after the end.
    assert energy.joules == pytest.approx(5.0 * energy.seconds)


def test_a_device_without_a_meter_says_so(tmp_path: Path) -> None:
    meter = EnergyMeter(tmp_path)
    with meter:
        pass
    assert meter.energy(1) is None
    assert "no energy meter" in meter.absent


def test_a_meter_that_only_root_may_read_says_so(tmp_path: Path) -> None:
    files = {key: value for key, value in RAPL.items() if not key.endswith("energy_uj")}
    (write(tmp_path, files) / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()  # read by nobody
    meter = EnergyMeter(tmp_path)
    assert meter.source is None
    assert "only root may read it" in meter.absent
