"""Parity: an artifact, in its engine, computes what its source computes.

The tolerance is not a constant that somebody chose. A float artifact may differ from the source by
as much as the source differs from itself when its inputs and weights are off by the unit roundoff
of the arithmetic (the *noise floor*), times a margin. A quantized artifact is held against its own
Q/DQ graph: there, rounding may fall on the other side, by a quantization step or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.onnxruntime import ReferenceProgram, perturb, perturbed, with_outputs
from edgec.evaluation import OutputComparison, compare_outputs

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Mapping[str, NDArray[Any]]]

# Unit roundoff of each arithmetic: half the distance between 1 and the next number.
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_RUNS = 8
_MARGIN = 4.0
_QUANTIZATION_STEPS = 2.0
_QUANTIZED_PEAK_MARGIN = 2.0
# A kernel that accumulates in another order rounds a few per cent of its results to the neighbouring
# step: as many as noise of this part of a step does.
_MISROUNDING_STEPS = 1.0 / 16.0
_ROUNDING_STEPS = 1.0 / 2.0


@dataclass(frozen=True)
class _Perturbation:
    """Weights off by a unit roundoff; a class and no function, so that references can be pickled."""

    roundoff: float

    def __call__(self, model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
        return perturbed(model, self.roundoff, seed)


@dataclass(frozen=True)
class _Misrounding:
    """Activations misrounded by up to `steps`, and what stays in float off by a unit roundoff."""

    roundoff: float
    steps: float

    def __call__(self, model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
        return misrounded(perturbed(model, self.roundoff, seed), seed, self.steps)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far one output may be from the reference.

    Attributes:
        max_abs: Largest absolute error.
        rms: Largest root mean square error over all values of all samples.
    """

    max_abs: float
    rms: float


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What an artifact is held against.

    Attributes:
        inputs: Samples, each by name of the input.
        outputs: What the reference gives for each sample.
        tolerance: By name of the output.
        description: What the reference is and where the tolerance comes from, in words.
        model: The graph that was run.
        noisy: Gives the graph with the noise that the tolerance stands for, by seed.
        input_roundoff: Noise of the inputs, relative; 0 where they are left as they are.
        margin: Factor on the deviation that the noise causes.
    """

    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    tolerance: Mapping[str, Tolerance]
    description: str
    model: onnx.ModelProto | Path
    noisy: Callable[[onnx.ModelProto, int], onnx.ModelProto]
    input_roundoff: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """One output of an artifact against the reference, over all samples.

    Attributes:
        comparison: The figures.
        tolerance: What was allowed.
        rms_error: Root mean square error.
    """

    comparison: OutputComparison
    tolerance: Tolerance
    rms_error: float

    @property
    def passed(self) -> bool:
        """Whether both errors are within the tolerance; NaN never is."""
        return bool(
            self.comparison.max_abs_error <= self.tolerance.max_abs and self.rms_error <= self.tolerance.rms
        )


@dataclass(frozen=True, kw_only=True)
class Parity:
    """An artifact against its reference.

    Attributes:
        outputs: One entry per output.
        reference: What it was held against, in words.
    """

    outputs: tuple[OutputParity, ...]
    reference: str

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(o.passed for o in self.outputs)

    @property
    def worst(self) -> OutputParity:
        """The output that uses most of its tolerance."""
        return max(self.outputs, key=_used)


def parity_sentence(parity: Parity) -> str:
    """Return what parity found, in words."""
    worst = parity.worst
    error, allowed = worst.comparison.max_abs_error, worst.tolerance
    return (
        f"output {worst.comparison.name!r} {'keeps' if parity.passed else 'leaves'} its tolerance: "
        f"max abs error {error:.3g} (allowed {allowed.max_abs:.3g}), "
        f"RMS {worst.rms_error:.3g} (allowed {allowed.rms:.3g})"
    )


def _used(output: OutputParity) -> float:
    error, allowed = output.comparison.max_abs_error, output.tolerance.max_abs
    if not np.isfinite(error):
        return np.inf
    return error / allowed if allowed else (np.inf if error else 0.0)


def check_parity(run: Run, reference: Reference) -> Parity:
    """Run an artifact on the reference's samples and compare every output."""
    expected = _joined(reference.outputs)
    actual = _joined([run(sample) for sample in reference.inputs])
    return Parity(
        outputs=tuple(
            OutputParity(
                comparison=comparison,
                tolerance=reference.tolerance[comparison.name],
                rms_error=_rms(expected[comparison.name], actual[comparison.name]),
            )
            for comparison in compare_outputs(expected, actual)
        ),
        reference=reference.description,
    )


def _joined(samples: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """Put the outputs of all samples into one flat array per name: their shapes may differ."""
    return {name: np.concatenate([np.ravel(s[name]) for s in samples]) for name in samples[0]}


def float_reference(model: onnx.ModelProto | Path, inputs: Sequence[Arrays], precision: str) -> Reference:
    """Run the source, and measure its noise floor at the roundoff of `precision`.

    Args:
        model: The source, weights inside; or the path of one whose weights are too large for that. Where
            weights cannot be perturbed, only inputs are, and the tolerance is enlarged for it.
        inputs: Samples.
        precision: ``fp32``, ``fp16`` or ``bf16``.
    """
    roundoff = ROUNDOFF[precision]
    reachable = isinstance(model, onnx.ModelProto) and not _weights_are_attributes(model)
    floor = _MARGIN if reachable else 16.0 * _MARGIN
    perturbed_parts = "inputs and weights" if reachable else "inputs"
    return _reference(
        model,
        inputs,
        noisy=_Perturbation(roundoff),
        input_roundoff=roundoff,
        margin=_MARGIN,
        least=lambda name, largest: floor * roundoff * largest,
        description=(
            f"the source in ONNX Runtime fp32, optimizations off; tolerance {_MARGIN:g} x the largest "
            f"deviation over {_RUNS} runs with {perturbed_parts} off by the unit roundoff of {precision} "
            f"(2^{np.log2(roundoff):g})"
        ),
    )


def _weights_are_attributes(model: onnx.ModelProto) -> bool:
    # Trees and linear models of ai.onnx.ml: no initializer to perturb, and ONNX Runtime adds up the trees
    # in an order that depends on the number of threads.
    return any(node.domain == "ai.onnx.ml" for node in model.graph.node)


def quantized_reference(
    model: onnx.ModelProto,
    inputs: Sequence[Arrays],
    what: str = "its own Q/DQ graph",
    arithmetic: str = "fp32",
) -> Reference:
    """Run a Q/DQ graph as it is written; an artifact made from it may be two quantization steps off.

    Engines fuse Q/DQ pairs into integer kernels, whose results may round to the neighbouring step.
    Such a step inside the graph reaches the outputs enlarged, so the tolerance is two steps of the
    output's own scale and the deviation of the Q/DQ graph itself when its activations are
    misrounded here and there; of the largest error, twice that: one run in nine of the very same noise
    exceeds the largest of eight, and by much where outputs have long tails, as those of detectors do.
    The root mean square, which a systematic fault moves first, gets no such margin.

    Args:
        model: With explicit Q/DQ, weights inside.
        inputs: Samples.
        what: What the graph is to the artifact, in words.
        arithmetic: Of what is not in integers: ``fp32``, ``fp16`` or ``bf16``.
    """
    steps = output_steps(model)
    roundoff = _MARGIN * ROUNDOFF[arithmetic]  # of what stays in float
    return _reference(
        model,
        inputs,
        noisy=_Misrounding(roundoff, _MISROUNDING_STEPS),
        input_roundoff=roundoff,
        margin=1.0,
        peak_margin=_QUANTIZED_PEAK_MARGIN,
        least=lambda name, largest: _QUANTIZATION_STEPS * steps.get(name, 0.0) + roundoff * largest,
        description=(
            f"{what} in ONNX Runtime, optimizations off; tolerance "
            f"{_QUANTIZATION_STEPS:g} quantization steps of the output over the "
            f"deviation in {_RUNS} runs with activations misrounded by 1/16 step, of the largest error "
            f"{_QUANTIZED_PEAK_MARGIN:g} x that"
            + ("" if arithmetic == "fp32" else f"; the rest in {arithmetic}")
        ),
    )


def dynamic_reference(
    model: onnx.ModelProto, inputs: Sequence[Arrays], *, rounds_alike: bool = True
) -> Reference:
    """Run a graph in dynamic int8 as it is written; an artifact made from it may misround here and there.

    Args:
        model: With explicit DynamicQuantizeLinear, weights inside.
        inputs: Samples.
        rounds_alike: Whether the artifact is made of this graph, and rounds where it does. Otherwise each
            activation may be half a step off, which is as much as rounding does.
    """
    steps = _MISROUNDING_STEPS if rounds_alike else _ROUNDING_STEPS
    roundoff = _MARGIN * ROUNDOFF["fp32"]  # of what stays in float
    return _reference(
        model,
        inputs,
        noisy=_Misrounding(roundoff, steps),
        input_roundoff=roundoff,
        margin=1.0,
        peak_margin=None if rounds_alike else _QUANTIZED_PEAK_MARGIN,
        least=lambda name, largest: _MARGIN * ROUNDOFF["fp32"] * largest,
        description=(
            "its own graph in dynamic int8 in ONNX Runtime, optimizations off; tolerance: the largest "
            f"deviation in {_RUNS} runs with activations misrounded by {steps:g} step"
        ),
    )


def _reference(
    model: onnx.ModelProto | Path,
    inputs: Sequence[Arrays],
    *,
    noisy: Callable[[onnx.ModelProto, int], onnx.ModelProto],
    input_roundoff: float,
    margin: float,
    peak_margin: float | None = None,
    least: Callable[[str, float], float],
    description: str,
) -> Reference:
    with ReferenceProgram(model) as program:
        outputs = [program.run(sample) for sample in inputs]
    expected = _joined(outputs)
    peak, rms = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
    for seed in range(_RUNS):
        variant = model if isinstance(model, Path) else noisy(model, seed)
        actual = _joined(_noisy_run(variant, inputs, input_roundoff, seed))
        for name, value in actual.items():
            peak[name] = max(peak[name], _peak(expected[name], value))
            rms[name] = max(rms[name], _rms(expected[name], value))
    tolerance = {}
    for name, value in expected.items():
        floor = least(name, _magnitude(value))
        largest = (peak_margin or margin) * peak[name]
        tolerance[name] = Tolerance(max_abs=largest + floor, rms=margin * rms[name] + floor)
    return Reference(
        inputs=inputs,
        outputs=outputs,
        tolerance=tolerance,
        description=description,
        model=model,
        noisy=noisy,
        input_roundoff=input_roundoff,
        margin=margin,
    )


def _noisy_run(
    model: onnx.ModelProto | Path, inputs: Sequence[Arrays], roundoff: float, seed: int
) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(seed)
    with ReferenceProgram(model) as program:
        return [program.run({n: _noisy(a, roundoff, rng) for n, a in sample.items()}) for sample in inputs]


def _noisy(array: NDArray[Any], roundoff: float, rng: np.random.Generator) -> NDArray[Any]:
    return perturb(array, roundoff, rng) if roundoff and array.dtype.kind == "f" else array


def _difference(expected: NDArray[Any], actual: NDArray[Any]) -> NDArray[np.float64]:
    """Return the absolute differences: 0 where both are equal, infinite where one is NaN or shapes differ."""
    if expected.dtype.kind not in "fiub" or expected.shape != actual.shape:
        same = expected.shape == actual.shape and bool(np.all(expected == actual))
        return np.array([0.0 if same else np.inf])
    with np.errstate(invalid="ignore"):
        difference = np.atleast_1d(np.abs(expected.astype(np.float64) - actual.astype(np.float64)))
    equal = np.atleast_1d((expected == actual) | ((expected != expected) & (actual != actual)))
    difference[equal] = 0.0
    result: NDArray[np.float64] = np.nan_to_num(difference, nan=np.inf, posinf=np.inf)
    return result


def _peak(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    return float(np.max(_difference(expected, actual), initial=0.0))


def _rms(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    difference = _difference(expected, actual)
    return float(np.sqrt(np.mean(difference**2))) if difference.size else 0.0


def _magnitude(values: NDArray[Any]) -> float:
    if values.dtype.kind != "f":
        return 0.0
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(np.max(finite, initial=0.0))


def output_steps(model: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of every graph output that a DequantizeLinear gives."""
    constants = {t.name: t for t in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    steps: dict[str, float] = {}
    for output in model.graph.output:
        node = producers.get(output.name)
        if node is not None and node.op_type == "DequantizeLinear" and node.input[1] in constants:
            steps[output.name] = float(np.max(onnx.numpy_helper.to_array(constants[node.input[1]])))
    return steps


def misrounded(model: onnx.ModelProto, seed: int, steps: float = _MISROUNDING_STEPS) -> onnx.ModelProto:
    """Return a quantized graph that adds uniform noise of ±`steps` steps before it rounds an activation.

    Where the step is found in each call, by DynamicQuantizeLinear, it is found first without the noise.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {t.name for t in copy.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(copy.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            nodes += _noise_before(node, node.input[1], index, seed, steps)
        if node.op_type == "DynamicQuantizeLinear":
            probe = [f"edgec_probe_{part}_{index}" for part in ("value", "scale", "zero_point")]
            nodes.append(onnx.helper.make_node(node.op_type, node.input, probe))
            nodes += _noise_before(node, probe[1], index, seed, steps)
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _noise_before(node: onnx.NodeProto, scale: str, index: int, seed: int, h: float) -> list[onnx.NodeProto]:
    value = node.input[0]
    uniform, noise, noisy = (f"edgec_{kind}_{index}" for kind in ("uniform", "noise", "noisy"))
    node.input[0] = noisy
    make = onnx.helper.make_node
    return [
        make("RandomUniformLike", [value], [uniform], low=-h, high=h, seed=float(seed * 100_003 + index)),
        make("Mul", [uniform, scale], [noise]),
        make("Add", [value, noise], [noisy]),
    ]


def first_divergence(reference: Reference, run_variant: Callable[[onnx.ModelProto], Run]) -> str | None:
    """Return the first inner tensor, in topological order, at which an artifact leaves its reference.

    Args:
        reference: What the artifact failed against.
        run_variant: Converts a variant of the reference's graph, which gives its inner tensors too,
            in the same way as the artifact was made, and returns how to run it.

    Returns:
        The name; None where no inner tensor is off by itself (the engine fuses what lies between).
    """
    if isinstance(reference.model, Path):
        return None
    names = inner_tensors(reference.model)
    variant = with_outputs(reference.model, names)
    sample = reference.inputs[:1]
    with ReferenceProgram(variant) as program:
        expected = program.run(sample[0])
    noise = [
        _noisy_run(reference.noisy(variant, seed), sample, reference.input_roundoff, seed)[0]
        for seed in range(_RUNS)
    ]
    actual = run_variant(variant)(sample[0])
    for name in (*names, *(o.name for o in reference.model.graph.output)):
        floor = max(_peak(expected[name], n[name]) for n in noise)
        least = 4.0 * ROUNDOFF["fp32"] * _magnitude(expected[name])
        if _peak(expected[name], actual[name]) > 2.0 * reference.margin * floor + least:
            return str(name)
    return None


def inner_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the names of the float tensors between inputs and outputs, in topological order.

    In a Q/DQ graph these are the dequantized activations: what lies between two of them is one
    integer kernel in the engine.
    """
    outputs = {o.name for o in model.graph.output}
    types = _element_types(model)
    quantized = any(n.op_type == "QuantizeLinear" for n in model.graph.node)
    constants = {t.name for t in model.graph.initializer}
    names = []
    for node in model.graph.node:
        activation = node.op_type == "DequantizeLinear" and node.input[0] not in constants
        if quantized and not activation:
            continue
        names += [o for o in node.output if o and o not in outputs and types.get(o) == onnx.TensorProto.FLOAT]
    return names


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
