"""Observers: what they count, what they look at, what windows come to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgec.artifact import (
    Artifact,
    EngineSpec,
    Manifest,
    Observation,
    Pipeline,
    Quantization,
    Scores,
    TensorSpec,
    pack,
)
from edgec.artifact.steps import Softmax, TopK
from edgec.errors import DeadlineError, InputError, OverloadedError, PipelineError
from edgec.runtime import Batcher, Host, ObserveOptions, Observer, Pool, Session, Window, load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact
from edgec.sketch import Histogram, population_stability, reference_bins

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

X = {"x": np.ones((1, 4), np.float32)}
ALL = ObserveOptions(max_share=math.inf)
REFERENCE = {"0.01": -2.0, "0.25": -0.5, "0.5": 0.0, "0.75": 0.5, "0.99": 2.0}


def doubling(path: Path, *, batch: int | str = 1, size: int = 4, factor: float = 2, **fields: Any) -> Path:
    """Pack ``y = factor * x``."""
    inputs = (TensorSpec("x", "float32", (batch, size)),)
    outputs = (TensorSpec("y", "float32", (batch, size)),)
    members = onnx_members(
        [Node("Mul", ["x", "f"], ["y"])], inputs, outputs, {"f": np.array([factor], np.float32)}
    )
    manifest = Manifest(
        model="doubling", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False), **fields,
    )  # fmt: skip
    return pack(path, manifest, members)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with load(tiny_artifact(tmp_path / "tiny.edgec")) as session:
        yield session


class Clock:
    """Goes on by as much with each look at it."""

    def __init__(self, step_s: float) -> None:
        self.now = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


# Counting


def test_a_session_without_observer_runs_what_the_engine_gives(session: Session) -> None:
    assert session.observer is None
    plain = session.current_program().run
    assert session._run == plain
    session.observe()
    assert session._run != plain
    session.set_observer(None)
    assert session._run == plain


def test_every_kind_of_call_is_counted(session: Session) -> None:
    observer = session.observe()
    buffer = np.empty((1, 3), np.float32)
    session.run(X)
    session.run(X, {"y": buffer})
    session.predict(X["x"])
    session.run_batch([X, X])
    session.submit(X).result(60)
    asyncio.run(session.arun(X))
    window = observer.take()
    assert window.calls == window.latency_ms.count == 7
    assert window.errors == {}
    assert 0 < window.latency_ms.quantile(0.5) < 20_000
    assert (window.model, window.model_version, window.engine) == ("tiny", "1", "onnxruntime")
    assert window.artifact == session.content_digest
    assert window.engine_version == session.engine_version


def test_bound_calls_are_counted_as_long_as_somebody_observes(session: Session, tmp_path: Path) -> None:
    early = session.bind()
    observer = session.observe()
    late = session.bind()
    observer.take()  # binding runs the model, too
    for call in (early, late, late):
        assert call()["y"].shape == (1, 3)
    assert observer.take().calls == 3
    session.swap(tiny_artifact(tmp_path / "other.edgec", pipeline=Pipeline()))
    early()
    assert [window.calls for window in observer.take_all()][-1] == 1
    session.set_observer(None)
    early()
    assert observer.take_all()[-1].calls == 0
    assert late._call is not early._call


def test_taking_begins_anew(session: Session) -> None:
    observer = session.observe()
    session.run(X)
    first = observer.take()
    session.run(X)
    session.run(X)
    second = observer.take()
    assert (first.calls, second.calls) == (1, 2)
    assert second.since >= first.since > 1.7e9
    assert second.seconds > 0
    assert observer.take().is_empty
    assert observer.total().calls == 3


def test_the_total_is_no_view_of_what_goes_on(session: Session) -> None:
    observer = session.observe(ALL)
    session.run(X)
    total = observer.total()
    session.run(X)
    assert observer.total().calls == 2
    assert total.calls == total.latency_ms.count == 1


def test_errors_are_counted_by_type(tmp_path: Path) -> None:
    with load(doubling(tmp_path / "a.edgec", batch="n", pipeline=Pipeline())) as session:
        observer = session.observe()
        with pytest.raises(InputError):
            session.run({"x": np.ones(3)})
        with pytest.raises(InputError):
            session.submit({})
        with pytest.raises(InputError):
            session.run_batch([X, {}])
        with pytest.raises(PipelineError):
            session.predict("no array")
        session.run(X)
        window = observer.take()
    assert window.errors == {"InputError": 3, "PipelineError": 1}
    assert (window.calls, window.error_count, window.latency_ms.count) == (5, 4, 1)


def test_errors_of_the_engine_are_counted(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", "float32", (1, 4)), TensorSpec("i", "int64", (1,)))
    outputs = (TensorSpec("y", "float32", (1, 1)),)
    members = onnx_members([Node("Gather", ["x", "i"], ["y"], {"axis": 1})], inputs, outputs)
    manifest = Manifest(
        model="gather", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False),
    )  # fmt: skip
    with load(pack(tmp_path / "a.edgec", manifest, members)) as session:
        observer = session.observe()
        for _ in range(2):
            with pytest.raises(Exception, match="bounds"):
                session.run({**X, "i": np.array([9])})
        session.run({**X, "i": np.array([1])})
        assert observer.take().errors == {"InferenceError": 2}
        assert observer.total().calls == 3


def test_calls_of_a_fallback_are_counted_with_the_reason(tmp_path: Path) -> None:
    missing = EngineSpec(
        name="not-here", version="", device="NPU", precision="int8", files=("model.onnx", "weights.bin")
    )
    path = tiny_artifact(tmp_path / "a.edgec", engine=missing, fallback=onnxruntime_spec())
    with load(path) as session:
        observer = session.observe()
        session.run(X)
        session.run(X)
        window = observer.take()
    assert list(window.fallbacks.values()) == [2]
    assert "not-here" in next(iter(window.fallbacks))
    assert next(iter(window.fallbacks)) == session.fallback_reason


def test_what_a_queue_drops_is_counted(tmp_path: Path) -> None:
    with Pool(1, max_queue=2) as pool, load(tiny_artifact(tmp_path / "a.edgec"), pool=pool) as session:
        observer = session.observe()
        begun, go = Event(), Event()

        def wait() -> None:
            begun.set()
            go.wait(60)

        pool.submit(wait)
        assert begun.wait(60)
        late = session.submit(X, deadline_ms=0)
        kept = session.submit(X)
        with pytest.raises(OverloadedError):
            session.submit(X)
        go.set()
        with pytest.raises(DeadlineError):
            late.result(60)
        kept.result(60)
        window = observer.take()
    assert window.drops == {"overloaded": 1, "deadline": 1}
    assert (window.calls, window.errors) == (1, {})


def submit_until_refused(batcher: Batcher) -> None:
    while True:  # until one waits while another comes
        batcher.submit(X)


def test_what_a_batcher_drops_is_counted(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec", batch="n")) as session:
        with Batcher(session, max_delay_ms=200, max_queue=1) as batcher:
            batcher.enabled = True  # whatever was measured
            observer = session.observe()
            late = batcher.submit(X, deadline_ms=0)
            with pytest.raises(OverloadedError):
                submit_until_refused(batcher)
            with pytest.raises(DeadlineError):
                late.result(60)
        assert observer.take().drops == {"overloaded": 1, "deadline": 1}


def test_a_host_observes_its_models_each_on_its_own(tmp_path: Path) -> None:
    with Host() as host:
        for factor in (2, 3):
            host.add("m", doubling(tmp_path / f"{factor}.edgec", factor=factor), version=str(factor))
        host.run("m", X, version="2")
        host.observe()
        host.run("m", X, version="2")
        assert host.observers().keys() == {("m", "2")}
        host.unload("m", "2")
        host.run("m", X, version="2")
        host.submit("m", X, version="3").result(60)
        assert {key: o.take().calls for key, o in host.observers().items()} == {("m", "2"): 2, ("m", "3"): 1}


def test_no_call_of_several_threads_is_lost(session: Session) -> None:
    observer = session.observe()
    windows: list[Window] = []

    def call(_: int) -> None:
        for _ in range(200):
            session.run(X)

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call, i) for i in range(4)]
        while not all(c.done() for c in calls):
            windows.append(observer.take())
    windows.append(observer.take())
    assert sum(window.calls for window in windows) == 800
    assert observer.total().calls == observer.total().latency_ms.count == 800


# Looking


def test_outputs_are_compared_with_the_reference(tmp_path: Path) -> None:
    path = doubling(tmp_path / "a.edgec", size=1000, factor=1, reference={"y": REFERENCE})
    random = np.random.default_rng(0)
    with load(path) as session:
        observer = session.observe(ALL)
        for _ in range(20):
            session.run({"x": random.standard_normal((1, 1000)).astype(np.float32)})
        usual = observer.take()
        for _ in range(20):
            session.run({"x": random.standard_normal((1, 1000)).astype(np.float32) + 1})
        moved = observer.take()
    edges, shares = reference_bins(REFERENCE)
    assert usual.outputs["y"].edges.tolist() == list(edges)
    assert usual.outputs["y"].count == 1000 * usual.sampled > 0
    assert population_stability(usual.outputs["y"], shares) < 0.1
    assert population_stability(moved.outputs["y"], shares) > 0.25


INPUTS = {
    "x": {"mean": {"0.25": -0.02, "0.5": 0.0, "0.75": 0.02}, "std": {"0.5": 1.0}, "unheard": {"0.5": 0.0}}
}


@pytest.mark.parametrize("batch", [1, "n"])
def test_inputs_are_compared_with_their_reference(tmp_path: Path, batch: int | str) -> None:
    # Means of 1000 values have a deviation of 0.03, of batches of 16 a quarter of that.
    path = doubling(
        tmp_path / "a.edgec", batch=batch, size=1000, input_reference=INPUTS,
        observe=Observation(inputs={"x": ("mean", "std")}),
    )  # fmt: skip
    random, rows = np.random.default_rng(0), 1 if batch == 1 else 16
    with load(path) as session:
        observer = session.observe(ALL)
        windows = []
        for moved in (0.0, 0.1):
            for _ in range(200):
                session.run({"x": (random.standard_normal((rows, 1000)) + moved).astype(np.float32)})
            windows.append(observer.take())
        assert observer.input_reference == session.manifest.input_reference == INPUTS
    usual, moved_ones = windows
    assert {name: h.count for name, h in usual.input_bins["x"].items()} == {"mean": 200, "std": 200}
    assert usual.inputs["x"]["mean"].count == 200
    found, other = (window.input_drift(INPUTS)["x"] for window in windows)
    assert found.keys() == {"mean", "std"}
    assert found["mean"] < 0.1
    assert other["mean"] > 0.25 > other["std"]
    both = usual.merge(moved_ones).input_bins["x"]["mean"]
    assert both.counts.tolist() == [
        a + b for a, b in zip(*(w.input_bins["x"]["mean"].counts.tolist() for w in windows), strict=True)
    ]
    # Of another artifact's quantiles nothing is said.
    assert usual.input_drift({"x": {"mean": {"0.5": 3.0}}}) == {}


def test_without_reference_or_statistic_inputs_are_compared_with_nothing(tmp_path: Path) -> None:
    old = doubling(tmp_path / "old.edgec", observe=Observation(inputs={"x": ("mean",)}))
    new = doubling(tmp_path / "new.edgec", input_reference=INPUTS)
    for path, options in (
        (old, ALL),
        (new, ALL),
        (new, replace(ALL, inputs={"x": ("max",), "z": ("mean",)})),
    ):
        with load(path) as session:
            observer = session.observe(options)
            session.run(X)
            window = observer.take()
        assert (window.sampled, window.input_bins, window.input_drift(INPUTS)) == (1, {}, {})


def test_quantized_outputs_are_compared_as_what_they_stand_for(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", "uint8", (1, 4)),)
    outputs = (TensorSpec("y", "uint8", (1, 4), quantization=Quantization((0.5,), (100,))),)
    members = onnx_members([Node("Identity", ["x"], ["y"])], inputs, outputs)
    manifest = Manifest(
        model="q", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False), reference={"y": {"0.5": 0.0, "0.9": 10.0}},
        observe=Observation(scores=Scores(output="y", activation="softmax")),
    )  # fmt: skip
    with load(pack(tmp_path / "a.edgec", manifest, members)) as session:
        observer = session.observe(ALL)
        session.run({"x": np.array([[98, 99, 110, 121]], np.uint8)})
        window = observer.take()
    assert window.outputs["y"].counts.tolist() == [2, 1, 1]
    assert window.classes == {3: 1}


def test_how_sure_a_classifier_is_is_found_by_its_pipeline(tmp_path: Path) -> None:
    pipeline = Pipeline(postprocess=(Softmax(), TopK(k=2)))
    with load(doubling(tmp_path / "a.edgec", batch="n", factor=1, pipeline=pipeline)) as session:
        observer = session.observe(ALL)
        session.run({"x": np.array([[9, 0, 0, 0], [0, 0, 9, 0], [1, 1, 1, 1]], np.float32)})
        session.predict(np.array([0, 0, 9, 0], np.float32))
        window = observer.take()
    assert window.sampled == 2
    assert window.classes == {0: 2, 2: 2}
    assert window.confidence is not None
    assert window.confidence.count == 4
    bins = {
        float(edge): int(n)
        for edge, n in zip(window.confidence.edges, window.confidence.counts[1:], strict=True)
    }
    assert bins[0.99] == 3  # softmax of 9, 0, 0, 0
    assert bins[0.2] == 1  # a quarter each


def test_a_model_without_pipeline_names_its_scores(tmp_path: Path) -> None:
    observe = Observation(scores=Scores(output="y", activation="sigmoid"))
    with load(doubling(tmp_path / "a.edgec", factor=1, observe=observe)) as session:
        observer = session.observe(ALL)
        session.run({"x": np.array([[-9, 0, -9, -9]], np.float32)})
        window = observer.take()
    assert window.classes == {1: 1}
    assert window.confidence is not None
    assert window.confidence.counts.argmax() == 6  # a half: the bin from 0.5 to 0.6
    assert window.confidence.edges[5] == 0.5


def test_inputs_are_described_as_the_manifest_asks(tmp_path: Path) -> None:
    observe = Observation(inputs={"x": ("mean", "std", "min", "max")})
    path = doubling(tmp_path / "a.edgec", observe=observe)
    with load(path) as session:
        observer = session.observe(ALL)
        session.run({"x": np.array([[1, 2, 3, 6]], np.float32)})
        window = observer.take()
        expected = {"mean": 3.0, "std": 14**0.5 / 2, "min": 1.0, "max": 6.0}
        assert {k: s.quantile(0.5) for k, s in window.inputs["x"].items()} == pytest.approx(
            expected, rel=0.01
        )
        observer = session.observe(ObserveOptions(inputs={"x": ("max",), "other": ("min",)}))
        session.run(X)
        assert observer.take().inputs.keys() == {"x"}


def test_outputs_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    with load(doubling(tmp_path / "a.edgec", reference={"y": REFERENCE})) as session:
        observer = session.observe(ALL)
        for value in (np.nan, np.inf, 1.0):
            session.run({"x": np.full((1, 4), value, np.float32)})
        window = observer.take()
    assert (window.sampled, window.non_finite) == (3, 2)
    assert window.outputs["y"].invalid == 4


def test_looking_keeps_to_its_share_of_the_time(session: Session) -> None:
    # Each look at the clock takes 1 ms: a call takes 1 ms, looking into it 1 ms as well.
    observer = Observer(ObserveOptions(max_share=0.05, interval_s=1e9), clock=Clock(1e-3))
    session.set_observer(observer)
    for _ in range(2000):
        session.run(X)
    # A look is planned as twice its own time, for what it does to the calls after it.
    assert 2000 * 0.05 * 0.4 < observer.take().sampled <= 2000 * 0.05 * 0.6


def test_rare_calls_are_looked_into_each_interval(session: Session) -> None:
    clock = Clock(1e-6)
    observer = Observer(ObserveOptions(max_share=1e-6, interval_s=1.0), clock=clock)
    session.set_observer(observer)
    for _ in range(100):
        session.run(X)
        clock.now += 0.3
    assert 100 * 0.3 * 0.7 < observer.take().sampled <= 31


def test_a_large_tensor_is_thinned_over_all_of_it(tmp_path: Path) -> None:
    path = doubling(tmp_path / "a.edgec", size=3 * 1024, observe=Observation(inputs={"x": ("mean", "max")}))
    with load(path) as session:
        observer = session.observe(ObserveOptions(max_share=math.inf, max_values=128))
        # Three channels of a picture: their mean is 2, that of a channel is not.
        session.run({"x": np.tile(np.array([1, 2, 3], np.float32), 1024)[None]})
        window = observer.take()
    assert window.inputs["x"]["mean"].quantile(0.5) == pytest.approx(2.0, rel=0.03)
    assert window.inputs["x"]["max"].maximum == 3.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_share": 0.0}, "max_share"),
        ({"max_share": math.nan, "interval_s": 0.0}, "max_share.*interval_s"),
        ({"max_values": 0}, "max_values"),
        ({"inputs": {"x": ("median",)}}, "median"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObserveOptions(**fields)


# Life


def test_a_swap_ends_the_window(tmp_path: Path) -> None:
    first, second = (doubling(tmp_path / f"{f}.edgec", factor=f) for f in (2, 3))
    with load(first) as session:
        observer, old = session.observe(ALL), session.content_digest
        session.run(X)
        session.run(X)
        session.swap(second)
        session.run(X)
        windows = [observer.take(), observer.take()]
        assert [(w.artifact, w.calls) for w in windows] == [(old, 2), (session.content_digest, 1)]
        assert observer.take().artifact == session.content_digest
        session.swap(first)
        session.run(X)
        assert [w.calls for w in observer.take_all()] == [1]
        assert observer.total().artifact == old
        session.predict(X)
        assert observer.take().calls == 1


def test_a_call_that_ends_after_a_swap_belongs_to_the_old_artifact(tmp_path: Path) -> None:
    first, second = (doubling(tmp_path / f"{f}.edgec", factor=f) for f in (2, 3))
    with load(first) as session:
        observer, old = session.observe(), session.content_digest
        still_running = session._run
        session.swap(second, drain_s=0)
        assert observer.take().calls == 0
        with pytest.raises(Exception, match="closed"):
            still_running(X)  # not counted: the session runs it again on the new model
        assert [(w.artifact != old, w.errors) for w in observer.take_all()] == [(True, {})]


def test_what_was_observed_can_be_taken_after_the_session(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec")) as session:
        observer = session.observe()
        session.run(X)
    assert observer.take().calls == 1


def test_an_observer_goes_on_with_the_same_artifact_in_another_session(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "a.edgec")
    with load(path) as session:
        observer = session.observe()
        session.run(X)
    with load(path) as session:
        session.set_observer(observer)
        session.run(X)
        assert observer.take().calls == 2


def test_an_observer_without_session_says_so() -> None:
    for ask in (Observer().take, Observer().total, Observer().take_all):
        with pytest.raises(ValueError, match="session"):
            ask()


# Windows


def window(**fields: Any) -> Window:
    return Window(
        **{
            "model": "m", "model_version": "1", "artifact": "sha256:0", "engine": "onnxruntime",
            "engine_version": "1.31", "since": 100.0, "seconds": 10.0, **fields,
        }
    )  # fmt: skip


def histogram(*values: float) -> Histogram:
    made = Histogram([0.0, 1.0])
    made.add_many(list(values))
    return made


def test_windows_add_up() -> None:
    a = window(calls=3, errors={"InputError": 1}, classes={0: 2}, outputs={"y": histogram(-1)}, cache_hits=1)
    b = window(
        since=90.0, seconds=5.0, engine="openvino", calls=4, errors={"InputError": 1, "PipelineError": 2},
        classes={0: 1, 7: 1}, outputs={"y": histogram(0.5, 2)}, confidence=histogram(0.5), non_finite=1,
    )  # fmt: skip
    a.latency_ms.add(1.0)
    b.latency_ms.add(3.0)
    both = a.merge(b)
    assert (both.since, both.seconds, both.calls, both.non_finite) == (90.0, 15.0, 7, 1)
    assert both.errors == {"InputError": 2, "PipelineError": 2}
    assert both.classes == {0: 3, 7: 1}
    assert both.engine == "onnxruntime, openvino"
    assert both.latency_ms.count == 2
    assert both.outputs["y"].counts.tolist() == [1, 1, 1]
    assert both.confidence is not None
    assert both.confidence.count == 1
    assert (a.latency_ms.count, a.outputs["y"].count, b.outputs["y"].count) == (1, 1, 2)
    assert both.merge(a).engine == "onnxruntime, openvino"
    assert replace(both, calls=0).calls == 0


def test_windows_of_different_artifacts_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="different artifacts"):
        window().merge(window(artifact="sha256:1"))


def test_the_digest_of_a_session_is_that_of_its_artifact(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "a.edgec")
    with load(path) as session, Artifact.open(path) as artifact:
        assert session.content_digest == artifact.content_digest


def boxes(*scores: float) -> dict[str, NDArray[Any]]:
    return {
        "boxes": np.zeros((len(scores), 4), np.float32),
        "scores": np.array(scores, np.float32),
        "classes": np.arange(len(scores)),
    }


def test_boxes_of_a_detector_are_looked_at(session: Session) -> None:
    observer = session.observe(ALL)
    observer.predicted(boxes(0.5, 0.7))
    observer.predicted(boxes())
    window = observer.take()
    assert window.classes == {0: 1, 1: 1}
    assert window.confidence is not None
    assert window.confidence.count == 2


def test_a_detector_tells_how_sure_it_is_where_it_predicts(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the extra vision")
    inputs = (TensorSpec("image", "uint8", (1, 48, 64, 3), layout="NHWC"),)
    outputs = (TensorSpec("boxes", "float32", (1, 2, 4)), TensorSpec("scores", "float32", (1, 2, 3)))
    found = {
        "b": np.array([[[0, 0, 9, 9], [20, 20, 40, 40]]], np.float32),
        "s": np.array([[[0.1, 0.8, 0.1], [0.2, 0.1, 0.05]]], np.float32),
    }
    members = onnx_members(
        [Node("Identity", ["b"], ["boxes"]), Node("Identity", ["s"], ["scores"])], inputs, outputs, found
    )
    pipeline = Pipeline.from_dict(
        {
            "preprocess": [{"step": "decode"}, {"step": "resize", "width": 64, "height": 48}],
            "postprocess": [{"step": "detection", "format": "boxes_scores", "min_score": 0.5}],
        }
    )
    manifest = Manifest(
        model="detector", model_version="1", target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False), pipeline=pipeline,
    )  # fmt: skip
    with load(pack(tmp_path / "a.edgec", manifest, members)) as session:
        observer = session.observe(ALL)
        assert len(session.predict(np.zeros((48, 64, 3), np.uint8))["boxes"]) == 1
        session.run({"image": np.zeros((1, 48, 64, 3), np.uint8)})  # of which nobody made boxes
        window = observer.take()
    assert window.calls == 2
    assert window.classes == {1: 1}
    assert window.confidence is not None
    assert window.confidence.count == 1
