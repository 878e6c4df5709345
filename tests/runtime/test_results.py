"""Results as files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import MissingExtraError, OutputError
from edgec.runtime.results import Result, plain, write_results

CLASSES = [
    Result(
        f"{i}.png",
        {
            "classes": np.array([2, 0]),
            "scores": np.array([0.9, 0.1], np.float32),
            "labels": ["cat, big", "ant"],
        },
    )
    for i in range(2)
]
BOXES = [
    Result(
        str(n),
        {
            "boxes": np.arange(n * 4, dtype=np.float32).reshape(n, 4),
            "scores": np.linspace(0.5, 1, n, dtype=np.float32),
            "classes": np.arange(n),
            "labels": ["a"] * n,
        },
    )
    for n in (2, 0, 1)
]
TENSORS = [Result("0", {"file": np.array([[1.5, np.nan]], np.float32), "count": np.array([3])})]
SCALARS = [Result("0", {"anomaly_score": 0.25}), Result("1", {"anomaly_score": 4.0})]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_npz_stacks_what_is_alike(tmp_path: Path) -> None:
    write_results(tmp_path / "out.npz", CLASSES)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["names"].tolist() == ["0.png", "1.png"]
        assert arrays["classes"].tolist() == [[2, 0], [2, 0]]
        assert arrays["scores"].dtype == np.float32
        assert arrays["labels"].tolist() == [["cat, big", "ant"]] * 2


def test_npz_keeps_apart_what_differs_in_shape(tmp_path: Path) -> None:
    write_results(tmp_path / "out.npz", BOXES)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["boxes/0"].shape == (2, 4)
        assert arrays["boxes/1"].shape == (0, 4)
        assert arrays["boxes/2"].tolist() == [[0, 1, 2, 3]]


def test_npz_has_any_names(tmp_path: Path) -> None:
    write_results(tmp_path / "out.npz", TENSORS)
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["file"], [[[1.5, np.nan]]])


def test_json_has_a_row_per_sample(tmp_path: Path) -> None:
    write_results(tmp_path / "out.json", [*CLASSES[:1], *TENSORS])
    rows = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert rows == [
        {"name": "0.png", "classes": [2, 0], "scores": [0.9, 0.1], "labels": ["cat, big", "ant"]},
        {"name": "0", "file": [[1.5, None]], "count": [3]},
    ]


def test_csv_has_a_row_per_class(tmp_path: Path) -> None:
    write_results(tmp_path / "out.csv", CLASSES)
    rows = table(tmp_path / "out.csv")
    assert len(rows) == 4
    assert rows[0] == {"name": "0.png", "rank": "0", "class": "2", "label": "cat, big", "score": "0.9"}


def test_csv_has_a_row_per_box(tmp_path: Path) -> None:
    write_results(tmp_path / "out.csv", BOXES)
    rows = table(tmp_path / "out.csv")
    assert [(row["name"], row["rank"]) for row in rows] == [("2", "0"), ("2", "1"), ("1", "0")]
    assert [rows[1][corner] for corner in ("x1", "y1", "x2", "y2")] == ["4.0", "5.0", "6.0", "7.0"]


def test_csv_has_a_row_per_sample_otherwise(tmp_path: Path) -> None:
    write_results(tmp_path / "out.csv", SCALARS)
    assert table(tmp_path / "out.csv") == [
        {"name": "0", "anomaly_score": "0.25"},
        {"name": "1", "anomaly_score": "4.0"},
    ]
    write_results(tmp_path / "out.csv", TENSORS)
    assert table(tmp_path / "out.csv") == [{"name": "0", "file.0": "1.5", "file.1": "nan", "count": "3"}]


def test_a_table_too_wide_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"20001 columns is too wide for \.csv .*write \.npz"):
        write_results(tmp_path / "out.csv", [Result("0", {"mask": np.zeros(20_000)})])
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["out.txt", "out", "out.xlsx"])
def test_another_form_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"ends in \.npz, \.json, \.csv"):
        write_results(tmp_path / name, SCALARS)


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        (np.float32(0.1), 0.1),
        (np.array([np.inf, 1], np.float16), [None, 1.0]),
        (np.array([[1, 2]], np.uint8), [[1, 2]]),
        (np.array([True]), [True]),
        (("a", np.int64(3), float("nan")), ["a", 3, None]),
        ({"k": {1: np.zeros((0, 4))}}, {"k": {"1": []}}),
        (None, None),
    ],
)
def test_values_become_what_json_has(value: Any, as_json: Any) -> None:
    assert plain(value) == as_json


def test_jsonl_has_a_line_per_sample(tmp_path: Path) -> None:
    write_results(tmp_path / "out.jsonl", SCALARS)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"name": "0", "anomaly_score": 0.25}, {"name": "1", "anomaly_score": 4.0}]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"edgec\[parquet\]"):
        write_results(tmp_path / "out.parquet", SCALARS)


def test_parquet_has_a_column_per_key(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra parquet")
    write_results(tmp_path / "out.parquet", BOXES)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["name", "boxes", "scores", "classes", "labels"]
    assert [len(boxes) for boxes in table.column("boxes").to_pylist()] == [2, 0, 1]
