"""Sessions: what an application holds of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakSet

from numpy.typing import NDArray

from edgec.artifact import Artifact, EngineSpec, Manifest, TensorSpec
from edgec.errors import BackendUnavailableError, InferenceError, InputError, PlacementError
from edgec.runtime._inputs import check_inputs, input_test
from edgec.runtime._placement import other_arch, placement_problems
from edgec.runtime._self_test import SelfTestResult, run_golden_vectors
from edgec.runtime.backends import LoadOptions, Program, get_backend

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from edgec.runtime._buffers import BoundCall
    from edgec.runtime._cache import ResultCache
    from edgec.runtime._isolation import Isolation
    from edgec.runtime._observer import ObserveOptions, Observer
    from edgec.runtime._pool import Pool
    from edgec.runtime._shadow import Shadow
    from edgec.runtime.fallback import Fallback
    from edgec.runtime.fallback._asking import Asking
    from edgec.runtime.pipeline import Processor

_Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    providers: Mapping[str, Mapping[str, Any]] | None = None,
    allow_fallback: bool = True,
    strict: bool = True,
    self_test: bool = True,
    pool: Pool | None = None,
    priority: float = 0.0,
    cache: ResultCache | None = None,
    isolate: bool | Isolation = False,
    fallback: Fallback | None = None,
) -> Session:
    """Load an artifact with the engine it was made for.

    Where that engine is not on this device and the manifest declares a fallback, the fallback runs
    the model, the session's `state` says so, and a warning is logged once.

    On another kind of CPU than its target's the artifact is loaded too, since payloads are portable and the
    self-test says whether they compute the same; a warning says that its precision was chosen, and its
    latency stated, for the other one.

    Args:
        path: Of the artifact.
        threads: Threads that one inference may use; None for what the pool says, without one for the
            engine's own choice.
        cache_dir: Where the engine may keep what it compiled, so that the next start is faster; the
            directory is made if need be. None to keep nothing. TensorRT looks here for what
            ``edgec finish`` built, and in ``~/.cache/edgec/engines`` if None.
        delegate: Shared library through which LiteRT reaches the device's NPU: ``libedgetpu.so.1``. It is
            code that this process loads, so that no artifact can name one.
        providers: What ONNX Runtime is to try before the CPU where it runs the model, as engine or as
            fallback, with options: ``{"Tensorrt": {"trt_max_workspace_size": 2**30}, "CUDA": {}}``. The
            first is then what placement is held to. None for what the artifact says.
        allow_fallback: Whether the declared fallback may run the model.
        strict: Whether to refuse a model of which a part would run elsewhere, or compute more coarsely, than
            the engine that runs it promises in the manifest. False to load it, and log a warning once.
        self_test: Whether to run a few of the golden vectors (at most 4, and none after 2 seconds), unless
            they passed before with the same artifact, engine and CPU; ``~/.cache/edgec/self-tests``
            remembers that.
        pool: Runs what is submitted; None for one that all sessions without a pool share.
        priority: Of what is submitted, unless `Session.submit` says otherwise: a higher one goes first.
        cache: Answers inputs that came before; None, as a rule, for running the model each time.
        isolate: Whether the engine runs in a process of its own, so that one that crashes, hangs or leaks
            fails a call with `IsolationError` and no more: the process is started again. `Isolation` says how
            it is treated. Calls then take turns, and each takes some 0.1 ms longer. Linux only.
        fallback: A server that answers where this device cannot, or is not sure enough; None, as a rule, for
            no input ever leaving it. What `run` and `predict` give is then an `Answer`, which says whence it
            came.

    Raises:
        ArtifactError: The artifact cannot be read, or is not sound.
        BackendUnavailableError: The engine is not on this device, nor a fallback that is allowed.
        PlacementError: Part of the model would run elsewhere, or more coarsely; it lists the nodes.
        SelfTestError: This device computes something else than the source model.
        InferenceError: The engine refuses the model.
        ValueError: `fallback` asks for a confidence that the artifact does not have; `threads` is not 1 to
            1024, or an option of a provider is neither text nor a number.
    """

    from pathlib import Path

    if threads is not None:
        from edgec.runtime._pool import check_threads

        check_threads(threads)
    if providers:
        from edgec.runtime.backends._providers import check_options

        check_options(providers)
    options = LoadOptions(
        threads=pool.threads if threads is None and pool is not None else threads,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        delegate=None if delegate is None else Path(delegate),
        providers={} if providers is None else providers,
    )
    artifact = Artifact.open(path)
    try:
        checks = _Checks(strict, self_test, _isolation(isolate))
        open_here = partial(_open_session, artifact, options, allow_fallback, checks)
        try:
            session = open_here() if pool is None else pool.run_here(open_here)
        except InferenceError as e:
            if fallback is None:
                raise
            session = _absent_session(artifact, fallback, e)
        session.set_pool(pool, priority)
        if cache is not None:
            session.use_cache(cache)
        if fallback is not None:
            session.use_fallback(fallback)
        session.set_reload(
            partial(
                load, threads=threads, cache_dir=cache_dir, delegate=delegate, providers=providers,
                allow_fallback=allow_fallback, strict=strict, self_test=self_test, pool=pool,
                priority=priority, isolate=isolate, fallback=fallback,
            )
        )  # fmt: skip
        artifact.give_back_pages()
        return session
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
        fallback_reason: Why the fallback runs it; empty where it does not.
    """

    manifest: Manifest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: str
    fallback_reason: str

    def __init__(
        self, artifact: Artifact, program: Program, engine: str, state: str, fallback_reason: str = ""
    ) -> None:
        """Use `load`."""
        self.manifest = artifact.manifest
        self.inputs = self.manifest.inputs
        self.outputs = self.manifest.outputs
        self.engine = engine
        self._state = state
        self.fallback_reason = fallback_reason
        self._artifact = artifact
        self._program: Program | None = program
        self._conforms = input_test(self.inputs)
        self._run: _Run = program.run
        self._changing = Lock()
        # With the program that it was made for: a swap may change how a model wants its inputs.
        self._processor: tuple[Processor, _Run] | None = None
        self._plain_processor: Processor | None = None
        self._bound: WeakSet[BoundCall] = WeakSet()
        self._swapping = Lock()
        self._reload: Callable[[str | Path], Session] = load
        self._pool: Pool | None = None
        self._priority = 0.0
        self._observer: Observer | None = None
        self._shadow: Shadow | None = None
        self._cache: ResultCache | None = None
        self._asking: Asking | None = None

    @property
    def state(self) -> str:
        """``ready``, or ``fallback`` where not the artifact's engine but its fallback runs it, or ``remote``
        where nothing here can and a server is asked.

        Where it runs in a process of its own: ``restarting`` while that is started again, ``crash-loop``
        while it fails again and again.
        """
        trouble: str = getattr(self._program, "trouble", "")
        return trouble or self._state

    @property
    def engine_version(self) -> str:
        """Version of the engine, as it says itself."""
        return self._open_program().engine_version

    @property
    def precision(self) -> str:
        """Effective precision: ``fp32``, ``int8``, ``mixed`` ...

        Of the engine that runs it here: where `state` is ``fallback``, of the fallback, while
        ``manifest.engine.precision`` is what the artifact's own engine would compute in. TensorRT's int8, for
        one, is ``fp32`` on its fallback: arithmetic in float, rounded to int8's steps between layers, so
        that its outputs are those of int8 and its speed is not.

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

    @property
    def content_digest(self) -> str:
        """Digest of what the artifact is: ``sha256:5e8f...``."""
        return self._artifact.content_digest

    @property
    def observer(self) -> Observer | None:
        """What observes it; None where nothing does."""
        return self._observer

    @property
    def pool(self) -> Pool | None:
        """What runs calls that are submitted; None for the pool that all sessions without one share."""
        return self._pool

    @property
    def size_bytes(self) -> int:
        """Size of the artifact."""
        return self._artifact.size_bytes

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run one inference and wait for its outputs.

        Args:
            inputs: One array per spec of `inputs`, by name: ``{"image": uint8[1, 224, 224, 3]}``.
            outputs: Arrays of yours that outputs are written to, by name; contiguous in C order. The others
                are new.

        Returns:
            One array per spec of `outputs`, by name: ``{"scores": float32[1, 1000]}``. New ones, and those
            of the argument `outputs`.

        Raises:
            InputError: A name, dtype or shape differs from `inputs`; nothing was run. Or a buffer does not
                fit its output.
            InferenceError: The engine failed, and the session can be used again; or it is closed.
        """
        if not self._conforms(inputs):
            self._check(inputs)
        if outputs is not None:
            return self._run_into(inputs, outputs)
        run = self._run
        try:
            return run(inputs)
        except InferenceError:
            if self._run is run:
                raise
        return self.run(inputs)  # the session was swapped meanwhile

    def run_batch(
        self, samples: Sequence[Mapping[str, NDArray[Any]]], *, max_batch: int = 32
    ) -> list[dict[str, NDArray[Any]]]:
        """Run several inferences, as few calls of the engine as the model allows.

        Where every input and output has the same named dimension in front, neighbours whose other sizes
        agree are one call; else, and in int8-dynamic, whose scales would depend on the batch, each is a
        call of its own.

        Args:
            samples: Each what `run` takes.
            max_batch: Most rows of one call, so that memory stays bounded.

        Returns:
            What `run` gives, for each sample in its order.

        Raises:
            InputError: A sample does not fit; nothing was run.
            InferenceError: The engine failed, or the session is closed.
            ValueError: `max_batch` is below 1.
        """
        from edgec.runtime._batches import grouped, join, rows, split, why_not_batched

        if max_batch < 1:
            raise ValueError(f"expected a max_batch of at least 1, got {max_batch}")
        for sample in samples:
            self._check(sample)
        if why_not_batched(self.manifest, self.promised.precision):
            return [self.run(sample) for sample in samples]
        results: list[dict[str, NDArray[Any]]] = []
        for group in grouped(samples, max_batch):
            sizes = [rows(call) for call in group]
            results += split(self.run(join(group)), sizes) if len(group) > 1 else [self.run(group[0])]
        return results

    def bind(
        self,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        outputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> BoundCall:
        """Return a call over fixed arrays, which saves what checks and copies cost.

        The model runs once for it.

        Args:
            inputs: Arrays that each call reads, contiguous in C order; None for new ones, of zeros.
            outputs: Arrays that each call writes; those that are missing are made.

        Raises:
            InputError: An array does not fit, or `inputs` is needed, for a dimension has a name.
            InferenceError: The engine failed, or the session is closed.
        """
        from edgec.runtime._buffers import BoundCall, check_inputs_bindable, check_outputs, empty_inputs

        inputs = dict(empty_inputs(self.inputs) if inputs is None else inputs)
        check_inputs(self.inputs, inputs)
        check_inputs_bindable(inputs)
        check_outputs(self.outputs, outputs or {})
        # Only a run tells what shapes named dimensions come to.
        bound = BoundCall(self._open_program, inputs, self.run(inputs, outputs or {}), self._watched)
        bound()
        self._bound.add(bound)
        return bound

    def submit(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        priority: float | None = None,
        deadline_ms: float | None = None,
    ) -> Future[dict[str, NDArray[Any]]]:
        """Queue one inference in the session's pool and return at once.

        Args:
            inputs: As of `run`; leave the arrays as they are until the future is done.
            priority: Of this call; None for that of the session.
            deadline_ms: From now: where it has not begun by then, it fails with `DeadlineError`.

        Returns:
            What `run` gives, later. Cancelling it works until it runs.

        Raises:
            InputError: The inputs do not fit; nothing was queued.
            OverloadedError: Too many calls wait in the pool.
        """
        if not self._conforms(inputs):
            self._check(inputs)
        pool = self._pool
        if pool is None:
            from edgec.runtime._pool import default_pool

            pool = default_pool()
        rank = self._priority if priority is None else priority
        if self._observer is not None:
            from edgec.runtime._observer import submit_observed

            queue = partial(submit_observed, self._observer, pool, self.run, inputs, rank, deadline_ms)
        else:
            queue = partial(pool.submit, self.run, inputs, priority=rank, deadline_ms=deadline_ms)
        return queue() if self._asking is None else self._asking.submit(self, queue, inputs)

    async def arun(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        priority: float | None = None,
        deadline_ms: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run one inference without blocking the event loop; see `submit`.

        A task that is cancelled takes its call out of the queue; one that runs already ends unheard.
        """
        from asyncio import wrap_future

        return await wrap_future(self.submit(inputs, priority=priority, deadline_ms=deadline_ms))

    def set_pool(self, pool: Pool | None, priority: float = 0.0) -> None:
        """Run what is submitted from now on elsewhere; see `load`.

        Args:
            pool: None for the one that all sessions without a pool share.
            priority: Of what is submitted.
        """
        self._pool = pool
        self._priority = priority

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
        made = self._processor or self._make_processor()
        processor, run = made
        inputs, context = processor.preprocess(sample)
        if not self._conforms(inputs):
            self._check(inputs)
        try:
            values = run(inputs)
        except InferenceError:
            if self._run is run:
                raise
            return self.predict(sample)  # the session was swapped meanwhile
        return processor.postprocess(values, context)

    def predict_batch(self, samples: Sequence[object], *, max_batch: int = 32) -> list[dict[str, Any]]:
        """Run the whole pipeline on several samples, as few calls of the engine as `run_batch` makes of them.

        Args:
            samples: Each what `predict` takes.
            max_batch: Most rows of one call, so that memory stays bounded.

        Returns:
            What `predict` gives, for each sample in its order.

        Raises:
            PipelineError, InputError, InferenceError: As of `predict`, for any of them.
            ValueError: `max_batch` is below 1.
        """
        made = self._processor or self._make_processor()
        prepared = [made[0].preprocess(sample) for sample in samples]
        outputs = self.run_batch([inputs for inputs, _ in prepared], max_batch=max_batch)
        if self._processor is not made:  # swapped meanwhile, for a model that may want its inputs otherwise
            return self.predict_batch(samples, max_batch=max_batch)
        return [
            made[0].postprocess(values, context)
            for values, (_, context) in zip(outputs, prepared, strict=True)
        ]

    def observe(self, options: ObserveOptions | None = None) -> Observer:
        """Count calls from now on, and look into some of them; see `Observer.take`.

        Without this, calls cost nothing more than before. It stays on when the session is swapped.

        Args:
            options: What to look at and what that may cost; None for the defaults.

        Raises:
            InferenceError: The session is closed.
        """
        from edgec.runtime._observer import Observer

        observer = Observer(options)
        self.set_observer(observer)
        return observer

    def set_observer(self, observer: Observer | None) -> None:
        """Let an observer see calls from now on, in place of the one that does; None for none.

        Args:
            observer: Of this session; or one that was of another session with the same artifact, which it
                goes on with.

        Raises:
            InferenceError: The session is closed.
        """
        with self._changing:
            self._open_program()
            self._observer = observer
            self._arrange()
        for bound in list(self._bound):
            bound.expire()

    def use_cache(self, cache: ResultCache | None) -> None:
        """Answer inputs that came before from a cache, from now on; see `ResultCache`.

        Calls made by `bind` do not ask it. A swap forgets the answers of the artifact before.

        Args:
            cache: None for running the model each time.

        Raises:
            InferenceError: The session is closed.
        """
        with self._changing:
            self._open_program()
            self._cache = cache
            self._arrange()

    def use_fallback(self, fallback: Fallback | None) -> None:
        """Ask a server from now on where this device cannot answer, or is not sure enough; see `load`.

        Calls made by `bind` do not ask it.

        Args:
            fallback: None for asking nobody.

        Raises:
            ValueError: It asks for a confidence that the artifact does not have.
            InferenceError: The session is closed.
        """
        asking = None
        if fallback is not None:
            from edgec.runtime.fallback._asking import Asking, check_confidence

            check_confidence(self.manifest, fallback)
            asking = Asking(fallback)
        with self._changing:
            self._open_program()
            before, self._asking = self._asking, asking
            self._arrange()
        if before is not None:
            before.close()

    def set_shadow(self, shadow: Shadow | None) -> None:
        """Let a candidate see a sample of the calls from now on; its answers are discarded.

        What is run by `bind`, or answered from a cache, it does not see.

        Args:
            shadow: None to end it.

        Raises:
            InferenceError: The session is closed.
        """
        with self._changing:
            self._open_program()
            self._shadow = shadow
            self._arrange()

    def self_test(self) -> SelfTestResult:
        """Run the golden vectors of the artifact and compare what comes out with what they promise.

        Raises:
            ArtifactError: The golden vectors are damaged.
            InferenceError: The engine failed, or the session is closed.
        """
        self._open_program()
        return run_golden_vectors(self.run, self._artifact.golden(), self.manifest.golden)

    def swap(self, path: str | Path, *, drain_s: float = 10.0) -> None:
        """Run another artifact from now on, without a call that fails or waits.

        The new one is loaded as this one was (same options, self-test included) and warmed up beside it; then
        all calls that begin go to it. Calls that run end on the old one, whose memory is then given back.
        Whatever goes wrong before leaves the session as it was. Meanwhile both are in memory.

        Args:
            path: Of an artifact with the same inputs and outputs.
            drain_s: How long to wait for calls of the old one; those that take longer end all the same,
                and a warning is logged.

        Raises:
            IncompatibleArtifactError: It has other inputs or outputs.
            ArtifactError, BackendUnavailableError, PlacementError, SelfTestError: As of `load`.
            InferenceError: It fails when it is warmed up, or the session is closed.
        """
        from edgec.runtime._swap import swap

        with self._swapping:
            swap(self, self._reload(path), drain_s)

    def exchange(self, other: Session) -> Session:
        """Take the model of another session, and give it this one's; calls go on. See `swap`, which checks.

        Args:
            other: With the same inputs and outputs; nobody calls it.

        Returns:
            `other`.

        Raises:
            InferenceError: This session is closed.
        """
        with self._changing:
            self._open_program()
            for name in (
                "manifest", "inputs", "outputs", "engine", "_state", "fallback_reason", "_artifact",
                "_program",
            ):  # fmt: skip
                mine = getattr(self, name)
                setattr(self, name, getattr(other, name))
                setattr(other, name, mine)
            self._processor = self._plain_processor = other._processor = other._plain_processor = None
            other._arrange()
            self._arrange()  # from here on
            if self._cache is not None:
                self._cache.clear(other.content_digest)
        for bound in list(self._bound):
            bound.expire()
        return other

    def close(self) -> None:
        """Free the model and release the file; calling it again does nothing.

        A call that still runs in another thread ends as it would have; a later one is refused.
        """
        with self._changing:
            program, self._program = self._program, None
            self._run = _refuse
            self._processor = None  # so that predictions are refused too
        if program is not None:
            program.close()
            self._artifact.close()
            if self._asking is not None:
                self._asking.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._program is None else self.state
        return f"<Session {self.manifest.model} on {self.engine}: {state}>"

    def _arrange(self) -> None:
        """Put what watches calls around those of the program."""
        run: _Run = self._open_program().run
        if self._observer is not None:
            run = self._observer.watch(self, run)
        if self._shadow is not None:
            run = self._shadow.around(run)
        if self._cache is not None:
            run = self._cache.around(self, run, self._observer)
        if self._asking is not None:
            run = self._asking.around(self, run, self._observer)
        self._run = run
        self._processor = None

    def _watched(self, run: _Run) -> _Run:
        """Return what runs the model in another way than `_run` does, observed where that is."""
        return run if self._observer is None else self._observer.around(run)

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Do nothing if inputs conform; else it is an error that is observed."""
        try:
            check_inputs(self.inputs, inputs)
        except InputError as e:
            if self._observer is not None:
                self._observer.failed(e)
            raise

    def current_program(self) -> Program:
        """Return what the engine has loaded; for what is beside sessions in this package."""
        return self._open_program()

    def current_processor(self) -> Processor:
        """Return what works before and after the model now; for what is beside sessions in this package."""
        return (self._processor or self._make_processor())[0]

    def current_run(self) -> _Run:
        """Return what runs a call now; for what is beside sessions in this package."""
        return self._run

    def _open_program(self) -> Program:
        program = self._program
        if program is None:
            _refuse({})
        return program

    def set_reload(self, reload: Callable[[str | Path], Session]) -> None:
        """Say how `swap` loads: as this session was."""
        self._reload = reload

    @property
    def promised(self) -> EngineSpec:
        """What the artifact promises of the engine that runs it."""
        fallback = self.manifest.fallback
        return fallback if self._state == "fallback" and fallback is not None else self.manifest.engine

    def _run_into(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        from edgec.runtime._buffers import check_outputs, deliver, run_into

        program = self._open_program()

        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return run_into(program, self.outputs, inputs, outputs)

        try:
            if self._cache is not None or self._asking is not None:
                check_outputs(self.outputs, outputs)
                return deliver(self._run(inputs), outputs)
            watched = self._watched(run)
            return (watched if self._shadow is None else self._shadow.around(watched))(inputs)
        except InferenceError:
            if self._program is program:
                raise
        return self._run_into(inputs, outputs)  # the session was swapped meanwhile

    def _make_processor(self) -> tuple[Processor, _Run]:
        from edgec.runtime.pipeline import Processor  # here, because bare tensors do without it

        with self._changing:
            if self._processor is None:
                self._open_program()
                processor = self._plain_processor
                if processor is None:
                    processor = Processor(
                        self.manifest.pipeline, self.inputs, self.outputs, self._artifact.read
                    )
                    self._plain_processor = processor
                if self._observer is not None:
                    from edgec.runtime._observed_pipeline import ObservedProcessor

                    processor = ObservedProcessor(processor, self._observer)
                if self._asking is not None:
                    from edgec.runtime.fallback._asking import AnsweringProcessor

                    processor = AnsweringProcessor(processor)
                self._processor = processor, self._run
            return self._processor


class _Checks(NamedTuple):
    """What `load` holds a program to, and where it runs."""

    strict: bool
    self_test: bool
    isolation: Isolation | None = None

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
        foreign = other_arch(manifest)
        if foreign is not None:
            _warn(f"{artifact.path}: {foreign}")
        return Session(artifact, program, manifest.engine.name, "ready")
    except BackendUnavailableError as e:
        if manifest.fallback is None:
            raise BackendUnavailableError(f"{artifact.path}: {e}; the artifact declares no fallback") from e
        if not allow_fallback:
            raise BackendUnavailableError(
                f"{artifact.path}: {e}; its fallback, {_where(manifest.fallback)}, is not allowed here"
            ) from e
        _warn(
            f"{artifact.path}: {_where(manifest.engine)} is unavailable ({e}); "
            f"running on the declared fallback, {_where(manifest.fallback)}"
        )
        program = _load_program(artifact, manifest.fallback, options, checks)
        return Session(artifact, program, manifest.fallback.name, "fallback", str(e))


def _absent_session(artifact: Artifact, fallback: Fallback, error: InferenceError) -> Session:
    """Return a session without an engine; it raises `error` where the server may not be asked."""
    from edgec.runtime.fallback._asking import absent_program

    program = absent_program(artifact, fallback, error)
    said = str(error)
    named = said if str(artifact.path) in said else f"{artifact.path}: {said}"
    _warn(f"{named}; {fallback.url} is asked instead")
    return Session(artifact, program, "remote", "remote", str(error))


def _load_program(artifact: Artifact, spec: EngineSpec, options: LoadOptions, checks: _Checks) -> Program:
    manifest = artifact.manifest
    fallback = spec is not manifest.engine
    options = replace(options, content_digest=artifact.content_digest, recipe=manifest.recipe)
    if options.providers and spec.name == "onnxruntime":
        from edgec.runtime.backends._providers import asked_device

        spec = replace(spec, device=asked_device(options) or spec.device)  # what it is held to from here on
    program: Program
    if checks.isolation is None:
        program = get_backend(spec.name).load(spec, artifact, manifest.inputs, manifest.outputs, options)
    else:
        from edgec.runtime._isolation import load_isolated

        program = load_isolated(artifact, options, checks.isolation, fallback=fallback)
    try:
        checks.check(artifact, program, spec, options)
    except BaseException:
        program.close()
        raise
    return program


def _where(engine: EngineSpec) -> str:
    return f"{engine.name} on {engine.device}"


def _isolation(isolate: bool | Isolation) -> Isolation | None:
    if isinstance(isolate, bool):
        if not isolate:
            return None
        from edgec.runtime._isolation import Isolation

        return Isolation()
    return isolate


def _warn(message: str) -> None:
    from logging import getLogger  # here, because its import takes 4 ms

    getLogger("edgec.runtime").warning("%s", message)


def _refuse(inputs: Mapping[str, NDArray[Any]]) -> NoReturn:
    raise InferenceError("the session is closed: load the artifact again")
