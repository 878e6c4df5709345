"""Opening a data set from what a user names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgec.artifact import Pipeline, TensorSpec
from edgec.errors import DataError
from edgec.evaluation._dataset import Dataset
from edgec.evaluation._function import FunctionDataset
from edgec.evaluation._images import ImageDataset
from edgec.evaluation._npz import NpzDataset
from edgec.evaluation._text import TextDataset

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FORMS = "a .npz file, a folder of images, a .jsonl or .csv file of text, or package.module:function"


def open_dataset(
    spec: str | Path,
    *,
    inputs: Sequence[TensorSpec] | None = None,
    pipeline: Pipeline | None = None,
    labels: str | Path | None = None,
    need_labels: bool = False,
) -> Dataset:
    """Open a data set.

    A `str` of the form ``package.module:function`` is imported and called: pass only what a user
    typed, never what was read from an artifact. A `Path` never is.

    Args:
        spec: The path of a .npz file, a folder of images, a .jsonl or .csv file of text; or a
            function's name.
        inputs: What the model takes. Arrays must have the names of its inputs; where no pipeline
            prepares samples, also their shape and dtype, and each sample is made a batch of 1. None to
            leave samples as they are.
        pipeline: The model's own: where it prepares samples, they are left as they are; its labels
            turn class names into numbers.
        labels: Of a folder of images, where they are not found in it: a CSV, a COCO JSON or a folder
            of YOLO text files.
        need_labels: Whether each sample must have a label.

    Raises:
        DataError: There is no such data, it is malformed or empty, or it does not fit `inputs`, or
            has no labels though they are needed. Values are checked in iterating.
    """
    classes = pipeline.labels if pipeline is not None else ()
    raw = pipeline is not None and bool(pipeline.preprocess)
    bare = None if raw else inputs
    path = Path(spec)
    if labels is not None and not path.is_dir():
        raise DataError(f"labels in a file of their own are for a folder of images, {spec} is none")
    if path.is_dir():
        _check_prepared(path, "images", bare)
        given = Path(labels) if labels is not None else None
        return ImageDataset(path, given, need_labels=need_labels, classes=classes)
    if path.is_file():
        if path.suffix.lower() == ".npz":
            return NpzDataset(path, inputs, raw=raw, need_labels=need_labels, classes=classes)
        if path.suffix.lower() in (".jsonl", ".csv"):
            _check_prepared(path, "texts", bare)
            return TextDataset(path, need_labels=need_labels, classes=classes)
        raise DataError(f"{path} is no data set that edgec reads: expected {_FORMS}")
    if isinstance(spec, str) and _FUNCTION.fullmatch(spec):
        return FunctionDataset(spec, bare, need_labels=need_labels)
    raise DataError(f"there is no data at {spec}: expected {_FORMS}")


def _check_prepared(path: Path, kind: str, bare: Sequence[TensorSpec] | None) -> None:
    """Refuse what only a pipeline makes tensors of, where the model takes tensors as they are."""
    if bare is None:
        return
    wanted = ", ".join(map(str, bare))
    raise DataError(
        f"{path} would be {kind}, and nothing says how they become what the model takes ({wanted}): say so "
        "in a pipeline (edgec compile --pipeline pipeline.toml), or give the tensors themselves as a .npz"
    )
