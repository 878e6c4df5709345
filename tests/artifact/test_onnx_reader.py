"""Reading where the tensors of an ONNX model lie, from models that onnx wrote and from hostile bytes."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.artifact import TensorSpec
from edgec.artifact.onnx_reader import read_facts
from edgec.errors import ArtifactError
from edgec.runtime.testing import Node, onnx_members

IN, OUT = (TensorSpec("x", "float32", (1, 16)),), (TensorSpec("y", "float32", (1, 16)),)
W = np.arange(256, dtype=np.float32).reshape(16, 16)
MEMBERS = onnx_members([Node("MatMul", ["x", "w"], ["h"]), Node("Relu", ["h"], ["y"])], IN, OUT, {"w": W})


def test_nodes_and_external_tensors_are_found() -> None:
    facts = read_facts(memoryview(MEMBERS["model.onnx"]))
    assert facts.nodes == 2
    (tensor,) = facts.external
    assert (tensor.name, tensor.data_type, tensor.shape) == ("w", 1, (16, 16))
    assert (tensor.location, tensor.offset, tensor.length) == ("weights.bin", 0, 1024)
    assert tensor.top_level


def test_a_model_without_weights_outside_has_none() -> None:
    members = onnx_members([Node("MatMul", ["x", "w"], ["y"])], IN, OUT, {"w": W}, external_bytes=10**6)
    assert list(members) == ["model.onnx"]
    assert read_facts(memoryview(members["model.onnx"])).external == ()


def external(name: str, location: str) -> Any:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name=name, data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "64"), ("checksum", "abc")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_tensors_are_found_wherever_onnx_allows_them() -> None:
    onnx = pytest.importorskip("onnx")
    h = onnx.helper
    inner = h.make_graph([], "inner", [], [], [external("in a subgraph", "b")])
    deep = h.make_graph([h.make_node("If", ["c"], ["y"], then_branch=inner)], "deep", [], [])
    nodes = [
        h.make_node("Constant", [], ["k"], value=external("in an attribute", "a")),
        h.make_node("Loop", [], [], body=deep),
        h.make_node("Custom", [], [], domain="d", many=[external("in a list", "c")]),
    ]
    model = h.make_model(h.make_graph(nodes, "g", [], [], [external("initializer", "d")]))
    function = model.functions.add(name="f", domain="d")
    function.node.append(h.make_node("Constant", [], ["k"], value=external("in a function", "e")))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("sparse", "f"))
    model.training_info.add().algorithm.initializer.append(external("in training", "g"))
    facts = read_facts(memoryview(model.SerializeToString()))
    assert {(t.name, t.location) for t in facts.external} == {
        ("in an attribute", "a"),
        ("in a subgraph", "b"),
        ("in a list", "c"),
        ("initializer", "d"),
        ("in a function", "e"),
        ("sparse", "f"),
        ("in training", "g"),
    }
    assert [t.name for t in facts.external if t.top_level] == ["initializer"]
    assert all(t.offset == 64 and t.length is None for t in facts.external)


def test_dimensions_that_are_not_packed_are_read() -> None:
    # onnx.proto is proto2: its writers pack nothing, ours and protobuf 3's may.
    tensor = b"\x08\x02\x08\x03" + b"\x10\x01" + b"\x42\x01w" + b"\x70\x01"
    packed = b"\x0a\x02\x02\x03" + b"\x10\x01" + b"\x42\x01w" + b"\x70\x01"
    for body in (tensor, packed):
        graph = b"\x2a" + bytes([len(body)]) + body
        model = b"\x3a" + bytes([len(graph)]) + graph
        assert read_facts(memoryview(model)).external[0].shape == (2, 3)


def nested(depth: int) -> bytes:
    message = b""
    for i in range(depth):
        # AttributeProto.g, NodeProto.attribute and GraphProto.node, in turn.
        tag = (b"\x32", b"\x2a", b"\x0a")[i % 3]
        size = len(message)
        length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        message = tag + length + message
    return b"\x3a" + bytes([len(message) & 127 | 128, len(message) >> 7]) + message


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"\x3a\x05\x0a", "cut off"),
        (b"\x3a", "cut off"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "more than 64 bits"),
        (b"\x0b\x08", "unknown wire type 3"),
        (nested(300), "nest deeper"),
        (b"\x3a\x0a\x2a\x08\x42\x01\xff\x70\x01\x10\x01\x00", "valid ONNX"),
        (b"\x3a\x14\x2a\x12\x6a\x10\x0a\x06offset\x12\x06 12 34", "expected a number of bytes"),
        (b"\x3a\x10\x2a\x0e\x6a\x0c\x0a\x06offset\x12\x02-1", "expected a number of bytes"),
    ],
)
def test_hostile_bytes_are_refused(model: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        read_facts(memoryview(model))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(model: bytes) -> None:
    with contextlib.suppress(ArtifactError):
        read_facts(memoryview(model))


@given(st.integers(0, len(MEMBERS["model.onnx"]) - 1), st.integers(1, 255))
def test_so_is_a_model_with_a_byte_changed(at: int, by: int) -> None:
    model = bytearray(MEMBERS["model.onnx"])
    model[at] ^= by
    with contextlib.suppress(ArtifactError):
        read_facts(memoryview(model))
