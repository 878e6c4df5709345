"""Watching a device: throttled clocks and short memory, in trees of files like those of real devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
from tests.runtime.test_thermal_and_energy import PI, write

from edgec.runtime._tegrastats import TegraStats, parse_tegrastats
from edgec.runtime.conditions import DeviceState, DeviceWatch, Pressure, WatchOptions, device_state

CALM = {
    **PI,
    "proc/meminfo": "MemTotal:        8048604 kB\nMemFree:  1 kB\nMemAvailable:    6015488 kB\nCached: 1 kB",
    "proc/pressure/memory": "some avg10=1.50 avg60=0.20 avg300=0.01 total=512\nfull avg10=0.00 total=7",
    "proc/pressure/cpu": "some avg10=42.00 avg60=30.00 avg300=20.00 total=99",
}
STALLED = "some avg10=60.1 avg60=2 avg300=1 total=9\nfull avg10=31.25 avg60=1 avg300=0 total=8"
NANO = (
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU [24%@1224,15%@1224,13%@1224,10%@1224] "
    "EMC_FREQ 0% GR3D_FREQ 0% PLL@21C CPU@25C PMIC@100C GPU@23.5C AO@33.5C thermal@24.5C "
    "POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529"
)
ORIN = (
    "12-23-2024 22:54:11 RAM 3162/7620MB (lfb 4x2MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [1%@729,0%@729,0%@729,0%@729,off,off] GR3D_FREQ 1% cpu@62.843C soc2@61.968C soc0@60.625C "
    "gpu@61.687C tj@62.843C soc1@61.687C VDD_IN 3913mW/3922mW VDD_CPU_GPU_CV 598mW/598mW "
    "VDD_SOC 1238mW/1237mW"
)


class Device:
    """A watched tree of files, and the time there."""

    def __init__(self, root: Path, line: str | None = None, firmware: str | None = None) -> None:
        self.root = write(root, CALM)
        self.now = 0.0
        self.looks = 0
        self.line = line
        self.firmware = firmware
        self.watch = DeviceWatch(
            root=root, tegrastats=self.tegrastats, vcgencmd=lambda: self.firmware,
            clock=lambda: self.now, wall=lambda: 1000 + self.now,
        )  # fmt: skip

    def tegrastats(self) -> str | None:
        self.looks += 1
        return self.line

    def later(self, changes: dict[str, object], seconds: float = 5.0) -> dict[str, str]:
        write(self.root, changes)
        self.now += seconds
        return {condition.kind: condition.message for condition in self.watch.check()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_calm_device_has_no_conditions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(tmp_path)
    assert device.later({}) == {}
    state = device.watch.state
    assert state.pressure == {"memory": Pressure(some=1.5, full=0.0), "cpu": Pressure(some=42.0, full=0.0)}
    assert (state.memory_available_mib, state.memory_total_mib) == (5874, 7859)
    assert state.temperatures_c == {"cpu-thermal": 61.234}
    assert device.watch.episodes == {}
    assert warnings(caplog) == []


def test_an_episode_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(tmp_path)
    throttled = "sys/devices/platform/soc/soc:firmware/get_throttled"
    assert "throttling" in device.later({throttled: "4"})["throttled"]
    assert device.watch.conditions[0].since == 1005.0
    device.later({throttled: "5"})
    assert device.watch.conditions[0].since == 1005.0
    assert "under-voltage" in device.watch.conditions[0].message
    assert len(warnings(caplog)) == 1
    assert device.later({throttled: "50000"}) == {}  # what was, is over
    device.later({throttled: "4"})
    assert device.watch.episodes == {"throttled": 2}
    assert len(warnings(caplog)) == 2


def test_it_looks_no_more_often_than_it_may(tmp_path: Path) -> None:
    device = Device(tmp_path)
    for _ in range(100):
        device.later({}, 0.5)
    assert device.looks == 1 + 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {
                "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0",
                "sys/class/thermal/cooling_device1/cur_state": 2,
            },
            "cpufreq-cpu0 at step 2",
        ),
        ({"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": 1500000}, "fell from 2400 to 1500 MHz"),
        ({"sys/class/hwmon/hwmon3/oc1_event_cnt": 2}, "power supply"),
    ],
)
def test_what_holds_the_clock_back_is_said(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    device = Device(tmp_path)
    assert said in device.later(changes)["throttled"]


def test_a_lower_limit_lasts_until_it_is_lifted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(tmp_path)
    limit = "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"
    for _ in range(3):
        assert "1500 MHz" in device.later({limit: 1500000})["throttled"]
    assert device.later({limit: 2400000}) == {}
    assert len(warnings(caplog)) == 1


def test_throttle_counts_matter_while_they_grow(tmp_path: Path) -> None:
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    write(tmp_path, {count: 7})
    device = Device(tmp_path)
    assert device.later({}) == {}
    assert "3 times" in device.later({count: 10})["throttled"]
    assert device.later({}) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proc/pressure/memory": STALLED}, "31 % of the last 10 seconds"),
        ({"proc/meminfo": "MemTotal: 8048604 kB\nMemAvailable: 204800 kB"}, "200 of 7859 MiB are available"),
    ],
)
def test_short_memory_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], said: str
) -> None:
    device = Device(tmp_path)
    assert said in device.later(changes)["memory"]
    assert said in warnings(caplog)[0]
    assert device.later(dict(CALM)) == {}


def test_what_is_wrong_from_the_start_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {"proc/pressure/memory": STALLED})
    watch = DeviceWatch(root=tmp_path, tegrastats=None, vcgencmd=lambda: None)
    assert [condition.kind for condition in watch.conditions] == ["memory"]
    assert len(warnings(caplog)) == 1


def test_the_firmware_of_a_pi_is_asked_where_the_system_shows_nothing(tmp_path: Path) -> None:
    device = Device(tmp_path, firmware="throttled=0x50005\n")
    assert device.watch.conditions == ()  # the file says 0
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").unlink()
    assert "under-voltage and throttling" in device.later({})["throttled"]
    device.firmware = 'error=1 error_msg="Command not registered"'
    assert device.later({}) == {}


def test_a_system_that_shows_nothing_has_no_state(tmp_path: Path) -> None:
    assert device_state(tmp_path) == DeviceState()
    assert DeviceWatch(root=tmp_path, tegrastats=None, vcgencmd=lambda: None).check() == ()
    write(
        tmp_path,
        {"proc/pressure/memory": "some thing else", "proc/meminfo": "MemTotal: many kB\nMemAvailable:"},
    )
    assert device_state(tmp_path) == DeviceState()


def test_a_jetson_tells_by_tegrastats(tmp_path: Path) -> None:
    state = device_state(tmp_path, tegrastats=lambda: ORIN)
    assert state.tegra == TegraStats(
        ram_used_mib=3162, ram_total_mib=7620, swap_used_mib=0, gpu_percent=1,
        cpu_percent=(1, 0, 0, 0, None, None),
        temperatures_c={
            "cpu": 62.843, "soc2": 61.968, "soc0": 60.625, "gpu": 61.687, "tj": 62.843, "soc1": 61.687
        },
        power_mw={"VDD_IN": 3913, "VDD_CPU_GPU_CV": 598, "VDD_SOC": 1238},
    )  # fmt: skip
    assert (state.memory_available_mib, state.memory_total_mib) == (4458, 7620)
    assert state.temperatures_c["tj"] == 62.843


def test_older_jetsons_tell_it_otherwise() -> None:
    stats = parse_tegrastats(NANO)
    assert stats.cpu_percent == (24, 15, 13, 10)
    assert stats.temperatures_c == {"PLL": 21, "CPU": 25, "GPU": 23.5, "AO": 33.5, "thermal": 24.5}
    assert stats.power_mw == {"POM_5V_IN": 2545, "POM_5V_GPU": 0, "POM_5V_CPU": 549}
    tx1 = parse_tegrastats("RAM 3468/3983MB (lfb 48x4MB) cpu [17%,13%,29%,5%]@408 EMC 1%@408 GR3D 3%@76")
    assert (tx1.ram_used_mib, tx1.cpu_percent, tx1.gpu_percent) == (3468, (17, 13, 29, 5), 3)


@pytest.mark.parametrize("line", ["", "RAM many/MB", "CPU []", "tj@-256C", "x" * 10_000, "RAM 1/2MB" * 5000])
def test_other_lines_are_no_failure(line: str) -> None:
    assert parse_tegrastats(line).temperatures_c == {}


def test_a_thread_watches_where_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, CALM)
    options = WatchOptions(interval_s=0.01)
    with DeviceWatch(options, root=tmp_path, tegrastats=None, vcgencmd=lambda: None) as watch:
        write(tmp_path, {"proc/pressure/memory": STALLED})
        _wait(lambda: bool(watch.conditions))
    assert watch.conditions[0].kind == "memory"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        WatchOptions(interval_s=0)


def _wait(condition: Callable[[], bool]) -> None:
    end = monotonic() + 60
    while not condition():
        assert monotonic() < end
        sleep(0.005)
