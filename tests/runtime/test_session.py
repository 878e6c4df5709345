"""Sessions: loading, running, fallbacks, self-tests, closing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.artifact import (
    GOLDEN,
    Artifact,
    EngineSpec,
    GoldenVector,
    Pipeline,
    TensorSpec,
    encode_golden,
    pack,
)
from edgec.artifact.steps import Softmax, TopK
from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    DigestMismatchError,
    EdgecError,
    InferenceError,
    InputError,
    PipelineError,
)
from edgec.runtime import Pool, Session, load
from edgec.runtime.testing import onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

X = np.ones((1, 4), np.float32)
TENSORRT = EngineSpec(
    name="tensorrt", version=">=10", device="GPU", precision="fp16", files=("model.onnx", "weights.bin")
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny.edgec")


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with load(path) as session:
        yield session


def repacked(path: Path, members: dict[str, bytes] | None = None, **fields: Any) -> Path:
    """Pack an artifact again with other members or fields of its manifest."""
    with Artifact.open(path) as artifact:
        kept: dict[str, Any] = {name: artifact.read(name) for name in artifact.names()}
        manifest = replace(artifact.manifest, **fields)
    return pack(path, manifest, {**kept, **(members or {})})


# Loading


def test_a_session_says_what_it_is(session: Session) -> None:
    assert session.inputs == (TensorSpec("x", "float32", (1, 4)),)
    assert session.outputs == (TensorSpec("y", "float32", (1, 3)),)
    assert (session.engine, session.state, session.precision) == ("onnxruntime", "ready", "fp32")
    assert session.engine_version[0].isdigit()
    assert session.precisions == {"fp32": 1}
    assert list(session.placement) == ["CPU"]
    assert session.manifest.model == "tiny"
    assert repr(session) == "<Session tiny on onnxruntime: ready>"


def test_a_path_may_be_text(path: Path) -> None:
    with load(str(path), threads=1) as session:
        assert session.run({"x": X})["y"].shape == (1, 3)


def test_threads_below_one_are_a_wrong_argument(path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        load(path, threads=0)


def test_more_threads_than_engines_survive_are_a_wrong_argument(path: Path) -> None:
    with pytest.raises(ValueError, match="at most 1024 threads, got 100000"):
        load(path, threads=100_000)
    with pytest.raises(ValueError, match="at most 1024 threads, got 1025"):
        Pool(1, threads=1025)


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"missing\.edgec"):
        load(tmp_path / "missing.edgec")


def test_a_model_that_is_damaged_is_refused(path: Path) -> None:
    with pytest.raises(EdgecError, match="model"):
        load(repacked(path, {"model.onnx": b"\x3a\x05\x00"}))


def test_an_engine_that_does_not_exist_is_named_with_those_that_do(path: Path) -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"no backend 'antigravity'; there are: litert, onnxruntime, openvino"
    ):
        load(repacked(path, engine=replace(onnxruntime_spec(), name="antigravity")))


@pytest.mark.parametrize("location", [b"/etc/passwd", b"../abcd.bin", b"another.bin"])
def test_a_model_may_read_no_file_but_the_members_of_its_engine(
    path: Path, location: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nor may ONNX Runtime find the file where the process happens to be.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "another.bin").write_bytes(bytes(128))
    with Artifact.open(path) as artifact:
        model = artifact.read("model.onnx")
    assert model.count(b"weights.bin") == 2
    hostile = model.replace(b"weights.bin", location)
    with pytest.raises(ArtifactError, match=r"wants tensor 'w' from .*not among the members of its engine"):
        load(repacked(path, {"model.onnx": hostile}))


# Running


def test_run_gives_what_numpy_gives(path: Path, session: Session) -> None:
    with Artifact.open(path) as artifact:
        for vector in artifact.golden():
            got = session.run(vector.inputs)
            np.testing.assert_allclose(got["y"], vector.outputs["y"], atol=1e-5)


def test_wrong_inputs_are_refused_and_the_session_goes_on(session: Session) -> None:
    with pytest.raises(InputError, match=r"expected x: float32\[1, 4\], got float64\[1, 4\]"):
        session.run({"x": X.astype(np.float64)})
    assert session.run({"x": X})["y"].shape == (1, 3)


def test_inputs_may_be_any_mapping(session: Session) -> None:
    from types import MappingProxyType

    want = session.run({"x": X})["y"]
    np.testing.assert_array_equal(session.run(MappingProxyType({"x": X}))["y"], want)


def test_any_mapping_is_taken_for_dynamic_shapes_too(tmp_path: Path) -> None:
    from types import MappingProxyType

    with load(tiny_artifact(tmp_path / "n.edgec", batch="n")) as session:
        assert session.run(MappingProxyType({"x": X}))["y"].shape == (1, 3)


def test_a_dtype_that_is_equal_but_another_object_is_taken(session: Session) -> None:
    x = np.ones((1, 4), np.dtype("float32", metadata={"of": "somebody else"}))
    np.testing.assert_array_equal(session.run({"x": x})["y"], session.run({"x": X})["y"])


# Predicting


def test_predict_without_a_pipeline_gives_the_outputs(session: Session) -> None:
    np.testing.assert_array_equal(session.predict(X)["y"], session.run({"x": X})["y"])


def test_predict_runs_the_pipeline(tmp_path: Path) -> None:
    pipeline = Pipeline(postprocess=(Softmax(), TopK(k=2)), labels=("ant", "bee", "cat"))
    path = tiny_artifact(tmp_path / "labelled.edgec", pipeline=pipeline)
    with load(path) as session:
        prediction = session.predict(X[0])
        scores = session.run({"x": X})["y"][0]
    best = int(scores.argmax())
    assert prediction["classes"][0] == best
    assert prediction["labels"][0] == ("ant", "bee", "cat")[best]
    assert len(prediction["scores"]) == 2


def test_a_sample_that_does_not_fit_is_refused(session: Session) -> None:
    with pytest.raises(PipelineError):
        session.predict("a text")


# Fallback


def test_an_unavailable_engine_runs_on_the_declared_fallback_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tiny_artifact(tmp_path / "jetson.edgec", engine=TENSORRT, fallback=onnxruntime_spec())
    with caplog.at_level(logging.WARNING, logger="edgec.runtime"), load(path) as session:
        session.run({"x": X})
        session.run({"x": X})
        assert (session.state, session.engine) == ("fallback", "onnxruntime")
        assert session.precision == "fp32", "the fallback's own, not what the engine promised"
        assert session.self_test().passed
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tensorrt on GPU is unavailable" in record.message
    assert "running on the declared fallback, onnxruntime on CPU" in record.message


def test_the_engine_itself_warns_of_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with load(path):
        assert caplog.records == []


def test_a_fallback_can_be_refused(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "jetson.edgec", engine=TENSORRT, fallback=onnxruntime_spec())
    with pytest.raises(
        BackendUnavailableError, match=r"CUDA driver.*fallback, onnxruntime on CPU, is not allowed"
    ):
        load(path, allow_fallback=False)


def test_without_a_fallback_the_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"CUDA driver.*declares no fallback"):
        load(tiny_artifact(tmp_path / "jetson.edgec", engine=TENSORRT))


def test_a_model_that_its_engine_refuses_does_not_fall_back(path: Path) -> None:
    broken = repacked(path, {"model.onnx": b"\x3a\x00"}, fallback=onnxruntime_spec())
    with pytest.raises(EdgecError) as refusal:
        load(broken)
    assert not isinstance(refusal.value, BackendUnavailableError)


# Golden vectors


def test_the_self_test_passes_on_a_sound_artifact(session: Session) -> None:
    result = session.self_test()
    assert result.passed
    assert result.vectors == 2
    assert all(output.max_abs_error <= output.tolerance for output in result.outputs)


def test_it_fails_where_something_else_is_computed(path: Path) -> None:
    vector = GoldenVector(inputs={"x": X}, outputs={"y": np.full((1, 3), 7, np.float32)})
    with load(repacked(path, {GOLDEN: encode_golden([vector])}), self_test=False) as session:
        result = session.self_test()
    assert not result.passed
    assert result.worst is not None
    assert result.worst.output == "y"
    assert result.worst.max_abs_error > 1


def test_golden_vectors_that_are_damaged_are_refused(path: Path) -> None:
    with Artifact.open(path) as artifact:
        at = artifact.offset(GOLDEN) + 200
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with load(path, self_test=False) as session, pytest.raises(DigestMismatchError):
        session.self_test()
    with pytest.raises(DigestMismatchError):
        load(path)


# Closing


def test_a_closed_session_refuses_everything_and_closes_again(session: Session) -> None:
    session.close()
    session.close()
    assert repr(session) == "<Session tiny on onnxruntime: closed>"
    for use in (
        lambda: session.run({"x": X}),
        lambda: session.predict(X),
        session.self_test,
        lambda: session.precision,
        lambda: session.placement,
        lambda: session.engine_version,
    ):
        with pytest.raises(InferenceError, match="closed"):
            use()


def test_a_file_may_be_replaced_while_a_session_runs_it(path: Path, session: Session) -> None:
    want = session.run({"x": X})["y"]
    path.unlink()
    np.testing.assert_array_equal(session.run({"x": X})["y"], want)


def test_a_failed_load_leaves_no_descriptor(path: Path) -> None:
    broken = repacked(path, {"model.onnx": b"\x3a\x05\x00"})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(EdgecError):
            load(broken)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
