"""What an agent that idles costs: memory, processor, and bytes over a broker; and what it loses in kills.

    python -m benchmarks.agent [--seconds 180] [--broker nats] [--output agent.json]

The agent is ``edgec agent run`` as a process of its own, without a model and without an engine, on a broker
over TLS. Bytes are those of the TCP stream between device and broker, with TLS, both ways, counted by a proxy
in between after the connection is made; a day is extrapolated from them. What MQTT packets have in a day,
with windows of models, is `edgec.device_agent.daily_traffic`. The outbox and bytes per update are measured by
``benchmarks.outbox`` and ``benchmarks.deltas``: what they found last is repeated with the name of its file.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgec.device_agent import daily_traffic
from edgec.protocol.brokers import Broker, Mosquitto, Nats
from edgec.runtime.benchmark import this_machine
from edgec.trust import KeyRing, generate_key, open_repositories

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
DEVICE, TENANT = "press-17", "acme"
DAY_S = 86_400.0
# It has settled when its connection is there and nothing has passed for so long. A fixed time is too short on
# a busy machine: the handshake, some 9 kB, then falls into what is measured, and looks like 4.5 MB a day.
_QUIET_S, _PATIENCE_S = 8.0, 120.0
_GOAL_MIB = 60.0


class Counted:
    """Passes bytes on to a broker, and counts them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.up = self.down = self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                device, _ = self._server.accept()
                self.connections += 1
                broker = socket.create_connection(("127.0.0.1", self._target))
                for ends in ((device, broker, "up"), (broker, device, "down")):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def idle_agent(directory: Path, broker: Broker, counted: Counted) -> Iterator[int]:
    """Run an agent that has nothing to do; give the id of its process."""
    keys = directory / "keys"
    for name, role in (
        ("root-1", "root"),
        ("targets-1", "targets"),
        ("online", "online"),
        ("dir", "director"),
    ):
        generate_key(keys, name, role)
    image, director = open_repositories(directory / "repo", KeyRing([keys]))
    image.initialise(root_threshold=1)
    director.initialise(root_threshold=1)
    image.release()
    director.release()
    mine = broker.authority.client(DEVICE)
    config = directory / "agent.toml"
    config.write_text(
        f"""device = "{DEVICE}"
tenant = "{TENANT}"
hardware = ["cpu-x86_64"]
state_dir = "{directory / "state"}"
image_root = "{directory / "repo/image/1.root.json"}"
director_root = "{directory / "repo/director/1.root.json"}"

[broker]
host = "127.0.0.1"
port = {counted.port}
authority = "{mine.authority}"
certificate = "{mine.certificate}"
key = "{mine.key}"
"""
    )
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "edgec.cli", "agent", "run", "--config", str(config)]
        agent = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _settle(counted, lambda: agent.poll() is None)
            if agent.poll() is not None:
                raise SystemExit(f"the agent ended: {(directory / 'log').read_text()}")
            yield agent.pid
        finally:
            agent.terminate()
            agent.wait(30)
            print((directory / "log").read_text(), end="")


def _settle(counted: Counted, alive: Callable[[], bool]) -> None:
    """Wait until a connection has been made and nothing passes any more."""
    end, quiet, last = time.monotonic() + _PATIENCE_S, time.monotonic(), 0
    while alive() and time.monotonic() < end:
        passed = counted.up + counted.down
        if passed != last:
            quiet, last = time.monotonic(), passed
        if last and time.monotonic() - quiet > _QUIET_S:
            return
        time.sleep(0.2)


def memory_mib(pid: int) -> tuple[float, float]:
    """Return how much memory a process has resident, and how much of it is its own, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["Rss"] / 1024, (kib["Private_Clean"] + kib["Private_Dirty"]) / 1024


def cpu_seconds(pid: int) -> float:
    """Return how long a process has computed, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(broker_name: str, seconds: float) -> dict[str, Any]:
    """Let an agent idle; return what that cost."""
    kind = Mosquitto if broker_name == "mosquitto" else Nats
    with tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        directory = Path(folder)
        with kind(directory / "broker", tenant=TENANT, devices=[DEVICE]) as broker:
            counted = Counted(broker.port)
            with idle_agent(directory, broker, counted) as pid:
                connecting, connections = counted.up + counted.down, counted.connections
                cpu_s, begin = cpu_seconds(pid), time.monotonic()
                up, down = counted.up, counted.down
                time.sleep(seconds)
                cpu_s, passed = cpu_seconds(pid) - cpu_s, time.monotonic() - begin
                resident_mib, private_mib = memory_mib(pid)
                up, down = counted.up - up, counted.down - down
            counted.close()
    return {
        "broker": broker_name,
        "seconds": round(passed, 1),
        "resident_mib": round(resident_mib, 1),
        "private_mib": round(private_mib, 1),
        "within_goal": resident_mib <= _GOAL_MIB,
        "cpu_percent_of_a_core": round(100 * cpu_s / passed, 3),
        "connections": connections,
        "connections_meanwhile": counted.connections - connections,
        "stream_bytes": {"connecting": connecting, "up": up, "down": down},
        "stream_bytes_per_day_idle": round((up + down) * DAY_S / passed),
    }


def found(name: str, *keys: str) -> dict[str, Any]:
    """Return part of what another benchmark found last, and in which file; nothing if it never ran."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return {}
    values = json.loads(file.read_bytes())
    return {"from": f"benchmarks/results/{file.name}", **{key: values[key] for key in keys if key in values}}


def budgets() -> dict[str, Any]:
    """Return the bytes of MQTT packets per device and day, both ways with keep-alive, by number of models."""
    return {
        str(models): {**asdict(traffic), "total": traffic.total}
        for models in (1, 2, 8)
        for traffic in (daily_traffic(tenant=TENANT, device=DEVICE, models=models),)
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=180.0, help="to idle for")
    parser.add_argument("--broker", choices=("nats", "mosquitto"), default="nats")
    parser.add_argument("--output", type=Path, default=RESULTS / "agent.json")
    arguments = parser.parse_args()
    machine = this_machine()
    idle = measure(arguments.broker, arguments.seconds)
    print(
        f"{idle['resident_mib']} MiB resident ({idle['private_mib']} of its own), "
        f"{idle['cpu_percent_of_a_core']} % of a core, {idle['stream_bytes_per_day_idle']} bytes a day idle"
    )
    result = {
        "idle": idle,
        "mqtt_packet_bytes_per_day": budgets(),
        "outbox": found("outbox", "records_per_s", "kills", "kept"),
        "bytes_per_update": found("deltas"),
        "machine": asdict(machine),
        "versions": {"edgec": version("edgec"), "python": sys.version.split()[0]},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
