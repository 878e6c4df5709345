"""What every backend has to do, tested on every engine that is installed here."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from tests.conformance.models import Builder, Model, normal

from edgec.artifact import GOLDEN, Artifact, GoldenVector, Manifest, TensorSpec, encode_golden, pack
from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    DeviceMemoryError,
    InferenceError,
    SelfTestError,
)
from edgec.runtime import load
from edgec.runtime.backends import LoadOptions, backend_names
from edgec.runtime.testing import MemoryPayload, Node

DTYPES = ["float16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool"]
NUMBER = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}


# TensorRT loads nothing in this version: tests/runtime/test_tensorrt.py.
@pytest.fixture(params=[name for name in backend_names() if name != "tensorrt"])
def builder(request: pytest.FixtureRequest) -> Builder:
    return Builder(request.param)


# Numerics and dtypes


@pytest.mark.parametrize("size", [4, 32, 256])  # weights in the graph, beside it, and too large to copy
@pytest.mark.parametrize("batch", [1, 8, 70])
def test_outputs_are_those_of_numpy(builder: Builder, batch: int, size: int) -> None:
    model, expected = builder.linear(batch, size)
    program = model.load()
    for seed in range(3):
        x = normal(batch, size, seed=seed)
        (y,) = program.run({"x": x}).values()
        np.testing.assert_allclose(y, expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [2, "n"])
def test_golden_vectors_pass_and_others_are_refused(
    builder: Builder, tmp_path: Path, batch: int | str
) -> None:
    model, expected = builder.linear(batch)
    x = normal(2, 32)
    right = [GoldenVector(inputs={"x": x}, outputs={"y": expected(x)})]
    with load(packed(model, tmp_path, golden=right)) as session:
        result = session.self_test()
        assert result.passed
        assert session.engine == builder.engine
    wrong = [GoldenVector(inputs={"x": x}, outputs={"y": expected(x) + 1})]
    with pytest.raises(SelfTestError, match="golden vector 0, output 'y'"):
        load(packed(model, tmp_path, golden=wrong))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_every_dtype(builder: Builder, dtype: str) -> None:
    model = builder.build(
        [Node("Cast", ["x"], ["y"], {"to": NUMBER["float32"]})],
        (TensorSpec("x", dtype, (2, 3)),),
        (TensorSpec("y", "float32", (2, 3)),),
    )
    x = np.array([[0, 1, 2], [100, 1, 0]]).astype(dtype)
    np.testing.assert_array_equal(model.load().run({"x": x})["y"], x.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_of_every_dtype(builder: Builder, dtype: str) -> None:
    model = builder.build(
        [Node("Cast", ["x"], ["y"], {"to": NUMBER[dtype]})],
        (TensorSpec("x", "float32", ("n", 3)),),
        (TensorSpec("y", dtype, ("n", 3)),),
    )
    x = np.array([[0, 1, 2], [100, 1, 0]], np.float32)
    y = model.load().run({"x": x})["y"]
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y, x.astype(dtype))


def test_outputs_come_by_name_in_the_order_of_the_specs(builder: Builder) -> None:
    inputs = (TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,)))
    outputs = (TensorSpec("sum", "float32", (2,)), TensorSpec("difference", "float32", (2,)))
    model = builder.build(
        [Node("Add", ["a", "b"], ["sum"]), Node("Sub", ["a", "b"], ["difference"])], inputs, outputs
    )
    turned = replace(model, inputs=inputs[::-1], outputs=outputs[::-1])
    a, b = np.array([5, 7], np.float32), np.array([1, 2], np.float32)
    for tested, names in ((model, ["sum", "difference"]), (turned, ["difference", "sum"])):
        got = tested.load().run({"b": b, "a": a})
        assert list(got) == names
        np.testing.assert_array_equal(got["sum"], a + b)
        np.testing.assert_array_equal(got["difference"], a - b)


# Shapes and memory of a call


def test_dynamic_dimensions_take_any_size_in_any_order(builder: Builder) -> None:
    model, expected = builder.linear("n")
    program = model.load()
    for n in (1, 5, 1, 64, 2):
        x = normal(n, 32, seed=n)
        y = program.run({"x": x})["y"]
        assert y.shape == (n, 32)
        np.testing.assert_allclose(y, expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize("size", [32, 16384])
def test_inputs_may_be_strided_transposed_and_read_only(
    builder: Builder, batch: int | str, size: int
) -> None:
    inputs, outputs = (
        (TensorSpec("x", "float32", (batch, size)),),
        (TensorSpec("y", "float32", (batch, size)),),
    )
    program = builder.build([Node("Neg", ["x"], ["y"])], inputs, outputs).load()
    frozen = normal(2, size)
    frozen.flags.writeable = False
    for x in (normal(4, size)[::2], np.asfortranarray(normal(2, size)), normal(2, 2 * size)[:, ::2], frozen):
        np.testing.assert_array_equal(program.run({"x": x})["y"], -x)


def test_inputs_may_be_mapped_files(builder: Builder, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", normal(1, 32))
    model, expected = builder.linear()
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_allclose(model.load().run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8), (8, 65536)])
def test_inputs_are_left_as_they_are(builder: Builder, shape: tuple[int, int]) -> None:
    # Engines compute Relu in place where they can.
    model = builder.build(
        [Node("Relu", ["x"], ["r"]), Node("Add", ["r", "one"], ["y"])],
        (TensorSpec("x", "float32", shape),),
        (TensorSpec("y", "float32", shape),),
        {"one": np.ones(1, np.float32)},
    )
    x = normal(*shape)
    before = x.copy()
    np.testing.assert_array_equal(model.load().run({"x": x})["y"], np.maximum(before, 0) + 1)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("batch", [2, 4096, "n"])
def test_outputs_belong_to_the_caller(builder: Builder, batch: int | str) -> None:
    model, expected = builder.linear(batch)
    program = model.load()
    n = batch if isinstance(batch, int) else 3
    first_x, second_x = normal(n, 32, seed=1), normal(n, 32, seed=2)
    first = program.run({"x": first_x})["y"]
    second = program.run({"x": second_x})["y"]
    assert first.flags.writeable
    second[...] = 0
    np.testing.assert_allclose(first, expected(first_x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(program.run({"x": first_x})["y"], expected(first_x), rtol=1e-4, atol=1e-4)


def test_outputs_outlive_the_program(builder: Builder) -> None:
    model, expected = builder.linear()
    program = model.load()
    x = normal(1, 32)
    y = program.run({"x": x})["y"]
    program.close()
    del program
    gc.collect()
    np.testing.assert_allclose(y, expected(x), rtol=1e-4, atol=1e-4)


def test_weights_are_read_from_the_mapped_artifact(builder: Builder, tmp_path: Path) -> None:
    model, expected = builder.linear(size=256)
    path = packed(model, tmp_path)
    x = normal(1, 256)
    artifact = Artifact.open(path)
    program = model.load(payload=artifact)
    artifact.close()
    path.unlink()
    np.testing.assert_allclose(program.run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not Path("/proc/sys/vm/overcommit_memory").is_file()
    or Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1",
    reason="this system promises memory that it does not have",
)
def test_a_call_that_memory_is_too_short_for_fails_and_the_next_does_not(
    builder: Builder, tmp_path: Path
) -> None:
    inputs = (TensorSpec("a", "float32", ("n", 1)), TensorSpec("b", "float32", (1, "n")))
    outputs = (TensorSpec("y", "float32", ("n", "n")),)
    model = builder.build([Node("Add", ["a", "b"], ["h"]), Node("Relu", ["h"], ["y"])], inputs, outputs)
    huge = {"a": np.ones((2_000_000, 1), np.float32), "b": np.ones((1, 2_000_000), np.float32)}
    small = {"a": np.ones((3, 1), np.float32), "b": np.ones((1, 3), np.float32)}
    with load(packed(model, tmp_path)) as session:
        bound = session.bind(small)
        for _ in range(2):
            with pytest.raises(InferenceError) as failed:  # 16 TB for its output
                session.run(huge)
            # LiteRT says nothing of memory, only that a tensor could not be given its shape.
            assert isinstance(failed.value, DeviceMemoryError) or builder.engine == "litert"
            for outcome in (session.run(small), bound()):
                np.testing.assert_array_equal(outcome["y"], np.full((3, 3), 2, np.float32))


# Threads


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_can_be_set(builder: Builder, threads: int) -> None:
    model, expected = builder.linear(8, 256)
    x = normal(8, 256)
    program = model.load(options=LoadOptions(threads=threads))
    np.testing.assert_allclose(program.run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 300, "n"])
def test_calls_from_several_threads_do_not_mix(builder: Builder, batch: int | str) -> None:
    model, expected = builder.linear(batch)
    program = model.load(options=LoadOptions(threads=1))

    def caller(seed: int) -> None:
        x = normal(batch if isinstance(batch, int) else seed + 1, 32, seed=seed)
        want = expected(x)
        for _ in range(100):
            np.testing.assert_allclose(program.run({"x": x})["y"], want, rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(caller, range(8)))


@pytest.mark.parametrize("batch", [1, 300])
def test_a_call_that_runs_while_the_program_is_closed_ends_as_it_would_have(
    builder: Builder, batch: int
) -> None:
    model, expected = builder.linear(batch, 256)
    x = normal(batch, 256)
    want = expected(x)
    for _ in range(5):
        program, running = model.load(options=LoadOptions(threads=1)), Event()

        def caller(program: Any = program, running: Event = running) -> int:
            for done in range(10_000_000):
                try:
                    y = program.run({"x": x})["y"]
                except InferenceError:
                    return done
                np.testing.assert_allclose(y, want, rtol=1e-3, atol=1e-3)
                running.set()
            return 10_000_000

        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(caller) for _ in range(2)]
            assert running.wait(60)
            program.close()
            assert all(call.result() < 10_000_000 for call in calls)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="isolation needs Linux")
@pytest.mark.parametrize("batch", [2, "n"])
def test_it_runs_in_a_process_of_its_own_as_in_this_one(
    builder: Builder, tmp_path: Path, batch: int | str
) -> None:
    model, _ = builder.linear(batch)
    path = packed(model, tmp_path)
    with load(path, threads=1) as here, load(path, threads=1, isolate=True) as there:
        assert (there.engine_version, there.placement, there.precisions) == (
            here.engine_version, here.placement, here.precisions,
        )  # fmt: skip
        for n in (2,) if batch == 2 else (1, 300, 7):
            x = normal(n, 32, seed=n)
            np.testing.assert_array_equal(there.run({"x": x})["y"], here.run({"x": x})["y"])


# Closing


def test_closing_twice_does_nothing_and_a_closed_program_refuses(builder: Builder) -> None:
    model, _ = builder.linear()
    program = model.load()
    program.close()
    program.close()
    with pytest.raises(InferenceError, match="closed"):
        program.run({"x": normal(1, 32)})


OPEN_AND_CLOSE = """
import gc, os, sys
import numpy as np
from edgec.runtime import load

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def once():
    with load(sys.argv[1], threads=1) as session:
        session.run({"x": np.ones((1, 1448), np.float32)})

for _ in range(3):  # allocators keep some of the first
    once()
gc.collect()
memory, descriptors = resident_mib(), len(os.listdir("/proc/self/fd"))
for _ in range(24):
    once()
gc.collect()
print(resident_mib() - memory, len(os.listdir("/proc/self/fd")) - descriptors)
"""


def test_closing_gives_memory_and_descriptors_back(builder: Builder, tmp_path: Path) -> None:
    model, _ = builder.linear(1, 1448)  # 8 MiB of weights
    # In a process of its own, where nothing else takes or gives memory.
    command = [sys.executable, "-c", OPEN_AND_CLOSE, str(packed(model, tmp_path))]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grown_mib, left_open = map(float, answer.split())
    # The C library keeps some 32 MiB for the next one, now and then; a leak would be 192 MiB or more.
    assert grown_mib < 80
    assert left_open <= 0


# What is read back


def test_version_placement_and_precision_are_read_back(builder: Builder) -> None:
    model, _ = builder.linear()
    program = model.load()
    assert program.engine_version[0].isdigit()
    assert list(program.placement) == ["CPU"]
    assert program.placement["CPU"] > 0
    # On CPUs that have bf16, OpenVINO would take it for a model in fp32 if it were left to it.
    assert program.precision == "fp32"
    assert program.precisions == {"fp32": 1}


def test_the_effective_precision_is_told_whatever_was_promised(builder: Builder) -> None:
    model, _ = builder.linear()
    assert model.load(precision="int8").precision == "fp32"


def test_int8_is_seen(builder: Builder) -> None:
    program = builder.int8_convolution().load()
    assert program.precisions == {"int8": 1}
    assert program.precision == "int8"


# Refusals


def test_a_failure_of_the_engine_is_told_and_the_program_goes_on(builder: Builder) -> None:
    model = builder.build(
        [Node("Add", ["a", "b"], ["y"])],
        (TensorSpec("a", "float32", ("n", 4)), TensorSpec("b", "float32", ("m", 4))),
        (TensorSpec("y", "float32", ("k", 4)),),
    )
    program = model.load()
    with pytest.raises(InferenceError, match=r"failed: ."):
        program.run({"a": normal(2, 4), "b": normal(3, 4)})
    np.testing.assert_array_equal(program.run({"a": normal(2, 4), "b": normal(2, 4)})["y"], 2 * normal(2, 4))


@pytest.mark.parametrize("entry", [b"", b"\x08\x08", b"no model at all", b"\xff" * 100, b"<net", b"<a/>"])
def test_what_is_no_model_is_refused(builder: Builder, entry: bytes) -> None:
    model, _ = builder.linear()
    members = {**model.members, model.spec.files[0]: entry}
    with pytest.raises((ArtifactError, InferenceError)) as refusal:
        model.load(payload=MemoryPayload(members))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kept", [0, 1, 100, 4095])
def test_weights_that_are_cut_off_are_refused(builder: Builder, kept: int) -> None:
    model, _ = builder.linear()
    last = model.spec.files[-1]
    members = {**model.members, last: model.members[last][:kept]}
    with pytest.raises((ArtifactError, InferenceError)):
        model.load(payload=MemoryPayload(members))


@pytest.mark.parametrize("role", ["inputs", "outputs"])
@pytest.mark.parametrize("change", [{"name": "other"}, {"dtype": "int32"}])
def test_a_manifest_that_disagrees_with_the_model_is_refused(
    builder: Builder, role: str, change: dict[str, str]
) -> None:
    model, _ = builder.linear()
    (spec,) = getattr(model, role)
    changed: dict[str, Any] = {role: (replace(spec, **change),)}
    with pytest.raises(ArtifactError, match=f"manifest declares the {role[:-1]}"):
        replace(model, **changed).load()


def test_another_version_line_is_refused_with_the_way_out(builder: Builder) -> None:
    model, _ = builder.linear()
    with pytest.raises(BackendUnavailableError, match=r"needs .* >=9999.*pip install"):
        model.load(version=">=9999")


def test_another_device_is_refused(builder: Builder) -> None:
    model, _ = builder.linear()
    with pytest.raises(BackendUnavailableError, match="TPU"):
        model.load(device="TPU")


def packed(model: Model, directory: Path, golden: Sequence[GoldenVector] = ()) -> Path:
    """Pack a model as an artifact."""
    manifest = Manifest(
        model="model",
        model_version="1",
        target="cpu-x86_64",
        engine=model.spec,
        inputs=model.inputs,
        outputs=model.outputs,
        golden={spec.name: {"max_abs_error": 1e-3} for spec in model.outputs} if golden else {},
    )
    vectors = {GOLDEN: encode_golden(golden)} if golden else {}
    return pack(directory / "model.edgec", manifest, {**model.members, **vectors})
