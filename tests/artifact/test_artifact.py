"""An open artifact: what it gives, and what holds after it is closed."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.artifact.forge import ENVIRONMENT, Tiny

from edgec.artifact import GOLDEN, Artifact, GoldenVector, encode_golden, pack
from edgec.errors import ArtifactError, DigestMismatchError, OutputError


@pytest.fixture
def path(tiny: Tiny, tmp_path: Path) -> Path:
    return tiny.pack(tmp_path / "a.edgec")


def test_an_artifact_gives_what_was_packed(path: Path, tiny: Tiny) -> None:
    with Artifact.open(str(path)) as artifact:
        artifact.verify()
        assert artifact.path == path
        assert artifact.size_bytes == path.stat().st_size
        assert artifact.names() == ("weights.bin", "model.onnx", GOLDEN, "report.json")
        assert {name: artifact.read(name) for name in tiny.members} == tiny.members
        assert {name: bytes(artifact.view(name)) for name in tiny.members} == tiny.members
        assert artifact.report == tiny.report
        assert artifact.manifest.model == "tiny"
        data = path.read_bytes()
        for name, member in tiny.members.items():
            assert data[artifact.offset(name) :].startswith(member)


def test_without_report_and_golden_vectors(tiny: Tiny, tmp_path: Path) -> None:
    members = {name: data for name, data in tiny.members.items() if name != GOLDEN}
    with Artifact.open(pack(tmp_path / "a.edgec", tiny.manifest, members)) as artifact:
        artifact.verify()
        assert artifact.report is None
        assert artifact.golden() == []


def test_views_are_mapped_and_read_only(path: Path) -> None:
    with Artifact.open(path) as artifact:
        view = artifact.view("weights.bin")
        assert view.readonly
        array = np.frombuffer(view, np.uint8)
        assert array.ctypes.data % 4096 == 0
        assert not array.flags.writeable
        assert np.frombuffer(artifact.view("weights.bin"), np.uint8).ctypes.data == array.ctypes.data


def test_large_payload_is_not_copied(tiny: Tiny, tmp_path: Path) -> None:
    """In another process, since the peak of this one is behind us."""
    large = tmp_path / "weights.bin"
    with large.open("wb") as file:
        file.truncate(2**28)
    path = pack(tmp_path / "a.edgec", tiny.manifest, {"weights.bin": large, "model.onnx": b"x"})
    script = (
        "import resource, sys; from edgec.artifact import Artifact\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); a = Artifact.open(sys.argv[1]); v = a.view('weights.bin'); print(peak() - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert int(run.stdout) < 2**13  # KiB; the member has 2**18


def test_views_outlive_the_artifact(path: Path, tiny: Tiny) -> None:
    artifact = Artifact.open(path)
    view = artifact.view("weights.bin")
    array = np.frombuffer(artifact.view("model.onnx"), np.uint8)
    artifact.close()
    artifact.close()
    del artifact
    path.unlink()
    gc.collect()
    assert bytes(view) == tiny.members["weights.bin"]
    assert array.tobytes() == b"graph"


def test_a_closed_artifact_says_so(path: Path) -> None:
    artifact = Artifact.open(path)
    artifact.close()
    assert artifact.manifest.model == "tiny"
    for use in (
        artifact.verify,
        artifact.golden,
        lambda: artifact.view("model.onnx"),
        lambda: artifact.report,
    ):
        with pytest.raises(ArtifactError, match="the artifact is closed; open it again"):
            use()


def test_many_artifacts_opened_and_refused_leave_no_descriptor(path: Path, tiny: Tiny) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    wrong = path.with_name("wrong.edgec")
    wrong.write_bytes(path.read_bytes()[:-1])
    for _ in range(20):
        with pytest.raises(ArtifactError):
            Artifact.open(wrong)
    opened = [Artifact.open(path) for _ in range(20)]
    views = [artifact.view("model.onnx") for artifact in opened]
    while opened:
        opened.pop().close()
    del views
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_no_such_member(path: Path) -> None:
    with Artifact.open(path) as artifact:
        for get in (artifact.view, artifact.read, artifact.offset):
            with pytest.raises(ArtifactError, match=r"no member 'x'; there are weights\.bin, model"):
                get("x")


def test_golden_vectors_are_given_back(tiny: Tiny, tmp_path: Path) -> None:
    dtypes = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    names = [f"0/inputs/{dtype}" for dtype in dtypes]
    inputs = {name: np.arange(6).reshape(2, 3).astype(name[-2:].strip("/")) for name in names}
    inputs |= {
        "big end": np.array([1, 2], ">f4"),
        "strided": np.arange(10)[::3],
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3), np.float32),
        "nan": np.array([np.nan, np.inf], np.float16),
    }
    vectors = [GoldenVector(inputs=inputs, outputs={"y": np.full(i, i)}) for i in range(12)]
    specs = tuple(replace(tiny.manifest.inputs[0], name=name) for name in inputs)
    outputs = (replace(tiny.manifest.outputs[0], name="y"),)
    manifest = replace(tiny.manifest, inputs=specs, outputs=outputs, golden={"y": {"max_abs_error": 0}})
    path = pack(tmp_path / "a.edgec", manifest, {**tiny.members, GOLDEN: encode_golden(vectors)})
    with Artifact.open(path) as artifact:
        read = artifact.golden()
    assert len(read) == 12
    for i, vector in enumerate(read):
        assert vector.outputs["y"].tolist() == [i] * i
        assert vector.inputs.keys() == inputs.keys()
        for name, array in vector.inputs.items():
            assert array.dtype == inputs[name].dtype.newbyteorder("=")
            assert array.flags.writeable
            np.testing.assert_array_equal(array, inputs[name])


def test_members_are_extracted(path: Path, tiny: Tiny, tmp_path: Path) -> None:
    with Artifact.open(path) as artifact:
        written = artifact.extract(tmp_path / "new" / "folder")
        assert list(written) == list(artifact.names())
        for name, data in tiny.members.items():
            assert written[name] == tmp_path / "new" / "folder" / name
            assert written[name].read_bytes() == data
        only = artifact.extract(tmp_path / "one", ["model.onnx"])
        assert only == {"model.onnx": tmp_path / "one" / "model.onnx"}
        assert list((tmp_path / "one").iterdir()) == [only["model.onnx"]]


def test_members_in_folders_are_extracted(tiny: Tiny, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.edgec", tiny.manifest, {**tiny.members, "a/b/c.bin": b"c"})
    with Artifact.open(path) as artifact:
        artifact.extract(tmp_path / "out")
    assert (tmp_path / "out" / "a" / "b" / "c.bin").read_bytes() == b"c"


def test_a_damaged_member_is_not_extracted(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096] ^= 1
    path.write_bytes(data)
    with Artifact.open(path) as artifact, pytest.raises(DigestMismatchError, match=r"'weights\.bin'"):
        artifact.extract(tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_extracting_where_it_cannot_be_written(path: Path) -> None:
    with Artifact.open(path) as artifact, pytest.raises(OutputError, match="cannot make the directory"):
        artifact.extract(path / "below a file")
