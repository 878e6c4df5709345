"""What applications write, held to types: mypy and pyright read this file; it is not run."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from edgec.artifact import Artifact, EngineSpec, GoldenVector, Manifest, TensorSpec
from edgec.runtime import (
    Batcher,
    BoundCall,
    Host,
    Isolation,
    OutputTest,
    Pool,
    SelfTestResult,
    Session,
    Shadow,
    load,
)
from edgec.runtime.backends import Backend, LoadOptions, Payload, Program, get_backend
from edgec.runtime.benchmark import (
    BenchmarkResult,
    LatencySamples,
    MedianRatio,
    benchmark,
    measure_interleaved,
    median_ratio,
)


def use_a_session() -> None:
    load("digits.edgec", isolate=Isolation(timeout_s=1, retry=True), providers={"CUDA": {"device_id": 0}})
    with load("digits.edgec", threads=2, cache_dir=Path("cache"), allow_fallback=False) as session:
        assert_type(session, Session)
        assert_type(session.inputs, tuple[TensorSpec, ...])
        assert_type(session.manifest, Manifest)
        assert_type(session.precision, str)
        assert_type(session.precisions, Mapping[str, int])
        assert_type(session.placement, Mapping[str, int])
        assert_type(session.state, str)
        outputs = session.run({"image": np.zeros((1, 8, 8, 1), np.uint8)})
        assert_type(outputs, dict[str, NDArray[Any]])
        assert_type(session.predict("image.png"), dict[str, Any])
        result = session.self_test()
        assert_type(result, SelfTestResult)
        assert_type(result.passed, bool)
        assert_type(result.outputs, tuple[OutputTest, ...])
        assert_type(result.worst, OutputTest | None)


async def call_a_session(session: Session) -> None:
    inputs = {"image": np.zeros((1, 8, 8, 1), np.uint8)}
    outputs = {"scores": np.zeros((1, 10), np.float32)}
    assert_type(session.run(inputs, outputs), dict[str, NDArray[Any]])
    assert_type(session.run_batch([inputs]), list[dict[str, NDArray[Any]]])
    assert_type(session.bind(inputs, outputs), BoundCall)
    assert_type(session.submit(inputs, priority=1, deadline_ms=5.0), Future[dict[str, NDArray[Any]]])
    assert_type(await session.arun(inputs), dict[str, NDArray[Any]])
    session.swap(Path("next.edgec"))
    with Batcher(session, max_batch=4) as batcher:
        assert_type(batcher.submit(inputs), Future[dict[str, NDArray[Any]]])


def host_models() -> None:
    with Pool(2, threads=1, affinity=[0]) as pool, Host(partial(load, pool=pool)) as host:
        assert_type(host.add("digits", "digits.edgec"), str)
        assert_type(host.run("digits", {}, key="me"), dict[str, NDArray[Any]])
        assert_type(host.shadow("digits", "2"), Shadow | None)
        with host.session("digits") as session:
            assert_type(session, Session)


def open_an_artifact() -> None:
    with Artifact.open("digits.edgec") as artifact:
        artifact.verify()
        assert_type(artifact.view("weights.bin"), memoryview)
        assert_type(artifact.golden(), list[GoldenVector])
        assert_type(artifact.manifest.fallback, EngineSpec | None)
        payload: Payload = artifact
        backend = get_backend("onnxruntime")
        assert_type(backend, Backend)
        manifest = artifact.manifest
        program = backend.load(manifest.engine, payload, manifest.inputs, manifest.outputs, LoadOptions())
        assert_type(program, Program)


def measure() -> None:
    result = benchmark("digits.edgec", samples=["a.png", Path("b.png")], duration_s=1)
    assert_type(result, BenchmarkResult)
    assert_type(result.latency, LatencySamples)
    measured = measure_interleaved({"a": lambda: None, "b": lambda: 1})
    assert_type(measured, dict[str, LatencySamples])
    assert_type(median_ratio(measured["a"], measured["b"]), MedianRatio)


class Doubling:
    """A program of somebody else satisfies the protocol with plain attributes."""

    engine_version = "1.0"
    precision = "fp32"
    precisions: Mapping[str, int] = {}
    placement: Mapping[str, int] = {"CPU": 1}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: 2 * array for name, array in inputs.items()}

    def close(self) -> None:
        pass


class DoublingBackend:
    """So does a backend."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> Program:
        return Doubling()


a_backend: Backend = DoublingBackend()
