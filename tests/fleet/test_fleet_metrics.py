"""Figures for Prometheus: what it reads is what the store says, in as many rows as there are models."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cbor2", reason="the store needs the extra 'fleet'")
pytest.importorskip("prometheus_client", reason="figures need the extra 'fleet'")

from prometheus_client.parser import text_string_to_metric_families
from tests.fleet.servers import running_server, until
from tests.fleet.talkers import telemetry, window
from tests.fleet.test_alerts import endpoint

from edgec.fleet.metrics import metrics_text
from edgec.fleet.mqtt import Counters
from edgec.fleet.rollouts import Plan
from edgec.fleet.store import Condition, DriftRow, Store
from edgec.protocol import Presence

NOW = 1_790_000_000.0
pytestmark = pytest.mark.slow


def figures(store: Store, counted: Counters | None = None) -> dict[tuple[str, ...], float]:
    text, content_type = metrics_text(store, clock=lambda: NOW, counted=counted)
    assert content_type.startswith("text/plain")
    return {
        (s.name.removeprefix("edgec_fleet_"), *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text.decode())
        for s in family.samples
    }


def test_an_empty_fleet_has_figures_too(store: Store) -> None:
    assert figures(store)[("quarantined",)] == 0


def test_figures_are_those_of_the_store(store: Store) -> None:
    for i in range(30):
        store.devices.enrol(f"d{i}", "npu" if i < 10 else 'c"p\\u\n', now=NOW, actor="ann")
    said = Presence(online=True, boot_epoch=1, boot_id="b", connection=1, agent="a", sent_at=NOW)
    for i in range(5):
        store.devices.heard(f"d{i}", said, NOW)
        part = replace(window(100, since=NOW), errors=i)
        store.telemetry.ingest([(f"d{i}", telemetry(0, part))], NOW)
    store.devices.heard("d0", replace(said, online=False), NOW)
    store.devices.revoke("d9", now=NOW, actor="ann")
    plan = Plan(id="r1", name="r", model="m", version="2", artifacts={"npu": "b" * 64})
    store.rollouts.create(plan, now=NOW, actor="ann")
    store.rollouts.quarantine("c" * 64, now=NOW, actor="ann", reason="bad")
    holds = Condition(rule="offline", subject="d0", severity="warning", summary="it is away")
    store.alerts.compare([holds], NOW, rules=["offline"], quiet_s=0, sinks=["hook"])
    row: dict[str, Any] = {
        "model": "m",
        "digest": "a" * 16,
        "hardware": "npu",
        "output": "y",
        "hours": 1,
        "n": 9,
    }
    of_input = {**row, "kind": "input", "output": "a/b/mean", "psi": 0.75, "ks": 0.125, "hours": 24}
    of_morning = {**of_input, "output": "a/b/std", "hours": 23}
    rows = (row, of_input, of_morning)
    store.drift.write([DriftRow(**{"psi": 0.5, "ks": 0.25, **one}, hour=int(NOW // 3600)) for one in rows])
    counted = Counters()
    counted.count("messages", "tele", by=5)
    counted.spend("lag_seconds", 0.25)
    found = figures(store, counted)
    expected = {
        ("devices", "npu", "online"): 4, ("devices", "npu", "offline"): 1, ("devices", "npu", "revoked"): 1,
        ("devices", "never_seen", "npu"): 4, ("devices", 'c"p\\u\n', "never_seen"): 20,
        ("rollouts", "draft"): 1, ("alerts", "offline"): 1, ("undelivered_alerts", "hook"): 1,
        ("quarantined",): 1, ("model_calls", "", "a" * 16, "m"): 500, ("model_errors", "", "a" * 16, "m"): 10,
        ("drift_psi", "a" * 16, "m", "npu", "y"): 0.5, ("drift_ks", "a" * 16, "m", "npu", "y"): 0.25,
        ("input_drift_psi", "a" * 16, "m", "npu", "a/b", "mean"): 0.75,
        ("input_drift_ks", "a" * 16, "m", "npu", "a/b", "mean"): 0.125,
        ("messages_total", "tele"): 5, ("ingest_lag_seconds_total",): 0.25,
    }  # fmt: skip
    assert {key: found.get((key[0], *sorted(key[1:]))) for key in expected} == expected
    assert found["latency_milliseconds", "", "0.95", "a" * 16, "m"] == pytest.approx(1.0, rel=0.02)


def test_there_are_no_more_figures_of_more_devices(store: Store) -> None:
    sizes = []
    for count in (3, 40):
        for i in range(count):
            name = f"x{count}-{i}"
            store.devices.enrol(name, "npu", now=NOW, actor="ann")
            store.telemetry.ingest([(name, telemetry(0, window(10, since=NOW)))], NOW)
        sizes.append(len(figures(store)))
    assert sizes[0] == sizes[1]


def test_a_server_shows_its_figures_and_tells_a_webhook(tmp_path: Path) -> None:
    with ExitStack() as stack:
        hook = stack.enter_context(endpoint())
        options: dict[str, Any] = {"tls": False, "webhook": hook.url, "webhook_secret": "s"}
        server = stack.enter_context(running_server(tmp_path, "nats", **options))
        assert server.first is not None
        server.fleet.store.devices.enrol("d1", "cpu", now=NOW, actor="ann")
        for boot in ("x", "y"):
            said = Presence(online=True, boot_epoch=1, boot_id=boot, connection=1, agent="a", sent_at=NOW)
            server.fleet.store.devices.heard("d1", said, NOW)
        server.fleet.wake()
        request = urllib.request.Request(f"{server.url}/metrics")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=60).close()
        request.add_header("Authorization", f"Bearer {server.first.admin_token}")
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = reply.read().decode()
        assert 'edgec_fleet_devices{hardware="cpu",state="fenced"} 1.0' in text
        assert "edgec_fleet_turns_total" in text
        until(lambda: any(b"cloned" in body for _, body in hook.got), "the webhook is told")
