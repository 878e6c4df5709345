"""``edgec push``: who is told what, over a real broker, and what is refused before anybody is."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from click.testing import CliRunner, Result
from tests.trust.simulator import artifact

from edgec.cli import main_group
from edgec.errors import LinkError, TrustError
from edgec.protocol import (
    Desired,
    DeviceEvent,
    LinkOptions,
    ModelReport,
    MqttLink,
    Outgoing,
    Reported,
    Subscription,
    Topics,
)
from edgec.protocol.brokers import Broker
from edgec.trust import DeviceTrust, bundle_files

TOPICS = Topics("default")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions, nothing assigned."""
    monkeypatch.chdir(tmp_path)
    for words in (["keys", "init", "keys"], ["repo", "init", "repo", "--keys", "keys"]):
        assert CliRunner().invoke(main_group, words).exit_code == 0
    for version in ("1", "2"):
        artifact(Path(f"{version}.edgec"), version, model="digits")
    Path("devices").write_text("dev1 cpu-x86_64  # the first\n\ndev.3\n")


def push(*words: str) -> Result:
    return CliRunner().invoke(main_group, ["push", "--devices", "devices", "--keys", "keys", *words])


def shape(*words: str) -> Any:
    result = push(*words, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def paths(found: Any) -> dict[str, str]:
    return {device: facts["models"].get("digits") for device, facts in found["devices"].items()}


def test_without_a_broker_all_is_signed_and_assigned() -> None:
    one, two = (f"digits/digits-{version}-cpu-x86_64.edgec" for version in "12")
    assert paths(shape("1.edgec")) == {"dev1": one, "dev.3": one}
    found = shape("2.edgec")
    assert paths(found) == {"dev1": two, "dev.3": two}
    assert {facts["epoch"] for facts in found["devices"].values()} == {2}
    assert paths(shape("--rollback", "digits")) == {"dev1": one, "dev.3": one}
    assert paths(shape("digits=2")) == {"dev1": two, "dev.3": two}
    back = shape("--rollback", "digits=1")
    assert (paths(back)["dev1"], back["devices"]["dev1"]["epoch"]) == (one, 5)
    other = artifact(Path("other.edgec"), "1", model="other")
    assert "not told" in push(str(other)).output
    assert set(shape("digits=2")["devices"]["dev1"]["models"]) == {"digits"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "name artifacts"),
        (("1.edgec", "--rollback", "digits"), "name artifacts"),
        (("none.edgec",), "no such file"),
        (("digits=7",), "not published"),
        (("--rollback", "digits"), "assigned no artifact"),
        (("1.edgec", "--broker", "broker.example"), "expected a broker"),
    ],
)
def test_what_cannot_be_pushed(words: tuple[str, ...], problem: str) -> None:
    result = push(*words)
    assert result.exit_code in (1, 2)
    assert problem in result.output + str(result.exception)
    assert result.exit_code == 2 or isinstance(result.exception, TrustError | LinkError)


@pytest.mark.parametrize("text", ["", "# none", "../up", "dev1\ndev1", "dev1 ../up"])
def test_files_of_devices_that_are_none(text: str) -> None:
    Path("devices").write_text(text)
    assert push("1.edgec").exit_code == 2


def test_a_device_that_the_artifact_is_not_for() -> None:
    Path("devices").write_text("dev1 rpi5\n")
    assert "no artifact fits dev1" in str(push("1.edgec").exception)


def options(broker: Broker, identity: str, *filters: str) -> LinkOptions:
    return LinkOptions(
        host=broker.host,
        port=broker.port,
        client_id=identity,
        tls=broker.authority.client(identity).client_context(),
        subscriptions=tuple(Subscription(filter=f) for f in filters),
    )


def test_devices_are_told_and_answer(broker: Broker) -> None:
    """One device commits, one refuses, and one is away."""
    Path("devices").write_text("dev1\ndev.3\n")
    believed: dict[str, int] = {}

    def device(name: str, result: str) -> None:
        with MqttLink(options(broker, name, *TOPICS.for_device(name))) as link:
            link.wait_connected(60)
            inbound = link.get(timeout_s=60)
            assert inbound is not None
            wanted = Desired.from_bytes(inbound.payload)
            assert wanted.metadata is not None
            roots = [Path("repo", kind, "1.root.json").read_bytes() for kind in ("image", "director")]
            Path(f"trust-{name}").mkdir()
            trust = DeviceTrust(
                Path(f"trust-{name}"),
                device_id=name,
                hardware={"cpu-x86_64"},
                image_root=roots[0],
                director_root=roots[1],
            )
            files = bundle_files(name, wanted.metadata.director, wanted.metadata.image)
            believed[name] = trust.update(files).epoch
            sha256 = wanted.models["digits"].sha256
            report = ModelReport(state="cleaned", active=sha256 if result == "committed" else None, since=0.0)
            told = Reported(
                boot_epoch=1, boot_id="b", seq=1, epoch=wanted.epoch, models={"digits": report}, sent_at=0.0
            )
            end = DeviceEvent(
                boot_epoch=1,
                boot_id="b",
                seq=0,
                at=0.0,
                kind=f"update_{result}",
                model="digits",
                reason=None if result == "committed" else "quarantined",
                data={"epoch": str(wanted.epoch), "digest": sha256},
            )
            for topic, message in ((TOPICS.reported(name), told), (TOPICS.event(name), end)):
                link.publish(Outgoing(topic=topic, payload=message.to_bytes())).wait(60)

    threads = [
        threading.Thread(target=device, args=pair) for pair in (("dev1", "committed"), ("dev.3", "refused"))
    ]
    for thread in threads:
        thread.start()
    fleet = broker.authority.client("fleet")
    told = push(
        *("1.edgec", "--broker", f"mqtts://{broker.host}:{broker.port}", "--ca", str(fleet.authority)),
        *("--cert", str(fleet.certificate), "--key", str(fleet.key), "--wait", "30", "--json"),
    )
    for thread in threads:
        thread.join()
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert believed == {"dev1": 1, "dev.3": 1}
    assert found["outcomes"] == {"committed": 1, "refused": 1}
    answer = found["devices"]["dev.3"]["answers"]["digits"]
    assert (answer["outcome"], answer["reason"]) == ("refused", "quarantined")
    alone = push(
        *("1.edgec", "--broker", f"mqtts://{broker.host}:{broker.port}", "--ca", str(fleet.authority)),
        *("--cert", str(fleet.certificate), "--key", str(fleet.key), "--wait", "0.3"),
    )
    assert alone.exit_code == 1
    assert "the broker keeps the message" in alone.output
