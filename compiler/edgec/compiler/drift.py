"""Whether the calibration data is like the data that candidates are judged on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.compiler.calibration import CHUNK_BYTES, CalibrationTable

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

COMPARED_SAMPLES = 256  # of each set
CLIPPED_SAMPLES = 32
_LEVEL = 1e-4  # chance of a false alarm, over all that is compared
_FEWEST_SAMPLES = 16  # of each set
_LEAST_DISTANCE = 0.3  # of two distributions: smaller ones cost nothing, however sure they are
_OTHER_SCALE = 8.0
_SAME_SHARE = 0.1
# A tensor's range is too small where more than so many values lie beyond it by a tenth of its width.
_CLIPPED_SHARE, _MARGIN = 0.02, 0.1
_CLIPPED_TENSORS = 0.1
_STATISTICS = ("mean", "standard deviation", "smallest value", "largest value")


@dataclass(frozen=True)
class _Set:
    """What is kept of a data set.

    Attributes:
        statistics: Of each numeric input, float64[samples, 4], in the order of `_STATISTICS`.
        digests: Of each sample.
    """

    statistics: Mapping[str, Floats]
    digests: Sequence[bytes]


def compare_sets(
    calibration: Iterable[Arrays], evaluation: Iterable[Arrays], specs: Sequence[TensorSpec]
) -> list[str]:
    """Say in plain sentences where the two sets of inputs are unlike; nothing where they are alike.

    Samples are compared, not values: the values of one image are no independent draws. Of each input, the
    mean, spread, smallest and largest value per sample are held against the other set's by the two-sample
    Kolmogorov-Smirnov test, and what is shown must also be large enough to matter.

    Args:
        calibration: Inputs as the model takes them, after the real pre-processing.
        evaluation: Likewise.
        specs: Of the inputs.
    """
    ours, theirs = _collect(calibration, specs), _collect(evaluation, specs)
    tests = len(_STATISTICS) * len(ours.statistics)
    found = [
        _same_samples(ours, theirs),
        *(_unlike(name, rows, theirs.statistics[name], tests) for name, rows in ours.statistics.items()),
    ]
    return [sentence for sentence in found if sentence is not None]


def clipping_sentence(
    model: onnx.ModelProto,
    table: CalibrationTable,
    inputs: Iterable[Arrays],
    weights_from: Path | None = None,
) -> str | None:
    """Return the warning that values inside the model leave their calibrated ranges; None if few do.

    Args:
        model: That the table is of.
        table: Of the calibration data.
        inputs: Of other data.
        weights_from: Directory of the model's external data, where it has any.
    """
    shares, samples = clipped_shares(model, table, inputs, weights_from)
    beyond = {name: share for name, share in shares.items() if share > _CLIPPED_SHARE}
    if len(beyond) < max(2, math.ceil(_CLIPPED_TENSORS * len(shares))):
        return None
    worst = max(beyond, key=lambda name: beyond[name])
    return (
        f"the calibration set is unlike the evaluation set: on {samples} evaluation samples, {len(beyond)} "
        f"of {len(shares)} tensors hold values far beyond their calibrated range (most: {worst!r}, "
        f"{beyond[worst]:.0%} of its values), which int8 clips; calibrate with samples like those"
    )


def clipped_shares(
    model: onnx.ModelProto,
    table: CalibrationTable,
    inputs: Iterable[Arrays],
    weights_from: Path | None = None,
) -> tuple[dict[str, float], int]:
    """Return the share of values beyond the calibrated range, by tensor, and how many samples were seen."""
    from edgec.compiler.engines.onnxruntime import Recorder  # needs an engine, the rest does not

    recorder = Recorder(model, weights_from, CHUNK_BYTES)
    seen, beyond, samples = dict[str, int](), dict[str, int](), 0
    for sample in inputs:
        samples += 1
        for name, array in recorder.record(sample):
            known = table.tensors.get(name)
            if known is None or not array.size:
                continue
            margin = _MARGIN * (known.maximum - known.minimum)
            outside = (array < known.minimum - margin) | (array > known.maximum + margin)
            seen[name] = seen.get(name, 0) + array.size
            beyond[name] = beyond.get(name, 0) + int(outside.sum())
    return {name: beyond[name] / n for name, n in seen.items()}, samples


def _collect(inputs: Iterable[Arrays], specs: Sequence[TensorSpec]) -> _Set:
    names = [s.name for s in specs if np.dtype(s.dtype).kind in "fiu"]
    rows: dict[str, list[list[float]]] = {name: [] for name in names}
    digests = []
    for sample in inputs:
        digest = hashlib.sha256()
        for name, array in sorted(sample.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        digests.append(digest.digest())
        for name in names:
            values = np.asarray(sample[name], np.float64)
            rows[name].append([values.mean(), values.std(), values.min(), values.max()])
    return _Set({n: np.asarray(r, np.float64).reshape(-1, 4) for n, r in rows.items()}, digests)


def _same_samples(ours: _Set, theirs: _Set) -> str | None:
    known = set(ours.digests)
    same = sum(digest in known for digest in theirs.digests)
    if not theirs.digests or same < _SAME_SHARE * len(theirs.digests):
        return None
    return (
        f"{same} of {len(theirs.digests)} evaluation samples that were compared are calibration samples too: "
        "candidates are judged on what their ranges were taken from, which flatters them; calibrate with "
        "others"
    )


def _unlike(name: str, ours: Floats, theirs: Floats, tests: int) -> str | None:
    if min(len(ours), len(theirs)) == 0:
        return None
    wide, other = (float(np.abs(s[:, 2:]).max()) for s in (ours, theirs))
    if wide and other and not 1 / _OTHER_SCALE < wide / other < _OTHER_SCALE:
        return (
            f"the calibration set is on another scale than the evaluation set: input {name!r} spans "
            f"{_span(ours)} there, {_span(theirs)} here; prepare both in the same way"
        )
    if min(len(ours), len(theirs)) < _FEWEST_SAMPLES:
        return None
    distances = [_distance(a, b) for a, b in zip(ours.T, theirs.T, strict=True)]
    worst = int(np.argmax(distances))
    level = ks_level(distances[worst], len(ours), len(theirs))
    if distances[worst] < _LEAST_DISTANCE or level * tests > _LEVEL:
        return None
    what = _STATISTICS[worst]
    middles = [float(np.median(s[:, worst])) for s in (ours, theirs)]
    return (
        f"the calibration set is unlike the evaluation set: the {what} of input {name!r} is "
        f"{middles[0]:.3g} in the median of {len(ours)} calibration samples and {middles[1]:.3g} of "
        f"{len(theirs)} evaluation samples, and {distances[worst]:.0%} of the "
        "samples would have to change to make them alike; calibrate with samples like those that it will see"
    )


def _span(statistics: Floats) -> str:
    return f"{statistics[:, 2].min():.3g}..{statistics[:, 3].max():.3g}"


def _distance(a: Floats, b: Floats) -> float:
    """Return the largest difference of two empirical distribution functions."""
    points = np.concatenate([a, b])
    below = (np.searchsorted(np.sort(s), points, side="right") / len(s) for s in (a, b))
    return float(np.abs(np.subtract(*below)).max())


def ks_level(distance: float, n: int, m: int) -> float:
    """Return how probable a distance at least as large is between two samples of one distribution.

    The asymptotic two-sample Kolmogorov-Smirnov test with the correction of M. A. Stephens, "Use of the
    Kolmogorov-Smirnov, Cramer-von Mises and related statistics", JRSS B 32 (1970).
    """
    root = math.sqrt(n * m / (n + m))
    x = (root + 0.12 + 0.11 / root) * distance
    if x < 0.3:
        return 1.0
    return min(1.0, 2 * sum((-1.0) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)))
