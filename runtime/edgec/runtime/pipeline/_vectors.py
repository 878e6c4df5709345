"""Postprocessing of outputs that are read as a whole: embeddings and reconstructions."""

from __future__ import annotations

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Embedding, ReconstructionError
from edgec.errors import PipelineError
from edgec.runtime.pipeline._plan import Array, expect
from edgec.runtime.pipeline._tensor import dequantize, single
from edgec.runtime.pipeline._work import Facts, Operation, Planner, Work, row


def _plan_embedding(step: Embedding, facts: Facts) -> Operation:
    facts.becomes(step, "embedding")
    spec, pooling, normalize = facts.output_of(step), step.pooling, step.normalize
    rank = len(spec.shape)
    wanted = (1, 2) if pooling == "none" else (3,)
    shape = "[1, d]" if pooling == "none" else "[1, tokens, d]"
    expect(rank in wanted, f"embedding: pooling {pooling!r} expects an output {shape}, the model has {spec}")
    mask = step.mask if step.mask in facts.inputs else None

    def run(work: Work) -> None:
        vector = row(work.tensors[spec.name]).astype(np.float32, copy=False)
        if pooling == "mean":
            vector = _mean(vector, work.context.inputs[mask] if mask else None)
        elif pooling == "first":
            vector = vector[0]
        length = np.linalg.norm(vector) if normalize else 1.0
        work.prediction = {"embedding": vector / np.float32(max(length, 1e-12))}

    return run


def _mean(tokens: Array, mask: Array | None) -> Array:
    """Return the mean of float32[tokens, d] over those whose `mask`, [1, tokens], is not 0."""
    weights = np.ones(len(tokens), np.float32) if mask is None else mask.reshape(-1).astype(np.float32)
    if len(weights) != len(tokens):
        raise PipelineError(f"embedding: the mask has {len(weights)} tokens, the output {len(tokens)}")
    mean: Array = (weights @ tokens) / max(float(weights.sum()), 1e-9)
    return mean


def _plan_reconstruction_error(step: ReconstructionError, facts: Facts) -> Operation:
    facts.becomes(step, "anomaly")
    output = facts.output_of(step)
    expect(
        step.input in facts.inputs if step.input else len(facts.inputs) == 1,
        f"reconstruction_error: say which input is reconstructed (key input): {', '.join(facts.inputs)}",
    )
    source = facts.inputs[step.input or next(iter(facts.inputs))]
    expect(
        len(source.shape) == len(output.shape)
        and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(source.shape, output.shape, strict=True)
        ),
        f"reconstruction_error: output {output} has not the shape of input {source}",
    )
    squared = step.metric == "mse"

    def run(work: Work) -> None:
        error = _real(work.context.inputs[source.name], source) - _real(work.tensors[output.name], output)
        magnitude = np.square(error, out=error) if squared else np.abs(error, out=error)
        work.prediction = {"anomaly_score": float(magnitude.mean(dtype=np.float64))}

    return run


def _real(array: Array, spec: TensorSpec) -> Array:
    """Return the real numbers, float32, that `array` stands for."""
    known = single(spec.quantization)
    if array.dtype.kind in "iu" and known is not None:
        return dequantize(array, *known)
    return array.astype(np.float32, copy=False)


PLANNERS: dict[type, Planner] = {
    Embedding: _plan_embedding,
    ReconstructionError: _plan_reconstruction_error,
}
