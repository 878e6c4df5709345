"""Another model in a session that is being called."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.test_load_checks import Told, install, npu_artifact

from edgec.artifact import GOLDEN, GoldenVector, Manifest, Pipeline, TensorSpec, encode_golden, pack
from edgec.artifact.steps import Softmax, TopK
from edgec.errors import ArtifactError, IncompatibleArtifactError, InferenceError, SelfTestError
from edgec.runtime import Session, load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

X = {"x": np.ones((1, 4), np.float32)}


def scaled(path: Path, factor: float, *, size: int = 4, golden: float | None = None, **fields: Any) -> Path:
    """Pack ``y = factor * x``."""
    inputs, outputs = (TensorSpec("x", "float32", (1, size)),), (TensorSpec("y", "float32", (1, size)),)
    members = onnx_members(
        [Node("Mul", ["x", "f"], ["y"])], inputs, outputs, {"f": np.array([factor], np.float32)}
    )
    limits: dict[str, dict[str, float]] = {}
    if golden is not None:
        vector = GoldenVector(
            {"x": np.ones((1, size), np.float32)}, {"y": np.full((1, size), golden, np.float32)}
        )
        members[GOLDEN] = encode_golden([vector])
        limits = {"y": {"max_abs_error": 1e-6}}
    manifest = Manifest(
        model="scaled", model_version=str(factor), target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False), golden=limits, **fields,
    )  # fmt: skip
    return pack(path, manifest, members)


def answer(session: Session) -> float:
    return float(session.run(X)["y"][0, 0])


def test_a_swap_changes_what_every_kind_of_call_gives(tmp_path: Path) -> None:
    with load(scaled(tmp_path / "a.edgec", 2)) as session:
        bound, buffer = session.bind(X), np.empty((1, 4), np.float32)
        session.swap(scaled(tmp_path / "b.edgec", 3, golden=3))
        assert answer(session) == 3
        assert bound()["y"][0, 0] == 3
        assert session.run(X, {"y": buffer})["y"][0, 0] == 3
        assert session.submit(X).result(60)["y"][0, 0] == 3
        assert session.predict(X)["y"][0, 0] == 3
        assert session.manifest.model_version == "3"
        assert session.self_test().vectors == 1


def test_predictions_use_the_pipeline_of_the_model_they_run(tmp_path: Path) -> None:
    def pipeline(labels: tuple[str, ...]) -> Pipeline:
        return Pipeline(postprocess=(Softmax(), TopK(k=1)), labels=labels)

    sample = np.array([0, 0, 1, 0], np.float32)
    with load(scaled(tmp_path / "a.edgec", 1, pipeline=pipeline(("a", "b", "c", "d")))) as session:
        assert session.predict(sample)["labels"] == ["c"]
        session.swap(scaled(tmp_path / "b.edgec", 1, pipeline=pipeline(("w", "x", "y", "z"))))
        assert session.predict(sample)["labels"] == ["y"]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda p: scaled(p, 3, golden=9), SelfTestError),
        (lambda p: scaled(p, 3, size=5), IncompatibleArtifactError),
        (lambda p: p, ArtifactError),
    ],
    ids=["self-test", "interface", "missing"],
)
def test_a_swap_that_fails_leaves_the_old_model(tmp_path: Path, make: Any, error: type[Exception]) -> None:
    with load(scaled(tmp_path / "a.edgec", 2)) as session:
        with pytest.raises(error):
            session.swap(make(tmp_path / "b.edgec"))
        assert answer(session) == 2
        assert session.manifest.model_version == "2"
        assert "a.edgec" in Path("/proc/self/maps").read_text()
        assert "b.edgec" not in Path("/proc/self/maps").read_text()


def test_a_closed_session_takes_no_other_model(tmp_path: Path) -> None:
    session = load(scaled(tmp_path / "a.edgec", 2))
    session.close()
    with pytest.raises(InferenceError, match="closed"):
        session.swap(scaled(tmp_path / "b.edgec", 3))
    with pytest.raises(InferenceError, match="closed"):
        session.run(X)


def test_a_new_model_is_loaded_as_the_old_one_was(tmp_path: Path) -> None:
    with load(scaled(tmp_path / "a.edgec", 2), self_test=False) as session:
        session.swap(scaled(tmp_path / "b.edgec", 3, golden=9))
        assert answer(session) == 3


class Slow(Told):
    """A program whose call waits until it may go on, and that refuses once it is closed."""

    begun = Event()
    go = Event()
    closed = False

    def run(self, inputs: Any) -> dict[str, NDArray[Any]]:
        """Wait, then refuse if closed."""
        if self.scale == 1.0:
            self.begun.set()
            self.go.wait(60)
        if self.closed:
            raise InferenceError("the session is closed: load the artifact again")
        return super().run(inputs)

    def close(self) -> None:
        """Refuse from now on."""
        self.closed = True


def test_a_call_that_meets_a_closed_program_goes_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = npu_artifact(tmp_path / "a.edgec")
    old = Slow({"NPU": 1})
    install(monkeypatch, old)
    session = load(path, self_test=False)
    install(monkeypatch, Slow({"NPU": 1}, scale=2.0))
    with ThreadPoolExecutor(1) as caller, caplog.at_level(logging.WARNING, logger="edgec.runtime"):
        running = caller.submit(session.run, X)
        assert old.begun.wait(60)
        session.swap(path, drain_s=0.01)
        assert old.closed
        old.go.set()
        assert running.result(60)["y"][0, 0] == 2
    assert "still run" in caplog.text


def test_no_call_fails_while_models_are_swapped(tmp_path: Path) -> None:
    paths = [scaled(tmp_path / "a.edgec", 2), scaled(tmp_path / "b.edgec", 3)]
    over, calls = Event(), [0] * 3
    with load(paths[0], threads=1) as session, ThreadPoolExecutor(3) as callers:

        def use(number: int) -> None:
            bound = session.bind(X)
            buffer = np.empty((1, 4), np.float32)
            while not over.is_set():
                values = [
                    answer(session),
                    float(bound()["y"][0, 0]),
                    float(session.run(X, {"y": buffer})["y"][0, 0]),
                ]
                values.append(float(session.predict(X)["y"][0, 0]))
                assert set(values) <= {2.0, 3.0}
                calls[number] += 1
                sleep(0.0005)

        users = [callers.submit(use, i) for i in range(3)]
        try:
            i = 0
            # On a busy machine all are swapped before anybody has called often.
            while i < 6 or (min(calls) <= 10 and not any(user.done() for user in users)):
                session.swap(paths[(i + 1) % 2])
                assert answer(session) == (3 if i % 2 == 0 else 2)
                i += 1
        finally:
            over.set()
        for user in users:
            user.result(60)
    assert min(calls) > 10
