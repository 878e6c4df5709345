"""Settings of an agent, when updates may begin, and what its orders survive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho", reason="the agent needs the extra 'agent'")

from edgec.device_agent import AgentConfig, UpdateSettings, make_config, read_config
from edgec.device_agent._actions import PostponedError
from edgec.device_agent._conditions import check_conditions
from edgec.device_agent._enrolment import to_toml
from edgec.errors import AgentError

PLAIN: dict[str, Any] = {
    "device": "camera-7",
    "hardware": ["rpi5"],
    "state_dir": "/var/lib/edgec",
    "image_root": "image-root.json",
    "director_root": "director-root.json",
    "sources": ["https://updates.example/repo", "/media/usb"],
    "broker": {"host": "broker.example", "keepalive_s": 30},
    "updates": {"probation_s": 60, "window": "22:00-05:30"},
    "telemetry": {"inputs": True},
}


def test_settings_are_what_their_file_says(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(to_toml(PLAIN))
    config = make_config(read_config(path), base=tmp_path)
    assert isinstance(config, AgentConfig)
    assert config.image_root == tmp_path / "image-root.json"
    assert config.state_dir == Path("/var/lib/edgec")
    assert config.updates.probation_s == 60.0
    assert config.broker is not None
    assert config.broker.keepalive_s == 30
    assert config.telemetry.inputs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "a b"}, "device must be"),
        ({"device": 7}, "device must be text"),
        ({"hardware": []}, "hardware must name"),
        ({"hardware": "rpi5"}, "a list of texts"),
        ({"colour": "red"}, "colour is unknown"),
        ({"sources": ["usb/repo"]}, "an absolute path"),
        ({"sources": ["ftp://x/"]}, "an absolute path"),
        ({"broker": {}}, "broker.host is missing"),
        ({"broker": []}, "broker must be a table"),
        ({"broker": {"host": "b", "port": 0}}, "broker.port"),
        ({"broker": {"host": "b", "key": "k"}}, "go together"),
        ({"broker": {"host": "b", "version": "4"}}, "broker.version"),
        ({"updates": {"window": "25:00-26:00"}}, "updates.window"),
        ({"updates": {"probation_s": -1}}, "updates.probation_s"),
        ({"updates": {"probation_s": True}}, "must be a number"),
        ({"telemetry": {"input": True}}, "'input' is unknown"),
        ({"outbox_bytes": 1}, "outbox_bytes"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(AgentError, match="settings are wrong") as caught:
        make_config({**PLAIN, **changes})
    assert said in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(AgentError) as caught:
        make_config({"device": 1, "colour": 2, "broker": {"port": "x"}})
    for word in ("device", "colour", "broker.port", "broker.host", "hardware", "image_root"):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", [b"a = [", b"\xff", b"a = 1\n" * 60000])
def test_files_that_are_no_settings_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "agent.toml"
    path.write_bytes(text)
    with pytest.raises(AgentError, match=str(path)):
        read_config(path)


@pytest.mark.parametrize(
    ("window", "hour", "opens_in_h"),
    [("22:00-05:00", 23, None), ("22:00-05:00", 4, None), ("22:00-05:00", 12, 10), ("09:00-10:00", 10, 23),
     ("09:00-10:00", 9, None), ("00:00-00:00", 7, None)],
)  # fmt: skip
def test_updates_begin_within_the_owners_window(window: str, hour: int, opens_in_h: int | None) -> None:
    now = time.mktime((2026, 6, 10, hour, 0, 0, 0, 0, -1))
    settings = UpdateSettings(window=window)
    if opens_in_h is None:
        check_conditions(settings, now)
        return
    with pytest.raises(PostponedError) as caught:
        check_conditions(settings, now)
    assert (caught.value.reason, caught.value.retry_s) == ("window", opens_in_h * 3600.0)


def test_row_15_a_clock_that_was_never_set_does_not_keep_updates_waiting() -> None:
    check_conditions(UpdateSettings(window="22:00-05:00"), 12 * 3600.0)


@pytest.mark.parametrize(
    ("status", "percent", "begins"),
    [("Discharging", 20, False), ("Discharging", 60, True), ("Charging", 20, True)],
)
def test_updates_wait_for_power(tmp_path: Path, status: str, percent: int, begins: bool) -> None:
    battery = tmp_path / "sys/class/power_supply/BAT0"
    battery.mkdir(parents=True)
    for name, value in (("type", "Battery"), ("status", status), ("capacity", str(percent))):
        (battery / name).write_text(f"{value}\n")
    settings = UpdateSettings(min_battery_percent=30)
    if begins:
        check_conditions(settings, 0.0, tmp_path)
    else:
        with pytest.raises(PostponedError, match="20 %"):
            check_conditions(settings, 0.0, tmp_path)
