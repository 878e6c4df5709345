"""What the fleet's side of a broker takes: messages of devices kept per second of its process's CPU time.

    python -m benchmarks.ingest --out benchmarks/results/ingest.json

A server process keeps telemetry on SQLite; this process plays many devices over a few connections, each
sending a window of an observed model in a message of its own, so that nothing is saved by joining records.
What counts is CPU time of the server's process, so that other work on the machine changes little; wall time
is given beside it. Every message must be acknowledged by the fleet, and every call counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgec.fleet.mqtt import MqttSettings, MqttSide
from edgec.fleet.service import Fleet
from edgec.protocol import (
    LinkOptions,
    ModelWindow,
    MqttLink,
    Outgoing,
    Subscription,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
    Topics,
)
from edgec.protocol.brokers import FLEET, Broker, Mosquitto, Nats
from edgec.runtime.benchmark import this_machine
from edgec.sketch import Histogram, QuantileSketch

CALLS = 1200
TOPICS = Topics("default")


def link_of(broker: Broker, client_id: str, *filters: str) -> LinkOptions:
    """Return options of a link with the fleet's identity, which may say anything."""
    return LinkOptions(
        host=broker.host, port=broker.port, client_id=client_id,
        tls=broker.authority.client(FLEET).client_context(),
        subscriptions=tuple(Subscription(filter=f) for f in filters),
        inbound_messages=8192, outbound_messages=8192,
    )  # fmt: skip


def payload() -> bytes:
    """Return a window as a device with one observed classifier sends it, in some 1,000 bytes."""
    rng = np.random.default_rng(1)
    latency, confidence, output = QuantileSketch(), Histogram(np.linspace(0.1, 0.9, 9)), Histogram(range(19))
    latency.add_many(rng.lognormal(2, 0.4, CALLS))
    confidence.add_many(rng.uniform(0, 1, CALLS // 3))
    output.add_many(rng.normal(9, 4, CALLS // 3))
    return ModelWindow(
        model="kws", digest=b"\1" * 8, since=time.time(), seconds=3600.0, calls=CALLS, sampled=CALLS // 3,
        latency_ms=latency.to_bytes(), confidence=confidence.to_bytes(),
        classes=dict.fromkeys(range(20), CALLS // 20), outputs={"logits": output.to_bytes()},
    ).to_bytes()  # fmt: skip


def message_of(number: int, record: TelemetryRecord) -> bytes:
    """Return a message with one record."""
    return Telemetry(boot_id="b", first_seq=number, sent_at=time.time(), records=(record,)).to_bytes()


@contextmanager
def server(folder: Path, broker: Broker) -> Iterator[subprocess.Popen[str]]:
    """Run the fleet's side in a process of its own."""
    files = broker.authority.client(FLEET)
    arguments = [folder, broker.host, broker.port, files.authority, files.certificate, files.key]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ingest", "--serve", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flood(
    broker: Broker, devices: list[str], rounds: int, process: subprocess.Popen[str]
) -> dict[str, float]:
    """Send a message per device and round; return what it took until all was acknowledged."""
    record = TelemetryRecord(offset=0, kind="window", at=time.time(), payload=payload())
    kept: dict[str, int] = {}
    root = TOPICS.ack("x").removesuffix("/d/x/dn/ack")
    with (
        MqttLink(link_of(broker, "ears", f"{root}/d/+/dn/ack")) as ears,
        MqttLink(link_of(broker, "mouth")) as mouth,
    ):
        ears.wait_connected(30)
        mouth.wait_connected(30)
        began, cpu = time.monotonic(), cpu_s(process.pid)
        for number in range(rounds):
            sent = []
            for name in devices:
                message = Outgoing(topic=TOPICS.telemetry(name), payload=message_of(number, record))
                sent.append(mouth.publish(message))
            for publication in sent:
                publication.wait(600)
        while len(kept) < len(devices) or min(kept.values()) < rounds - 1:
            inbound = ears.get(timeout_s=120)
            assert inbound is not None, f"{sum(kept.get(n, -1) < rounds - 1 for n in devices)} devices wait"
            address = TOPICS.parse(inbound.topic)
            assert address is not None
            kept[address.device] = TelemetryAck.from_bytes(inbound.payload).seq or 0
            inbound.ack()
        wall, spent = time.monotonic() - began, cpu_s(process.pid) - cpu
    total = rounds * len(devices)
    return {
        "messages": total,
        "message_bytes": len(message_of(0, record)),
        "wall_s": round(wall, 2),
        "server_cpu_s": round(spent, 2),
        "messages_per_s": round(total / wall),
        "messages_per_s_per_core": round(total / spent),
    }


def measure(kind: str, devices: int, rounds: int) -> dict[str, float]:
    """Measure one broker."""
    folder = Path(tempfile.mkdtemp(prefix="edgec-ingest-"))
    names = [f"dev{i:05}" for i in range(devices)]
    try:
        with {"mosquitto": Mosquitto, "nats": Nats}[kind](folder / "broker") as broker:
            with Fleet(folder / "fleet") as fleet, fleet.store.database.together():
                for name in names:
                    fleet.store.devices.enrol(name, "cpu", now=time.time(), actor="benchmark")
            with server(folder / "fleet", broker) as process:
                flood(broker, names[:50], 2, process)
                found = flood(broker, names[50:], rounds, process)
            with Fleet(folder / "fleet") as fleet:
                hours = fleet.store.telemetry.fleet("kws", since=0, until=time.time() + 3600)
                counted = sum(part.figures["calls"] for part in hours.values())
            assert counted == CALLS * (100 + rounds * (devices - 50)), f"{counted} calls were counted"
            return found
    finally:
        shutil.rmtree(folder)


def serve(folder: str, host: str, port: str, authority: str, certificate: str, key: str) -> None:
    """Be the server."""
    import ssl

    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    options = LinkOptions(host=host, port=int(port), client_id=FLEET, tls=context)
    with Fleet(Path(folder)) as fleet, MqttSide(fleet, options, settings=MqttSettings()) as side:
        side.wait_connected(60)
        print("up", flush=True)
        sys.stdin.read()


def main() -> None:
    """Measure both brokers."""
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a twentieth of it")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    devices, rounds = (250, 2) if given.quick else (1050, 8)
    results: dict[str, Any] = {
        "machine": asdict(this_machine()),
        "devices": devices - 50,
        "brokers": {kind: measure(kind, devices, rounds) for kind in ("mosquitto", "nats")},
    }
    text = json.dumps(results, indent=1)
    if given.out is not None:
        given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
