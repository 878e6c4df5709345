"""LiteRT (TensorFlow Lite), on any CPU through XNNPACK, and on NPUs through a delegate.

The package is ``ai-edge-litert``, or ``tflite-runtime`` where only that exists (32-bit Arm). Both take a
model as one ``bytes``: it is copied out of the mapped artifact once per program. ``Interpreter`` copies
each input in and each output out, and has no way around that; there is no other copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import ArtifactError, BackendUnavailableError, InferenceError
from edgec.runtime._buffers import check_shape
from edgec.runtime.backends import LoadOptions, Payload
from edgec.runtime.backends._boundary import Adapter, adapters
from edgec.runtime.backends._failures import engine_failure
from edgec.runtime.backends._litert_graph import left_behind, place, precisions_of
from edgec.runtime.backends._precision import effective_precision
from edgec.runtime.backends._versions import check_version

try:
    from ai_edge_litert import __version__
    from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate

    _PACKAGE = "ai-edge-litert"
except ModuleNotFoundError as missing:
    try:
        from tflite_runtime import __version__
        from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate

        _PACKAGE = "tflite-runtime"
    except ModuleNotFoundError:
        raise missing from None  # the one that the extra brings

VERSION = str(__version__)
# What the bindings raise: the engine's own failures, and what pybind11 and numpy refuse.
_FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)
# "CPU" takes XNNPACK where it has the operator; "CPU-reference" is the plain kernels that define what
# an int8 operator computes, and what NPUs are held against.
_KERNELS = {"CPU": OpResolverType.AUTO, "CPU-reference": OpResolverType.BUILTIN_REF}
_DELEGATED = ("NPU", "edgetpu")
_MICROCONTROLLER = "ethos-u"
_MAGIC = b"TFL3"
_CREATE = "tflite_plugin_create_delegate"  # what every external delegate exports


class LiteRtBackend:
    """Loads a ``.tflite`` file, whole, from one member."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> LiteRtProgram:
        """Load a model; see `edgec.runtime.backends.Backend.load`.

        ``spec.device`` is ``CPU``, ``CPU-reference``, or a place that a delegate serves (``NPU``,
        ``edgetpu``): then the application names the delegate's library, in `LoadOptions.delegate`.
        """
        check_version("LiteRT", _PACKAGE, VERSION, spec.version)
        _check_numpy()
        _check_device(spec.device, options)
        content = bytes(payload.view(spec.files[0]))
        # tflite-runtime reads a file without verifying it, this far or any further.
        if content[4:8] != _MAGIC:
            raise InferenceError(
                f"{spec.files[0]} is no TFLite file: its bytes 4 to 8 are {content[4:8]!r}, not {_MAGIC!r}"
            )
        return LiteRtProgram(content, spec, inputs, outputs, options)

    def devices(self) -> tuple[str, ...]:
        """Return where models can run without a delegate of the application's."""
        return tuple(_KERNELS)


class LiteRtProgram:
    """A model in LiteRT.

    An interpreter serves one call at a time, so there are as many as calls ever ran at once; each has
    its own activations and its own packed weights.
    """

    def __init__(
        self,
        content: bytes,
        spec: EngineSpec,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> None:
        self._content: bytes | None = content
        self._spec = spec
        self._inputs = inputs
        self._outputs = outputs
        self._options = options
        self._taken: list[dict[str, Any]] | None = None
        self._idle = [self._lane(content)]

    @property
    def engine_version(self) -> str:
        """Version of LiteRT."""
        return VERSION

    @property
    def precision(self) -> str:
        """What `precisions` comes to."""
        return effective_precision(self.precisions, self._spec.precision)

    @cached_property
    def precisions(self) -> Mapping[str, int]:
        """How many operators that do arithmetic compute in which precision, by the types of their tensors."""
        return precisions_of(self._operators())

    @cached_property
    def placement(self) -> Mapping[str, int]:
        """How many of the file's operators run where: those that a delegate took, and the CPU's."""
        return place(self._operators(), self._spec.device)

    def nodes_elsewhere(self) -> list[str]:
        """Return the operators that the delegate left to the CPU."""
        return left_behind(self._operators())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`."""
        content = self._content
        if content is None:
            raise InferenceError("the session is closed: load the artifact again")
        try:  # pop and append are atomic
            lane = self._idle.pop()
        except IndexError:
            lane = self._lane(content)
        try:
            values = (lane.direct or lane.run)(inputs)
        except _FAILURES as e:  # the lane is left behind, for nobody knows its state
            raise engine_failure("LiteRT", _reason(e), e) from e
        self._idle.append(lane)
        return values

    def run_into(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Run once, some outputs into arrays of the caller's: copied there, and nowhere else before."""
        content = self._content
        if content is None:
            raise InferenceError("the session is closed: load the artifact again")
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._lane(content)
        try:
            values = lane.run_into(inputs, outputs)
        except _FAILURES as e:
            raise engine_failure("LiteRT", _reason(e), e) from e
        self._idle.append(lane)
        return values

    def close(self) -> None:
        """Free the model; a call that still runs in another thread ends as it would have."""
        self._content = None
        self._idle.clear()

    def _operators(self) -> list[dict[str, Any]]:
        """Return the operators, as an interpreter tells them before its tensors are allocated."""
        if self._taken is not None:
            return self._taken
        if self._content is None:
            raise InferenceError("the session is closed: load the artifact again")
        return _details(Interpreter(model_content=self._content))

    def _lane(self, content: bytes) -> _Lane:
        try:
            interpreter = _interpreter(content, self._spec, self._options)
            if self._taken is None and self._spec.device in _DELEGATED:
                self._taken = _details(interpreter)
            return _Lane(interpreter, self._inputs, self._outputs, self._options.recipe)
        except (*_FAILURES, UnicodeDecodeError) as e:
            raise InferenceError(f"LiteRT {VERSION} cannot load the model: {_reason(e)}") from e


_Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class _Lane:
    """An interpreter, and how the arrays of a call become its tensors; serves one call at a time."""

    __slots__ = (
        "_adapted",
        "_free",
        "_get",
        "_inner",
        "_inputs",
        "_interpreter",
        "_invoke",
        "_outer",
        "_outputs",
        "_set",
        "direct",
    )

    def __init__(
        self,
        interpreter: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        recipe: Mapping[str, Any],
    ) -> None:
        self._interpreter = interpreter
        signature = _signature(interpreter)
        taken = _matched(interpreter.get_input_details(), inputs, signature["inputs"], "input")
        given = _matched(interpreter.get_output_details(), outputs, signature["outputs"], "output")
        self._adapted: tuple[dict[str, Adapter], dict[str, Adapter]] = (
            adapters(inputs, taken, recipe, "input"),
            adapters(outputs, given, recipe, "output"),
        )
        self._inputs = [(i.name, int(taken[i.name]["index"])) for i in inputs]
        self._outputs = [(o.name, int(given[o.name]["index"])) for o in outputs]
        self._free = any(not i.is_static for i in inputs)
        self._set, self._invoke, self._get = (
            interpreter.set_tensor,
            interpreter.invoke,
            interpreter.get_tensor,
        )
        # What there is room for: in tensors, and in arrays of the specs, which may have other shapes.
        self._inner = {i.name: tuple(map(int, taken[i.name]["shape"])) for i in inputs}
        self._outer = {} if self._adapted[0] else self._inner
        self._make_room({i.name: tuple(_size(n) for n in i.shape) for i in inputs})
        # Does what `run` does without what such tensors do not need; no method, which would hold its lane.
        self.direct: _Run | None = None if any(self._adapted) else self._direct()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return new arrays by name, in the order of the output specs."""
        self._compute(inputs)
        get, leave = self._get, self._adapted[1]
        return {
            name: leave[name].leave(get(index)) if name in leave else get(index)
            for name, index in self._outputs
        }

    def _direct(self) -> _Run:
        put, invoke, get = self._set, self._invoke, self._get
        taken, given = self._inputs, self._outputs
        free, fitted, interpreter = self._free, self._inner, self._interpreter
        if len(taken) == len(given) == 1:
            (name, index), (output, output_index) = taken[0], given[0]

            def run_one(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
                array = inputs[name]
                if free and array.shape != fitted[name]:
                    _fit(interpreter, taken, {name: array.shape}, fitted)
                put(index, array)
                invoke()
                return {output: get(output_index)}

            return run_one

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            if free and any(inputs[name].shape != fitted[name] for name, _ in taken):
                _fit(interpreter, taken, {name: inputs[name].shape for name, _ in taken}, fitted)
            for name, index in taken:
                put(index, inputs[name])
            invoke()
            return {name: get(index) for name, index in given}

        return run

    def run_into(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Return the caller's arrays, filled, and new ones for the other outputs."""
        self._compute(inputs)
        leave, values = self._adapted[1], {}
        for name, index in self._outputs:
            if name not in outputs:
                value = self._get(index)
                values[name] = leave[name].leave(value) if name in leave else value
                continue
            # A view, which must not outlive this call: it would forbid the next one.
            value = self._interpreter.tensor(index)()
            value = leave[name].leave(value) if name in leave else value
            check_shape(name, outputs[name].shape, value.shape)
            np.copyto(outputs[name], value)
            values[name] = outputs[name]
            del value
        return values

    def _compute(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        if self._free and any(inputs[name].shape != self._outer[name] for name, _ in self._inputs):
            self._make_room({name: inputs[name].shape for name, _ in self._inputs})
        enter, put = self._adapted[0], self._set
        if enter:
            for name, index in self._inputs:
                adapter = enter.get(name)
                put(index, inputs[name] if adapter is None else adapter.enter(inputs[name]))
        else:
            for name, index in self._inputs:
                put(index, inputs[name])
        self._invoke()

    def _make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        enter = self._adapted[0]
        inner = {n: enter[n].inner_shape(shape) if n in enter else shape for n, shape in shapes.items()}
        _fit(self._interpreter, self._inputs, inner, self._inner)
        self._outer.update(shapes)


def _fit(
    interpreter: Any,
    tensors: list[tuple[str, int]],
    shapes: Mapping[str, tuple[int, ...]],
    fitted: dict[str, tuple[int, ...]],
) -> None:
    """Make room for inputs of some shapes; `fitted` is what there is room for, and is brought up to date."""
    for name, index in tensors:
        if shapes[name] != fitted.get(name):
            # Strict: an axis that is fixed in the file may be what its operators were made for.
            interpreter.resize_tensor_input(index, shapes[name], strict=True)
    interpreter.allocate_tensors()
    fitted.update(shapes)


def _details(interpreter: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = interpreter._get_ops_details()  # in both packages, and the only way
    if not all("operand_types" in operator for operator in found):  # tflite-runtime's have none
        kinds = {int(t["index"]): t["dtype"] for t in interpreter.get_tensor_details()}
        for operator in found:
            operator["operand_types"] = [kinds[int(i)] for i in operator["inputs"] if int(i) in kinds]
    return found


def _size(axis: int | str) -> int:
    return axis if isinstance(axis, int) else 1


def _interpreter(content: bytes, spec: EngineSpec, options: LoadOptions) -> Any:
    delegates = None
    if spec.device in _DELEGATED:
        delegates = [_delegate(str(options.delegate))]
    return Interpreter(
        model_content=content,
        num_threads=options.threads,
        experimental_delegates=delegates,
        experimental_op_resolver_type=_KERNELS.get(spec.device, OpResolverType.AUTO),
    )


def _delegate(library: str) -> Any:
    try:
        # Looked at first: the wrapper's destructor complains aloud about a library that is no delegate.
        if not hasattr(ctypes.CDLL(library), _CREATE):
            raise BackendUnavailableError(f"{library} is no LiteRT delegate: it exports no {_CREATE}")
        return load_delegate(library)
    except (OSError, ValueError) as e:
        raise BackendUnavailableError(
            f"the delegate {library} cannot be loaded: {_reason(e)}; install the NPU's runtime, and check "
            "that the device is there"
        ) from e


def _check_numpy() -> None:
    # Its extension was built for numpy 1: it imports with numpy 2, and fails when it is first used.
    if _PACKAGE == "tflite-runtime" and int(np.__version__.split(".", maxsplit=1)[0]) >= 2:
        raise BackendUnavailableError(
            f"tflite-runtime {VERSION} works with numpy 1 only, this is numpy {np.__version__}: run  "
            "pip install 'edgec[litert]'  or, where that has no wheel,  pip install 'numpy<2'"
        )


def _check_device(device: str, options: LoadOptions) -> None:
    if device in _KERNELS or (device in _DELEGATED and options.delegate is not None):
        return
    if device in _DELEGATED:
        raise BackendUnavailableError(
            f"LiteRT reaches the {device} through a delegate, and none was named: give the path of its "
            f'shared library, as in  load(path, delegate="libedgetpu.so.1")'
        )
    if device == _MICROCONTROLLER:
        raise BackendUnavailableError(
            "an Ethos-U is driven by LiteRT for Microcontrollers: flash the artifact's Vela file; nothing "
            "but its numerics can be run here"
        )
    raise BackendUnavailableError(
        f"LiteRT has no device {device!r}: it has {', '.join((*_KERNELS, *_DELEGATED))}; compile it again"
    )


def _signature(interpreter: Any) -> dict[str, dict[str, int]]:
    """Return the names that a file's only signature gives to tensors: those of its author."""
    # The public method gives the names without the tensors.
    signatures = list(interpreter._get_full_signature_list().values())
    if len(signatures) != 1:
        return {"inputs": {}, "outputs": {}}
    found: dict[str, dict[str, int]] = signatures[0]
    return found


def _matched(
    details: list[dict[str, Any]], specs: tuple[TensorSpec, ...], names: Mapping[str, int], role: str
) -> dict[str, dict[str, Any]]:
    """Return the engine's description of each declared tensor, by the declared name."""
    by_index = {int(d["index"]): d for d in details}
    known = {d["name"]: d for d in details}
    known |= {name: by_index[index] for name, index in names.items() if index in by_index}
    for spec in specs:
        if spec.name not in known:
            raise ArtifactError(
                f"the manifest declares the {role} {spec.name!r}, the model has {sorted(known)}: "
                "compile it again"
            )
    return {spec.name: known[spec.name] for spec in specs}


def _reason(e: BaseException) -> str:
    """Return what went wrong, in one line: LiteRT's messages begin with where in its sources."""
    lines = [line.strip() for line in str(e).splitlines()]
    return " ".join(line for line in lines if line) or type(e).__name__
