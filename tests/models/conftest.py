"""Real models, from the folder that EDGEC_TEST_MODELS names, and builds of them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgec.artifact import GOLDEN, Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.report import ArtifactInfo
from edgec.runtime import load

TARGETS = ("cpu-x86_64", "intel-cpu")
MOST_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Built:
    """What one build made.

    Attributes:
        artifacts: Path of each artifact, by target.
        reports: What the build says of each, by target.
        skipped: Why there is none, by target.
    """

    artifacts: Mapping[str, Path]
    reports: Mapping[str, ArtifactInfo]
    skipped: Mapping[str, str]

    def assert_sound(self, target: str) -> None:
        """Check that an artifact passed parity and its own test, and is hardly more than its payload."""
        parity = self.reports[target]["parity"]
        assert parity is not None
        assert parity["passed"]
        with Artifact.open(self.artifacts[target]) as artifact:
            members = artifact.manifest.members
            payload = sum(members[name].size for name in (*artifact.manifest.engine.files, GOLDEN))
            assert artifact.size_bytes - payload <= MOST_OVERHEAD_BYTES
        with load(self.artifacts[target]) as session:
            assert session.self_test().passed


Build = Callable[..., Built]


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of real models; the test is skipped where there is none."""
    folder = os.environ.get("EDGEC_TEST_MODELS")
    if not folder:
        pytest.skip("EDGEC_TEST_MODELS names no folder of real models")
    return Path(folder)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compile a model for both CPU targets; in fp32, where no precision is given."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the targets are x86-64, this machine is {platform.machine()}")

    def build(model: Path, *, precision: str = "fp32", **arguments: Any) -> Built:
        shapes = arguments.pop("shapes", {})
        options = CompileOptions(precision=precision, shapes=shapes, measure_s=0.2)
        result = compile_model(model, TARGETS, tmp_path_factory.mktemp("build"), options=options, **arguments)
        reports = {report["target"]: report for report in result.report["artifacts"]}
        return Built(
            artifacts={target: Path(report["path"]) for target, report in reports.items()},
            reports=reports,
            skipped={target["target"]: target["reason"] for target in result.report.get("skipped", [])},
        )

    return build
