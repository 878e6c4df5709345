"""The binary tensor data extension."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from tests.oip_conformance.oip import Model, assert_refused

pytestmark = pytest.mark.usefixtures("binary")


def wanted(model: Model, **parameters: Any) -> list[dict[str, Any]]:
    return [{"name": output["name"], "parameters": parameters} for output in model.metadata["outputs"]]


def test_binary_in_json_out(model: Model) -> None:
    reply = model.infer_binary(*model.binary_request())
    assert reply.status == 200
    assert "inference-header-content-length" not in reply.headers
    assert all("data" in output for output in reply.json["outputs"])


def test_json_in_binary_out(model: Model) -> None:
    reply = model.infer({**model.json_request(), "outputs": wanted(model, binary_data=True)})
    assert reply.status == 200
    assert all("data" not in output for output in reply.json["outputs"])


def test_binary_in_binary_out_by_request(model: Model) -> None:
    document, raw = model.binary_request()
    reply = model.infer_binary({**document, "parameters": {"binary_data_output": True}}, raw)
    assert reply.status == 200
    assert all("binary_data_size" in output["parameters"] for output in reply.json["outputs"])


def test_a_binary_response_is_an_octet_stream(model: Model) -> None:
    reply = model.infer({**model.json_request(), "outputs": wanted(model, binary_data=True)})
    assert reply.headers["content-type"] == "application/octet-stream"


def test_the_header_size_of_the_response_is_right(model: Model) -> None:
    reply = model.infer({**model.json_request(), "outputs": wanted(model, binary_data=True)})
    sizes = [output["parameters"]["binary_data_size"] for output in reply.json["outputs"]]
    assert int(reply.headers["inference-header-content-length"]) + sum(sizes) == len(reply.body)
    assert int(reply.headers["content-length"]) == len(reply.body)


def test_the_setting_of_an_output_wins(model: Model) -> None:
    request = {**model.json_request(), "outputs": wanted(model, binary_data=False)}
    reply = model.infer({**request, "parameters": {"binary_data_output": True}})
    assert all("data" in output for output in reply.json["outputs"])


@pytest.mark.parametrize("sent", ["json", "binary"])
def test_binary_means_the_same_as_json(model: Model, sent: str) -> None:
    plain = model.infer(model.json_request())
    outputs = wanted(model, binary_data=True)
    if sent == "json":
        reply = model.infer({**model.json_request(), "outputs": outputs})
    else:
        document, raw = model.binary_request()
        reply = model.infer_binary({**document, "outputs": outputs}, raw)
    for output in plain.json["outputs"]:
        assert reply.tensor(output["name"]) == pytest.approx(plain.tensor(output["name"]))


def test_the_id_is_echoed(model: Model) -> None:
    document, raw = model.binary_request()
    assert model.infer_binary({**document, "id": "7"}, raw).json["id"] == "7"


def test_a_header_of_the_whole_body_is_json(model: Model) -> None:
    assert model.infer_binary(model.json_request(), b"").status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["json", "binary"])
def test_a_compressed_request(model: Model, coding: str, kind: str) -> None:
    document, raw = model.binary_request() if kind == "binary" else (model.json_request(), b"")
    header = json.dumps(document).encode()
    body = gzip.compress(header + raw) if coding == "gzip" else zlib.compress(header + raw)
    headers = {"Content-Encoding": coding}
    if kind == "binary":
        headers["Inference-Header-Content-Length"] = str(len(header))
    reply = model.client.request("POST", f"{model.path}/infer", body, headers)
    assert reply.status == 200


@pytest.mark.parametrize("size", ["-1", "x", "", " ", "1.5", "0x10", "99999999", "9" * 40, "1,2", "+5"])
def test_a_malformed_header_size_is_refused(model: Model, size: str) -> None:
    document, raw = model.binary_request()
    if not size:
        size = '""'
    assert_refused(model.infer_binary(document, raw, size))


@pytest.mark.parametrize("off", [-2, -1, 1, 2, 10])
def test_a_wrong_header_size_is_refused(model: Model, off: int) -> None:
    document, raw = model.binary_request()
    assert_refused(model.infer_binary(document, raw, str(len(json.dumps(document)) + off)))


@pytest.mark.parametrize("off", [-4, -1, 1, 4, 4096])
def test_data_of_another_size_are_refused(model: Model, off: int) -> None:
    document, raw = model.binary_request()
    changed = raw + bytes(off) if off > 0 else raw[:off]
    assert_refused(model.infer_binary(document, changed))


@pytest.mark.parametrize("size", [-1, 0, 1, 2**31, 2**63, 2**64, 1.5, "16", True, None, [], {}])
def test_a_wrong_binary_data_size_is_refused(model: Model, size: Any) -> None:
    document, raw = model.binary_request()
    document["inputs"][0]["parameters"]["binary_data_size"] = size
    assert_refused(model.infer_binary(document, raw))


def test_data_and_binary_data_together_are_refused(model: Model) -> None:
    document, raw = model.binary_request()
    document["inputs"][0]["data"] = model.json_request()["inputs"][0]["data"]
    assert_refused(model.infer_binary(document, raw))


def test_binary_data_without_their_header_size_are_refused(model: Model) -> None:
    document, raw = model.binary_request()
    assert_refused(model.infer(json.dumps(document).encode() + raw))


@pytest.mark.parametrize("flag", [1, "true", [], {}])
def test_a_flag_that_is_none_is_refused(model: Model, flag: Any) -> None:
    assert_refused(model.infer({**model.json_request(), "outputs": wanted(model, binary_data=flag)}))
