"""What loading checks: where a model runs, how finely, and whether it computes what it should."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.test_session import repacked

from edgec.artifact import GOLDEN, Artifact, EngineSpec, GoldenVector, encode_golden, pack
from edgec.errors import PlacementError, SelfTestError
from edgec.runtime import load
from edgec.runtime._load_test import MOST_VECTORS
from edgec.runtime._placement import placement_problems
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@dataclass
class Told:
    """A program that tells where it runs, and counts its calls."""

    placement: Mapping[str, int]
    precisions: Mapping[str, int] = field(default_factory=dict)
    engine_version: str = "1"
    precision: str = "fp32"
    calls: int = 0
    scale: float = 1.0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Compute what `tiny_artifact` promises of zeros, times `scale`."""
        self.calls += 1
        return {"y": (inputs["x"][:, :3] * self.scale).astype(np.float32)}

    def nodes_elsewhere(self) -> list[str]:
        """Name as many nodes as are on the CPU."""
        return [f"Softmax_{i}" for i in range(self.placement.get("CPU", 0))]

    def close(self) -> None:
        """Hold nothing."""


@dataclass
class Engine:
    """A third party's engine, that gives one program."""

    program: Told

    def load(self, *_: object) -> Told:
        """Give it."""
        return self.program


def spec(**changes: Any) -> EngineSpec:
    return replace(
        EngineSpec(name="npu", version=">=1", device="NPU", precision="fp32", files=("model.onnx",)),
        **changes,
    )


def install(monkeypatch: pytest.MonkeyPatch, program: Told) -> None:
    monkeypatch.setattr("edgec.runtime._session.get_backend", lambda _: Engine(program))


def npu_artifact(path: Path, vectors: int = 2) -> Path:
    """Pack an artifact for an engine that gives back the first three of four numbers."""
    inputs = [np.full((1, 4), i + 1, np.float32) for i in range(vectors)]
    golden = [GoldenVector(inputs={"x": x}, outputs={"y": x[:, :3]}) for x in inputs]
    return repacked(tiny_artifact(path, engine=spec()), {GOLDEN: encode_golden(golden)})


# Placement


def test_a_model_that_partly_runs_elsewhere_is_refused_with_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npu_artifact(tmp_path / "a.edgec")
    install(monkeypatch, Told({"NPU": 20, "CPU": 2}))
    with pytest.raises(
        PlacementError, match=r"promised is the NPU.*2 on CPU \(Softmax_0, Softmax_1\).*strict"
    ):
        load(path)


def test_it_is_loaded_if_asked_for_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = npu_artifact(tmp_path / "a.edgec")
    install(monkeypatch, Told({"NPU": 20, "CPU": 1}))
    with caplog.at_level(logging.WARNING, logger="edgec.runtime"), load(path, strict=False) as session:
        session.run({"x": np.ones((1, 4), np.float32)})
        assert dict(session.placement) == {"NPU": 20, "CPU": 1}
    (record,) = caplog.records
    assert "1 on CPU (Softmax_0)" in record.message


@pytest.mark.parametrize(
    ("promised", "runs", "refused"),
    [
        ("fp32", {"fp32": 3}, False),
        ("fp32", {"fp32": 3, "bf16": 1}, True),
        ("fp16", {"fp32": 2}, False),
        ("fp16", {"bf16": 2}, True),
        ("int8", {"int8": 9, "fp32": 1}, False),
        ("int8", {"int8": 9, "fp16": 1}, True),
        ("mixed", {"int8": 9, "bf16": 1}, False),
        ("fp32", {}, False),
    ],
)
def test_coarser_arithmetic_than_promised_is_a_problem(
    promised: str, runs: dict[str, int], refused: bool
) -> None:
    program = Told({"NPU": 10}, precisions=runs)
    problems = placement_problems(program, spec(precision=promised))
    assert bool(problems) is refused, problems


@pytest.mark.parametrize(
    ("device", "placement"),
    [
        ("CPU-reference", {"CPU": 3}),
        ("GPU", {"CUDA": 3}),
        ("GPU.1", {"GPU.1": 3}),
        ("GPU", {}),
        ("GPU", {"CPU": 0}),
    ],
)
def test_a_place_has_several_names(device: str, placement: dict[str, int]) -> None:
    assert placement_problems(Told(placement), spec(device=device)) == []


def test_many_nodes_are_counted_not_all_listed() -> None:
    (problem,) = placement_problems(Told({"CPU": 30}), spec())
    assert "Softmax_7 and 22 more" in problem
    assert "Softmax_8" not in problem


# Self-test


def test_a_device_that_computes_something_else_is_found_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    path = npu_artifact(tmp_path / "a.edgec")
    install(monkeypatch, Told({"NPU": 1}, scale=1.5))
    for _ in range(2):  # a failure is not remembered as anything
        with pytest.raises(SelfTestError, match=r"something else.*npu 1 on NPU.*output 'y'.*largest error 1"):
            load(path)
    assert not user_cache.exists()
    load(path, self_test=False).close()


def test_it_is_made_once_for_each_artifact_and_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path
) -> None:
    path = npu_artifact(tmp_path / "a.edgec")
    program = Told({"NPU": 1})
    install(monkeypatch, program)
    load(path).close()
    assert program.calls == 2
    load(path).close()
    assert program.calls == 2
    program.engine_version = "2"
    load(path).close()
    assert program.calls == 4
    assert len(list((user_cache / "edgec/self-tests").iterdir())) == 2


def test_a_copy_is_tested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    path, copy = npu_artifact(tmp_path / "a.edgec"), tmp_path / "b.edgec"
    program = Told({"NPU": 1})
    install(monkeypatch, program)
    load(path).close()
    copy.write_bytes(path.read_bytes())
    load(copy).close()
    assert program.calls == 4
    os.utime(path, ns=(0, 0))  # as whoever writes into it leaves it
    load(path).close()
    assert program.calls == 6


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Told({"NPU": 1})
    install(monkeypatch, program)
    load(npu_artifact(tmp_path / "a.edgec", vectors=20)).close()
    assert program.calls == MOST_VECTORS
    monkeypatch.setattr("edgec.runtime._load_test.MOST_SECONDS", -1.0)
    load(npu_artifact(tmp_path / "b.edgec", vectors=3)).close()
    assert program.calls == MOST_VECTORS + 1


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, user_cache: Path) -> None:
    user_cache.write_text("a file where a directory should be")
    with load(tiny_artifact(tmp_path / "a.edgec")) as session:
        assert session.self_test().passed


def test_marks_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_cache: Path) -> None:
    monkeypatch.setattr("edgec.runtime._load_test._MOST_KEPT", 3)
    program = Told({"NPU": 1})
    install(monkeypatch, program)
    path = npu_artifact(tmp_path / "a.edgec")
    for version in range(6):
        program.engine_version = str(version)
        load(path).close()
    assert len(list((user_cache / "edgec/self-tests").iterdir())) == 3


def test_a_refused_program_is_closed_and_its_artifact_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(Told, "close", lambda _: closed.append("program"))
    ends = Artifact.close

    def close(artifact: Artifact) -> None:
        closed.append("artifact")
        ends(artifact)

    monkeypatch.setattr(Artifact, "close", close)
    path = npu_artifact(tmp_path / "a.edgec")
    closed.clear()
    install(monkeypatch, Told({"CPU": 1}))
    with pytest.raises(PlacementError):
        load(path)
    assert closed == ["program", "artifact"]


@pytest.mark.parametrize(
    ("arch", "warned"), [("x86_64", True), ("aarch64", False), ("any", False), (None, False)]
)
def test_another_kind_of_cpu_than_the_targets_is_told(
    arch: str | None,
    warned: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")  # as macOS calls what Linux calls aarch64
    path = tiny_artifact(tmp_path / "tiny.edgec")
    with Artifact.open(path) as artifact:
        provenance = {} if arch is None else {"target": {"arch": arch}}
        manifest = replace(artifact.manifest, provenance=provenance)
        members = {name: artifact.read(name) for name in ("weights.bin", "model.onnx", GOLDEN)}
        made = pack(tmp_path / "made.edgec", manifest, members)
    with caplog.at_level(logging.WARNING), load(made) as session:
        assert session.self_test().passed
    told = [
        r.getMessage() for r in caplog.records if "whose CPU is x86_64, and this is aarch64" in r.getMessage()
    ]
    assert len(told) == warned
