"""How near a candidate comes to the source where there are no labels, and whether that is near enough.

An output that chooses among classes is judged by how often the candidate chooses as the source does: that
is what its users see, and 20 dB of signal over noise can hide one changed choice in twenty. Every other
output is judged by its signal-to-noise ratio, because the place of its largest value means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.artifact import Pipeline, TensorSpec
from edgec.artifact.steps import Softmax, TopK
from edgec.compiler.tournament import Verdict
from edgec.evaluation import OutputTally, inner_product, jackknife_error, wilson_interval

Kind = Literal["classes", "map", "values"]

ENOUGH_AGREEMENT = 0.99  # of the samples that were seen
SHOWN_AGREEMENT = 0.98  # of all there may be, by the one-sided 95 % bound
ENOUGH_SNR_DB = 20.0
SHOWN_SNR_DB = 17.0
# So near to the source that few samples are enough, as long as they do not speak against it.
CLOSE_SNR_DB = 40.0

_ONE_SIDED = 0.90  # a two-sided interval of 90 % has one-sided bounds of 95 %
_Z = 1.6449
_FEWEST_FOR_A_BOUND = 8
_SCORES = ("Softmax", "LogSoftmax", "Gemm", "MatMul")
_SHAPING = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
_TRANSPARENT = (*_SHAPING, "Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near one output is to the source's over all samples.

    Attributes:
        name: Of the output.
        kind: ``classes``: one choice among classes per sample; ``map``: many, as of every pixel or anchor;
            ``values``: anything else.
        samples: That were seen.
        snr_db: Of all values together; infinite where they are the same.
        snr_bound_db: One-sided 95 % lower bound of it, by leaving out each sample in turn; None for fewer
            than eight.
        agreement: Share of choices that are the source's; of a map the mean over the classes that the source
            chooses, because most of a map is background. None for values.
        agreement_bounds: One-sided 95 % bounds of it; None where choices are not independent.
    """

    name: str
    kind: Kind
    samples: int
    snr_db: float
    snr_bound_db: float | None
    agreement: float | None
    agreement_bounds: tuple[float, float] | None

    @property
    def verdict(self) -> Verdict:
        """Whether it is near enough."""
        if self.kind == "classes":
            return self._by_agreement()
        by_snr = self._by_snr()
        agrees = self.agreement is not None and self.agreement >= ENOUGH_AGREEMENT
        return "pass" if agrees else by_snr

    @property
    def short(self) -> bool:
        """Whether what was seen is less than what is asked for."""
        if self.kind == "classes":
            return self.agreement is not None and self.agreement < ENOUGH_AGREEMENT
        return self.snr_db < ENOUGH_SNR_DB

    @property
    def needed(self) -> int | None:
        """About how many samples like these would show enough agreement; None where none would."""
        if self.kind != "classes" or self.agreement is None or self.agreement < ENOUGH_AGREEMENT:
            return None
        n = self.samples
        while n < 100_000:
            if _bounds(self.agreement * n, n)[0] >= SHOWN_AGREEMENT:
                return n
            n += max(1, n // 100)
        return None

    def _by_agreement(self) -> Verdict:
        assert self.agreement is not None
        assert self.agreement_bounds is not None
        low, high = self.agreement_bounds
        if high < ENOUGH_AGREEMENT:
            return "fail"
        if self.snr_db >= CLOSE_SNR_DB or (self.agreement >= ENOUGH_AGREEMENT and low >= SHOWN_AGREEMENT):
            return "pass"
        return "inconclusive"

    def _by_snr(self) -> Verdict:
        if self.snr_db < ENOUGH_SNR_DB:
            return "fail"
        shown = self.snr_bound_db is None or self.snr_bound_db >= SHOWN_SNR_DB
        return "pass" if shown else "inconclusive"

    def __str__(self) -> str:
        snr = "identical" if math.isinf(self.snr_db) and self.snr_db > 0 else f"SNR {self.snr_db:.1f} dB"
        if self.agreement is None:
            shown = self.snr_bound_db is not None and math.isfinite(self.snr_bound_db)
            return f"{self.name} {snr}" + (f" (at least {self.snr_bound_db:.1f})" if shown else "")
        bound = f" (at least {self.agreement_bounds[0]:.1%})" if self.agreement_bounds is not None else ""
        of_what = " per class" if self.kind == "map" else ""
        return f"{self.name} agreement {self.agreement:.1%}{of_what}{bound}, {snr}"


class LikenessTally:
    """Compares one output over many inferences, in memory that grows by three numbers per sample."""

    def __init__(self, name: str, kind: Kind) -> None:
        """Start with nothing added."""
        self._name = name
        self._kind: Kind = kind
        self._tally = OutputTally(name)
        self._powers: list[tuple[float, float]] = []
        self._agreed: dict[int, int] = {}
        self._chosen: dict[int, int] = {}

    def add(self, source: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Add both outputs for one input.

        Raises:
            DataError: Their shapes differ, or they are not numbers.
        """
        self._tally.add(source, candidate)
        finite = np.isfinite(source) & np.isfinite(candidate)
        s = np.where(finite, source, 0).astype(np.float64).ravel()
        noise = s - np.where(finite, candidate, 0).astype(np.float64).ravel()
        self._powers.append((inner_product(s, s), inner_product(noise, noise)))
        if self._kind != "values":
            self._add_choices(source, candidate)

    @property
    def result(self) -> Likeness:
        """How near the two are over all that was added."""
        agreed, chosen = sum(self._agreed.values()), sum(self._chosen.values())
        agreement: float | None = None
        kind = self._kind if chosen else "values"
        if kind == "classes":
            agreement = agreed / chosen
        elif kind == "map":
            agreement = float(np.mean([self._agreed[c] / n for c, n in self._chosen.items()]))
        return Likeness(
            name=self._name,
            kind=kind,
            samples=len(self._powers),
            snr_db=self._tally.result.snr_db,
            snr_bound_db=self._snr_bound(),
            agreement=agreement,
            agreement_bounds=_bounds(agreed, chosen) if kind == "classes" else None,
        )

    def _add_choices(self, source: NDArray[Any], candidate: NDArray[Any]) -> None:
        """Count the rows whose choice is one that the source rates highest too: of a tie, any will do."""
        if _are_classes(source.dtype) or source.ndim == 0 or source.shape[-1] < 2:
            chosen, same = source.ravel(), (source == candidate).ravel()
        else:
            s, c = (a.reshape(-1, a.shape[-1]) for a in (source, candidate))
            chosen, choice = np.argmax(s, axis=-1), np.argmax(c, axis=-1)
            rows = np.arange(len(s))
            same = (s[rows, choice] == s[rows, chosen]) & ~np.isnan(c).any(axis=-1)
        for value, agrees in zip(chosen.tolist(), same.tolist(), strict=True):
            self._chosen[value] = self._chosen.get(value, 0) + 1
            self._agreed[value] = self._agreed.get(value, 0) + int(agrees)

    def _snr_bound(self) -> float | None:
        powers = np.asarray(self._powers, np.float64)
        snr = self._tally.result.snr_db
        if len(powers) < _FEWEST_FOR_A_BOUND or not math.isfinite(snr):
            return None
        signal, noise = np.maximum(powers.sum(axis=0) - powers, 1e-300).T
        return snr - _Z * jackknife_error(10.0 * np.log10(signal / noise))


def kind_of(
    spec: TensorSpec, model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], pipeline: Pipeline | None
) -> Kind:
    """Say whether an output chooses among classes.

    It does where the pipeline takes it for scores (softmax, top-k), where Softmax along its last axis gives
    it, or, of an output of one row per sample, a fully connected layer: such an output may be an embedding or
    a regression too, which are then held to more than they need. What has an input's shape is a
    reconstruction. Whole numbers are classes.
    """
    whole = _are_classes(np.dtype(spec.dtype))
    if not whole and (not spec.shape or spec.shape[-1] == 1):
        return "values"
    rows = spec.shape if whole else spec.shape[:-1]
    one_row = math.prod(n for n in rows if isinstance(n, int)) == 1
    node = _scores_node(spec.name, model)
    reconstructs = any(spec.shape == i.shape for i in inputs)
    scores = node in ("Softmax", "LogSoftmax") or (node is not None and one_row and not reconstructs)
    if not (whole or scores or _declared(spec, pipeline)):
        return "values"
    return "classes" if one_row else "map"


def _are_classes(dtype: np.dtype[Any]) -> bool:
    """Whether values are classes themselves; eight bits are quantized scores."""
    return dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize > 1)


def _bounds(agreed: float, n: int) -> tuple[float, float]:
    return wilson_interval(round(agreed), n, _ONE_SIDED)


def _declared(spec: TensorSpec, pipeline: Pipeline | None) -> bool:
    steps = pipeline.postprocess if pipeline is not None else ()
    return any(isinstance(step, Softmax | TopK) and step.output in (None, "", spec.name) for step in steps)


def _scores_node(output: str, model: onnx.ModelProto) -> str | None:
    """Return the kind of operator that gives an output of scores; None where none does."""
    makers: Mapping[str, onnx.NodeProto] = {name: n for n in model.graph.node for name in n.output}
    node = makers.get(output)
    while node is not None and node.op_type in _TRANSPARENT:
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "Add":
        products = (makers.get(name) for name in node.input)
        node = next((p for p in products if p is not None and p.op_type == "MatMul"), None)
    if node is None or node.op_type not in _SCORES:
        return None
    if node.op_type in ("Softmax", "LogSoftmax"):
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=13)
        return node.op_type if axis == -1 or opset < 13 or axis == _rank(node, model) - 1 else None
    return node.op_type


def _rank(node: onnx.NodeProto, model: onnx.ModelProto) -> int:
    values = {v.name: v for v in (*model.graph.output, *model.graph.value_info)}
    value = values.get(node.output[0]) or model.graph.output[0]
    return len(value.type.tensor_type.shape.dim)
