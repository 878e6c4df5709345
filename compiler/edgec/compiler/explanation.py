"""Why an artifact is what it is, and where its int8 loses accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from edgec.artifact import Artifact, Manifest
from edgec.compiler.accuracy import Baseline, measure_baseline, score_graph
from edgec.compiler.candidates import Shared
from edgec.compiler.explain import Flip, LayerError, Score, flips
from edgec.compiler.ingest import load_source
from edgec.compiler.lock import Lock, read_lock
from edgec.compiler.pruned import pruned_forms
from edgec.compiler.recipes import Recipe
from edgec.compiler.repair import analyse
from edgec.compiler.samples import Samples
from edgec.compiler.variants import Variant, folded_variant, plain_variant
from edgec.errors import ArtifactError, CompileError, DataError
from edgec.evaluation import Dataset, get_metric, open_dataset


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What int8 does to the task's metric.

    Attributes:
        metric: Its name.
        fp32: Score of the source.
        int8: Score of the Q/DQ graph.
        samples: How many were scored.
        flipped: How many have another prediction in int8.
        flips: The first of them.
    """

    metric: str
    fp32: float
    int8: float
    samples: int
    flipped: int
    flips: tuple[Flip, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why an artifact is what it is.

    Attributes:
        manifest: Of the artifact.
        recipe: How it was made ready; None where it does not say.
        decisions: Of its build, in sentences.
        candidates: Of its build, in the form of the report.
        layers: What each layer loses by int8.
        layers_of: Whose layers these are, in words; empty where there are none.
        scores: Of the metric, where there is labelled data.
        flips: Samples that int8 turned, as the build noted them.
        notes: What to know of these figures, in sentences.
    """

    manifest: Manifest
    recipe: Recipe | None
    decisions: tuple[str, ...]
    candidates: tuple[Mapping[str, Any], ...]
    layers: tuple[LayerError, ...] = ()
    layers_of: str = ""
    scores: Scores | None = None
    flips: tuple[Flip, ...] = ()
    notes: tuple[str, ...] = field(default=())


def explain_artifact(path: str | Path) -> Explanation:
    """Return what the artifact itself knows: the decisions of its build, and the layers where it looked.

    Raises:
        ArtifactError: It cannot be opened.
    """
    with Artifact.open(path) as artifact:
        manifest, report = artifact.manifest, artifact.report
    info = _artifact_info(report)
    candidates = tuple(c for c in _list(info, "candidates") if isinstance(c, Mapping))
    looked_into = next((c for c in candidates if c.get("layers")), None)
    found = Explanation(
        manifest=manifest,
        recipe=_recipe(manifest),
        decisions=tuple(str(d) for d in _list(info, "decisions")),
        candidates=candidates,
        notes=() if info else ("the artifact carries no report of its build",),
    )
    if looked_into is None:
        return found
    try:
        return replace(
            found,
            layers=tuple(LayerError(**layer) for layer in looked_into["layers"]),
            layers_of=f"{looked_into.get('name')}, before its repair, as the build measured them",
            flips=tuple(Flip(**flip) for flip in _list(looked_into, "flips")),
        )
    except TypeError as e:
        raise ArtifactError(f"{path}: its report has layers of another form ({e}): use another edgec") from e


def explain_with_source(
    path: str | Path,
    source: str | Path,
    *,
    calibration: str | Path | Dataset | None = None,
    evaluation: str | Path | Dataset | None = None,
    metric: str | None = None,
    home: str | Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Explanation:
    """Measure anew what each layer loses by int8, and what that does to the metric.

    The Q/DQ graph is the artifact's own where it carries one (ONNX Runtime), else it is made again by the
    artifact's recipe; for an artifact in another precision, by the plain recipe of its target.

    Args:
        path: The artifact.
        source: The ONNX model that it was made from.
        calibration: Representative samples; without them, the evaluation data or made-up inputs.
        evaluation: Labelled samples; needs `metric`.
        metric: What to score.
        home: Where environments of converters are, and what they converted; ``~/.cache/edgec`` if None.
        progress: Told what is going on.

    Raises:
        ArtifactError: The artifact cannot be opened, or does not say how it was made.
        CompileError: The source is another model, or its target has no int8.
        DataError: The data does not fit.
    """
    if (evaluation is None) != (metric is None):
        raise DataError("--evaluation and --metric belong together: give both, or none")
    known = explain_artifact(path)
    lock = read_lock(known.manifest)
    if lock.target.quantization is None:
        raise CompileError(f"{lock.target.name} has no scheme for int8, so there is nothing to measure")
    progress(f"reading {source}")
    samples = _samples(lock, calibration, evaluation)
    variant = _variant(Path(source), lock, known.manifest, samples, home=None if home is None else Path(home))
    in_int8 = known.recipe is not None and known.recipe.precision == "int8"
    recipe = known.recipe if known.recipe is not None and in_int8 else Recipe(precision="int8")
    with tempfile.TemporaryDirectory(prefix="edgec-") as scratch:
        shared = Shared(
            variants={variant.name: variant}, baseline=None, options=lock.options, scratch=Path(scratch)
        )
        graph = _own_graph(path, known.manifest, Path(scratch)) if in_int8 else None
        if graph is None:
            progress("calibrating and quantizing as the build did")
            graph = shared.graph(variant, lock.target.quantization, recipe)
        baseline = _baseline(variant, evaluation, metric, progress)
        progress("measuring every layer, and the worst alone")
        layers = analyse(
            shared, variant.name, lock.target, recipe, quantized=graph, score=_scorer(variant, baseline)
        )
    whose = "the artifact's own" if in_int8 else "what the plain int8 of its target would be"
    synthetic = variant.samples.synthetic_sentence(variant.inputs)
    return replace(
        known,
        layers=layers,
        layers_of=f"{recipe.name}, {whose}, measured now",
        scores=_scores(graph, variant, baseline, progress),
        flips=(),
        notes=(*known.notes, *([synthetic] if synthetic else [])),
    )


def _artifact_info(report: Mapping[str, Any] | None) -> Mapping[str, Any]:
    artifacts = _list(report or {}, "artifacts")
    return artifacts[0] if artifacts and isinstance(artifacts[0], Mapping) else {}


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, list) else []


def _recipe(manifest: Manifest) -> Recipe | None:
    facts = manifest.provenance.get("recipe") if manifest.provenance else None
    if not isinstance(facts, Mapping):
        return None
    fields = {k: v for k, v in facts.items() if k != "name"}
    try:
        return Recipe(**{**fields, "exclude": tuple(fields.get("exclude", ()))})
    except TypeError as e:
        raise ArtifactError(f"the artifact was made by a recipe that this edgec does not know: {e}") from e


def _samples(
    lock: Lock, calibration: str | Path | Dataset | None, evaluation: str | Path | Dataset | None
) -> Samples:
    # With a pipeline samples are raw, whatever the model takes.
    def opened(data: str | Path | Dataset | None, *, labels: bool) -> Dataset | None:
        return open_dataset(data, need_labels=labels) if isinstance(data, str | Path) else data

    return Samples(
        calibration=opened(calibration, labels=False),
        evaluation=opened(evaluation, labels=True),
        seed=lock.options.seed,
        # The ranges must be those of the build, whatever data there is to score on now.
        hold_out=lock.evaluation is None,
    )


def _variant(path: Path, lock: Lock, manifest: Manifest, samples: Samples, *, home: Path | None) -> Variant:
    source = load_source(path, lock.options.shapes, home=home)
    if source.sha256 != lock.source_sha256:
        raise CompileError(
            f"{path} is not what the artifact was made from: its SHA-256 is {source.sha256[:12]}..., "
            f"the source's was {lock.source_sha256[:12]}..."
        )
    plain = plain_variant(source, lock.pipeline, samples)
    name = str((manifest.provenance or {}).get("variant", "plain"))
    form, _, pruned = name.partition(", ")
    folded = folded_variant(plain) if form == "folded" else None
    if form == "folded" and folded is None:
        raise CompileError("the artifact's pre-processing was folded into its graph, and cannot be again")
    whole = folded or plain
    if not pruned or whole.quantized:  # what int8 costs is asked of the author's, whatever form ships
        return whole
    options = lock.options
    if options.prune == "auto":  # what it chose is in the name
        options = replace(options, prune=float(pruned.split()[0]) / 100)
    forms = pruned_forms(plain, folded, None, options, lambda _: None)
    return next(v for v in forms.variants if v.name == name)


def _own_graph(path: str | Path, manifest: Manifest, scratch: Path) -> onnx.ModelProto | None:
    """Return the Q/DQ graph that an artifact for ONNX Runtime carries."""
    if manifest.engine.name != "onnxruntime":
        return None
    with Artifact.open(path) as artifact:
        artifact.extract(scratch, list(manifest.engine.files))
    return onnx.load(scratch / manifest.engine.files[0])


def _baseline(
    variant: Variant,
    evaluation: str | Path | Dataset | None,
    metric: str | None,
    progress: Callable[[str], None],
) -> Baseline | None:
    data = variant.samples.evaluation
    if evaluation is None or data is None or metric is None:
        return None
    progress(f"scoring the source on {len(data)} samples")
    return measure_baseline(variant, data, get_metric(metric))


def _scorer(variant: Variant, baseline: Baseline | None) -> Score | None:
    if baseline is None:
        return None
    return lambda graph: score_graph(graph, variant, baseline).score.value


def _scores(
    graph: onnx.ModelProto, variant: Variant, baseline: Baseline | None, progress: Callable[[str], None]
) -> Scores | None:
    if baseline is None:
        return None
    progress("scoring int8")
    found = score_graph(graph, variant, baseline)
    count, first = flips(baseline.evaluation, found)
    return Scores(
        metric=baseline.metric.name,
        fp32=baseline.score.value,
        int8=found.score.value,
        samples=found.score.n,
        flipped=count,
        flips=first,
    )
