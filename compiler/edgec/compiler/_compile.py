"""One build: load -> simplify -> candidates -> parity -> accuracy -> measure -> pack, per target."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgec.artifact import Pipeline, read_pipeline
from edgec.compiler.accuracy import Baseline, measure_baseline
from edgec.compiler.cache import BuildCache, build_key
from edgec.compiler.datachecks import data_warnings
from edgec.compiler.environments import default_home
from edgec.compiler.figures import build_info
from edgec.compiler.ingest import load_source
from edgec.compiler.model import SourceModel
from edgec.compiler.options import CompileOptions
from edgec.compiler.pruned import pruned_forms, useless_because
from edgec.compiler.report import Build
from edgec.compiler.samples import Samples
from edgec.compiler.targetbuild import Bench, Plan, build_targets
from edgec.compiler.variants import Variant, folded_variant, plain_variant, unquantized_variants
from edgec.errors import CompileError, DataError, OutputError, PassError
from edgec.evaluation import Dataset, get_metric, open_dataset
from edgec.runtime.pipeline import check_pipeline
from edgec.targets import Target, resolve_target

Progress = Callable[[str], None]
_DEFAULTS = CompileOptions()


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build made.

    Attributes:
        report: All figures and reasons; its shape is documented in ``docs/report.md``.
        artifacts: Paths of the artifacts, in the order of the targets.
        interrupted: Whether Ctrl-C ended it early: the artifacts are the best of what was finished.
    """

    report: Build
    artifacts: tuple[Path, ...]
    interrupted: bool = False


def compile_model(
    model: str | Path,
    targets: Sequence[str | Target],
    output: str | Path,
    *,
    pipeline: str | Path | Pipeline | None = None,
    calibration: str | Path | Dataset | None = None,
    evaluation: str | Path | Dataset | None = None,
    metric: str | None = None,
    options: CompileOptions = _DEFAULTS,
    cache_dir: str | Path | None = None,
    home: str | Path | None = None,
    progress: Progress = lambda _: None,
    command: Sequence[str] = (),
) -> BuildResult:
    """Compile a model to one proven artifact per target.

    Args:
        model: The ``.onnx`` file; or a TFLite or Keras file, a SavedModel directory, or a program of
            ``torch.export``, which are converted and held against their framework first.
        targets: Names, aliases, paths of TOML files, or targets.
        output: Directory for the artifacts, made if need be.
        pipeline: Pre- and post-processing, or the path of its TOML file.
        calibration: Representative samples, or where they are.
        evaluation: Samples to judge candidates on, or where they are: labelled ones with `metric`, any
            without, whose outputs are then held against the source's.
        metric: What to score: ``top1``.
        options: How to compile.
        cache_dir: Where results are kept and found again; None to build anew and keep nothing.
        home: Where environments of converters are, and what they converted; ``~/.cache/edgec`` if None.
        progress: Told what is going on, a line at a time.
        command: What the user typed, for the report.

    Raises:
        EdgecError: Nothing could be built for any target; no partial file is left.
    """
    started = time.monotonic()
    resolved = [_resolve(t, progress) for t in targets]
    if not resolved:
        raise CompileError("no target was given: name at least one")
    progress(f"reading {model}")
    source = load_source(
        Path(model),
        options.shapes,
        home=None if home is None else Path(home),
        reuse=cache_dir is not None,
        progress=progress,
    )
    if options.environments is None:
        place = default_home() if home is None else Path(home)
        options = replace(options, environments=place / "environments")
    declared = read_pipeline(pipeline) if isinstance(pipeline, str | Path) else pipeline
    if declared is not None:
        check_pipeline(declared, source.inputs, source.outputs)
    samples = _samples(source, declared, calibration, evaluation, metric, options)
    name = _name(source, options)
    directory = _output_directory(Path(output))
    build = build_info(source, samples, options, name, command)
    plans = [Plan(target=t, path=directory / f"{name}-{t.name}.edgec") for t in resolved]
    _require_one_uses_zeros(resolved, options)
    keys = (
        [build_key(source, p.target, declared, samples, metric, options, name) for p in plans]
        if cache_dir
        else []
    )
    interrupted = False
    with _open_cache(cache_dir) as cache:
        for plan, key in zip(plans, keys, strict=False):
            plan.info = cache.fetch(key, plan.path) if cache is not None else None
            if plan.info is not None:
                progress(f"{plan.target.name}: taken from the cache")
        missing = [plan for plan in plans if plan.info is None]
        if missing:
            with _scratch(directory) as scratch:
                bench = _bench(source, declared, samples, metric, options, build, scratch, progress)
                interrupted = build_targets(bench, missing)
        for plan, key in zip(plans, keys, strict=False):
            if cache is not None and plan in missing and plan.info is not None and not interrupted:
                cache.store(key, plan.path, plan.info)
    errors = [plan.error for plan in plans if plan.error is not None]
    if len(errors) == len(plans):
        raise errors[0]
    build["artifacts"] = [plan.info for plan in plans if plan.info is not None]
    build["skipped"] = [
        {"target": p.target.name, "reason": str(p.error)} for p in plans if p.error is not None
    ]
    build["duration_s"] = round(time.monotonic() - started, 1)
    return BuildResult(
        report=build,
        artifacts=tuple(plan.path for plan in plans if plan.info is not None),
        interrupted=interrupted,
    )


def _require_one_uses_zeros(targets: Sequence[Target], options: CompileOptions) -> None:
    """Refuse zeros that none of the targets gains by; where one does, the others fail by themselves."""
    refusals = [useless_because(options, target) for target in targets]
    if refusals and all(refusals):
        raise CompileError(str(refusals[0]))


@contextmanager
def _open_cache(directory: str | Path | None) -> Iterator[BuildCache | None]:
    if directory is None:
        yield None
        return
    cache = BuildCache(Path(directory))
    try:
        yield cache
    finally:
        cache.close()


def _bench(
    source: SourceModel,
    pipeline: Pipeline | None,
    samples: Samples,
    metric: str | None,
    options: CompileOptions,
    build: Build,
    scratch: Path,
    progress: Progress,
) -> Bench:
    progress("simplifying, and measuring the noise floor of the source")
    plain = plain_variant(source, pipeline, samples)
    folded, unfolded_because = _folded(plain, options)
    baseline = _baseline(plain, samples, metric, progress)
    warnings = data_warnings(plain, baseline, progress)
    for warning in warnings:
        progress(f"warning: {warning}")
    return Bench(
        plain=plain,
        folded=folded,
        unfolded_because=unfolded_because,
        baseline=baseline,
        pruned=pruned_forms(plain, folded, baseline, options, progress),
        unquantized=tuple(u for v in (plain, folded) if v is not None for u in unquantized_variants(v)),
        warnings=tuple(warnings),
        options=options,
        build=build,
        scratch=scratch,
        progress=progress,
    )


def _folded(plain: Variant, options: CompileOptions) -> tuple[Variant | None, str | None]:
    """Return the source with its pre-processing in the graph, or None and why not."""
    if options.fold == "off" or plain.pipeline is None:
        return None, None
    if plain.samples.data is None:
        if options.fold == "on":
            raise CompileError(
                "--fold on needs --calibration or --evaluation, to prove that folding changes nothing"
            )
        return None, None
    try:
        folded = folded_variant(plain)
    except PassError as e:
        return None, f"pre-processing stays outside the graph: {e}"
    if folded is None and options.fold == "on":
        raise CompileError("--fold on: the pipeline has no step that can go into the graph")
    return folded, None


def _resolve(target: str | Target, progress: Progress) -> Target:
    if isinstance(target, Target):
        return target
    resolution = resolve_target(target)
    if resolution.note is not None:
        progress(resolution.note)
    return resolution.target


def _name(source: SourceModel, options: CompileOptions) -> str:
    return options.name if options.name is not None else source.path.stem


def _samples(
    source: SourceModel,
    pipeline: Pipeline | None,
    calibration: str | Path | Dataset | None,
    evaluation: str | Path | Dataset | None,
    metric: str | None,
    options: CompileOptions,
) -> Samples:
    if evaluation is None and metric is not None:
        raise DataError("--metric needs --evaluation with labelled samples")
    return Samples(
        calibration=(
            open_dataset(calibration, inputs=source.inputs, pipeline=pipeline)
            if isinstance(calibration, str | Path)
            else calibration
        ),
        evaluation=(
            open_dataset(evaluation, inputs=source.inputs, pipeline=pipeline, need_labels=metric is not None)
            if isinstance(evaluation, str | Path)
            else evaluation
        ),
        seed=options.seed,
    )


def _baseline(plain: Variant, samples: Samples, metric: str | None, progress: Progress) -> Baseline | None:
    if samples.evaluation is None or samples.judged is None or metric is None:
        return None
    progress(f"scoring the source on {len(samples.judged)} samples")
    return measure_baseline(plain, samples.judged, get_metric(metric))


def _output_directory(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"the output directory {output} cannot be made: {e.strerror or e}") from e
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"the output directory {output} is not writable: choose another with -o")
    return output


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    # Beside the results, where there is room for artifacts if there is room at all.
    try:
        path = Path(tempfile.mkdtemp(prefix=".edgec-", dir=directory))
    except OSError as e:
        raise OutputError(f"nothing can be written to {directory}: {e.strerror or e}") from e
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
