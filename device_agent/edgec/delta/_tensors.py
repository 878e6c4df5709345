"""Where the tensors of an artifact lie: read by who makes a patch, never by who applies it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from edgec.artifact import Artifact
from edgec.artifact.onnx_reader import read_facts
from edgec.delta._flatbuffer import read_buffers
from edgec.errors import ArtifactError

# Bytes per number, by the number of an element type in onnx.proto and by its name in OpenVINO's files.
_ONNX_WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_OPENVINO_WIDTH = re.compile(r"(?:f|bf|i|u)(8|16|32|64)")
_SMALLEST = 64  # bytes; what is smaller costs more as a segment than it saves


class Place(NamedTuple):
    """Where the numbers of a tensor lie in a file.

    Attributes:
        member: Of the artifact.
        name: Of the tensor, in its member.
        start: Of its first byte in the file.
        length: In bytes, a multiple of `width`.
        width: Bytes per number: 1, 2, 4 or 8.
    """

    member: str
    name: str
    start: int
    length: int
    width: int


class Pair(NamedTuple):
    """A tensor that two files have: where it begins in each, its length and its width in bytes."""

    old: int
    new: int
    length: int
    width: int


def pairs(old: Path, new: Path) -> list[Pair]:
    """Return the tensors of the same member, name, length and width, in the order of the new file.

    What is left on both sides is paired by its order among tensors of the same member, length and width:
    converters number what has no name. Files that are no artifacts have no tensors.
    """
    before, after = places(old), places(new)
    named = {(p.member, p.name, p.length, p.width): p for p in before}
    found: list[Pair] = []
    used: set[Place] = set()
    left: list[Place] = []
    for place in after:
        match = named.get((place.member, place.name, place.length, place.width))
        if match is None or match in used:
            left.append(place)
            continue
        used.add(match)
        found.append(Pair(match.start, place.start, place.length, place.width))
    waiting: dict[tuple[str, int, int], list[Place]] = {}
    for place in reversed([p for p in before if p not in used]):
        waiting.setdefault((place.member, place.length, place.width), []).append(place)
    found += [
        Pair(others.pop().start, place.start, place.length, place.width)
        for place in left
        if (others := waiting.get((place.member, place.length, place.width)))
    ]
    return sorted(found, key=lambda pair: pair.new)


def places(path: Path) -> list[Place]:
    """Return the tensors of an artifact in the order of the file, without overlaps; [] for other files."""
    try:
        with Artifact.open(path) as artifact:
            found = [p for name in artifact.names() for p in _of_member(artifact, name)]
    except ArtifactError:
        return []
    apart: list[Place] = []
    for place in sorted(found, key=lambda p: (p.start, -p.length)):
        if place.length >= _SMALLEST and (not apart or place.start >= apart[-1].start + apart[-1].length):
            apart.append(place)
    return apart


def _of_member(artifact: Artifact, name: str) -> Iterator[Place]:
    suffix = name.rpartition(".")[2]
    reader = {"onnx": _of_onnx, "xml": _of_openvino, "tflite": _of_tflite}.get(suffix)
    if reader is None:
        return
    try:
        found = list(reader(artifact, name))
    except (ArtifactError, ValueError, ElementTree.ParseError):
        # A member of this name that is something else: its bytes are patched like any others.
        return
    sizes = {n: len(artifact.view(n)) for n in artifact.names()}
    for member, tensor, start, length, width in found:
        whole = length % width == 0 and start >= 0 and start + length <= sizes.get(member, 0)
        if whole:
            yield Place(member, tensor, artifact.offset(member) + start, length, width)


_Found = Iterator[tuple[str, str, int, int, int]]


def _of_onnx(artifact: Artifact, name: str) -> _Found:
    """Tensors in other members; those in the graph itself are small."""
    folder = name.rpartition("/")[0]
    for tensor in read_facts(artifact.view(name)).external:
        member = f"{folder}/{tensor.location}" if folder else tensor.location
        width = _ONNX_WIDTHS.get(tensor.data_type)
        if width is not None and tensor.length is not None:
            yield member, tensor.name, tensor.offset, tensor.length, width


def _of_openvino(artifact: Artifact, name: str) -> _Found:
    """Constants of a network, whose bytes are in the member of the same name that ends in ``.bin``."""
    member = f"{name.removesuffix('.xml')}.bin"
    for layer in ElementTree.fromstring(bytes(artifact.view(name))).iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        kind = _OPENVINO_WIDTH.fullmatch(data.get("element_type", ""))
        if kind is not None:
            start, length = int(data.get("offset", "")), int(data.get("size", ""))
            yield member, layer.get("name", ""), start, length, int(kind[1]) // 8


def _of_tflite(artifact: Artifact, name: str) -> _Found:
    for tensor, start, length, width in read_buffers(artifact.view(name)):
        yield name, tensor, start, length, width
