"""The outbox: records per second, durable one by one and together, beside a plain file; kills and losses.

    python -m benchmarks.outbox [--seconds 3] [--kills 1000] [--directory DIR] [--output outbox.json]

All variants take turns, on one disk. The plain file is what durability costs at the least there: one append
and one fsync for each record. Kills are of `tests.device_agent.kill_outbox`; the claim it checks: no record
is lost for which `put` had returned.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter
from typing import Any

from tests.device_agent.kill_outbox import run

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import Priority
from edgec.runtime.benchmark import this_machine

ROOT = Path(__file__).resolve().parent.parent
PAYLOAD = bytes(436)
ROUNDS = 5
BATCH = 50
THREADS = 8


def plain(directory: Path, seconds: float) -> float:
    """Append records to a file with one fsync for each; return records per second."""
    with (directory / "plain").open("ab", buffering=0) as file:

        def put() -> int:
            file.write(PAYLOAD)
            os.fsync(file.fileno())
            return 1

        return repeated(put, seconds)


def single(directory: Path, seconds: float) -> float:
    """Put records one by one."""
    with Outbox(directory / "single.db", boot_id="b") as outbox:
        return repeated(lambda: bool(outbox.put("window", Priority.METRIC, PAYLOAD)), seconds)


def batched(directory: Path, seconds: float) -> float:
    """Put records in groups."""
    group = [("window", Priority.METRIC, PAYLOAD)] * BATCH
    with Outbox(directory / "batched.db", boot_id="b") as outbox:
        return repeated(lambda: len(outbox.put_many(group)), seconds)


def threads(directory: Path, seconds: float) -> float:
    """Put records one by one from several threads, which share writes."""
    rates: list[float] = []
    with Outbox(directory / "threads.db", boot_id="b") as outbox:

        def put() -> None:
            rates.append(repeated(lambda: bool(outbox.put("window", Priority.METRIC, PAYLOAD)), seconds))

        started = [Thread(target=put) for _ in range(THREADS)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    return sum(rates)


def repeated(put: Callable[[], int], seconds: float) -> float:
    """Call `put` for a time; return how many records it put per second."""
    put()
    start, n = perf_counter(), 0
    while perf_counter() - start < seconds:
        n += put()
    return n / (perf_counter() - start)


VARIANTS = {
    "plain_file_fsync_each": plain,
    "outbox_one_by_one": single,
    f"outbox_{BATCH}_together": batched,
    f"outbox_{THREADS}_threads": threads,
}


def measure(directory: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Measure all variants in turns; return the median, least and most of their rates."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):
        for name, variant in VARIANTS.items():
            with tempfile.TemporaryDirectory(dir=directory) as fresh:
                rates[name].append(variant(Path(fresh), seconds / ROUNDS))
    return {
        name: {"median": round(median(found)), "least": round(min(found)), "most": round(max(found))}
        for name, found in rates.items()
    }


def main() -> None:
    """Measure, kill, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each variant")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--directory", type=Path, default=ROOT / "build", help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/outbox.json")
    arguments = parser.parse_args()
    machine = this_machine()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    rates = measure(arguments.directory, arguments.seconds)
    for name, rate in rates.items():
        print(f"{name:24} {rate['median']:>8} records/s  ({rate['least']} to {rate['most']})")
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        killed = run(Path(directory) / "outbox.db", arguments.kills, seed=0)
    print(f"{killed['kills']} kills, {killed['put']} records put, {killed['lost']} lost")
    result: dict[str, Any] = {
        "payload_bytes": len(PAYLOAD),
        "records_per_s": rates,
        "kills": killed,
        "kept": killed["lost"] == killed["counted_as_lost"] == 0,
        "machine": asdict(machine),
        "versions": {"edgec": version("edgec"), "sqlite": sqlite3.sqlite_version},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
