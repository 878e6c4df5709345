"""Servers of the Open Inference Protocol, each in a process of its own, models for them, and a client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.runtime.testing import Node, onnx_members

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

# The least that answers: no checks, no limits, no JSON, one thread for the engine. What it adds to the bare
# engine is the machine's and the client's: two large messages over the loopback, and waking four times.
LEAST = """
import asyncio, re, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, onnxruntime as ort, uvloop

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
rows = list(zip(*[iter(sys.argv[2:])] * 4))
models = {
    name.encode(): (ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), int(m), int(n))
    for name, path, m, n in rows
}
threads = ThreadPoolExecutor(2)
sys.setswitchinterval(0.0005)

def infer(model, body):
    session, m, n = models[model]
    x = np.frombuffer(memoryview(body)[-4 * m * n :], np.float32).reshape(m, n)
    return session.run(None, {"x": x})[0].tobytes()

class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.data, self.size = transport, b"", None
    def data_received(self, data):
        self.data = self.data + data if self.data else data
        if self.size is None:
            at = self.data.find(b"\\r\\n\\r\\n") + 4
            if at < 4:
                return
            self.model = re.match(rb"\\w+ /v2/models/(\\w+)", self.data)[1]
            length = re.search(rb"Content-Length: (\\d+)\\r\\n\\r", self.data[:at])
            self.size = at + (int(length[1]) if length else 0)
        if len(self.data) < self.size:
            return
        body, self.data, self.size = self.data, b"", None
        if body.startswith(b"GET"):
            return self.write(b"{}")
        answer = asyncio.get_running_loop().run_in_executor(threads, infer, self.model, body)
        answer.add_done_callback(lambda future: self.write(future.result()))
    def write(self, body):
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body))
            self.transport.write(body)

async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

uvloop.run(main())
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

# Of one caller: a socket that waits, and a buffer that is there already. An event loop between a request and
# its answer is slow at that, after an inference has emptied the caches, and is not what is measured.
CALLER = """
import json, socket, sys, time

host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[4])
request = sys.stdin.buffer.read()
buffer, taken, failed = bytearray(2**22), [], 0
view = memoryview(buffer)
with socket.create_connection((host, port)) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        connection.sendall(request)
        size, whole = 0, None
        while whole is None or size < whole:
            more = connection.recv_into(view[size:])
            if not more:
                raise SystemExit("the server hung up")
            size += more
            if whole is None and (at := buffer.find(b"\\r\\n\\r\\n", 0, size)) >= 0:
                head = bytes(view[:at]).lower()
                whole = at + 4 + int(head.partition(b"\\ncontent-length: ")[2].split(b"\\r\\n")[0])
        taken.append(time.perf_counter() - start)
        failed += not head.startswith(b"http/1.1 200")
ordered = sorted(taken)
print(json.dumps({
    "rate": len(taken) / seconds, "failed": failed,
    "p50_ms": ordered[len(ordered) // 2] * 1e3, "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
}))
"""


@dataclass(frozen=True)
class Model:
    """A model to serve: ``y = relu(x @ w)``, again and again.

    Attributes:
        name: In the address.
        rows: Of its input.
        columns: Of its input.
        layers: How many products.
        inner_rows: Of the products, where the one row of the input is repeated, and the mean is the output.
    """

    name: str
    rows: int
    columns: int
    layers: int
    inner_rows: int = 0

    def members(self) -> dict[str, bytes]:
        """Return the ONNX payload."""
        generator = np.random.default_rng(0)
        nodes, weights, last = [], {}, "x"
        if self.inner_rows:
            weights["rows"] = np.array([self.inner_rows, self.columns], np.int64)
            nodes, last = [Node("Expand", ["x", "rows"], ["wide"])], "wide"
        for i in range(self.layers):
            out = "y" if i == self.layers - 1 and not self.inner_rows else f"h{i}"
            scale = np.sqrt(2 / self.columns)
            weights[f"w{i}"] = (generator.standard_normal((self.columns, self.columns)) * scale).astype("f4")
            nodes += [Node("MatMul", [last, f"w{i}"], [f"m{i}"]), Node("Relu", [f"m{i}"], [out])]
            last = out
        if self.inner_rows:
            nodes.append(Node("ReduceMean", [last], ["y"], {"axes": [0], "keepdims": 1}))
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


@dataclass(frozen=True)
class Served:
    """A server that runs in a process group of its own.

    Attributes:
        port: Where it listens.
        process: Its first one.
    """

    port: int
    process: subprocess.Popen[Any]

    def stop(self) -> None:
        """Hold it, so that nothing of it computes while others are measured."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on; one that has ended stays so."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)


@contextmanager
def served_by_edgec(artifacts: list[Path]) -> Iterator[Served]:
    """Run ``edgec serve`` in a process group of its own."""
    command = [sys.executable, "-m", "edgec.cli", "serve", *map(str, artifacts), "--port", "0"]
    with subprocess.Popen(
        [*command, "--threads", "1", "--json"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        served = None
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
            served = Served(int(ready["url"].rpartition(":")[2]), process)
            yield served
        finally:
            if served is not None:
                served.go_on()
            process.terminate()


@contextmanager
def served_by(program: str, python: str, onnx: Mapping[Model, Path]) -> Iterator[Served]:
    """Run another server in a process group of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rows = [v for m, path in onnx.items() for v in (m.name, str(path), str(m.rows), str(m.columns))]
    how: dict[str, Any] = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
    }
    with subprocess.Popen([python, "-c", program, str(port), *rows], **how) as process:
        served = Served(port, process)
        try:
            wait_for(port, list(onnx), process)
            yield served
        finally:
            served.go_on()
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
    client = CALLER if callers == 1 else CLIENT
    command = [sys.executable, "-c", client, "127.0.0.1", str(port), str(callers), str(seconds)]
    result = subprocess.run(command, input=model.request(), capture_output=True, check=True)
    row: dict[str, float] = json.loads(result.stdout)
    return row
