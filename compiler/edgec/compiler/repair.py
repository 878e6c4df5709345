"""Repair: an int8 candidate that loses too much accuracy gets it back, as cheaply as possible.

The order is fixed, from what costs no speed to what does: other ranges, corrected biases, equalised channels,
in recurrent networks what is between the layers in float, then the set of layers in float that costs least
time. Each trial is a full candidate, made, checked and
scored like any other, so there are few; the best so far is always kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from edgec.compiler.accuracy import score_graph
from edgec.compiler.candidates import Candidate, Made, Outcome, Shared, judge
from edgec.compiler.equalization import shift_biases
from edgec.compiler.explain import (
    Flip,
    LayerError,
    Score,
    by_harm,
    flips,
    isolate,
    layer_errors,
    mean_shifts,
)
from edgec.compiler.recipes import Recipe
from edgec.compiler.sparing import Layers, layers_of
from edgec.compiler.tournament import Contender
from edgec.errors import EdgecError, OutputError
from edgec.runtime import load
from edgec.runtime.measurement import measure_interleaved, median_ratio
from edgec.targets import Target, host_arch, host_features

MOST_EVALUATIONS = 12
_ANALYSIS_SAMPLES = 16
_METHODS = ("mse", "percentile", "minmax", "entropy")
_TIME_SHARE = 0.8  # of the time-out, after which no trial is begun
_NAMED = 4  # layers in a sentence
# Smaller differences between two trials are chance, and no reason to do more than the simplest.
_SAME_BOUND, _SAME_DB = 1e-3, 1.0
_ROUNDS = 50  # at least, to time what layers in float cost


@dataclass(frozen=True, kw_only=True)
class RepairOrder:
    """What is to be repaired; fit for pickling.

    Attributes:
        candidate: In int8.
        contender: What the gate says of it.
        made: What was made of it, to be timed; None where nothing can be timed.
        threads: Of one inference while trials are judged; None for as many as are measured with. A repair
            often has the machine to itself.
    """

    candidate: Candidate
    contender: Contender
    made: Made | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair found; fit for pickling.

    Attributes:
        outcome: The best repaired candidate; None where none is better than what was to be repaired.
        decisions: Every step, in plain sentences.
        layers: Errors of the layers before the repair.
        flips: Samples that int8 turned before the repair, the first of them; none without labels.
        evaluations: How often a candidate was scored, the first time included.
    """

    outcome: Outcome | None
    decisions: tuple[str, ...]
    layers: tuple[LayerError, ...]
    flips: tuple[Flip, ...]
    evaluations: int


def needs_repair(contender: Contender, max_drop: float | None) -> bool:
    """Whether a contender in int8 was made and is right, but is refused for what it loses.

    That is a failed gate, or an inconclusive one where what was seen is a loss over the budget.
    """
    gate = contender.gate
    if contender.precision != "int8" or contender.problem is not None or gate is None or max_drop is None:
        return False
    return gate.verdict == "fail" or (gate.verdict == "inconclusive" and gate.short)


def perform(
    target: Target, work: Candidate | RepairOrder, shared: Shared, progress: Callable[[str], None]
) -> Outcome | Repaired:
    """Do a job of a worker: judge a candidate, or repair one.

    Raises:
        OutputError: Nothing can be written.
    """
    if isinstance(work, Candidate):
        return judge(work, target, shared, progress)
    return repair(target, work, shared, progress)


def repair(target: Target, order: RepairOrder, shared: Shared, progress: Callable[[str], None]) -> Repaired:
    """Look for a recipe in int8 that the accuracy gate passes, within `MOST_EVALUATIONS` in all.

    Raises:
        OutputError: Nothing can be written.
    """
    search = _Search(target, order, shared, progress)
    try:
        search.run()
    except OutputError:
        raise
    except EdgecError as e:
        search.say(f"the repair ended: {e}")
    return search.result()


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A recipe and what came of it.

    Attributes:
        cost: What its layers in float cost in time, in no unit that matters.
    """

    recipe: Recipe
    cost: float = 0.0
    contender: Contender
    outcome: Outcome | None = None
    made: Made | None = None

    @property
    def passed(self) -> bool:
        return self.contender.admissible

    def better_than(self, other: _Trial) -> bool:
        """Whether it is to be kept instead of another: it passes, with less in float, or loses less."""
        if self.passed and other.passed:
            return self.cost < other.cost
        return self.passed or (not other.passed and self._loses_less_than(other))

    def _loses_less_than(self, other: _Trial) -> bool:
        (bound, snr), (other_bound, other_snr) = self._merit, other._merit
        if abs(bound - other_bound) > _SAME_BOUND:
            return bound > other_bound
        return snr > other_snr + _SAME_DB

    @property
    def _merit(self) -> tuple[float, float]:
        """Lower bound of the difference to fp32, or without labels of agreement, and SNR in dB."""
        contender, gate = self.contender, self.contender.gate
        if gate is None or contender.problem is not None:
            return -1e9, -1e9
        bound = gate.difference.lower_bound if gate.difference is not None else (gate.agreement or 1.0) - 1.0
        return bound, _db(contender.source_snr_db)


@dataclass
class _Search:
    """One repair on its way."""

    target: Target
    order: RepairOrder
    shared: Shared
    progress: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    evaluations: int = 1  # the candidate's own
    decisions: list[str] = field(default_factory=list)
    layers: tuple[LayerError, ...] = ()
    flips: tuple[Flip, ...] = ()
    sparing: Layers = field(default_factory=lambda: Layers(names=(), noise=(), products=(), values=()))
    first: _Trial = field(init=False)
    best: _Trial = field(init=False)
    _longest_s: float = 0.0

    def __post_init__(self) -> None:
        recipe = self.order.candidate.recipe
        self.first = self.best = _Trial(recipe=recipe, contender=self.order.contender, made=self.order.made)

    def say(self, sentence: str) -> None:
        self.decisions.append(f"repair of {self.order.candidate.name}: {sentence}")

    def run(self) -> None:
        """Try one thing after the other until the gate passes."""
        self._explain()
        for change in (*self._range_methods(), self._bias, self._equalization, self._products_only):
            if self.best.passed or not self._may_go_on():
                break
            change()
        if not self.best.passed:
            self._fewest_in_float()

    def result(self) -> Repaired:
        better = self.best.outcome
        if better is None:
            self.say(f"nothing helped within {self.evaluations} evaluations; it stays as it was")
        elif self.best.passed:
            self.say(f"{better.contender.name} keeps the accuracy, after {self.evaluations} evaluations")
        else:
            self.say(
                f"{better.contender.name} is the best of {self.evaluations} evaluations, and not good enough"
            )
        return Repaired(
            outcome=better,
            decisions=tuple(self.decisions),
            layers=self.layers,
            flips=self.flips,
            evaluations=self.evaluations,
        )

    # -- the steps, in their order ---------------------------------------------------------------------

    def _explain(self) -> None:
        """Rank the layers by the harm that int8 does in them."""
        self.progress(f"{self.target.name}: {self.order.candidate.name}: looking where accuracy is lost")
        self.layers = self._analysed(self.first.recipe)
        worst = by_harm(self.layers)[:3]
        if worst:
            named = ", ".join(f"{_listed([e.name])} ({_db_text(e.isolated_snr_db)} alone)" for e in worst)
            self.say(f"int8 harms these layers most: {named}")
        variant = self.shared.variants[self.order.candidate.variant]
        baseline, scheme = self.shared.baseline, self.target.quantization
        if baseline is None or scheme is None:
            return
        graph, _ = self.shared.quantized(variant, scheme, self.first.recipe)
        count, self.flips = flips(baseline.evaluation, score_graph(graph, variant, baseline))
        if count:
            self.say(f"int8 changes what is predicted for {count} of {len(baseline.data)} samples")

    def _range_methods(self) -> list[Callable[[], None]]:
        def step(method: str) -> Callable[[], None]:
            return lambda: self._change(replace(self.best.recipe, method=method), f"{method} ranges")

        return [step(method) for method in _METHODS if method != self.first.recipe.method]

    def _bias(self) -> None:
        if self.best.recipe.correct_bias:
            return  # as it is by default
        self._change(replace(self.best.recipe, correct_bias=True), "corrected biases")

    def _equalization(self) -> None:
        self._change(replace(self.best.recipe, equalize=True), "equalised channels")

    def _products_only(self) -> None:
        """Leave what is between layers in float, where a state is carried on: its rounding adds up."""
        variant = self.shared.variants[self.order.candidate.variant]
        if self.best.recipe.passes_on and has_cells(variant.model):
            self._change(replace(self.best.recipe, products_only=True), "int8 in layers with weights only")

    def _fewest_in_float(self) -> None:
        """Keep layers in float that spare much noise for their time: ever more, then as few as will do."""
        if not self._may_go_on():
            return
        base = self.best
        analysed = self.layers if base is self.first else self._analysed(base.recipe)
        self.sparing = self._layers_of(base.recipe, analysed)
        sets = self.sparing.choices()
        low, high, count = -1, None, 0
        while high is None and low < count < len(sets) and self._may_go_on():
            if self._exclude(base, sets[count]).passed:
                high = count
            else:
                low, count = count, min(2 * count + 1, len(sets) - 1)
        if high is None:
            return
        while high - low > 1 and self._may_go_on():
            middle = (low + high) // 2
            low, high = (low, middle) if self._exclude(base, sets[middle]).passed else (middle, high)
        order = [e.name for e in by_harm(analysed)]
        self._drop_needless(base, sorted(sets[high], key=order.index))
        self._account(base)

    def _layers_of(self, recipe: Recipe, errors: Sequence[LayerError]) -> Layers:
        variant = self.shared.variants[self.order.candidate.variant]
        return layers_of(self.shared.base(variant, equalized=recipe.equalize, smooth=recipe.smooth), errors)

    def _drop_needless(self, base: _Trial, names: Sequence[str]) -> None:
        """Give layers back to int8 whose precision gains nothing, the least harmful first.

        Not where a neighbour in float makes int8 the slower form.
        """
        kept = list(names)
        for name in reversed(names):
            fewer = [n for n in kept if n != name]
            if len(kept) < 2 or self.sparing.cost(fewer) >= self.sparing.cost(kept):
                continue
            if not self._may_go_on():
                return
            if self._exclude(base, fewer).passed:
                kept = fewer
                self.say(f"{_listed([name])} goes back to int8: fp32 gains nothing there")

    def _account(self, base: _Trial) -> None:
        """Say what int8 costs in the layers that stay in float."""
        names = self.best.recipe.exclude
        if not self.best.passed or not names:
            return
        together = "" if len(names) == 1 else " together"
        cost, saving = _cost(base.contender, self.best.contender), self._saving(base)
        self.say(f"{_listed(names)} kept in fp32: int8 costs {cost} there{together} and {saving}")

    def _saving(self, base: _Trial) -> str:
        """Return the time that the layers in float would save in int8, timed side by side, in words."""
        options, made = self.shared.options, (base.made, self.best.made)
        if not self.target.measured_on(host_arch(), host_features()) or any(
            m is None or m.facts.state != "ready" for m in made
        ):
            return "what it would save cannot be measured on this machine"
        with ExitStack() as stack:
            calls = {}
            for name, one in zip(("int8", "float"), made, strict=True):
                assert one is not None
                session = stack.enter_context(load(one.path, threads=options.threads))
                calls[name] = partial(session.run, dict(one.reference.inputs[0]))
            found = measure_interleaved(
                calls, duration_s=2 * options.measure_s, min_rounds=_ROUNDS, seed=options.seed
            )
        if median_ratio(found["float"], found["int8"]).lower <= 1.0:
            return "saves no time that can be told from noise"
        return f"saves {found['float'].p50_ms - found['int8'].p50_ms:.2g} ms"

    # -- trials ----------------------------------------------------------------------------------------

    def _change(self, recipe: Recipe, what: str) -> None:
        """Try a recipe; it stays where it is better."""
        before = self.best
        trial = self._try(recipe)
        verdict = "kept" if self.best is trial else "not kept"
        self.say(f"{what}: {_figures(trial.contender)}, before {_figures(before.contender)}; {verdict}")

    def _exclude(self, base: _Trial, names: Sequence[str]) -> _Trial:
        recipe = replace(base.recipe, exclude=tuple(sorted({*base.recipe.exclude, *names})))
        trial = self._try(recipe, self.sparing.cost(names))
        self.say(f"{_listed(names)} in fp32: {_figures(trial.contender)}")
        return trial

    def _try(self, recipe: Recipe, cost: float = 0.0) -> _Trial:
        self.evaluations += 1
        begun = time.monotonic()
        candidate = replace(self.order.candidate, recipe=recipe)
        outcome = judge(candidate, self.target, self.shared, self.progress, threads=self.order.threads)
        trial = _Trial(
            recipe=recipe, cost=cost, contender=outcome.contender, outcome=outcome, made=outcome.made
        )
        worse = trial
        if trial.better_than(self.best):
            worse, self.best = self.best, trial
        if worse is not self.first:
            self.shared.forget(worse.recipe)
        self._longest_s = max(self._longest_s, time.monotonic() - begun)
        return trial

    def _may_go_on(self) -> bool:
        left = self.shared.options.timeout_s * _TIME_SHARE - (time.monotonic() - self.started)
        return self.evaluations < MOST_EVALUATIONS and self._longest_s < left

    def _analysed(self, recipe: Recipe) -> tuple[LayerError, ...]:
        return analyse(self.shared, self.order.candidate.variant, self.target, recipe)


def analyse(
    shared: Shared,
    variant_name: str,
    target: Target,
    recipe: Recipe,
    *,
    quantized: onnx.ModelProto | None = None,
    score: Score | None = None,
) -> tuple[LayerError, ...]:
    """Return accumulated, local and isolated errors of a variant's layers under a recipe.

    Args:
        shared: With the variant.
        variant_name: Its name.
        target: Whose scheme is used.
        recipe: In int8.
        quantized: The Q/DQ graph, where it is known; made by the recipe otherwise.
        score: Scores a graph by the task's metric, for every layer that is tried alone.
    """
    variant, scheme = shared.variants[variant_name], target.quantization
    assert scheme is not None
    inputs = variant.spread_inputs(_ANALYSIS_SAMPLES)
    base = shared.base(variant, equalized=recipe.equalize, smooth=recipe.smooth)
    graph = quantized if quantized is not None else shared.graph(variant, scheme, recipe)
    errors = layer_errors(base, graph, inputs)
    alone = replace(recipe, correct_bias=False)
    shifts = {}
    if recipe.correct_bias:
        shifts = mean_shifts(base, shared.graph(variant, scheme, alone), inputs)

    def quantize(names: tuple[str, ...]) -> onnx.ModelProto:
        kept = replace(alone, exclude=tuple(sorted({*recipe.exclude, *names})))
        # A layer alone has its own bias corrected, as it will have among the others.
        own, _ = shift_biases(base, {name: shift for name, shift in shifts.items() if name not in names})
        return shared.graph(variant, scheme, kept, base=own)

    return isolate(errors, base, quantize, inputs, score=score)


def has_cells(model: onnx.ModelProto) -> bool:
    """Whether a model has recurrent cells written out: a Tanh that a Sigmoid gates, as in LSTM and GRU."""
    producers = {name: n.op_type for n in model.graph.node for name in n.output}
    return any(
        n.op_type == "Mul" and {producers.get(name) for name in n.input} == {"Sigmoid", "Tanh"}
        for n in model.graph.node
    )


def _cost(before: Contender, after: Contender) -> str:
    """Return what a candidate loses against another one, in words."""
    a, b = (c.gate.score if c.gate is not None else None for c in (before, after))
    if a is None or b is None:
        agreed = [c.gate.agreement if c.gate is not None else None for c in (before, after)]
        if agreed[0] is not None and agreed[1] is not None:
            return f"{100 * (agreed[1] - agreed[0]):.1f} points of agreement"
        return f"{_db(after.source_snr_db) - _db(before.source_snr_db):.1f} dB of SNR"
    loss = (b.value - a.value) if b.higher_is_better else (a.value - b.value)
    return f"{100 * loss:.1f} points" if b.unit == "fraction" else f"{loss:.3g} of {b.unit}"


def _figures(contender: Contender) -> str:
    gate = contender.gate
    if contender.problem is not None or gate is None:
        return contender.problem or "not judged"
    if gate.score is None or gate.difference is None:
        agreement = "" if gate.agreement is None else f"agreement {gate.agreement:.1%}, "
        return f"{agreement}SNR {_db_text(contender.source_snr_db)} against fp32"
    return f"score {gate.score.value:.4g} (at least {gate.difference.lower_bound:+.2%})"


def _listed(names: Sequence[str]) -> str:
    # TensorFlow joins the names of all that it fused into a layer.
    shown = ", ".join(name.rsplit(";", 1)[-1] for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _db(value: float | None) -> float:
    return math.inf if value is None else value


def _db_text(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f} dB"
