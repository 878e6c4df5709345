"""What a fleet of simulated devices takes: orders, a gated rollout, an undo, a broker that is killed, ingest.

    python -m benchmarks.fleet [--devices 1000] [--quick] [--broker mosquitto|nats] [--nice 19] [--output F]

A real server (``edgec fleet up``, SQLite) in a process of its own, its broker, and the devices in others, all
on this machine: the devices' agents take most of its cores, so that times are upper bounds for the server.
They are niced below it (``--nice 0`` where others use the machine); ``cpu`` says who computed for how long.
What is real and what is drawn of a device is in docs/simulation.md. Times are by one clock:

- notify: from the decision in the database to the order in the device's process, where its link has it, and
  beside it (``taken``) until its agent takes it from there, which waits for other agents of that process;
- rollout: three stages with a gate, from the order to ``finished``; the soak in it is named;
- undo: from the order to the acknowledgement of the last of 99 % of the devices, in the database; beside it
  how long server, broker and agents computed meanwhile, per device, telemetry included, and what that makes
  where devices have processors of their own: all that server and broker computed, one after the other, and
  one device's share;
- broker: from the kill (SIGKILL) to 99 % of the devices connected again; it is killed in the midst of a
  rollout, and of each device the events of all its updates must have arrived, none given up;
- ingest: telemetry records that were kept per second that the server's process computed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgec.device_agent import AgentConfig, UpdateSettings
from edgec.fleet.client import FleetClient
from edgec.fleet.views import RolloutView, RolloutWanted, StageWanted
from edgec.runtime.benchmark import this_machine
from edgec.simulation import DeviceNews, SimulationSettings, Swarm, make_release
from edgec.simulation._enrolling import enrol_devices
from edgec.simulation._places import state_directory
from edgec.simulation._serve import Access, OwnServer
from edgec.simulation._story import REASON

RESULTS = Path(__file__).resolve().parent / "results"
MODEL, HARDWARE = "sorter", "cpu-x86_64"
_PATIENCE_S = 900.0
_GOALS = {"notify_p99_s": 2.0, "undo_99_s": 30.0, "broker_99_back_s": 30.0, "lost_priority_events": 0}


class Bench:
    """One run.

    Args:
        access: To the server.
        client: With a token of role admin.
        database: The server's file, read only.
        folder: For artifacts.
        devices: How many.
        nice: Added to the niceness of their processes.
    """

    def __init__(
        self, access: Access, client: FleetClient, database: Path, folder: Path, devices: int, nice: int
    ) -> None:
        self.access, self.client, self.database = access, client, database
        self.folder, self.devices, self.nice = folder, devices, nice
        self.lock = threading.Lock()
        self.orders: dict[str, list[tuple[float, float]]] = {}
        self.failed: list[str] = []

    def hear(self, news: DeviceNews) -> None:
        """Note when orders come."""
        if news.kind == "order":
            with self.lock:
                self.orders.setdefault(news.device, []).append((news.came_at, news.at))

    def swarm(self, configs: list[AgentConfig], settings: SimulationSettings, processes: int) -> Swarm:
        """Return the devices."""
        return Swarm(
            configs, settings, processes=processes, nice=self.nice, news=self.hear, failed=self.failed.append
        )

    def roll_out(self, number: str, stages: list[tuple[float, float]], *, least: int = 50) -> RolloutView:
        """Upload a sound release, and begin to roll it out."""
        path = make_release(self.folder / f"{number}.edgec", number, target=HARDWARE)
        self.client.upload(path, override=REASON)
        # Before they have told anything of it, fifty devices with a release would be found silent.
        first_look_s = 2.0 if self.devices < 100 else 1.1 * window_s(self.devices)
        wanted = RolloutWanted(
            model=MODEL, version=number, least_devices=least, first_look_s=first_look_s, start=True,
            stages=[StageWanted(percent=percent, soak_s=soak_s) for percent, soak_s in stages],
        )  # fmt: skip
        return self.client.create_rollout(wanted)

    def end(self, rollout: str, state: str) -> float:
        """Wait until a rollout is in a state; return how long that took."""
        begin = time.monotonic()
        while (now := self.client.rollout(rollout)).state != state:
            if time.monotonic() - begin > _PATIENCE_S or (
                state != "undone" and now.state in ("undoing", "undone", "aborted")
            ):
                raise SystemExit(f"{rollout} is {now.state} ({now.reason or now.held}), not {state}")
            time.sleep(0.5)
        return time.monotonic() - begin

    def notify(self, rollout: str, kind: str = "assign") -> dict[str, Any]:
        """Return how long orders were on their way."""
        waits = []
        for decision in self.client.decisions(rollout, kinds=[kind]):
            device = str(decision.body["device"])
            heard = [both for both in self.orders.get(device, ()) if both[0] >= decision.at]
            if heard:
                waits.append([at - decision.at for at in min(heard)])
        (p50, taken), (p95, taken_95), (p99, taken_99) = np.quantile(waits, (0.5, 0.95, 0.99), axis=0)
        return {
            "orders": len(waits), "p50_s": _r(p50), "p95_s": _r(p95), "p99_s": _r(p99),
            "taken": {"p50_s": _r(taken), "p95_s": _r(taken_95), "p99_s": _r(taken_99)},
        }  # fmt: skip

    def undo(self, rollout: str, swarm: Swarm) -> dict[str, Any]:
        """Order an undo; return how long until devices have confirmed it, and who computed meanwhile."""
        begin, found, before = time.monotonic(), dict[str, Any](), self.cpu(swarm)
        self.client.order(rollout, "undo", "a measurement")
        query = "SELECT sum(undone AND confirmed) FROM assignments WHERE rollout = ?"
        while "all_s" not in found:
            share = (self.read(query, rollout) or 0) / self.devices
            passed = time.monotonic() - begin
            for name, least in (("half_s", 0.5), ("p99_s", 0.99), ("all_s", 1.0)):
                if share >= least:
                    found.setdefault(name, _r(passed))
            if passed > _PATIENCE_S:
                raise SystemExit(f"the undo does not end: {share:.1%} have confirmed")
            time.sleep(0.25)
        spent = {name: value - before[name] for name, value in self.cpu(swarm).items()}
        each = {f"{name}_ms_per_device": _r(1000 * value / self.devices) for name, value in spent.items()}
        alone = spent["server"] + spent["broker"] + spent["agents"] / self.devices
        return {
            **found,
            "cpu": {**each, "own_processors_s": _r(alone)},
            "notify": self.notify(rollout, "undo"),
        }

    def cpu(self, swarm: Swarm) -> dict[str, float]:
        """Return how long server, broker and agents have computed, in seconds."""
        broker = broker_of(self.access.pid)
        return {
            "server": cpu_seconds(self.access.pid),
            "broker": cpu_seconds(broker),
            "agents": sum(map(cpu_seconds, swarm.pids)),
        }

    def kill_broker(self, swarm: Swarm, number: str) -> dict[str, Any]:
        """Kill the broker in the midst of a rollout; return how long devices need, and what was lost."""
        rollout = self.roll_out(number, [(100.0, 5.0)])
        begin = time.monotonic()
        while self.client.rollout(rollout.id).devices.get("working", 0) < self.devices // 4:
            if time.monotonic() - begin > 60:
                break
            time.sleep(0.1)
        before = swarm.counts()
        os.kill(broker_of(self.access.pid), signal.SIGKILL)  # the server starts it again
        begin = time.monotonic()
        most = 0.99 * self.devices
        # Counted in connections: those that come back within a second may never be seen without one.
        gone = swarm.wait(lambda counts: counts.connections >= before.connections + most, _PATIENCE_S)
        back = swarm.wait(lambda counts: counts.online >= most, _PATIENCE_S)
        back_s = time.monotonic() - begin
        self.end(rollout.id, "finished")
        swarm.wait(lambda counts: counts.serving.get(f"{MODEL} {number}", 0) == self.devices, _PATIENCE_S)
        arrived = self.wait_for_events()
        after = swarm.counts()
        return {
            "all_lost_the_broker": gone,
            "p99_back_s": _r(back_s) if back else None,
            "connections": after.connections - before.connections,
            "events_missing": arrived,
            "priority_records_given_up": after.lost,
        }

    def wait_for_events(self) -> int:
        """Wait for the events of all updates; return of how many devices some are missing."""
        end = time.monotonic() + 120
        while (missing := self.devices - self.count_devices_with_all_events()) and time.monotonic() < end:
            time.sleep(1)
        return missing

    def count_devices_with_all_events(self) -> int:
        """Return how many devices have told of four updates, without a gap in what they told."""
        query = (
            "SELECT count(*) FROM (SELECT device FROM records WHERE kind = 'update_committed' "
            "GROUP BY device HAVING count(*) >= 4) AS told WHERE device NOT IN "
            "(SELECT device FROM ledgers WHERE boot_id LIKE '%-e' AND ranges NOT IN ('[]', 'null'))"
        )
        return int(self.read(query))

    def read(self, query: str, *values: str) -> Any:
        """Return one value of the server's database."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query, values).fetchone()[0]
        finally:
            connection.close()

    def ingest(self, seconds: float) -> dict[str, float]:
        """Let devices tell what they saw; return how much the server kept, and what that cost it."""
        query = "SELECT sum(up_to + 1) FROM ledgers"
        kept, cpu_s, begin = int(self.read(query)), cpu_seconds(self.access.pid), time.monotonic()
        time.sleep(seconds)
        kept, cpu_s, passed = (
            int(self.read(query)) - kept,
            cpu_seconds(self.access.pid) - cpu_s,
            time.monotonic() - begin,
        )
        return {
            "seconds": _r(passed),
            "records": kept,
            "records_per_s": _r(kept / passed),
            "server_cores": _r(cpu_s / passed),
            "records_per_s_per_core": _r(kept / cpu_s),
        }


def broker_of(server: int) -> int:
    """Return the process of the broker that a server runs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has just ended
            continue
        if name in ("mosquitto", "nats-server") and int(rest.split()[1]) == server:
            return int(stat.parent.name)
    raise SystemExit(f"the server {server} runs no broker")


def cpu_seconds(pid: int) -> float:
    """Return how long a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _r(value: float) -> float:
    return round(float(value), 3)


def window_s(devices: int) -> float:
    """Return how often devices tell what they saw, in seconds."""
    return max(10.0, devices / 25)


def run(
    devices: int, broker: str, *, processes: int, nice: int, soak_s: float, ingest_s: float
) -> dict[str, Any]:
    """Measure all; return it."""
    updates = UpdateSettings(probation_s=2.0, refresh_s=0, health_timeout_s=300)
    settings = SimulationSettings(
        calls_per_s=20.0,
        # So that what the server hears of telemetry is the same for fleets of any size: 25 records a second.
        window_s=window_s(devices),
        updates=updates,
        first_retry_s=2.0,
        last_retry_s=10.0,
        ramp_s=devices / 100,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgec-fleet-")))
        states = stack.enter_context(state_directory(devices))
        access = stack.enter_context(OwnServer(folder / "fleet", broker=broker))
        authority = Path(access.authority)
        client = stack.enter_context(FleetClient(access.url, access.token, ca=authority))
        bench = Bench(access, client, folder / "fleet/fleet.db", folder, devices, nice)
        begin = time.monotonic()
        claim = client.create_claim(uses=devices, labels={"site": "bench"}).claim
        configs = enrol_devices(
            access.url,
            claim,
            [f"bench-{number:05}" for number in range(devices)],
            states,
            authority=authority,
            hardware=HARDWARE,
            settings=settings,
        )
        result: dict[str, Any] = {"enrol_s": _r(time.monotonic() - begin)}
        print(f"{devices} enrolled: {result['enrol_s']} s", flush=True)
        with bench.swarm(configs, settings, processes) as swarm:
            begin = time.monotonic()
            if not swarm.wait_online(_PATIENCE_S):
                raise SystemExit(f"only {swarm.counts().online} came online; {bench.failed[:3]}")
            result["online_s"] = _r(time.monotonic() - begin)
            print(f"online: {result['online_s']} s", flush=True)
            first = bench.roll_out("1", [(100.0, soak_s)])
            result["first_install_s"] = _r(bench.end(first.id, "finished"))
            result["first_notify"] = bench.notify(first.id)
            print(f"first release: {result['first_install_s']} s, {result['first_notify']}", flush=True)
            stages = [(5.0, soak_s), (25.0, soak_s), (100.0, soak_s)]
            gated = bench.roll_out("2", stages, least=min(50, max(1, devices // 20)))
            seconds = bench.end(gated.id, "finished")
            result["rollout"] = {"seconds": _r(seconds), "stages": stages, "soak_s": 3 * soak_s}
            result["notify"] = bench.notify(gated.id)
            print(f"gated rollout: {result['rollout']}, {result['notify']}", flush=True)
            result["undo"] = bench.undo(gated.id, swarm)
            print(f"undo: {result['undo']}", flush=True)
            bench.end(gated.id, "undone")
            result["broker_killed"] = bench.kill_broker(swarm, "3")
            print(f"broker killed: {result['broker_killed']}", flush=True)
        with bench.swarm(
            configs, replace(settings, window_s=max(1.0, devices / 250), ramp_s=0.0), processes
        ) as swarm:
            swarm.wait_online(_PATIENCE_S)
            time.sleep(min(10.0, ingest_s))
            result["ingest"] = bench.ingest(ingest_s)
            print(f"ingest: {result['ingest']}", flush=True)
        result["failed_to_start"] = len(bench.failed)
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--broker", choices=("auto", "mosquitto", "nats"), default="auto")
    parser.add_argument("--processes", type=int, default=8, help="Over which devices are spread.")
    parser.add_argument("--nice", type=int, default=19, help="Of the devices' processes, below the server.")
    parser.add_argument("--quick", action="store_true", help="60 devices, short soaks: to see that it works")
    parser.add_argument("--output", type=Path, default=RESULTS / "fleet.json")
    arguments = parser.parse_args()
    devices, soak_s, ingest_s = (60, 3.0, 5.0)
    if not arguments.quick:
        devices, ingest_s = arguments.devices, 30.0
        soak_s = max(15.0, 1.2 * window_s(devices))
    begin = time.monotonic()
    measured = run(
        devices,
        arguments.broker,
        processes=arguments.processes,
        nice=arguments.nice,
        soak_s=soak_s,
        ingest_s=ingest_s,
    )
    result = {
        "devices": devices,
        "broker": arguments.broker,
        "processes_of_devices": arguments.processes,
        "nice_of_devices": arguments.nice,
        "goals": _GOALS,
        **measured,
        "seconds": round(time.monotonic() - begin, 1),
        "load_average": os.getloadavg()[0],
        "machine": asdict(this_machine()),
        "versions": {"edgec": version("edgec"), "python": sys.version.split()[0]},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["notify"]), json.dumps(result["undo"]), json.dumps(result["ingest"]))


if __name__ == "__main__":
    main()
