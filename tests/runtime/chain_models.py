"""Tiny artifacts for the tests of chains: a recurrent model, a detector, a classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

LABELS = ["left", "right", "top"]
BOXES = np.array([[[2, 2, 6, 8], [10, 1, 14, 7], [4, 10, 12, 14]]], np.float32)
SCORES = np.array([[[0.9, 0.1, 0], [0, 0.6, 0.1], [0.2, 0.1, 0.8]]], np.float32)


def recurrent(path: Path, *, gain: float = 1.0, size: int = 4) -> Path:
    """``y = gain * x + h``, ``hn = y``: a sum of all that came."""
    specs = [TensorSpec(name, "float32", (1, size)) for name in ("x", "h", "y", "hn")]
    nodes = [
        Node("Mul", ["x", "gain"], ["g"]),
        Node("Add", ["g", "h"], ["y"]),
        Node("Identity", ["y"], ["hn"]),
    ]
    return _pack(path, nodes, specs[:2], specs[2:], {"gain": np.array(gain, np.float32)})


def detector(path: Path, labels: list[str] = LABELS) -> Path:
    """Finds the same three boxes in any 16x16 image."""
    image = [TensorSpec("image", "float32", (1, 3, 16, 16))]
    outputs = [TensorSpec("boxes", "float32", (1, 3, 4)), TensorSpec("scores", "float32", (1, 3, 3))]
    nodes = [
        Node("ReduceMax", ["image"], ["m"], {"axes": [1, 2, 3], "keepdims": 0}),
        Node("Mul", ["m", "zero"], ["z"]),
        Node("Add", ["all_boxes", "z"], ["boxes"]),
        Node("Add", ["all_scores", "z"], ["scores"]),
    ]
    weights = {"zero": np.array([0], np.float32), "all_boxes": BOXES, "all_scores": SCORES}
    boxes = {
        "format": "boxes_scores",
        "boxes": "boxes",
        "scores": "scores",
        "unit": "pixel",
        "min_score": 0.05,
    }
    pipeline = {
        "preprocess": [*_image_steps("RGB", 16)],
        "postprocess": [{"step": "detection", "min_score": 0.05, **boxes}],
        "labels": labels,
    }
    return _pack(path, nodes, image, outputs, weights, pipeline)


def classifier(path: Path, *, batch: int | str = "n", seed: int = 0) -> Path:
    """Tells two classes apart by a random weight per pixel of a grey 4x4 image."""
    image = [TensorSpec("image", "float32", (batch, 1, 4, 4))]
    outputs = [TensorSpec("logits", "float32", (batch, 2))]
    nodes = [Node("Flatten", ["image"], ["flat"]), Node("MatMul", ["flat", "w"], ["logits"])]
    w = np.random.default_rng(seed).standard_normal((16, 2)).astype(np.float32)
    pipeline = {
        "preprocess": [*_image_steps("GRAY", 4)],
        "postprocess": [{"step": "softmax"}, {"step": "top_k", "k": 2}],
        "labels": ["dark", "light"],
    }
    return _pack(path, nodes, image, outputs, {"w": w}, pipeline)


def _image_steps(color: str, size: int) -> list[dict[str, object]]:
    return [
        {"step": "decode", "color": color},
        {"step": "resize", "width": size, "height": size, "interpolation": "area"},
        {"step": "layout", "order": "NCHW"},
        {"step": "normalize", "scale": 1 / 255},
    ]


def _pack(
    path: Path,
    nodes: list[Node],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    pipeline: dict[str, object] | None = None,
) -> Path:
    manifest = Manifest(
        model=path.stem,
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        pipeline=None if pipeline is None else Pipeline.from_dict(pipeline),
    )
    members = onnx_members(nodes, inputs, outputs, weights, external_bytes=1 << 20)
    return pack(path, manifest, members)
