"""One target's build: its candidates compete, and the winner is packed with its evidence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgec.artifact import GOLDEN, Artifact, Budgets, Manifest, pack
from edgec.compiler.accuracy import Baseline, judge_labelled, judge_unlabelled
from edgec.compiler.candidates import Candidate, Made, Shared, diverging_tensor, make, members_of
from edgec.compiler.converters import get_converter
from edgec.compiler.evidence import golden_bytes, golden_tolerances, reference_quantiles
from edgec.compiler.figures import candidate_info, latency_info, parity_info, provenance, tensor_infos
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity import parity_sentence
from edgec.compiler.report import ArtifactInfo, Build
from edgec.compiler.tournament import Aim, Choice, Contender, choose
from edgec.compiler.variants import Variant
from edgec.errors import (
    BudgetError,
    CompileError,
    EdgecError,
    OutputError,
    ParityError,
    PassError,
    SelfTestError,
    UnsupportedModelError,
)
from edgec.runtime import load
from edgec.runtime.benchmark import measure_cold_starts
from edgec.runtime.measurement import measure_interleaved, median_ratio
from edgec.targets import Engine, Target, host_arch, host_features

_MIN_ROUNDS = 50
_FOLD_SPEEDUP = 1.0


@dataclass(kw_only=True)
class Bench:
    """What the builds of all targets share.

    Attributes:
        plain: The source with its pre-processing outside.
        baseline: Of accuracy; None without labels.
        shared: What candidates share.
        options: How to compile.
        build: The report so far.
        progress: Told what is going on.
    """

    plain: Variant
    baseline: Baseline | None
    shared: Shared
    options: CompileOptions
    build: Build
    progress: Callable[[str], None]


@dataclass(kw_only=True)
class _Entry:
    """A contender with what was made of it."""

    contender: Contender
    made: Made | None = None


def build_target(bench: Bench, target: Target, path: Path) -> ArtifactInfo:
    """Let the candidates of a target compete, and write the winner to `path`.

    Returns:
        Its figures.

    Raises:
        BudgetError: No candidate may be shipped.
        ParityError: No candidate computes what the source does.
        UnsupportedModelError: No candidate could be made.
        OutputError: `path` cannot be written.
    """
    engine = target.engines[0]
    get_converter(engine.name)  # refuses a family that this version does not build
    _require_static_shapes(bench.plain, target)
    variant, why_variant = _choose_variant(bench, target, engine)
    entries = [_enter(bench, target, c) for c in _candidates(bench, target, engine, variant)]
    measured = _measure(bench, target, entries)
    _measure_memory(bench, target, entries)
    contenders = [e.contender for e in entries]
    choice = choose(contenders, target.stand_in.ranking, target.stand_in.rule, _aim(bench.options))
    winner = _winner(target, entries, choice, path)
    for entry in entries:
        if entry.contender.admissible:
            entry.contender.status = "winner" if entry is winner else "admissible"
    notes = (
        *variant.notes,
        *why_variant,
        *(("the source is quantized already, and built as it is",) if variant.quantized else ()),
    )
    info = _info(bench, target, winner, entries, (*notes, *choice.decisions), measured)
    _pack(bench, winner, path, info)
    for entry in entries:
        if entry.made is not None:
            entry.made.session.close()
    return info


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


def _candidates(
    bench: Bench, target: Target, engine: Engine, variant: Variant
) -> Iterator[Candidate | Contender]:
    """Yield the candidates to make, and those that cannot be, with the reason."""
    wanted = bench.options.precision
    buildable = get_converter(engine.name).precisions
    here = engine.precisions_on(host_features()) if _measured_here(target) else engine.precisions
    if variant.quantized and wanted not in ("auto", "int8"):
        raise CompileError(
            f"the source is quantized already: it cannot be built in {wanted}; compile its fp32 form"
        )
    if wanted != "auto" and wanted not in engine.precisions:
        raise CompileError(
            f"{target.name} does not run {wanted}: {engine.name} has {', '.join(engine.precisions)} there"
        )
    for precision in engine.precisions:
        if wanted not in ("auto", precision) and precision != "fp32":
            continue
        if variant.quantized and precision != "int8":
            continue
        candidate = Candidate(engine=engine, precision=precision, variant=variant)
        skipped = Contender(name=candidate.name, engine=engine.name, precision=precision, status="skipped")
        if precision not in buildable:
            if wanted == precision:
                raise CompileError(
                    f"this version of edgec builds {', '.join(buildable)} for {engine.name}, not {wanted}"
                )
            skipped.problem = f"this version of edgec does not build {precision} for {engine.name}"
            yield skipped
        elif variant.weights_from is not None and precision != "fp32":
            skipped.problem = (
                "its weights are over 2 GB: this version of edgec builds fp32 only of such a model"
            )
            yield skipped
        elif precision not in here:
            skipped.problem = f"this machine's CPU has no {precision}, so nothing can be proven about it here"
            yield skipped
        else:
            yield candidate


def _enter(bench: Bench, target: Target, candidate: Candidate | Contender) -> _Entry:
    """Make a candidate and judge it; what goes wrong is its figure too."""
    if isinstance(candidate, Contender):
        return _Entry(contender=candidate)
    bench.progress(f"{target.name}: {candidate.name}: converting and checking parity")
    contender = Contender(name=candidate.name, engine=candidate.engine.name, precision=candidate.precision)
    try:
        made = make(candidate, target, bench.shared)
    except OutputError:
        raise  # the disk's fault, not the candidate's
    except EdgecError as e:
        contender.status, contender.problem = "failed", str(e)
        return _Entry(contender=contender)
    contender.size_bytes, contender.parity = made.payload_bytes, made.parity
    contender.source_snr_db = made.source_snr_db
    if not made.parity.passed:
        tensor = diverging_tensor(made, target, bench.shared)
        where = f"first diverging tensor: {tensor!r}" if tensor else "no inner tensor diverges by itself"
        contender.problem = f"{parity_sentence(made.parity)}; {where}"
    elif (wrong := _wrong_precision(made)) is not None:
        contender.problem = wrong
    else:
        bench.progress(f"{target.name}: {candidate.name}: judging accuracy")
        if bench.baseline is not None:
            contender.gate = judge_labelled(made.session, bench.baseline, bench.options)
        else:
            contender.gate = judge_unlabelled(made.session.run, candidate.variant, bench.options)
    return _Entry(contender=contender, made=made)


def _wrong_precision(made: Made) -> str | None:
    session, promised = made.session, made.candidate.precision
    expected = {promised}
    if promised in ("int8", "bf16"):
        expected.add("mixed")  # some layers stay in float; the placement says which
    if promised in made.candidate.engine.storage_only:
        expected |= {"fp32", "mixed"}
    if session.state == "fallback" or session.precision in expected:
        return None
    return f"the engine runs it in {session.precision}, not in {promised}"


def _measured_here(target: Target) -> bool:
    return target.measured_on(host_arch(), host_features())


def _measure(bench: Bench, target: Target, entries: list[_Entry]) -> str:
    """Time the admissible candidates interleaved; return the sentence that says on what."""
    ready = [e for e in entries if e.contender.admissible and e.made is not None]
    if (
        not ready
        or not _measured_here(target)
        or any(e.made.session.state != "ready" for e in ready if e.made)
    ):
        return f"not measured: {target.stand_in.rule}"
    bench.progress(f"{target.name}: measuring {len(ready)} candidates side by side")
    calls = {e.contender.name: _call(e.made) for e in ready if e.made is not None}
    latencies = measure_interleaved(
        calls,
        duration_s=bench.options.measure_s * len(calls),
        min_rounds=_MIN_ROUNDS,
        seed=bench.options.seed,
    )
    for entry in ready:
        entry.contender.latency = latencies[entry.contender.name]
    threads = bench.options.threads
    return (
        f"this machine, {threads} thread{'s' if threads > 1 else ''}, all candidates interleaved in one run; "
        f"{target.stand_in.rule}"
    )


def _measure_memory(bench: Bench, target: Target, entries: list[_Entry]) -> None:
    """Note the peak memory of every admissible candidate, where a budget asks for it."""
    if bench.options.budget_memory_mib is None:
        return
    bench.progress(f"{target.name}: measuring memory in fresh processes")
    for entry in entries:
        if entry.contender.admissible and entry.made is not None:
            cold = measure_cold_starts(entry.made.path, threads=bench.options.threads, processes=1)
            entry.contender.memory_mib = cold.peak_memory_mib


def _aim(options: CompileOptions) -> Aim:
    return Aim(
        objective=options.objective,
        latency_ms=options.budget_latency_ms,
        size_bytes=options.budget_size_bytes,
        memory_mib=options.budget_memory_mib,
    )


def _call(made: Made) -> Callable[[], object]:
    return partial(made.session.run, dict(made.reference.inputs[0]))


def _choose_variant(bench: Bench, target: Target, engine: Engine) -> tuple[Variant, tuple[str, ...]]:
    """Return the form of the source to compile, and why in words."""
    plain, fold = bench.plain, bench.options.fold
    data = plain.samples.data
    if fold == "on" and data is None:
        raise CompileError(
            "--fold on needs --calibration or --evaluation, to prove that folding changes nothing"
        )
    if fold == "off" or plain.pipeline is None or data is None:
        return plain, ()
    try:
        folded = bench.shared.folded(plain)
    except PassError as e:
        return plain, (f"pre-processing stays outside the graph: {e}",)
    if folded is None:
        if fold == "on":
            raise CompileError("--fold on: the pipeline has no step that can go into the graph")
        return plain, ()
    if fold == "on":
        return folded, ("pre-processing is in the graph, as --fold on asks",)
    if not _measured_here(target):
        return plain, (
            "pre-processing stays outside the graph: what folding would gain was not measured here",
        )
    return _faster_variant(bench, target, engine, plain, folded, next(iter(data)).data)


def _faster_variant(
    bench: Bench, target: Target, engine: Engine, plain: Variant, folded: Variant, sample: Any
) -> tuple[Variant, tuple[str, ...]]:
    bench.progress(f"{target.name}: measuring whether pre-processing belongs in the graph")
    try:
        sessions = {
            v.name: make(Candidate(engine=engine, precision="fp32", variant=v), target, bench.shared).session
            for v in (plain, folded)
        }
    except EdgecError as e:
        return plain, (f"pre-processing stays outside the graph: {e}",)
    latencies = measure_interleaved(
        {name: partial(session.predict, sample) for name, session in sessions.items()},
        duration_s=bench.options.measure_s,
        min_rounds=_MIN_ROUNDS,
        seed=bench.options.seed,
    )
    ratio = median_ratio(latencies["folded"], latencies["plain"])
    for session in sessions.values():
        session.close()
    figures = (
        f"{latencies['folded'].p50_ms:.3g} ms against {latencies['plain'].p50_ms:.3g} ms from sample to "
        f"prediction in fp32, ratio {ratio.ratio:.2f}, 95 % interval {ratio.lower:.2f} to {ratio.upper:.2f}"
    )
    if ratio.upper < _FOLD_SPEEDUP:
        return folded, (f"pre-processing is in the graph, where it is faster: {figures}",)
    return plain, (f"pre-processing stays outside the graph, where it is no slower: {figures}",)


def _winner(target: Target, entries: list[_Entry], choice: Choice, path: Path) -> _Entry:
    for entry in entries:
        if entry.contender.name == choice.winner:
            return entry
    tried = [e.contender for e in entries if e.contender.status != "skipped"]
    reasons = "; ".join(choice.decisions)
    if tried and all(c.status == "failed" for c in tried):
        raise UnsupportedModelError(f"{target.name}: no candidate could be made: {tried[0].problem}")
    if all(c.parity is not None and not c.parity.passed for c in tried):
        raise ParityError(f"{target.name}: {reasons}")
    nearest = next((e.made for e in entries if e.contender.name == choice.nearest), None)
    if nearest is None:
        raise BudgetError(f"{target.name}: no candidate may be shipped: {reasons}")
    kept = path.with_name(f"{path.stem}.over-budget.edgec")
    os.replace(nearest.path, kept)
    raise BudgetError(
        f"{target.name}: no candidate keeps the budgets: {reasons}; the nearest, {choice.nearest}, is kept "
        f"as {kept}, without golden vectors and report"
    )


def _info(
    bench: Bench,
    target: Target,
    winner: _Entry,
    entries: list[_Entry],
    decisions: tuple[str, ...],
    measured: str,
) -> ArtifactInfo:
    made = winner.made
    assert made is not None
    session, variant = made.session, made.candidate.variant
    fp32 = next((e.contender.latency for e in entries if e.contender.precision == "fp32"), None)
    infos = [candidate_info(e.contender, _reason(e.contender), fp32, bench.baseline) for e in entries]
    mine = next(i for i in infos if i["status"] == "winner")
    return {
        "target": target.name,
        "target_title": target.title,
        "path": "",
        "size_bytes": 0,
        "content_digest": "",
        "engine": made.converted.engine.name,
        "engine_version": session.engine_version,
        "device": made.converted.engine.device,
        "precision": made.candidate.precision,
        "effective_precision": session.precision if session.state == "ready" else None,
        "state": session.state,
        "parity": parity_info(made.parity),
        "accuracy": mine.get("accuracy"),
        "latency_ms": latency_info(winner.contender.latency),
        "measured_on": measured,
        "placement": dict(session.placement),
        "candidates": infos,
        "decisions": list(decisions),
        "warnings": _warnings(bench, variant),
        "not_run": list(made.converted.not_run),
        "pipeline": variant.pipeline.to_dict() if variant.pipeline is not None else None,
        "inputs": tensor_infos(variant.inputs),
        "outputs": tensor_infos(variant.outputs),
    }


def _warnings(bench: Bench, variant: Variant) -> list[str]:
    synthetic = bench.build.get("data", {}).get("synthetic")
    table = bench.shared.known_table(variant)
    return [*([synthetic] if synthetic else []), *(table.warnings if table is not None else ())]


def _reason(contender: Contender) -> str:
    if contender.problem is not None:
        return contender.problem
    return contender.gate.reason if contender.gate is not None else ""


def _pack(bench: Bench, winner: _Entry, path: Path, info: ArtifactInfo) -> None:
    """Write the artifact with its evidence, test it as a device would, and only then publish it."""
    made = winner.made
    assert made is not None
    bench.progress(f"{info['target']}: packing {path.name} and running its self-test")
    with Artifact.open(made.path) as candidate:
        manifest = _final_manifest(bench, made, candidate.manifest)
    members = {**members_of(made.converted, made.candidate.variant), GOLDEN: golden_bytes(made.reference)}
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
    with load(draft, threads=threads) as session:
        result = session.self_test()
    if not result.passed:
        raise SelfTestError(f"the artifact fails its own golden vectors right after it was made: {result}")


def _final_manifest(bench: Bench, made: Made, manifest: Manifest) -> Manifest:
    converter = get_converter(made.candidate.engine.name)
    variant, model = made.candidate.variant, bench.build["model"]
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
        golden=golden_tolerances(made.reference),
        provenance=provenance(
            bench.build, variant, {"converter": {made.candidate.engine.name: converter.version()}}
        ),
    )
