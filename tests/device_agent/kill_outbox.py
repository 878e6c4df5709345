"""Kills a process that uses an outbox, again and again, and counts records that were kept and are gone.

    python -m tests.device_agent.kill_outbox --kills 1000

One process starts others by forking before it has any thread, so that a kill costs milliseconds. Each opens
the same outbox, puts records from several threads, sends and acknowledges some, and says through a pipe
what `put` has returned for; it is killed at a random moment, in the middle of opening, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import struct
import tempfile
import time
from pathlib import Path
from threading import Thread

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import Priority

_PUT = struct.Struct("<cIII")
_THREADS = 3


def payload(boot: int, thread: int, number: int) -> bytes:
    """Return a payload that says which it is, of a size that depends on it."""
    return json.dumps([boot, thread, number]).encode() + bytes(number * 37 % 700)


def work(path: Path, boot: int, pipe: int) -> None:
    """Use the outbox until the end; the pipe hears of every record that was put or is acknowledged."""
    outbox = Outbox(path, boot_id=f"boot{boot}")

    def put(thread: int) -> None:
        for number in range(1_000_000):
            priority = Priority.EVENT if number % 5 == 0 else Priority.METRIC
            outbox.put("event" if number % 5 == 0 else "window", priority, payload(boot, thread, number))
            os.write(pipe, _PUT.pack(b"p", boot, thread, number))

    for thread in range(_THREADS):
        Thread(target=put, args=(thread,), daemon=True).start()
    while True:
        records = outbox.take(max_records=20)
        if not records:
            time.sleep(0.001)
            continue
        for record in records:
            # Told before, as a server that has stored it has.
            which = json.loads(record.payload.partition(b"]")[0] + b"]")
            os.write(pipe, _PUT.pack(b"a", *which))
        outbox.ack(records[-1].boot_id, records[-1].seq)


def run(path: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill that many processes; return how many records were put, were sent, and were lost."""
    chosen = random.Random(seed)
    put: set[tuple[int, int, int]] = set()
    sent: set[tuple[int, int, int]] = set()
    early = 0
    for boot in range(kills):
        # Some while they open the file, the others after so many records, however slow the disk is.
        opening = chosen.random() < 0.2
        most = 0 if opening else chosen.randrange(1, 80)
        heard = _one_kill(path, boot, most, chosen.uniform(0, 0.02 if opening else 0.004))
        early += not heard
        for at in range(0, len(heard) - len(heard) % _PUT.size, _PUT.size):
            what, *which = _PUT.unpack_from(heard, at)
            (put if what == b"p" else sent).add(tuple(which))
    there: set[tuple[int, int, int]] = set()
    with Outbox(path, boot_id="last") as outbox:
        while records := outbox.take(max_records=1000, max_bytes=2**24):
            for record in records:
                boot, thread, number = json.loads(record.payload.partition(b"]")[0] + b"]")
                assert record.payload == payload(boot, thread, number)
                there.add((boot, thread, number))
        incidents = sum(loss.incidents + loss.records for loss in outbox.state().losses)
    return {
        "kills": kills,
        "killed_before_the_first_put": early,
        "put": len(put),
        "sent": len(sent),
        "lost": len(put - there - sent),
        "counted_as_lost": incidents,
    }


def _one_kill(path: Path, boot: int, most: int, after_s: float) -> bytes:
    """Start a process; kill it so long after it has told of so many records. Return what it told."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            work(path, boot, write)
        finally:
            os._exit(1)
    os.close(write)
    heard = bytearray()
    while len(heard) < most * _PUT.size and (data := os.read(read, 4096)):
        heard += data
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    while data := os.read(read, 65536):
        heard += data
    os.close(read)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the process ended by itself: {status}"
    return bytes(heard)


def main() -> None:
    """Kill, and print the counts as JSON; exit 1 where a record was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        counts = run(Path(directory) / "outbox.db", arguments.kills, arguments.seed)
    print(json.dumps(counts))
    raise SystemExit(counts["lost"] > 0 or counts["counted_as_lost"] > 0)


if __name__ == "__main__":
    main()
