"""A device and a gateway with artifacts of one model, of which one alone has pre-processing in the model."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("cv2", reason="needs the extra image")

from edgec.artifact import (
    GOLDEN,
    EngineSpec,
    GoldenVector,
    Manifest,
    Pipeline,
    TensorSpec,
    encode_golden,
    pack,
)
from edgec.artifact.steps import Color, Decode, Dtype, InputStep, Layout, Normalize
from edgec.errors import FallbackError
from edgec.gateway import Gateway, GatewayOptions
from edgec.runtime import Session, load
from edgec.runtime.fallback import Fallback, source_of, unsupported
from edgec.runtime.fallback._unfolding import unfolded
from edgec.runtime.fallback._wire import Described, MalformedError, read_described
from edgec.runtime.pipeline import Processor, normalize_constants
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec
from edgec.serving import ServerOptions

STEP = Normalize(scale=(1 / 255,), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = Pipeline(preprocess=(Decode(), Layout(order="NCHW"), STEP))
FOLDED = Pipeline(preprocess=(Decode(),))
OUTPUTS = (TensorSpec("y", "float32", (1, 5)),)
ABSENT = EngineSpec(name="onnxruntime", version=">=99", device="CPU", precision="fp32", files=("model.onnx",))
IMAGE = np.random.default_rng(3).integers(0, 256, (2, 4, 3), np.uint8)


def made(path: Path, *, folded: bool, engine: EngineSpec | None = None) -> Path:
    """Pack y = flatten(image) @ w, of image as float32[1, 3, 2, 4], or of its pixels."""
    w = np.random.default_rng(5).standard_normal((24, 5)).astype(np.float32)
    factor, shift = (values.reshape(-1, 1, 1) for values in normalize_constants(STEP))
    spec = (
        TensorSpec("image", "uint8", (1, 2, 4, 3)) if folded else TensorSpec("image", "float32", (1, 3, 2, 4))
    )
    before = [
        Node("Cast", ["image"], ["f"], {"to": 1}),
        Node("Transpose", ["f"], ["t"], {"perm": [0, 3, 1, 2]}),
        Node("Mul", ["t", "factor"], ["m"]),
        Node("Add", ["m", "shift"], ["p"]),
    ]
    nodes = [Node("Flatten", ["p" if folded else "image"], ["v"]), Node("MatMul", ["v", "w"], ["y"])]
    weights = {"w": w, **({"factor": factor, "shift": shift} if folded else {})}
    members = onnx_members(
        [*before, *nodes] if folded else nodes, (spec,), OUTPUTS, weights, external_bytes=2**20
    )
    values = IMAGE[None].transpose(0, 3, 1, 2) * factor + shift
    golden = GoldenVector(
        inputs={"image": IMAGE[None] if folded else values}, outputs={"y": values.reshape(1, -1) @ w}
    )
    manifest = Manifest(
        model="tiny", model_version="1", target="cpu-x86_64",
        engine=engine or onnxruntime_spec(weights=False),
        inputs=(spec,), outputs=OUTPUTS, pipeline=FOLDED if folded else PLAIN,
        golden={"y": {"max_abs_error": 1e-3}}, provenance={"source": {"sha256": "a" * 64}},
    )  # fmt: skip
    return pack(path, manifest, {**members, GOLDEN: encode_golden([golden])})


def asking(path: Path, url: str) -> Session:
    fallback = Fallback(url, when=[unsupported], match="source", deadline_ms=60_000)
    return load(path, fallback=fallback)


def test_a_device_asks_a_gateway_whose_model_has_the_pre_processing_in_it(tmp_path: Path) -> None:
    there = made(tmp_path / "there.edgec", folded=True)
    here = made(tmp_path / "here.edgec", folded=False, engine=ABSENT)
    with load(there) as session:
        expected = session.predict(IMAGE)["y"]
    options = GatewayOptions(server=ServerOptions(port=0))
    with Gateway([there], options) as gateway, asking(here, gateway.url) as session:
        for _ in range(2):
            answer = session.predict(IMAGE)
            assert source_of(answer) == "remote"
            np.testing.assert_array_equal(answer["y"], expected)
        with pytest.raises(FallbackError, match="takes pixels") as caught:
            session.run({"image": np.full((1, 3, 2, 4), 0.123, np.float32)})
        assert (type(caught.value), caught.value.reason) == (FallbackError, "refused")


def test_calls_that_learn_it_beside_each_other_are_all_answered(tmp_path: Path) -> None:
    there = made(tmp_path / "there.edgec", folded=True)
    here = made(tmp_path / "here.edgec", folded=False, engine=ABSENT)
    begin = threading.Barrier(8)
    options = GatewayOptions(server=ServerOptions(port=0))
    with (
        Gateway([there], options) as gateway,
        asking(here, gateway.url) as session,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(_: int) -> str | None:
            begin.wait(60)
            return source_of(session.predict(IMAGE))

        assert list(pool.map(ask, range(8))) == ["remote"] * 8


def test_where_it_cannot_be_done_both_inputs_are_named(tmp_path: Path) -> None:
    there = made(tmp_path / "there.edgec", folded=False)
    here = made(tmp_path / "here.edgec", folded=True, engine=ABSENT)
    options = GatewayOptions(server=ServerOptions(port=0))
    with Gateway([there], options) as gateway, asking(here, gateway.url) as session:
        with pytest.raises(FallbackError) as caught:
            session.predict(IMAGE)
        said = str(caught.value)
        assert type(caught.value) is FallbackError
        for part in ("'image' is UINT8[1, 2, 4, 3] here", "there it is FP32[1, 3, 2, 4]", "--fold on"):
            assert part in said


@pytest.mark.parametrize(
    "steps",
    [
        (Layout(order="NCHW"), STEP),
        (STEP, Layout(order="CHW")),
        (STEP,),
        (Color(order="BGR"), Normalize(scale=(1 / 128,), mean=(1.0,)), Layout(order="NCHW")),
        (STEP, Dtype(to="float16")),
        (Dtype(to="float32"), STEP, Normalize(std=(2.0, 3.0, 4.0))),
    ],
)
def test_pixels_come_back_exactly(steps: tuple[InputStep, ...]) -> None:
    first = any(isinstance(step, Layout) for step in steps)
    dtype = "float16" if Dtype(to="float16") in steps else "float32"
    spec = TensorSpec("image", dtype, (1, 3, 16, 16) if first else (1, 16, 16, 3))
    manifest = manifest_of(spec, Pipeline(preprocess=(Decode(), *steps)))
    image = np.arange(768).reshape(16, 16, 3).astype(np.uint8)  # every value in every place of a channel
    inputs, _ = Processor(manifest.pipeline, (spec,), OUTPUTS).preprocess(image)
    (one,) = unfolded(manifest, {"image": Described("UINT8", (-1, 16, 16, 3))})
    np.testing.assert_array_equal(one.pixels(inputs["image"]), image[None])
    for wrong in (np.nan, np.inf, 1e4, -1e4):
        with pytest.raises(FallbackError, match="takes pixels"):
            one.pixels(np.full_like(inputs["image"], wrong))


def manifest_of(spec: TensorSpec, pipeline: Pipeline) -> Manifest:
    return Manifest(
        model="tiny", model_version="1", target="cpu-x86_64", engine=ABSENT,
        inputs=(spec,), outputs=OUTPUTS, pipeline=pipeline,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "there"),
    [
        ({}, Described("UINT8", (1, 3, 2, 4))),
        ({}, Described("INT8", (1, 2, 4, 3))),
        ({"pipeline": None}, Described("UINT8", (1, 2, 4, 3))),
        ({"pipeline": FOLDED}, Described("UINT8", (1, 2, 4, 3))),
        (
            {"pipeline": Pipeline(preprocess=(Decode(), Normalize(scale=(0.0,))))},
            Described("UINT8", (1, 2, 4, 3)),
        ),
    ],
)
def test_other_inputs_are_told(change: Mapping[str, Any], there: Described) -> None:
    manifest = manifest_of(TensorSpec("image", "float32", (1, 3, 2, 4)), PLAIN)
    assert unfolded(manifest, {"image": Described("FP32", (-1, 3, 2, 4))}) == ()
    with pytest.raises(FallbackError, match=f"there it is {there.datatype}"):
        unfolded(replace(manifest, **change), {"image": there})
    with pytest.raises(FallbackError, match="there is none"):
        unfolded(manifest, {"other": there})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"inputs": 1}', b'{"inputs": []}', b'{"inputs": [1]}',
        b'{"inputs": [{"name": "x", "datatype": "FP33", "shape": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": [], "shape": [1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": 1}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}',
        b'{"inputs": [{"name": 1, "datatype": "FP32", "shape": [1]}]}',
    ],
)  # fmt: skip
def test_metadata_that_are_none_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        read_described(body)
