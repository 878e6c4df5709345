"""Text files of a data set, with foreign errors translated."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgec.errors import DataError


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells by name of each row of a CSV file with a header.

    Raises:
        DataError: As `read_rows`.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    for line, row in rows:
        yield line, dict(zip(header, row, strict=True))


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and cells of each row of a CSV file that is not empty.

    Raises:
        DataError: It cannot be read, or a row has another number of cells than the first.
    """
    width = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for row in reader:
                if not row:
                    continue
                width = len(row) if width is None else width
                if len(row) != width:
                    raise DataError(
                        f"{path}, line {reader.line_num}: expected {width} cells as in the first row, "
                        f"got {len(row)}"
                    )
                yield reader.line_num, row
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is no CSV file in UTF-8: {e}") from e


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{path} is no JSON: {e}") from e
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected COCO JSON with images, annotations and categories")
    return content


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is no text in UTF-8: {e}") from e
