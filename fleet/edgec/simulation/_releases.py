"""Releases of a small model, made on the spot: sound ones, and ones that are bad in a way that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import (
    GOLDEN,
    GoldenVector,
    Manifest,
    Observation,
    Pipeline,
    TensorSpec,
    encode_golden,
    pack,
)
from edgec.artifact._manifest import Scores
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec
from edgec.simulation._behaviour import HEALTHY, MEMBER, POISONED, POISONS, Behaviour, BehaviourError

MODEL = "sorter"
LABELS = ("bottle", "can", "carton", "cup", "film", "foil", "glass", "paper", "tray", "other")
_FEATURES = 16
_CALIBRATION = 400
_SHARPNESS = 6.0
# Two tensors of so many float32: 240 MiB.
_HUNGER = 30 * 2**20
_RANKS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def make_release(
    path: Path,
    version: str,
    *,
    target: str,
    poison: str | None = None,
    behaviour: Behaviour | None = None,
    model: str = MODEL,
    ballast_bytes: int = 0,
) -> Path:
    """Pack a release: a linear classifier that runs on ONNX Runtime, and what simulated devices draw from.

    Golden vectors and quantiles are the model's own. There is no report of a compilation: a registry takes it
    for a reason only.

    Args:
        path: Where to.
        version: Of the model; weights differ a little from version to version.
        target: That it is said to be compiled for.
        poison: What it is bad in, one of `POISONS`; None for nothing.
        behaviour: Declared in place of what `poison` has.
        model: Its name.
        ballast_bytes: Added, so that there is something to download.

    Returns:
        `path`.

    Raises:
        BehaviourError: There is no such poison.
    """
    if poison is not None and poison not in POISONS:
        raise BehaviourError(f"expected a poison of {', '.join(POISONS)}, got {poison!r}")
    random = np.random.default_rng(list(version.encode()))
    weights = _weights(random)
    samples = np.random.default_rng(5).standard_normal((_CALIBRATION, 1, _FEATURES)).astype(np.float32)
    samples += np.random.default_rng(6).permutation(np.tile(_prototypes().T, (_CALIBRATION // 10, 1)))[
        :, None
    ]
    scores = [_scores(sample, weights) for sample in samples]
    wrong = np.full((1, len(LABELS)), 0.5 if poison == "install" else 0, np.float32)
    golden = [
        GoldenVector(inputs={"features": samples[i]}, outputs={"scores": scores[i] + wrong})
        for i in range(0, 40, 5)
    ]
    values = np.quantile(np.concatenate(scores), _RANKS)
    manifest = Manifest(
        model=model,
        model_version=version,
        target=target,
        engine=onnxruntime_spec(),
        inputs=(TensorSpec("features", "float32", (1, _FEATURES)),),
        outputs=(TensorSpec("scores", "float32", (1, len(LABELS))),),
        pipeline=Pipeline(labels=LABELS),
        golden={"scores": {"max_abs_error": 1e-4}},
        reference={"scores": {str(r): float(v) for r, v in zip(_RANKS, values, strict=True)}},
        observe=Observation(scores=Scores(output="scores")),
        provenance={"made_by": "edgec.simulation"},
    )
    declared = behaviour or POISONED.get(poison or "", HEALTHY)
    members: dict[str, Any] = {
        **_members(weights, hungry=poison == "memory"),
        MEMBER: declared.to_json(),
        GOLDEN: encode_golden(golden),
    }
    if ballast_bytes:
        members = {"ballast.bin": random.bytes(ballast_bytes), **members}
    return pack(path, manifest, members)


def _prototypes() -> NDArray[np.float32]:
    """Return what an item of each class looks like, as a recognizer knows it: float32[features, classes]."""
    random = np.random.default_rng(4)
    return (random.standard_normal((_FEATURES, len(LABELS))) * 1.2).astype(np.float32)


def _weights(random: np.random.Generator) -> NDArray[np.float32]:
    moved = _prototypes() + 0.02 * random.standard_normal((_FEATURES, len(LABELS)))
    return (moved / _SHARPNESS).astype(np.float32)


def _scores(sample: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = sample @ weights
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _members(weights: NDArray[np.float32], *, hungry: bool) -> dict[str, bytes]:
    inputs = (TensorSpec("features", "float32", (1, _FEATURES)),)
    outputs = (TensorSpec("scores", "float32", (1, len(LABELS))),)
    tensors: dict[str, NDArray[Any]] = {"weights": weights}
    last = "logits"
    nodes = [Node("MatMul", ["features", "weights"], ["logits"])]
    if hungry:
        tensors |= {"shape": np.array([_HUNGER], np.int64), "nothing": np.zeros(1, np.float32)}
        nodes += [
            Node("ReduceMean", ["features"], ["mean"], {"keepdims": 0}),
            Node("Expand", ["mean", "shape"], ["wide"]),
            Node("Exp", ["wide"], ["grown"]),
            Node("ReduceMin", ["grown"], ["least"], {"keepdims": 0}),
            Node("Mul", ["least", "nothing"], ["zero"]),
            Node("Add", ["logits", "zero"], ["fed"]),
        ]
        last = "fed"
    nodes.append(Node("Softmax", [last], ["scores"], {"axis": -1}))
    return onnx_members(nodes, inputs, outputs, tensors, external_bytes=64)
