"""Patches lead from one artifact to the next, and are small where little changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zstandard", reason="patches need the extra agent")
pytest.importorskip("detools", reason="patches need the extra agent")

from tests.delta.files import digest, onnx_artifact, packed, specs, tuned, weights

from edgec.delta import DeltaInfo, apply_delta, header_of, make_delta
from edgec.delta._tensors import pairs, places
from edgec.errors import DeltaError, OutputError
from edgec.runtime.testing import onnx_members


def round_trip(old: Path, new: Path, **options: Any) -> DeltaInfo:
    """Make a patch and apply it; what comes out is the new file."""
    patch, out = new.with_suffix(".delta"), new.with_suffix(".out")
    made = make_delta(old, new, patch, **{"worth": 2.0, "level": 5, **options})
    assert made is not None
    assert (made.size, made.sha256) == (patch.stat().st_size, digest(patch.read_bytes()))
    apply_delta(old, patch, out, length=made.new_length, sha256=made.new_sha256)
    assert out.read_bytes() == new.read_bytes()
    assert sorted(p.name for p in out.parent.iterdir() if p.name.startswith(".")) == []
    return made


def test_fine_tuned_weights_are_patched_number_by_number(tmp_path: Path) -> None:
    before = weights(rows=256, columns=256)
    old, new = onnx_artifact(tmp_path / "1", before, "1"), onnx_artifact(tmp_path / "2", tuned(before), "2")
    made = round_trip(old, new)
    assert made.method.startswith("tensors+")
    assert made.size < 0.62 * new.stat().st_size
    plain = (tmp_path / "3", tmp_path / "4")
    for path, source in zip(plain, (old, new), strict=True):
        path.write_bytes(source.read_bytes() + b"no artifact")
    assert round_trip(*plain).size > 1.3 * made.size


def test_a_changed_last_layer_costs_no_more_than_that_layer(tmp_path: Path) -> None:
    before = weights(rows=128, columns=64)
    after = {**before, "w2": tuned(before, 1.0)["w2"]}
    old, new = onnx_artifact(tmp_path / "1", before, "1"), onnx_artifact(tmp_path / "2", after, "2")
    # What else changes are digests: of members, of the content, and checksums.
    assert round_trip(old, new).size < after["w2"].nbytes + 1500


def test_a_layer_of_another_shape_leaves_the_others_to_the_planes(tmp_path: Path) -> None:
    before, after = weights(rows=64, columns=40), weights(rows=64, columns=41)
    after["w1"] = tuned(before)["w1"]
    old, new = onnx_artifact(tmp_path / "1", before, "1"), onnx_artifact(tmp_path / "2", after, "2")
    assert [(p.length, p.width) for p in pairs(old, new)] == [(after["w1"].nbytes, 4)]
    round_trip(old, new)
    round_trip(new, old)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_payloads_have_tensors(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from edgec.runtime.testing.openvino import openvino_members, openvino_spec

    before = weights()
    paths = []
    for version, arrays in (("1", before), ("2", tuned(before))):
        members = openvino_members(onnx_members(*specs(arrays), arrays), precision=precision)
        engine = openvino_spec(precision=precision)
        paths.append(packed(tmp_path / version, members, engine, arrays, version))
    width = 4 if precision == "fp32" else 2
    sizes = sorted(w.size * width for w in before.values())
    assert sorted(p.length for p in pairs(*paths) if p.width == width) == sizes
    round_trip(*paths)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tflite_payloads_have_tensors(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
    from edgec.runtime.testing.litert import litert_members, litert_spec

    before = weights()
    paths = []
    for version, arrays in (("1", before), ("2", tuned(before, 0.01))):
        scaled = {n: (w if dtype == "float32" else (w * 500).astype(np.int8)) for n, w in arrays.items()}
        members = litert_members(*specs(arrays), scaled)
        paths.append(packed(tmp_path / version, members, litert_spec(), arrays, version))
    width = np.dtype(dtype).itemsize
    assert sorted((p.length, p.width) for p in pairs(*paths)) == sorted(
        (w.size * width, width) for w in before.values()
    )
    round_trip(*paths)


def test_places_are_where_the_weights_are(tmp_path: Path) -> None:
    arrays = weights()
    path = onnx_artifact(tmp_path / "1", arrays, "1")
    found = {p.name: path.read_bytes()[p.start : p.start + p.length] for p in places(path)}
    assert found == {name: w.tobytes() for name, w in arrays.items()}


@pytest.mark.parametrize("limit", [0, 2**20], ids=["prefix", "bsdiff"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b"new"),
        (b"old", b"old"),
        (b"x" * 5000, b"y" * 7000),
        (bytes(range(256)) * 40, b"begin" + bytes(range(256)) * 39 + b"end"),
        (bytes(range(256)) * 40, bytes(range(200, 256)) * 40),
    ],
    ids=["from nothing", "same", "other", "moved", "shifted"],
)
def test_any_files_can_be_patched(tmp_path: Path, old: bytes, new: bytes, limit: int) -> None:
    (tmp_path / "1").write_bytes(old)
    (tmp_path / "2").write_bytes(new)
    round_trip(tmp_path / "1", tmp_path / "2", worth=1e9, bsdiff_limit=limit)


def test_int8_is_patched_by_whatever_is_smallest(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.integers(-90, 90, 60_000).astype(np.int8)
    y = x + (random.random(len(x)) < 0.03).astype(np.int8)
    (tmp_path / "1").write_bytes(x.tobytes())
    (tmp_path / "2").write_bytes(b"new" + y.tobytes())
    made = round_trip(tmp_path / "1", tmp_path / "2")
    assert made.method == "bsdiff"
    assert made.size == min(made.tried.values()) < 0.2 * len(x)


@pytest.mark.slow
def test_bytes_that_moved_are_found_across_pieces(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(5_500_000)
    (tmp_path / "1").write_bytes(data)
    (tmp_path / "2").write_bytes(data[:2_000_000] + b"here" + data[2_000_000:])
    assert round_trip(tmp_path / "1", tmp_path / "2", bsdiff_limit=0, level=19).size < 10_000


def test_a_patch_that_saves_too_little_is_not_written(tmp_path: Path) -> None:
    for name, seed in (("1", 0), ("2", 1)):
        (tmp_path / name).write_bytes(np.random.default_rng(seed).bytes(5000))
    assert make_delta(tmp_path / "1", tmp_path / "2", tmp_path / "p") is None
    assert not (tmp_path / "p").exists()


def test_an_empty_file_needs_no_patch(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"old")
    (tmp_path / "2").write_bytes(b"")
    assert make_delta(tmp_path / "1", tmp_path / "2", tmp_path / "p") is None


def test_the_same_files_give_the_same_patch(tmp_path: Path) -> None:
    before = weights()
    old, new = onnx_artifact(tmp_path / "1", before, "1"), onnx_artifact(tmp_path / "2", tuned(before), "2")
    patches = []
    for name in ("a", "b"):
        make_delta(old, new, tmp_path / name, worth=2, level=5)
        patches.append((tmp_path / name).read_bytes())
    assert patches[0] == patches[1]
    header = header_of(tmp_path / "a")
    assert (header.old_sha256, header.new_sha256) == (digest(old.read_bytes()), digest(new.read_bytes()))


def test_the_old_file_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a" * 1000)
    (tmp_path / "2").write_bytes(b"a" * 999 + b"b")
    made = make_delta(tmp_path / "1", tmp_path / "2", tmp_path / "p")
    assert made is not None
    apply_delta(tmp_path / "1", tmp_path / "p", tmp_path / "1", length=1000, sha256=made.new_sha256)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_what_a_killed_process_left_aside_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a" * 1000)
    (tmp_path / "2").write_bytes(b"a" * 999 + b"b")
    (tmp_path / "aside").write_bytes(b"half" * 1000)
    made = make_delta(tmp_path / "1", tmp_path / "2", tmp_path / "p")
    assert made is not None
    options: dict[str, Any] = {"length": 1000, "sha256": made.new_sha256, "aside": tmp_path / "aside"}
    apply_delta(tmp_path / "1", tmp_path / "p", tmp_path / "out", **options)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "2").read_bytes()
    assert not (tmp_path / "aside").exists()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a")
    with pytest.raises(DeltaError, match="missing"):
        make_delta(tmp_path / "1", tmp_path / "missing", tmp_path / "p")
    with pytest.raises(DeltaError, match=r"the patch .*missing"):
        apply_delta(tmp_path / "1", tmp_path / "missing", tmp_path / "o", length=1, sha256="0" * 64)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeltaError, match="is no file"):
        apply_delta(tmp_path / "pipe", tmp_path / "1", tmp_path / "o", length=1, sha256="0" * 64)


def test_a_directory_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"a" * 1000)
    (tmp_path / "2").write_bytes(b"a" * 999 + b"b")
    made = make_delta(tmp_path / "1", tmp_path / "2", tmp_path / "p")
    assert made is not None
    out = tmp_path / "no" / "out"
    with pytest.raises(OutputError):
        apply_delta(tmp_path / "1", tmp_path / "p", out, length=1000, sha256=made.new_sha256)


_APPLY = """
import sys
from pathlib import Path
from edgec.delta import apply_delta, header_of
old, patch, out = map(Path, sys.argv[1:])
header = header_of(patch)
apply_delta(old, patch, out, length=header.new_length, sha256=header.new_sha256)
status = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensors", "prefix"])
def test_memory_stays_small_for_a_hundred_megabytes(tmp_path: Path, kind: str) -> None:
    before = weights(rows=5000, columns=5000 if kind == "tensors" else 2500)
    after = {**before, "w2": before["w2"] + np.float32(1e-5)}
    old, new = onnx_artifact(tmp_path / "1", before, "1"), onnx_artifact(tmp_path / "2", after, "2")
    if kind == "prefix":
        for path in (old, new):
            path.write_bytes(path.read_bytes() + b"no artifact")
    made = make_delta(old, new, tmp_path / "p", worth=2, level=1)
    assert made is not None
    assert kind in made.method
    command = [sys.executable, "-c", _APPLY, *map(str, (old, tmp_path / "p", tmp_path / "out"))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) / 1024 < 90  # of which Python, numpy and zstandard have about 30
