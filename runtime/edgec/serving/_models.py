"""What a server needs of a model, and the second face that a model with a pipeline has."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import Pipeline, TensorSpec
from edgec.artifact.steps import Decode, Tokenize
from edgec.errors import InputError, RequestError
from edgec.runtime.results import plain
from edgec.serving._wire import read_json

_MOST_RUNS = 20
_MEASURING_S = 0.2


class Described(Protocol):
    """What the file of a model or chain says that a server needs: `Manifest`, or `ChainSpec`."""

    @property
    def model(self) -> str:
        """Name."""
        ...

    @property
    def model_version(self) -> str:
        """Version."""
        ...

    @property
    def pipeline(self) -> Pipeline | None:
        """How a sample is prepared; None where there is nothing to prepare."""
        ...


class ServedModel(Protocol):
    """What is served: a `Session`, or what stands in front of several. Safe to use from several threads."""

    @property
    def manifest(self) -> Described:
        """What the artifact says of itself: name, version, pipeline."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]], /) -> Mapping[str, NDArray[Any]]:
        """Run one inference."""
        ...

    def predict(self, sample: object, /) -> Mapping[str, Any]:
        """Run the whole pipeline on one sample."""
        ...

    def close(self) -> None:
        """Free the model."""


class Prediction:
    """The whole pipeline of a model as a model of the protocol: an encoded sample in, JSON out.

    Any client can send it a JPEG or a text as an element of BYTES, or as the raw body of the request.
    """

    inputs = (TensorSpec("sample", "object", (1,)),)
    outputs = (TensorSpec("prediction", "object", (1,)),)

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        pipeline = model.manifest.pipeline
        steps = () if pipeline is None else pipeline.preprocess
        texts = [spec.dtype for spec in model.inputs] == ["object"]
        self._takes_text = texts or any(isinstance(step, Tokenize) for step in steps)
        self._takes_images = any(isinstance(step, Decode) for step in steps)

    @property
    def takes_bytes(self) -> bool:
        """Whether a sample is an image or a text, not JSON."""
        return self._takes_images or self._takes_text

    def run(self, inputs: Mapping[str, NDArray[Any]], /) -> dict[str, NDArray[Any]]:
        """Predict from ``{"sample": object[1]}``: see `predict_bytes`."""
        if inputs["sample"].shape != (1,):
            raise InputError(f"expected one sample, shape [1], got {list(inputs['sample'].shape)}")
        prediction = np.empty(1, object)
        prediction[0] = self.predict_bytes(inputs["sample"][0])
        return {"prediction": prediction}

    def predict_bytes(self, data: bytes) -> bytes:
        """Return the prediction, as JSON, of one sample.

        Args:
            data: An encoded image where the pipeline decodes images; a text in UTF-8 where it tokenizes;
                else JSON: an array, or an object of arrays by name of the input.

        Raises:
            RequestError: It is none of these.
            PipelineError: The sample does not fit the pipeline.
            InferenceError: The model refuses it.
        """
        return json.dumps(plain(self._model.predict(self._sample(data))), allow_nan=False).encode()

    def _sample(self, data: bytes) -> object:
        if self._takes_images:
            return data  # never a text, which the pipeline would take for the path of a file
        if self._takes_text:
            try:
                return data.decode()
            except UnicodeDecodeError as e:
                raise RequestError("expected a text in UTF-8") from e
        document = read_json(data)
        specs = {spec.name: spec for spec in self._model.inputs}
        if not isinstance(document, dict):
            return _array(document, next(iter(specs.values())))
        unknown = [name for name in document if name not in specs]
        if unknown:
            raise RequestError(f"unknown input {unknown[0][:80]!r}, the model takes {', '.join(specs)}")
        return {name: _array(value, specs[name]) for name, value in document.items()}


def measure(model: ServedModel) -> tuple[float, int]:
    """Run a model a few times.

    Returns:
        Median time of a run in seconds, and the size of its inputs in bytes; free dimensions have size 1.
    """
    inputs = {
        spec.name: np.full(
            [n if isinstance(n, int) else 1 for n in spec.shape],
            b"" if spec.dtype == "object" else 0,
            spec.dtype,
        )
        for spec in model.inputs
    }
    model.run(inputs)
    model.run(inputs)
    taken: list[float] = []
    while len(taken) < _MOST_RUNS and sum(taken) < _MEASURING_S:
        start = time.perf_counter()
        model.run(inputs)
        taken.append(time.perf_counter() - start)
    return median(taken), sum(array.nbytes for array in inputs.values())


def _array(value: object, spec: TensorSpec) -> NDArray[Any]:
    if not isinstance(value, list) or not _is_numeric(value):
        raise RequestError(f"expected an array of numbers for input {spec}")
    try:
        array = np.asarray(value)
    except ValueError as e:
        raise RequestError(f"the numbers for input {spec} are nested unevenly") from e
    kinds = {"f": "iuf", "b": "b"}.get(np.dtype(spec.dtype).kind, "iu")
    if array.dtype.kind == "f" and "f" not in kinds:
        return array  # the pipeline may quantize it, or says why not
    if array.dtype.kind not in kinds + "b":
        raise RequestError(f"expected numbers for input {spec}")
    if array.dtype.kind in "iu" and np.dtype(spec.dtype).kind in "iu":
        info = np.iinfo(spec.dtype)
        if array.size and (int(array.min()) < info.min or int(array.max()) > info.max):
            raise RequestError(f"input {spec}: values go from {info.min} to {info.max}")
    return array.astype(spec.dtype)


def _is_numeric(value: list[Any]) -> bool:
    flat: list[Any] = value
    while any(isinstance(element, list) for element in flat):
        if not all(isinstance(element, list) for element in flat):
            return False
        flat = [element for row in flat for element in row]
    return set(map(type, flat)) <= {bool, int, float}
