"""A process with simulated devices: reads what to simulate from its input, and tells in lines what happens.

Run by `edgec.simulation.Swarm`, as ``python -m edgec.simulation._worker``. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from dataclasses import asdict
from typing import TextIO

from edgec.errors import EdgecError
from edgec.simulation._device import DeviceNews
from edgec.simulation._plain import config_from_plain, settings_from_plain
from edgec.simulation._simulation import Simulation

_TELL_S = 0.2
_COUNT_EVERY = 5
# Outboxes are many files.
_RECORDS_EVERY = 25
# A thread that waits for its turn asks for it every 5 ms by default. Where hundreds wait, as when all devices
# get an order, a process does little else: nine tenths of its time, measured with 500 devices.
_SWITCH_S = 0.1


def main(source: TextIO, out: TextIO) -> None:
    """Simulate until the input ends."""
    sys.setswitchinterval(_SWITCH_S)
    request = json.loads(source.readline())
    news: deque[DeviceNews] = deque()
    failed: deque[str] = deque()

    def fail(device: str, error: EdgecError) -> None:
        failed.append(f"{device}: {error}")

    simulation = Simulation(
        [config_from_plain(plain) for plain in request["configs"]],
        settings_from_plain(request["settings"]),
        news=news.append,
        failed=fail,
    )
    over = threading.Event()

    def tell(line: dict[str, object]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    def tell_on() -> None:
        turns = 0
        while not over.wait(_TELL_S):
            turns += 1
            if news:
                tell({"news": [asdict(news.popleft()) for _ in range(len(news))]})
            if failed:
                tell({"failed": [failed.popleft() for _ in range(len(failed))]})
            if turns % _COUNT_EVERY == 0:
                tell({"counts": asdict(simulation.counts(records=turns % _RECORDS_EVERY == 0))})

    teller = threading.Thread(target=tell_on, daemon=True)
    with simulation:
        teller.start()
        source.read()
        over.set()
        teller.join()
    tell({"counts": asdict(simulation.counts(records=False)), "ended": True})


if __name__ == "__main__":
    try:
        main(sys.stdin, sys.stdout)
    except (BrokenPipeError, KeyboardInterrupt):  # whoever asked is gone
        os._exit(1)
