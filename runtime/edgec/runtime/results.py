"""Predictions of many samples, as files: .npz, .json, .csv, .jsonl and .parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import atomic_write
from edgec.errors import OutputError
from edgec.errors.extras import needs_extra

SUFFIXES = (".npz", ".json", ".csv", ".jsonl", ".parquet")
# A table wider than this is no table; most programs for them stop at 16384 columns.
_MOST_COLUMNS = 10_000
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Result:
    """What came out for one sample.

    Attributes:
        name: Of the sample: ``cat/0001.jpg``, ``17``.
        values: The prediction, or the outputs, by name.
    """

    name: str
    values: Mapping[str, Any]


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results to a file, in the form that its suffix names; it is there whole or not at all.

    * ``.npz``: per key one array whose first axis is that of the samples; where the arrays of a key
      differ in shape, one array per sample instead, ``key/0``, ``key/1`` ...; the names of the samples
      are the array ``names``.
    * ``.json``: ``[{"name": "17", "scores": [...]}, ...]``; NaN and infinities are null.
    * ``.jsonl``: the same objects, one per line.
    * ``.parquet``: a row per sample, with a column per key; arrays are lists. Needs the extra ``parquet``.
    * ``.csv``: a row per class or box where a prediction has classes, else a row per sample.

    Raises:
        MissingExtraError: It is ``.parquet``, and pyarrow is not installed.
        OutputError: It cannot be written, has no such form, or holds too much for a table.
    """
    forms = {".npz": _npz, ".json": _json, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    write = forms.get(path.suffix.lower())
    if write is None:
        raise OutputError(f"cannot write {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    data = write(results)
    with atomic_write(path) as file:
        file.write(data)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: arrays become lists, NaN and infinities None."""
    if isinstance(value, np.ndarray | np.generic):
        # float32 as the shortest text that is read back the same: 0.1, not 0.10000000149011612.
        if value.dtype in (np.dtype("float32"), np.dtype("float16")):
            value = value.astype("U32").astype("float64")
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _json(results: Sequence[Result]) -> bytes:
    rows = [{"name": result.name, **plain(result.values)} for result in results]
    return (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode()


def _jsonl(results: Sequence[Result]) -> bytes:
    rows = ({"name": result.name, **plain(result.values)} for result in results)
    return b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)


def check_parquet() -> None:
    """Find out, before there is anything to write, whether Parquet can be.

    Raises:
        MissingExtraError: It cannot: pyarrow is not installed.
    """
    _pyarrow()


def _pyarrow() -> Any:
    with needs_extra("results as .parquet", "parquet"):
        import pyarrow.parquet
    return pyarrow


def _parquet(results: Sequence[Result]) -> bytes:
    pyarrow = _pyarrow()
    rows = [{"name": result.name, **plain(result.values)} for result in results]
    # Not those of the first row only, which is what from_pylist would take.
    keys = dict.fromkeys(["name", *(key for row in rows for key in row)])
    data = io.BytesIO()
    try:
        table = pyarrow.table({key: [row.get(key) for row in rows] for key in keys})
        pyarrow.parquet.write_table(table, data)
    except pyarrow.ArrowException as e:
        raise OutputError(f"these results are no table: {e}; write .jsonl") from e
    return data.getvalue()


def _npz(results: Sequence[Result]) -> bytes:
    arrays: dict[str, NDArray[Any]] = {"names": np.array([result.name for result in results], np.str_)}
    keys = dict.fromkeys(key for result in results for key in result.values)
    for key in keys:
        values = [np.asarray(result.values[key]) if key in result.values else None for result in results]
        known = [value for value in values if value is not None]
        if len(known) == len(values) and len({(value.shape, value.dtype.kind) for value in known}) == 1:
            arrays[key] = np.stack(known)
        else:
            arrays.update({f"{key}/{i}": value for i, value in enumerate(values) if value is not None})
    data = io.BytesIO()
    # Not numpy.savez: outputs may be called as its own arguments are.
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return data.getvalue()


def _csv(results: Sequence[Result]) -> bytes:
    rows = [row for result in results for row in _rows(result)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if len(columns) > _MOST_COLUMNS:
        raise OutputError(
            f"a table of {len(columns)} columns is too wide for .csv (at most {_MOST_COLUMNS}): "
            "write .npz or .json"
        )
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows(result: Result) -> Iterator[dict[str, Any]]:
    values = result.values
    if "classes" not in values:
        row: dict[str, Any] = {"name": result.name}
        for key, value in values.items():
            row.update(_cells(key, value))
        yield row
        return
    for rank in range(len(values["classes"])):
        row = {"name": result.name, "rank": rank}
        for key, column in (("classes", "class"), ("labels", "label"), ("scores", "score")):
            if key in values and len(values[key]) > rank:
                row[column] = _cell(values[key][rank])
        if "boxes" in values:
            row.update(zip(_CORNERS, map(_cell, values["boxes"][rank]), strict=True))
        yield row


def _cells(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and content of each column that a value takes: one, or one per element."""
    array = np.asarray(value)
    if array.size == 1:
        yield key, _cell(array.reshape(-1)[0])
        return
    for i, item in enumerate(array.reshape(-1)):
        yield f"{key}.{i}", _cell(item)


def _cell(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) and value.dtype.kind != "f" else str(value)
