"""Forms of the source with fewer channels, and what is asked of candidates that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgec.compiler.accuracy import Baseline, judge_graph
from edgec.compiler.options import CompileOptions
from edgec.compiler.pruning import Pruned, Pruner
from edgec.compiler.tournament import Contender, Gate
from edgec.compiler.variants import Variant, folded_variant
from edgec.errors import CalibrationError, CompileError, PassError, UnsupportedModelError
from edgec.runtime.measurement import median_ratio

# Of the calibration data: what channels are judged by, and layers refitted to.
_SAMPLES = 128
# Shares of multiply-accumulates that `auto` tries, in this order.
LADDER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, kw_only=True)
class PrunedForms:
    """What pruning a source gave.

    Attributes:
        variants: Forms with fewer channels: one with pre-processing outside, and one with it in the graph.
        decisions: Why there are these or none, in plain sentences.
    """

    variants: tuple[Variant, ...] = ()
    decisions: tuple[str, ...] = ()


def pruned_forms(
    plain: Variant,
    folded: Variant | None,
    baseline: Baseline | None,
    options: CompileOptions,
    progress: Callable[[str], None],
) -> PrunedForms:
    """Return the pruned forms that `options.prune` asks for; none where it is None.

    Raises:
        CalibrationError: There is no real data to prune by.
        CompileError: The ratio cannot be reached, or ``auto`` has no budget to keep.
        UnsupportedModelError: The source cannot be pruned.
    """
    if options.prune is None:
        return PrunedForms()
    _require_prunable(plain, options)
    progress("pruning: following channels, and measuring what each is worth")
    pruner = Pruner(plain.model, plain.spread_inputs(_SAMPLES), seed=options.seed)
    if options.prune != "auto":
        return _forms(plain, folded, pruner.prune(options.prune), options.prune, ())
    return _largest(plain, folded, pruner, baseline, options, progress)


def refuse_slower(contenders: Sequence[tuple[Contender, Contender]], objective: str, why_none: str) -> None:
    """Refuse the pruned candidates that pruning does not make faster.

    Args:
        contenders: Pruned ones that may be shipped otherwise, each with the one that it was pruned from.
        objective: What the winner is best at; where that is size, a pruned one need not be faster.
        why_none: Why nothing was measured, for where that is so.
    """
    if objective == "size":
        return
    for pruned, whole in contenders:
        pruned.problem = _not_faster(pruned, whole, why_none)


def _not_faster(pruned: Contender, whole: Contender, why_none: str) -> str | None:
    if pruned.latency is not None and whole.latency is not None:
        ratio = median_ratio(pruned.latency, whole.latency)
        if ratio.upper < 1:
            return None
        return (
            f"pruning does not make it measurably faster: {pruned.latency.p50_ms:.3g} ms against "
            f"{whole.latency.p50_ms:.3g} ms, ratio {ratio.ratio:.2f}, 95 % interval {ratio.lower:.2f} to "
            f"{ratio.upper:.2f}"
        )
    if pruned.estimate is not None and whole.estimate is not None:
        if pruned.estimate.latency_ms < whole.estimate.latency_ms:
            return None
        return (
            f"pruning does not make it faster: {pruned.estimate.latency_ms:.3g} ms against "
            f"{whole.estimate.latency_ms:.3g} ms, {pruned.estimate.source}"
        )
    if pruned.latency is not None:
        return None  # what it was pruned from may not be shipped: it competes with the others as it is
    return (
        f"nothing shows that pruning makes it faster ({why_none}); "
        "--objective size would take it for its size"
    )


def _require_prunable(plain: Variant, options: CompileOptions) -> None:
    if plain.weights_from is not None:
        raise UnsupportedModelError("a model with weights over 2 GB cannot be pruned: leave --prune out")
    if plain.quantized:
        raise UnsupportedModelError(
            "the source is quantized already, and only a float model can be pruned: compile its fp32 form"
        )
    if plain.samples.data is None:
        raise CalibrationError(
            "--prune needs real inputs, to tell which channels matter and to refit the layers that are left: "
            "give --calibration with a few dozen samples or more"
        )
    if options.prune == "auto" and options.max_drop is None:
        raise CompileError(
            "--prune auto keeps the largest ratio within the accuracy budget, and --max-drop none is no "
            "budget: give one, or a ratio such as --prune 0.3"
        )


def _largest(
    plain: Variant,
    folded: Variant | None,
    pruner: Pruner,
    baseline: Baseline | None,
    options: CompileOptions,
    progress: Callable[[str], None],
) -> PrunedForms:
    """Go up the ladder until the accuracy budget is missed, in fp32 in ONNX Runtime."""
    kept: tuple[Pruned, float, Gate] | None = None
    decisions: list[str] = []
    for ratio in LADDER:
        progress(f"pruning: trying {ratio:.0%}")
        try:
            pruned = pruner.prune(ratio)
        except CompileError as e:  # nothing can be pruned, or not as much
            decisions.append(f"--prune auto goes no further: {e}")
            break
        gate = judge_graph(pruned.model, plain, baseline, options)
        if gate.verdict != "pass":
            decisions.append(f"--prune auto goes no further than that: {ratio:.0%} is out: {gate.reason}")
            break
        kept = pruned, ratio, gate
    if kept is None:
        return PrunedForms(decisions=("no pruned form competes", *decisions))
    pruned, ratio, gate = kept
    chosen = f"--prune auto takes {ratio:.0%}, the largest step within the budget: {gate.reason}"
    return _forms(plain, folded, pruned, ratio, (chosen, *decisions))


def _forms(
    plain: Variant, folded: Variant | None, pruned: Pruned, ratio: float, decisions: tuple[str, ...]
) -> PrunedForms:
    variant = replace(
        plain,
        name=f"plain, {100 * ratio:.3g} % pruned",
        reference=pruned.model,
        model=pruned.model,
        original=plain.model,
        notes=(*plain.notes, _note(pruned)),
        _references={},
    )
    variants, said = [variant], list(decisions)
    if folded is not None:
        try:
            with_head = folded_variant(variant)
        except PassError as e:
            said.append(f"no pruned form with pre-processing in its graph competes: {e}")
        else:
            if with_head is not None:
                name = variant.name.replace("plain", folded.name)
                variants.append(replace(with_head, name=name, original=folded.model))
    return PrunedForms(variants=tuple(variants), decisions=tuple(said))


def _note(pruned: Pruned) -> str:
    layers = ", ".join(f"{name} from {before} to {after}" for name, before, after in pruned.layers)
    count = max(1, len(pruned.refits))
    before, after = sum(r.before for r in pruned.refits) / count, sum(r.after for r in pruned.refits) / count
    return (
        f"pruned from {pruned.macs_before / 1e6:.3g} to {pruned.macs_after / 1e6:.3g} million "
        f"multiply-accumulates ({pruned.removed:.1%} fewer): {layers}; refitting {len(pruned.refits)} layers "
        f"on calibration data brings the error of their outputs from {before:.2%} to {after:.2%} of their "
        "energy on average"
    )
