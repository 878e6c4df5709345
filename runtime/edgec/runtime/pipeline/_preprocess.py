"""From a sample to the inputs of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from edgec.artifact import TensorSpec
from edgec.artifact.steps import Decode, Dtype, InputStep, Layout, Normalize, Step, Tokenize
from edgec.errors import PipelineError
from edgec.runtime._opencv import opencv
from edgec.runtime.pipeline import _image, _tensor
from edgec.runtime.pipeline._plan import Array, Context, Frame, Operation, Planner, Value, expect, numbered
from edgec.runtime.pipeline._text import Tokenizer, make_tokenizer, plan_tokenize

_PLANNERS: dict[type, Planner] = _image.PLANNERS | _tensor.PLANNERS


class ArrayChain:
    """The planned steps of one input.

    Attributes:
        spec: The input they prepare.
        operations: In order.
        decodes: Whether the first one reads an image, so that the rest have a geometry.
        result: What is known of their result.
    """

    def __init__(self, spec: TensorSpec, operations: list[Operation], decodes: bool, result: Value) -> None:
        self.spec = spec
        self.operations = operations
        self.decodes = decodes
        self.result = result

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it prepares."""
        return (self.spec.name,)

    def run(self, sample: Any, arrays: dict[str, Array], frames: dict[str, Frame]) -> None:
        """Prepare the input and note it in `arrays`, and the geometry of an image in `frames`."""
        value, frame, rest = sample, Frame(0, 0), self.operations
        if self.decodes:
            value, rest = rest[0](sample, frame), rest[1:]
            frame = frames[self.spec.name] = Frame(value.shape[1], value.shape[0])
        for operation in rest:
            value = operation(value, frame)
        advice = ": add a `resize` step to the pipeline" if self.decodes else ""
        arrays[self.spec.name] = conform(_tensor.to_array(value), self.spec, advice)


class TextChain:
    """A planned `tokenize` step.

    Attributes:
        step: The step.
        filled: Specs of the inputs it fills, by name.
    """

    def __init__(self, step: Tokenize, filled: dict[str, TensorSpec]) -> None:
        self.step = step
        self.filled = filled
        self.tokenizer: Tokenizer | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs it prepares, the token ids first."""
        return tuple(self.filled)

    def run(self, sample: Any, arrays: dict[str, Array], frames: dict[str, Frame]) -> None:
        """Prepare the inputs and note them in `arrays`."""
        assert self.tokenizer is not None
        for name, array in self.tokenizer(sample).items():
            arrays[name] = conform(array, self.filled[name])


class Preprocessing:
    """The planned stage: how a sample becomes the inputs of the model.

    Raises:
        PipelineError: The steps cannot fit the inputs; the message names the step.
    """

    def __init__(self, steps: Iterable[Step], inputs: tuple[TensorSpec, ...]) -> None:
        self._inputs = {spec.name: spec for spec in inputs}
        grouped: dict[str, list[tuple[int, InputStep]]] = {name: [] for name in self._inputs}
        texts: list[TextChain] = []
        for number, step in enumerate(steps, 1):
            with numbered("preprocess", number):
                if isinstance(step, Tokenize):
                    texts.append(TextChain(step, plan_tokenize(step, self._inputs)))
                else:
                    assert isinstance(step, InputStep)
                    grouped[self._input_of(step)].append((number, step))
        taken = [name for chain in texts for name in chain.inputs]
        for name in taken:
            expect(
                taken.count(name) == 1 and not grouped[name],
                f"preprocess: input {name!r} is filled by `tokenize` and by another step",
            )
        arrays = [self._plan(name, own) for name, own in grouped.items() if name not in taken]
        self.chains: list[ArrayChain | TextChain] = [*texts, *arrays]

    @property
    def frames(self) -> tuple[str, ...]:
        """Names of the inputs that are images with a known geometry."""
        return tuple(c.spec.name for c in self.chains if isinstance(c, ArrayChain) and c.decodes)

    def load(self, files: Callable[[str], bytes] | None) -> None:
        """Bring in what running takes: libraries, and the files that the steps name.

        Raises:
            MissingExtraError: A library is not installed.
            PipelineError: A file is needed and `files` is None, or a file is not what it should be.
        """
        if self.frames:
            opencv("image preprocessing")
        for chain in self.chains:
            if isinstance(chain, TextChain):
                if files is None:
                    raise PipelineError(f"tokenize needs the content of {chain.step.file!r}: pass files=")
                chain.tokenizer = make_tokenizer(chain.step, chain.filled, files(chain.step.file))

    def run(self, sample: Any) -> Context:
        """Return the inputs of the model, each with a batch of 1, and the geometry of images."""
        arrays: dict[str, Array] = {}
        frames: dict[str, Frame] = {}
        for chain, part in self._parts(sample):
            chain.run(part, arrays, frames)
        if len(arrays) == len(self._inputs):
            return Context({name: arrays[name] for name in self._inputs}, frames)
        missing = ", ".join(self._inputs.keys() - arrays.keys())
        raise PipelineError(f"the sample lacks input {missing}: give a mapping with every input of the model")

    def _parts(self, sample: Any) -> Iterable[tuple[ArrayChain | TextChain, Any]]:
        if not isinstance(sample, Mapping):
            if len(self.chains) != 1:
                names = ", ".join(chain.inputs[0] for chain in self.chains)
                raise PipelineError(f"the model takes several inputs: give a mapping by name, with {names}")
            return [(self.chains[0], sample)]
        for name in sample:
            if name not in self._inputs:
                known = ", ".join(self._inputs)
                raise PipelineError(f"the sample has an input {str(name)[:60]!r}, the model takes {known}")
        return [part for chain in self.chains for part in self._named_parts(chain, sample)]

    def _named_parts(
        self, chain: ArrayChain | TextChain, sample: Mapping[str, Any]
    ) -> list[tuple[ArrayChain | TextChain, Any]]:
        if isinstance(chain, TextChain) and not isinstance(sample.get(chain.inputs[0]), str | tuple):
            # Tokens that somebody else made, a data set of arrays for example.
            specs = chain.filled.values()
            return [(ArrayChain(s, [], False, Value()), sample[s.name]) for s in specs if s.name in sample]
        name = chain.inputs[0]
        return [(chain, sample[name])] if name in sample else []

    def _input_of(self, step: InputStep) -> str:
        if step.input is not None:
            expect(
                step.input in self._inputs,
                f"{step.step}: the model has no input {step.input!r}; it has {', '.join(self._inputs)}",
            )
            return step.input
        expect(
            len(self._inputs) == 1,
            f"{step.step}: say which input it prepares (key input): {', '.join(self._inputs)}",
        )
        return next(iter(self._inputs))

    def _plan(self, name: str, steps: list[tuple[int, InputStep]]) -> ArrayChain:
        spec, value = self._inputs[name], Value()
        operations: list[Operation] = []
        for number, step in _layout_first(steps):
            with numbered("preprocess", number):
                operation, value = _PLANNERS[type(step)](step, value, spec)
                operations.append(operation)
        _check_result(value, spec)
        return ArrayChain(spec, operations, bool(steps) and isinstance(steps[0][1], Decode), value)


def _layout_first(steps: list[tuple[int, InputStep]]) -> list[tuple[int, InputStep]]:
    """Move `layout` before steps that work value by value: bytes are moved faster than floats."""
    steps = list(steps)
    for at in range(1, len(steps)):
        place = at
        while (
            place
            and isinstance(steps[place][1], Layout)
            and isinstance(steps[place - 1][1], Normalize | Dtype)
        ):
            steps[place - 1], steps[place] = steps[place], steps[place - 1]
            place -= 1
    return steps


def _check_result(value: Value, spec: TensorSpec) -> None:
    """Refuse a chain whose result cannot be the input `spec`."""
    where = f"preprocess: input {spec} cannot take what its steps give, {value}"
    if value.shape is not None:
        expect(_fits(value.shape, spec), f"{where}: {_shape_advice(value, value.shape, spec)}")
    if value.layout and spec.layout and len(value.layout) == len(spec.layout):
        expect(value.layout == spec.layout, f'{where}: add a `layout` step with order = "{spec.layout}"')
    if value.dtype is not None:
        expect(value.dtype == spec.dtype, f"{where}: {_dtype_advice(value, spec)}")


def _fits(shape: tuple[int | None, ...], spec: TensorSpec) -> bool:
    """Whether a value can be the input `spec`, with a batch axis of 1 where it lacks; None fits all."""
    full = (1, *shape) if len(shape) == len(spec.shape) - 1 else shape
    return len(full) == len(spec.shape) and all(
        have is None or isinstance(want, str) or have == want
        for have, want in zip(full, spec.shape, strict=True)
    )


def _shape_advice(value: Value, shape: tuple[int | None, ...], spec: TensorSpec) -> str:
    if value.layout is None or len(shape) < 3:
        return "change its shape with `reshape`"
    *lead, a, b, c = shape
    flipped, order = (
        ((*lead, b, c, a), "NHWC") if value.layout.endswith("CHW") else ((*lead, c, a, b), "NCHW")
    )
    if _fits(flipped, spec):
        return f'add a `layout` step with order = "{order}"'
    return "change the size in `resize` or `crop`, or the channels in `color`"


def _dtype_advice(value: Value, spec: TensorSpec) -> str:
    if np.dtype(spec.dtype).kind in "iu" and value.dtype == "float32":
        return "add a `quantize` step"
    return f'add a `normalize` step, or a `dtype` step with to = "{spec.dtype}"'


def conform(array: Array, spec: TensorSpec, advice: str = "") -> Array:
    """Return `array` as the input `spec`: with a batch axis of 1 where it lacks, and in its dtype.

    Raises:
        PipelineError: The shape differs, or a value would change.
    """
    if not _fits(array.shape, spec):
        raise PipelineError(f"expected input {spec}, got a sample {array.dtype}{list(array.shape)}{advice}")
    dtype = np.dtype(spec.dtype)
    if array.dtype != dtype:
        if array.dtype.kind == "f" and dtype.kind in "iu":
            raise PipelineError(f"expected input {spec}, got a sample of {array.dtype}: quantize it first")
        array = _tensor.convert(array, dtype)
    array = np.asarray(array, order="C")  # unlike ascontiguousarray, keeps a scalar a scalar
    return array[None] if array.ndim < len(spec.shape) else array
