"""What the gateway adds: the same model by ``edgec serve`` and behind the gateway, in turn.

``python -m benchmarks.gateway`` writes ``benchmarks/results/gateway.json``; files and client are the same for
all. The gateway asks for a key and limits rates; with ``upstream`` it has no model, and passes requests on to
the server. ``--pytriton`` and ``--kserve`` measure other servers beside it. A second part sends requests with
deadlines, and hangs up on them: the share of compute for nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.servers import KSERVE, PYTRITON, Model, ask, served_by, served_by_edgec
from benchmarks.serving import prepare

from edgec.runtime.benchmark import this_machine

ROOT = Path(__file__).resolve().parent.parent
KEY = "a-key-of-the-first-device"
# The second takes about 5 ms on one core of a desktop.
MODELS = (Model("small", 1, 8, 1), Model("slow", 64, 1024, 3))
OVERLOAD = 1.5
CALLERS = {"small": (1,), "slow": (1, 8)}


class KeyedModel(Model):
    """A model whose requests carry the key of a device."""

    def request(self) -> bytes:
        """Return one whole HTTP request."""
        return super().request().replace(b"Host:", f"X-API-Key: {KEY}\r\nHost:".encode(), 1)


@contextmanager
def gateway(arguments: list[str], keys: Path) -> Iterator[int]:
    """Run ``edgec gateway up`` in a process of its own."""
    command = [sys.executable, "-m", "edgec.cli", "gateway", "up", "--port", "0", "--json", "--threads", "1"]
    command += ["--key-file", str(keys), "--rate", "1000000", "--burst", "1000000", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
        process.terminate()


def measure(ports: dict[str, int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure everything in turn; one row per model, number of callers and server."""
    cases: dict[tuple[str, int, str], Callable[[], dict[str, float]]] = {}
    for model in MODELS:
        keyed = KeyedModel(model.name, model.rows, model.columns, model.layers)
        for callers in CALLERS[model.name]:
            for name, port in ports.items():
                cases[model.name, callers, name] = lambda p=port, m=keyed, c=callers: ask(p, m, c, seconds)  # type: ignore[misc]
    taken: dict[tuple[str, int, str], list[dict[str, float]]] = {case: [] for case in cases}
    for call in cases.values():
        call()  # warm-up
    for _ in range(rounds):
        for case in random.sample(list(cases), len(cases)):
            taken[case].append(cases[case]())
    return [
        {
            "model": model,
            "callers": callers,
            "server": server,
            **{k: round(median(row[k] for row in rows), 4) for k in ("rate", "p50_ms", "p99_ms")},
            "rate_range": [round(f(row["rate"] for row in rows), 1) for f in (min, max)],
            "failed": sum(row["failed"] for row in rows),
        }
        for (model, callers, server), rows in taken.items()
    ]


async def hang_up(port: int, model: Model, requests: int, per_s: float, deadline_ms: int) -> None:
    """Send requests with a deadline at random times, and hang up at it on those that are not answered.

    As many devices do: each asks once, whatever becomes of the others, so that there is more to do than can
    be done where `per_s` is more than the server's rate.
    """
    raw = model.request().replace(b"Host:", b"Edgec-Deadline-Ms: %d\r\nHost:" % deadline_ms, 1)

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        try:
            await asyncio.wait_for(reader.readline(), deadline_ms / 1e3)
        except (asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    drawn, asking = random.Random(0), []
    begin, due = time.monotonic(), 0.0
    for _ in range(requests):
        due += drawn.expovariate(per_s)
        await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
        asking.append(asyncio.ensure_future(one()))
    await asyncio.gather(*asking)


def compute(port: int) -> tuple[float, float]:
    """Return the seconds that inferences took, and those for clients that were gone."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics", headers={"X-API-Key": KEY})
    text = connection.getresponse().read().decode()
    connection.close()
    found = []
    for name in ("edgec_inference_seconds_total", "edgec_inference_unheard_seconds_total"):
        lines = re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        found.append(sum(float(value) for value in lines))
    return found[0], found[1]


def abandoned(port: int, requests: int, per_s: float, deadline_ms: int) -> dict[str, float]:
    """Return what devices that hang up cost."""
    model = KeyedModel("slow", 64, 1024, 3)
    before = compute(port)
    asyncio.run(hang_up(port, model, requests, per_s, deadline_ms))
    after = compute(port)
    spent, unheard = after[0] - before[0], after[1] - before[1]
    return {
        "requests": requests,
        "requests_per_s": round(per_s, 1),
        "deadline_ms": deadline_ms,
        "compute_s": round(spent, 3),
        "unheard_s": round(unheard, 3),
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the claims come to."""
    by = {(row["model"], row["callers"], row["server"]): row for row in rows}
    kept: dict[str, Any] = {"slow_model_ms": by["slow", 1, "serve"]["p50_ms"]}
    for name, server in (("", "gateway"), ("upstream_", "upstream")):
        for what in ("p50", "p99"):
            added = by["small", 1, server][f"{what}_ms"] - by["small", 1, "serve"][f"{what}_ms"]
            kept[f"{name}added_{what}_ms"] = round(added, 4)
        ratio = by["slow", 8, server]["rate"] / by["slow", 8, "serve"]["rate"]
        kept[f"{name}throughput_ratio_5ms"] = round(ratio, 3)
    return kept


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="see that it runs: short, and one round")
    parser.add_argument("--requests", type=int, default=3000, help="on which is hung up")
    parser.add_argument("--pytriton", help="Python of an environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--kserve", help="Python of an environment with kserve and onnxruntime")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gateway.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.rounds, arguments.requests = 0.5, 1, 200
    machine = this_machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        keys = Path(folder, "keys")
        keys.write_text(f"bench {KEY}\n")
        prepared = {model: prepare(model, Path(folder)) for model in MODELS}
        artifacts = [artifact for artifact, _ in prepared.values()]
        ports = {"serve": stack.enter_context(served_by_edgec(artifacts)).port}
        ports["gateway"] = stack.enter_context(gateway([str(path) for path in artifacts], keys))
        upstream = ["--upstream", f"http://127.0.0.1:{ports['serve']}"]
        ports["upstream"] = stack.enter_context(gateway(upstream, keys))
        for name, program, python in (
            ("pytriton", PYTRITON, arguments.pytriton),
            ("kserve", KSERVE, arguments.kserve),
        ):
            if python:
                onnx = {model: path for model, (_, path) in prepared.items()}
                ports[name] = stack.enter_context(served_by(program, python, onnx)).port
        rows = measure(ports, arguments.rounds, arguments.seconds)
        took = next(r["p50_ms"] for r in rows if r["server"] == "serve" and r["model"] == "slow")
        most = next(r["rate"] for r in rows if r["server"] == "gateway" and r["callers"] == 8)
        waste = abandoned(ports["gateway"], arguments.requests, OVERLOAD * most, round(8 * took))
    for row in rows:
        print(
            f"{row['model']:6} {row['callers']:3} callers  {row['server']:9} {row['rate']:9.1f}/s"
            f"  p50 {row['p50_ms']:8.3f} ms  p99 {row['p99_ms']:8.3f} ms  failed {row['failed']:.0f}"
        )
    share = waste["unheard_s"] / waste["compute_s"] if waste["compute_s"] else 0.0
    kept = {**claims(rows), "abandoned_compute_share": round(share, 4), "abandoned": waste}
    print(json.dumps(kept, indent=1))
    result = {
        "what": "the gateway against edgec serve and other servers, same files, same client",
        "method": {
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "threads": 1,
            "order": "drawn anew for each round; one warm-up of each before",
            "figures": "medians over rounds",
            "abandoned": f"random arrivals at {OVERLOAD} times the gateway's rate, deadline 8 inferences, "
            "hang up at it; the share is of the time of engine threads, calls that were stopped included",
        },
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {
            p: version(p) for p in ("edgec", "numpy", "onnxruntime", "uvicorn", "httptools", "uvloop")
        },
        "rows": rows,
        **kept,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
