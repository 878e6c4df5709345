"""Forms of the source with fewer channels or with zeros, and what is asked of candidates made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from edgec.compiler.accuracy import Baseline, judge_graph
from edgec.compiler.options import CompileOptions
from edgec.compiler.pruning import Pattern, Pruned, Pruner, Refit, Sparse, sparsify
from edgec.compiler.pruning.patterns import TWO_OF_FOUR
from edgec.compiler.tournament import Contender, Gate
from edgec.compiler.variants import Variant, folded_variant
from edgec.errors import CalibrationError, CompileError, PassError, UnsupportedModelError
from edgec.runtime.measurement import median_ratio
from edgec.targets import Engine, Target

# Of the calibration data: what channels are judged by, and layers refitted to.
_SAMPLES = 128
# Shares of multiply-accumulates that `auto` tries, in this order.
LADDER = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True, kw_only=True)
class PrunedForms:
    """What pruning a source gave.

    Attributes:
        variants: Forms with fewer channels or with zeros: one with pre-processing outside, and one with it in
            the graph.
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
        UnsupportedModelError: The source cannot be pruned, or its layers cannot have the zeros.
    """
    if options.prune is None:
        return PrunedForms()
    _require_prunable(plain, options)
    if options.sparsity is not None:
        progress(f"pruning: choosing weights for {options.sparsity}, and having the others make up for them")
        return _sparse_forms(plain, folded, options.sparsity, options)
    progress("pruning: following channels, and measuring what each is worth")
    pruner = Pruner(plain.model, plain.spread_inputs(_SAMPLES), seed=options.seed)
    if not isinstance(options.prune, str):
        pruned = pruner.prune(options.prune)
        return _forms(plain, folded, f"{100 * options.prune:.3g} % pruned", pruned.model, _note(pruned), ())
    return _largest(plain, folded, pruner, baseline, options, progress)


def useless_because(options: CompileOptions, target: Target) -> str | None:
    """Return why a target gains nothing by the zeros that are asked for; None where it does, or none are."""
    pattern = options.sparsity
    if pattern is None:
        return None
    used = str(dict(target.accelerator).get("sparsity", "")).split()
    if pattern.kind not in used:
        engines = ", ".join(engine.name for engine in target.engines)
        instead = "2:4" if TWO_OF_FOUR in used else "unstructured:0.5" if used else "auto"
        return (
            f"{target.name} gains nothing by --prune {pattern}: there, {engines} computes with such zeros as "
            f"with any other weight; try --prune {instead}"
        )
    useful = [p for e in target.engines for p in e.precisions if uses_zeros(e, p)]
    if options.precision not in ("auto", *useful):
        return (
            f"{target.name} gains nothing by --prune {pattern} in {options.precision}: "
            f"it does in {', '.join(useful)}"
        )
    return None


def uses_zeros(engine: Engine, precision: str) -> bool:
    """Return whether an engine of a target that gains by zeros does so in a precision.

    TensorRT's documentation asks for fp16 or int8; Ethos-U has integers only.
    """
    return engine.name != "tensorrt" or precision != "fp32"


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
    if pruned.sparsity is not None and pruned.sparsity.kind == TWO_OF_FOUR and pruned.estimate is None:
        return None  # the builder times sparse kernels against dense ones, and takes the faster
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
    for step, ratio in enumerate(LADDER, 1):
        progress(f"pruning: trying {ratio:.0%} (step {step} of at most {len(LADDER)})")
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
    label = f"{100 * ratio:.3g} % pruned"
    return _forms(plain, folded, label, pruned.model, _note(pruned), (chosen, *decisions))


def _sparse_forms(
    plain: Variant, folded: Variant | None, pattern: Pattern, options: CompileOptions
) -> PrunedForms:
    sparse = sparsify(plain.model, pattern, plain.spread_inputs(_SAMPLES), seed=options.seed)
    return _forms(plain, folded, pattern.label, sparse.model, _sparse_note(sparse), (), pattern)


def _forms(
    plain: Variant,
    folded: Variant | None,
    label: str,
    model: onnx.ModelProto,
    note: str,
    decisions: tuple[str, ...],
    sparsity: Pattern | None = None,
) -> PrunedForms:
    variant = replace(
        plain,
        name=f"plain, {label}",
        reference=model,
        model=model,
        original=plain.model,
        notes=(*plain.notes, note),
        sparsity=sparsity,
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
                variants.append(replace(with_head, name=name, original=folded.model, sparsity=sparsity))
    return PrunedForms(variants=tuple(variants), decisions=tuple(said))


def _sparse_note(sparse: Sparse) -> str:
    names = ", ".join(r.layer for r in sparse.layers)
    before, after = _means(sparse.layers)
    return (
        f"{sparse.pattern}: {sparse.zeros:.1%} of all weights are zero, in {len(sparse.layers)} layers: "
        f"{names}; "
        "having the others make up for them brings the error of those layers' outputs from "
        f"{before:.2%} to {after:.2%} of their energy on average"
    )


def _means(refits: Sequence[Refit]) -> tuple[float, float]:
    """Return the mean errors before and after."""
    count = max(1, len(refits))
    return sum(r.before for r in refits) / count, sum(r.after for r in refits) / count


def _note(pruned: Pruned) -> str:
    layers = ", ".join(f"{name} from {before} to {after}" for name, before, after in pruned.layers)
    before, after = _means(pruned.refits)
    return (
        f"pruned from {pruned.macs_before / 1e6:.3g} to {pruned.macs_after / 1e6:.3g} million "
        f"multiply-accumulates ({pruned.removed:.1%} fewer): {layers}; refitting {len(pruned.refits)} layers "
        f"on calibration data brings the error of their outputs from {before:.2%} to {after:.2%} of their "
        "energy on average"
    )
