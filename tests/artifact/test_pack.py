"""What `pack` writes, byte for byte, and what it refuses to write."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.artifact.forge import ENVIRONMENT, Tiny, comment_of, signed, write_zip

from edgec.artifact import (
    GOLDEN,
    Artifact,
    GoldenVector,
    Manifest,
    Pipeline,
    atomic_write,
    content_digest,
    encode_golden,
    pack,
)
from edgec.errors import ArtifactError, ManifestError, OutputError


def test_a_second_writer_gives_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    manifest = signed(tiny.document())
    expected = write_zip(tiny.parts(manifest), comment=comment_of(manifest))
    assert tiny.pack(tmp_path / "a.edgec").read_bytes() == expected


def test_the_same_content_gives_the_same_bytes_from_memory_and_from_files(tiny: Tiny, tmp_path: Path) -> None:
    files: dict[str, bytes | memoryview | Path] = {}
    for name, data in tiny.members.items():
        files[name] = tmp_path / name
        (tmp_path / name).write_bytes(data)
    files["model.onnx"] = memoryview(bytearray(tiny.members["model.onnx"]))
    os.utime(tmp_path / "weights.bin", (1, 1))
    from_files = pack(tmp_path / "b.edgec", tiny.manifest, files, tiny.report)
    assert from_files.read_bytes() == tiny.pack(tmp_path / "a.edgec").read_bytes()


def test_content_digest_leaves_out_the_report_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    def digest(manifest: Manifest, members: dict[str, bytes], report: dict[str, Any] | None) -> str:
        with Artifact.open(pack(tmp_path / "a.edgec", manifest, members, report)) as artifact:
            assert artifact.content_digest == content_digest(artifact.manifest)
            return artifact.content_digest

    members = dict(tiny.members)
    first = digest(tiny.manifest, members, {"p50": 1})
    assert first == digest(tiny.manifest, members, {"p50": 2}) == digest(tiny.manifest, members, None)
    assert first == digest(tiny.manifest, dict(sorted(members.items())), None)
    others = [
        digest(tiny.manifest, {**members, "weights.bin": b"w"}, None),
        digest(tiny.manifest, {**members, "more.bin": b""}, None),
        digest(tiny.manifest, {**members, GOLDEN: encode_golden([])}, None),
        digest(replace(tiny.manifest, provenance={"seed": 1}), members, None),
        digest(replace(tiny.manifest, golden={"scores": {"max_abs_error": 2}}), members, None),
    ]
    assert len({first, *others}) == 6


def test_payload_is_aligned_and_stays_where_it_is(tiny: Tiny, tmp_path: Path) -> None:
    def offsets(manifest: Manifest, members: dict[str, bytes]) -> list[int]:
        with Artifact.open(pack(tmp_path / "a.edgec", manifest, members)) as artifact:
            return [artifact.offset(name) for name in ("weights.bin", "model.onnx")]

    members = {"weights.bin": bytes(5000), "model.onnx": b"graph"}
    before = offsets(tiny.manifest, members)
    assert before == [4096, 12288]
    retrained = {**members, "weights.bin": b"\1" * 5000, "model.onnx": b"another graph"}
    assert offsets(replace(tiny.manifest, model_version="2.0"), retrained) == before


def test_any_zip_tool_reads_it(tiny: Tiny, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny.pack(tmp_path / "a.edgec")) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["weights.bin", "model.onnx", GOLDEN, "report.json", "manifest.json"]
        assert {name: archive.read(name) for name in tiny.members} == tiny.members
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_overhead_is_at_most_64_kb(tiny: Tiny, tmp_path: Path) -> None:
    labels = tuple(f"class number {i}" for i in range(1000))
    members = {f"part{i}.bin": bytes(4097) for i in range(4)} | dict(tiny.members)
    manifest = replace(tiny.manifest, pipeline=Pipeline(labels=labels))
    path = pack(tmp_path / "a.edgec", manifest, members, {"candidates": ["x" * 100] * 50})
    assert path.stat().st_size - sum(map(len, members.values())) <= 64_000


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "../model.onnx", "a/../b", "a/./b", "a//b", "a/", "a\\b", "C:model", "a\0b", "a b",
        "a\nb", "ä.bin", ".hidden", "a/.hidden", "-rf", "x" * 201, "weights.bin/x", "WEIGHTS.BIN",
        "report.json", "manifest.json", "Manifest.JSON",
    ],
)  # fmt: skip
def test_impossible_member_names_are_refused(name: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"called|name of a member|directory to member"):
        pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, name: b"x"})
    assert not list(tmp_path.iterdir())


def test_members_in_folders_are_allowed(tiny: Tiny, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, "engine/v1.2/a_b+c-d.bin": b"x"})
    with Artifact.open(path) as artifact:
        assert artifact.read("engine/v1.2/a_b+c-d.bin") == b"x"


def test_too_many_members_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    most = {f"m{i}": b"" for i in range(1023 - len(tiny.members))}
    with Artifact.open(pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, **most})) as artifact:
        assert len(artifact.names()) == 1023
    with pytest.raises(ArtifactError, match="1024 members"):
        pack(tmp_path / "b.edgec", tiny.manifest, {**tiny.members, **most, "one_more": b""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "manifest.model must be text of 1 to 256 characters, not ''"),
        ({"provenance": {"x": float("nan")}}, "manifest.provenance.x is nan"),
        ({"provenance": {"x": [1, b"y"]}}, r"manifest.provenance.x\[1\] is a bytes"),
        ({"provenance": {1: 2}}, "has the key 1; keys in JSON are text"),
        ({"provenance": {"x": 2**53}}, "beyond 2\\*\\*53"),
        ({"provenance": {"x": "\ud800"}}, "surrogate"),
        ({"golden": {"logits": {"max_abs_error": 1}}}, "'logits', which is no output"),
        ({"requires": ("sparsity",)}, "requires 'sparsity'"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        pack(tmp_path / "a.edgec", replace(tiny.manifest, **change), tiny.members)
    assert not list(tmp_path.iterdir())


def test_a_payload_that_is_no_member_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"engine 'onnxruntime' loads 'weights\.bin', which is no member"):
        pack(tmp_path / "a.edgec", tiny.manifest, {"model.onnx": b"x"})


def test_a_report_with_nan_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"report\.candidates\[0\]\.snr_db is inf"):
        pack(
            tmp_path / "a.edgec", tiny.manifest, tiny.members, {"candidates": [{"snr_db": np.float32("inf")}]}
        )
    assert not list(tmp_path.iterdir())


def test_wrong_golden_vectors_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="golden"):
        pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, GOLDEN: b"PK\3\4"})
    with pytest.raises(ManifestError, match="'x' is complex64, which cannot be stored"):
        encode_golden([GoldenVector(inputs={"x": np.zeros(1, np.complex64)})])


def test_a_member_that_cannot_be_read_is_named(tiny: Tiny, tmp_path: Path) -> None:
    for wrong in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(ArtifactError, match=f"cannot read the member {wrong}"):
            pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, "weights.bin": wrong})
    assert not list(tmp_path.iterdir())


def test_a_member_that_changes_while_it_is_read_is_named(tiny: Tiny, tmp_path: Path) -> None:
    # A file whose size is said to be 0, and which has content.
    with pytest.raises(
        ArtifactError, match=r"member 'weights\.bin' had 0 bytes and then \d+: it was written to"
    ):
        pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, "weights.bin": Path("/proc/self/status")})
    assert not list(tmp_path.iterdir())


def test_a_report_that_no_reader_would_read_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="the report has 16777224 bytes; at most 16777216 are stored"):
        pack(tmp_path / "a.edgec", tiny.manifest, tiny.members, {"x": "y" * 2**24})


@pytest.mark.slow
@pytest.mark.skipif(shutil.disk_usage("/tmp").free < 16e9, reason="needs 16 GB of free disk")
@pytest.mark.timeout(900)
def test_payload_above_4_gb(tiny: Tiny, tmp_path: Path) -> None:
    size = 2**32 + 5
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    path = pack(tmp_path / "a.edgec", tiny.manifest, {"large.bin": large, **tiny.members}, tiny.report)
    large.unlink()
    with Artifact.open(path) as artifact:
        artifact.verify()
        assert artifact.manifest.members["large.bin"].size == size
        assert bytes(artifact.view("large.bin")[-4:]) == b"\0end"
        assert artifact.offset("weights.bin") > 2**32
        assert artifact.read("weights.bin") == tiny.members["weights.bin"]
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large.bin").file_size == size
        assert archive.read("weights.bin") == tiny.members["weights.bin"]


# Where the result goes


def refused(write: Any, path: Path, message: str) -> None:
    """Assert that a write fails with `message` and leaves everything beside `path` as it was."""

    def around() -> list[Path]:
        return sorted(path.parent.iterdir()) if path.parent.is_dir() else []

    before = around()
    with pytest.raises(OutputError, match=message):
        write(path)
    assert around() == before


@pytest.mark.parametrize("large", [False, True])
def test_a_full_disk_leaves_what_was_there(large: bool, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "a.edgec"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    members = {**tiny.members, "weights.bin": bytes(2**22)} if large else tiny.members
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        refused(lambda p: pack(p, tiny.manifest, members), path, "larger than this system allows")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"


_ON_FULL_DISK = """
import os, sys
from edgec.artifact import atomic_write
from edgec.errors import OutputError
try:
    with atomic_write(sys.argv[1] + "/a.edgec") as file:
        file.write(bytes(2**20))
except OutputError as e:
    print(e, os.listdir(sys.argv[1]))
"""


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=64k none "$1" && exec "{sys.executable}" -c "$2" "$1"'
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path, _ON_FULL_DISK],
        capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    if run.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {run.stderr.strip()[:100]}")
    assert run.stdout == (
        f"cannot write {tmp_path}/a.edgec: the disk is full; free some space and run again []\n"
    )


_WITHOUT_RIGHTS = """
import os, sys
from edgec.artifact import atomic_write
from edgec.errors import OutputError
if os.getuid() == 0:
    os.setuid(65534)
try:
    with atomic_write(sys.argv[1]):
        pass
except OutputError as e:
    print(e)
"""


def test_a_directory_that_is_not_writable_is_told() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _WITHOUT_RIGHTS, "/usr/a.edgec"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    assert run.stdout == "cannot write /usr/a.edgec: /usr is not writable; choose another directory\n"


def test_other_places_that_cannot_be_written(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    refused(tiny.pack, tmp_path / "none" / "a.edgec", "the directory .*none does not exist; make it first")
    refused(tiny.pack, tmp_path, "is a directory; give the path of a file")
    refused(tiny.pack, tmp_path / "file" / "a.edgec", "cannot write .*Not a directory")
    refused(tiny.pack, tmp_path / ("x" * 300), "File name too long")
    refused(tiny.pack, tmp_path / "pipe", "is a device or a pipe")
    refused(tiny.pack, Path("/dev/null"), "is a device or a pipe")


def test_what_was_there_is_replaced_and_links_are_followed(tiny: Tiny, tmp_path: Path) -> None:
    expected = tiny.pack(tmp_path / "a.edgec").read_bytes()
    (tmp_path / "b.edgec").write_bytes(b"before")
    (tmp_path / "link.edgec").symlink_to("b.edgec")
    with Artifact.open(tmp_path / "a.edgec") as artifact:
        view = artifact.view("model.onnx")
        pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, "model.onnx": b"other"})
        assert bytes(view) == b"graph"
    tiny.pack(tmp_path / "link.edgec")
    assert (tmp_path / "link.edgec").is_symlink()
    assert (tmp_path / "b.edgec").read_bytes() == expected


def test_atomic_write_leaves_nothing_when_its_block_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    def fails_elsewhere() -> None:
        with atomic_write(tmp_path / "a"):
            open(tmp_path / "missing", "rb").close()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(FileNotFoundError):
        fails_elsewhere()
    assert not list(tmp_path.iterdir())


def test_files_get_the_rights_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_atomic_write_says_that_a_link_leads_nowhere_or_elsewhere(tmp_path: Path) -> None:
    said = "a link leads to a directory that does not exist, or .* taken away"
    (tmp_path / "nowhere").symlink_to("gone/a")
    with pytest.raises(OutputError, match=said), atomic_write(tmp_path / "nowhere"):
        pass
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "now").symlink_to("one")
    (tmp_path / "next").symlink_to("two")
    with pytest.raises(OutputError, match=said), atomic_write(tmp_path / "now/a"):
        (tmp_path / "next").rename(tmp_path / "now")
    assert not (tmp_path / "two/a").exists()
