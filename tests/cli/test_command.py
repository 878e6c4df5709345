"""``edgec command``: a signed order over real brokers to a real agent, and what is not obeyed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

import click
from click.testing import CliRunner, Result
from tests.brokers import broker, mosquitto  # noqa: F401
from tests.device_agent.fleet_side import DEVICE, Publisher, config, quick_link

from edgec.cli import main_group
from edgec.cli.command import read_arguments
from edgec.device_agent import Agent, RemoteOperations
from edgec.errors import TrustError
from edgec.protocol.brokers import Broker
from edgec.trust import generate_key


def given(keys: Path, broker: Broker, *words: str) -> Result:  # noqa: F811
    fleet = broker.authority.client("fleet")
    access = ("--broker", f"mqtts://{broker.host}:{broker.port}", "--ca", str(fleet.authority),
              "--cert", str(fleet.certificate), "--key", str(fleet.key))  # fmt: skip
    return CliRunner().invoke(main_group, ["command", *words, "--keys", str(keys), *access])


@pytest.mark.slow
def test_an_order_is_signed_sent_done_once_and_answered(
    tmp_path: Path,
    broker: Broker,  # noqa: F811
) -> None:
    shop = Publisher(tmp_path / "shop")
    keys = tmp_path / "shop/keys"
    generate_key(tmp_path / "thief", "director", "director")
    with Agent(config(tmp_path, shop, broker), link=quick_link, operations=[RemoteOperations()]):
        told = given(keys, broker, DEVICE, "status", "--json")
        assert told.exit_code == 0, (told.output, told.exception)
        found = json.loads(told.stdout)
        assert (found["state"], found["result"]["running"]) == ("done", True)
        log = given(keys, broker, DEVICE, "logs", "lines=5")
        assert log.exit_code == 0
        assert log.stdout.startswith(f"{DEVICE}  logs  done")
        refused = given(keys, broker, DEVICE, "verify", "model=none", "--json")
        assert refused.exit_code == 1
        assert json.loads(refused.stdout)["reason"] == "unknown_model"
        # The broker lets everybody write who may write to devices; the device does not obey everybody.
        stolen = given(tmp_path / "thief", broker, DEVICE, "restart", "model=digits", "--json")
        assert stolen.exit_code == 1
        found = json.loads(stolen.stdout)
        assert (found["state"], found["reason"]) == ("refused", "signature")


@pytest.mark.slow
def test_a_device_that_is_away_is_said_to_be(tmp_path: Path, mosquitto: Broker) -> None:  # noqa: F811
    shop = Publisher(tmp_path / "shop")
    told = given(tmp_path / "shop/keys", mosquitto, DEVICE, "status", "--wait", "1", "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout)["state"] == "no_answer"
    generate_key(tmp_path / "root-only", "root-1", "root")
    nobody = given(tmp_path / "root-only", mosquitto, DEVICE, "status")
    assert isinstance(nobody.exception, TrustError)
    assert shop.repo.is_dir()


def test_arguments_are_json_or_text() -> None:
    given = read_arguments(["lines=50", "model=digits", 'policy={"inputs": true}', "empty="])
    assert given == {"lines": 50, "model": "digits", "policy": {"inputs": True}, "empty": ""}
    with pytest.raises(click.BadParameter, match="'b' is not WORD=VALUE; a is there twice"):
        read_arguments(["a=1", "b", "a=2"])
