"""The outbox gets empty, whatever records the device has lost and whatever the fleet has forgotten."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import Priority
from edgec.device_agent._seams import Clock
from edgec.device_agent._state import Installed, State
from edgec.device_agent._uplink import EVENT_KIND, Uplink
from edgec.protocol import DeviceEvent, LinkStatus, Outgoing, Publication, Reported, Telemetry, Topics
from edgec.protocol._ledgers import Received

if TYPE_CHECKING:
    from edgec.device_agent._seams import Link

pytest.importorskip("cbor2", reason="the extra `agent` is not installed")

TOPICS = Topics("t")


class FleetLink:
    """A link to a fleet that keeps what comes, and acknowledges it when it is asked to."""

    def __init__(self) -> None:
        self.ledgers: dict[str, Received] = {}
        self.fresh: set[str] = set()
        self.connections = 1
        self.messages = 0
        self.largest = 0
        self.new: list[tuple[str, int]] = []
        self.reports: list[Reported] = []

    @property
    def status(self) -> LinkStatus:
        return LinkStatus(
            connected=True, capabilities=None, connections=self.connections, last_heard_s=0.0, error=None,
            dropped=0, taken_over=0, revived=0,
        )  # fmt: skip

    def publish(self, message: Outgoing) -> Publication:
        address = TOPICS.parse(message.topic)
        assert address is not None
        if address.kind == "event":
            event = DeviceEvent.from_bytes(message.payload)
            boot_id, (ledger, new) = event.boot_id, self._of(event.boot_id).take((event.seq,))
        elif address.kind == "tele":
            telemetry = Telemetry.from_bytes(message.payload)
            boot_id = telemetry.boot_id
            ledger, new = self._of(boot_id).take_telemetry(telemetry)
        else:
            if address.kind == "reported":
                self.reports.append(Reported.from_bytes(message.payload))
            return Publication()
        self.ledgers[boot_id] = ledger
        self.fresh.add(boot_id)
        self.new += [(boot_id, seq) for seq in new]
        self.messages += 1
        self.largest = max(self.largest, len(message.payload))
        return Publication()

    def _of(self, boot_id: str) -> Received:
        return self.ledgers.get(boot_id, Received(boot_id=boot_id))


class Device:
    """An outbox and what empties it, of one start."""

    def __init__(self, path: Path, boot: str, link: FleetLink, *, max_bytes: int = 2**24) -> None:
        self.now = 0.0
        self.link = link
        self.outbox = Outbox(path, boot_id=boot, max_bytes=max_bytes)
        self.uplink = Uplink(
            device="d", topics=TOPICS, agent="a", hardware="h", boot_epoch=1, boot_id=boot,
            outbox=self.outbox, clock=Clock(monotonic=lambda: self.now, wall=lambda: 1e9 + self.now),
        )  # fmt: skip
        self.uplink.use(cast("Link", link))

    def put(self, events: int, detail: str = "") -> None:
        event = DeviceEvent(
            boot_epoch=1, boot_id="b", seq=0, at=1e9, kind="crash", severity="info", model=None, reason=None,
            detail=detail, data={},
        )  # fmt: skip
        self.outbox.put_many([(EVENT_KIND, Priority.EVENT, event.to_bytes())] * events)

    def rounds(self, n: int) -> None:
        """Let half a minute go by n times; the fleet answers in between."""
        for _ in range(n):
            self.now += 30.0
            self.uplink.turn([], 0, [])
            for boot_id in self.link.fresh:
                self.uplink.acknowledged(self.link.ledgers[boot_id].ack())
            self.link.fresh.clear()

    @property
    def held(self) -> int:
        return sum(self.outbox.state().records.values())


def test_phases_that_pass_at_once_are_not_told_and_all_else_is(tmp_path: Path) -> None:
    link = FleetLink()
    device = Device(tmp_path / "o.db", "boot1", link)

    def tell(seconds: float, state: State, epoch: int = 1) -> list[str]:
        device.now += seconds
        device.uplink.turn([state], epoch, [])
        told, link.reports = [report.models["m"].state for report in link.reports], []
        return told

    def state(phase: str, **more: Any) -> State:
        return State(model="m", **{"phase": phase, "work": 1, **more})

    new = Installed(digest="a" * 64, length=1, slot="b")
    with device.outbox:
        assert tell(5, state("notified")) == ["notified"]
        assert tell(0.3, state("admitted")) == []
        assert tell(0.3, state("downloading")) == []
        assert tell(0.5, state("downloading")) == ["downloading"]
        assert tell(0.1, state("self_test")) == []
        # What serves, what was heard, why it waits, and the end are told at once.
        assert tell(0, state("probation", active=new)) == ["probation"]
        assert tell(0, state("committed", active=new)) == []
        assert tell(0, state("probation", active=new), 2) == ["probation"]
        assert tell(0, state("rolling_back", active=new, reason="crash_loop")) == ["rolling_back"]
        assert tell(0, state("cleaned", active=new, reason="crash_loop", work=0)) == ["cleaned"]
        link.connections = 2
        assert tell(0, state("cleaned", active=new, reason="crash_loop", work=0)) == ["cleaned"]


def test_a_fleet_that_was_restored_gets_all_that_comes(tmp_path: Path) -> None:
    link = FleetLink()
    device = Device(tmp_path / "o.db", "boot1", link)
    with device.outbox:
        device.put(10)
        device.rounds(2)
        assert device.held == 0
        # Its backup has four of the ten; the device has none of them any more.
        (boot_id,) = link.ledgers
        link.ledgers, link.connections, link.new = {boot_id: Received(boot_id=boot_id, up_to=3)}, 2, []
        device.put(5)
        device.outbox.put("window", Priority.METRIC, b"w")
        device.rounds(3)
        assert device.held == 0
        assert sorted(link.new) == [(boot_id, seq) for seq in range(10, 15)] + [("boot1-m", 0)]
        assert link.ledgers[boot_id] == Received(boot_id=boot_id, up_to=14)
        # Where the connection stays, the fleet is told as soon as it does not acknowledge.
        link.ledgers = {boot_id: Received(boot_id=boot_id, up_to=3)}
        device.put(250)
        device.rounds(20)
        assert device.held == 0


@pytest.mark.parametrize("gap", [(0, 1), (0, 30), (20, 60), (49, 51)])
def test_records_that_were_lost_keep_no_others_back(tmp_path: Path, gap: tuple[int, int]) -> None:
    link = FleetLink()
    before = Device(tmp_path / "o.db", "boot1", link)
    with before.outbox:
        before.put(100)
    with closing(sqlite3.connect(tmp_path / "o.db")) as file, file:
        file.execute("DELETE FROM records WHERE seq >= ? AND seq < ?", gap)
    device = Device(tmp_path / "o.db", "boot2", link)
    with device.outbox:
        device.put(1)
        device.rounds(10)
        assert device.held == 0
    left = set(range(100)) - set(range(*gap))
    assert set(link.new) >= {("boot1-e", seq) for seq in left} | {("boot2-e", 0)}
    assert link.ledgers["boot1-e"] == Received(boot_id="boot1-e", up_to=99)


def test_events_that_found_no_room_keep_no_others_back(tmp_path: Path) -> None:
    link = FleetLink()
    device = Device(tmp_path / "o.db", "boot1", link, max_bytes=120_000)
    with device.outbox:
        device.put(400, detail="x" * 200)
        assert 0 < device.held < 400
        device.rounds(10)
        assert device.held == 0
    assert max(seq for _, seq in link.new) >= 399


def test_the_fleet_is_told_once_a_connection_and_in_few_bytes(tmp_path: Path) -> None:
    link = FleetLink()
    device = Device(tmp_path / "o.db", "boot1", link)
    with device.outbox:
        device.put(3)
        device.rounds(2)
        assert link.messages == 3  # nothing is missing before the first
        link.connections, link.messages = 2, 0
        for _ in range(5):
            device.put(1)
            device.rounds(1)
        assert link.messages == 1 + 5
        assert device.held == 0
    assert link.largest < 1024
