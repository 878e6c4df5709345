"""Chains: several artifacts, and the steps between them, as one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgec.artifact import Artifact, TensorSpec
from edgec.errors import EdgecError, IncompatibleArtifactError, InferenceError, InputError, PipelineError
from edgec.runtime._inputs import input_test
from edgec.runtime._session import Session
from edgec.runtime.chains._declaration import ChainSpec
from edgec.runtime.chains._models import prediction_of, sample_color
from edgec.runtime.chains._plan import Operation, State, Values, first_values
from edgec.runtime.chains._readers import reader
from edgec.runtime.chains._stages import plan_stages
from edgec.runtime.chains._stream import ChainStream

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgec.runtime._pool import Pool
    from edgec.runtime._self_test import SelfTestResult


class Chain:
    """Several models, and the steps between them, as one; safe to use from several threads.

    It is called as a `Session` is. Where a stage keeps something from call to call, each stream of
    calls has a state of its own: call what `stream` gives, or pass a state of `new_state`.

    Attributes:
        manifest: What the chain's file says.
        inputs: What `run` takes. An image is uint8[height, width, channels].
        outputs: What `run` gives, of that what is a tensor.
        is_tensors: Whether that is all: inputs and outputs are tensors.
        sessions: The session of each stage that runs an artifact; the chain closes them.
    """

    manifest: ChainSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    is_tensors: bool
    sessions: Mapping[str, Session]

    def __init__(
        self,
        spec: ChainSpec,
        sessions: Mapping[str, Session],
        pool: Pool | None = None,
        priority: float = 0.0,
    ) -> None:
        """Use `load_chain`."""
        self.manifest = spec
        self.sessions = dict(sessions)
        self.inputs = spec.input_specs
        planned = plan_stages(spec, self.sessions)
        self._stages, self._state, self._results = planned.stages, planned.state, planned.results
        self.outputs = tuple(
            TensorSpec(name, value.dtype, value.shape)
            for name, value in planned.given.items()
            if value.kind == "tensor" and value.dtype != "complex64"
        )
        self.is_tensors = len(self.outputs) == len(self._results) and all(
            spec.dtype != "object" for spec in self.inputs
        )
        self._readers = {
            name: reader(declared, self.inputs[i]) for i, (name, declared) in enumerate(spec.inputs.items())
        }
        self._kept = self._state.keys()
        self._conforms = input_test(self.inputs)
        self._pool = pool
        self._priority = priority

    @property
    def state_specs(self) -> tuple[TensorSpec, ...]:
        """What a stream keeps from call to call, by the names in a state: ``first.input_3``."""
        return tuple(spec for spec, _ in self._state.values())

    @property
    def engine(self) -> str:
        """Names of the engines: ``onnxruntime``, or ``onnxruntime+openvino``."""
        return "+".join(dict.fromkeys(session.engine for session in self.sessions.values())) or "none"

    @property
    def engine_version(self) -> str:
        """Versions of the engines, as they say themselves."""
        versions = {session.engine: session.engine_version for session in self.sessions.values()}
        return "+".join(versions.values())

    @property
    def state(self) -> str:
        """``ready``, or ``fallback`` where the declared fallback of any artifact runs."""
        states = {session.state for session in self.sessions.values()}
        return "fallback" if "fallback" in states else "ready"

    @property
    def content_digest(self) -> str:
        """Digest of what the chain is: its declaration, and the content of its artifacts."""
        contents = [session.content_digest for session in self.sessions.values()]
        return "sha256:" + sha256("\n".join([self.manifest.digest, *contents]).encode()).hexdigest()

    def new_state(self) -> State:
        """Return the state of a stream before its first call: arrays by name, see `state_specs`."""
        return {name: first_values(spec, initial) for name, (spec, initial) in self._state.items()}

    def stream(self) -> ChainStream:
        """Return a stream of calls with a state of its own."""
        return ChainStream(
            self, self._run_tensors, lambda sample, state: self._advance(self._read(sample), state)
        )

    def run(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """Run the chain on arrays.

        Args:
            inputs: One array per spec of `inputs`, by name; a text for a text.
            state: Of the stream, from `new_state`; it is changed to that after the call, and stays as it was
                where the call fails. For one call at a time.

        Returns:
            By name of the output: new arrays, lists of texts, lists of predictions.

        Raises:
            InputError: An input differs, or the chain keeps a state and none was given; nothing was run.
            PipelineError: A step cannot work on what it got; the message names the stage.
            InferenceError: An engine failed; the message names the stage.
        """
        return self._run_tensors(inputs, self._checked(state))

    def _run_tensors(self, inputs: Mapping[str, Any], state: State) -> dict[str, Any]:
        if not self._conforms(inputs):
            self._check(inputs)
        return self._advance(dict(inputs), state)

    def _check(self, inputs: Mapping[str, Any]) -> None:
        if inputs.keys() != self._readers.keys():
            raise InputError(
                f"expected the inputs {', '.join(map(str, self.inputs))}; "
                f"got {', '.join(map(repr, inputs)) or 'none'}"
            )
        for spec in self.inputs:
            value = inputs[spec.name]
            if spec.dtype != "object":
                spec.check(value)
            elif not isinstance(value, str):
                raise InputError(f"expected a text as input {spec.name!r}, got {type(value).__name__}")

    def predict(self, sample: object, state: State | None = None) -> dict[str, Any]:
        """Run the chain on a sample.

        Args:
            sample: What the only input takes, or a mapping by name of the input: an array or list, with or
                without a batch axis of 1; the path or bytes of an image; a text.
            state: As of `run`.

        Returns:
            What `run` gives.

        Raises:
            PipelineError: The sample does not fit, or a step cannot work on what it got.
            InputError: The chain keeps a state and none was given; nothing was run.
            InferenceError: An engine failed; the message names the stage.
        """
        return self._advance(self._read(sample), self._checked(state))

    def _read(self, sample: object) -> Values:
        if not (isinstance(sample, Mapping) and sample.keys() <= self._readers.keys()):
            if len(self._readers) != 1:
                raise PipelineError(
                    f"the chain takes several inputs: give a mapping by name, with {', '.join(self._readers)}"
                )
            sample = {next(iter(self._readers)): sample}
        missing = self._readers.keys() - sample.keys()
        if missing:
            raise PipelineError(f"the sample lacks input {', '.join(sorted(missing))}")
        return {name: read(sample[name]) for name, read in self._readers.items()}

    def _checked(self, state: State | None) -> State:
        if state is None:
            if self._state:
                raise InputError(
                    f"the chain keeps a state ({', '.join(self._state)}), which belongs to one stream of "
                    "calls: call chain.stream(), or pass state=chain.new_state()"
                )
            return {}
        if state.keys() != self._kept:
            raise InputError(
                f"expected a state with {', '.join(self._state) or 'nothing'}, "
                f"got {', '.join(state) or 'nothing'}"
            )
        return state

    def _advance(
        self, values: Values, state: State, stages: Iterable[tuple[str, Operation]] = ()
    ) -> dict[str, Any]:
        after: State = {}
        name = ""
        try:
            for name, operation in stages or self._stages:  # noqa: B007 - the error names the stage
                operation(values, state, after)
        except (InferenceError, PipelineError) as e:
            raise _named(e, name) from e
        state.update(after)
        results = {}
        for key, reference in self._results:
            results[key] = values[reference]
        return results

    def time_stages(
        self, sample: object, state: State | None, lap: Callable[[str], object]
    ) -> dict[str, Any]:
        """Do what `predict` does; call `lap` with ``inputs`` when they are read, and after each stage."""
        state = self._checked(state)
        values = self._read(sample)
        lap("inputs")

        def timed(name: str, operation: Operation) -> Operation:
            def run(values: Values, state: State, after: State) -> None:
                operation(values, state, after)
                lap(name)

            return run

        stages = [(name, timed(name, operation)) for name, operation in self._stages]
        return self._advance(values, state, stages)

    def submit(
        self,
        inputs: Mapping[str, Any],
        *,
        state: State | None = None,
        priority: float | None = None,
        deadline_ms: float | None = None,
    ) -> Future[dict[str, Any]]:
        """Queue one `run` in the chain's pool and return at once; see `Session.submit`.

        Raises:
            OverloadedError: Too many calls wait in the pool.
        """
        pool = self._pool
        if pool is None:
            from edgec.runtime._pool import default_pool

            pool = default_pool()
        rank = self._priority if priority is None else priority
        call: Callable[[Any], dict[str, Any]] = lambda given: self.run(given, state)  # noqa: E731
        return pool.submit(call, inputs, priority=rank, deadline_ms=deadline_ms)

    async def arun(
        self,
        inputs: Mapping[str, Any],
        *,
        state: State | None = None,
        priority: float | None = None,
        deadline_ms: float | None = None,
    ) -> dict[str, Any]:
        """Run once without blocking the event loop; see `submit`."""
        from asyncio import wrap_future

        return await wrap_future(self.submit(inputs, state=state, priority=priority, deadline_ms=deadline_ms))

    def self_test(self) -> dict[str, SelfTestResult]:
        """Run the golden vectors of every artifact; the results by stage.

        Raises:
            EdgecError: As of `Session.self_test`; the message names the stage.
        """
        results = {}
        for name, session in self.sessions.items():
            with at_stage(name):
                results[name] = session.self_test()
        return results

    def swap(self, stage: str, path: str | Path, *, drain_s: float = 10.0) -> None:
        """Run another artifact in a stage from now on; see `Session.swap`. Streams keep their state.

        Raises:
            ValueError: There is no such stage, or it runs no artifact.
            IncompatibleArtifactError: It has other inputs, outputs, kind of sample or labels.
            EdgecError: As of `Session.swap`; the message names the stage.
        """
        session = self.sessions.get(stage)
        if session is None:
            raise ValueError(
                f"no stage {stage!r} runs an artifact; those that do: {', '.join(self.sessions)}"
            )
        with at_stage(stage):
            with Artifact.open(path) as artifact:
                new, old = artifact.manifest, session.manifest
            if sample_color(new) != sample_color(old) or prediction_of(new) != prediction_of(old):
                raise IncompatibleArtifactError(
                    f"{path} takes another kind of sample, or gives another kind of prediction or other "
                    "labels, on which the chain was planned: load the chain with it instead"
                )
            session.swap(path, drain_s=drain_s)

    def close(self) -> None:
        """Free all models; calling it again does nothing."""
        for session in self.sessions.values():
            session.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Chain {self.manifest.model} of {', '.join(self.manifest.stages)}>"


@contextmanager
def at_stage(stage: str) -> Iterator[None]:
    """Say, in an error that is raised within, which stage it is about."""
    try:
        yield
    except EdgecError as e:
        # In place, because some errors carry attributes that their own arguments make.
        e.args = (f"stage {stage!r}: {e}", *e.args[1:])
        raise


def _named(error: InferenceError | PipelineError, stage: str) -> InferenceError | PipelineError:
    """Return an error of the same class that names its stage; all of these take one text."""
    return type(error)(f"stage {stage!r}: {error}")
