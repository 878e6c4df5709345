"""Chains behind the protocol: as tensors with their state, and as predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cv2", reason="needs the extra vision")

import cv2
from tests.oip_conformance.oip import Client, Reply
from tests.runtime.chain_models import classifier, detector, recurrent

from edgec.serving import Server, ServerOptions

SUM = """
name = "sum"
version = "2"
inputs.x = { shape = [2] }
outputs = { total = "a" }
stages = [{ name = "a", artifact = "a.edgec", inputs = { x = "x" }, state = { input = "h", output = "hn" } }]
"""
READ = """
name = "read"
outputs = { found = "found", texts = "read.labels" }
inputs.photo = { kind = "image", color = "RGB" }
stages = [
  { name = "found", artifact = "detector.edgec", input = "photo" },
  { name = "crops", step = "crop", image = "photo", boxes = "found" },
  { name = "read", artifact = "classifier.edgec", each = "crops" },
]
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("chains")
    recurrent(folder / "a.edgec", size=2)
    detector(folder / "detector.edgec")
    classifier(folder / "classifier.edgec")
    paths = [folder / "sum.chain.toml", folder / "read.chain.toml"]
    for path, text in zip(paths, (SUM, READ), strict=True):
        path.write_text(text, encoding="utf-8")
    with Server(paths, ServerOptions(port=0)) as server:
        client = Client(server.url)
        yield client
        client.close()


def tensor(name: str, values: list[float], *shape: int) -> dict[str, object]:
    return {"name": name, "datatype": "FP32", "shape": list(shape), "data": values}


def post(client: Client, path: str, document: object) -> Reply:
    return client.request("POST", path, json.dumps(document).encode())


def test_metadata_are_the_chains_inputs_outputs_and_state(client: Client) -> None:
    metadata = client.get("/v2/models/sum").json
    assert (metadata["versions"], metadata["platform"]) == (["2"], "edgec_onnxruntime")
    assert metadata["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [2]},
        {"name": "a.h", "datatype": "FP32", "shape": [1, 2]},
    ]
    outputs = {spec["name"]: spec["shape"] for spec in metadata["outputs"]}
    assert outputs == {"total": [1, 2], "a.h": [1, 2]}


def test_the_state_goes_to_the_client_and_back(client: Client) -> None:
    state, totals = [0.0, 0.0], []
    for _ in range(3):
        inputs = [tensor("x", [1, 2], 2), tensor("a.h", state, 1, 2)]
        reply = post(client, "/v2/models/sum/infer", {"inputs": inputs})
        assert reply.status == 200, reply.body
        state = reply.tensor("a.h")
        totals.append(reply.tensor("total"))
    assert totals == [[1, 2], [2, 4], [3, 6]]
    assert post(client, "/v2/models/sum/infer", {"inputs": [tensor("x", [1, 2], 2)]}).status == 400


def test_an_image_goes_in_and_a_prediction_comes_out(client: Client) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    encoded = cv2.imencode(".png", photo)[1].tobytes()
    reply = client.request("POST", "/v2/models/read/predict", encoded)
    assert reply.status == 200, reply.body
    assert reply.json["found"]["labels"] == ["left", "top", "right"]
    assert len(reply.json["texts"]) == 3
    assert client.get("/v2/models/read").json["inputs"] == [
        {"name": "sample", "datatype": "BYTES", "shape": [1]}
    ]
    refused = client.request("POST", "/v2/models/read/predict", b"no image")
    assert refused.status == 400
    assert "decode" in refused.json["error"]
