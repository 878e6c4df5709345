"""Calibration: one pass over representative samples, from which every quantization range follows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from edgec.artifact import TensorSpec
from edgec.compiler.model import real_inputs
from edgec.compiler.ranges import StatisticsCollector, TensorStatistics
from edgec.errors import CalibrationError

Sample = Mapping[str, NDArray[Any]]

CHUNK_BYTES = 256 << 20  # inner tensors held at once; half of the 512 MB promised over the model's size
_BLOCK_BYTES = 1 << 20  # of weights read at a time
_FEW_SAMPLES = 16
_FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class CalibrationTable:
    """Neutral statistics of every float tensor of one model over one set of samples.

    Attributes:
        tensors: By name of the tensor, in the order in which the model computes them.
        inputs: Names of the graph inputs among them.
        samples: How many samples were seen.
        data_sha256: Digest of the samples: names, dtypes, shapes and values, in their order.
        model_sha256: Digest of the model that they went through, its weights included: see `model_digest`.
        warnings: What looks wrong with the samples, in plain sentences.
    """

    tensors: Mapping[str, TensorStatistics]
    inputs: tuple[str, ...]
    samples: int
    data_sha256: str
    model_sha256: str
    warnings: tuple[str, ...] = ()

    def range(self, tensor: str, method: str = "minmax", *, symmetric: bool = False) -> tuple[float, float]:
        """Return the range to quantize a tensor over; see `TensorStatistics.range`.

        Raises:
            CalibrationError: The table has no such tensor.
            ValueError: No such method.
        """
        if tensor not in self.tensors:
            raise CalibrationError(
                f"the calibration table has no tensor {tensor!r}: it is of another model; calibrate again"
            )
        return self.tensors[tensor].range(method, symmetric=symmetric)

    def require_model(self, model: onnx.ModelProto, weights_from: Path | None = None) -> None:
        """Do nothing if this is the model that was calibrated: a retrained one needs ranges of its own.

        Raises:
            CalibrationError: It is another one, or has changed since.
        """
        found = model_digest(model, weights_from)
        if found != self.model_sha256:
            raise CalibrationError(
                "the calibration table is of another model, or of this one before it was changed or trained "
                f"again: it was made for {self.model_sha256[:12]}, this is {found[:12]} (SHA-256 of nodes "
                "and weights); calibrate again"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table's canonical JSON, in lower-case hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return canonical JSON: the same table gives the same text."""
        content = {
            "format": _FORMAT,
            "samples": self.samples,
            "inputs": list(self.inputs),
            "data_sha256": self.data_sha256,
            "model_sha256": self.model_sha256,
            "warnings": list(self.warnings),
            "tensors": {
                name: {
                    "minimum": s.minimum,
                    "maximum": s.maximum,
                    "limit": s.limit,
                    "first_bin": s.first_bin,
                    "counts": list(s.counts),
                    "elements": s.elements,
                    "nonfinite": s.nonfinite,
                    "floor": s.floor,
                }
                for name, s in self.tensors.items()
            },
        }
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(
        cls, text: str, model: onnx.ModelProto, *, weights_from: Path | None = None
    ) -> CalibrationTable:
        """Read what `to_json` wrote.

        Args:
            text: The table.
            model: That it is to be used for; one that was trained again has the same names of tensors and
                other ranges.
            weights_from: Directory of the model's external data, where it has any.

        Raises:
            CalibrationError: It is something else, or of another model.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise CalibrationError(
                    f"calibration table of format {content['format']!r}, this edgec reads {_FORMAT}: "
                    "calibrate again"
                )
            tensors = {
                str(name): TensorStatistics(**{**s, "counts": tuple(int(n) for n in s["counts"])})
                for name, s in content["tensors"].items()
            }
            table = cls(
                tensors=tensors,
                inputs=tuple(content["inputs"]),
                samples=int(content["samples"]),
                data_sha256=str(content["data_sha256"]),
                model_sha256=str(content["model_sha256"]),
                warnings=tuple(content["warnings"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CalibrationError(f"not a calibration table ({e!r}): calibrate again") from e
        table.require_model(model, weights_from)
        return table


def model_digest(model: onnx.ModelProto, weights_from: Path | None = None) -> str:
    """Return the SHA-256 of what a model computes with: nodes, weights, inputs and outputs.

    Names of the producer and other remarks do not count.

    Args:
        model: Whole, or with weights outside.
        weights_from: Directory of its external data, whose content counts too.
    """
    digest = hashlib.sha256()
    parts = (model.graph.node, model.graph.input, model.graph.output, model.functions, model.opset_import)
    for part in parts:
        for item in part:
            digest.update(item.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)};".encode())
        for block in _content(tensor, weights_from):
            digest.update(block)
    return digest.hexdigest()


def _content(tensor: onnx.TensorProto, weights_from: Path | None) -> Iterator[bytes]:
    """Yield the bytes of a tensor, wherever they are."""
    if tensor.data_type == onnx.TensorProto.STRING:
        yield from tensor.string_data
    elif tensor.data_location != onnx.TensorProto.EXTERNAL:
        yield onnx.numpy_helper.to_array(tensor).tobytes()
    elif weights_from is not None:
        info = ExternalDataInfo(tensor)
        with (weights_from / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            left = info.length if info.length is not None else -1
            while left and (block := file.read(min(left, _BLOCK_BYTES) if left > 0 else _BLOCK_BYTES)):
                yield block
                left -= len(block) if left > 0 else 0


def calibrate(
    model: onnx.ModelProto,
    samples: Iterable[Sample],
    *,
    progress: Callable[[int], None] | None = None,
    weights_from: Path | None = None,
    expected_ranges: Mapping[str, tuple[float, float]] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> CalibrationTable:
    """Run the model over samples once and keep statistics of every float tensor.

    Memory stays within the model and 512 MB: samples are read one at a time, and where the tensors of one
    sample are more than `chunk_bytes`, the model runs several times per sample over shared weights.

    Args:
        model: Left as it is. Tensors inside the bodies of If, Loop and Scan are not seen.
        samples: Arrays by name of the input, as the model takes them; read once.
        progress: Called after each sample with the number of samples done.
        weights_from: Directory of the model's external data, where it has any.
        expected_ranges: What the values of an input should span, where it is known, such as
            ``{"image": (0.0, 1.0)}``; a set on quite another scale is refused.
        chunk_bytes: Of inner tensors to hold at once.

    Raises:
        CalibrationError: There are no samples, or one has wrong names, dtypes or shapes, or holds NaN or
            infinity; every sample is one constant; or the scale is not the expected one.
        UnsupportedModelError: ONNX Runtime cannot run the model.
    """
    # Imported late: a table can be read, and ranges derived, where no engine is installed.
    from edgec.compiler.engines.onnxruntime import Recorder

    recorder = Recorder(model, weights_from, chunk_bytes)
    inspector = _Inspector(_input_specs(model))
    collectors: dict[str, StatisticsCollector] = {}
    for number, sample in enumerate(samples, 1):
        inspector.check(number, sample)
        for name, array in recorder.record(sample):
            collectors.setdefault(name, StatisticsCollector()).add(array)
        if progress is not None:
            progress(number)
    inspector.finish(expected_ranges or {})
    found = {name: (c, c.statistics()) for name, c in collectors.items()}
    tensors = {name: statistics for name, (_, statistics) in found.items() if statistics is not None}
    warnings = [*inspector.warnings(), *_size_warnings(inspector.count, [c for c, s in found.values() if s])]
    odd = [name for name, s in tensors.items() if s.nonfinite] + [
        n for n, (_, s) in found.items() if s is None
    ]
    if odd:
        warnings.append(
            f"{len(odd)} tensors hold NaN or infinity ({', '.join(odd[:3])}{', ...' if odd[3:] else ''}): "
            "operators that touch them stay in float"
        )
    return CalibrationTable(
        tensors=tensors,
        inputs=tuple(i.name for i in real_inputs(model) if i.name in tensors),
        samples=inspector.count,
        data_sha256=inspector.sha256,
        model_sha256=model_digest(model, weights_from),
        warnings=tuple(warnings),
    )


def _input_specs(model: onnx.ModelProto) -> dict[str, TensorSpec]:
    specs = {}
    for value in real_inputs(model):
        tensor = value.type.tensor_type
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param or f"axis {axis}"
            for axis, d in enumerate(tensor.shape.dim)
        )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        specs[value.name] = TensorSpec(value.name, dtype.name, shape)
    return specs


def _size_warnings(samples: int, collectors: Sequence[StatisticsCollector]) -> list[str]:
    """Judge by convergence: ranges that still grow late in the set would grow further in the field."""
    if samples < _FEW_SAMPLES:
        return [f"{samples} calibration samples are few: give {_FEW_SAMPLES} or more, 100 to 500 are usual"]
    late = sum(c.grown_at > samples * 3 // 4 for c in collectors)
    if late > len(collectors) // 4:
        return [
            f"the calibration set looks too small: in its last quarter the ranges of {late} of "
            f"{len(collectors)} tensors still grew by more than 5 %; give more samples"
        ]
    return []


class _Inspector:
    """Checks the samples one by one, and judges them as a set."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = specs
        self._digest = hashlib.sha256()
        self._first: bytes | None = None
        self._all_same = True
        self._low = dict.fromkeys(specs, math.inf)
        self._high = dict.fromkeys(specs, -math.inf)
        self._whole = dict.fromkeys(specs, True)
        self.count = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def check(self, number: int, sample: Sample) -> None:
        """Raise CalibrationError where a sample does not fit the model."""
        where = f"calibration sample {number}"
        if not isinstance(sample, Mapping):
            raise CalibrationError(f"{where}: expected arrays by input name, got {type(sample).__name__}")
        if set(sample) != set(self._specs):
            got = ", ".join(sorted(map(str, sample))) or "none"
            raise CalibrationError(f"{where}: expected the inputs {', '.join(self._specs)}; got {got}")
        own = hashlib.sha256()
        for name, spec in self._specs.items():
            self._check_array(where, spec, sample[name])
            self._note(name, sample[name])
            own.update(f"{name} {spec.dtype} {sample[name].shape};".encode())
            own.update(np.ascontiguousarray(sample[name]).data)
        self.count += 1
        self._digest.update(own.digest())
        self._first = self._first or own.digest()
        self._all_same &= own.digest() == self._first

    def _check_array(self, where: str, spec: TensorSpec, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise CalibrationError(f"{where}: expected {spec} as a numpy array, got {type(array).__name__}")
        if array.dtype != np.dtype(spec.dtype):
            raise CalibrationError(f"{where}: expected {spec}, got {array.dtype}{list(array.shape)}")
        fits = array.ndim == len(spec.shape) and all(
            isinstance(want, str) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            hint = ""
            if array.ndim == len(spec.shape) - 1:
                hint = f"; the batch axis is missing: give [1, {', '.join(map(str, array.shape))}]"
            raise CalibrationError(f"{where}: expected {spec}, got {array.dtype}{list(array.shape)}{hint}")
        if array.size == 0:
            raise CalibrationError(f"{where}: input {spec.name!r} is empty, shape {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))[0].tolist()
            raise CalibrationError(
                f"{where}: input {spec.name!r} holds {array[tuple(bad)]} at {bad}: remove the sample"
            )

    def _note(self, name: str, array: NDArray[Any]) -> None:
        if array.dtype.kind not in "fiu":
            return
        low, high = float(array.min()), float(array.max())
        self._low[name], self._high[name] = min(self._low[name], low), max(self._high[name], high)
        if array.dtype.kind == "f" and self._whole[name]:
            self._whole[name] = bool((array == np.rint(array)).all())

    def finish(self, expected: Mapping[str, tuple[float, float]]) -> None:
        """Raise CalibrationError where the set as a whole is of no use."""
        if self.count == 0:
            raise CalibrationError(
                "the calibration set is empty: give representative samples, 100 to 500 are usual"
            )
        floats = [n for n in self._float_inputs() if self._low[n] <= self._high[n]]
        if floats and all(self._low[n] == self._high[n] for n in floats):
            values = ", ".join(f"{n!r} is always {self._low[n]:g}" for n in floats)
            raise CalibrationError(f"the calibration set is constant ({values}): give samples of real data")
        for name, (low, high) in expected.items():
            if name in floats:
                self._check_scale(name, max(-low, high))

    def _check_scale(self, name: str, wanted: float) -> None:
        seen = max(-self._low[name], self._high[name])
        if wanted > 0.0 and seen > 0.0 and not 1 / 16 <= seen / wanted <= 16:
            raise CalibrationError(
                f"the calibration set is on another scale: input {name!r} spans {self._low[name]:g}.."
                f"{self._high[name]:g}, the model is used with values up to {wanted:g}: prepare the samples "
                "as the model's own pre-processing does"
            )

    def warnings(self) -> list[str]:
        """Say what looks wrong with the set, where it can still be used."""
        found = []
        if self._all_same and self.count > 1:
            found.append(
                f"all {self.count} calibration samples are the same: the ranges stand for one sample only"
            )
        for name in self._float_inputs():
            low, high = self._low[name], self._high[name]
            if low == high:
                found.append(
                    f"input {name!r} is always {low:g} in the calibration set: its range is not known"
                )
            elif self._whole[name] and low >= 0 and 128 <= high <= 255:
                found.append(
                    f"input {name!r} holds whole numbers {low:g}..{high:g}, as raw pixels do: "
                    "if the model was trained on 0..1 or on normalised values, its ranges will be wrong"
                )
        return found

    def _float_inputs(self) -> Iterator[str]:
        return (name for name, spec in self._specs.items() if np.dtype(spec.dtype).kind == "f")
