"""The fleet's side of real brokers: what was accepted is not lost, what was decided is not forgotten."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tuf", reason="a fleet needs the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="a fleet needs the extra 'fleet'")
pytest.importorskip("onnx", reason="artifacts are built with onnx, of the extra `compiler`")

from tests.brokers import make_broker
from tests.device_agent.fleet_side import config, quick_link
from tests.fleet.databases import copied_database, make_database
from tests.fleet.shop import HARDWARE, begin, copied, end, enrol, make_template, side_of, until
from tests.fleet.talkers import Talkers, telemetry, window
from tests.fleet.zygote import Zygote

from edgec.device_agent import Agent, RemoteOperations
from edgec.errors import FleetError
from edgec.fleet.mqtt import MqttSide
from edgec.fleet.service import Fleet
from edgec.protocol import DeviceEvent
from edgec.protocol.brokers import Broker

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]
DIGEST = "a" * 64
Start = tuple[Path, str | None]
Server = Callable[[], AbstractContextManager[None]]
ON_BOTH = pytest.mark.parametrize("start", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def on_postgresql(template: Path, postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """The same releases on PostgreSQL: a directory and a database to be copied."""
    folder, database = tmp_path_factory.mktemp("on-postgresql"), make_database(postgresql)
    for version in "12":
        shutil.copy(template.parent / f"{version}.edgec", folder)
    return make_template(folder, database), database


@pytest.fixture
def start(request: pytest.FixtureRequest, template: Path, tmp_path: Path) -> Start:
    """Directory and database of a fleet of one's own; on SQLite unless a test says `ON_BOTH`, or where."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return copied(template, tmp_path / "fleet"), None
    folder, database = request.getfixturevalue("on_postgresql")
    return copied(folder, tmp_path / "fleet"), copied_database(database)


@pytest.fixture
def group(start: Start) -> str:
    """Of devices that no other run of the same test has: the broker remembers what it was told of them."""
    return "sqlite" if start[1] is None else "postgresql"


@pytest.fixture
def fleet(start: Start) -> Iterator[Fleet]:
    with Fleet(start[0], database=start[1]) as opened:
        yield opened


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One for all tests that do not break it; each has devices of its own names."""
    with make_broker("mosquitto", tmp_path_factory.mktemp("broker")) as running:
        yield running


def calls(fleet: Fleet, device: str, model: str = "m") -> float:
    hours = fleet.store.telemetry.device(device, model, since=0, until=time.time() + 3600)
    return sum(part.figures["calls"] for part in hours.values())


def actives(fleet: Fleet, *names: str) -> list[str | None]:
    reported = [fleet.store.devices.get(name).view.reported for name in names]
    return [r.models["digits"].active if r and "digits" in r.models else None for r in reported]


def have(fleet: Fleet, names: list[str], version: str) -> bool:
    return actives(fleet, *names) == [digest(fleet, version)] * len(names)


def digest(fleet: Fleet, version: str) -> str:
    return fleet.registry.by_hardware("digits", version)[HARDWARE]


@pytest.mark.parametrize(
    ("broker", "start"), [("mosquitto", "postgresql"), ("nats", "sqlite")], indirect=True
)
def test_real_agents_get_what_a_rollout_says_and_answer_commands(
    fleet: Fleet, tmp_path: Path, broker: Broker
) -> None:
    """Files come over the broker too; who is enrolled after the rollout gets the same."""
    with side_of(fleet, broker) as side:
        where: Any = SimpleNamespace(repo=fleet.image.directory)
        enrol(fleet, "dev1")
        begin(fleet, "r1", "1")
        with Agent(
            config(tmp_path, where, broker, "dev1", sources=()),
            link=quick_link,
            operations=[RemoteOperations()],
        ) as agent:
            until(lambda: actives(fleet, "dev1") == [digest(fleet, "1")])
            assert agent.session("digits").manifest.model_version == "1"
            reply = side.send_command("dev1", "status", timeout_s=60, actor="ann")
            assert (reply.state, "digits" in reply.result) == ("done", True)
            enrol(fleet, "dev2")
            with Agent(config(tmp_path, where, broker, "dev2", sources=()), link=quick_link):
                until(lambda: actives(fleet, "dev1", "dev2") == [digest(fleet, "1")] * 2)
                until(lambda: "update_committed" in [r.kind for r in fleet.store.telemetry.records("dev2")])
        until(lambda: not any(fleet.store.devices.get(d).online for d in ("dev1", "dev2")))
        fleet.store.devices.revoke("dev2", now=time.time(), actor="ann")
        with pytest.raises(FleetError, match="revoked"):
            side.send_command("dev2", "status")
        with pytest.raises(FleetError, match=r"did not answer status within 0\.5 s; it is not connected"):
            side.send_command("dev1", "status", timeout_s=0.5)
        assert side.problems() == []
        actions = [entry.action for entry in fleet.store.audit.entries(limit=1000)]
        assert actions.count("device.command") == 2


@ON_BOTH
def test_a_thousand_windows_are_kept_once_and_acknowledged(
    fleet: Fleet, mosquitto: Broker, group: str
) -> None:
    names = [f"{group}-many{i}" for i in range(10)]
    enrol(fleet, *names)
    with side_of(fleet, mosquitto) as side, Talkers(mosquitto, names, f"{group}-many") as talkers:
        for round_ in range(5):
            for name in names:
                talkers.say(name, telemetry(20 * round_, *[window(3)] * 20))
                talkers.say(name, telemetry(20 * round_, *[window(3)] * 20))
        talkers.wait(lambda: all(t.kept and t.kept["b1"].seq == 99 for t in talkers.devices.values()))
        assert [calls(fleet, name) for name in names] == [300.0] * 10
        # What comes twice may be counted after the acknowledgement of what came first.
        until(lambda: side.counters.get("records") == 2000)
        assert side.counters.total("batches") < 100


@ON_BOTH
def test_row_30_what_is_no_message_is_counted_and_stops_nobody(
    fleet: Fleet, mosquitto: Broker, group: str
) -> None:
    known, revoked, strange = f"{group}-bad1", f"{group}-bad2", f"{group}-strange1"
    enrol(fleet, known, revoked)
    fleet.store.devices.revoke(revoked, now=time.time(), actor="ann")
    rng = random.Random(1)
    with side_of(fleet, mosquitto) as side, Talkers(mosquitto, [known], f"{group}-bad") as talkers:
        topics = talkers.topics
        make = (topics.state, topics.reported, topics.telemetry, topics.event, topics.reply)
        places = [topic(known) for topic in make]
        for place in places:
            for payload in (b"", b"\xff\xfe", b"{}", b"[" * 5000, b"x" * 200_000, rng.randbytes(3000)):
                talkers.raw(place, payload)
        talkers.say(strange, telemetry(0, window(5)))
        talkers.say(revoked, telemetry(0, window(5)))
        event = DeviceEvent(
            boot_epoch=1, boot_id="b9", seq=0, at=9e15, kind="crash", model="m", detail="\0", data={"a": "\0"}
        )
        talkers.say(known, event)
        talkers.tell_until_kept(known, telemetry(0, window(5)))
        # Mosquitto keeps what is larger than a message away.
        assert side.counters.get("dropped", "malformed") == 24
        assert side.counters.get("dropped", "unknown_device") >= 2
        assert calls(fleet, known) == 5
        assert strange not in [d.id for d in fleet.store.devices.find()]
        assert revoked not in talkers.devices or not talkers.devices[revoked].kept


@ON_BOTH
def test_row_22_clones_are_told_nothing_until_a_person_has_picked_one(
    fleet: Fleet, mosquitto: Broker, group: str
) -> None:
    twin, single = names = [f"{group}-clone1", f"{group}-clone2"]
    enrol(fleet, *names)
    with side_of(fleet, mosquitto), Talkers(mosquitto, names, f"{group}-clones") as talkers:
        until(lambda: fleet.store.devices.get(twin).online)
        other = talkers.devices[twin]
        other.boot = "b2"
        talkers.say(twin, other.presence())
        until(lambda: fleet.store.devices.get(twin).fenced)
        begin(fleet, "r1", "1")
        until(lambda: actives(fleet, single) == [digest(fleet, "1")])
        assert not other.history
        assert [i.device for i in fleet.store.rollouts.incidents(only_open=True)] == [twin]
        fleet.store.devices.settle(twin, "b2", now=time.time(), actor="ann")
        fleet.wake()
        until(lambda: actives(fleet, twin) == [digest(fleet, "1")])


@ON_BOTH
def test_row_18_a_broker_that_forgets_everything_is_told_again(fleet: Fleet, tmp_path: Path) -> None:
    """Killed, with an empty disk when it comes back: what was not acknowledged is published again."""
    names = [f"d{i}" for i in range(8)]
    folder = tmp_path / "broker"
    with (
        make_broker("mosquitto", folder) as broker,
        side_of(fleet, broker, first_wait_s=3000.0, last_wait_s=3000.0) as side,
    ):
        enrol(fleet, *names)
        begin(fleet, "r1", "1")
        until(lambda: fleet.store.orders.counts()["told"] == len(names))
        broker.kill()
        for path in folder.glob("mosquitto.db*"):
            path.unlink()
        until(lambda: not side.status.connected)
        broker.start()
        with Talkers(broker, names) as talkers:
            talkers.wait(lambda: all(t.view.epoch == 1 for t in talkers.devices.values()))
            until(lambda: actives(fleet, *names) == [digest(fleet, "1")] * len(names))
            revisions = {d.history[-1].revision for d in talkers.devices.values()}
            assert revisions == {1}


@contextmanager
def opened(folder: Path, database: str | None, broker: Broker) -> Iterator[tuple[Fleet, MqttSide]]:
    """A fleet and its side of a broker, for as long as a block lasts."""
    with Fleet(folder, database=database) as fleet, side_of(fleet, broker) as side:
        yield fleet, side


def backed_up(folder: Path, database: str | None, out: Path) -> Callable[[], str | None]:
    """Copy the database of a fleet that is down; what is returned goes back to it and says where."""
    if database is not None:
        kept = copied_database(database)
        return lambda: kept
    shutil.copy(folder / "fleet.db", out)

    def restored() -> None:
        for path in folder.glob("fleet.db*"):
            path.unlink()
        shutil.copy(out, folder / "fleet.db")

    return restored


@ON_BOTH
def test_row_21_a_restored_database_takes_no_device_back(
    start: Start, tmp_path: Path, mosquitto: Broker, group: str
) -> None:
    folder, database = start
    names = [f"{group}-back1", f"{group}-back2"]
    with Talkers(mosquitto, names, f"{group}-back") as talkers:
        with opened(folder, database, mosquitto) as (fleet, _):
            enrol(fleet, *names)
            begin(fleet, "r1", "1")
            until(lambda: actives(fleet, *names) == [digest(fleet, "1")] * 2)
            end(fleet, "r1")
        restored = backed_up(folder, database, tmp_path / "backup.db")
        with opened(folder, database, mosquitto) as (fleet, _):
            begin(fleet, "r2", "2")
            until(lambda: actives(fleet, *names) == [digest(fleet, "2")] * 2)
        with opened(folder, restored(), mosquitto) as (fleet, side):
            for name in names:
                talkers.say(name, talkers.devices[name].report())
            until(lambda: all(fleet.store.devices.get(n).acknowledged == 2 for n in names))
            turns = side.counters.total("turns")
            until(lambda: side.counters.total("turns") > turns + 3)
            assert [fleet.store.devices.get(n).epoch for n in names] == [1, 1]
            assert all(t.view.epoch == 2 for t in talkers.devices.values())
            # What is decided from now on is above all that devices know.
            begin(fleet, "r3", "1")
            talkers.wait(lambda: all(t.view.epoch == 3 for t in talkers.devices.values()))
            until(lambda: actives(fleet, *names) == [digest(fleet, "1")] * 2)


# Killed at any moment. The server is a process of its own.


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with closing(Zygote()) as starting:
        yield starting


@pytest.fixture
def server(zygote: Zygote, start: Start, mosquitto: Broker) -> Server:
    """A server of the fleet, killed at the end of the block."""
    files = mosquitto.authority.client("fleet")
    arguments: list[Any] = [str(start[0]), start[1], mosquitto.host, mosquitto.port]
    arguments += map(str, (files.authority, files.certificate, files.key))

    @contextmanager
    def running() -> Iterator[None]:
        pid, said = zygote.start(side=arguments)
        assert said == {"up": True}
        try:
            yield
        finally:
            assert zygote.end(pid, signal.SIGKILL) == -signal.SIGKILL

    return running


@ON_BOTH
def test_a_server_killed_while_it_keeps_loses_nothing_and_counts_nothing_twice(
    fleet: Fleet, mosquitto: Broker, server: Server, group: str
) -> None:
    names = [f"{group}-kill{i}" for i in range(4)]
    enrol(fleet, *names)
    rng, sent = random.Random(4), 0
    with Talkers(mosquitto, names, f"{group}-kill") as talkers:
        for _ in range(2):
            with server():
                over = time.monotonic() + rng.uniform(0.1, 0.6)
                while time.monotonic() < over:
                    for name in names:
                        talkers.say(name, telemetry(5 * sent, *[window(7)] * 5))
                    sent += 1
        with server():
            for name in names:
                for i in range(sent):
                    message = telemetry(5 * i, *[window(7)] * 5)
                    talkers.tell_until_kept(name, message)
    assert [calls(fleet, name) for name in names] == [35.0 * sent] * 4
    merged = fleet.store.telemetry.fleet("m", since=0, until=time.time() + 3600)
    assert sum(part.figures["calls"] for part in merged.values()) == 4 * 35 * sent


@ON_BOTH
def test_a_server_killed_while_it_directs_forgets_no_decision(
    fleet: Fleet, mosquitto: Broker, server: Server, group: str
) -> None:
    names = [f"{group}-led{i}" for i in range(20)]
    enrol(fleet, *names)
    rng = random.Random(5)
    with Talkers(mosquitto, names, f"{group}-led") as talkers:
        for number, version in enumerate("12", 1):
            begin(fleet, f"r{number}", version)
            with server():
                time.sleep(rng.uniform(0.0, 0.25))
            with server():
                until(partial(have, fleet, names, version))
            end(fleet, f"r{number}")
        for device in fleet.store.devices.find():
            talker = talkers.devices[device.id]
            assert (device.epoch, talker.view.epoch, talker.view.conflict) == (2, 2, False)
            # Documents came more than once, and never two that disagree about an epoch.
            said = {(d.epoch, d.models["digits"].sha256) for d in talker.history}
            assert len(said) == 2
    logged = [d.decision.kind for d in fleet.store.rollouts.decisions("r1")]
    assert logged.count("assign") == 20
