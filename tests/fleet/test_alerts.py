"""Alerts: raised once, kept while it is close, cleared once it is over, and told until somebody took it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="a fleet needs the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="a fleet needs the extra 'fleet'")

from sqlalchemy import update
from tests.brokers import make_broker
from tests.fleet.talkers import telemetry, window

from edgec.fleet.alerts import AlertSettings, Courier, SinkError, Topic, Watch, Webhook, verify_signature
from edgec.fleet.mqtt import MqttSide
from edgec.fleet.rollouts import Plan
from edgec.fleet.service import Fleet
from edgec.fleet.store import Condition, Delivery, DriftRow, Store, ToldOrder
from edgec.fleet.store._devices import tell
from edgec.fleet.store._schema import credentials, devices
from edgec.protocol import Alert, LinkOptions, MqttLink, Presence, Reported, Subscription, Topics

pytestmark = pytest.mark.slow
NOW = 1_790_000_000.0
SECRET = "between us"


@dataclass
class Endpoint:
    """An HTTP server that keeps what it is sent, and answers with the statuses that it is given, then 204."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@contextmanager
def endpoint(*statuses: int) -> Iterator[Endpoint]:
    told = Endpoint(list(statuses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.got.append((dict(self.headers.items()), body))
            self.send_response(told.statuses.pop(0) if told.statuses else 204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_address[1]}/hook?team=a"
        yield told
        server.shutdown()
        thread.join()


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


def holds(*subjects: str, severity: str = "warning", firm: bool = True) -> list[Condition]:
    return [Condition(rule="r", subject=s, severity=severity, summary=f"{s}!", firm=firm) for s in subjects]


def compare(store: Store, conditions: list[Condition], now: float, *sinks: str) -> list[str]:
    changes = store.alerts.compare(conditions, now, rules=["r"], quiet_s=60, sinks=sinks)
    return [f"{word} {alert.subject}" for word, alert in changes]


# Raised and cleared


def test_an_alert_is_raised_once_and_cleared_when_it_was_quiet_for_a_while(store: Store) -> None:
    assert compare(store, holds("a", firm=False), NOW) == []
    assert compare(store, holds("a", "b"), NOW) == ["raised a", "raised b"]
    assert compare(store, holds("a", "b"), NOW + 10) == []
    # Close to the limit, and away for a moment: it stays.
    assert compare(store, holds("a", firm=False), NOW + 20) == []
    assert compare(store, holds("a", "b"), NOW + 70) == []
    assert compare(store, [], NOW + 80) == []
    assert [a.quiet_since for a in store.alerts.find()] == [NOW + 80, NOW + 80]
    assert compare(store, holds("a"), NOW + 130) == []
    assert [a.quiet_since for a in store.alerts.find()] == [NOW + 80, None]
    assert compare(store, holds("a"), NOW + 140) == ["cleared b"]
    assert [a.subject for a in store.alerts.find()] == ["a"]
    assert compare(store, holds("b"), NOW + 150) == ["raised b"]
    assert [a.subject for a in store.alerts.find(only_open=False)] == ["b", "b", "a"]
    assert store.alerts.compare([], NOW + 900, rules=["other"], quiet_s=0) == []


def test_what_becomes_worse_is_told_again_and_what_becomes_better_is_not(store: Store) -> None:
    assert compare(store, holds("a", severity="info"), NOW, "hook") == ["raised a"]
    assert compare(store, holds("a", severity="critical"), NOW + 1, "hook") == ["worse a"]
    assert compare(store, holds("a", severity="info"), NOW + 2, "hook") == []
    assert store.alerts.undelivered() == {"hook": 2}
    events = [json.loads(d.body)["event"] for d in store.alerts.take_due(NOW + 3, lease_s=60)]
    assert events == ["raised", "worse"]
    # Leased: neither another server nor the next call has them, until the lease is over.
    assert store.alerts.take_due(NOW + 4, lease_s=60) == []
    assert len(store.alerts.take_due(NOW + 64, lease_s=60)) == 2
    assert store.alerts.prune(NOW + 500 * 86400) == 0


def test_two_servers_that_look_at_once_raise_it_once(url: str) -> None:
    stores = [Store(url), Store(url)]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda s=s: found.extend(compare(s, holds("a", "b"), NOW, "hook")))
        for s in stores * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["raised a", "raised b"]
    assert stores[0].alerts.undelivered() == {"hook": 2}
    for opened in stores:
        opened.close()


# Told


def test_a_webhook_is_told_until_it_takes_it(store: Store) -> None:
    clock = Clock()
    with endpoint(500, 302) as hook:
        sink = Webhook(name="hook", url=hook.url, secret=SECRET)
        courier = Courier(store.alerts, [sink], clock=clock, randomness=random.Random(1))
        compare(store, holds("a"), NOW, "hook")
        for _ in range(3):
            assert courier.deliver() == 1
            assert courier.deliver() == 0
            clock.now += 3600
        assert courier.deliver() == 0
        assert store.alerts.undelivered() == {}
        headers, body = hook.got[-1]
        assert [h["X-Edgec-Delivery"] for h, _ in hook.got] == [headers["X-Edgec-Delivery"]] * 3
        assert json.loads(body)["alert"]["summary"] == "a!"
        signature = headers["X-Edgec-Signature"]
        sent = NOW + 2 * 3600
        assert verify_signature(SECRET, signature, body, now=sent)
        assert not verify_signature("other", signature, body, now=sent)
        assert not verify_signature(SECRET, signature, body + b" ", now=sent)
        assert not verify_signature(SECRET, signature, body, now=sent + 301)
        for bad in ("", "t=1", "v1=x", "t=x,v1=y", "t=9" * 50, f"{signature},v1=0"):
            assert not verify_signature(SECRET, bad, body, now=sent)


def test_an_outbox_outlives_its_server_and_gives_up_in_the_end(url: str) -> None:
    clock = Clock()
    store = Store(url)
    compare(store, holds("a"), NOW, "hook", "gone")
    store.close()
    store = Store(url)
    nowhere = Webhook(name="hook", url="http://127.0.0.1:9/", secret=SECRET, timeout_s=1)
    courier = Courier(store.alerts, [nowhere], clock=clock)
    tries = 0
    while store.alerts.undelivered():
        tries += courier.deliver()
        clock.now += 3600
        assert tries < 50
    # The sink that is not there any more, once; the one that cannot be reached, twenty times.
    assert tries == 21
    store.close()


@pytest.mark.parametrize("url", ["ftp://x/", "hook", "https://", "//x"])
def test_what_is_no_webhook_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected https"):
        Webhook(name="hook", url=url, secret=SECRET)
    with pytest.raises(ValueError, match="needs a secret"):
        Webhook(name="hook", url="https://x/", secret="")


def test_alerts_go_over_the_broker(tmp_path: Path) -> None:
    with make_broker("mosquitto", tmp_path / "broker") as broker, Fleet(tmp_path / "fleet") as fleet:
        tls = broker.authority.client("fleet").client_context()
        where: dict[str, Any] = {"host": broker.host, "port": broker.port, "tls": tls}
        topic = Topics("default").alerts()
        listener = LinkOptions(**where, client_id="ears", subscriptions=(Subscription(filter=topic),))
        fleet.store.devices.enrol("d1", "cpu", now=fleet.clock(), actor="ann")
        for boot in ("x", "y"):
            said = Presence(
                online=True, boot_epoch=1, boot_id=boot, connection=1, agent="a", sent_at=fleet.clock()
            )
            fleet.store.devices.heard("d1", said, fleet.clock())
        with MqttLink(listener) as ears, MqttSide(fleet, LinkOptions(**where, client_id="fleet")) as side:
            ears.wait_connected(60)
            side.wait_connected(60)
            with Watch(fleet, sinks=[Topic(topic=topic, publish=side.publish)]):
                heard: dict[str, str] = {}
                while "cloned" not in heard:
                    inbound = ears.get(timeout_s=60)
                    assert inbound is not None
                    told = json.loads(inbound.payload)
                    heard[told["alert"]["rule"]] = told["tenant"]
                    inbound.ack()
                assert heard["cloned"] == "default"
        with pytest.raises(SinkError, match="mqtt"):
            Topic(topic=topic, publish=side.publish).send(
                Delivery(id=1, sink="mqtt", body="{}", tries=0), NOW
            )


# Rules


@pytest.fixture
def fleet(tmp_path: Path, url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet", database=url if "://" in url else None, clock=Clock()) as opened:
        yield opened


def look(fleet: Fleet, **more: Any) -> list[str]:
    settings = AlertSettings(**{"disk_free": (0.0, 0.0), "quiet_s": 0, **more})
    return sorted(f"{word} {a.rule} {a.subject}" for word, a in Watch(fleet, settings=settings).look())


def at(fleet: Fleet, now: float) -> None:
    assert isinstance(fleet.clock, Clock)
    fleet.clock.now = now


def believe(fleet: Fleet, name: str, **values: Any) -> None:
    with fleet.store.database.write() as connection:
        connection.execute(update(devices).where(devices.c.id == name).values(**values))


def join(fleet: Fleet, *names: str) -> None:
    for name in names:
        fleet.store.devices.enrol(name, "cpu", now=NOW, actor="ann")
        said = Presence(online=True, boot_epoch=1, boot_id="b1", connection=1, agent="a", sent_at=NOW)
        fleet.store.devices.heard(name, said, NOW)


def test_devices_that_are_away_silent_or_many(fleet: Fleet) -> None:
    names = [f"d{i}" for i in range(5)]
    join(fleet, *names)
    fleet.store.devices.enrol("new", "cpu", now=NOW, actor="ann")
    assert look(fleet) == []
    believe(fleet, "d0", online=False, seen_at=NOW - 100)
    assert look(fleet) == []
    at(fleet, NOW + 1000)
    assert look(fleet) == ["raised offline d0"]
    # It comes and goes: one alert.
    believe(fleet, "d0", seen_at=NOW + 990)
    assert look(fleet) == []
    believe(fleet, "d0", online=True)
    assert look(fleet, quiet_s=60) == []
    at(fleet, NOW + 1060)
    assert look(fleet, quiet_s=60) == ["cleared offline d0"]
    for name in names:
        believe(fleet, name, online=False, seen_at=NOW)
    assert look(fleet, many=4) == ["raised offline fleet"]
    at(fleet, NOW + 30 * 3600)
    for name in names:
        believe(fleet, name, online=True)
    believe(fleet, "d1", seen_at=NOW + 29 * 3600)
    assert [line for line in look(fleet) if "silent" in line] == [f"raised silent d{i}" for i in (0, 2, 3, 4)]


def test_row_21_and_22_devices_that_say_what_cannot_be(fleet: Fleet) -> None:
    join(fleet, "d1", "d2")
    believe(fleet, "d1", fenced=True)
    ahead = Reported(
        boot_epoch=1, boot_id="b1", seq=1, epoch=9, models={}, sent_at=NOW,
        alerts=(Alert(reason="disk_full"), Alert(reason="regressed")),
    )  # fmt: skip
    fleet.store.devices.heard("d2", ahead, NOW)
    assert look(fleet) == [
        "raised cloned d1", "raised device disk_full", "raised device regressed", "raised regressed fleet",
    ]  # fmt: skip


def test_errors_have_two_limits(fleet: Fleet) -> None:
    join(fleet, "d1")
    told = [(100, 4), (200, 20), (600, 0), (900, 0)]
    found = []
    for seq, (calls, errors) in enumerate(told):
        part = window(calls, since=NOW)
        message = telemetry(seq, type(part)(**{**vars(part), "errors": errors}))
        fleet.store.telemetry.ingest([("d1", message)], NOW)
        at(fleet, NOW + seq)
        found.append(look(fleet))
    # 4 % of 100 are too few calls; 8 % of 300; 2.7 % of 900 is better, and not good; 1.3 % is.
    subject = f"errors m/{'a' * 16}/cpu"
    assert found == [[], [f"raised {subject}"], [], [f"cleared {subject}"]]


def test_rollouts_incidents_drift_and_what_expires(fleet: Fleet) -> None:
    plan = Plan(id="r1", name="r1", model="m", version="2", artifacts={"cpu": "b" * 64}, patience_s=10**9)
    fleet.store.rollouts.create(plan, now=NOW, actor="ann")
    fleet.store.rollouts.order("r1", "start", now=NOW, actor="ann")
    fleet.store.rollouts.tick("r1", NOW)
    at(fleet, NOW + 7 * 3600)
    row = DriftRow(
        model="m", digest="b" * 16, hardware="cpu", output="y", hour=int(fleet.clock() // 3600), hours=1,
        n=5000, psi=0.4, ks=0.2,
    )  # fmt: skip
    of_input = replace(row, kind="input", output="x/mean", hours=24)
    # What came in since this morning is not yet what comes in on a day.
    fleet.store.drift.write([row, of_input, replace(of_input, output="x/std", hours=23)])
    fleet.store.rollouts.quarantine("b" * 64, now=NOW, actor="ann", reason="bad")
    subject = f"m/{'b' * 16}/cpu"
    assert sorted(look(fleet)) == [
        f"raised drift {subject}/x/mean (input)", f"raised drift {subject}/y", "raised rollout r1"
    ]  # fmt: skip
    said = [a.summary for a in fleet.store.alerts.find(limit=9) if a.rule == "drift"]
    assert sorted(text.partition(" of ")[0] for text in said) == ["input x/mean", "y"]
    fleet.store.rollouts.tick("r1", fleet.clock())
    at(fleet, fleet.clock() + 20 * 86400)
    found = look(fleet)
    assert "raised expiry image/timestamp" in found
    assert not any("root" in line for line in found)
    at(fleet, fleet.clock() + 20 * 86400)
    assert "worse expiry image/timestamp" in look(fleet)


def test_certificates_of_devices_that_end_soon(fleet: Fleet) -> None:
    join(fleet, "d0", "d1", "d2")
    day = 86_400.0
    held = {"kind": "certificate", "claim": "c", "issued_at": NOW - 60 * day, "document": ""}
    ends = {"d0": NOW + 30.5 * day, "d1": NOW + 400 * day, "d2": None}
    with fleet.store.database.write() as connection:
        for name, at_ in ends.items():
            row = {"fingerprint": name, "device": name, "expires_at": at_, **held}
            connection.execute(credentials.insert(), row)
    certified = {"offline_s": 10**9, "silent_s": 10**9, "expiry_days": (0.0, 0.0)}
    assert look(fleet, **certified) == []
    at(fleet, NOW + day)
    assert look(fleet, **certified) == ["raised certificate d0"]
    (alert,) = fleet.store.alerts.find()
    assert "enrol anew" in alert.summary
    with fleet.store.database.write() as connection:
        connection.execute(update(credentials).where(credentials.c.device == "d0").values(replaced_at=NOW))
    assert look(fleet, **certified) == ["cleared certificate d0"]


def test_orders_that_are_not_told_or_not_in_full(fleet: Fleet) -> None:
    join(fleet, "unsigned", "unkept")
    with fleet.store.database.write() as connection:
        tell(connection, "m", {"unsigned": "0" * 64, "unkept": "0" * 64})
    due = {order.device: order for order in fleet.store.orders.due(NOW, renew_s=0.0, limit=9)}
    # The second one has reached the broker; only the files that say the same are missing.
    unkept = ToldOrder(
        order=due["unkept"], version=1, expires_at=NOW + 10**9, next_at=NOW, problem="the disk is full"
    )
    fleet.store.orders.told([unkept], NOW)
    assert look(fleet) == ["raised untold fleet"]
    unsigned = ToldOrder(order=due["unsigned"], next_at=NOW, problem="the artifact is in no release")
    fleet.store.orders.told([unsigned], NOW)
    assert look(fleet) == []
    (alert,) = fleet.store.alerts.find()
    assert "2 devices are not told, or not in full, what they are to have: the " in alert.summary
    assert fleet.store.orders.counts()["problem"] == 2


def test_short_certificates_are_told_of_in_their_last_third(fleet: Fleet) -> None:
    join(fleet, "d0", "d1")
    hour = 3600.0
    with fleet.store.database.write() as connection:
        for name, days in (("d0", 1), ("d1", 30)):
            row = {
                "fingerprint": name, "device": name, "kind": "certificate", "claim": "c", "issued_at": NOW,
                "document": "", "expires_at": NOW + days * 24 * hour,
            }  # fmt: skip
            connection.execute(credentials.insert(), row)
    certified = {"offline_s": 10**9, "silent_s": 10**9, "expiry_days": (0.0, 0.0)}
    found = []
    for hours in (0, 15, 17, 25, 19 * 24, 21 * 24, 31 * 24):
        at(fleet, NOW + hours * hour)
        found.append([line for line in look(fleet, **certified) if "certificate" in line])
    assert found == [[], [], ["raised certificate d0"], [], [], ["raised certificate d1"], []]


def test_a_full_disk_and_limits_that_would_flap(fleet: Fleet) -> None:
    assert look(fleet, disk_free=(1.0, 1.0)) == [f"raised disk {fleet.data_dir}"]
    wrong: list[dict[str, Any]] = [{"error_rate": (0.1, 0.2)}, {"disk_free": (0.2, 0.1)}, {"every_s": 0.0}]
    for bad in wrong:
        with pytest.raises(ValueError, match="must"):
            AlertSettings(**bad)
