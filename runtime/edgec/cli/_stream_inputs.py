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

    from edgec.errors import InputError
    from edgec.runtime._constants import constant_input

    specs = {spec.name: spec for spec in session.inputs}
    try:
        return {
            name: constant_input(specs[name], number) if name in specs else np.array(number)
            for name, number in fixed.items()
        }
    except InputError as e:
        raise click.BadParameter(str(e), param_hint="--fixed") from e
