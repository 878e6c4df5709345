"""Files from outside: every way to be wrong is refused with what is wrong, and nothing is written."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.artifact.forge import (
    LARGE,
    Document,
    Part,
    Tiny,
    canonical,
    comment_of,
    sha256,
    signed,
    write_parts,
    write_zip,
)

from edgec.artifact import GOLDEN, Artifact
from edgec.errors import ArtifactError, DigestMismatchError, IncompatibleArtifactError, ManifestError

Write = Callable[[bytes], Path]
Forge = Callable[..., bytes]


def refused(path: Path, message: str, kind: type[ArtifactError] = ArtifactError) -> None:
    """Assert that the file cannot be opened, that the error names it, and that nothing was written."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(kind, match=message) as raised:
        Artifact.open(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert sorted(path.parent.iterdir()) == before


# The file


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "a.edgec", "cannot read the artifact .*: No such file")


def test_a_directory(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory, not an artifact")


def test_a_pipe_and_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is a device or a pipe")
    with pytest.raises(ArtifactError, match="is a device or a pipe"):
        Artifact.open("/dev/zero")


def test_a_path_with_nul() -> None:
    with pytest.raises(ArtifactError, match="null"):
        Artifact.open("a\0b")


@pytest.mark.parametrize("data", [b"PK", b"\x7fELF" * 100, b"PK\5\6" + bytes(18), b"\0" * 10**6])
def test_something_else(data: bytes, write: Write) -> None:
    refused(write(data), "not an edgec artifact, or not a whole one")


def test_an_empty_file(write: Write) -> None:
    refused(write(b""), "is empty, not an artifact")


def test_another_zip(write: Write) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("model.onnx", b"x")
    refused(write(data.getvalue()), "not an edgec artifact")
    with zipfile.ZipFile(data, "a") as archive:
        archive.comment = b"x" * len(comment_of(b""))
    refused(write(data.getvalue()), "a zip file, but not an edgec artifact")


# The zip


@pytest.fixture
def forge(tiny: Tiny) -> Callable[..., bytes]:
    """Return what writes the small artifact with changed members."""

    def write_with(
        change: Callable[[list[Part]], object] = lambda parts: None,
        *,
        version: int = 1,
        prefix: bytes = b"",
        suffix: bytes = b"",
    ) -> bytes:
        manifest = signed(tiny.document())
        parts = tiny.parts(manifest)
        change(parts)
        return write_zip(parts, comment=comment_of(manifest, version), prefix=prefix, suffix=suffix)

    return write_with


def test_the_second_writer_is_right_unless_told_otherwise(forge: Forge, write: Write) -> None:
    with Artifact.open(write(forge())) as artifact:
        artifact.verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": 8}, "'model.onnx' is compressed .method 8.; members must be stored"),
        ({"method": 93}, "'model.onnx' is compressed .method 93."),
        ({"flags": 1}, "'model.onnx' is encrypted"),
        ({"flags": 8}, "'model.onnx': its entry in the directory is not as version 1 prescribes"),
        ({"mode": 0o120777 << 16}, "'model.onnx' is a symbolic link"),
        ({"mode": 0o040755 << 16}, "'model.onnx': its entry in the directory is not as version 1"),
        ({"mode": 0o100755 << 16}, "'model.onnx': its entry in the directory is not as version 1"),
        ({"stored": 4}, "'model.onnx' has 5 bytes of which 4 are stored"),
        ({"size": 2**32 - 1, "stored": 2**32 - 1}, "'model.onnx'.* not as version 1 prescribes|outside"),
        ({"size": 2**31, "stored": 2**31}, "'model.onnx' ends outside of the file"),
        ({"size": 6, "stored": 6}, "overlaps the one before it"),
        ({"size": 4, "stored": 4}, "1 bytes before member 'golden.safetensors' belong to nothing"),
        ({"crc": 0}, "'model.onnx': its header differs|'model.onnx' has CRC-32"),
        ({"time": 1}, "not as version 1 prescribes"),
        ({"date": 0x5555}, "not as version 1 prescribes"),
        ({"needs": 20}, "not as version 1 prescribes"),
        ({"comment": b"c"}, "not as version 1 prescribes|has no entry"),
        ({"extra": b"\1\0\0\0"}, "not as version 1 prescribes"),
        ({"extra": struct.pack("<QQ", 5, 5)}, "not as version 1 prescribes"),
        ({"extra": b"\1"}, "not as version 1 prescribes"),
    ],
)  # fmt: skip
def test_wrong_headers(change: Document, message: str, forge: Forge, write: Write) -> None:
    def in_both(parts: list[Part]) -> None:
        parts[1].central = change
        parts[1].local = {key: value for key, value in change.items() if key not in ("comment", "extra")}

    def in_directory(parts: list[Part]) -> None:
        parts[1].central = change

    def in_local(parts: list[Part]) -> None:
        parts[1].local = change

    refused_somewhere(write(forge(in_both)), message)
    refused_somewhere(write(forge(in_directory)), message + "|its header differs")
    if not change.keys() & {"mode", "comment"}:
        refused(write(forge(in_local)), "'model.onnx': its header differs|overlaps|belong to nothing")


def refused_somewhere(path: Path, message: str) -> None:
    """Assert that the file cannot be opened, or else not verified."""
    with pytest.raises(ArtifactError, match=message), Artifact.open(path) as artifact:
        artifact.verify()


@pytest.mark.parametrize(
    "name",
    [
        b"", b"/etc/passwd", b"../../etc/passwd", b"a/../../b", b"..\\b", b"C:\\b", b"a\0b", b"\xff\xfe",
        "modèl.onnx".encode(), b"model.onnx/", b"\x1b[31mred", b"x" * 300, b".bashrc",
    ],
)  # fmt: skip
def test_dangerous_names(name: bytes, forge: Forge, write: Write) -> None:
    def rename(parts: list[Part]) -> None:
        parts[1].name = name

    refused(write(forge(rename)), "a member is called|the name of a member has 300")


def test_a_name_that_only_one_header_has(forge: Forge, write: Write) -> None:
    def rename(parts: list[Part]) -> None:
        parts[1].local = {"name": b"../el.onnx"}

    refused(write(forge(rename)), "'model.onnx': its header differs from its entry in the directory")


@pytest.mark.parametrize("name", [b"weights.bin", b"Weights.bin"])
def test_two_members_of_one_name(name: bytes, forge: Forge, write: Write) -> None:
    refused(write(forge(lambda parts: parts.insert(1, Part(name, b"x")))), "two members are called")


def test_a_member_that_is_a_directory_too(forge: Forge, write: Write) -> None:
    add: Callable[[list[Part]], None] = lambda parts: parts.insert(1, Part(b"model.onnx/x", b""))  # noqa: E731
    refused(write(forge(add)), "'model.onnx' is a directory to member 'model.onnx/x'")


def test_a_member_that_the_manifest_does_not_have(forge: Forge, write: Write) -> None:
    data = forge(lambda parts: parts.insert(1, Part(b"extra.bin", b"x")))
    refused(write(data), "'extra.bin' is not in the manifest")


def test_a_member_that_is_missing(forge: Forge, write: Write) -> None:
    refused(write(forge(lambda parts: parts.pop(1))), "'model.onnx' is missing: the manifest promises it")


def test_a_member_of_another_size(forge: Forge, write: Write) -> None:
    def grow(parts: list[Part]) -> None:
        parts[1].data += b"!"

    refused(write(forge(grow)), "'model.onnx' has 6 bytes, the manifest promises 5")


def test_a_member_of_another_content(forge: Forge, write: Write) -> None:
    def change(parts: list[Part]) -> None:
        parts[1].data = b"grapH"

    with Artifact.open(write(forge(change))) as artifact:
        with pytest.raises(DigestMismatchError, match=r"'model\.onnx' has SHA-256 .* get it again") as raised:
            artifact.verify()
        assert raised.value.member == "model.onnx"
        with pytest.raises(DigestMismatchError):
            artifact.read("model.onnx")
        assert bytes(artifact.view("model.onnx")) == b"grapH"


def test_a_checksum_that_both_headers_have_wrong(forge: Forge, write: Write) -> None:
    def change(parts: list[Part]) -> None:
        parts[1].central = parts[1].local = {"crc": 1}

    artifact = Artifact.open(write(forge(change)))
    with artifact, pytest.raises(DigestMismatchError, match=r"'model\.onnx' has CRC-32"):
        artifact.verify()


def test_members_out_of_order(forge: Forge, write: Write) -> None:
    refused(write(forge(lambda parts: parts.insert(0, parts.pop(2)))), "out of order: payload comes first")
    refused(write(forge(lambda parts: parts.insert(4, parts.pop(1)))), "out of order|not 'manifest.json'")


def test_no_manifest(forge: Forge, write: Write) -> None:
    refused(write(forge(lambda parts: parts.pop())), "the last member is 'report.json', not 'manifest.json'")
    refused(write(forge(lambda parts: parts.clear())), "has 0 members")


def test_payload_that_is_not_aligned(forge: Forge, write: Write) -> None:
    def misalign(parts: list[Part]) -> None:
        parts[1].aligned = False

    refused(write(forge(misalign)), "'model.onnx': its header differs")


def test_padding_that_holds_something(forge: Forge, write: Write) -> None:
    data = bytearray(forge())
    data[2000] = 1
    refused(write(bytes(data)), "'weights.bin': its header differs")


def test_bytes_around(forge: Forge, write: Write) -> None:
    refused(write(forge(prefix=b"#!/bin/sh\n")), "10 bytes before member 'weights.bin' belong to nothing")
    refused(write(b"#!/bin/sh\n" + forge()), "does not fit the file")
    refused(write(forge(suffix=b"\0")), "bytes were added to its end")
    refused(write(forge() + forge()), "does not fit the file")
    refused(write(_put_in(forge(), b"PK\1\2", start=6)), "6 bytes between the last member and the directory")
    refused(write(_put_in(forge(), b"PK\5\6", size=6)), "the directory has 6 bytes that belong to no member")

    def hide(parts: list[Part]) -> None:
        parts[2].before = b"hidden"

    refused(write(forge(hide)), "6 bytes before member 'golden.safetensors' belong to nothing")


def _put_in(data: bytes, before: bytes, start: int = 0, size: int = 0) -> bytes:
    """Put six bytes before the first mark, and correct the end record by `start` and `size`."""
    at = data.index(before)
    data = data[:at] + b"hidden" + data[at:]
    end = data.rindex(b"PK\5\6") + 12
    old_size, old_start = struct.unpack_from("<II", data, end)
    return data[:end] + struct.pack("<II", old_size + size, old_start + start) + data[end + 8 :]


def test_members_that_overlap(forge: Forge, write: Write) -> None:
    def overlap(parts: list[Part]) -> None:
        parts[1].central = {"place": 0}

    refused(write(forge(overlap)), "'model.onnx' overlaps the one before it")


@pytest.mark.parametrize("cut", [1, 20, 75, 76, 97, 98, 200, 600, 5000])
def test_a_file_that_was_cut(cut: int, forge: Forge, write: Write) -> None:
    refused(write(forge()[:-cut]), "not an edgec artifact, or not a whole one")


def test_thousands_of_members(forge: Forge, write: Write) -> None:
    def add(parts: list[Part]) -> None:
        parts[1:1] = [Part(b"m%d" % i, b"", aligned=False) for i in range(1020)]

    refused(write(forge(add)), "has 1025 members; 1 to 1024 are allowed")


def test_another_format_version_is_told_before_anything_else(forge: Forge, write: Write) -> None:
    data = forge(lambda parts: parts.clear(), version=2)
    refused(write(data), "has format version 2, this edgec reads 1: update it", IncompatibleArtifactError)


def _end_64(data: bytes, place: int) -> bytes:
    """Rewrite the end of an artifact to the zip64 form, which only files above 4 GB have."""
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", data, end + 10)
    return (
        data[:end]
        + struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 813, 45, 0, 0, count, count, size, start)
        + struct.pack("<IIQI", 0x07064B50, 0, end + place, 1)
        + data[end : end + 16]
        + b"\xff\xff\xff\xff"
        + data[end + 20 :]
    )


def test_zip64_where_it_is_not_needed(forge: Forge, write: Write) -> None:
    refused(write(_end_64(forge(), 0)), "the end of the file is not as format version 1 prescribes")
    end = bytearray(forge())
    end[-88:-84] = b"\xff\xff\xff\xff"
    refused(write(bytes(end)), "the zip64 end record is missing")


@pytest.mark.parametrize(
    "size",
    [
        2**32 + 100,  # size, places and directory take 8 bytes
        2**32,
        2**32 - 1,  # the first size that does
        2**32 - 2,
        2**32 - 1 - 4096,  # the next member is the first one whose place does
        2**32 - 2 - 4096,
        2**32 - 3 * 4096,  # only the directory and a place, or none
    ],
)
def test_payload_around_4_gb_is_read(size: int, tiny: Tiny, tmp_path: Path) -> None:
    """A sparse file: 4 GiB and a little, of which a few kilobytes are on the disk."""
    document = tiny.document()
    document["members"]["large.bin"] = {"sha256": "0" * 64, "size": size}
    manifest = signed(document)
    parts = [Part(b"large.bin", b"begin", zeros=size - 5), *tiny.parts(manifest)]
    path = tmp_path / "a.edgec"
    with path.open("wb") as file:
        write_parts(file, parts, comment_of(manifest))
    with Artifact.open(path) as artifact:
        assert len(artifact.view("large.bin")) == size
        assert bytes(artifact.view("large.bin")[:6]) == b"begin\0"
        assert artifact.offset("weights.bin") % 4096 == 0
        assert artifact.read("weights.bin") == tiny.members["weights.bin"]
        assert len(artifact.golden()) == 2
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large.bin").file_size == size
        assert archive.read("model.onnx") == b"graph"


def test_the_directory_alone_above_4_gb(tiny: Tiny, tmp_path: Path) -> None:
    manifest = signed(tiny.document())
    rest = len(write_zip(tiny.parts(manifest), comment=b"")) + 4096
    for size in range(LARGE - rest - 4096, LARGE - rest + 4096, 1021):
        document = tiny.document()
        document["members"]["large.bin"] = {"sha256": "0" * 64, "size": size}
        manifest = signed(document)
        path = tmp_path / "a.edgec"
        with path.open("wb") as file:
            parts = [Part(b"large.bin", b"", zeros=size), *tiny.parts(manifest)]
            write_parts(file, parts, comment_of(manifest))
        with Artifact.open(path) as artifact:
            assert artifact.report == tiny.report


# The manifest and what else is parsed


def test_a_manifest_of_1_gb_is_not_read(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "a.edgec"
    size = 2**30
    parts = [Part(b"manifest.json", b"", aligned=False)]
    small = write_zip(parts, comment=comment_of(b""))
    at = small.index(b"PK\1\2")
    with path.open("wb") as file:
        file.write(small[:18] + struct.pack("<II", size, size) + small[26:at])
        file.seek(size, os.SEEK_CUR)
        tail = bytearray(small[at:])
        tail[20:28] = struct.pack("<II", size, size)
        end = tail.index(b"PK\5\6")
        tail[end + 16 : end + 20] = struct.pack("<I", at + size)
        file.write(tail)
    tracemalloc.start()
    refused(path, "manifest.json has 1073741824 bytes; at most 4194304 are read", ManifestError)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_manifest_with_another_digest(tiny: Tiny, write: Write) -> None:
    manifest = signed(tiny.document())
    data = write_zip(tiny.parts(manifest), comment=comment_of(manifest + b" "))
    refused(write(data), r"manifest\.json has SHA-256 .* the end of the file promises", DigestMismatchError)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"[" * 1_000_000, "manifest.json is nested more than 32 levels deep"),
        (b'{"a":1}', "manifest.format_version is missing"),
        (b"", "manifest.json is not JSON"),
        (b"\x80\4K\1.", "manifest.json is not UTF-8"),
    ],
)
def test_a_wrong_manifest(manifest: bytes, message: str, tiny: Tiny, write: Write) -> None:
    refused(write(write_zip(tiny.parts(manifest), comment=comment_of(manifest))), message, ManifestError)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("report.json", b" " * (16 * 2**20 + 1), "report.json has 16777217 bytes; at most 16777216 are read"),
        ("report.json", b"[1]", "report.json must be an object, not a list"),
        ("report.json", b'{"a": 1}', "report.json is not canonical"),
        ("report.json", b'{"a":' * 33 + b"1" + b"}" * 33, "nested more than 32"),
        (GOLDEN, b"", "has 0 bytes and a header of 0"),
        (GOLDEN, b"\x80\4K\1.", "has 5 bytes"),
        (GOLDEN, struct.pack("<Q", 2**63), "a header of 9223372036854775808"),
        (GOLDEN, struct.pack("<Q", 2) + b"{}!", "1 bytes at its end belong to no array"),
        (GOLDEN, struct.pack("<Q", 2) + b"[]", "must be an object"),
    ],
)
def test_a_wrong_report_or_golden_vectors(
    name: str, data: bytes, message: str, tiny: Tiny, write: Write
) -> None:
    other = replace(tiny, members={**tiny.members, name: data} if name == GOLDEN else tiny.members)
    document = other.document()
    document["members"][name] = {"sha256": sha256(data), "size": len(data)}
    manifest = signed(document)
    parts = other.parts(manifest)
    for part in parts:
        if part.name == name.encode():
            part.data = data
    with Artifact.open(write(write_zip(parts, comment=comment_of(manifest)))) as artifact:
        with pytest.raises(ManifestError, match=message):
            artifact.verify()
        with pytest.raises(ManifestError, match=message):
            _ = artifact.golden() if name == GOLDEN else artifact.report


def _golden(header: Document, body: bytes = bytes(12)) -> bytes:
    head = canonical(header)
    return struct.pack("<Q", len(head)) + head + body


_RIGHT: Document = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": _RIGHT}, "has an array 'x'; expected such as '0/inputs/image'"),
        ({"0/weights/x": _RIGHT}, "has an array '0/weights/x'"),
        ({"00/inputs/x": _RIGHT}, "has an array '00/inputs/x'"),
        ({"1/inputs/x": _RIGHT}, "'x' is out of order"),
        ({"1024/inputs/x": _RIGHT}, "has an array"),
        ({"0/inputs/x": [1]}, "must be an object"),
        ({"0/inputs/x": _RIGHT}, "vector 0 does not have the inputs of the model"),
        ({"0/inputs/image": _RIGHT}, "vector 0 must have outputs that manifest.golden has"),
        (
            {
                "0/inputs/image": _RIGHT,
                "0/outputs/logits": {**_RIGHT, "shape": [0], "data_offsets": [12, 12]},
            },
            "vector 0 must have outputs that manifest.golden has",
        ),
        ({"0/inputs/x": {**_RIGHT, "dtype": "object"}}, "dtype must be one of BOOL"),
        ({"0/inputs/x": {**_RIGHT, "dtype": "F64"}}, "does not fit shape"),
        ({"0/inputs/x": {**_RIGHT, "shape": [4]}}, "does not fit shape"),
        ({"0/inputs/x": {**_RIGHT, "shape": [-3]}}, "must be 0 or more"),
        ({"0/inputs/x": {**_RIGHT, "shape": [1] * 33}}, "has 33 items"),
        ({"0/inputs/x": {**_RIGHT, "data_offsets": [0]}}, "has 1 items"),
        ({"0/inputs/x": {**_RIGHT, "data_offsets": [12, 0]}}, "does not fit shape"),
        ({"0/inputs/x": {**_RIGHT, "data_offsets": [4, 16]}}, "is at bytes 4 to 16, expected 0"),
        ({"0/inputs/x": _RIGHT, "0/inputs/y": _RIGHT}, "'.' is at bytes 0 to 12, expected 12"),
        (
            {"0/inputs/x": _RIGHT, "0/inputs/y": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}},
            "'y' is at bytes 12 to 16",
        ),
        (
            {"0/inputs/x": {"dtype": "U8", "shape": [0, 2**50, 2**50], "data_offsets": [0, 0]}},
            "larger than any array",
        ),
    ],
)
def test_wrong_golden_headers(header: Document, message: str, tiny: Tiny, write: Write) -> None:
    other = replace(tiny, members={**tiny.members, GOLDEN: _golden(header)})
    manifest = signed(other.document())
    artifact = Artifact.open(write(write_zip(other.parts(manifest), comment=comment_of(manifest))))
    with artifact, pytest.raises(ManifestError, match=message):
        artifact.golden()
