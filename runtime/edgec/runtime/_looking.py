"""What is looked at in one call of a model: its inputs, its outputs, how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Manifest, Scores, TensorSpec
from edgec.artifact.steps import Dequantize, Sigmoid, Softmax, Step, Threshold, TopK
from edgec.runtime._batches import why_not_batched
from edgec.runtime._input_statistics import one_sample, statistics_of, thinned
from edgec.runtime._window import CONFIDENCE_EDGES
from edgec.sketch import Histogram, QuantileSketch, reference_bins

Arrays = Mapping[str, NDArray[Any]]
# Returns scores of the outputs of a call: a row for each sample, a column for each class.
_FindScores = Callable[[Arrays], "NDArray[Any] | None"]
_MOST_ROWS = 256
_MOST_CLASSES = 4096
_ACTIVATIONS: Mapping[str, type[Softmax] | type[Sigmoid]] = {"softmax": Softmax, "sigmoid": Sigmoid}


class Sight:
    """What was seen in calls that were looked into; the fields are those of `Window`."""

    __slots__ = ("classes", "confidence", "input_bins", "inputs", "non_finite", "outputs", "sampled")

    def __init__(
        self,
        confidence: Histogram | None,
        outputs: dict[str, Histogram],
        inputs: dict[str, dict[str, QuantileSketch]],
        input_bins: dict[str, dict[str, Histogram]],
    ) -> None:
        self.sampled = 0
        self.non_finite = 0
        self.confidence = confidence
        self.classes: dict[int, int] = {}
        self.outputs = outputs
        self.inputs = inputs
        self.input_bins = input_bins

    def rate(self, scores: NDArray[Any], classes: NDArray[Any]) -> None:
        """Add the scores of predictions, and the classes that they are of."""
        if self.confidence is None:
            self.confidence = Histogram(CONFIDENCE_EDGES)
        self.confidence.add_many(scores)
        for number in classes.tolist():
            known = number if 0 <= number < _MOST_CLASSES else -1
            self.classes[known] = self.classes.get(known, 0) + 1


class Looker:
    """Looks into calls of one model."""

    def __init__(
        self, manifest: Manifest, inputs: Mapping[str, tuple[str, ...]] | None, most_values: int
    ) -> None:
        """Plan what to look at.

        Args:
            manifest: Of the artifact.
            inputs: Statistics by name of the input, in place of what the manifest names; names that the
                model does not have are passed over, as it may be swapped.
            most_values: Of each tensor, values that are looked at, spread over it evenly.
        """
        self._most = most_values
        chosen = manifest.observe.inputs if inputs is None else inputs
        numeric = {spec.name for spec in manifest.inputs if spec.dtype != "object"}
        self._inputs = {name: tuple(chosen[name]) for name in chosen if name in numeric}
        self._edges = {
            name: edges
            for name, quantiles in manifest.reference.items()
            if (edges := reference_bins(quantiles)[0])
        }
        self._input_edges = {
            name: by_statistic
            for name, statistics in self._inputs.items()
            if (by_statistic := _edges_of(manifest.input_reference.get(name, {}), statistics))
        }
        self._joins = not why_not_batched(manifest, "")
        self._real = {spec.name: _reals(spec) for spec in manifest.outputs if spec.name in self._edges}
        self._floats = [spec.name for spec in manifest.outputs if np.dtype(spec.dtype).kind == "f"]
        self._scores = scores_of(manifest)

    def blank(self) -> Sight:
        """Return sketches without values."""
        return Sight(
            None if self._scores is None else Histogram(CONFIDENCE_EDGES),
            {name: Histogram(edges) for name, edges in self._edges.items()},
            {
                name: {statistic: QuantileSketch() for statistic in statistics}
                for name, statistics in self._inputs.items()
            },
            {
                name: {statistic: Histogram(edges) for statistic, edges in by_statistic.items()}
                for name, by_statistic in self._input_edges.items()
            },
        )

    def look(self, sight: Sight, inputs: Arrays, outputs: Arrays) -> None:
        """Add what there is to see in a call."""
        sight.sampled += 1
        if not all(np.isfinite(outputs[name]).all() for name in self._floats):
            sight.non_finite += 1
        for name, histogram in sight.outputs.items():
            histogram.add_many(self._real[name](thinned(outputs[name], self._most)))
        for name, sketches in sight.inputs.items():
            found = statistics_of(inputs[name], sketches, self._most)
            for statistic, value in found.items():
                sketches[statistic].add(value)
            if name in sight.input_bins:
                self._count(sight, name, inputs[name], found)
        scores = None if self._scores is None else self._scores(outputs)
        if scores is not None:
            classes = np.argmax(scores, axis=1)
            sight.rate(scores[np.arange(len(scores)), classes], classes)

    def _count(self, sight: Sight, name: str, array: NDArray[Any], found: Mapping[str, float]) -> None:
        """Count the statistics of one sample between the quantiles of the reference."""
        bins = sight.input_bins[name]
        one = one_sample(array, sight.sampled) if self._joins else array
        values = found if one is array else statistics_of(one, bins, self._most)
        for statistic, histogram in bins.items():
            if statistic in values:
                histogram.add(values[statistic])


def _edges_of(
    reference: Mapping[str, Mapping[str, float]], statistics: tuple[str, ...]
) -> dict[str, tuple[float, ...]]:
    found = {name: reference_bins(reference[name])[0] for name in statistics if name in reference}
    return {name: edges for name, edges in found.items() if edges}


def _reals(spec: TensorSpec) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what turns values of a quantized output into those that it stands for."""
    quantization = spec.quantization
    if quantization is None or quantization.axis is not None or np.dtype(spec.dtype).kind not in "iu":
        return lambda values: values
    scale, zero = quantization.scale[0], quantization.zero_point[0]
    return lambda values: (values.astype(np.float64) - zero) * scale


def scores_of(manifest: Manifest) -> _FindScores | None:
    """Return what finds the scores of a classification; None where the model is none, as far as is known."""
    if manifest.observe.scores is not None:
        return _declared(manifest, manifest.observe.scores)
    return _piped(manifest)


def _declared(manifest: Manifest, scores: Scores) -> _FindScores:
    name, activation = scores.output, _ACTIVATIONS.get(scores.activation)
    spec = next(spec for spec in manifest.outputs if spec.name == name)
    steps: list[Step] = []
    if spec.quantization is not None and np.dtype(spec.dtype).kind in "iu":
        steps.append(Dequantize(output=name))
    if activation is not None:
        steps.append(activation(output=name))
    return _prepared(manifest, name, tuple(steps))


def _piped(manifest: Manifest) -> _FindScores | None:
    pipeline = manifest.pipeline
    steps = () if pipeline is None else pipeline.postprocess
    before = tuple(takewhile(lambda s: isinstance(s, (Dequantize, Softmax, Sigmoid)), steps))
    last = steps[len(before)] if len(steps) > len(before) else None
    if not isinstance(last, (TopK, Threshold)):
        return None
    name = last.output or manifest.outputs[0].name
    return _prepared(manifest, name, tuple(s for s in before if getattr(s, "output", None) in (None, name)))


def _prepared(manifest: Manifest, output: str, steps: tuple[Step, ...]) -> _FindScores:
    """Return what finds scores: an output, after steps that compute each sample by itself."""
    from edgec.runtime.pipeline._plan import Context  # here, because bare tensors do without it
    from edgec.runtime.pipeline._postprocess import Postprocessing
    from edgec.runtime.pipeline._work import Facts

    processing = Postprocessing(steps, Facts(manifest.inputs, manifest.outputs, (), ()))

    def find(outputs: Arrays) -> NDArray[Any] | None:
        array = outputs[output]
        array = array[:_MOST_ROWS] if array.ndim > 1 else array[None]
        if not array.size:
            return None
        made: Any = processing.run({output: array}, Context({}, {}))
        scores: NDArray[Any] = made[output]
        return scores.reshape(len(scores), -1)

    return find
