"""What records of telemetry hold: how a model did over some time, samples, and notes; each below 96 KiB.

Sketches are the bytes of `edgec.sketch`, so that windows of many devices add up. Device, boot and sequence
number, by which a server knows a record that it has, are those of the message that brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from edgec.artifact import GoldenVector
from edgec.artifact._golden import decode_golden
from edgec.errors import ManifestError, ProtocolError
from edgec.protocol._kinds import COUNT, ID, TIME, WORD, MapOf, Maybe, Octets, Text, Whole
from edgec.protocol._message import CompactFields, CompactMessage, Record, wire
from edgec.sketch import Histogram, QuantileSketch

WINDOW_KIND, SAMPLE_KIND, NOTE_KIND = "window", "sample", "note"
MAX_NOTE = 4096
# However small a window has to be, it names so many classes, the most frequent ones, before it has others.
LEAST_CLASSES = 5
_SKETCH = Octets(16384)
_SKETCHES = MapOf(Text(128), _SKETCH, 64)
_COUNTS = MapOf(Text(64), COUNT, 64)
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class SystemState(CompactFields):
    """The machine at the end of a window; what it does not tell is null."""

    cpu_decidegrees: int | None = wire(Maybe(Whole(-2000, 5000)), key=1, default=None, doc="Tenths of 1 °C.")
    memory_free_mib: int | None = wire(Maybe(COUNT), key=2, default=None)
    disk_free_mib: int | None = wire(Maybe(COUNT), key=3, default=None)
    throttled: int | None = wire(
        Maybe(COUNT), key=4, default=None, doc="Times that cores were throttled since the start."
    )
    load_percent: int | None = wire(
        Maybe(COUNT), key=5, default=None, doc="Of the last minute; 100 is one core."
    )


@dataclass(frozen=True, kw_only=True)
class ModelWindow(CompactMessage):
    """How one model did over some time: the payload of a record of kind ``window``.

    Sketches are the bytes of `edgec.sketch`, so that windows of many devices add up.
    """

    model: str = wire(ID, key=1)
    digest: bytes = wire(Octets(32), key=2, doc="The first bytes of the artifact's SHA-256, 8 or more.")
    since: float = wire(TIME, key=3)
    seconds: float = wire(TIME, key=4)
    calls: int = wire(COUNT, key=5)
    errors: int = wire(COUNT, key=6, default=0)
    non_finite: int = wire(COUNT, key=7, default=0, doc="Calls, of the sampled ones, with NaN or infinity.")
    latency_ms: bytes = wire(_SKETCH, key=8, default=b"", doc="A QuantileSketch.")
    confidence: bytes = wire(_SKETCH, key=9, default=b"", doc="A Histogram, of the sampled calls.")
    classes: Mapping[int, int] = wire(
        MapOf(Whole(-1), COUNT, 4096), key=10, default={}, doc="The most frequent classes; -1 is all others."
    )
    outputs: Mapping[str, bytes] = wire(
        _SKETCHES, key=11, default={}, doc="Histograms by output, at the artifact's quantiles."
    )
    inputs: Mapping[str, bytes] = wire(
        _SKETCHES, key=12, default={}, doc="QuantileSketches by input and statistic: image/mean."
    )
    model_version: str = wire(Text(64), key=13, default="")
    sampled: int = wire(COUNT, key=14, default=0, doc="Calls that were looked into.")
    error_types: Mapping[str, int] = wire(_COUNTS, key=15, default={})
    drops: Mapping[str, int] = wire(
        _COUNTS, key=16, default={}, doc="Calls given up before they ran, by reason."
    )
    fallbacks: Mapping[str, int] = wire(_COUNTS, key=17, default={}, doc="Calls the fallback ran, by reason.")
    joined_bins: int = wire(
        Whole(1, 64), key=18, default=1, doc="Latencies are within as many percent, and one."
    )
    left_out: int = wire(COUNT, key=19, default=0, doc="Histograms and sketches that there was no room for.")
    system: SystemState | None = wire(Maybe(Record(SystemState)), key=20, default=None)
    input_bins: Mapping[str, bytes] = wire(
        _SKETCHES,
        key=21,
        default={},
        doc="Histograms by input and statistic, at the artifact's quantiles: image/mean.",
    )

    def latency_sketch(self) -> QuantileSketch:
        """Return the latencies, in milliseconds.

        Raises:
            ProtocolError: They are damaged; as of the next four.
        """
        if not self.latency_ms:
            return QuantileSketch()
        return _read(QuantileSketch.from_bytes, self.latency_ms, "latency_ms")

    def confidence_histogram(self) -> Histogram | None:
        """Return the highest scores; None where the model has none."""
        return _read(Histogram.from_bytes, self.confidence, "confidence") if self.confidence else None

    def output_histograms(self) -> dict[str, Histogram]:
        """Return the values of each output."""
        return _histograms(self.outputs, "outputs")

    def input_histograms(self) -> dict[str, Histogram]:
        """Return the same between the quantiles of their reference: ``{"image/mean": ...}``."""
        return _histograms(self.input_bins, "input_bins")

    def input_sketches(self) -> dict[str, QuantileSketch]:
        """Return the statistics of each input: ``{"image/mean": ...}``."""
        return {
            n: _read(QuantileSketch.from_bytes, data, f"inputs[{n!r}]") for n, data in self.inputs.items()
        }


@dataclass(frozen=True, kw_only=True)
class ModelSample(CompactMessage):
    """One call of a model: the payload of a record of kind ``sample``, which only a policy lets leave."""

    model: str = wire(ID, key=1)
    digest: bytes = wire(Octets(32), key=2, doc="The first bytes of the artifact's SHA-256, 8 or more.")
    tensors: bytes = wire(
        Octets(96 * 1024), key=3, doc="safetensors: 0/inputs/NAME and 0/outputs/NAME, as golden vectors are."
    )

    def call(self) -> GoldenVector:
        """Return inputs and outputs of the call, as far as the policy let them leave.

        Raises:
            ProtocolError: They are damaged.
        """
        try:
            vectors = decode_golden(self.tensors)
        except ManifestError as e:
            raise ProtocolError(f"the tensors of a sample are damaged: {e}") from e
        if len(vectors) != 1:
            raise ProtocolError(f"expected one call in a sample, got {len(vectors)}")
        return vectors[0]


@dataclass(frozen=True, kw_only=True)
class Note(CompactMessage):
    """Words for people, as of a log: the payload of a record of kind ``note``."""

    source: str = wire(WORD, key=1)
    text: str = wire(Text(MAX_NOTE), key=2)
    cut: int = wire(COUNT, key=3, default=0, doc="Characters at the end that there was no room for.")


def make_note(source: str, raw: str | bytes) -> Note:
    """Return a note of whatever was logged: never refused, but cleaned and cut.

    Bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD, control characters but tab and
    newline too; what is longer than 4096 characters is cut, and how much is said.

    Args:
        source: A word: ``agent``.
        raw: Text, or bytes that may be anything.
    """
    # Of megabytes, only what can be kept is looked at: a character has at most four bytes.
    head = raw[: 4 * MAX_NOTE]
    clean = clean_text(head)
    rest = max(len(raw) - len(head), 0)
    return Note(source=source, text=clean[:MAX_NOTE], cut=max(len(clean) - MAX_NOTE, 0) + rest)


def clean_text(raw: str | bytes) -> str:
    """Return whatever was logged as text that UTF-8 holds and terminals stand.

    Bytes that are no UTF-8, halves of surrogate pairs and control characters but tab and newline become
    U+FFFD.
    """
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return "".join(c if (c >= " " and c != "\x7f") or c in "\t\n" else "\ufffd" for c in text)


def _histograms(of: Mapping[str, bytes], where: str) -> dict[str, Histogram]:
    return {n: _read(Histogram.from_bytes, data, f"{where}[{n!r}]") for n, data in of.items()}


def _read(read: Callable[[bytes], _T], data: bytes, where: str) -> _T:
    try:
        return read(data)
    except (ValueError, ArithmeticError) as e:
        raise ProtocolError(f"{where} of a window is damaged: {e}") from e
