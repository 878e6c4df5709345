"""Sessions: what an application holds of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from numpy.typing import NDArray

from edgec.artifact import Artifact, EngineSpec, Manifest, TensorSpec
from edgec.errors import BackendUnavailableError, InferenceError, PlacementError
from edgec.runtime._inputs import check_inputs, input_test
from edgec.runtime._placement import placement_problems
from edgec.runtime._self_test import SelfTestResult, run_golden_vectors
from edgec.runtime.backends import LoadOptions, Program, get_backend

if TYPE_CHECKING:
    from pathlib import Path

    from edgec.runtime.pipeline import Processor


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    allow_fallback: bool = True,
    strict: bool = True,
    self_test: bool = True,
) -> Session:
    """Load an artifact with the engine it was made for.

    Where that engine is not on this device and the manifest declares a fallback, the fallback runs
    the model, the session's `state` says so, and a warning is logged once.

    Args:
        path: Of the artifact.
        threads: Threads that one inference may use; None for the engine's own choice.
        cache_dir: Where the engine may keep what it compiled, so that the next start is faster; the
            directory is made if need be. None to keep nothing. TensorRT looks here for what
            ``edgec finish`` built, and in ``~/.cache/edgec/engines`` if None.
        delegate: Shared library through which LiteRT reaches the device's NPU: ``libedgetpu.so.1``. It is
            code that this process loads, so that no artifact can name one.
        allow_fallback: Whether the declared fallback may run the model.
        strict: Whether to refuse a model of which a part would run elsewhere, or compute more coarsely, than
            the engine that runs it promises in the manifest. False to load it, and log a warning once.
        self_test: Whether to run a few of the golden vectors (at most 4, and none after 2 seconds), unless
            they passed before with the same artifact, engine and CPU; ``~/.cache/edgec/self-tests``
            remembers that.

    Raises:
        ArtifactError: The artifact cannot be read, or is not sound.
        BackendUnavailableError: The engine is not on this device, nor a fallback that is allowed.
        PlacementError: Part of the model would run elsewhere, or more coarsely; it lists the nodes.
        SelfTestError: This device computes something else than the source model.
        InferenceError: The engine refuses the model.
        ValueError: `threads` is below 1.
    """

    from pathlib import Path

    if threads is not None and threads < 1:
        raise ValueError(f"expected at least 1 thread, got {threads}")
    options = LoadOptions(
        threads=threads,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        delegate=None if delegate is None else Path(delegate),
    )
    artifact = Artifact.open(path)
    try:
        return _open_session(artifact, options, allow_fallback, _Checks(strict, self_test))
    except BaseException:
        artifact.close()
        raise


class Session:
    """A model, loaded and ready to run; safe to use from several threads. Close it, or use ``with``.

    Attributes:
        manifest: What the artifact says of itself.
        inputs: What `run` takes, in the model's order.
        outputs: What `run` gives, in the model's order.
        engine: Name of the engine that runs it: ``onnxruntime``.
        state: ``ready``, or ``fallback`` where not the artifact's engine but its fallback runs it.
    """

    manifest: Manifest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: str
    state: str

    def __init__(self, artifact: Artifact, program: Program, engine: str, state: str) -> None:
        """Use `load`."""
        self.manifest = artifact.manifest
        self.inputs = self.manifest.inputs
        self.outputs = self.manifest.outputs
        self.engine = engine
        self.state = state
        self._artifact = artifact
        self._program: Program | None = program
        self._conforms = input_test(self.inputs)
        self._run = program.run
        self._making_processor = Lock()
        self._processor: Processor | None = None

    @property
    def engine_version(self) -> str:
        """Version of the engine, as it says itself."""
        return self._open_program().engine_version

    @property
    def precision(self) -> str:
        """Effective precision: ``fp32``, ``int8``, ``mixed`` ...

        Read back from the engine where it tells, and then `precisions` says of how many layers; else
        what the artifact promises. ONNX Runtime tells after a test run only, which the first access
        to either makes (it takes as long as loading the model again).
        """
        return self._open_program().precision

    @property
    def precisions(self) -> Mapping[str, int]:
        """How many layers compute in which precision: ``{"int8": 20, "fp32": 1}``.

        Of the layers that do the arithmetic, as the engine tells; empty where it does not. See `precision`.
        """
        return self._open_program().precisions

    @property
    def placement(self) -> Mapping[str, int]:
        """How many nodes run on which device, read back from the engine: ``{"CPU": 12}``."""
        return self._open_program().placement

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one inference and wait for its outputs.

        Args:
            inputs: One array per spec of `inputs`, by name: ``{"image": uint8[1, 224, 224, 3]}``.

        Returns:
            One new array per spec of `outputs`, by name: ``{"scores": float32[1, 1000]}``.

        Raises:
            InputError: A name, dtype or shape differs from `inputs`; nothing was run.
            InferenceError: The engine failed, and the session can be used again; or it is closed.
        """
        if not self._conforms(inputs):
            check_inputs(self.inputs, inputs)
        return self._run(inputs)

    def predict(self, sample: object) -> dict[str, Any]:
        """Run the whole pipeline of the model, from a sample to a prediction.

        Args:
            sample: What the pipeline of the artifact takes: an array, the path of an image, a text, or
                a dict by name of the input. Without a pipeline: what `run` takes.

        Returns:
            What the pipeline gives: ``{"classes": int64[k], "scores": float32[k], "labels": [...]}`` of
            a classification. Without a pipeline: what `run` gives.

        Raises:
            PipelineError: The sample does not fit the pipeline.
            InputError: The inputs made of it do not fit the model; nothing was run.
            InferenceError: The engine failed, and the session can be used again; or it is closed.
        """
        processor = self._processor or self._make_processor()
        inputs, context = processor.preprocess(sample)
        return processor.postprocess(self.run(inputs), context)

    def self_test(self) -> SelfTestResult:
        """Run the golden vectors of the artifact and compare what comes out with what they promise.

        Raises:
            ArtifactError: The golden vectors are damaged.
            InferenceError: The engine failed, or the session is closed.
        """
        self._open_program()
        return run_golden_vectors(self.run, self._artifact.golden(), self.manifest.golden)

    def close(self) -> None:
        """Free the model and release the file; calling it again does nothing.

        A call that still runs in another thread ends as it would have; a later one is refused.
        """
        program, self._program = self._program, None
        self._run = _refuse
        if program is not None:
            program.close()
            self._artifact.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._program is None else self.state
        return f"<Session {self.manifest.model} on {self.engine}: {state}>"

    def _open_program(self) -> Program:
        program = self._program
        if program is None:
            _refuse({})
        return program

    def _make_processor(self) -> Processor:
        from edgec.runtime.pipeline import Processor  # here, because bare tensors do without it

        with self._making_processor:
            if self._processor is None:
                self._open_program()
                self._processor = Processor(
                    self.manifest.pipeline, self.inputs, self.outputs, self._artifact.read
                )
            return self._processor


class _Checks(NamedTuple):
    """What `load` holds a program to."""

    strict: bool
    self_test: bool

    def check(self, artifact: Artifact, program: Program, spec: EngineSpec, options: LoadOptions) -> None:
        problems = placement_problems(program, spec)
        if problems:
            sentence = f"{artifact.path}: {'; '.join(problems)}"
            if self.strict:
                raise PlacementError(
                    f"{sentence}; compile it for what is here, or load(..., strict=False) to run it so"
                )
            _warn(sentence)
        if self.self_test:
            from edgec.runtime._load_test import test_at_load

            test_at_load(artifact, program, spec, options)


def _open_session(artifact: Artifact, options: LoadOptions, allow_fallback: bool, checks: _Checks) -> Session:
    manifest = artifact.manifest
    try:
        program = _load_program(artifact, manifest.engine, options, checks)
        return Session(artifact, program, manifest.engine.name, "ready")
    except BackendUnavailableError as e:
        if manifest.fallback is None:
            raise BackendUnavailableError(f"{artifact.path}: {e}; the artifact declares no fallback") from e
        if not allow_fallback:
            raise BackendUnavailableError(
                f"{artifact.path}: {e}; its fallback, {manifest.fallback.name}, is not allowed here"
            ) from e
        _warn(
            f"{artifact.path}: {manifest.engine.name} is unavailable ({e}); "
            f"running on the declared fallback, {manifest.fallback.name}"
        )
        program = _load_program(artifact, manifest.fallback, options, checks)
        return Session(artifact, program, manifest.fallback.name, "fallback")


def _load_program(artifact: Artifact, spec: EngineSpec, options: LoadOptions, checks: _Checks) -> Program:
    manifest = artifact.manifest
    options = replace(options, content_digest=artifact.content_digest, recipe=manifest.recipe)
    program = get_backend(spec.name).load(spec, artifact, manifest.inputs, manifest.outputs, options)
    try:
        checks.check(artifact, program, spec, options)
    except BaseException:
        program.close()
        raise
    return program


def _warn(message: str) -> None:
    from logging import getLogger  # here, because its import takes 4 ms

    getLogger("edgec.runtime").warning("%s", message)


def _refuse(inputs: Mapping[str, NDArray[Any]]) -> NoReturn:
    raise InferenceError("the session is closed: load the artifact again")
