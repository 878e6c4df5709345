"""What inputs usually are, as a build writes it down, and what an observer makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.compiler.networks import cnn

from edgec.artifact import Manifest, Observation, TensorSpec
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.evidence import input_quantiles
from edgec.runtime import ObserveOptions, load
from edgec.runtime.testing import onnxruntime_spec

STATISTICS = ("mean", "std", "min", "max")
Inputs = list[Mapping[str, NDArray[Any]]]


def manifest(batch: int | str = 1, *statistics: str) -> Manifest:
    specs = (TensorSpec("x", "float32", (batch, 500)),)
    return Manifest(
        model="m", model_version="1", target="cpu-x86_64", engine=onnxruntime_spec(weights=False),
        inputs=specs, outputs=(TensorSpec("y", "float32", (batch, 500)),),
        observe=Observation(inputs={"x": statistics or STATISTICS}),
    )  # fmt: skip


def drawn(count: int, *, rows: int = 1, seed: int = 0) -> Inputs:
    random = np.random.default_rng(seed)
    offsets = random.standard_normal((count, rows, 1))
    return [{"x": (random.random((rows, 500)) + offset).astype(np.float32)} for offset in offsets]


@pytest.mark.parametrize(
    ("count", "ranks"), [(31, 0), (32, ["0.25", "0.5", "0.75"]), (99, ["0.25", "0.5", "0.75"]), (100, 7)]
)
def test_few_samples_tell_less(count: int, ranks: int | list[str]) -> None:
    found = input_quantiles(drawn(count), manifest())
    if ranks == 0:
        assert found == {}
        return
    assert list(found["x"]) == list(STATISTICS)
    quantiles = found["x"]["mean"]
    assert (list(quantiles) if isinstance(ranks, list) else len(quantiles)) == ranks
    assert quantiles["0.5"] == pytest.approx(0.5, abs=0.5)
    assert quantiles["0.75"] - quantiles["0.25"] == pytest.approx(1.35, abs=0.7)


def test_of_a_batch_one_sample_counts() -> None:
    alone = input_quantiles(drawn(256), manifest("n"))["x"]["mean"]
    joined = input_quantiles(drawn(256, rows=64), manifest("n"))["x"]["mean"]
    assert joined["0.95"] - joined["0.05"] == pytest.approx(alone["0.95"] - alone["0.05"], rel=0.25)


def test_what_does_not_vary_and_what_is_not_finite_says_nothing() -> None:
    same: Inputs = [{"x": np.full((1, 500), 2 / 3, np.float32)} for _ in range(50)]
    assert input_quantiles(same, manifest()) == {}
    # As of a pipeline that takes the mean away: what is left of it is rounding.
    centred = [{"x": sample["x"] - sample["x"].mean(dtype=np.float64)} for sample in drawn(50)]
    assert list(input_quantiles(centred, manifest())["x"]) == ["std", "min", "max"]
    broken: Inputs = [{"x": np.full((1, 500), math.nan, np.float32)} for _ in range(50)]
    assert input_quantiles(broken, manifest()) == {}
    assert input_quantiles(drawn(50) + broken, manifest()) == input_quantiles(drawn(50), manifest())
    assert input_quantiles([], manifest()) == {}


def test_a_value_of_many_samples_is_in_the_bin_above_it() -> None:
    samples = drawn(60) + [{"x": np.full((1, 500), 2 / 3, np.float32)} for _ in range(120)]
    quantiles = input_quantiles(samples, manifest(1, "mean"))["x"]["mean"]
    value = float(np.float32(2 / 3))
    (edge,) = {v for v in quantiles.values() if math.isclose(v, value, rel_tol=1e-5)}
    assert value * (1 - 1e-5) < edge < value


@pytest.mark.slow
def test_an_observer_finds_inputs_that_have_moved_and_no_others(tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def scenes(count: int, brighter: float = 0.0) -> NDArray[np.float32]:
        light = random.normal(0.5 + brighter, 0.2, (count, 1, 1, 1, 1))
        return (random.random((count, 1, 3, 16, 16)) + light).astype(np.float32)

    (tmp_path / "cnn.onnx").write_bytes(cnn().SerializeToString())
    np.savez(tmp_path / "real.npz", image=scenes(200))
    options = CompileOptions(measure_s=0.05, workers=0, precision="fp32")
    builds = {
        data: compile_model(
            tmp_path / "cnn.onnx", ["cpu-x86_64"], tmp_path / f"out{data}", options=options, calibration=data
        ).artifacts[0]
        for data in (tmp_path / "real.npz", None)
    }
    with load(builds[None]) as session:  # from inputs that were made up
        assert session.manifest.observe.inputs == {"image": ("mean", "std")}
        assert session.manifest.input_reference == {}
    with load(builds[tmp_path / "real.npz"]) as session:
        observer = session.observe(ObserveOptions(max_share=math.inf))
        reference = session.manifest.input_reference
        assert {name: len(q) for name, q in reference["image"].items()} == {"mean": 7, "std": 7}
        found = []
        for brighter in (0.0, 0.2):
            for scene in scenes(1000, brighter):
                session.run({"image": scene})
            found.append(observer.take().input_drift(reference)["image"])
    usual, moved = found
    assert max(usual.values()) < 0.15
    assert moved["mean"] > 0.5
    assert moved["std"] < 0.15
