"""Locks: all that an artifact says of how it was made, so that it can be made again."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from typing import Any

from edgec.artifact import Manifest, Pipeline
from edgec.compiler.extensions import GROUPS
from edgec.compiler.options import CompileOptions
from edgec.compiler.recipes import Recipe
from edgec.errors import ArtifactError, CompileError, PipelineError, TargetError
from edgec.targets import Target, host_arch, target_from_dict

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"\bextra\s*==")


@dataclass(frozen=True, kw_only=True)
class DataLock:
    """A data set that a build used.

    Attributes:
        sha256: Of its content.
        samples: How many there were.
    """

    sha256: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Lock:
    """How an artifact was made.

    Attributes:
        python: Version of Python.
        arch: Machine of the host.
        packages: Versions of edgec and of all that it needs, by name.
        target: What it was compiled for, as it was understood then.
        options: How.
        pipeline: Pre- and post-processing before any of it went into the graph.
        source_sha256: Of the model, external data included.
        calibration: The representative data; None where there was none.
        evaluation: The labelled data; None where there was none.
        metric: What was scored; None without labelled data.
        recipe: How the winner was made ready, in words.
    """

    python: str
    arch: str
    packages: Mapping[str, str]
    target: Target
    options: CompileOptions
    pipeline: Pipeline | None
    source_sha256: str
    calibration: DataLock | None
    evaluation: DataLock | None
    metric: str | None
    recipe: str


def toolchain() -> dict[str, Any]:
    """Return what is installed here of what makes artifacts: Python, edgec, and all that it needs."""
    return {
        "python": platform.python_version(),
        "arch": host_arch(),
        "packages": dict(sorted(_closure(_roots()))),
    }


def lock_facts(
    target: Target, recipe: Recipe, metric: str | None, source_pipeline: Pipeline | None, variant: str
) -> dict[str, Any]:
    """Return what a manifest's provenance needs besides digests and options to be a lock.

    Args:
        target: What is compiled for.
        recipe: Of the winner.
        metric: What was scored.
        source_pipeline: Pre- and post-processing as its author wrote it.
        variant: Form of the source; where it is not ``plain``, the manifest's own pipeline is only what is
            left of the author's.
    """
    facts: dict[str, Any] = {
        "toolchain": toolchain(),
        "target": target.to_dict(),
        "recipe": {"name": recipe.name, **asdict(recipe)},
        "metric": metric,
    }
    if variant != "plain" and source_pipeline is not None:
        steps = source_pipeline.to_dict()
        del steps["labels"]  # those of the manifest's own pipeline
        facts["pipeline"] = steps
    return facts


def read_lock(manifest: Manifest) -> Lock:
    """Return the lock of an artifact.

    Raises:
        ArtifactError: It has none, or an incomplete one: it was made by something else, or long ago.
    """
    facts = manifest.provenance
    try:
        tools = _table(facts, "toolchain")
        packages = _table(tools, "packages")
        pipeline = manifest.pipeline
        if "pipeline" in facts:
            labels = list(pipeline.labels) if pipeline is not None else []
            pipeline = Pipeline.from_dict({**_table(facts, "pipeline"), "labels": labels})
        return Lock(
            python=_text(tools, "python"),
            arch=_text(tools, "arch"),
            packages={name: _text(packages, name) for name in packages},
            target=target_from_dict(_table(facts, "target"), "the artifact's target"),
            options=CompileOptions.from_dict(
                {
                    **_table(facts, "options"),
                    "name": manifest.model,
                    "version": manifest.model_version,
                    "inputs_stay": manifest.privacy.inputs_stay,
                }
            ),
            pipeline=pipeline,
            source_sha256=_text(_table(facts, "source"), "sha256"),
            calibration=_data(facts, "calibration"),
            evaluation=_data(facts, "evaluation"),
            metric=_text(facts, "metric") if facts.get("metric") is not None else None,
            recipe=_text(_table(facts, "recipe"), "name"),
        )
    except (_Missing, CompileError, PipelineError, TargetError) as e:
        raise ArtifactError(
            f"the artifact does not say how to build it again ({e}): compile its model with this edgec"
        ) from e


class _Missing(Exception):
    """Something is not in the provenance, or is of another type."""


def _table(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = facts.get(key)
    if not isinstance(value, Mapping):
        raise _Missing(f"its provenance has no table {key!r}")
    return value


def _text(facts: Mapping[str, Any], key: str) -> str:
    value = facts.get(key)
    if not isinstance(value, str):
        raise _Missing(f"its provenance has no text {key!r}")
    return value


def _data(facts: Mapping[str, Any], key: str) -> DataLock | None:
    if facts.get(key) is None:
        return None
    table = _table(facts, key)
    samples = table.get("samples")
    if not isinstance(samples, int):
        raise _Missing(f"its provenance does not say how many samples its {key} data had")
    return DataLock(sha256=_text(table, "sha256"), samples=samples)


def _roots() -> Iterator[Distribution]:
    """Yield edgec, and the packages that extend it."""
    yield distribution("edgec")
    for group in GROUPS:
        for point in entry_points(group=group):
            if point.dist is not None:
                yield point.dist


def _closure(roots: Iterator[Distribution]) -> Iterator[tuple[str, str]]:
    """Yield name and version of each distribution, and of what it requires and is installed."""
    waiting, seen = list(roots), set[str]()
    own = {_canonical(found.name) for found in waiting}
    while waiting:
        found = waiting.pop()
        name = _canonical(found.name)
        if name in seen:
            continue
        seen.add(name)
        yield name, found.version
        for requirement in found.requires or ():
            # The extras of edgec are its engines; those of others are not what edgec uses.
            needed = _NAME.match(requirement)
            if needed is not None and (name in own or not _EXTRA.search(requirement)):
                waiting.extend(_installed(needed[0]))


def _installed(name: str) -> Iterator[Distribution]:
    try:
        yield distribution(name)
    except PackageNotFoundError:
        return


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
