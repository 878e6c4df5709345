"""A day of requests, ten a second, in minutes: 864,000 with swaps, through a session and through a server.

    python -m benchmarks.soak [--requests 864000] [--swap-every 2000] [--minutes M] [--only session|server]

The example model in fp32 and in int8 take turns, each with its golden vectors and its pipeline. The session
is called by two threads, observed, and every tenth call is `predict`; the server runs in a process of its own
and is asked by 16 connections, while its artifact is replaced and loaded again. Of the process under test,
resident memory, descriptors and threads are noted at the start, each 5 % and at the end, always with the same
model loaded. The claims it checks, over the requests after the first quarter, which is when engines and the C
library have what they keep: no request failed; memory grew by less than 5 % from the median of the second
quarter to that of the last; what a line through the notes says it grew by (Theil-Sen, over these three
quarters) is within 5 %, or within three times the notes' own spread around it; and at the end there are no
more descriptors, and no more threads, than there were at the second quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection
from importlib.metadata import version
from itertools import combinations, count
from pathlib import Path
from statistics import median
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np

from edgec.artifact import Artifact
from edgec.errors import EdgecError
from edgec.runtime import load
from edgec.runtime.benchmark import this_machine

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples/digits"
NOTES = 20
THREADS = 2
CONNECTIONS = 16
MOST_GROWTH = 0.05


@dataclass(frozen=True)
class Note:
    """What the process under test had.

    Attributes:
        requests: Answered before.
        seconds: Since the start.
        resident_mib: Memory.
        descriptors: Open.
        threads: Alive.
    """

    requests: int
    seconds: float
    resident_mib: float
    descriptors: int
    threads: int


@dataclass
class Watch:
    """Notes about a process; a note is due each 5 % of the requests.

    Attributes:
        pid: Of the process.
        requests: To be answered.
        end: Clock at which to stop early.
        started: Clock at the start.
        notes: So far.
    """

    pid: int
    requests: int
    end: float
    started: float = field(default_factory=perf_counter)
    notes: list[Note] = field(default_factory=list)

    def note(self, done: int) -> None:
        """Note what there is now."""
        folder = Path("/proc", str(self.pid))
        lines = (folder / "status").read_text().splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        self.notes.append(
            Note(
                requests=done,
                seconds=round(perf_counter() - self.started, 1),
                resident_mib=round(resident / 1024, 2),
                descriptors=len(os.listdir(folder / "fd")),
                threads=len(os.listdir(folder / "task")),
            )
        )

    def is_due(self, done: int) -> bool:
        """Return whether the next 5 % are done."""
        return done >= len(self.notes) * self.requests / NOTES

    def is_over(self) -> bool:
        """Return whether time is up."""
        return perf_counter() >= self.end


def compile_both(folder: Path) -> tuple[Path, Path]:
    """Compile the example model in fp32 and in int8, in processes whose memory is not counted."""
    made = []
    for precision, objective in (("fp32", "accuracy"), ("int8", "size")):
        command = [
            sys.executable,
            "-m",
            "edgec.cli",
            "compile",
            str(DIGITS / "digits.onnx"),
            "--target",
            "cpu",
        ]
        command += ["--precision", precision, "--objective", objective, "--max-drop", "none", "--fold", "off"]
        command += ["--pipeline", str(DIGITS / "pipeline.toml"), "--output", str(folder / precision)]
        command += ["--calibration", str(DIGITS / "calibration.npz")]
        subprocess.run(command, check=True, capture_output=True)
        made.append(next((folder / precision).glob("*.edgec")))
    return made[0], made[1]


def told(artifact: Path) -> str:
    """Return what an artifact runs in."""
    with Artifact.open(artifact) as opened:
        return f"{opened.manifest.engine.name} {opened.manifest.engine.precision}"


def soak_session(artifacts: tuple[Path, Path], watch: Watch, swap_every: int) -> dict[str, Any]:
    """Call and swap a session of this process."""
    with np.load(DIGITS / "evaluation.npz") as data:
        scan = data["image"][0]
    feeds = {"image": scan.reshape(1, 1, 8, 8).astype(np.float32) / 16}
    failures: list[str] = []
    numbers = count()
    done = [0] * THREADS
    swaps = 0
    with load(artifacts[0], threads=1) as session:
        observer = session.observe()
        session.predict(scan)

        def call(place: int) -> None:
            while next(numbers) < watch.requests and not watch.is_over():
                try:
                    if done[place] % 10:
                        session.run(feeds)
                    else:
                        session.predict(scan)
                except EdgecError as e:
                    failures.append(str(e))
                done[place] += 1

        threads = [Thread(target=call, args=(i,)) for i in range(THREADS)]
        watch.note(0)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if sum(done) < (swaps + 1) * swap_every:
                threads[0].join(0.002)
                continue
            swaps += 1
            session.swap(artifacts[swaps % 2])
            if not swaps % 2 and watch.is_due(sum(done)):
                watch.note(sum(done))
                observer.take()
        if swaps % 2:
            swaps += 1
            session.swap(artifacts[0])
        watch.note(sum(done))
    return {"callers": THREADS, "answered": sum(done), "swaps": swaps, "failures": sorted(set(failures))} | {
        "failed": len(failures)
    }


class Caller(asyncio.Protocol):
    """One connection that sends the same request as soon as the answer is there."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        """Send the next request, if there is one."""
        if self.asking.take():
            self.transport.write(self.asking.request)
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Count whole answers."""
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        size = int(head.lower().partition(b"\ncontent-length: ")[2].split(b"\r\n")[0])
        if len(rest) < size:
            return
        self.data = b""
        self.asking.answered(head.startswith(b"HTTP/1.1 200"), head.split(b"\r\n")[0].decode())
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a request that was under way."""
        self.asking.lost(exc)


class Asking:
    """What all connections ask for, and what came of it."""

    def __init__(self, request: bytes, watch: Watch) -> None:
        self.request = request
        self.watch = watch
        self.sent = self.done = 0
        self.failures: list[str] = []
        self.connections = 0
        self.over = asyncio.Event()

    def take(self) -> bool:
        """Return whether there is one more to send."""
        if self.sent >= self.watch.requests or self.watch.is_over():
            return False
        self.sent += 1
        return True

    def answered(self, right: bool, status: str) -> None:
        """Count an answer."""
        self.done += 1
        if not right:
            self.failures.append(status)

    def lost(self, exc: Exception | None) -> None:
        """Count a connection that ended; the last one ends it all."""
        if exc is not None:
            self.failures.append(f"{type(exc).__name__}: {exc}")
        self.connections -= 1
        if not self.connections:
            self.over.set()


def infer_request() -> bytes:
    """Return one whole HTTP request, binary in and out."""
    raw = np.zeros((1, 1, 8, 8), np.float32).tobytes()
    one = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 1, 8, 8],
        "parameters": {"binary_data_size": len(raw)},
    }
    header = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    head = (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + len(raw)}\r\n\r\n"
    )
    return head.encode() + header + raw


def reload(port: int, artifact: Path, served: Path) -> str:
    """Replace the artifact that is served and have it loaded; return what went wrong."""
    aside = served.with_suffix(".new")
    shutil.copyfile(artifact, aside)
    aside.replace(served)
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v2/repository/models/digits/load", body=b"{}")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return "" if answer.status == 200 else f"load: {answer.status} {text}"


async def ask(
    port: int, artifacts: tuple[Path, Path], served: Path, watch: Watch, swap_every: int
) -> dict[str, Any]:
    """Ask a server, and have it swap meanwhile."""
    loop = asyncio.get_running_loop()
    asking = Asking(infer_request(), watch)
    asking.connections = CONNECTIONS
    watch.note(0)
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Caller(asking), "127.0.0.1", port)
    swaps = 0
    while not asking.over.is_set():
        if asking.done < (swaps + 1) * swap_every:
            await asyncio.sleep(0.002)
            continue
        swaps += 1
        problem = await loop.run_in_executor(None, reload, port, artifacts[swaps % 2], served)
        if problem:
            asking.failures.append(problem)
        if not swaps % 2 and watch.is_due(asking.done):
            watch.note(asking.done)
    if swaps % 2:
        swaps += 1
        reload(port, artifacts[0], served)
    await asyncio.sleep(1)  # for connections to end
    watch.note(asking.done)
    return {
        "callers": CONNECTIONS,
        "answered": asking.done,
        "swaps": swaps,
        "failures": sorted(set(asking.failures)),
        "failed": len(asking.failures) + asking.sent - asking.done,
    }


def soak_server(
    artifacts: tuple[Path, Path], folder: Path, watch_of: Callable[[int], Watch], swap_every: int
) -> tuple[dict[str, Any], Watch]:
    """Ask a server in a process of its own."""
    served = folder / "digits.edgec"
    shutil.copyfile(artifacts[0], served)
    command = [sys.executable, "-m", "edgec.cli", "serve", str(served), "--port", "0", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--json", "--observe", "--allow-repository-calls"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
            watch = watch_of(process.pid)
            return asyncio.run(ask(port, artifacts, served, watch, swap_every)), watch
        finally:
            process.terminate()


def judge(notes: list[Note], failed: int) -> dict[str, Any]:
    """Return what the claims come to; see the module's docstring."""
    total = notes[-1].requests
    second = [n for n in notes if 0.25 * total <= n.requests < 0.5 * total]
    last = [n for n in notes if n.requests >= 0.75 * total]
    settled = [n for n in notes if n.requests >= 0.25 * total]
    if not (second and last):
        return {"kept": False, "why": "too few notes: let it run for more requests"}
    before, after = (median(n.resident_mib for n in part) for part in (second, last))
    slopes = [
        (b.resident_mib - a.resident_mib) / (b.requests - a.requests)
        for a, b in combinations(settled, 2)
        if b.requests > a.requests
    ]
    slope = median(slopes)
    residuals = [n.resident_mib - slope * n.requests for n in settled]
    spread = 1.4826 * median(abs(r - median(residuals)) for r in residuals)
    drift = slope * (settled[-1].requests - settled[0].requests)
    more_descriptors = notes[-1].descriptors - max(n.descriptors for n in second)
    more_threads = notes[-1].threads - max(n.threads for n in second)
    return {
        "growth": round(after / before - 1, 4),
        "drift_mib": round(drift, 3),
        "drift_mib_per_100k": round(slope * 1e5, 4),
        "spread_mib": round(spread, 3),
        "more_descriptors": more_descriptors,
        "more_threads": more_threads,
        "kept": not failed
        and after / before - 1 < MOST_GROWTH
        and (drift <= MOST_GROWTH * before or drift <= 3 * spread)
        and more_descriptors <= 0
        and more_threads <= 0,
    }


def soak(part: str, requests: int, minutes: float, swap_every: int) -> dict[str, Any]:
    """Soak one part, and return its row."""
    end = perf_counter() + minutes * 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifacts = compile_both(folder)
        models = [told(artifact) for artifact in artifacts]
        start = perf_counter()
        if part == "session":
            watch = Watch(os.getpid(), requests, end)
            row = soak_session(artifacts, watch, swap_every)
        else:
            row, watch = soak_server(artifacts, folder, lambda pid: Watch(pid, requests, end), swap_every)
    seconds = perf_counter() - start
    return (
        {"part": part, "models": models, "requests": requests, "complete": row["answered"] >= requests}
        | row
        | {"seconds": round(seconds, 1), "per_second": round(row["answered"] / seconds, 1)}
        | judge(watch.notes, row["failed"])
        | {"notes": [asdict(n) for n in watch.notes]}
    )


def main() -> None:
    """Soak, print, write; exit with 1 if a claim is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=864_000, help="through each")
    parser.add_argument("--swap-every", type=int, default=2000, help="requests")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop each earlier after this time")
    parser.add_argument("--only", choices=["session", "server"])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/soak.json")
    arguments = parser.parse_args()
    logging.getLogger("edgec").setLevel(logging.ERROR)
    machine = this_machine()
    rows = []
    for part in [arguments.only] if arguments.only else ["session", "server"]:
        row = soak(part, arguments.requests, arguments.minutes, arguments.swap_every)
        rows.append(row)
        first, last = row["notes"][0], row["notes"][-1]
        print(
            f"{part:8} {row['answered']} requests, {row['swaps']} swaps, {row['failed']} failed, "
            f"{row['seconds']} s; memory {first['resident_mib']} -> {last['resident_mib']} MiB, settled "
            f"growth {row.get('growth', float('nan')):+.2%}; descriptors {first['descriptors']} -> "
            f"{last['descriptors']}; threads {first['threads']} -> {last['threads']}: "
            f"{'kept' if row['kept'] else 'NOT KEPT'}",
            *row["failures"][:3],
            sep="\n  ",
            flush=True,
        )
    result = {
        "what": "requests with swaps through a session and through edgec serve: memory, descriptors, threads",
        "swap_every": arguments.swap_every,
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {p: version(p) for p in ("edgec", "numpy", "onnxruntime", "uvicorn", "uvloop")},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(row["kept"] for row in rows) else 1)


if __name__ == "__main__":
    main()
