"""``edgec agent``: enrolment, the unit, and what systemd is told."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

pytest.importorskip("paho", reason="the agent needs the extra 'agent'")

from edgec.cli._agent_settings import DEFAULT_CONFIG, known_hardware, next_line, read_settings
from edgec.cli._agent_unit import Notifier, unit_text
from edgec.cli.agent import command
from edgec.errors import AgentError


def provision(folder: Path, *more: str) -> Path:
    """Enrol a device with roots that nobody has looked at yet; return its settings."""
    roots = folder / "repo"
    for kind in ("image", "director"):
        (roots / kind).mkdir(parents=True, exist_ok=True)
        (roots / kind / "1.root.json").write_text("{}")
    places = ["--roots", roots, "--directory", folder / "etc", "--state-dir", folder / "state"]
    arguments = ["provision", "dev1", "--hardware", "cpu-x86_64", *places, *more]
    CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False, standalone_mode=False)
    return folder / "etc/agent.toml"


def test_a_device_makes_its_own_key_and_a_request_for_a_certificate(tmp_path: Path) -> None:
    x509 = pytest.importorskip("cryptography.x509", reason="the extra 'agent' is not installed")
    path = provision(tmp_path, "--broker", "mqtts://broker.example")
    config = read_settings(path, ())
    key = path.parent / "device.key"
    assert config.broker is not None
    assert config.broker.key == key
    assert key.stat().st_mode & 0o077 == 0
    request = x509.load_pem_x509_csr((path.parent / "device.csr").read_bytes())
    assert request.is_signature_valid
    assert "CN=dev1" in request.subject.rfc4514_string()
    with pytest.raises(AgentError, match="enrolled"):
        provision(tmp_path, "--broker", "mqtts://broker.example")
    before = key.read_bytes()
    provision(tmp_path, "--broker", "mqtts://other.example", "--force")
    assert key.read_bytes() == before


def test_the_next_step_names_settings_that_are_not_where_they_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "an agent" / "agent.toml"
    assert next_line(path) == (
        f"next      edgec agent run --config '{path}', or  edgec agent install --config '{path}'"
    )
    assert next_line(DEFAULT_CONFIG) == "next      edgec agent run, or  edgec agent install"
    shown = CliRunner().invoke(command, ["run", "--config", str(path)])
    for what in (str(path), "--config", "edgec agent enrol URL", "edgec agent provision"):
        assert what in str(shown.exception)


def test_a_token_is_kept_from_others(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    path = provision(
        tmp_path, "--broker", "mqtts://broker.example", "--password-file", str(tmp_path / "token")
    )
    config = read_settings(path, ())
    assert config.broker is not None
    assert config.broker.username == "dev1"
    assert config.broker.password_file is not None
    assert config.broker.password_file.stat().st_mode & 0o077 == 0
    assert "s3cret" not in path.read_text()


def test_options_go_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = provision(tmp_path, "--source", "https://updates.example/repo")
    monkeypatch.setenv("EDGEC_AGENT_UPDATES__PROBATION_S", "5")
    monkeypatch.setenv("EDGEC_AGENT_TENANT", "acme")
    config = read_settings(path, ["updates.probation_s=7", 'groups=["north"]'])
    assert (config.updates.probation_s, config.tenant, config.groups) == (7.0, "acme", ("north",))
    with pytest.raises(AgentError, match=r"updates.probation_s must be a number"):
        read_settings(path, ["updates.probation_s=soon"])


def test_hardware_is_said_where_it_is_an_alias_or_nothing_that_edgec_knows(tmp_path: Path) -> None:
    pytest.importorskip("cryptography.x509", reason="the extra 'agent' is not installed")
    for name in ("image", "director"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.root.json").write_text("{}")
    places = [
        "--roots",
        tmp_path,
        "--source",
        tmp_path,
        "--directory",
        tmp_path / "etc",
        "--state-dir",
        tmp_path,
    ]
    arguments = ["provision", "dev1", "--hardware", "jetson", "--hardware", "rpi55", *places, "--json"]
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert json.loads(done.stdout)["device"] == "dev1"
    assert "'jetson' is jetson-orin-nano-jp6" in done.stderr
    assert "WARNING 'rpi55' is no target of edgec's" in done.stderr
    assert read_settings(tmp_path / "etc/agent.toml", ()).hardware == ("jetson-orin-nano-jp6", "rpi55")


def test_hardware_may_be_unknown_because_its_package_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = tmp_path / "acme_unread-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: acme-unread\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgec.targets]\nacme = acme_unread\n")
    (tmp_path / "acme_unread.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    option = click.Option(["--hardware"])
    assert known_hardware(click.Context(command), option, "acme-gone") == "acme-gone"
    said = capsys.readouterr().err
    assert "WARNING 'acme-gone' is no target of edgec's" in said
    assert "no licence" in said


def test_status_of_a_device_on_which_no_agent_ran_yet(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    done = CliRunner().invoke(command, ["status", "--state-dir", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.output)["models"] == []


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = unit_text(
        Path("/etc/edgec/agent.toml"), Path("/var/lib/edgec"), user="root", group="root", memory_max="50%"
    )
    for line in (
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "WatchdogSec=90",
        "ReadWritePaths=/var/lib/edgec",
    ):
        assert line in text.splitlines()
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "edgec-agent.service"
    unit.write_text(text)
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert str(unit) not in done.stderr, done.stderr


def test_systemd_hears_that_the_agent_is_ready_and_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "4000000")
        notifier = Notifier()
        notifier.tell("READY=1")
        notifier.heartbeat()
        notifier.heartbeat()
        assert [listener.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)
