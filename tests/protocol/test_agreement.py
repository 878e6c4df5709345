"""Device and fleet agree in the end, over a network that loses, repeats and reorders what it carries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgec.protocol import (
    Command,
    CommandReply,
    Desired,
    DesiredModel,
    DesiredView,
    DeviceView,
    Handled,
    Issued,
    Message,
    ModelReport,
    Presence,
    Received,
    Reported,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
)


@dataclass
class Device:
    """An agent: what it keeps on disk survives `restart`, the rest does not."""

    wants: DesiredView = field(default_factory=DesiredView)
    handled: Handled = field(default_factory=Handled)
    outbox: dict[tuple[str, int], bytes] = field(default_factory=dict)
    boot_epoch: int = 0
    connection: int = 0
    seq: int = 0
    records: int = 0
    online: bool = False
    done: list[str] = field(default_factory=list)

    @property
    def boot_id(self) -> str:
        return f"boot{self.boot_epoch}"

    def restart(self) -> None:
        self.boot_epoch, self.connection, self.seq, self.records = self.boot_epoch + 1, 0, 0, 0
        self.online = False

    def birth(self) -> Presence:
        return Presence(
            online=True,
            boot_epoch=self.boot_epoch,
            boot_id=self.boot_id,
            connection=self.connection,
            agent="",
            sent_at=0.0,
        )

    def report(self) -> Reported:
        self.seq += 1
        wanted = self.wants.desired.models if self.wants.desired else {}
        models = {n: ModelReport(state="committed", active=m.sha256, since=0.0) for n, m in wanted.items()}
        return Reported(
            boot_epoch=self.boot_epoch,
            boot_id=self.boot_id,
            seq=self.seq,
            epoch=self.wants.epoch,
            models=models,
            sent_at=0.0,
        )

    def telemetry(self, boot_id: str) -> Telemetry | None:
        mine = sorted((seq, data) for (boot, seq), data in self.outbox.items() if boot == boot_id)
        if not mine:
            return None
        first = mine[0][0]
        records = tuple(TelemetryRecord(offset=s - first, kind="window", at=0.0, payload=d) for s, d in mine)
        return Telemetry(boot_id=boot_id, first_seq=first, records=records, floor=first, sent_at=0.0)

    def receive(self, message: Message) -> list[Message]:
        if isinstance(message, Desired):
            self.wants = self.wants.apply(message)
            return [self.report()]
        if isinstance(message, TelemetryAck):
            self.outbox = {
                k: v for k, v in self.outbox.items() if k[0] != message.boot_id or not message.covers(k[1])
            }
            return []
        assert isinstance(message, Command)
        reply = self.handled.reply_to(message)
        if reply is None:
            self.done.append(message.id)
            reply = CommandReply(
                id=message.id, name=message.name, state="done", boot_id=self.boot_id, sent_at=0.0
            )
            self.handled = self.handled.record(message, reply, now=0.0)
        return [reply]


@dataclass
class Fleet:
    """A server: everything it has is in its database."""

    view: DeviceView = field(default_factory=DeviceView)
    epoch: int = 0
    issued: dict[str, Issued] = field(default_factory=dict)
    ledgers: dict[str, Received] = field(default_factory=dict)
    rows: list[tuple[str, int, bytes]] = field(default_factory=list)

    def desired(self) -> Desired:
        model = DesiredModel(path="kws.edgec", length=1, sha256=f"{self.epoch:064x}")
        return Desired(epoch=self.epoch, models={"kws": model})

    def receive(self, message: Message) -> list[Message]:
        if isinstance(message, Presence | Reported):
            self.view = self.view.apply(message, 0.0)
            return []
        if isinstance(message, CommandReply):
            self.issued[message.id] = self.issued[message.id].after_reply(message)
            return []
        assert isinstance(message, Telemetry)
        ledger = self.ledgers.get(message.boot_id, Received(boot_id=message.boot_id))
        ledger, new = ledger.take_telemetry(message)
        self.ledgers[message.boot_id] = ledger
        self.rows += [(message.boot_id, s, r.payload) for s, r in message.numbered() if s in new]
        return [ledger.ack()]


DOWN = (Desired, Command, TelemetryAck)


class Agreement(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.device, self.fleet = Device(), Fleet()
        self.air: list[bytes] = []
        self.kinds: list[type[Message]] = []
        self.will: Presence | None = None
        self.produced: dict[tuple[str, int], bytes] = {}
        self.device.restart()

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.air.append(message.to_bytes())
            self.kinds.append(type(message))

    def deliver(self, place: int) -> None:
        kind = self.kinds.pop(place)
        message = kind.from_bytes(self.air.pop(place))
        side: Device | Fleet = self.device if kind in DOWN else self.fleet
        self.send(*side.receive(message))

    @rule()
    def device_connects(self) -> None:
        self.connection_is_lost()
        self.device.connection += 1
        self.device.online = True
        self.will = self.device.birth().as_will()
        self.send(self.device.birth(), self.device.report())

    @rule()
    def connection_is_lost(self) -> None:
        # The broker holds a will that it has not sent yet; sooner or later it is in the air.
        if self.will:
            self.send(self.will)
        self.will, self.device.online = None, False

    @rule()
    def device_restarts(self) -> None:
        self.connection_is_lost()
        self.device.restart()

    @rule()
    def fleet_wants_something_else(self) -> None:
        self.fleet.epoch = self.fleet.view.next_epoch(self.fleet.epoch)
        self.send(self.fleet.desired())

    @rule()
    def fleet_issues_a_command(self) -> None:
        name = f"c{len(self.fleet.issued)}"
        command = Command(id=name, name="verify", issued_at=0.0, expires_at=1e9, envelope="{}")
        self.fleet.issued[name] = Issued(command=command).after_sending(0.0)
        self.send(command)

    @rule(payload=st.binary(max_size=3))
    def device_records(self, payload: bytes) -> None:
        key = (self.device.boot_id, self.device.records)
        self.device.records += 1
        self.device.outbox[key] = self.produced[key] = payload

    @rule()
    def device_sends_records(self) -> None:
        for boot in {boot for boot, _ in self.device.outbox}:
            if message := self.device.telemetry(boot):
                self.send(message)

    @precondition(lambda self: self.air)
    @rule(data=st.data())
    def something_arrives(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.integers(0, len(self.air) - 1)))

    @precondition(lambda self: self.air)
    @rule(data=st.data())
    def something_is_lost(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.air) - 1))
        del self.air[place], self.kinds[place]

    @precondition(lambda self: self.air)
    @rule(data=st.data())
    def something_is_repeated(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.air) - 1))
        self.air.append(self.air[place])
        self.kinds.append(self.kinds[place])

    @invariant()
    def nobody_believes_what_is_not_so(self) -> None:
        device, view = self.device, self.fleet.view
        assert not view.fenced
        assert device.wants.epoch <= self.fleet.epoch
        assert len(device.done) == len(set(device.done))
        assert len(self.fleet.rows) == len({row[:2] for row in self.fleet.rows})
        assert {(b, s): p for b, s, p in self.fleet.rows}.items() <= self.produced.items()
        # What the device has forgotten, the fleet has.
        assert {row[:2] for row in self.fleet.rows} | set(device.outbox) == set(self.produced)
        presence = view.presence
        if presence and (presence.boot_epoch, presence.connection) == (device.boot_epoch, device.connection):
            assert not device.online or presence.online

    def teardown(self) -> None:
        """From now on nothing is lost: after each side has repeated itself, they agree."""
        self.device_connects()
        for _ in range(3):
            self.send(self.device.report())
            if self.fleet.epoch:
                self.send(self.fleet.desired())
            self.send(*(i.command for i in self.fleet.issued.values() if i.due(1e6)))
            self.device_sends_records()
            while self.air:
                self.deliver(len(self.air) * 7 // 11)
        self.nobody_believes_what_is_not_so()
        view = self.fleet.view
        assert view.online
        assert view.presence == self.device.birth()
        assert view.reported
        assert view.reported.epoch == self.device.wants.epoch == self.fleet.epoch
        assert replace(view.reported, seq=0) == replace(self.device.report(), seq=0)
        assert sorted(self.device.done) == sorted(self.fleet.issued)
        assert all(issued.reply and issued.reply.final for issued in self.fleet.issued.values())
        assert {(b, s): p for b, s, p in self.fleet.rows} == self.produced
        assert not self.device.outbox


@pytest.mark.parametrize("ways", [15, pytest.param(500, marks=pytest.mark.slow)])
def test_row_19_device_and_fleet_agree_in_the_end(ways: int) -> None:
    run_state_machine_as_test(
        Agreement,
        settings=settings(
            max_examples=ways,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
