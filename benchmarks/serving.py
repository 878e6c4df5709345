"""What serving costs: `edgec serve` against the bare engine, and against other servers of the same protocol.

    python -m benchmarks.serving [--seconds 4] [--rounds 5] [--pytriton PYTHON] [--kserve PYTHON]

PYTHON is the interpreter of an environment with that server and onnxruntime (``pip install nvidia-pytriton
onnxruntime``, ``pip install kserve onnxruntime``); servers that are not named are left out. All serve the
same ONNX files with ONNX Runtime, one thread per inference, and are asked by the same client, one after the
other, in an order drawn anew for each round. The client sends the same bytes on each connection as soon as
the answer is there, from a process of its own on the same machine: rates are floors, ratios are what counts.
Claims: added median latency at most 1 ms; at least 90 % of the bare engine's rate for a model above 5 ms; at
least twice the rate of pytriton with 64 callers of a small model.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.runtime.benchmark import this_machine
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

ROOT = Path(__file__).resolve().parent.parent

PYTRITON = """
import sys
import numpy as np, onnxruntime as ort
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
port = int(sys.argv[1])
with Triton(config=TritonConfig(http_port=port, grpc_port=port + 1, metrics_port=port + 2)) as triton:
    for name, path, rows, columns in zip(*[iter(sys.argv[2:])] * 4):
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs = session.get_outputs()[0].shape
        def infer(requests, session=session):
            return [{"y": session.run(None, {"x": r.data["x"]})[0]} for r in requests]
        triton.bind(
            model_name=name, infer_func=infer, config=ModelConfig(batching=False),
            inputs=[Tensor(name="x", dtype=np.float32, shape=(int(rows), int(columns)))],
            outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(outputs))],
        )
    triton.serve()
"""

KSERVE = """
import sys
import onnxruntime as ort
from kserve import InferOutput, InferResponse, Model, ModelServer

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1

class Served(Model):
    def __init__(self, name, path):
        super().__init__(name)
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True
    def predict(self, request, headers=None, response_headers=None):
        y = self.session.run(None, {"x": request.inputs[0].as_numpy()})[0]
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=True)
        return InferResponse(response_id="1", model_name=self.name, infer_outputs=[output])

models = [Served(name, path) for name, path, _, _ in zip(*[iter(sys.argv[2:])] * 4)]
server = ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, access_log_format=None)
server.start(models)
"""

# Counts whole answers only; all answers to one request are equally long but for the digits of the date.
CLIENT = """
import asyncio, json, sys, time
import uvloop

host, port, callers, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
request = sys.stdin.buffer.read()
taken, failed, end = [], 0, 0.0

class Caller(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data = transport, b""
        self.send()
    def send(self):
        self.start = time.perf_counter()
        if self.start < end:
            self.transport.write(request)
        else:
            self.transport.close()
    def data_received(self, data):
        global failed
        self.data = self.data + data if self.data else data
        at = self.data.find(b"\\r\\n\\r\\n")
        if at < 0:
            return
        head = self.data[:at].lower()
        size = int(head.partition(b"\\ncontent-length: ")[2].split(b"\\r\\n")[0])
        if len(self.data) < at + 4 + size:
            return
        taken.append(time.perf_counter() - self.start)
        failed += not head.startswith(b"http/1.1 200")
        self.data = b""
        self.send()

async def main():
    global end
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    end = begin + seconds
    await asyncio.gather(*[loop.create_connection(Caller, host, port) for _ in range(callers)])
    await asyncio.sleep(seconds + 0.5)
    ordered = sorted(taken)
    print(json.dumps({
        "rate": len(taken) / seconds, "failed": failed,
        "p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
    }))

uvloop.run(main())
"""


@dataclass(frozen=True)
class Model:
    """A model to serve: ``y = relu(x @ w)``, again and again.

    Attributes:
        name: In the address.
        rows: Of its input.
        columns: Of its input.
        layers: How many products.
    """

    name: str
    rows: int
    columns: int
    layers: int

    def members(self) -> dict[str, bytes]:
        """Return the ONNX payload."""
        generator = np.random.default_rng(0)
        nodes, weights, last = [], {}, "x"
        for i in range(self.layers):
            out = "y" if i == self.layers - 1 else f"h{i}"
            scale = np.sqrt(2 / self.columns)
            weights[f"w{i}"] = (generator.standard_normal((self.columns, self.columns)) * scale).astype("f4")
            nodes += [Node("MatMul", [last, f"w{i}"], [f"m{i}"]), Node("Relu", [f"m{i}"], [out])]
            last = out
        inputs, outputs = self.specs()
        return onnx_members(nodes, inputs, outputs, weights, external_bytes=2**40)

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return inputs and outputs."""
        shape = (self.rows, self.columns)
        return (TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", shape),)

    def request(self) -> bytes:
        """Return one whole HTTP request, binary in and out."""
        raw = np.ones((self.rows, self.columns), np.float32).tobytes()
        inputs = [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [self.rows, self.columns],
                "parameters": {"binary_data_size": len(raw)},
            }
        ]
        header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        head = (
            f"POST /v2/models/{self.name}/infer HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n"
            f"Content-Length: {len(header) + len(raw)}\r\n\r\n"
        )
        return head.encode() + header + raw


MODELS = (Model("small", 1, 8, 1), Model("slow", 64, 1024, 3))
CALLERS = {"small": (1, 64), "slow": (1, 8)}


def prepare(model: Model, folder: Path) -> tuple[Path, Path]:
    """Write a model as an artifact and as a bare ONNX file."""
    members = model.members()
    inputs, outputs = model.specs()
    manifest = Manifest(
        model=model.name,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=inputs,
        outputs=outputs,
    )
    onnx = folder / f"{model.name}.onnx"
    onnx.write_bytes(members["model.onnx"])
    return pack(folder / f"{model.name}.edgec", manifest, members), onnx


def bare(onnx: Path, model: Model) -> Callable[[float], dict[str, float]]:
    """Return what calls the engine in a loop, on one thread, for some seconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.ones((model.rows, model.columns), np.float32)}

    def call(seconds: float) -> dict[str, float]:
        taken, end = [], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            session.run(None, feeds)
            taken.append(time.perf_counter() - start)
        taken.sort()
        p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
        return {"rate": len(taken) / sum(taken), "p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "failed": 0}

    return call


@contextmanager
def served_by_edgec(artifacts: list[Path]) -> Iterator[int]:
    """Run ``edgec serve`` in a process of its own."""
    command = [sys.executable, "-m", "edgec.cli", "serve", *map(str, artifacts), "--port", "0"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield int(ready["url"].rpartition(":")[2])
        process.terminate()


@contextmanager
def served_by(program: str, python: str, onnx: Mapping[Model, Path]) -> Iterator[int]:
    """Run another server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rows = [v for m, path in onnx.items() for v in (m.name, str(path), str(m.rows), str(m.columns))]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([python, "-c", program, str(port), *rows], **quiet) as process:
        try:
            wait_for(port, list(onnx), process)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(port: int, models: list[Model], process: subprocess.Popen[Any]) -> None:
    """Return when a server is ready; give up after a minute."""
    end = time.monotonic() + 60
    while not all(is_ready(port, model) for model in models):
        if time.monotonic() > end or process.poll() is not None:
            raise SystemExit(f"a server did not start within a minute: exit status {process.poll()}")
        time.sleep(0.3)


def is_ready(port: int, model: Model) -> bool:
    """Return whether a server answers that a model is ready."""
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", f"/v2/models/{model.name}/ready")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def ask(port: int, model: Model, callers: int, seconds: float) -> dict[str, float]:
    """Ask a server for some seconds, as fast as it answers."""
    command = [sys.executable, "-c", CLIENT, "127.0.0.1", str(port), str(callers), str(seconds)]
    result = subprocess.run(command, input=model.request(), capture_output=True, check=True)
    row: dict[str, float] = json.loads(result.stdout)
    return row


def measure(
    ports: Mapping[str, int], onnx: Mapping[Model, Path], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Measure everything in turn, and return one row per model, number of callers and server."""
    cases: dict[tuple[str, int, str], Callable[[], dict[str, float]]] = {}
    for model, path in onnx.items():
        engine = bare(path, model)
        cases[model.name, 1, "engine"] = lambda engine=engine: engine(seconds)  # type: ignore[misc]
        for callers in CALLERS[model.name]:
            for name, port in ports.items():
                cases[model.name, callers, name] = lambda p=port, m=model, c=callers: ask(p, m, c, seconds)  # type: ignore[misc]
    taken: dict[tuple[str, int, str], list[dict[str, float]]] = {case: [] for case in cases}
    for case in cases:
        cases[case]()  # warm-up
    for _ in range(rounds):
        for case in random.sample(list(cases), len(cases)):
            taken[case].append(cases[case]())
    return [summary(*case, rows) for case, rows in taken.items()]


def summary(model: str, callers: int, server: str, rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians over rounds, and the range of the rates."""
    rates = [row["rate"] for row in rows]
    return {
        "model": model,
        "callers": callers,
        "server": server,
        "rate": round(median(rates), 1),
        "rate_range": [round(min(rates), 1), round(max(rates), 1)],
        "p50_ms": round(median(row["p50_ms"] for row in rows), 4),
        "p99_ms": round(median(row["p99_ms"] for row in rows), 4),
        "failed": sum(row["failed"] for row in rows),
    }


def claims(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the claims come to."""
    by = {(row["model"], row["callers"], row["server"]): row for row in rows}
    small, slow = by["small", 1, "engine"], by["slow", 1, "engine"]
    result: dict[str, Any] = {
        "added_p50_ms_small": round(by["small", 1, "edgec"]["p50_ms"] - small["p50_ms"], 4),
        "added_p50_ms_slow": round(by["slow", 1, "edgec"]["p50_ms"] - slow["p50_ms"], 4),
        "slow_model_ms": slow["p50_ms"],
        "rate_over_engine_slow": round(by["slow", 8, "edgec"]["rate"] / slow["rate"], 3),
    }
    for peer in ("pytriton", "kserve"):
        if ("small", 64, peer) in by:
            ratio = by["small", 64, "edgec"]["rate"] / by["small", 64, peer]["rate"]
            result[f"rate_over_{peer}_small_64"] = round(ratio, 2)
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pytriton", help="Python of an environment with nvidia-pytriton and onnxruntime")
    parser.add_argument("--kserve", help="Python of an environment with kserve and onnxruntime")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/serving.json")
    arguments = parser.parse_args()
    machine = this_machine()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        prepared = {model: prepare(model, Path(folder)) for model in MODELS}
        onnx = {model: path for model, (_, path) in prepared.items()}
        ports = {"edgec": stack.enter_context(served_by_edgec([a for a, _ in prepared.values()]))}
        for name, program, python in (
            ("pytriton", PYTRITON, arguments.pytriton),
            ("kserve", KSERVE, arguments.kserve),
        ):
            if python:
                ports[name] = stack.enter_context(served_by(program, python, onnx))
        rows = measure(ports, onnx, arguments.rounds, arguments.seconds)
    for row in rows:
        print(
            f"{row['model']:6} {row['callers']:3} callers  {row['server']:9} {row['rate']:9.1f}/s"
            f"  p50 {row['p50_ms']:8.3f} ms  p99 {row['p99_ms']:8.3f} ms  failed {row['failed']:.0f}"
        )
    kept = claims(rows)
    print(json.dumps(kept, indent=1))
    result = {
        "what": "serving over HTTP against the bare engine and other servers, same files, same client",
        "method": {
            "seconds": arguments.seconds,
            "rounds": arguments.rounds,
            "threads": 1,
            "order": "drawn anew for each round; one warm-up of each before",
            "figures": "medians over rounds",
        },
        "machine": {**asdict(machine), "load_average_after": this_machine().load_average},
        "versions": {
            p: version(p) for p in ("edgec", "numpy", "onnxruntime", "uvicorn", "httptools", "uvloop")
        },
        "rows": rows,
        "claims": kept,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
