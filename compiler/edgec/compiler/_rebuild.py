"""Rebuilds: an artifact made once more, by its own lock, with the tools of today."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact, Manifest, Pipeline
from edgec.compiler._compile import BuildResult, compile_model
from edgec.compiler.difference import Difference, compare_builds
from edgec.compiler.ingest import load_source
from edgec.compiler.lock import DataLock, Lock, read_lock, toolchain
from edgec.errors import DataError, ModelError, OutputError, UnknownTargetError
from edgec.evaluation import Dataset, open_dataset
from edgec.targets import Target, load_target


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """An artifact that was built again.

    Attributes:
        original: Path of the first artifact.
        artifact: Path of the new one.
        content_digests: Of both.
        recipes: How each was made ready, in words.
        changed_tools: Version then and now, None where it was not there, of all that changed.
        target_changes: Keys in which today's description of the target differs from the one used; none
            where that is unknown here.
        result: Of the build.
        difference: What changed; None where it was not asked for.
    """

    original: Path
    artifact: Path
    content_digests: tuple[str, str]
    recipes: tuple[str, str]
    changed_tools: Mapping[str, tuple[str | None, str | None]]
    target_changes: tuple[str, ...]
    result: BuildResult
    difference: Difference | None

    @property
    def same_content(self) -> bool:
        """Whether both are the same but for what was measured."""
        return self.content_digests[0] == self.content_digests[1]


def rebuild(
    artifact: str | Path,
    output: str | Path,
    *,
    source: str | Path | None = None,
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    metric: str | None = None,
    compare: bool = False,
    max_slowdown: float = 0.05,
    workers: int | None = None,
    home: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    command: Sequence[str] = (),
) -> Rebuilt:
    """Build an artifact again, from the same model and data, for the same target, with the same options.

    Target, options and pipeline are those of the artifact. Model and data are looked for where its report
    says they were, and must have the digests that its lock says.

    Args:
        artifact: The artifact.
        output: Directory for the new one, which has the name that `compile_model` gives.
        source: The model; None to look for it.
        calibration: The representative data; None to look for it.
        evaluation: The data to judge on; None to look for it. Of an artifact that was built without, it
            serves to compare only.
        metric: What to score; None for the artifact's own.
        compare: Whether to compare the two afterwards.
        max_slowdown: Share by which the new one may be slower.
        workers: See `CompileOptions`.
        home: See `compile_model`.
        progress: Told what is going on.
        command: What the user typed, for the report.

    Raises:
        ArtifactError: The artifact is damaged, or has no lock.
        ModelError: The model is not there, or is another one.
        DataError: Data is not there, or is other data.
        EdgecError: It cannot be built any more.
    """
    path = Path(artifact)
    with Artifact.open(path) as opened, tempfile.TemporaryDirectory(prefix="edgec-") as folder:
        opened.verify()
        lock, manifest = read_lock(opened.manifest), opened.manifest
        finder = _Finder(path, opened.report or {}, manifest, lock, home)
        model = finder.model(source)
        data = finder.data("calibration", calibration, lock.calibration)
        labelled = finder.data("evaluation", evaluation, lock.evaluation)
        scored = _metric(lock, metric, labelled)
        new = Path(output) / f"{manifest.model}-{lock.target.name}.edgec"
        if new.resolve() == path.resolve():
            raise OutputError(f"{path} would be overwritten: choose another directory with -o")
        changes = _target_changes(lock.target)
        if changes:
            progress(
                f"today's {lock.target.name} differs in {', '.join(changes)}: the artifact's own description "
                "is used"
            )
        result = compile_model(
            model,
            [lock.target],
            output,
            pipeline=_pipeline(opened, lock, Path(folder)),
            calibration=data,
            evaluation=labelled if lock.evaluation is not None else None,
            metric=lock.metric,
            options=replace(lock.options, workers=workers),
            home=home,
            progress=progress,
            command=command,
        )
        digest = opened.content_digest
    difference = None
    if compare:
        progress("comparing the two builds")
        difference = compare_builds(
            path,
            new,
            data=data,
            labelled=labelled,
            metric=scored,
            threads=lock.options.threads,
            max_slowdown=max_slowdown,
            seed=lock.options.seed,
        )
    with Artifact.open(new) as made:
        digests, recipe = (digest, made.content_digest), read_lock(made.manifest).recipe
    return Rebuilt(
        original=path,
        artifact=new,
        content_digests=digests,
        recipes=(lock.recipe, recipe),
        changed_tools=_changed_tools(lock),
        target_changes=changes,
        result=result,
        difference=difference,
    )


class _Finder:
    """Finds the model and the data that an artifact was built from."""

    def __init__(
        self, path: Path, report: Mapping[str, Any], manifest: Manifest, lock: Lock, home: Path | None
    ) -> None:
        self._home = home
        self._folder, self._report, self._manifest, self._lock = path.parent, report, manifest, lock

    def model(self, given: str | Path | None) -> Path:
        path = Path(given) if given is not None else self._recorded(self._report.get("model"), "file")
        if path is None or not path.exists():
            raise ModelError(
                f"the model is not at {path or 'a known place'}: say with --source where it is (SHA-256 "
                f"{self._lock.source_sha256})"
            )
        found = load_source(path, self._lock.options.shapes, home=self._home).sha256
        if found != self._lock.source_sha256:
            raise ModelError(
                f"{path} is not the model of the artifact: its SHA-256 is {found}, not "
                f"{self._lock.source_sha256}; give the right one with --source"
            )
        return path

    def data(self, what: str, given: str | Path | None, lock: DataLock | None) -> Dataset | None:
        """Return a data set that has the digest of the lock; None where the artifact needs none."""
        if lock is None:
            if given is None or what == "evaluation":
                return None if given is None else self._open(given, labelled=True)
            raise DataError(f"the artifact was built without {what} data: leave out --{what}")
        spec: str | Path | None = given
        if spec is None:
            # A path, never a function's name: nothing that an artifact says is ever imported.
            recorded = self._report.get("data")
            spec = self._recorded(recorded.get(what) if isinstance(recorded, dict) else None, "source")
            if spec is None or not spec.exists():
                raise DataError(
                    f"the {what} data is not at {spec or 'a known place'}: say with --{what} where it is "
                    f"({lock.samples} samples, SHA-256 {lock.sha256})"
                )
        found = self._open(spec, labelled=what == "evaluation" and self._lock.metric is not None)
        if found.digest != lock.sha256:
            raise DataError(
                f"{found.source} is not the {what} data of the artifact: its SHA-256 is {found.digest}, not "
                f"{lock.sha256}; give the right one with --{what}"
            )
        return found

    def _open(self, spec: str | Path, *, labelled: bool) -> Dataset:
        return open_dataset(
            spec, inputs=self._manifest.inputs, pipeline=self._lock.pipeline, need_labels=labelled
        )

    def _recorded(self, table: Any, key: str) -> Path | None:
        """Return where the report says that something was; beside the artifact, if it is there."""
        value = table.get(key) if isinstance(table, dict) else None
        if not isinstance(value, str) or not value or "\0" in value:
            return None
        beside = self._folder / Path(value).name
        return beside if not Path(value).exists() and beside.exists() else Path(value)


def _metric(lock: Lock, metric: str | None, labelled: Dataset | None) -> str | None:
    if lock.metric is not None and metric not in (None, lock.metric):
        raise DataError(f"the artifact was held to {lock.metric}, not {metric}: leave out --metric")
    if lock.metric is None and lock.evaluation is not None:
        if metric is not None:
            raise DataError(
                f"the artifact was held to its source's outputs, not to {metric}: leave out --metric"
            )
        return None
    found = lock.metric or metric
    if (labelled is None) != (found is None):
        raise DataError("--evaluation and --metric belong together: give both, or none")
    return found


def _pipeline(artifact: Artifact, lock: Lock, folder: Path) -> Pipeline | None:
    """Return the lock's pipeline, its files unpacked into a folder."""
    if lock.pipeline is None or not lock.pipeline.files:
        return lock.pipeline
    artifact.extract(folder, lock.pipeline.files)
    return replace(lock.pipeline, sources={name: folder / name for name in lock.pipeline.files})


def _target_changes(used: Target) -> tuple[str, ...]:
    try:
        today = load_target(used.name).to_dict()
    except UnknownTargetError:
        return ()  # of a file of its own, which is in the artifact
    then = used.to_dict()
    return tuple(key for key in today if today[key] != then.get(key))


def _changed_tools(lock: Lock) -> dict[str, tuple[str | None, str | None]]:
    today = toolchain()
    then: dict[str, str] = {"python": lock.python, "arch": lock.arch, **lock.packages}
    now: dict[str, str] = {"python": today["python"], "arch": today["arch"], **today["packages"]}
    return {
        name: (then.get(name), now.get(name))
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    }
