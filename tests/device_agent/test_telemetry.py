"""Telemetry: small windows, a day's traffic, and nothing that the policy does not allow."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import OutboxRecord, Priority
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._telemetry import WINDOW_BYTES, Telemetry, encode_window, system_state
from edgec.device_agent._traffic import DAY_BYTES, daily_traffic, publish_bytes
from edgec.errors import AgentError
from edgec.protocol import ModelWindow, Presence, TelemetryRecord, Topics
from edgec.protocol import Telemetry as TelemetryMessage
from edgec.protocol._window import ModelSample, Note, SystemState
from edgec.runtime._window import CONFIDENCE_EDGES, Window
from edgec.sketch import Histogram, QuantileSketch

pytest.importorskip("cbor2", reason="the extra `agent` is not installed")

DIGEST = "sha256:" + "5e" * 32
SYSTEM = SystemState(
    cpu_decidegrees=612, memory_free_mib=3100, disk_free_mib=20_000, throttled=3, load_percent=180
)


def window(calls: int = 100_000, *, outputs: int = 3, classes: int = 1000, spread: float = 0.3) -> Window:
    """Return what an observer has after so many calls: a heavy tail, many classes, several outputs."""
    random = np.random.default_rng(0)
    latency, confidence = QuantileSketch(), Histogram(CONFIDENCE_EDGES)
    latency.add_many(random.lognormal(1.5, spread, calls) * np.where(random.random(calls) < 0.01, 8, 1))
    confidence.add_many(random.beta(5, 1, calls))
    histograms = {}
    for i in range(outputs):
        histogram = histograms[f"output_{i}"] = Histogram(np.linspace(-2, 2, 7))
        histogram.add_many(random.standard_normal(calls))
    mean = QuantileSketch()
    mean.add_many(random.random(1000))
    seen = Histogram(np.linspace(0, 1, 7))
    seen.add_many(random.random(1000))
    counts = np.bincount(random.geometric(0.02, calls) % classes, minlength=classes)
    return Window(
        model="a model", model_version="2026.11.1", artifact=DIGEST, engine="onnxruntime",
        engine_version="1.23.2", since=1.79e9, seconds=3600.0, calls=calls, errors={"InputError": 12},
        drops={"overloaded": 3}, fallbacks={}, latency_ms=latency, sampled=calls, non_finite=2,
        confidence=confidence, classes={i: int(n) for i, n in enumerate(counts) if n}, outputs=histograms,
        inputs={"image": {"mean": mean, "std": mean}}, input_bins={"image": {"mean": seen, "std": seen}},
    )  # fmt: skip


def test_an_hour_of_a_hundred_thousand_calls_fits_in_1500_bytes_with_all_it_has() -> None:
    data = encode_window("camera", window(outputs=1), system=SYSTEM)
    assert len(data) <= WINDOW_BYTES
    got = ModelWindow.from_bytes(data)
    assert (got.calls, got.errors, got.non_finite, got.sampled) == (100_000, 12, 2, 100_000)
    assert (got.model, got.digest, got.model_version) == ("camera", b"\x5e" * 8, "2026.11.1")
    assert set(got.outputs) == {"output_0"}
    assert got.input_histograms()["image/std"].count == 1000
    assert got.input_histograms().keys() == {"image/mean", "image/std"}
    assert got.confidence_histogram() is not None
    assert sum(got.classes.values()) == 100_000
    assert len(got.classes) <= 21
    assert got.system == SYSTEM
    exact, sent = window().latency_ms, got.latency_sketch()
    for q in (0.5, 0.95, 0.99):
        assert sent.quantile(q) == pytest.approx(exact.quantile(q), rel=(got.joined_bins + 1) / 100)


def test_windows_of_real_calls_are_small(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
    from edgec.runtime import load
    from edgec.runtime.testing import tiny_artifact

    with load(tiny_artifact(tmp_path / "tiny.edgec"), threads=1) as session:
        observer = session.observe()
        inputs = {"x": np.ones((1, 4), np.float32)}
        for _ in range(2000):
            session.run(inputs)
        data = encode_window("tiny", observer.take(), system=system_state(tmp_path))
    got = ModelWindow.from_bytes(data)
    assert got.calls == got.latency_sketch().count == 2000
    assert len(data) < 1200


@pytest.mark.slow
def test_windows_of_a_hundred_thousand_real_calls_fit_in_1500_bytes(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")
    from edgec.runtime import load
    from edgec.runtime.testing import tiny_artifact

    with load(tiny_artifact(tmp_path / "tiny.edgec"), threads=1) as session:
        observer = session.observe()
        inputs = {"x": np.ones((1, 4), np.float32)}
        for _ in range(100_000):
            session.run(inputs)
        data = encode_window("tiny", observer.take(), system=system_state(tmp_path))
    assert ModelWindow.from_bytes(data).calls == 100_000
    assert len(data) <= WINDOW_BYTES


@pytest.mark.parametrize("limit", [1500, 900, 600, 400, 300, 250])
@pytest.mark.parametrize("outputs", [0, 1, 12, 60])
def test_no_window_is_larger_than_it_may_be_and_what_is_left_out_is_said(limit: int, outputs: int) -> None:
    full = window(20_000, outputs=outputs, spread=2.5)
    full = replace(full, errors={f"Error{i}" * 40: i + 1 for i in range(30)}, model_version="v" * 300)
    data = encode_window("m" * 64, full, system=SYSTEM, limit=limit)
    assert len(data) <= limit
    got = ModelWindow.from_bytes(data)
    assert (got.calls, got.errors) == (20_000, full.error_count)
    confident = bool(got.confidence)
    assert len(got.outputs) + len(got.inputs) + len(got.input_bins) + confident + got.left_out == outputs + 5
    if got.latency_ms:
        assert got.latency_sketch().count == 20_000


def test_what_inputs_are_against_their_reference_goes_after_their_sketches_and_further_outputs() -> None:
    full = window(20_000, outputs=12, spread=2.5)
    kept = []
    for limit in (5000, 1500, 1000, 900, 700, 500, 300):
        got = ModelWindow.from_bytes(encode_window("camera", full, system=SYSTEM, limit=limit))
        kept.append((len(got.inputs), len(got.outputs), len(got.input_bins)))
    assert kept[0] == (2, 12, 2)
    assert (0, 1, 2) in kept
    assert kept[-1][2] == 0
    assert all(not inputs or bins == 2 for inputs, _, bins in kept)
    assert all(outputs <= 1 or bins == 2 for _, outputs, bins in kept)


def test_of_very_many_outputs_and_inputs_as_many_are_told_as_a_message_holds() -> None:
    full = window(10, outputs=70)
    full = replace(
        full,
        inputs={f"past_{i}": full.inputs["image"] for i in range(40)},
        input_bins={f"past_{i}": full.input_bins["image"] for i in range(40)},
    )
    got = ModelWindow.from_bytes(encode_window("m", full, limit=65536))
    assert (len(got.outputs), len(got.inputs), len(got.input_bins)) == (64, 64, 64)
    assert got.left_out == 6 + 16 + 16


def test_windows_of_other_versions_are_read() -> None:
    import cbor2

    plain = cbor2.loads(encode_window("camera", window(100, outputs=1), limit=5000))
    of_before = {key: value for key, value in plain.items() if key != 21}
    of_later = {**plain, 22: {"unheard": b"of"}}
    before, later = (ModelWindow.from_bytes(cbor2.dumps(made)) for made in (of_before, of_later))
    assert (before.input_histograms(), before.calls) == ({}, 100)
    assert later.input_histograms().keys() == {"image/mean", "image/std"}


SOME = window(500)


class Observed:
    """Gives windows, as an observer does."""

    def __init__(self, *windows: Window) -> None:
        self.windows = list(windows)
        self.always = SOME

    def take_all(self) -> list[Window]:
        windows, self.windows = self.windows or [self.always], []
        return windows


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / "o.db", boot_id="a") as box:
        yield box


def records(outbox: Outbox, kind: str) -> list[OutboxRecord]:
    """Return what the outbox has of a kind."""
    outbox.rewind()
    found: list[OutboxRecord] = []
    while batch := outbox.take():
        found += [record for record in batch if record.kind == kind]
    return found


def test_first_windows_are_short_and_an_hour_stays_within_its_bytes(outbox: Outbox) -> None:
    now = [0.0]
    telemetry = Telemetry(outbox, monotonic=lambda: now[0])
    telemetry.watch("camera", Observed())
    sizes: list[tuple[float, int]] = []
    while now[0] < 3 * 3600:
        before = len(records(outbox, "window"))
        wait = telemetry.tick()
        sizes += [(now[0], len(r.payload)) for r in records(outbox, "window")[before:]]
        now[0] += wait
    assert [at for at, _ in sizes] == [60, 600, 3600, 7200]
    assert sum(size for at, size in sizes if at <= 3600) <= WINDOW_BYTES
    assert all(size <= WINDOW_BYTES for _, size in sizes)


def test_many_models_share_the_bytes_of_a_day(outbox: Outbox) -> None:
    now = [0.0]
    telemetry = Telemetry(outbox, TelemetryPolicy(max_bytes_per_day=30_000), monotonic=lambda: now[0])
    for i in range(4):
        telemetry.watch(f"m{i}", Observed())
    for _ in range(14):
        telemetry.tick()
        now[0] += 3600.0
    sent = records(outbox, "window")
    assert len(sent) == 4 * 13
    assert sum(len(r.payload) for r in sent) * 24 / 13 <= 30_000
    assert outbox.state().losses == ()


def test_after_a_swap_both_artifacts_have_their_windows(outbox: Outbox) -> None:
    telemetry = Telemetry(outbox, monotonic=lambda: 0.0)
    before = window(10)
    telemetry.watch(
        "camera",
        Observed(before, replace(before, artifact="sha256:" + "77" * 32), replace(before, calls=0, drops={})),
    )
    telemetry.forget("camera")
    sent = [ModelWindow.from_bytes(r.payload) for r in records(outbox, "window")]
    assert [w.digest[0] for w in sent] == [0x5E, 0x77]
    telemetry.flush()
    assert len(records(outbox, "window")) == 2


def call() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and outputs of a call."""
    return {"image": np.full((8, 8), 200, np.uint8)}, {"scores": np.ones(10, np.float32)}


@pytest.mark.parametrize(
    ("policy", "inputs", "outputs"),
    [
        (TelemetryPolicy(), None, None),
        (TelemetryPolicy(outputs=True), set(), {"scores"}),
        (TelemetryPolicy(inputs=True), {"image"}, set()),
        (TelemetryPolicy(inputs=True, outputs=True), {"image"}, {"scores"}),
        (TelemetryPolicy(inputs=True, max_samples_per_day=0), None, None),
        (TelemetryPolicy(inputs=True, outputs=True).within(TelemetryPolicy()), None, None),
        (TelemetryPolicy(inputs=True, outputs=True).within(TelemetryPolicy(outputs=True)), set(), {"scores"}),
    ],
)
def test_of_single_calls_only_what_the_policy_allows_is_even_written(
    outbox: Outbox, policy: TelemetryPolicy, inputs: set[str] | None, outputs: set[str] | None
) -> None:
    telemetry = Telemetry(outbox, policy)
    kept = telemetry.sample("camera", DIGEST, *call())
    assert kept == (inputs is not None)
    sent = [ModelSample.from_bytes(r.payload).call() for r in records(outbox, "sample")]
    assert [(set(c.inputs), set(c.outputs)) for c in sent] == ([(inputs, outputs)] if kept else [])
    if not policy.inputs or inputs is None:
        assert bytes([200] * 64) not in outbox._path.with_name("o.db-wal").read_bytes()


def test_samples_have_limits_a_day_and_what_goes_beyond_is_counted(outbox: Outbox) -> None:
    now = [0.0]
    policy = TelemetryPolicy(inputs=True, max_samples_per_day=3)
    telemetry = Telemetry(outbox, policy, monotonic=lambda: now[0])
    assert [telemetry.sample("camera", DIGEST, *call()) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not telemetry.sample("camera", DIGEST, {"image": np.zeros(10**6, np.uint8)}, {})
    assert not telemetry.sample("camera", DIGEST, {"text": np.array(["a"], object)}, {})
    assert {(c.kind, c.reason): c.records for c in outbox.state().losses}["sample", "rate"] >= 3
    now[0] = 86_401.0
    telemetry.tick()
    assert telemetry.sample("camera", DIGEST, *call())


def test_without_metrics_no_window_leaves(outbox: Outbox) -> None:
    telemetry = Telemetry(outbox, TelemetryPolicy(metrics=False), monotonic=lambda: 0.0)
    telemetry.watch("camera", Observed())
    telemetry.flush()
    assert records(outbox, "window") == []


def test_a_policy_takes_effect_at_once(outbox: Outbox) -> None:
    telemetry = Telemetry(outbox, TelemetryPolicy(inputs=True))
    assert telemetry.sample("camera", DIGEST, *call())
    telemetry.set_policy(TelemetryPolicy())
    assert telemetry.policy == TelemetryPolicy()
    assert not telemetry.sample("camera", DIGEST, *call())


def test_row_30_notes_of_anything_are_kept(outbox: Outbox) -> None:
    telemetry = Telemetry(outbox)
    for raw in (b"\xff\x00" * 10**6, "\ud800", "ok"):
        telemetry.note("agent", raw)
    notes = [Note.from_bytes(r.payload) for r in records(outbox, "note")]
    assert [n.text for n in notes[1:]] == ["\ufffd", "ok"]
    assert notes[0].cut > 0


def test_policies_survive_json_and_wrong_ones_say_everything() -> None:
    policy = TelemetryPolicy(outputs=True, interval_s=60.0, max_samples_per_day=7)
    assert TelemetryPolicy.from_dict(policy.to_dict()) == policy
    assert TelemetryPolicy.from_dict({}) == TelemetryPolicy()
    with pytest.raises(AgentError, match=r"'input' is unknown; metrics has .* false; interval_s has"):
        TelemetryPolicy.from_dict({"input": True, "metrics": 1, "interval_s": "1"})
    for bad in (
        {"interval_s": 1},
        {"max_bytes_per_day": -1},
        {"interval_s": float("nan")},
        {"max_samples_per_day": True},
    ):
        with pytest.raises(AgentError):
            TelemetryPolicy.from_dict(bad)


def test_the_state_of_a_machine_is_read(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("61250\n")
    (zone / "type").write_text("cpu\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 2048000 kB\n")
    state = system_state(tmp_path, tmp_path)
    assert (state.cpu_decidegrees, state.memory_free_mib, state.throttled) == (612, 2000, 0)
    assert state.disk_free_mib is not None
    assert system_state(tmp_path / "missing", tmp_path / "missing").disk_free_mib is None


@pytest.mark.parametrize("models", [1, 2, 3, 8])
def test_a_day_of_telemetry_with_keep_alive_takes_less_than_100_kb(models: int) -> None:
    traffic = daily_traffic(tenant="acme-industries", device="d" * 32, models=models)
    assert traffic.total <= DAY_BYTES
    assert traffic.keep_alive == 1440 * 4


class Recorder(Thread):
    """A broker that accepts one client, acknowledges what it sends, and keeps the bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.packets: list[bytes] = []

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rb") as stream:
            while head := stream.read(1):
                length, shift, raw = 0, 0, b""
                while True:
                    raw += (byte := stream.read(1))
                    length |= (byte[0] & 127) << shift
                    shift += 7
                    if byte[0] < 128:
                        break
                body = stream.read(length)
                self.packets.append(head + raw + body)
                if head[0] >> 4 == 1:
                    connection.sendall(b"\x20\x02\x00\x00")
                elif head[0] >> 4 == 3:
                    topic = int.from_bytes(body[:2], "big")
                    connection.sendall(b"\x40\x02" + body[2 + topic : 4 + topic])


def test_the_budget_counts_packets_as_paho_makes_them() -> None:
    mqtt = pytest.importorskip("paho.mqtt.client", reason="the extra `agent` is not installed")
    recorder = Recorder()
    recorder.start()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="d" * 32)
    topics = Topics("acme-industries")
    presence = Presence(
        online=True, boot_epoch=10_000, boot_id="b" * 34, connection=10_000, agent="edgec 99.99.99",
        sent_at=1.8e9 + 0.5, hardware="h" * 24,
    )  # fmt: skip
    client.will_set(topics.state("d" * 32), presence.as_will().to_bytes(), qos=1, retain=True)
    client.connect("127.0.0.1", recorder.listener.getsockname()[1])
    client.loop_start()
    record = TelemetryRecord(offset=0, kind="window", at=1.8e9 + 0.5, payload=bytes(1500))
    message = TelemetryMessage(boot_id="b" * 34, first_seq=100_000, records=(record,), sent_at=1.8e9 + 0.5)
    sizes = [len(message.to_bytes()), 100, 0, 20_000]
    for size in sizes:
        client.publish(topics.telemetry("d" * 32), bytes(size), qos=1).wait_for_publish(60)
    client.disconnect()
    client.loop_stop()
    recorder.join(60)
    recorder.listener.close()
    published = [len(p) for p in recorder.packets if p[0] >> 4 == 3]
    assert published == [publish_bytes(topics.telemetry("d" * 32), size) for size in sizes]
    connect = next(p for p in recorder.packets if p[0] >> 4 == 1)
    traffic = daily_traffic(tenant="acme-industries", device="d" * 32, models=1, connections=1)
    assert traffic.connecting > 2 * len(connect)  # that, and the presence that is told again
    two = daily_traffic(tenant="acme-industries", device="d" * 32, models=2)
    assert two.telemetry > 2 * 24 * 1500
    assert two.total <= DAY_BYTES


def test_a_window_that_the_outbox_refuses_is_counted_and_nothing_breaks(tmp_path: Path) -> None:
    with Outbox(tmp_path / "o.db", boot_id="a") as outbox:
        telemetry = Telemetry(outbox, TelemetryPolicy(max_bytes_per_day=100), monotonic=lambda: 0.0)
        telemetry.watch("camera", Observed())
        telemetry.flush()
        assert {(c.kind, c.priority, c.reason) for c in outbox.state().losses} == {
            ("window", int(Priority.METRIC), "rate")
        }
