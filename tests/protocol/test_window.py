"""What records hold: windows whose sketches come back, samples, and notes made of anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.artifact import GoldenVector, encode_golden
from edgec.errors import ProtocolError
from edgec.protocol import ModelWindow
from edgec.protocol._window import MAX_NOTE, ModelSample, Note, make_note
from edgec.sketch import Histogram, QuantileSketch

pytest.importorskip("cbor2", reason="the extra `agent` is not installed")


def window(**fields: Any) -> ModelWindow:
    """Return a window with some fields set."""
    return replace(ModelWindow(model="kws", digest=bytes(8), since=1.0, seconds=60.0, calls=3), **fields)


def test_the_sketches_of_a_window_come_back() -> None:
    latency, histogram = QuantileSketch(), Histogram([0.0, 1.0])
    latency.add_many(np.array([1.0, 2.0, 30.0]))
    histogram.add_many([0.5, 2.0])
    sent = window(
        latency_ms=latency.to_bytes(), confidence=histogram.to_bytes(), outputs={"y": histogram.to_bytes()},
        inputs={"x/mean": latency.to_bytes()},
    )  # fmt: skip
    got = ModelWindow.from_bytes(sent.to_bytes())
    assert got.latency_sketch() == got.input_sketches()["x/mean"] == latency
    confidence = got.confidence_histogram()
    assert confidence is not None
    assert confidence.counts.tolist() == got.output_histograms()["y"].counts.tolist() == [0, 1, 1]
    empty = window()
    assert (empty.latency_sketch().count, empty.confidence_histogram()) == (0, None)


@pytest.mark.parametrize("field", ["latency_ms", "confidence", "outputs", "inputs"])
def test_damaged_sketches_are_refused(field: str) -> None:
    bad = window(**{field: {"y": b"\x01\x02"} if field.endswith("puts") else b"\x01\x02"})
    got = ModelWindow.from_bytes(bad.to_bytes())
    with pytest.raises(ProtocolError, match="damaged"):
        _ = got.latency_sketch(), got.confidence_histogram(), got.output_histograms(), got.input_sketches()


def test_a_sample_comes_back_and_damaged_ones_are_refused() -> None:
    call = GoldenVector(inputs={"x": np.arange(4, dtype=np.float32)}, outputs={})
    sample = ModelSample(model="kws", digest=bytes(8), tensors=encode_golden([call]))
    got = ModelSample.from_bytes(sample.to_bytes()).call()
    np.testing.assert_array_equal(got.inputs["x"], call.inputs["x"])
    for tensors in (b"", b"\xff" * 100, encode_golden([]), encode_golden([call, call])):
        with pytest.raises(ProtocolError):
            ModelSample(model="kws", digest=bytes(8), tensors=tensors).call()


ROW_30 = [
    b"\xff\xfe\x00broken", b"\x00" * 100, "half a pair \ud800 of two", "bell \x07 and escape \x1b[31m",
    "x" * 10_000_000, b"\xc3" * 100_000, "\U0001f600" * 5000, "", "tab\tand\nnewline",
]  # fmt: skip


@pytest.mark.parametrize("raw", ROW_30, ids=range(len(ROW_30)))
def test_row_30_bad_data_in_notes_is_trimmed_and_still_accepted(raw: str | bytes) -> None:
    note = make_note("agent", raw)
    got = Note.from_bytes(note.to_bytes())
    assert got == note
    assert len(got.text) <= MAX_NOTE
    assert all(c >= " " or c in "\t\n" for c in got.text)


def test_row_30_what_was_cut_is_said() -> None:
    assert make_note("agent", "x" * (MAX_NOTE + 7)) == Note(source="agent", text="x" * MAX_NOTE, cut=7)
    assert make_note("agent", b"y" * 10**6).cut == 10**6 - MAX_NOTE
    assert make_note("agent", "tab\tand\nnewline").text == "tab\tand\nnewline"


@given(st.binary(max_size=200) | st.text(max_size=200) | st.text(st.characters(categories=["Cs", "Cc"])))
def test_row_30_notes_are_made_of_anything(raw: str | bytes) -> None:
    note = make_note("agent", raw)
    assert Note.from_bytes(note.to_bytes()) == note
