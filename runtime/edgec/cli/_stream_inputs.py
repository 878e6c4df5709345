"""What predicts in ``edgec stream``: an artifact with its state and the inputs that never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.runtime import Session
    from edgec.runtime.streams import Predictor, Source


def make_predictor(
    session: Session, state: Mapping[str, str], fixed: Mapping[str, float], source: Source
) -> Predictor:
    """Return what predicts: the session, with its pipeline, for as long as there is no state.

    A state is carried from call to call of the bare model; where that leaves a pipeline out, standard error
    says so.

    Raises:
        BadParameter: The type of a fixed input does not hold its number.
        InputError: The model has no such input or output, or takes more than the source gives.
    """
    from edgec.runtime.streams import MqttSource, Recurrent, WithFixed, check_fed_by_one

    piped = session.manifest.pipeline is not None
    arrays = _arrays(session, fixed)
    predictor: Predictor = session
    if state or (fixed and not piped):
        predictor = Recurrent(session, state, fixed=arrays)
    elif fixed:
        predictor = WithFixed(session, arrays)
    if not isinstance(source, MqttSource):  # a message may bring several inputs
        check_fed_by_one(session, state, fixed)
    if state and piped:
        click.echo(
            "note: with --state the model runs bare, without the pipeline of the artifact: samples have to "
            "be what the model itself takes (a chain may do the rest)",
            err=True,
        )
    return predictor


def _arrays(session: Session, fixed: Mapping[str, float]) -> dict[str, NDArray[Any]]:
    """Return inputs that are one number each, in the shape and type of the model's; names are checked later.

    Raises:
        BadParameter: The type of an input does not hold its number.
    """
    import numpy as np

    specs = {spec.name: spec for spec in session.inputs}
    arrays: dict[str, NDArray[Any]] = {}
    for name, number in fixed.items():
        if name not in specs:
            arrays[name] = np.array(number)
            continue
        shape = [n if isinstance(n, int) else 1 for n in specs[name].shape]
        dtype = np.dtype(specs[name].dtype)
        if not _holds(dtype, number):
            raise click.BadParameter(
                f"{specs[name]} does not hold {number}: expected {_range(dtype)}", param_hint="--fixed"
            )
        arrays[name] = np.full(shape, number, dtype)
    return arrays


def _holds(dtype: Any, number: float) -> bool:
    """Whether a type holds a number, rounded where it is a fraction; not as an infinity, zero or another."""
    import numpy as np

    if dtype.kind not in "biuf" or (isinstance(number, float) and dtype.kind != "f"):
        return False
    try:
        with np.errstate(over="ignore", under="ignore"):
            value = np.array(number).astype(dtype)
    except OverflowError:
        return False
    if isinstance(number, int):
        return bool(value.item() == number)
    return bool(np.isfinite(value) == np.isfinite(number) and (value != 0) == (number != 0))


def _range(dtype: Any) -> str:
    import numpy as np

    if dtype.kind == "b":
        return "0 or 1"
    if dtype.kind in "iu":
        return f"a whole number from {np.iinfo(dtype).min} to {np.iinfo(dtype).max}"
    if dtype.kind == "f":
        largest = float(np.finfo(dtype).max)
        return f"a number from {-largest:g} to {largest:g} that it can tell from 0 and from its neighbours"
    return "an input of numbers"
