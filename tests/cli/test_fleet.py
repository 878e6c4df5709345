"""edgec fleet as people use it: against a server on a port, with settings, output and exit statuses."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the fleet needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the fleet needs the extra 'fleet'")
pytest.importorskip("tuf", reason="the fleet needs the extra 'fleet'")

from click.testing import CliRunner, Result
from tests.fleet.served import GOOD, Sender, artifact, enrol, reports, serving, token, upload

from edgec.cli import main_group
from edgec.cli._fleet_follow import follow
from edgec.cli._fleet_simulate import command as simulate
from edgec.cli._text import moment
from edgec.cli.fleet import SUBCOMMANDS
from edgec.errors import FleetError
from edgec.fleet.api import ApiLimits, create_app
from edgec.fleet.client import FleetClient
from edgec.fleet.service import Fleet
from edgec.fleet.store import DriftRow
from edgec.fleet.views import RolloutWanted

pytestmark = pytest.mark.slow
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder / "fleet") as opened:
        digest = upload(opened, artifact(folder, "1"))
        enrol(opened, "cam-1", "cam-2", site="lab")
        reports(opened, "cam-1", digest)
        yield opened


@pytest.fixture(scope="module")
def url(fleet: Fleet) -> Iterator[str]:
    with serving(create_app(fleet, commands=Sender(), limits=ApiLimits(rate=None))) as found:
        yield found


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture(scope="module")
def run(fleet: Fleet, url: str, settings: Path) -> Run:
    """Run a command as one who has logged in."""
    runner = CliRunner(env={"EDGEC_CONFIG": str(settings)})

    def call(*words: str, **more: Any) -> Result:
        return runner.invoke(main_group, ["fleet", *words], **more)

    done = call("login", url, input=token(fleet, "admin") + "\n")
    assert done.exit_code == 0, done.output
    return call


def answer(result: Result) -> Any:
    """Return what a command printed as JSON."""
    assert result.exit_code == 0, result.output or result.exception
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", sorted(SUBCOMMANDS))
def test_every_subcommand_has_help_with_examples_and_json(name: str) -> None:
    runner = CliRunner()
    words = [["fleet", name]]
    if name == "rollout":
        orders = ("create", "status", "start", "pause", "resume", "abort", "undo", "retry")
        words = [["fleet", name, word] for word in orders]
    for command in words:
        result = runner.invoke(main_group, [*command, "--help"])
        assert result.exit_code == 0
        assert f"edgec {' '.join(command)}" in result.output.split("Options:")[0].split("\n", 2)[2]
        assert "--json" in result.output


def test_login_keeps_the_token_for_its_user_and_its_server_only(run: Run, settings: Path, url: str) -> None:
    path = settings / "fleet.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["url"] == url
    refused = run("devices", "--server", "http://127.0.0.1:1")
    assert isinstance(refused.exception, FleetError)
    assert "no token for http://127.0.0.1:1" in str(refused.exception)
    wrong = run("login", url, input="wrong\n")
    assert isinstance(wrong.exception, FleetError)
    assert wrong.exception.reason == "unauthorised"
    assert "login" not in path.read_text(), "what was there before is kept"


def test_a_time_that_no_calendar_has_is_shown() -> None:
    assert [moment(at) for at in (None, 1e15, math.inf)] == ["", "1e+15 s since 1970", "inf s since 1970"]


def test_devices_are_listed_shown_and_labelled(run: Run) -> None:
    assert [d["id"] for d in answer(run("devices", "site=lab", "--json"))] == ["cam-1", "cam-2"]
    text = run("devices").output
    assert text.splitlines()[0].split() == ["device", "state", "heard", "of", "hardware", "models", "labels"]
    assert "kws 1" in text
    assert "no device" in run("devices", "site=moon").output
    labelled = answer(run("label", "cam-2", "ring=canary", "site=", "--json"))
    assert labelled["labels"] == {"ring": "canary"}
    shown = run("device", "cam-1", "--records", "5", "--telemetry", "kws").output
    assert "edgec 0" in shown
    assert "it said nothing of it" in shown
    assert answer(run("groups", "--set", "canaries", "ring=canary", "--json"))[0]["name"] == "canaries"
    assert "no group" in run("groups", "--drop", "canaries").output


def test_errors_are_one_line_with_the_next_step(run: Run, url: str) -> None:
    strange = run("login", url, input="edgec_\u00e4\n")
    assert isinstance(strange.exception, FleetError)
    result = run("device", "cam-9")
    assert isinstance(result.exception, FleetError)
    assert str(result.exception) == (
        "there is no device 'cam-9' in the fleet; look for its id in the list it belongs to"
    )
    assert run("label", "cam-1", "nonsense").exit_code == 2
    assert run("quarantine", "0" * 64).exit_code == 2


def test_a_release_is_uploaded_and_rolled_out(run: Run, fleet: Fleet, tmp_path: Path) -> None:
    path = artifact(tmp_path, "2")
    (made,) = answer(run("upload", str(path), "--json"))
    assert (made["model"], made["version"]) == ("kws", "2")
    assert [r["version"] for r in answer(run("releases", "kws", "--json"))] == ["2", "1"]
    assert made["sha256"] in run("releases", "kws", "2").output
    assert answer(run("why", "cam-1", "--json"))[0]["reason"] == "no_rollout"
    assert "nobody has rolled out version 2" in run("why", "cam-1", "kws").output
    plan = tmp_path / "plan.toml"
    plan.write_text("attempts = 2\n[limits]\nslowdown = 2.0\n")
    words = ["create", "kws", "--stage", "50:10", "--stage", "100", "--plan", str(plan), "--json"]
    rollout = answer(run("rollout", *words))
    assert (rollout["state"], rollout["version"], rollout["plan"]["attempts"]) == ("draft", "2", 2)
    assert rollout["plan"]["limits"]["slowdown"] == 2.0
    name = rollout["id"]
    assert "running" in run("rollout", "start", name).output
    fleet.store.rollouts.tick(name, fleet.clock())
    shown = run("rollout", "status", name).output
    assert "stage 1  50 %, 1 of 2 devices: running" in shown
    assert [r["id"] for r in answer(run("rollout", "status", "--json"))] == [name]
    assert answer(run("rollout", "pause", name, "--json"))["state"] == "paused"
    assert answer(run("rollout", "abort", name, "--reason", "test", "--json"))["reason"] == "test"
    followed = run("rollout", "status", name, "--follow")
    assert followed.exit_code == 1, "it did not finish"
    assert "begin" in followed.stderr
    assert "stage 1, percent 50.0" in followed.stderr
    refused = run("rollout", "resume", name)
    assert "make a new rollout" in str(refused.exception)
    bad = run("rollout", "create", "kws", "--stage", "0")
    assert "stages.0.percent" in str(bad.exception)


def test_following_outlives_a_restart_of_the_server(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(fleet, artifact(tmp_path, "1", model="restart"))
    app = create_app(fleet, limits=ApiLimits(rate=None))
    waits: list[float] = []
    times = count(0.0, 50.0)
    with ExitStack() as running, ExitStack() as again:
        url = running.enter_context(serving(app))

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 1:
                running.close()
            if len(waits) == 3:
                again.enter_context(serving(app, port=int(url.rpartition(":")[2])))
                fleet.store.rollouts.order(made.id, "abort", now=fleet.clock(), actor="test")

        with FleetClient(url, token(fleet, "admin"), tries=1) as client:
            made = client.create_rollout(RolloutWanted(model="restart", start=True))
            over = follow(client, made.id, 7.0, sleep=sleep, monotonic=lambda: next(times))
            assert (over.state, waits) == ("aborted", [7.0] * 3)
            told = capsys.readouterr().err
            assert told.count("cannot be reached") == 1
            assert "asked again for 120 s" in told
            again.close()
            with pytest.raises(FleetError, match="cannot be reached"):
                follow(client, made.id, 7.0, sleep=waits.append)
            assert len(waits) == 3, "a server that never answered may be another one"


def test_following_ends_where_the_server_stays_away(fleet: Fleet, tmp_path: Path) -> None:
    upload(fleet, artifact(tmp_path, "1", model="away"))
    times = count(0.0, 50.0)
    waits: list[float] = []
    with ExitStack() as running:
        url = running.enter_context(serving(create_app(fleet, limits=ApiLimits(rate=None))))

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            running.close()

        with FleetClient(url, token(fleet, "admin"), tries=1) as client:
            made = client.create_rollout(RolloutWanted(model="away"))
            with pytest.raises(FleetError, match="cannot be reached"):
                follow(client, made.id, 7.0, sleep=sleep, monotonic=lambda: next(times))
    assert len(waits) == 4, "120 s are over at the third look after the first that failed"


def test_an_upload_names_the_file_and_what_it_runs_on(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.edgec").write_bytes(b"nothing")
    refused = run("upload", str(tmp_path / "broken.edgec"))
    assert str(refused.exception).startswith(f"{tmp_path / 'broken.edgec'}: not an edgec artifact")
    path = artifact(tmp_path, "7")
    shown = run("upload", str(path), "--hardware", "rare").output
    assert [line.split()[2:5] for line in shown.splitlines()] == [
        ["target", "runs", "on"],
        ["cpu-x86_64", "rare", shown.splitlines()[1].split()[4]],
    ]
    assert run("upload", str(path)).exit_code == 0, "the same file again changes nothing"
    other = run("upload", str(path), "--hardware", "cpu-x86_64")
    assert isinstance(other.exception, FleetError)
    assert other.exception.reason == "conflict"
    assert "for rare" in str(other.exception)


def test_each_file_of_an_upload_is_tried(run: Run, tmp_path: Path) -> None:
    good = artifact(tmp_path, "1", model="first")
    bad = artifact(tmp_path, "1", model="bad", report={"parity": {"passed": False}})
    free = artifact(tmp_path, "1", model="free", report={**GOOD, "options": {"max_drop": None}})
    result = run("upload", str(good), str(bad), str(free))
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["model", "first", "free"]
    assert result.stdout.count("warning: no accuracy gate") == 1
    assert "warning: no accuracy gate" in run("releases", "free", "1").stdout
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"edgec: {bad}: bad 1 for cpu-x86_64 did not pass: parity failed")
    assert isinstance(result.exception, FleetError)
    assert str(result.exception) == f"1 of 3 files were not taken: {bad}"
    assert result.exception.reason == "refused"
    shown = run("upload", str(bad), str(good), "--json")
    assert [a["model"] for a in json.loads(shown.stdout)] == ["first"]
    assert shown.exit_code == 1
    (tmp_path / "token").write_text("edgec_t")
    where = ["--server", "http://127.0.0.1:9", "--token-file", str(tmp_path / "token")]
    away = run("upload", str(good), str(free), *where)
    assert len(away.stderr.splitlines()) == 1, "who cannot be reached is not asked for each"
    assert str(away.exception) == f"2 of 2 files were not taken: {good}, {free}"


def test_a_rollout_that_no_device_can_take_says_so(run: Run, fleet: Fleet, tmp_path: Path) -> None:
    path = artifact(tmp_path, "8")
    assert run("upload", str(path), "--hardware", "rare").exit_code == 0
    rollout = answer(run("rollout", "create", "kws", "8", "--start", "--json"))["id"]
    fleet.store.rollouts.tick(rollout, fleet.clock())
    assert "holds: no device is eligible: see query and hardware" in run("rollout", "status", rollout).output
    ended = run("rollout", "abort", rollout).output
    assert "holds" not in ended
    assert "stage 1  1 %: stopped" in ended


def test_tokens_claims_audit_and_commands(run: Run, fleet: Fleet) -> None:
    made = answer(run("tokens", "--create", "ci", "--role", "releaser", "--days", "1", "--json"))
    assert made["token"].startswith("edgec_")
    second = run("tokens", "--create", "ci", "--role", "viewer")
    assert f"token {made['id']} in force is named 'ci', too" in str(second.exception)
    assert "taken back" in run("tokens", "--revoke", made["id"]).output
    claim = answer(run("claim", "--uses", "3", "--label", "site=lab", "--json"))
    assert claim["claim"] in run("claim").output or claim["uses_left"] == 3
    assert "withdrawn" in run("claims", "--withdraw", claim["id"]).output
    check = answer(run("audit", "--verify", "--json"))
    assert check["intact"]
    assert run("audit", "--verify", "--expect", f"{check['entries']}:{check['hash']}").exit_code == 0
    assert run("audit", "--verify", "--expect", f"{check['entries']}:{'0' * 64}").exit_code == 1
    assert "claim.withdraw" in run("audit", "--limit", "1000").output
    assert answer(run("command", "cam-1", "logs", "lines=2", "--json"))["result"] == {"lines": ["hello"]}
    assert answer(run("status", "--json"))["devices"] == 2
    assert "no incident" in run("incidents").output
    assert "nothing was said" in run("telemetry", "kws").output
    assert answer(run("alerts", "--all", "--json")) == []
    assert "1,000 values" in run("drift").output


def test_drift_tells_inputs_from_outputs(run: Run, fleet: Fleet) -> None:
    row = DriftRow(
        model="elsewhere", digest="a" * 16, hardware="cpu", output="scores", hour=int(fleet.clock() // 3600),
        hours=1, n=1000, psi=0.01, ks=0.02,
    )  # fmt: skip
    fleet.store.drift.write([row, replace(row, kind="input", output="image/mean", psi=0.7)])
    lines = [line.split() for line in run("drift", "elsewhere").output.splitlines()]
    assert [(line[3], line[4], line[-2]) for line in lines[-2:]] == [
        ("input", "image/mean", "0.700"), ("output", "scores", "0.010")
    ]  # fmt: skip


def test_hardware_of_a_claim_may_be_an_alias(run: Run) -> None:
    made = run("claim", "--hardware", "jetson", "--json")
    assert json.loads(made.stdout)["hardware"] == "jetson-orin-nano-jp6"
    assert "'jetson' is jetson-orin-nano-jp6" in made.stderr


def test_a_claim_is_not_for_the_cpu_of_who_makes_it(run: Run) -> None:
    made = run("claim", "--hardware", "cpu")
    assert made.exit_code == 2
    assert "'cpu' is cpu-arm64 or cpu-x86_64" in made.stderr


def test_simulated_devices_may_be_an_alias() -> None:
    made = simulate.make_context("simulate", ["--hardware", "jetson"])
    assert made.params["hardware"] == "jetson-orin-nano-jp6"


def test_a_revoked_device_is_asked_about_first(run: Run) -> None:
    assert run("revoke", "cam-2", input="n\n").exit_code == 1
    assert answer(run("revoke", "cam-2", "--yes", "--reason", "stolen", "--json"))["revoked_at"]
