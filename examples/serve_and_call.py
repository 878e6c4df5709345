"""Serve a model in a process of its own, and call it with nothing but the standard library and numpy.

``make demo`` makes the model. Tensors travel as bytes, by the Open Inference Protocol's binary extension.

    python examples/serve_and_call.py
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]


@contextmanager
def served(artifact: str | Path) -> Iterator[http.client.HTTPConnection]:
    """Start a server on a free port, give a connection to it, and end it as SIGTERM does."""
    command = [sys.executable, "-m", "edgec.cli", "serve", str(artifact), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()  # one line of JSON, once it answers
        if not ready:
            sys.exit("the server did not start")
        connection = http.client.HTTPConnection(urlsplit(json.loads(ready)["url"]).netloc, timeout=10)
        yield connection
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        process.stdout.close()


def predict(connection: http.client.HTTPConnection, model: str, image: bytes) -> dict[str, Any]:
    """Send an encoded image through the model's whole pipeline, get the prediction.

    Both are tensors of BYTES with one element, which has its length in front.
    """
    data = struct.pack("<I", len(image)) + image
    wanted = {
        "inputs": [
            {
                "name": "sample",
                "shape": [1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(data)},
            }
        ],
        "outputs": [{"name": "prediction", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(wanted).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{model}.predict/infer", head + data, headers)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != http.client.OK:
        sys.exit(f"the server says {answer.status}: {body.decode(errors='replace')}")
    split = int(answer.headers["Inference-Header-Content-Length"])
    prediction: dict[str, Any] = json.loads(body[split + 4 :])
    return prediction


def encode(image: NDArray[np.uint8]) -> bytes:
    """Return uint8[h, w, 1] as a file: PGM, the simplest that there is."""
    height, width, _ = image.shape
    return f"P5 {width} {height} 255\n".encode() + image.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--artifact", default=next(iter((ROOT / "demo").glob("digits-cpu-*.edgec")), None))
    artifact = parser.parse_args().artifact
    if artifact is None:
        sys.exit("there is no artifact: run  make demo  first, or name one with --artifact")
    with np.load(ROOT / "examples/digits/evaluation.npz") as data:
        images, labels = data["image"][:20], data["labels"][:20]
    with served(artifact) as connection:
        read = [int(predict(connection, "digits", encode(image))["labels"][0]) for image in images]
    print(f"read {read}: {sum(map(int.__eq__, read, labels.tolist()))} of {len(read)} are right")


if __name__ == "__main__":
    main()
