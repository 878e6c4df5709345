"""Pre- and post-processing as data: what a model's author declares, and the manifest carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgec.artifact._toml import parse_toml, read_bounded
from edgec.artifact.steps import POSTPROCESS, PREPROCESS, Step, Tokenize
from edgec.artifact.steps._step import MAX_TEXT, is_plain_text
from edgec.errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path

MAX_STEPS = 64
"""Most steps of a stage."""

MAX_LABELS = 65536
"""Most labels of a pipeline."""

_MAX_TOML_BYTES = 16 << 20
_MAX_FILE_BYTES = 64 << 20
_STAGES: Mapping[str, Mapping[str, type[Step]]] = {"preprocess": PREPROCESS, "postprocess": POSTPROCESS}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Declared pre- and post-processing of a model.

    Attributes:
        preprocess: Steps from a sample to the inputs of the model, in order.
        postprocess: Steps from the outputs of the model to a prediction, in order.
        labels: Names of the classes, by index; empty where there are none.
        sources: Where the files of `files` are on the machine that compiles; no part of the manifest.

    Raises:
        PipelineError: A step belongs to the other stage, or there are too many steps or labels.
    """

    preprocess: tuple[Step, ...] = ()
    postprocess: tuple[Step, ...] = ()
    labels: tuple[str, ...] = ()
    sources: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for stage, known in _STAGES.items():
            steps: tuple[Step, ...] = getattr(self, stage)
            if len(steps) > MAX_STEPS:
                raise PipelineError(f"{stage}: expected at most {MAX_STEPS} steps, got {len(steps)}")
            for number, step in enumerate(steps, 1):
                if known.get(step.step) is not type(step):
                    raise PipelineError(f"{stage} step {number}: {step.step} does not belong here")
        _check_labels(self.labels)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that the steps need, each once; in an artifact they are members."""
        return tuple(dict.fromkeys(step.file for step in self.preprocess if isinstance(step, Tokenize)))

    def read_source(self, name: str) -> bytes:
        """Return the content of a file of `files`, on the machine that compiles.

        Raises:
            PipelineError: It is not known where the file is, or it cannot be read.
        """
        if name not in self.sources:
            raise PipelineError(
                f"the pipeline's file {name!r} is not at hand: read the pipeline from its TOML file"
            )
        return read_bounded(self.sources[name], _MAX_FILE_BYTES)

    def to_dict(self) -> dict[str, Any]:
        """Return the pipeline as plain data for the manifest; `from_dict` gives it back."""
        return {
            "preprocess": [step.to_dict() for step in self.preprocess],
            "postprocess": [step.to_dict() for step in self.postprocess],
            "labels": list(self.labels),
        }

    @staticmethod
    def from_dict(data: Any) -> Pipeline:
        """Check plain data, from a hostile manifest for example, and make it a pipeline.

        Raises:
            PipelineError: Something is wrong; the message names the step and the key.
        """
        if not isinstance(data, Mapping):
            raise PipelineError(
                f"expected a table of preprocess, postprocess and labels, got {type(data).__name__}"
            )
        for unknown in data.keys() - {"preprocess", "postprocess", "labels"}:
            raise PipelineError(
                f"unknown key {str(unknown)[:60]!r}: expected preprocess, postprocess and labels"
            )
        labels = data.get("labels", [])
        if not isinstance(labels, list):
            raise PipelineError(f"labels: expected a list of texts, got {type(labels).__name__}")
        _check_labels(labels)
        return Pipeline(
            preprocess=_steps(data, "preprocess"),
            postprocess=_steps(data, "postprocess"),
            labels=tuple(labels),
        )


def read_pipeline(path: str | Path) -> Pipeline:
    """Read a pipeline from a TOML file.

    `labels` may be a list, or the path of a text file with one label per line. Paths in the file are relative
    to the file's folder.

    Raises:
        PipelineError: The file, or one that it names, cannot be read, or something in it is wrong.
    """

    from pathlib import Path

    path = Path(path)
    try:
        return _from_toml(parse_toml(path, _MAX_TOML_BYTES), path.parent)
    except PipelineError as e:
        raise PipelineError(f"{path}: {e}") from e


def _from_toml(data: dict[str, Any], folder: Path) -> Pipeline:
    if isinstance(data.get("labels"), str):
        data["labels"] = _read_labels(folder / data["labels"])
    sources: dict[str, Path] = {}
    steps = data.get("preprocess")
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and isinstance(step.get("file"), str):
            source = folder / step["file"]
            step["file"] = source.name
            if sources.setdefault(source.name, source) != source:
                raise PipelineError(
                    f"two files are called {source.name!r}: rename one, they travel side by side"
                )
    pipeline = Pipeline.from_dict(data)
    for name in pipeline.files:
        if not sources[name].is_file():
            raise PipelineError(f"there is no file {sources[name]}")
    return Pipeline(
        preprocess=pipeline.preprocess,
        postprocess=pipeline.postprocess,
        labels=pipeline.labels,
        sources=sources,
    )


def _steps(data: Mapping[str, Any], stage: str) -> tuple[Step, ...]:
    entries = data.get(stage, [])
    if not isinstance(entries, list):
        raise PipelineError(f"{stage}: expected a list of steps ([[{stage}]]), got {type(entries).__name__}")
    if len(entries) > MAX_STEPS:
        raise PipelineError(f"{stage}: expected at most {MAX_STEPS} steps, got {len(entries)}")
    return tuple(_step(entry, stage, number) for number, entry in enumerate(entries, 1))


def _step(entry: Any, stage: str, number: int) -> Step:
    known = _STAGES[stage]
    name = entry.get("step") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or name not in known:
        got = repr(str(name)[:60]) if name is not None else "none"
        raise PipelineError(f"{stage} step {number}: expected step = one of {', '.join(known)}; got {got}")
    values = {str(key): value for key, value in entry.items() if key != "step"}
    try:
        return known[name](**values)
    except PipelineError as e:
        raise PipelineError(f"{stage} step {number}: {e}") from e


def _check_labels(labels: tuple[str, ...] | list[Any]) -> None:
    if len(labels) > MAX_LABELS:
        raise PipelineError(f"labels: expected at most {MAX_LABELS}, got {len(labels)}")
    for index, label in enumerate(labels):
        if not is_plain_text(label):
            raise PipelineError(
                f"labels: expected texts of 1 to {MAX_TEXT} characters without control characters, "
                f"got {str(label)[:60]!r} as number {index}"
            )


def _read_labels(path: Path) -> list[str]:
    try:
        text = read_bounded(path, _MAX_TOML_BYTES).decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as e:
        raise PipelineError(f"labels: {path} is not UTF-8 text: {e.reason} at byte {e.start}") from e
    # An empty line in between is refused later: leaving it out would rename every class after it.
    return [line.strip() for line in text.split("\n")] if text else []
