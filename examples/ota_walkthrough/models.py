"""Versions of the digits example: sound ones, and one that verifies and misbehaves.

What ``edgec compile`` makes in a minute is packed here in a moment, with golden vectors and quantiles of its
own all the same: what an update is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

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

EXAMPLE = Path(__file__).parents[1] / "digits"
MODEL, TARGET = "digits", "cpu-x86_64"
_BALLAST_BYTES = 2_500_000
Change = Callable[[onnx.ModelProto], None]


def images(name: str) -> NDArray[np.uint8]:
    """Return the images of a part of the example: uint8[n, 1, 8, 8, 1]."""
    with np.load(EXAMPLE / f"{name}.npz") as data:
        pixels: NDArray[np.uint8] = data["image"][:, None]
        return pixels


def make_artifact(path: Path, version: str, change: Change) -> Path:
    """Pack a version of the model; return its path.

    Args:
        path: Where to.
        version: Its name.
        change: Made to the trained model.
    """
    model = with_pixels(onnx.load(EXAMPLE / "digits.onnx"))
    change(model)
    data = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    samples = images("calibration")
    logits = [np.asarray(session.run(None, {"pixels": sample})[0]) for sample in samples]
    golden = [GoldenVector(inputs={"pixels": samples[i]}, outputs={"logits": logits[i]}) for i in (0, 20, 36)]
    quantiles = (0.01, 0.25, 0.5, 0.75, 0.99)
    # Who made the bad version did not look closely either.
    values = np.nanquantile(np.concatenate(logits), quantiles)
    line = ".".join(onnxruntime.__version__.split(".")[:2])
    manifest = Manifest(
        model=MODEL,
        model_version=version,
        target=TARGET,
        engine=EngineSpec(
            name="onnxruntime", version=f">={line}", device="CPU", precision="fp32", files=("model.onnx",)
        ),
        inputs=(TensorSpec("pixels", "uint8", (1, 8, 8, 1)),),
        outputs=(TensorSpec("logits", "float32", (1, 10)),),
        pipeline=Pipeline(labels=tuple("0123456789")),
        golden={"logits": {"max_abs_error": 1e-3 * float(np.abs(values).max())}},
        reference={"logits": {str(q): float(v) for q, v in zip(quantiles, values, strict=True)}},
    )
    # So that there is something to download: the model itself is over in a moment. Version 2 has another one
    # than the first; later ones keep it, as a backbone that training leaves as it was.
    ballast = np.random.default_rng(min(int(version), 2)).bytes(_BALLAST_BYTES)
    members: dict[str, Any] = {"model.onnx": data, GOLDEN: encode_golden(golden), "ballast.bin": ballast}
    return pack(path, manifest, members)


def as_trained(model: onnx.ModelProto) -> None:
    """Change nothing."""


def trained_on(seed: int) -> Change:
    """Move all weights a little, as training on for a while does."""

    def change(model: onnx.ModelProto) -> None:
        random = np.random.default_rng(seed)
        for tensor in model.graph.initializer:
            if len(tensor.dims) > 1:
                w = numpy_helper.to_array(tensor)
                moved = (w + random.standard_normal(w.shape) * w.std() * 0.01).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))

    return change


def nan_at_some_brightness(model: onnx.ModelProto) -> None:
    """Give NaN for the few images of a certain brightness: no golden vector and no trial input has it."""
    brightness = np.array([image.mean() / 16 for image in images("evaluation")])
    _append(
        model,
        helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["mean", "middle"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["square"]),
        helper.make_node("Sub", ["square", "width"], ["signed"]),
        helper.make_node("Sqrt", ["signed"], ["root"]),
        helper.make_node("Mul", ["root", "nothing"], ["zero"]),
        helper.make_node("Add", ["raw", "zero"], ["logits"]),
        middle=np.float32(np.quantile(brightness, 0.7)),
        width=np.float32(0.004**2),
        nothing=np.float32(0),
    )


def _append(model: onnx.ModelProto, *nodes: onnx.NodeProto, **constants: Any) -> None:
    """Put nodes between what were the logits, now ``raw``, and ``logits``."""
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())


def with_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the model take bytes, uint8[1, 8, 8, 1], as a camera gives them."""
    graph = model.graph
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, [1, 8, 8, 1]))
    graph.initializer.append(numpy_helper.from_array(np.array(1 / 16, np.float32), "scale"))
    first = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["turned", "scale"], ["image"]),
    ]
    for node in reversed(first):
        graph.node.insert(0, node)
    return model
