"""Calls into memory that belongs to the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import InferenceError, InputError

if TYPE_CHECKING:
    from edgec.runtime.backends import Program

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], "dict[str, NDArray[Any]]"]
# Up to this size a copy costs less than telling an engine where to write.
COPIED_BYTES = 16 * 1024


def check_outputs(specs: Sequence[TensorSpec], outputs: Arrays) -> None:
    """Do nothing if arrays can take outputs.

    Raises:
        InputError: One has no spec, does not fit it, is read-only, or is not contiguous in C order.
    """
    by_name = {spec.name: spec for spec in specs}
    problems = []
    for name, array in outputs.items():
        if name not in by_name:
            problems.append(f"the model has no output {name!r}, only {', '.join(map(str, specs))}")
            continue
        by_name[name].check(array)
        if not (array.flags.c_contiguous and array.flags.writeable):
            problems.append(f"the buffer of {name!r} has to be writable and contiguous in C order")
    if problems:
        raise InputError("; ".join(problems))


def run_into(
    program: Program, specs: Sequence[TensorSpec], inputs: Arrays, outputs: Arrays
) -> dict[str, NDArray[Any]]:
    """Run once; outputs that have a buffer are written there, the others are new arrays.

    Raises:
        InputError: A buffer has another shape than its output; others may have been written to.
        InferenceError: The engine failed.
    """
    check_outputs(specs, outputs)
    # Only some engines write where they are told to: a method that a Program may have.
    native: Callable[[Arrays, Arrays], dict[str, NDArray[Any]]] | None = getattr(program, "run_into", None)
    if native is not None and sum(buffer.nbytes for buffer in outputs.values()) > COPIED_BYTES:
        return native(inputs, outputs)
    return deliver(program.run(inputs), outputs)


def deliver(values: Arrays, outputs: Arrays) -> dict[str, NDArray[Any]]:
    """Copy values into the buffers there are for them."""
    same: Callable[[Arrays], dict[str, NDArray[Any]]] = getattr(values, "with_values", dict)
    given = same(values)  # what says where it came from goes on saying so
    for name, buffer in outputs.items():
        check_shape(name, buffer.shape, values[name].shape)
        np.copyto(buffer, values[name])
        given[name] = buffer
    return given


def check_shape(name: str, has: tuple[int, ...], needs: tuple[int, ...]) -> None:
    """Raise InputError where a buffer has another shape than its output."""
    if has != needs:
        raise InputError(f"the buffer of {name!r} has shape {list(has)}, the output {list(needs)}")


class BoundCall:
    """One call again and again, over the same arrays; made by ``Session.bind``.

    Write to `inputs`, call, read `outputs`. Nothing is checked and, where the engine can, nothing is copied.
    One thread at a time, others wait; a session can have several, for several threads.

    Attributes:
        inputs: What the model reads, by name. Write into the arrays; do not replace them.
        outputs: What the model writes, by name.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]

    def __init__(
        self,
        current: Callable[[], Program],
        inputs: Mapping[str, NDArray[Any]],
        outputs: dict[str, NDArray[Any]],
        watch: Callable[[Run], Run],
    ) -> None:
        """Use ``Session.bind``."""
        self._watch = watch
        self.inputs = inputs
        self.outputs = self._outputs = outputs
        self._current = current
        self._program: Program | None = None
        self._call: Callable[[], object] = _never
        self._busy = Lock()

    def __call__(self) -> Mapping[str, NDArray[Any]]:
        """Run once and return `outputs`, which the next call overwrites.

        Raises:
            InferenceError: The engine failed, or the session is closed.
        """
        with self._busy:
            program = self._current()
            try:
                self._run_on(program)
            except InferenceError:
                if self._current() is program:
                    self._program, self._call = None, _never  # bound anew: an engine may be left in any state
                    raise
                self._run_on(self._current())  # the session was swapped meanwhile
        return self.outputs

    def expire(self) -> None:
        """Let go of a program that the session has no more, and of an observer."""
        with self._busy:
            self._program, self._call = None, _never

    def _run_on(self, program: Program) -> None:
        if program is not self._program:  # the first call, or the first after a swap
            self._bind(program)
        self._call()

    def _bind(self, program: Program) -> None:
        inputs, outputs = self.inputs, self._outputs
        native: Callable[[Arrays, Arrays], Callable[[], object]] | None = getattr(program, "bind", None)
        call: Callable[[], object]
        call = native(inputs, outputs) if native else lambda: deliver(program.run(inputs), outputs)

        def run(_: Arrays) -> dict[str, NDArray[Any]]:
            call()
            return outputs

        watched = self._watch(run)
        self._call = call if watched is run else partial(watched, inputs)  # without observer, nothing between
        self._program = program


def _never() -> None:
    raise AssertionError("a call is bound before it is made")


def check_inputs_bindable(inputs: Arrays) -> None:
    """Raise InputError where an engine could not read an input where it is."""
    scattered = [name for name, array in inputs.items() if not array.flags.c_contiguous]
    if scattered:
        raise InputError(f"inputs have to be contiguous in C order to be bound: {', '.join(scattered)}")


def empty_inputs(specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Return arrays of zeros for inputs.

    Raises:
        InputError: A dimension has a name: its size is the caller's to say.
    """
    free = [spec for spec in specs if not spec.is_static]
    if free:
        raise InputError(
            f"{', '.join(map(str, free))}: sizes of named dimensions are yours to say: give bind() the inputs"
        )
    return {s.name: np.zeros([n for n in s.shape if isinstance(n, int)], s.dtype) for s in specs}
