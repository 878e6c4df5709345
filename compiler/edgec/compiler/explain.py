"""Where int8 loses accuracy: the error of every layer of a Q/DQ graph against the source in fp32.

Three errors of a layer, each as a signal-to-noise ratio (SNR) against what fp32 computes:

- *local*: at the layer's own output, given the inputs that fp32 gives it: what its weights, its input and
  its output lose by eight bits;
- *accumulated*: at the layer's output in the quantized graph: with the errors of all layers before it;
- *isolated*: at the worst output of the model where this layer alone is quantized: what its error does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.compiler.onnxruntime import ReferenceProgram, with_outputs
from edgec.errors import ConversionError, UnsupportedModelError
from edgec.evaluation import Evaluation

Arrays = Mapping[str, NDArray[Any]]
Quantize = Callable[[tuple[str, ...]], onnx.ModelProto]
Score = Callable[[onnx.ModelProto], float]

LAYER_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_ISOLATED = 16
_MARKS = ("_QuantizeLinear_Input", "_DequantizeLinear_Output")  # what ONNX Runtime's quantizer adds to names
_EXACT_DB = 200.0  # beyond what fp32 resolves


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What one layer loses in a Q/DQ graph.

    Attributes:
        name: Of its node.
        op: Its operator.
        tensor: What it gives: a name of the source.
        precision: ``int8``, or ``fp32`` where it was left in float.
        accumulated_snr_db: Of its output in the quantized graph; None where nothing is lost.
        local_snr_db: Of its output given exact inputs; None where nothing is lost.
        isolated_snr_db: Of the model's worst output with this layer alone in int8; None where nothing is
            lost, or it was not tried.
        isolated_score: Of the metric with this layer alone in int8; None where it was not tried.
        isolated: Whether it was tried alone.
    """

    name: str
    op: str
    tensor: str
    precision: str
    accumulated_snr_db: float | None = None
    local_snr_db: float | None = None
    isolated_snr_db: float | None = None
    isolated_score: float | None = None
    isolated: bool = False


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A sample whose prediction int8 turned.

    Attributes:
        name: Of the sample.
        label: What is true of it.
        before: What fp32 predicts.
        after: What int8 predicts.
    """

    name: str
    label: str
    before: str
    after: str


def layer_errors(
    model: onnx.ModelProto, quantized: onnx.ModelProto, inputs: Sequence[Arrays]
) -> tuple[LayerError, ...]:
    """Return accumulated and local error of every layer with weights, in the order of computation.

    Args:
        model: The source in fp32, as it was quantized.
        quantized: Its Q/DQ graph.
        inputs: Samples, at least one.
    """
    layers = _layers(model, quantized)
    if not layers:
        return ()
    cut = _Cut(model, quantized)
    wanted = dict.fromkeys(n for layer in layers for n in (layer.own, layer.tensor))
    measured = dict.fromkeys(layer.measured for layer in layers)
    local_names = dict.fromkeys(n for layer in layers for n in (layer.raw, *layer.rounded))
    accumulated = {layer.name: _Tally() for layer in layers}
    raw = {layer.name: _Tally() for layer in layers}
    rounded = {layer.name: _Tally() for layer in layers}
    with (
        ReferenceProgram(with_outputs(model, [*dict.fromkeys([*wanted, *cut.sources])]), threads=0) as source,
        ReferenceProgram(with_outputs(quantized, list(measured)), threads=0) as whole,
        ReferenceProgram(with_outputs(cut.model, list(local_names)), threads=0) as local,
    ):
        for sample in inputs:
            exact = {**source.run(sample), **sample}
            seen = whole.run(sample)
            alone = local.run({**sample, **cut.feeds(exact)})
            for layer in layers:
                accumulated[layer.name].add(exact[layer.tensor], seen[layer.measured])
                raw[layer.name].add(exact[layer.own], alone[layer.raw])
                for name in layer.rounded:
                    rounded[layer.name].add(exact[layer.tensor], alone[name])
    return tuple(
        LayerError(
            name=layer.name,
            op=layer.op,
            tensor=layer.tensor,
            precision=layer.precision,
            accumulated_snr_db=accumulated[layer.name].snr_db,
            local_snr_db=_together(raw[layer.name], rounded[layer.name]),
        )
        for layer in layers
    )


def isolate(
    errors: Sequence[LayerError],
    model: onnx.ModelProto,
    quantize: Quantize,
    inputs: Sequence[Arrays],
    *,
    most: int = MOST_ISOLATED,
    score: Score | None = None,
) -> tuple[LayerError, ...]:
    """Return the errors with those of the worst layers in isolation.

    Args:
        errors: Of `layer_errors`.
        model: The source in fp32.
        quantize: Returns the Q/DQ graph with the named layers left in float.
        inputs: Samples.
        most: How many layers to try alone, the largest local error first.
        score: Scores a graph by the task's metric, where there is one.
    """
    suspects = {e.name for e in sorted(_int8(errors), key=_local)[:most]}
    names = [e.name for e in errors]
    with ReferenceProgram(model, threads=0) as program:
        exact = [program.run(sample) for sample in inputs]
    found = []
    for error in errors:
        if error.name not in suspects:
            found.append(error)
            continue
        try:
            graph = quantize(tuple(sorted(n for n in names if n != error.name)))
        except ConversionError:  # it cannot be quantized without the others
            found.append(error)
            continue
        found.append(
            replace(
                error,
                isolated=True,
                isolated_snr_db=worst_snr_db(graph, inputs, exact),
                isolated_score=score(graph) if score is not None else None,
            )
        )
    return tuple(found)


def by_harm(errors: Sequence[LayerError]) -> list[LayerError]:
    """Return the layers in int8, the most harmful first: by isolated error, then by local error."""
    return sorted(_int8(errors), key=lambda e: (not e.isolated, _db(e.isolated_snr_db), _local(e), e.name))


def flips(before: Evaluation, after: Evaluation, most: int = 20) -> tuple[int, tuple[Flip, ...]]:
    """Return how many samples have another prediction than before, and the first of them.

    A prediction is its first class; a detection's is its most certain box. Predictions without classes
    cannot flip.
    """
    found = []
    rows = zip(before.names, before.labels, before.predictions, after.predictions, strict=True)
    for name, label, first, second in rows:
        a, b = _said(first), _said(second)
        if a is not None and a != b:
            found.append(Flip(name=name, label=_label(label), before=a, after=b or "nothing"))
    return len(found), tuple(found[:most])


def worst_snr_db(graph: onnx.ModelProto, inputs: Sequence[Arrays], exact: Sequence[Arrays]) -> float | None:
    """Return the SNR of the worst output over all samples; None where nothing is lost."""
    tallies = {name: _Tally() for name in exact[0]}
    try:
        with ReferenceProgram(graph, threads=0) as program:
            for sample, expected in zip(inputs, exact, strict=True):
                actual = program.run(sample)
                for name, tally in tallies.items():
                    tally.add(expected[name], actual[name])
    except UnsupportedModelError:
        return -_EXACT_DB
    found = [t.snr_db for t in tallies.values() if t.snr_db is not None]
    return min(found, default=None)


def mean_shifts(
    model: onnx.ModelProto, quantized: onnx.ModelProto, inputs: Sequence[Arrays]
) -> dict[str, NDArray[np.float64]]:
    """Return by how much int8 shifts each output channel of a Conv or Gemm on average, given exact inputs.

    Returns:
        By name of the node: ``float64[channels]``, fp32 minus int8.
    """
    layers = [layer for layer in _layers(model, quantized) if layer.precision == "int8" and layer.same_node]
    if not layers:
        return {}
    cut = _Cut(model, quantized)
    sums: dict[str, NDArray[np.float64]] = {}
    wanted = [*dict.fromkeys([*(layer.own for layer in layers), *cut.sources])]
    with (
        ReferenceProgram(with_outputs(model, wanted)) as source,
        ReferenceProgram(with_outputs(cut.model, [*dict.fromkeys(layer.raw for layer in layers)])) as local,
    ):
        for sample in inputs:
            exact = {**source.run(sample), **sample}
            alone = local.run({**sample, **cut.feeds(exact)})
            for layer in layers:
                shift = exact[layer.own].astype(np.float64) - alone[layer.raw]
                axes = tuple(a for a in range(shift.ndim) if a != 1)
                sums[layer.name] = sums.get(layer.name, 0.0) + shift.mean(axis=axes)
    return {name: total / len(inputs) for name, total in sums.items()}


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A layer with weights, and where its figures are found.

    Attributes:
        own: Tensor that its node gives in the source.
        raw: The same in the Q/DQ graph, before it is rounded.
        tensor: Tensor of the source that the Q/DQ graph's node gives: after a Relu that fused with it.
        measured: Tensor that the rest of the Q/DQ graph takes.
        rounded: The dequantized output, where there is one.
        same_node: Whether source and Q/DQ graph have the same node for it.
    """

    name: str
    op: str
    precision: str
    own: str
    raw: str
    tensor: str
    measured: str
    rounded: tuple[str, ...]
    same_node: bool


def _layers(model: onnx.ModelProto, quantized: onnx.ModelProto) -> list[_Layer]:
    own = {n.name or n.output[0]: n for n in model.graph.node}
    known = {name for n in model.graph.node for name in n.output}
    producers = {name: n for n in quantized.graph.node for name in n.output}
    dequantized = {n.input[0]: n.output[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    rounded = {
        n.input[0]: dequantized[n.output[0]]
        for n in quantized.graph.node
        if n.op_type == "QuantizeLinear" and n.output[0] in dequantized
    }
    constants = {t.name for t in quantized.graph.initializer}
    found = []
    for node in quantized.graph.node:
        if node.op_type not in LAYER_TYPES or len(node.input) < 2:
            continue
        weight = producers.get(node.input[1])
        if node.input[1] not in constants and (weight is None or weight.op_type != "DequantizeLinear"):
            continue  # a product of two activations
        tensor = _plain(node.output[0], known)
        source = own.get(node.name)
        same = source is not None and source.op_type == node.op_type
        if tensor is None:
            continue
        after = rounded.get(node.output[0])
        found.append(
            _Layer(
                name=node.name or node.output[0],
                op=node.op_type,
                precision="fp32" if weight is None else "int8",
                own=source.output[0] if same and source is not None else tensor,
                raw=node.output[0],
                tensor=tensor,
                measured=after or node.output[0],
                rounded=(after,) if after is not None else (),
                same_node=same and node.op_type in ("Conv", "Gemm"),
            )
        )
    return found


def _plain(name: str, known: set[str]) -> str | None:
    """Return the name that a tensor has in the source; None where it has none."""
    for mark in ("", *_MARKS):
        if name.endswith(mark) and name.removesuffix(mark) in known:
            return name.removesuffix(mark)
    return None


class _Cut:
    """A Q/DQ graph whose activations are taken from outside before each rounding.

    Attributes:
        model: The graph; it has an input more for each entry of `sources`.
        sources: Tensors of the source that it takes.
    """

    def __init__(self, model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        known = {name for n in model.graph.node for name in n.output} | {i.name for i in model.graph.input}
        self.model = onnx.ModelProto()
        self.model.CopyFrom(quantized)
        constants = {t.name for t in quantized.graph.initializer}
        taken: dict[str, None] = {}
        for node in self.model.graph.node:
            if node.op_type != "QuantizeLinear" or node.input[0] in constants:
                continue
            source = _plain(node.input[0], known)
            if source is not None:
                node.input[0] = _outside(source)
                taken[source] = None
        self.sources = list(taken)
        for name in self.sources:
            self.model.graph.input.append(
                onnx.helper.make_tensor_value_info(_outside(name), onnx.TensorProto.FLOAT, None)
            )

    def feeds(self, exact: Arrays) -> dict[str, NDArray[Any]]:
        """Return its additional inputs from the tensors of the source."""
        return {_outside(name): exact[name] for name in self.sources}


def _outside(name: str) -> str:
    return f"edgec_outside/{name}"


class _Tally:
    """Power of a signal and of its noise, over all that was added."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: NDArray[Any], actual: NDArray[Any]) -> None:
        if exact.dtype.kind != "f" or exact.shape != actual.shape:
            return
        expected = exact.astype(np.float64)
        self.signal += float(np.sum(expected**2))
        self.noise += float(np.sum((expected - actual) ** 2))

    @property
    def ratio(self) -> float:
        """Noise over signal."""
        return self.noise / self.signal if self.signal else math.inf if self.noise else 0.0

    @property
    def snr_db(self) -> float | None:
        return _as_db(self.ratio)


def _together(*tallies: _Tally) -> float | None:
    return _as_db(sum(t.ratio for t in tallies))


def _as_db(ratio: float) -> float | None:
    if not ratio:
        return None
    if not math.isfinite(ratio):
        return -_EXACT_DB
    return max(-_EXACT_DB, -10.0 * math.log10(ratio))


def _int8(errors: Sequence[LayerError]) -> list[LayerError]:
    return [e for e in errors if e.precision == "int8"]


def _local(error: LayerError) -> float:
    return _db(error.local_snr_db)


def _db(value: float | None) -> float:
    return math.inf if value is None else value


def _said(prediction: Mapping[str, Any]) -> str | None:
    classes = prediction.get("classes")
    if classes is None:
        return None
    scores = prediction.get("scores")
    index = int(np.argmax(scores)) if scores is not None and "boxes" in prediction and len(scores) else 0
    if len(classes) <= index:
        return "nothing"
    names = prediction.get("labels")
    return str(names[index]) if names else str(int(classes[index]))


def _label(label: object) -> str:
    classes = getattr(label, "classes", label)
    if isinstance(classes, np.ndarray):
        return ", ".join(str(c) for c in dict.fromkeys(classes.ravel().tolist()))
    return str(classes)
