"""The health gate, shadow and probation: a zoo of models that verify but misbehave, and of healthy ones."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.artifact import Budgets
from edgec.device_agent._findings import Finding, wilson_bounds
from edgec.device_agent._health import HealthBudgets, HealthReport, check_health
from edgec.device_agent._judging import (
    ProbationCriteria,
    ShadowCriteria,
    ShadowGate,
    judge_probation,
    population_shift,
)
from edgec.runtime import Host, load
from edgec.runtime._window import Window
from edgec.runtime.testing import tiny_artifact
from edgec.sketch import Histogram, QuantileSketch

pytest.importorskip("onnxruntime", reason="the extra `onnxruntime` is not installed")


def words(report: HealthReport) -> set[str]:
    """Return the words of the findings."""
    return {finding.word for finding in report.findings}


def test_a_tiny_model_is_healthy_and_quickly_tried(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    report = check_health(path, previous=path)
    assert report.findings == ()
    assert (report.passed, report.phase) == (True, "done")
    assert report.figures["calls"] == 200
    assert report.figures["agreement"] == 1.0
    assert 0 < report.figures["latency_p50_ms"] <= report.figures["latency_p95_ms"]


def test_a_file_that_is_no_artifact_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "x.edgec").write_bytes(b"nothing")
    report = check_health(tmp_path / "x.edgec", previous=tmp_path / "x.edgec")
    assert words(report) == {"artifact"}
    (note,) = report.notes
    assert note.startswith("the previous model: ")


@pytest.mark.slow
def test_budgets_of_the_release_are_held_here(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    report = check_health(path, budgets=HealthBudgets(latency_p95_ms=1e-6), calls=40)
    (latency,) = report.findings
    assert (latency.word, latency.limit) == ("latency", 1e-6)
    assert latency.figure == report.figures["latency_p95_ms"]
    report = check_health(path, budgets=HealthBudgets(memory_mib=0.1), calls=40)
    (memory,) = report.findings
    assert (memory.word, memory.limit, memory.figure) == ("memory", 0.1, report.figures["memory_mib"])


def test_wilson_bounds_hold_what_is_known() -> None:
    assert wilson_bounds(0, 0) == (0.0, 1.0)
    low, high = wilson_bounds(90, 100)
    assert 0.83 < low < 0.9 < high < 0.95
    assert wilson_bounds(0, 10)[1] == pytest.approx(0.213, abs=0.01)


def probation_window(calls: int = 5000, *, seed: int = 0, **changes: Any) -> Window:
    """Return what is seen of a healthy model."""
    random = np.random.default_rng(seed)
    latency, confidence = QuantileSketch(), Histogram(np.linspace(0.05, 0.95, 10))
    latency.add_many(random.lognormal(1, 0.2, calls))
    confidence.add_many(random.beta(8, 2, calls))
    classes = np.bincount(random.integers(0, 10, calls), minlength=10)
    window = Window(
        model="m", model_version="1", artifact="sha256:00", engine="e", engine_version="1", since=0.0,
        seconds=60.0, calls=calls, latency_ms=latency, sampled=calls, confidence=confidence,
        classes={i: int(n) for i, n in enumerate(classes)},
    )  # fmt: skip
    return replace(window, **changes)


def slower(times: float) -> QuantileSketch:
    """Return latencies so many times larger."""
    sketch = QuantileSketch()
    sketch.add_many(np.random.default_rng(1).lognormal(1, 0.2, 5000) * times)
    return sketch


def unsure() -> Histogram:
    """Return confidences of a model that knows nothing."""
    histogram = Histogram(np.linspace(0.05, 0.95, 10))
    histogram.add_many(np.random.default_rng(1).beta(2, 8, 5000))
    return histogram


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, set()),
        ({"errors": {"InferenceError": 300}}, {"errors"}),
        ({"non_finite": 300}, {"non_finite"}),
        ({"errors": {"InferenceError": 2}, "non_finite": 2}, set()),
        ({"latency_ms": slower(10)}, {"latency"}),
        ({"latency_ms": slower(1.5)}, set()),
        ({"classes": {3: 5000}}, {"shift"}),
        ({"confidence": unsure()}, {"shift"}),
    ],
)
def test_probation_judges_what_was_observed(changes: dict[str, Any], expected: set[str]) -> None:
    verdict = judge_probation(probation_window(seed=1, **changes), probation_window())
    assert {f.word for f in verdict.findings} == expected
    assert verdict.outcome == ("fail" if expected else "pass")


def test_probation_says_nothing_of_few_calls() -> None:
    few = probation_window(50, classes={3: 50})
    assert judge_probation(few, probation_window()).outcome == "inconclusive"
    some = probation_window(500, classes={3: 500})
    assert judge_probation(some, probation_window()).outcome == "pass"  # too few for distributions
    assert judge_probation(probation_window()).outcome == "pass"
    assert judge_probation(probation_window(0), probation_window(0)).outcome == "inconclusive"
    strict = ProbationCriteria(least=10_000)
    assert judge_probation(probation_window(), criteria=strict).outcome == "inconclusive"


def test_errors_that_the_model_before_had_too_are_no_reason_to_go_back() -> None:
    errors = {"InputError": 300}
    bad = probation_window(errors=errors)
    assert judge_probation(bad, bad).outcome == "pass"


def test_a_shift_by_chance_is_seldom_seen_and_a_real_one_always() -> None:
    random = np.random.default_rng(0)
    same = [
        population_shift(*(random.multinomial(1000, [0.05] * 20).astype(float) for _ in range(2)))[0]
        for _ in range(500)
    ]
    assert abs(np.mean(same)) < 0.005  # without bias
    assert max(same) < 0.1
    shift, distance = population_shift(np.array([900.0, 100.0]), np.array([100.0, 900.0]))
    assert shift > 3
    assert distance == pytest.approx(0.8)


def test_a_shadow_of_the_same_model_passes_and_of_few_calls_nothing_is_said(tmp_path: Path) -> None:
    with Host() as host:
        host.add("tiny", tiny_artifact(tmp_path / "1.edgec"), "1")
        host.add("tiny", tiny_artifact(tmp_path / "2.edgec"), "2")
        gate = ShadowGate(host, "tiny", "2", criteria=ShadowCriteria(slowdown=1000), clock=lambda: 5.0)
        for i in range(150):
            if i == 50:
                assert gate.wait(60)
                assert gate.verdict().outcome == "inconclusive"
            x = np.random.default_rng(i).standard_normal((1, 4)).astype(np.float32)
            host.run("tiny", {"x": x})
            gate.wait(60)
        verdict = gate.stop()
    assert (verdict.outcome, verdict.findings) == ("pass", ())
    assert verdict.figures["compared"] == 150
    assert verdict.figures["agreement"] == 1.0


def test_findings_are_json_even_where_figures_are_not() -> None:
    finding = Finding(word="golden", message="m", figure=float("inf"), limit=1.0)
    assert finding.to_dict() == {"word": "golden", "message": "m", "figure": None, "limit": 1.0}


# -- the zoo


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the package of an engine that misbehaves."""
    pytest.importorskip("onnx", reason="the zoo is built with onnx, of the extra `compiler`")
    from tests.device_agent.poison import install_engine

    directory = tmp_path_factory.mktemp("engine")
    install_engine(directory)
    return directory


@pytest.fixture
def with_engine(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes find that engine."""
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(engine), before])))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the model that serves, ``base.edgec``."""
    pytest.importorskip("onnx", reason="the zoo is built with onnx, of the extra `compiler`")
    from tests.device_agent.poison import artifact

    directory = tmp_path_factory.mktemp("zoo")
    artifact(directory / "base.edgec")
    return directory


def poisons() -> dict[str, tuple[dict[str, Any], str, str]]:
    """Return by name: how it is made, the gate that stops it, and the word of a finding."""
    from tests.device_agent import poison as p

    return {
        "NaN for a black image": ({"change": p.nan_for_black}, "health", "non_finite"),
        "NaN for some images": ({"change": p.nan_sometimes}, "shadow", "failures"),
        "constant output": ({"change": p.constant}, "health", "constant"),
        "swapped labels": ({"change": p.reordered([*range(1, 10), 0])}, "health", "agreement"),
        "two labels swapped": ({"change": p.reordered([0, 1, 2, 8, 4, 5, 6, 7, 3, 9])}, "shadow",
                               "agreement"),
        "labels in another order": ({"labels": tuple("1234567890")}, "health", "labels"),
        "10 times the latency": ({"change": p.slow}, "health", "latency"),
        "memory blow-up": ({"change": p.hungry, "every": 50}, "health", "memory"),
        "wrong scale": ({"change": p.wrong_scale}, "health", "scale"),
        "pixels divided by 255": ({"change": p.set_scale(1 / 255)}, "health", "agreement"),
        "black taken for white": ({"change": p.inverted}, "shadow", "agreement"),
        "rows taken for columns": ({"change": p.sideways}, "health", "agreement"),
        "crash at the 100th call": ({"plan": {"what": "crash", "at": 100}}, "health", "crash"),
        "hang at the 30th call": ({"plan": {"what": "hang", "at": 30}}, "health", "hang"),
        "silent end at the 50th call": ({"plan": {"what": "exit", "at": 50}}, "health", "crash"),
        "failure at every 50th call": ({"plan": {"what": "fail", "at": 50}}, "health", "call_failed"),
        "leak": ({"plan": {"what": "leak", "at": 0}}, "health", "leak"),
    }  # fmt: skip


def shadow_words(zoo: Path, path: Path) -> tuple[str, set[str]]:
    """Let a model see the evaluation images beside the one that serves; return outcome and findings."""
    from examples.ota_walkthrough.models import images

    with Host(lambda p: load(p, threads=1)) as host:
        host.add("digits", zoo / "base.edgec", "base")
        host.add("digits", path, "new")
        gate = ShadowGate(host, "digits", "new", criteria=ShadowCriteria(slowdown=20.0))
        for image in images("evaluation"):
            host.run("digits", {"pixels": image})
            gate.wait(60)
        verdict = gate.stop()
    return verdict.outcome, {finding.word for finding in verdict.findings}


@pytest.mark.slow
@pytest.mark.usefixtures("with_engine")
@pytest.mark.parametrize("name", [
    "NaN for a black image", "NaN for some images", "constant output", "swapped labels", "two labels swapped",
    "labels in another order", "10 times the latency", "memory blow-up", "wrong scale",
    "pixels divided by 255", "black taken for white", "rows taken for columns", "crash at the 100th call",
    "hang at the 30th call", "silent end at the 50th call", "failure at every 50th call", "leak",
])  # fmt: skip
def test_row_24_and_25_each_poison_is_stopped_by_its_gate(zoo: Path, name: str) -> None:
    from tests.device_agent.poison import artifact

    how, gate, word = poisons()[name]
    path = artifact(zoo / f"{name}.edgec", version=name, **how)
    with load(path, threads=1) if "plan" not in how else load(zoo / "base.edgec") as session:
        assert session.self_test().passed  # its own golden vectors do not tell
    timeout_s = 5.0 if "hang" in name else 120.0
    report = check_health(path, previous=zoo / "base.edgec", timeout_s=timeout_s, threads=1)
    if gate == "health":
        assert word in words(report), report
    else:
        assert report.passed, report
        outcome, found = shadow_words(zoo, path)
        assert (outcome, word in found) == ("fail", True)


@pytest.mark.slow
def test_row_27_a_model_that_hangs_does_not_hang_the_agent(
    zoo: Path, with_engine: None, tmp_path: Path
) -> None:
    from tests.device_agent.poison import artifact

    path = artifact(tmp_path / "hang.edgec", plan={"what": "hang", "at": 1})
    start = time.monotonic()
    report = check_health(path, timeout_s=3.0)
    assert time.monotonic() - start < 60  # it hangs for ever
    assert words(report) == {"hang"}
    # One that hangs in the previous model is no fault of the new one.
    report = check_health(zoo / "base.edgec", previous=path, timeout_s=16.0)
    assert report.passed, report
    (note,) = report.notes
    assert note.startswith("the previous model: it was not through after 16 s")


@pytest.mark.slow
def test_healthy_variants_pass_both_gates(zoo: Path) -> None:
    from tests.device_agent.poison import HEALTHY, artifact

    paths = {
        name: artifact(zoo / f"healthy {i}.edgec", c, version=name)
        for i, (name, c) in enumerate(HEALTHY.items())
    }
    assert len(paths) >= 20

    def check(path: Path) -> HealthReport:
        return check_health(path, previous=zoo / "base.edgec", calls=60, threads=1)

    with ThreadPoolExecutor(2) as pool:
        reports = dict(zip(paths, pool.map(check, paths.values()), strict=True))
    stopped = {name: report.findings for name, report in reports.items() if not report.passed}
    assert stopped == {}
    shadows = {name: shadow_words(zoo, path) for name, path in list(paths.items())[::3]}
    assert {name: found for name, found in shadows.items() if found != ("pass", set())} == {}


@pytest.mark.slow
def test_a_manifest_can_state_the_budget(tmp_path: Path) -> None:
    from edgec.artifact import Artifact, pack

    path = tiny_artifact(tmp_path / "tiny.edgec")
    with Artifact.open(path) as opened:
        members = {name: bytes(opened.view(name)) for name in opened.names() if name != "report.json"}
        manifest = replace(opened.manifest, budgets=Budgets(latency_ms=1e-6), members={})
    report = check_health(pack(tmp_path / "b.edgec", manifest, members), calls=40)
    assert words(report) == {"latency"}
