"""Messages in and results out, through a real broker."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.streams.parts import WAIT_S, Doubling, Gate, stream_threads

from edgec.errors import DataError, OutputError, SourceError
from edgec.runtime import load
from edgec.runtime.streams import Captured, MqttSink, MqttSource, Reconnect, Stream, StreamResult, open_source
from edgec.runtime.streams._mqtt import decode_json, read_address
from edgec.runtime.testing import tiny_artifact


def test_addresses_are_read_whole() -> None:
    address = read_address("mqtts://u%40x:p%2F@host/cam/%23")
    assert tuple(address) == ("host", 8883, True, "u@x", "p/", "cam/#")
    assert address.shown == "mqtts://host:8883/cam/#"
    assert read_address("mqtt://[::1]:2000//a")[:2] == ("::1", 2000)


@pytest.mark.parametrize(
    "url",
    ["mqtt://host", "mqtt://host/", "mqtt:///topic", "http://host/a", "mqtt://host/a#b", "mqtt://h:x/a"],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that of a port that is no number is Python's own
        read_address(url)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"\xff", "no JSON"),
        (b"[1, 2", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'["a"]', "an array of float32 for 'x'"),
        (b"[[1], [1, 2]]", "an array of float32 for 'x'"),
        (b'{"z": [1]}', "unknown inputs .'z'"),
        (b'{"n": [300]}', "an array of uint8 for 'n'"),
    ],
)
def test_messages_that_are_no_sample_are_unfit(payload: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        decode_json({"x": "float32", "n": "uint8"})(payload)


class Broker:
    """A Mosquitto of our own, without passwords."""

    def __init__(self, program: str, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._command = [program, "-c", str(folder / "broker.conf")]
        config = f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
        (folder / "broker.conf").write_text(config)
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    pytest.importorskip("paho.mqtt", reason="the extra `agent` is not installed")
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    broker = Broker(program, tmp_path)
    broker.start()
    yield broker
    broker.stop()


class Other:
    """Another client of the broker."""

    def __init__(self, broker: Broker, topic: str = "") -> None:
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self.received: list[bytes] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda _, __, message: self.received.append(bytes(message.payload))
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        if topic:
            self._client.subscribe(topic, 1)
            assert subscribed.wait(WAIT_S)

    def send(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(WAIT_S)

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.slow
def test_messages_become_predictions_and_predictions_messages(broker: Broker, tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    samples = [np.full((1, 4), n, np.float32) for n in range(5)]
    with load(artifact) as session, Other(broker, "out/y") as other:
        source = open_source(f"{broker.url}/in/%2B", session)
        sink = MqttSink(f"{broker.url}/out/y", qos=1)
        with Stream(source, session, policy="block", on_error="drop") as stream:
            taken: list[StreamResult] = []
            running = threading.Thread(target=lambda: stream.run(sink, taken.append))
            running.start()
            # Retained, so that it does not matter which of the two is there first.
            other.send("in/0", json.dumps(samples[0].tolist()).encode(), retain=True)
            until(lambda: len(taken) == 1)
            other.send("in/1", b"no JSON")
            for n in range(1, 5):
                other.send(f"in/{n}", json.dumps({"x": samples[n].tolist()}).encode())
            until(lambda: len(taken) == 5)
        running.join(WAIT_S)
        sink.close()
        until(lambda: len(other.received) == 5)
        wanted = [session.predict(sample)["y"] for sample in samples]
    assert [result.name for result in taken] == [f"in/{n}" for n in range(5)]
    for message, y in zip(other.received, wanted, strict=True):
        np.testing.assert_allclose(json.loads(message)["prediction"]["y"], y, rtol=1e-6)
    assert stream.statistics.dropped["source"] == 1
    assert (sink.sent, sink.dropped) == (5, 0)
    assert stream_threads() == []


def test_what_has_no_room_or_is_too_large_is_lost_and_counted(broker: Broker) -> None:
    gate = Gate()
    source = MqttSource(f"{broker.url}/in", len, queue=3, max_bytes=10)
    with Other(broker) as other, Stream(source, Doubling(gate), policy="block", queue=1) as stream:
        results: list[StreamResult] = []
        running = threading.Thread(target=lambda: results.extend(stream))
        running.start()
        other.send("in", b"1", retain=True)
        assert gate.came.wait(WAIT_S)
        for size in (2, 3):  # one waits in the stream, one for room there
            other.send("in", b"x" * size)
            until(lambda size=size: stream.statistics.captured == size)  # type: ignore[misc]
        for size in (4, 5, 11, 6, 7, 8):
            other.send("in", b"x" * size)
        until(lambda: source.lost == 3)
        gate.open.set()
        until(lambda: len(results) == 6)
    running.join(WAIT_S)
    assert [result.sample for result in results] == [1, 2, 3, 6, 7, 8]
    assert stream.statistics.dropped["source"] == 3
    assert stream.statistics.captured == 9


@pytest.mark.slow
def test_a_broker_that_goes_away_and_comes_back(broker: Broker) -> None:
    source = MqttSource(f"{broker.url}/in", int)
    reconnect = Reconnect(attempts=None, first_s=0.02, most_s=0.05)
    with Stream(source, Doubling(), policy="block", reconnect=reconnect) as stream:
        results: list[StreamResult] = []
        running = threading.Thread(target=lambda: results.extend(stream))
        running.start()
        with Other(broker) as other:
            other.send("in", b"1", retain=True)
            until(lambda: len(results) == 1)
        broker.stop()
        until(lambda: "connection is lost" in stream.statistics.last_error)
        broker.start()
        with Other(broker) as other:
            other.send("in", b"2", retain=True)
            until(lambda: len(results) == 2)
    running.join(WAIT_S)
    assert [result.prediction for result in results] == [{"y": 2}, {"y": 4}]
    assert stream.statistics.reconnects >= 1
    assert stream_threads() == []


def test_results_are_dropped_while_the_broker_is_away(broker: Broker) -> None:
    sink = MqttSink(f"{broker.url}/out")
    broker.stop()
    until(lambda: not sink._link.connected)
    with Stream([Captured(sample=1)], Doubling()) as stream:
        stream.run(sink)
    sink.close()
    assert (sink.sent, sink.dropped) == (0, 1)
    assert stream_threads() == []


def test_a_broker_that_is_not_there_is_an_error() -> None:
    pytest.importorskip("paho.mqtt", reason="the extra `agent` is not installed")
    with socket.socket() as silent:  # bound, so that nobody else listens there
        silent.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}/a"
        with (
            Stream(MqttSource(url), Doubling()) as stream,
            pytest.raises(SourceError, match="refused"),
        ):
            next(stream)
        with pytest.raises(OutputError, match=url):
            MqttSink(url)
    assert stream_threads() == []


# paho leaves the socket of a handshake that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_that_speaks_no_tls_is_an_error(broker: Broker) -> None:
    with pytest.raises(OutputError, match="mqtts://"):
        MqttSink(f"mqtts://127.0.0.1:{broker.port}/a", tls=ssl.create_default_context())
    assert stream_threads() == []


@pytest.mark.parametrize("arguments", [{"qos": 2}, {"url": "mqtt://host/a/%2B"}])
def test_what_mqtt_cannot_do_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a qos"):
        MqttSink(**{"url": "mqtt://host/a", **arguments})
    if "qos" in arguments:
        with pytest.raises(ValueError, match="expected a qos"):
            MqttSource("mqtt://host/a", **arguments)
