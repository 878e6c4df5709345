"""A chain as a model of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.artifact import TensorSpec
from edgec.errors import BackendUnavailableError, RequestError, SelfTestError, ServingError
from edgec.runtime import Isolation, Session, load
from edgec.runtime.chains import SUFFIX, Chain, ChainSpec, load_chain


class ServedChain:
    """A chain for which every request brings all that it depends on.

    What a stream keeps from call to call is an input and an output of the same name: ``first.input_3``.
    A client sends back what it got, zeros at first, so that servers can be many and may restart.

    Attributes:
        manifest: What the chain's file says.
        inputs: Of the chain, then its state.
        outputs: Of the chain, then its state.
        engine: Names of the engines.
        is_tensors: Whether all inputs and outputs are tensors.
    """

    def __init__(self, chain: Chain) -> None:
        """Take a chain, which `close` closes."""
        self._chain = chain
        self._state = chain.state_specs
        self.manifest: ChainSpec = chain.manifest
        self.inputs: tuple[TensorSpec, ...] = (*chain.inputs, *self._state)
        self.outputs: tuple[TensorSpec, ...] = (*chain.outputs, *self._state)
        self.engine = chain.engine
        self.is_tensors = chain.is_tensors

    def run(self, inputs: Mapping[str, NDArray[Any]], /) -> dict[str, Any]:
        """Run the chain once, from the state in the inputs; the state afterwards is among the outputs."""
        state = self._split(inputs)
        given = {
            spec.name: _text(inputs[spec.name]) if spec.dtype == "object" else inputs[spec.name]
            for spec in self._chain.inputs
        }
        outputs = self._chain.run(given, state)
        return outputs | state

    def predict(self, sample: object, /) -> dict[str, Any]:
        """Run the chain on a sample; with a state, on a mapping of arrays that has it."""
        if not self._state:
            return self._chain.predict(sample)
        if not isinstance(sample, Mapping):
            raise RequestError(
                f"the chain keeps a state: send an object with {', '.join(s.name for s in self.inputs)}"
            )
        state = self._split(sample)
        own = {name: value for name, value in sample.items() if name not in state}
        return self._chain.predict(own, state) | state

    def close(self) -> None:
        """Free all models."""
        self._chain.close()

    def _split(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        missing = [spec.name for spec in self._state if spec.name not in inputs]
        if missing:
            raise RequestError(f"the state lacks {', '.join(missing)}: send what came back, zeros at first")
        state = {}
        for spec in self._state:
            spec.check(inputs[spec.name])
            state[spec.name] = inputs[spec.name]
        return state


# What ONNX Runtime is asked for, by the device that is named.
_PROVIDERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "artifact": {},
    "cpu": {"CPU": {}},
    "cuda": {"CUDA": {}},
    "tensorrt": {"Tensorrt": {}, "CUDA": {}},
}


def load_served(
    path: Path, *, threads: int | None = None, isolate: bool = False, device: str = "artifact"
) -> Session | ServedChain:
    """Load an artifact, or the chain that a TOML file declares.

    Args:
        path: Of it.
        threads: Of one inference.
        isolate: Whether the artifact runs in a process of its own, which a call that it does not survive is
            made in once more; not for chains.
        device: Where ONNX Runtime runs it, as of `ServerOptions`: ``artifact`` for where it was compiled for,
            ``auto`` for CUDA where it starts; not for chains.

    Raises:
        EdgecError: It does not load.
    """
    if path.suffix.lower() == SUFFIX:
        if isolate:
            raise ServingError(f"{path} is a chain, and chains do not run in processes of their own")
        return ServedChain(load_chain(path, threads=threads))
    isolation: bool | Isolation = Isolation(retry=True) if isolate else False
    run = partial(load, path, threads=threads, isolate=isolation)
    if device != "auto":
        session = run(providers=_PROVIDERS[device])
        if device in ("cuda", "tensorrt") and session.engine not in ("onnxruntime", "tensorrt"):
            # A fleet's gateway has artifacts for all kinds of devices: it serves them.
            getLogger("edgec.serving").warning(
                "%s runs in %s, not on %s: only ONNX Runtime does", path.name, session.engine, device
            )
        return session
    try:
        return run(providers=_PROVIDERS["cuda"], allow_fallback=False)
    except (BackendUnavailableError, SelfTestError) as e:
        getLogger("edgec.serving").info("%s does not run on CUDA: %s", path.name, e)
        return run()


def _text(array: NDArray[Any]) -> str:
    if array.shape != (1,):
        raise RequestError(f"expected one text, shape [1], got {list(array.shape)}")
    value = np.asarray(array, object)[0]
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as e:
        raise RequestError("expected a text in UTF-8") from e
