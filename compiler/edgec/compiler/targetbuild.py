"""The builds of all targets: candidates compete, and each target's winner is packed with its evidence."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from edgec.artifact import GOLDEN, Artifact, Budgets, Manifest, Privacy, atomic_write, pack
from edgec.compiler.accuracy import Baseline
from edgec.compiler.candidates import (
    Candidate,
    Made,
    Outcome,
    Shared,
    members_of,
    quantizes,
    usual_recipe,
)
from edgec.compiler.check import check_model
from edgec.compiler.coarse import rounded_away
from edgec.compiler.converters import Converter, get_converter
from edgec.compiler.evidence import (
    REFERENCE_SAMPLES,
    golden_bytes,
    golden_tolerances,
    input_quantiles,
    observation,
    reference_quantiles,
)
from edgec.compiler.figures import candidate_info, latency_info, parity_info, provenance, tensor_infos
from edgec.compiler.lock import lock_facts
from edgec.compiler.options import CompileOptions
from edgec.compiler.passes.normalize_qdq import normalize_qdq
from edgec.compiler.pruned import PrunedForms, refuse_slower, useless_because, uses_zeros
from edgec.compiler.recipes import Recipe
from edgec.compiler.repair import Repaired, RepairOrder, needs_repair, perform
from edgec.compiler.report import ArtifactInfo, Build
from edgec.compiler.tournament import Aim, Choice, Contender, choose
from edgec.compiler.variants import Variant
from edgec.compiler.weight_only import BITS, unsuitable
from edgec.compiler.workers import CONTEXT, Failure, Job, Workers
from edgec.errors import (
    BackendUnavailableError,
    BudgetError,
    CompileError,
    ConversionError,
    EdgecError,
    OutputError,
    ParityError,
    SelfTestError,
    UnsupportedModelError,
)
from edgec.runtime import load
from edgec.runtime.backends import get_backend
from edgec.runtime.benchmark import measure_cold_starts
from edgec.runtime.measurement import measure_interleaved, median_ratio
from edgec.targets import Engine, Target, host_arch, host_features

_FLOATS = ("fp32", "fp16", "bf16")
_MIN_ROUNDS = 50
_LOOKED_AT = 64  # samples, where it is to be said why nothing may be shipped
_MOST_WORKERS = 4  # each holds the model and an engine


@dataclass(kw_only=True)
class Bench:
    """What the builds of all targets share.

    Attributes:
        plain: The source with its pre-processing outside.
        folded: The source with its pre-processing in the graph; None where nothing can be folded.
        unfolded_because: Why `folded` is None, where that is worth a word.
        baseline: Of accuracy; None without labels.
        pruned: Forms of the source with fewer channels, or with weights of zero.
        unquantized: Forms in float of a source that its author quantized.
        warnings: What is wrong with the data, in plain sentences.
        options: How to compile.
        build: The report so far.
        scratch: Directory for what is made on the way.
        progress: Told what is going on.
    """

    plain: Variant
    folded: Variant | None
    unfolded_because: str | None
    baseline: Baseline | None
    pruned: PrunedForms = field(default_factory=PrunedForms)
    unquantized: tuple[Variant, ...] = ()
    warnings: tuple[str, ...] = ()
    options: CompileOptions
    build: Build
    scratch: Path
    progress: Callable[[str], None]

    @property
    def variants(self) -> dict[str, Variant]:
        """Forms of the source, by name."""
        forms = (self.plain, self.folded, *self.pruned.variants, *self.unquantized)
        return {v.name: v for v in forms if v is not None}


@dataclass(kw_only=True)
class Plan:
    """One target's build on its way.

    Attributes:
        target: What is built for.
        path: Where the artifact goes.
        variant: Name of the form of the source that is compiled.
        decisions: Made on the way, in plain sentences.
        outcomes: Of its candidates, by name, in the order of the report.
        info: Figures of the artifact, when it is done.
        error: Why there is none.
    """

    target: Target
    path: Path
    variant: str = "plain"
    decisions: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    info: ArtifactInfo | None = None
    error: EdgecError | None = None

    @property
    def engine(self) -> Engine:
        """The one that it is built for."""
        return self.target.engines[0]

    @property
    def measured_here(self) -> bool:
        """Whether latencies of this machine stand in for the target's."""
        return self.target.measured_on(host_arch(), host_features())


def build_targets(bench: Bench, plans: Sequence[Plan]) -> bool:
    """Build what can be built, and note for each of the others why not.

    Interrupted by Ctrl-C, it goes on with the candidates that are finished by then.

    Returns:
        Whether it was interrupted.

    Raises:
        OutputError: Results cannot be written.
    """
    shared = Shared(
        variants=bench.variants,
        baseline=bench.baseline,
        options=bench.options,
        scratch=bench.scratch,
        kept=bench.scratch / "outputs",
    )
    with _workers(bench, shared) as workers:
        _each(bench, plans, lambda plan: _check_target(bench, plan.target))
        interrupted = _compete(bench, plans, workers)
    if interrupted:
        bench.progress("interrupted: going on with the candidates that are finished")
    _each(bench, plans, lambda plan: _finish(bench, plan, interrupted))
    return interrupted


def _workers(bench: Bench, shared: Shared) -> Workers:
    count = bench.options.workers
    if count is None:
        count = min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
    if count:
        with atomic_write(bench.scratch / CONTEXT) as file:
            pickle.dump(shared, file)
    return Workers(
        count=count,
        scratch=bench.scratch,
        timeout_s=bench.options.timeout_s,
        in_process=lambda payload: perform(payload[0], payload[1], shared, lambda _: None),
    )


def _each(bench: Bench, plans: Sequence[Plan], step: Callable[[Plan], None]) -> None:
    """Take a step with every plan that is still on its way; a target's failure is its own."""
    for plan in plans:
        if plan.error is not None:
            continue
        try:
            step(plan)
        except OutputError:
            raise
        except EdgecError as e:
            plan.error = e
            bench.progress(f"{plan.target.name}: not built: {e}")


def _check_target(bench: Bench, target: Target) -> None:
    get_converter(target.engines[0].name)  # refuses a family that this version does not build
    _require_static_shapes(bench.plain, target)
    if (why := useless_because(bench.options, target)) is not None:
        raise CompileError(why)


def _compete(bench: Bench, plans: Sequence[Plan], workers: Workers) -> bool:
    """Make and judge every candidate; return whether the user interrupted it."""
    try:
        _judge(bench, plans, workers, _fold_candidates)
        _each(bench, plans, lambda plan: _choose_variant(bench, plan))
        _judge(bench, plans, workers, _candidates)
        _repair(bench, plans, workers)
    except KeyboardInterrupt:
        return True
    return False


def _judge(
    bench: Bench,
    plans: Sequence[Plan],
    workers: Workers,
    candidates: Callable[[Bench, Plan], Iterator[Candidate | Contender]],
) -> None:
    """Have the workers judge what `candidates` gives for each plan and has no outcome yet."""
    jobs: dict[tuple[str, str], list[Job]] = {}
    owners: dict[str, tuple[Plan, Candidate]] = {}

    def enter(plan: Plan) -> None:
        for candidate in candidates(bench, plan):
            if isinstance(candidate, Contender):
                plan.outcomes[candidate.name] = Outcome(contender=candidate)
            elif _outcome_name(candidate) not in plan.outcomes:
                key = f"{plan.target.name} {_outcome_name(candidate)}"
                owners[key] = plan, candidate
                # One worker makes all that share a precision: they share references and quantized graphs.
                group = jobs.setdefault((candidate.precision, candidate.variant), [])
                group.append(Job(key=key, payload=(plan.target, candidate)))
                # Keeps the order of the report, whatever is finished first.
                plan.outcomes[_outcome_name(candidate)] = _unfinished(candidate)

    _each(bench, plans, enter)
    clock = _Clock(len(owners), bench.progress)

    def done(job: Job, result: Any) -> None:
        plan, candidate = owners[job.key]
        if isinstance(result, Failure):
            contender = _contender(candidate, "failed", result.reason)
            result = Outcome(contender=contender)
        plan.outcomes[_outcome_name(candidate)] = result
        clock.done(f"{plan.target.name}: {candidate.name}: {_in_short(result.contender)}")

    workers.run(list(jobs.values()), progress=lambda _: None, done=done)


def _repair(bench: Bench, plans: Sequence[Plan], workers: Workers) -> None:
    """Have the workers repair int8 candidates that lose too much accuracy, and let the results compete."""
    if not bench.options.repair:
        return
    jobs: list[list[Job]] = []
    owners: dict[str, tuple[Plan, Outcome, Candidate]] = {}
    broken = [(plan, outcome) for plan in plans if (outcome := _to_repair(bench, plan)) is not None]
    threads = max(bench.options.threads, len(os.sched_getaffinity(0)) // max(1, len(broken)))
    for plan, outcome in broken:
        if outcome.made is None:
            continue
        candidate = outcome.made.candidate
        key = f"{plan.target.name} {_outcome_name(candidate)}"
        owners[key] = plan, outcome, candidate
        order = RepairOrder(
            candidate=candidate, contender=outcome.contender, made=outcome.made, threads=threads
        )
        jobs.append([Job(key=key, payload=(plan.target, order))])
        bench.progress(f"{plan.target.name}: {candidate.name} loses too much accuracy: repairing it")

    def done(job: Job, result: Any) -> None:
        plan, broken, candidate = owners[job.key]
        if isinstance(result, Failure):
            plan.decisions.append(f"{candidate.name} was not repaired: {result.reason}")
            return
        assert isinstance(result, Repaired)
        plan.decisions += result.decisions
        broken.contender.layers, broken.contender.flips = result.layers, result.flips
        if result.outcome is not None:
            plan.outcomes[f"{result.outcome.contender.name} {candidate.variant}"] = result.outcome
        bench.progress(f"{plan.target.name}: {result.decisions[-1]}")

    workers.run(jobs, progress=bench.progress, done=done)


def _to_repair(bench: Bench, plan: Plan) -> Outcome | None:
    """Return the int8 candidate of a plan that is worth a repair: none where another one is good as it is."""
    if plan.error is not None or bench.variants[plan.variant].quantized:
        return None
    in_int8 = [o for o in plan.outcomes.values() if o.contender.precision == "int8"]
    if any(o.contender.admissible for o in in_int8):
        return None
    broken = (o for o in in_int8 if o.made and needs_repair(o.contender, bench.options.max_drop))
    return next(broken, None)


def _outcome_name(candidate: Candidate) -> str:
    return f"{candidate.name} {candidate.variant}"


def _contender(candidate: Candidate, status: Any, problem: str) -> Contender:
    return Contender(
        name=candidate.name,
        engine=candidate.engine.name,
        precision=candidate.precision,
        status=status,
        problem=problem,
    )


def _unfinished(candidate: Candidate) -> Outcome:
    return Outcome(
        contender=_contender(candidate, "skipped", "it was not finished when the build was interrupted")
    )


def _in_short(contender: Contender) -> str:
    if contender.problem is not None:
        return contender.problem
    return contender.gate.reason if contender.gate is not None else "made"


class _Clock:
    """Says after each candidate how many are left, and how long that may take."""

    def __init__(self, total: int, progress: Callable[[str], None]) -> None:
        self._total, self._progress = total, progress
        self._count, self._start = 0, time.monotonic()
        if total:
            progress(f"making and judging {total} candidates")

    def done(self, line: str) -> None:
        self._count += 1
        left = (time.monotonic() - self._start) / self._count * (self._total - self._count)
        time_left = f", about {left:.0f} s left" if left >= 1 else ""
        self._progress(f"{line} ({self._count} of {self._total}{time_left})")


def _fold_candidates(bench: Bench, plan: Plan) -> Iterator[Candidate]:
    """Yield what has to be made to know whether pre-processing belongs in the graph."""
    if bench.folded is not None and bench.options.fold == "auto" and plan.measured_here:
        for variant in ("plain", "folded"):
            yield Candidate(engine=plan.engine, recipe=Recipe(precision="fp32"), variant=variant)


def _choose_variant(bench: Bench, plan: Plan) -> None:
    """Decide in which form the source is compiled, and note why."""
    if bench.folded is None:
        if bench.unfolded_because is not None:
            plan.decisions.append(bench.unfolded_because)
        return
    if bench.options.fold == "on":
        plan.variant = "folded"
        plan.decisions.append("pre-processing is in the graph, as --fold on asks")
        return
    if not plan.measured_here:
        plan.decisions.append(
            "pre-processing stays outside the graph: what folding would gain was not measured here"
        )
        return
    made = {v: plan.outcomes[f"{plan.engine.name} fp32 {v}"] for v in ("plain", "folded")}
    broken = [o.contender.problem for o in made.values() if o.made is None]
    if broken:
        plan.decisions.append(f"pre-processing stays outside the graph: {broken[0]}")
    else:
        _choose_faster_variant(bench, plan, {v: o.made for v, o in made.items() if o.made is not None})
    # The other variant's outcome is no candidate.
    del plan.outcomes[f"{plan.engine.name} fp32 {'plain' if plan.variant == 'folded' else 'folded'}"]


def _choose_faster_variant(bench: Bench, plan: Plan, made: dict[str, Made]) -> None:
    bench.progress(f"{plan.target.name}: measuring whether pre-processing belongs in the graph")
    data = bench.plain.samples.data
    assert data is not None
    sample = next(iter(data)).data
    with ExitStack() as stack:
        sessions = {
            v: stack.enter_context(load(m.path, threads=bench.options.threads)) for v, m in made.items()
        }
        latencies = measure_interleaved(
            {v: partial(session.predict, sample) for v, session in sessions.items()},
            duration_s=bench.options.measure_s,
            min_rounds=_MIN_ROUNDS,
            seed=bench.options.seed,
        )
    ratio = median_ratio(latencies["folded"], latencies["plain"])
    figures = (
        f"{latencies['folded'].p50_ms:.3g} ms against {latencies['plain'].p50_ms:.3g} ms from sample to "
        f"prediction in fp32, ratio {ratio.ratio:.2f}, 95 % interval {ratio.lower:.2f} to {ratio.upper:.2f}"
    )
    if ratio.upper < 1.0:
        plan.variant = "folded"
        plan.decisions.append(f"pre-processing is in the graph, where it is faster: {figures}")
    else:
        plan.decisions.append(f"pre-processing stays outside the graph, where it is no slower: {figures}")


def _require_static_shapes(variant: Variant, target: Target) -> None:
    free = [spec for spec in variant.inputs if not spec.is_static]
    if free and target.limits.static_shapes:
        pins = " ".join(
            f"--shape {s.name}={','.join(str(n) if isinstance(n, int) else '1' for n in s.shape)}"
            for s in free
        )
        raise UnsupportedModelError(
            f"{target.name} needs every dimension fixed, and {', '.join(map(str, free))} is not: pin it, "
            f"for example {pins}"
        )


def _candidates(bench: Bench, plan: Plan) -> Iterator[Candidate | Contender]:
    """Yield the candidates to make, and those that cannot be, with the reason."""
    target, wanted = plan.target, bench.options.precision
    variant = bench.variants[plan.variant]
    floats = [v for v in bench.unquantized if v.name.startswith(f"{plan.variant}, ")]
    if variant.quantized:
        plan.decisions.append("the source is quantized already: its scales are its author's")
        plan.decisions += _normalized(variant, target)
        if wanted not in ("auto", "int8", *_FLOATS):
            raise CompileError(
                f"the source is quantized already: it cannot be built in {wanted}; compile its fp32 form"
            )
        if not floats:
            plan.decisions.append("no form in float competes: the author's quantization cannot be undone")
    if wanted != "auto" and not any(wanted in engine.precisions for engine in target.engines):
        has = "; ".join(f"{engine.name} has {', '.join(engine.precisions)}" for engine in target.engines)
        raise CompileError(f"{target.name} does not run {wanted}: {has} there")
    for engine in target.engines:
        yield from _candidates_of(bench, plan, engine, variant)
        for form in floats:
            yield from _candidates_of(bench, plan, engine, form)
    plan.decisions += bench.pruned.decisions
    for engine in target.engines:
        for candidate in _candidates_of(bench, plan, engine, variant):
            if isinstance(candidate, Candidate):
                yield from (replace(candidate, variant=v) for v in _pruned_from(bench, candidate))


def _pruned_from(bench: Bench, candidate: Candidate) -> list[str]:
    """Return the names of the pruned forms that a candidate is to be made of too."""
    useful = uses_zeros(candidate.engine, candidate.precision)
    return [
        v.name
        for v in bench.pruned.variants
        if v.name.startswith(f"{candidate.variant}, ") and (v.sparsity is None or useful)
    ]


def _candidates_of(
    bench: Bench, plan: Plan, engine: Engine, variant: Variant
) -> Iterator[Candidate | Contender]:
    """Yield one engine's candidates; engines beside the first compete where their packages are installed."""
    wanted = bench.options.precision
    if engine is not plan.engine and (problem := _unusable(engine, variant)) is not None:
        recipe = Recipe(precision=engine.precisions[0])
        yield _contender(Candidate(engine=engine, recipe=recipe, variant=plan.variant), "skipped", problem)
        return
    converter = get_converter(engine.name)
    buildable = converter.precisions
    saturates = plan.measured_here and saturates_on(plan.target, host_features())
    here = engine.precisions_on(host_features()) if plan.measured_here else engine.precisions
    for precision in engine.precisions:
        if wanted not in ("auto", precision) and precision != "fp32":
            continue
        if variant.quantized and precision != "int8":
            continue
        if variant in bench.unquantized and precision not in _float_precisions(variant, converter):
            continue
        recipe = usual_recipe(variant, precision, saturates=saturates and not quantizes(converter))
        candidate = Candidate(engine=engine, recipe=recipe, variant=variant.name)
        if precision not in buildable:
            reason = f"this version of edgec does not build {precision} for {engine.name}"
            if wanted == precision:
                raise CompileError(f"{reason}: it builds {', '.join(buildable)}")
            yield _contender(candidate, "skipped", reason)
        elif variant.weights_from is not None and precision != "fp32":
            reason = "its weights are over 2 GB: this version of edgec builds fp32 only of such a model"
            yield _contender(candidate, "skipped", reason)
        elif precision not in here:
            reason = f"this machine's CPU has no {precision}, so nothing can be proven about it here"
            yield _contender(candidate, "skipped", reason)
        elif wanted != precision and precision in BITS and (why := unsuitable(variant.model)) is not None:
            yield _contender(candidate, "skipped", why)
        else:
            yield candidate


def _float_precisions(form: Variant, converter: Converter) -> tuple[str, ...]:
    """Return what a form in float of a quantized source is built in."""
    if form.rounds_like is not None:
        return ("fp32", "fp16")  # bf16 cannot tell 255 steps apart
    # A converter that quantizes by itself has no other way to int8.
    return (*_FLOATS, "int8") if quantizes(converter) else _FLOATS


def _unusable(engine: Engine, variant: Variant) -> str | None:
    """Return why a second engine does not compete; None where it does."""
    try:
        converter = get_converter(engine.name)
        get_backend(engine.name)
    except (ConversionError, BackendUnavailableError) as e:
        return str(e)
    if quantizes(converter) and variant.quantized:
        return f"{engine.name} quantizes by itself, and takes the source in float only"
    if quantizes(converter) and not all(spec.is_static for spec in variant.inputs):
        return f"a file for {engine.name} has fixed shapes, and the source has free dimensions"
    return None


def _normalized(variant: Variant, target: Target) -> tuple[str, ...]:
    """Return what becomes of an author's quantization on a target."""
    return () if target.quantization is None else normalize_qdq(variant.model, target.quantization)[1]


def _finish(bench: Bench, plan: Plan, interrupted: bool) -> None:
    """Measure the candidates of a plan, choose, and write the winner."""
    target, outcomes = plan.target, list(plan.outcomes.values())
    if interrupted and not any(o.contender.admissible for o in outcomes):
        raise CompileError(f"{target.name}: interrupted before any candidate was finished")
    if interrupted:
        measured = "not measured: the build was interrupted"
    else:
        measured = _measure(bench, plan, outcomes)
        _measure_memory(bench, target, outcomes)
    refuse_slower(_pruned_pairs(outcomes), bench.options.objective, measured)
    contenders = [o.contender for o in outcomes]
    rule = (
        "the build was interrupted, and precisions are ranked by the target's rule" if interrupted else None
    )
    aim = _aim(bench.options)
    choice = choose(contenders, target.stand_in.ranking, rule or target.stand_in.rule, aim)
    nearest = next((o for o in outcomes if o.contender.name == choice.nearest), None)
    winner = nearest or _winner(bench, plan, outcomes, choice)
    for outcome in outcomes:
        if outcome.contender.admissible:
            outcome.contender.status = "winner" if outcome is winner else "admissible"
    if nearest is not None:
        plan.decisions.append(f"no candidate keeps the budgets; this is the nearest, {choice.nearest}")
    plan.decisions += choice.decisions
    info = _info(bench, plan, winner, outcomes, measured)
    if nearest is not None:
        misses = aim.over_budget(nearest.contender) or ""
        _keep_nearest(bench, plan, nearest, info, misses, choice.decisions)
    _pack(bench, plan, winner, info, plan.path)
    plan.info = info


def _keep_nearest(
    bench: Bench, plan: Plan, nearest: Outcome, info: ArtifactInfo, misses: str, reasons: Sequence[str]
) -> NoReturn:
    """Write the nearest of those that miss a budget aside, whole but for what it misses, and say so."""
    info["over_budget"] = misses
    info["warnings"] = [f"over budget: {misses}", *info.get("warnings", ())]
    kept = plan.path.with_name(f"{plan.path.stem}.over-budget.edgec")
    _pack(bench, plan, nearest, info, kept)
    raise BudgetError(
        f"{plan.target.name}: no candidate keeps the budgets: {'; '.join(reasons)}; the nearest, "
        f"{nearest.contender.name}, is kept as {kept}"
    )


def _pruned_pairs(outcomes: Sequence[Outcome]) -> list[tuple[Contender, Contender]]:
    """Pair the pruned candidates that may be shipped so far with what they were pruned from."""
    named = {o.contender.name: o.contender for o in outcomes}
    found = []
    for outcome in outcomes:
        if outcome.made is None or not outcome.contender.admissible:
            continue
        candidate = outcome.made.candidate
        whole = named.get(replace(candidate, variant=candidate.variant.partition(", ")[0]).name)
        if whole is not None and whole is not outcome.contender:
            found.append((outcome.contender, whole))
    return found


def _measure(bench: Bench, plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """Time the admissible candidates interleaved; return the sentence that says on what."""
    rule = plan.target.stand_in.rule
    ready = [o for o in outcomes if o.contender.admissible and o.made is not None]
    if not ready or not plan.measured_here or any(o.made.facts.state != "ready" for o in ready if o.made):
        return f"not measured: {rule}"
    bench.progress(f"{plan.target.name}: measuring {len(ready)} candidates side by side")
    threads = bench.options.threads
    with ExitStack() as stack:
        calls = {}
        for outcome in ready:
            assert outcome.made is not None
            session = stack.enter_context(load(outcome.made.path, threads=threads))
            calls[outcome.contender.name] = partial(session.run, dict(outcome.made.reference.inputs[0]))
        latencies = measure_interleaved(
            calls,
            duration_s=bench.options.measure_s * len(calls),
            min_rounds=_MIN_ROUNDS,
            seed=bench.options.seed,
        )
    for outcome in ready:
        outcome.contender.latency = latencies[outcome.contender.name]
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    return f"this machine, {counted}, all candidates interleaved in one run; {rule}"


def _measure_memory(bench: Bench, target: Target, outcomes: Sequence[Outcome]) -> None:
    """Note the peak memory of every admissible candidate, where a budget asks for it."""
    if bench.options.budget_memory_mib is None:
        return
    bench.progress(f"{target.name}: measuring memory in fresh processes")
    for outcome in outcomes:
        if outcome.contender.admissible and outcome.made is not None:
            cold = measure_cold_starts(outcome.made.path, threads=bench.options.threads, processes=1)
            outcome.contender.memory_mib = cold.peak_memory_mib


def _aim(options: CompileOptions) -> Aim:
    return Aim(
        objective=options.objective,
        latency_ms=options.budget_latency_ms,
        size_bytes=options.budget_size_bytes,
        memory_mib=options.budget_memory_mib,
    )


def _winner(bench: Bench, plan: Plan, outcomes: Sequence[Outcome], choice: Choice) -> Outcome:
    for outcome in outcomes:
        if outcome.contender.name == choice.winner:
            return outcome
    name = plan.target.name
    tried = [o.contender for o in outcomes if o.contender.status != "skipped"]
    reasons = "; ".join([*choice.decisions, *_too_coarse(bench, plan, tried)])
    if tried and all(c.status == "failed" for c in tried):
        if bench.plain.weights_from is None:
            check_model(bench.plain.model, plan.target).require()  # names every node at once
        raise UnsupportedModelError(f"{name}: no candidate could be made: {tried[0].problem}")
    if all(c.parity is not None and not c.parity.passed for c in tried):
        raise ParityError(f"{name}: {reasons}")
    raise BudgetError(f"{name}: no candidate may be shipped: {reasons}")


def _too_coarse(bench: Bench, plan: Plan, tried: Sequence[Contender]) -> list[str]:
    """Return why 8 bits may be too few, where only integers were tried and none may be shipped."""
    scheme = plan.target.quantization
    if scheme is None or not scheme.full_integer or all(c.precision != "int8" for c in tried):
        return []
    return rounded_away(bench.plain.spread_inputs(_LOOKED_AT))


def _info(
    bench: Bench, plan: Plan, winner: Outcome, outcomes: Sequence[Outcome], measured: str
) -> ArtifactInfo:
    made, target = winner.made, plan.target
    assert made is not None
    variant = bench.variants[made.candidate.variant]
    fp32 = next((o.contender.latency for o in outcomes if o.contender.precision == "fp32"), None)
    infos = [candidate_info(o.contender, _reason(o.contender), fp32, bench.baseline) for o in outcomes]
    mine = next(i for i in infos if i["status"] == "winner")
    notes = dict.fromkeys(note for o in outcomes for note in o.notes)
    synthetic = bench.build.get("data", {}).get("synthetic")
    divided = variant.samples.split_sentence()
    info: ArtifactInfo = {
        "target": target.name,
        "target_title": target.title,
        "path": "",
        "size_bytes": 0,
        "content_digest": "",
        "engine": made.converted.engine.name,
        "engine_version": made.facts.engine_version,
        "device": made.converted.engine.device,
        "precision": made.candidate.precision,
        "effective_precision": made.facts.precision if made.facts.state == "ready" else None,
        "state": made.facts.state,
        "parity": parity_info(winner.contender.parity),
        "accuracy": mine.get("accuracy"),
        "latency_ms": latency_info(winner.contender.latency),
        "measured_on": _estimated(winner.contender) or measured,
        "placement": dict(made.facts.placement),
        "candidates": infos,
        "decisions": [*variant.notes, *([divided] if divided else []), *plan.decisions],
        "warnings": [*([synthetic] if synthetic else []), *bench.warnings, *notes, *made.converted.notes],
        "not_run": [*made.converted.not_run, *_saturation(target, made.candidate)],
        "pipeline": variant.pipeline.to_dict() if variant.pipeline is not None else None,
        "inputs": tensor_infos(variant.inputs),
        "outputs": tensor_infos(variant.outputs),
    }
    if "estimate" in mine:
        info["estimate"] = mine["estimate"]
    return info


def _estimated(contender: Contender) -> str | None:
    if contender.latency is not None or contender.estimate is None:
        return None
    return f"not measured: {contender.estimate.latency_ms:.3g} ms {contender.estimate.source}"


def _reason(contender: Contender) -> str:
    if contender.problem is not None:
        return contender.problem
    return contender.gate.reason if contender.gate is not None else ""


def saturates_on(target: Target, features: Collection[str]) -> bool:
    """Return whether sums of products in int8 saturate on a CPU of a target that has these features."""
    scheme = target.quantization
    return (
        scheme is not None
        and bool(scheme.saturates_without)
        and not any(feature in features for feature in scheme.saturates_without)
    )


def _saturation(target: Target, candidate: Candidate) -> tuple[str, ...]:
    """Return the caution that this machine's integer arithmetic is better than some of the target's."""
    scheme = target.quantization
    if candidate.precision not in ("int8", "int8-dynamic") or scheme is None or not scheme.saturates_without:
        return ()
    if quantizes(get_converter(candidate.engine.name)):  # its kernels widen before they multiply
        return ()
    if saturates_on(target, host_features()):
        return ()  # weights have 7 bits then, or what saturates fails parity
    features = " or ".join(scheme.saturates_without)
    return (
        f"int8 was proven on a CPU with {features}; on one without, sums of products can saturate: "
        "run  edgec verify  there, or compile there, where weights get 7 bits",
    )


def _pack(bench: Bench, plan: Plan, winner: Outcome, info: ArtifactInfo, path: Path) -> None:
    """Write the artifact with its evidence, test it as a device would, and only then publish it."""
    made = winner.made
    assert made is not None
    bench.progress(f"{info['target']}: packing {path.name} and running its self-test")
    variant = bench.variants[made.candidate.variant]
    with Artifact.open(made.path) as candidate:
        manifest = _final_manifest(bench, plan.target, made, variant, candidate.manifest)
    members = {**members_of(made.converted, variant), GOLDEN: golden_bytes(made.reference)}
    # What depends on the bytes of the artifact cannot be in it.
    inside = {k: v for k, v in info.items() if k not in ("path", "size_bytes", "content_digest")}
    draft = pack(
        made.path.with_name("winner.edgec"), manifest, members, {**bench.build, "artifacts": [inside]}
    )
    with Artifact.open(draft) as artifact:
        artifact.verify()
        info["path"], info["size_bytes"] = str(path), artifact.size_bytes
        info["content_digest"] = artifact.content_digest
    _require_self_test(draft, bench.options.threads)
    try:
        os.replace(draft, path)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}") from e


def _require_self_test(draft: Path, threads: int) -> None:
    with load(draft, threads=threads, self_test=False) as session:
        result = session.self_test()
    if not result.passed:
        raise SelfTestError(f"the artifact fails its own golden vectors right after it was made: {result}")


def _final_manifest(
    bench: Bench, target: Target, made: Made, variant: Variant, manifest: Manifest
) -> Manifest:
    engine, model = made.candidate.engine.name, bench.build["model"]
    manifest = replace(manifest, observe=observation(manifest.inputs))
    given = variant.samples.given_inputs(variant.processor, REFERENCE_SAMPLES)
    return replace(
        manifest,
        members={},
        model=model["name"],
        model_version=model["version"],
        budgets=Budgets(
            max_drop=bench.options.max_drop,
            latency_ms=bench.options.budget_latency_ms,
            memory_mib=bench.options.budget_memory_mib,
            size_bytes=bench.options.budget_size_bytes,
        ),
        reference=reference_quantiles(variant),
        input_reference=input_quantiles(given, manifest),
        golden=golden_tolerances(made.reference),
        privacy=Privacy(inputs_stay=bench.options.inputs_stay),
        provenance=provenance(
            bench.build,
            variant,
            {
                "converter": {engine: get_converter(engine).version()},
                **lock_facts(
                    target,
                    made.candidate.recipe,
                    bench.baseline.metric.name if bench.baseline is not None else None,
                    bench.plain.pipeline,
                    variant.name,
                ),
            },
        ),
    )
