"""What the converter writes is what the device builds from: one contract, held from both ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compiler import networks
from tests.fakes.jetson import Jetson

from edgec.artifact import GOLDEN, GoldenVector, Manifest, TensorSpec, encode_golden, pack
from edgec.compiler.converters import Prepared
from edgec.compiler.converters.tensorrt import TensorRtConverter, recipe
from edgec.runtime import load
from edgec.runtime.backends.tensorrt._recipe import parse_recipe
from edgec.runtime.finishing import finish
from edgec.targets import load_target

TARGETS = ["jetson-orin-nano-jp6", "jetson-agx-orin-jp6", "jetson-agx-orin-jp7", "jetson-thor-jp7"]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_device_reads_every_recipe(name: str, precision: str) -> None:
    target = load_target(name)
    read = parse_recipe(recipe(networks.cnn(), target, precision))
    assert read.onnx == "model.onnx"
    assert read.memory_budget_mib == target.memory_mib
    assert read.compute_capability == dict(target.accelerator)["compute_capability"]
    assert (read.dla_cores > 0) == (name == "jetson-agx-orin-jp7" and precision == "fp16")


def test_sparse_kernels_are_asked_for_and_part_of_the_engines_key() -> None:
    target = load_target("jetson-agx-orin-jp7")
    dense, sparse = (
        parse_recipe(recipe(networks.cnn(), target, "fp16", sparse=sparse)) for sparse in (False, True)
    )
    assert (dense.builder_flags, sparse.builder_flags) == ((), ("SPARSE_WEIGHTS",))
    assert "flags" not in dense.to_key(None)["config"]  # engines that were built before stay valid
    assert dense.to_key(None) != sparse.to_key(None)


@pytest.mark.parametrize(
    ("name", "version"), [("jetson-orin-nano-jp6", "10.3.0"), ("jetson-agx-orin-jp7", "11.4.1")]
)
def test_a_converted_model_is_finished_and_runs(
    name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, converter = load_target(name), TensorRtConverter()
    model = converter.prepare(networks.cnn(), "fp16", target)
    (tmp_path / "payload").mkdir()
    made = converter.convert(
        Prepared(model=model, precision="fp16"), target.engines[0], target, tmp_path / "payload"
    )
    (sample,) = networks.samples(model, count=1)
    ((name_in, x),) = sample.items()
    (y,) = networks.run(model, sample)
    name_out = model.graph.output[0].name
    manifest = Manifest(
        model="cnn",
        model_version="1",
        target=name,
        engine=made.engine,
        fallback=made.fallback,
        inputs=(TensorSpec(name_in, "float32", tuple(x.shape)),),
        outputs=(TensorSpec(name_out, "float32", tuple(y.shape)),),
        recipe=made.recipe,
        golden={name_out: {"max_abs_error": 1e-2}},
    )
    golden = encode_golden([GoldenVector(inputs={name_in: x}, outputs={name_out: y})])
    path = pack(tmp_path / "cnn.edgec", manifest, {**made.files, GOLDEN: golden})
    device = Jetson(version)
    device.install(monkeypatch)
    assert finish(path, cache_dir=tmp_path / "engines").state == "built"
    with load(path, cache_dir=tmp_path / "engines") as running:
        assert (running.state, running.engine) == ("ready", "tensorrt")
    assert device.faults.violations == []
    assert device.driver.is_clean()
