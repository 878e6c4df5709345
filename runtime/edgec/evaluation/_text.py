"""Data sets of text: JSON lines or CSV, one text or a pair of texts each, with a label or a score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edgec.errors import DataError
from edgec.evaluation._dataset import Dataset, Sample, file_digest, named_label
from edgec.evaluation._reading import read_rows

_PAIRS = (("text_a", "text_b"), ("sentence1", "sentence2"))
_LABELS = ("label", "score")
_KNOWN = {"text", *_LABELS, *(name for pair in _PAIRS for name in pair)}
_EXPECTED = "expected text, or text_a and text_b, and label or score"

Row = tuple[int, Mapping[str, Any]]


class TextDataset(Dataset):
    """Texts of a file; each sample is a text, or a tuple of two."""

    def __init__(self, path: Path, *, need_labels: bool = False, classes: Sequence[str] = ()) -> None:
        """Check every line, keeping none.

        Args:
            path: A file that ends in .jsonl or .csv.
            need_labels: Whether each line must have a label or score.
            classes: Names of the model's classes; labels that are names become their indices.

        Raises:
            DataError: The file cannot be read, or a line is not as expected.
        """
        self._path, self._classes = path, classes
        self._rows: Callable[[Path], Iterator[Row]] = (
            _json_rows if path.suffix.lower() == ".jsonl" else _csv_rows
        )
        labelled = [sample.label is not None for sample in self]
        if not labelled:
            raise DataError(f"{path} is empty: give at least one text")
        self._n = len(labelled)
        self.labelled = all(labelled)
        if need_labels and not self.labelled:
            raise DataError(
                f"{path}: sample {labelled.index(False)} has no label: add a label (a class) "
                "or a score (a number)"
            )

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[Sample]:
        for line, row in self._rows(self._path):
            yield self._sample(row, f"{self._path}, line {line}", str(line))

    @property
    def source(self) -> str:
        return str(self._path)

    @cached_property
    def digest(self) -> str:
        return file_digest(self._path)

    def _sample(self, row: Mapping[str, Any], where: str, name: str) -> Sample:
        columns = next((c for c in (("text",), *_PAIRS) if set(c) <= set(row)), None)
        if columns is None:
            raise DataError(f"{where}: {_EXPECTED}, got {', '.join(map(str, row)) or 'nothing'}")
        texts = tuple(row[c] for c in columns)
        if not all(isinstance(text, str) and text for text in texts):
            raise DataError(f"{where}: {' and '.join(columns)} must be text that is not empty")
        given = [key for key in _LABELS if row.get(key) is not None]
        if len(given) > 1:
            raise DataError(f"{where}: give a label (a class) or a score (a number), not both")
        label = self._label(given[0], row[given[0]], where) if given else None
        return Sample(texts if len(columns) > 1 else row[columns[0]], label, name)

    def _label(self, key: str, value: Any, where: str) -> Any:
        if isinstance(value, str):
            value = named_label(value, self._classes if key == "label" else (), where)
        if not isinstance(value, int | float) and (key == "score" or not isinstance(value, str)):
            raise DataError(f"{where}: {key} is {str(value)[:60]!r}, expected a number")
        return value


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _json_row(text, f"{path}, line {line}")
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is no text in UTF-8: {e}") from e


def _json_row(text: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{where} is no JSON: {e}") from e
    if not isinstance(row, dict):
        raise DataError(f'{where}: expected a JSON object such as {{"text": "...", "label": 1}}')
    return row


def _csv_rows(path: Path) -> Iterator[Row]:
    """By the names in the header; without one text, or text and label, or text, text and score."""
    names: Sequence[str] | None = None
    for line, cells in read_rows(path):
        if names is None:
            if _KNOWN & set(cells):
                names = cells
                continue
            names = _names_for(cells, path)
        yield line, dict(zip(names, cells, strict=True))


def _names_for(cells: Sequence[str], path: Path) -> Sequence[str]:
    names = {1: ("text",), 2: ("text", "label"), 3: ("text_a", "text_b", "score")}.get(len(cells))
    if names is None:
        raise DataError(f"{path}: {_EXPECTED} in the header, got {', '.join(c[:30] for c in cells[:6])}")
    return names
