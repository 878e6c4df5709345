"""Changing the model of a session while it is called."""

from __future__ import annotations

import weakref
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import IncompatibleArtifactError
from edgec.runtime._memory import give_back_memory

if TYPE_CHECKING:
    from edgec.runtime._session import Session

_WARMUP_CALLS = 2


def swap(session: Session, new: Session, drain_s: float) -> None:
    """Move a loaded model into a session; `new` is closed, with the old model or, on failure, its own.

    Raises:
        IncompatibleArtifactError: It has other inputs or outputs.
        InferenceError: It fails when it is warmed up, or the session is closed.
    """
    try:
        _check_interface(session, new)
        inputs = _zeros(new)
        for _ in range(_WARMUP_CALLS):
            new.run(inputs)
        old = session.exchange(new)
    except BaseException:
        new.close()
        raise
    drained = _until_gone(old)
    old.close()
    if not drained.wait(drain_s):
        from logging import getLogger

        getLogger("edgec.runtime").warning(
            "calls of the old model still run after %g s; its memory is given back when they end",
            drain_s,
        )
    give_back_memory()


def _check_interface(session: Session, new: Session) -> None:
    if (new.inputs, new.outputs) != (session.inputs, session.outputs):
        raise IncompatibleArtifactError(
            f"a swap keeps inputs and outputs, which callers rely on: expected "
            f"{_told(session)}, got {_told(new)}; load it as a session of its own"
        )


def _zeros(session: Session) -> dict[str, NDArray[Any]]:
    """Return inputs that every model takes: zeros, which are indices, too; named dimensions have size 1."""
    return {
        spec.name: np.full(
            [n if isinstance(n, int) else 1 for n in spec.shape],
            "" if spec.dtype == "object" else 0,
            spec.dtype,
        )
        for spec in session.inputs
    }


def _told(session: Session) -> str:
    return f"{', '.join(map(str, session.inputs))} -> {', '.join(map(str, session.outputs))}"


def _until_gone(session: Session) -> Event:
    """Return what is set once nobody uses the session's program: calls that run hold it."""
    gone = Event()
    program = session.current_program()
    try:
        weakref.finalize(program, gone.set)
    except TypeError:  # a third party's, that cannot be told of
        gone.set()
    return gone
