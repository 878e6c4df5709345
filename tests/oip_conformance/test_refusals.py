"""Requests that are wrong: each is refused with 4xx and a message, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.oip_conformance.oip import Model, assert_refused

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"inputs",
    "cut off": b'{"inputs": [',
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "null": b"null",
    "a number": b"7",
    "a text": b'"inputs"',
    "an array": b"[]",
    "an empty object": b"{}",
    "two documents": b"{}{}",
    "NaN": b'{"inputs": NaN}',
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "zero bytes": bytes(64),
    "a huge number": b'{"inputs": ' + b"9" * 10_000 + b"}",
}

Change = Callable[[dict[str, Any]], object]


def put(key: str, value: Any) -> Change:
    """Return a change of the first input."""
    return lambda request: request["inputs"][0].__setitem__(key, value)


def drop(key: str) -> Change:
    """Return a change that takes a key from the first input."""
    return lambda request: request["inputs"][0].pop(key)


def top(key: str, value: Any) -> Change:
    """Return a change of the request."""
    return lambda request: request.__setitem__(key, value)


CHANGES: dict[str, Change] = {
    "no inputs": lambda r: r.pop("inputs"),
    "empty inputs": top("inputs", []),
    "inputs are an object": top("inputs", {}),
    "inputs are null": top("inputs", None),
    "inputs are texts": top("inputs", ["x"]),
    "inputs are arrays": top("inputs", [[]]),
    "an input too many": lambda r: r["inputs"].append({**r["inputs"][0], "name": "no-such-input"}),
    "an input twice": lambda r: r["inputs"].append(r["inputs"][0]),
    "no name": drop("name"),
    "another name": put("name", "no-such-input"),
    "an empty name": put("name", ""),
    "a name that is a number": put("name", 1),
    "a name that is null": put("name", None),
    "a long name": put("name", "n" * 100_000),
    "no datatype": drop("datatype"),
    "an unknown datatype": put("datatype", "FP31"),
    "a datatype in lower case": put("datatype", "fp32"),
    "a datatype that is a number": put("datatype", 32),
    "a datatype that is an array": put("datatype", ["FP32"]),
    "no shape": drop("shape"),
    "a shape that is a number": put("shape", 4),
    "a shape that is a text": put("shape", "[1,4]"),
    "a shape that is null": put("shape", None),
    "a shape with a text": put("shape", [1, "4"]),
    "a shape with a fraction": put("shape", [1, 4.5]),
    "a shape with true": put("shape", [True, 4]),
    "a shape with null": put("shape", [None]),
    "a negative shape": put("shape", [-1, 4]),
    "a shape that overflows": put("shape", [2**32, 2**32]),
    "a shape that overflows to the right size": put("shape", [2**62 + 1, 4]),
    "a shape beyond 64 bits": put("shape", [2**64]),
    "a shape of a thousand axes": put("shape", [1] * 1000),
    "a shape of another rank": put("shape", [1, 1, 1, 1, 1, 1, 1]),
    "no data": drop("data"),
    "null data": put("data", None),
    "data that are a text": put("data", "1,2,3"),
    "data that are an object": put("data", {}),
    "data with an object": put("data", [{}]),
    "data with null": lambda r: r["inputs"][0]["data"].__setitem__(0, None),
    "an element too few": lambda r: r["inputs"][0]["data"].pop(),
    "an element too many": lambda r: r["inputs"][0]["data"].append(r["inputs"][0]["data"][0]),
    "uneven data": put("data", [[1, 2], [3]]),
    "deep data": put("data", json.loads("[" * 200 + "]" * 200)),
    "parameters that are an array": put("parameters", [1]),
    "parameters that are a text": top("parameters", "x"),
    "an unknown output": top("outputs", [{"name": "no-such-output"}]),
    "outputs that are an object": top("outputs", {}),
    "outputs that are texts": top("outputs", ["y"]),
    "an output without a name": top("outputs", [{}]),
    "an id that is a number": top("id", 7),
    "an id that is an object": top("id", {}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused(model: Model, name: str) -> None:
    assert_refused(model.infer(BODIES[name]))
    assert model.infer(model.json_request()).status == 200


@pytest.mark.parametrize("name", CHANGES)
def test_a_request_that_is_wrong_is_refused(model: Model, name: str) -> None:
    request = model.json_request()
    CHANGES[name](request)
    assert_refused(model.infer(request))
    assert model.infer(model.json_request()).status == 200


def test_an_output_twice_is_refused(model: Model) -> None:
    twice = [{"name": model.output()}] * 2
    assert_refused(model.infer({**model.json_request(), "outputs": twice}))


def test_a_text_among_numbers_is_refused(model: Model) -> None:
    request = model.json_request()
    if request["inputs"][0]["datatype"] == "BYTES":
        pytest.skip("the model takes texts")
    request["inputs"][0]["data"][0] = "1"
    assert_refused(model.infer(request))


@pytest.mark.parametrize("path", ["/v2/models/no-such-model/infer", "/v2/models//infer"])
def test_inference_of_an_unknown_model_is_refused(model: Model, path: str) -> None:
    body = json.dumps(model.json_request()).encode()
    assert 400 <= model.client.request("POST", path, body).status < 500


def test_inference_of_an_unknown_version_is_refused(model: Model) -> None:
    body = json.dumps(model.json_request()).encode()
    assert 400 <= model.client.request("POST", f"{model.path}/versions/999/infer", body).status < 500


@pytest.mark.parametrize("coding", ["br", "gzip", "deflate", "nothing"])
def test_a_body_that_is_not_encoded_as_it_says_is_refused(model: Model, coding: str) -> None:
    assert_refused(model.infer(model.json_request(), {"Content-Encoding": coding}))


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_only_post_infers(model: Model, method: str) -> None:
    assert model.client.request(method, f"{model.path}/infer").status in (400, 404, 405, 501)
