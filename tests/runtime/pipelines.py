"""Pipelines and processors for the tests, made of plain data as a manifest holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgec.artifact import Pipeline, Quantization, TensorSpec
from edgec.runtime.pipeline import Processor

Step = dict[str, Any]


def spec(name: str, dtype: str, *shape: int | str, quantization: Quantization | None = None) -> TensorSpec:
    return TensorSpec(name, dtype, shape, quantization=quantization)


def processor(
    before: list[Step],
    after: list[Step],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec] | None = None,
    labels: list[str] | None = None,
    files: Callable[[str], bytes] | None = None,
) -> Processor:
    data = {"preprocess": before, "postprocess": after, "labels": labels or []}
    return Processor(
        Pipeline.from_dict(data), tuple(inputs), tuple(outputs or [spec("y", "float32", 1, 2)]), files
    )
