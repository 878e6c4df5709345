"""What requests mean, without a server: tables of good and bad ones, and anything at all."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import RequestError
from edgec.runtime._oip import DATATYPES
from edgec.serving._datatypes import from_json, from_raw, to_json, to_raw
from edgec.serving._wire import header_size, read_json, read_plan, read_raw, write_response

X = (TensorSpec("x", "float32", ("n", 4)),)
Y = (TensorSpec("y", "float32", ("n", 3)), TensorSpec("z", "float16", (2,)))


def request(**changes: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4], **changes}]}
    ).encode()


@pytest.mark.parametrize("dtype", sorted(set(DATATYPES) - {"object"}))
def test_raw_bytes_are_little_endian_and_come_back(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype)
    raw = to_raw(array)
    assert raw == array.astype(array.dtype.newbyteorder("<")).tobytes()
    back = from_raw(memoryview(raw), np.dtype(dtype), (2, 2), "x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_raw_bytes_of_arrays_that_lie_apart_or_the_other_way_round_are_those_of_their_values() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = np.full((1,), 7, np.int8)
    for array in (table[:, 0], table[:, :1], table.T, np.broadcast_to(whole, (5,)), table.astype(">f4")):
        expected = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        assert b"".join([to_raw(array)]) == expected
    assert bytes(to_raw(np.zeros((0, 3), np.float32))) == b""
    assert bytes(to_raw(np.array(2, np.int16))) == b"\2\0"


def test_bytes_have_their_length_before_them() -> None:
    array = np.array([b"ab", b"", b"\xff"], object)
    assert to_raw(array) == b"\2\0\0\0ab" + b"\0\0\0\0" + b"\1\0\0\0\xff"
    assert list(from_raw(memoryview(to_raw(array)), np.dtype("O"), (3,), "x")) == [b"ab", b"", b"\xff"]


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (b"", 1),
        (b"\1\0\0", 1),
        (b"\2\0\0\0a", 1),
        (b"\xff\xff\xff\xff", 1),
        (b"\xff\xff\xff\xffabc", 1),
        (b"\1\0\0\0ab", 1),
        (b"\1\0\0\0a", 2),
        (b"\1\0\0\0a", 2**62),
        (b"\0\0\0\0\0", 1),
    ],
)
def test_bytes_whose_lengths_are_wrong_are_refused(raw: bytes, count: int) -> None:
    with pytest.raises(RequestError, match="BYTES"):
        from_raw(memoryview(raw), np.dtype("O"), (count,), "x")


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("uint8", [256]),
        ("uint8", [-1]),
        ("int8", [1.5]),
        ("int64", [2**63]),
        ("uint64", [2**64]),
        ("int64", [2**63, -1]),
        ("int32", [True]),
        ("bool", [1]),
        ("bool", ["true"]),
        ("float32", [1e39]),
        ("float64", [10**400]),
        ("float32", ["1"]),
        ("float32", [None]),
        ("float16", [1]),
        ("object", [1]),
        ("object", ["\ud800"]),
    ],
)
def test_json_elements_that_do_not_fit_are_refused(dtype: str, data: list[Any]) -> None:
    with pytest.raises(RequestError, match="input 'x'"):
        from_json(data, np.dtype(dtype), (len(data),), "x")


def test_integers_are_numbers_for_floats() -> None:
    np.testing.assert_array_equal(from_json([[1, 2.5]], np.dtype("f4"), (1, 2), "x"), [[1, 2.5]])


@pytest.mark.parametrize("array", [np.array([np.nan]), np.array([1], "f2"), np.array([b"\xff"], object)])
def test_what_json_cannot_carry_is_refused_with_advice(array: Any) -> None:
    with pytest.raises(RequestError, match="binary_data"):
        to_json(array, "y")


def test_a_bool_is_zero_or_one() -> None:
    with pytest.raises(RequestError, match="BOOL"):
        from_raw(memoryview(b"\2"), np.dtype("bool"), (1,), "x")


def test_an_output_may_be_json_beside_a_binary_one() -> None:
    wanted = [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]
    document = {**json.loads(request()), "id": "7", "outputs": wanted}
    plan = read_plan(json.dumps(document).encode(), X, Y)
    tensors: dict[str, NDArray[Any]] = {"y": np.ones((1, 3), np.float32), "z": np.ones(2, np.float16)}
    headers, body = write_response(plan, "m", "1", tensors)
    size = int(dict(headers)[b"inference-header-content-length"])
    response = json.loads(body[:size])
    assert [o["name"] for o in response["outputs"]] == ["z", "y"]
    assert response["id"] == "7"
    assert response["outputs"][1]["data"] == [1, 1, 1]
    assert body[size:] == tensors["z"].tobytes()


def test_a_plan_without_data_can_be_used_again() -> None:
    document = json.loads(request(parameters={"binary_data_size": 16}))
    del document["inputs"][0]["data"]
    plan = read_plan(json.dumps(document).encode(), X, Y)
    assert plan.is_reusable
    for value in (1.0, 2.0):
        raw = struct.pack("<4f", *[value] * 4)
        np.testing.assert_array_equal(plan.tensors(memoryview(raw))["x"], [[value] * 4])
    assert not read_plan(request(), X, Y).is_reusable


def test_the_queue_timeout_is_in_microseconds() -> None:
    document = {**json.loads(request()), "parameters": {"timeout": 2500}}
    assert read_plan(json.dumps(document).encode(), X, Y).queue_timeout_s == 0.0025


def test_a_raw_request_gets_its_shape_from_its_size() -> None:
    plan, binary = read_raw(memoryview(bytes(48)), X, Y)
    assert plan.tensors(binary)["x"].shape == (3, 4)
    text, element = read_raw(memoryview(b"cat"), (TensorSpec("s", "object", (1,)),), Y)
    assert text.tensors(element)["s"][0] == b"cat"


@pytest.mark.parametrize(
    ("size", "specs"),
    [
        (47, X),
        (16, (*X, TensorSpec("w", "float32", (1,)))),
        (16, (TensorSpec("x", "float32", ("a", "b")),)),
        (15, (TensorSpec("x", "float32", (4,)),)),
        (4, (TensorSpec("x", "float32", ("n", 0)),)),
    ],
)
def test_a_raw_request_that_does_not_fit_is_refused(size: int, specs: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(RequestError, match="raw binary request"):
        read_raw(memoryview(bytes(size)), specs, Y)


@pytest.mark.parametrize("value", [b"", b"-1", b"1e3", b"\xb2", b"9" * 30, b"11", b"0x1"])
def test_a_malformed_header_size_is_refused(value: bytes) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        header_size(value, 10)


@pytest.mark.parametrize("text", [b'{"a":1,"a":2}', b"[NaN]", b"[Infinity]", b"\xff", b"[" * 10**5])
def test_json_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(RequestError):
        read_json(text)


@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_refused(where: str) -> None:
    document = json.loads(request())
    document["outputs"] = [{"name": "y"}]
    part = document["inputs" if where == "input" else "outputs"][0]
    part["parameters"] = {"shared_memory_region": "r"}
    with pytest.raises(RequestError, match="shared memory"):
        read_plan(json.dumps(document).encode(), X, Y)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | ANYTHING,
        "datatype": st.just("FP32") | ANYTHING,
        "shape": st.just([1, 4]) | st.lists(st.integers(), max_size=3) | ANYTHING,
        "data": st.just([1, 2, 3, 4]) | ANYTHING,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers() | ANYTHING}) | ANYTHING,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | ANYTHING},
    optional={"id": ANYTHING, "parameters": ANYTHING, "outputs": st.just([{"name": "y"}]) | ANYTHING},
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(document=REQUEST, binary=st.binary(max_size=32))
def test_anything_is_read_or_refused(document: Any, binary: bytes) -> None:
    try:
        plan = read_plan(json.dumps(document).encode(), X, Y)
        tensors = plan.tensors(memoryview(binary))
    except RequestError as e:
        assert 400 <= e.status < 500  # noqa: PT017 - a refusal is one of two right answers
    else:
        assert tensors["x"].dtype == np.float32


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(header=st.binary(max_size=64))
def test_any_bytes_are_refused(header: bytes) -> None:
    with pytest.raises(RequestError):
        read_plan(header, X, Y)
