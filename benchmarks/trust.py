"""What trust costs: a refresh on the device, an assignment at the publisher, and bytes per device.

Run ``python benchmarks/trust.py``; it writes ``benchmarks/results/trust.json``. One process, one thread,
files on the local disk, no network; medians and the 95th percentile over repetitions after one warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgec.runtime.testing import tiny_artifact
from edgec.trust import DeviceTrust, KeyRing, generate_key, open_repositories, sign_command

KEYS = {"root-1": "root", "root-2": "root", "targets-1": "targets", "targets-2": "targets"}


def measure(function: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Return milliseconds of a call: median, p95, and how often it was made."""
    function()
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        function()
        times.append((time.perf_counter() - begin) * 1000)
    times.sort()
    p95 = times[int(0.95 * (len(times) - 1))]
    return {
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(p95, 2),
        "repetitions": repetitions,
    }


def run(folder: Path, repetitions: int) -> dict[str, Any]:
    """Return all figures."""
    for name, role in {**KEYS, "online": "online", "director": "director"}.items():
        generate_key(folder / "keys", name, role)
    ring = KeyRing([folder / "keys"])
    image, director = open_repositories(folder / "repo", ring)
    image.initialise(targets_threshold=2)
    director.initialise()
    image.release()
    director.release()
    target = image.publish(tiny_artifact(folder / "tiny.edgec"))
    image.release()
    bundle = director.assign("dev-0", {"tiny": target.path})
    roots = {kind: (folder / "repo" / kind / "1.root.json").read_bytes() for kind in ("image", "director")}

    def fresh(number: int, device: str = "dev-0") -> DeviceTrust:
        return DeviceTrust(
            folder / f"device-{number}",
            device_id=device,
            hardware={"cpu-x86_64"},
            image_root=roots["image"],
            director_root=roots["director"],
        )

    numbers = iter(range(1, 10**6))
    device = fresh(0)
    assigned = device.update(folder / "repo").targets[0]
    signers = ring.signers([key.keyid for key in ring.of_role("director")])
    devices = iter(range(1, 10**6))

    def command() -> None:
        device.verify_command(sign_command(signers, "logs", device="dev-0", issued_at=time.time()))

    return {
        "first_update": measure(lambda: fresh(next(numbers)).update(bundle.metadata), repetitions),
        "update_without_change": measure(lambda: device.update(folder / "repo"), repetitions),
        "update_without_change_from_a_message": measure(lambda: device.update(bundle.metadata), repetitions),
        "recheck": measure(lambda: device.recheck(assigned), repetitions),
        "command_signed_and_verified": measure(command, repetitions),
        "assign_a_new_device": measure(
            lambda: director.assign(f"new-{next(devices)}", {"tiny": target.path}), repetitions
        ),
        "renew_a_device": measure(lambda: director.renew("dev-0"), repetitions),
        "bundle_bytes": bundle.size_bytes,
        "bundle_files": {name: len(data) for name, data in bundle.metadata.items()},
    }


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "trust.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), options.repetitions)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "tuf": version("tuf")}
    document = json.dumps({**machine, **figures}, indent=2)
    options.output.write_text(document + "\n")
    print(document)


if __name__ == "__main__":
    main()
