"""What predicts in a stream beside sessions and chains: models with a state, models of a host."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact.steps import Tokenize
from edgec.errors import InputError
from edgec.runtime._session import Session

if TYPE_CHECKING:
    from edgec.runtime._host import Host


class Recurrent:
    """A session whose model takes a state and gives the next one: it is carried from call to call.

        detector = Recurrent(session, state={"state": "next_state"})
        for result in Stream(AudioWindows("kitchen.wav", size=640, rate=8000), detector): ...

    Of one stream and one thread: a sequence has one order. A call that fails leaves the state as it was. The
    model runs bare: what the artifact declares before and after it is left out.

    Attributes:
        state: The state that the next call begins with, by name of the input.
    """

    state: dict[str, NDArray[Any]]

    def __init__(
        self,
        session: Session,
        state: Mapping[str, str],
        *,
        fixed: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """Begin with a state of zeros.

        Args:
            session: It stays open, and may be shared.
            state: Output that gives the next state, by the input that takes it.
            fixed: Inputs that are the same in every call: ``{"sr": np.array(16000)}``.

        Raises:
            InputError: The model has no such input or output, or a state changes its type or shape.
        """
        self._session = session
        self._next = dict(state)
        self._fixed = dict(fixed or {})
        self._inputs = {spec.name: spec for spec in session.inputs}
        _check(session, self._next, self._fixed)
        self._fed = _fed(session, {**self._next, **self._fixed})
        self.reset()

    def reset(self) -> None:
        """Begin again with a state of zeros; a dimension with a name has size 1."""
        specs = (self._inputs[name] for name in self._next)
        self.state = {
            spec.name: np.zeros([n if isinstance(n, int) else 1 for n in spec.shape], spec.dtype)
            for spec in specs
        }

    def predict(self, sample: Any) -> dict[str, NDArray[Any]]:
        """Run the model once, and keep its state.

        Args:
            sample: An array, perhaps without the axes of size 1 in front; where the model has several inputs
                beside the state, a mapping of these by name.

        Returns:
            The outputs that are no state, by name.

        Raises:
            InputError: The sample does not fit.
            InferenceError: The engine failed.
        """
        given = sample if isinstance(sample, Mapping) else {self._fed[0]: sample}
        inputs = {name: self._fitted(name, value) for name, value in given.items()}
        outputs = self._session.run({**inputs, **self._fixed, **self.state})
        self.state = {name: outputs.pop(output) for name, output in self._next.items()}
        return outputs

    def _fitted(self, name: str, value: Any) -> NDArray[Any]:
        array = np.asarray(value)
        spec = self._inputs.get(name)
        missing = 0 if spec is None else len(spec.shape) - array.ndim
        return array.reshape((1,) * missing + array.shape) if missing > 0 else array


class WithFixed:
    """A session with some of its inputs the same in every call, and its whole pipeline.

    What a tokenizer of the pipeline makes cannot be one of them: the text that it is made of stands for it.
    """

    def __init__(self, session: Session, fixed: Mapping[str, NDArray[Any]]) -> None:
        """Name the inputs that never change.

        Args:
            session: It stays open, and may be shared.
            fixed: By name of the input: ``{"sr": np.array(16000)}``.

        Raises:
            InputError: The model has no such input, or no other, or a tokenizer makes it.
        """
        self._session = session
        self._fixed = dict(fixed)
        _check(session, {}, self._fixed)
        filled = _tokenized(session)
        if made := [name for name in self._fixed if name in filled]:
            raise InputError(
                f"{session.manifest.model} cannot be called so: its tokenizer makes {', '.join(made)} of the "
                "text: leave them out of what is fixed"
            )
        self._fed = _fed(session, {*self._fixed, *filled} - _text_names(session))

    def predict(self, sample: Any) -> dict[str, Any]:
        """Run the whole pipeline once; see ``Session.predict``.

        Args:
            sample: Of the first input that is not fixed, a text where it is tokenized; a mapping by name
                where there are several.
        """
        given = sample if isinstance(sample, Mapping) else {self._fed[0]: sample}
        return self._session.predict({**given, **self._fixed})


def check_fed_by_one(session: Session, state: Mapping[str, str], fixed: Mapping[str, Any]) -> None:
    """Do nothing if a source that gives one thing at a time feeds all inputs that are no state and not fixed.

    Raises:
        InputError: There are more such inputs; the message names outputs that look like their next state.
    """
    filled = set() if state else _tokenized(session)  # with a state, the model runs bare
    free = [spec for spec in session.inputs if spec.name not in (*state, *fixed, *filled)]
    if len(free) + bool(filled) < 2:
        return
    taken = set(state.values())
    lines = []
    for spec in free if filled else free[1:]:
        like = [o.name for o in session.outputs if o.name not in taken and spec.shape and _same(spec, o)]
        pairs = " or ".join(f"--state {spec.name}={name}" for name in like)
        lines.append(f"{spec} {f'looks like a state: {pairs}' if like else f'by --fixed {spec.name}=NUMBER'}")
    raise InputError(
        f"{session.manifest.model} takes {', '.join(spec.name for spec in session.inputs)}, and the source "
        f"gives one of them: say where the others come from ({'; '.join(lines)}; in Python Recurrent)"
    )


def _tokenized(session: Session) -> set[str]:
    """Names of the inputs that one text fills."""
    return {name for step in _tokenizers(session) for name in (step.ids, step.mask, step.types)}


def _text_names(session: Session) -> set[str]:
    """Names of the inputs that stand for a text in a sample."""
    return {step.ids for step in _tokenizers(session)}


def _tokenizers(session: Session) -> list[Tokenize]:
    pipeline = session.manifest.pipeline
    return [step for step in (pipeline.preprocess if pipeline else ()) if isinstance(step, Tokenize)]


def _fed(session: Session, given: Container[str]) -> list[str]:
    """Names of the inputs that samples feed.

    Raises:
        InputError: There are none.
    """
    fed = [spec.name for spec in session.inputs if spec.name not in given]
    if not fed:
        raise InputError("every input of the model is a state or fixed: none is left for the samples")
    return fed


def _check(session: Session, state: Mapping[str, str], fixed: Mapping[str, Any]) -> None:
    inputs = {spec.name: spec for spec in session.inputs}
    outputs = {spec.name: spec for spec in session.outputs}
    problems = [
        f"no input {name!r} (there are {', '.join(inputs)})"
        for name in (*state, *fixed)
        if name not in inputs
    ]
    problems += [
        f"no output {name!r} (there are {', '.join(outputs)})"
        for name in state.values()
        if name not in outputs
    ]
    for before, after in state.items():
        if before in inputs and after in outputs and not _same(inputs[before], outputs[after]):
            one, other = inputs[before], outputs[after]
            problems.append(
                f"state {before!r} is {one.dtype}{list(one.shape)}, and {after!r} gives "
                f"{other.dtype}{list(other.shape)}"
            )
    if problems:
        raise InputError(f"{session.manifest.model} cannot be called so: {'; '.join(problems)}")


def _same(one: Any, other: Any) -> bool:
    """Whether two specs may be the same tensor: a named size is any."""
    sizes = zip(one.shape, other.shape, strict=False)
    return (
        one.dtype == other.dtype
        and len(one.shape) == len(other.shape)
        and all(a == b or isinstance(a, str) or isinstance(b, str) for a, b in sizes)
    )


class Hosted:
    """A model of a host, by name: loaded when it is called, sent where the host's split says."""

    def __init__(self, host: Host, name: str, version: str | None = None, *, key: str | None = None) -> None:
        """Name a model.

        Args:
            host: It stays open.
            name: Of the model.
            version: None for the default.
            key: Who asks, so that a split is the same each time.
        """
        self._host, self._name, self._version, self._key = host, name, version, key

    def predict(self, sample: object) -> dict[str, Any]:
        """Run the whole pipeline of the model; see ``Session.predict`` and ``Host.session``."""
        with self._host.session(self._name, self._version, key=self._key) as session:
            return session.predict(sample)
