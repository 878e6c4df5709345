"""One stream of calls of a chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

from edgec.runtime.chains._plan import State

if TYPE_CHECKING:
    from edgec.runtime.chains._chain import Chain

_Call = Callable[[Any, State], dict[str, Any]]


class ChainStream:
    """One stream of calls of a chain: called as a `Session` is, one call at a time, in order.

    Attributes:
        chain: What it runs; closing the stream leaves it open.
        inputs: Of the chain.
        outputs: Of the chain.
        manifest: Of the chain.
    """

    def __init__(self, chain: Chain, run: _Call, predict: _Call) -> None:
        """Use `Chain.stream`; `run` and `predict` trust the state, which nobody else has."""
        self.chain = chain
        self._run = run
        self._predict = predict
        self.inputs = chain.inputs
        self.outputs = chain.outputs
        self.manifest = chain.manifest
        self._lock = Lock()
        self._state = chain.new_state()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `Chain.run` does, with the state of this stream; it stays as it was on failure."""
        with self._lock:
            return self._run(inputs, self._state)

    def predict(self, sample: object) -> dict[str, Any]:
        """Do what `Chain.predict` does, with the state of this stream; it stays as it was on failure."""
        with self._lock:
            return self._predict(sample, self._state)

    def reset(self) -> None:
        """Begin anew, as before the first call."""
        with self._lock:
            self._state = self.chain.new_state()

    def close(self) -> None:
        """Begin anew; there is nothing else to give back."""
        self.reset()

    def __enter__(self) -> ChainStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
