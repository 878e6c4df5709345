"""Sweeps over settings, and plots of what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgec.errors import MissingExtraError, OutputError
from edgec.runtime.benchmark import benchmark
from edgec.runtime.plots import write_plots
from edgec.runtime.sweep import BATCHES, SweepResult, sweep
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("sweep") / "tiny.edgec", batch="n")


@pytest.fixture(scope="module")
def swept(path: Path) -> SweepResult:
    return sweep([path], ["threads", "batch"], duration_s=0.2)


def test_every_setting_is_measured_once(swept: SweepResult) -> None:
    settings = [(point.threads, point.batch) for point in swept.points]
    assert settings == [(t, b) for t in dict.fromkeys(t for t, _ in settings) for b in BATCHES]
    assert settings[0] == (1, 1)
    assert max(t or 0 for t, _ in settings) == swept.machine.cores
    shape = json.loads(json.dumps(swept.to_dict(), allow_nan=False))
    assert shape["points"][1]["samples_per_s"] == pytest.approx(swept.points[1].samples_per_s)
    # A call on sixteen rows of four numbers takes about as long as one on one row.
    assert swept.busiest.batch > 1


def test_a_fixed_batch_is_noted(tmp_path: Path) -> None:
    fixed = tiny_artifact(tmp_path / "fixed.edgec", batch=2)
    result = sweep([fixed], ["batch"], duration_s=0.05)
    assert [point.batch for point in result.points] == [2]
    assert "batches of 2 only" in result.notes[0]


def test_engines_are_those_of_the_artifacts(path: Path, tmp_path: Path) -> None:
    other = tiny_artifact(tmp_path / "other.edgec")
    result = sweep([path, other], ["engine"], duration_s=0.05, threads=1)
    assert [(point.artifact, point.threads) for point in result.points] == [(str(path), 1), (str(other), 1)]


@pytest.mark.parametrize("axes", [[], ["speed"], ["threads", "threads"], ["engine"]])
def test_wrong_axes_are_refused(path: Path, axes: list[str]) -> None:
    with pytest.raises(ValueError, match=r"axes|axis engine"):
        sweep([path], axes)


@pytest.mark.parametrize("name", ["plot.svg", "plot.html"])
def test_plots_are_one_file_that_refers_to_nothing(
    path: Path, swept: SweepResult, name: str, tmp_path: Path
) -> None:
    result = benchmark(path, duration_s=0.05, cold_starts=1)
    for what, words in ((result, ("p50", "p99", "over time", "tiny on onnxruntime")), (swept, ("t1 b16",))):
        write_plots(tmp_path / name, what)
        text = (tmp_path / name).read_text()
        assert [word for word in words if word not in text] == []
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
        assert "nan" not in text


@pytest.mark.slow
def test_a_png_is_one(swept: SweepResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write_plots(tmp_path / "plot.png", swept)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_png_without_matplotlib_says_what_to_install(
    swept: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"edgec\[plots\]"):
        write_plots(tmp_path / "plot.png", swept)
    assert list(tmp_path.iterdir()) == []


def test_another_form_is_refused(swept: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.html, \.svg, \.png"):
        write_plots(tmp_path / "plot.gif", swept)
