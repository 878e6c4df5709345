"""Finishing: what of a build only the device itself can do.

An engine of TensorRT is bound to the GPU, the version of TensorRT and the system that it was built on, so
that it is built there, once, and kept. It is kept only if it computes the golden vectors of the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact, GoldenVector, Manifest
from edgec.errors import InferenceError, ManifestError, OutputError, SelfTestError
from edgec.runtime._self_test import SelfTestResult, run_golden_vectors
from edgec.runtime.backends.tensorrt._builder import BuiltEngine, Progress, build_engine
from edgec.runtime.backends.tensorrt._cache import EngineCache, EngineKey, default_cache_dir
from edgec.runtime.backends.tensorrt._library import TensorRt
from edgec.runtime.backends.tensorrt._program import EngineRefusedError, TensorRtProgram
from edgec.runtime.backends.tensorrt._recipe import Recipe, parse_recipe

_MIB = 1 << 20


class DlaCoreError(ValueError):
    """A core was asked for that the artifact's target does not have."""


@dataclass(frozen=True, kw_only=True)
class FinishResult:
    """What finishing an artifact came to.

    Attributes:
        state: ``built``; ``kept``, where an engine that fits was there already; ``not-needed``, where the
            artifact is ready as it is.
        engine: Name of the engine.
        engine_version: Its version here; None if not needed.
        device: Name of the GPU; None if not needed.
        plan: Where the engine is; None if not needed.
        size_bytes: Of the engine.
        memory_bytes: What a call needs on the GPU beside weights, inputs and outputs.
        dla: Core of the DLA that it is for; None for the GPU.
        seconds: How long it took.
        self_test: How it computes the golden vectors; None if not needed.
        notes: What people should know, in sentences.
    """

    state: str
    engine: str
    engine_version: str | None = None
    device: str | None = None
    plan: Path | None = None
    size_bytes: int = 0
    memory_bytes: int = 0
    dla: int | None = None
    seconds: float = 0.0
    self_test: SelfTestResult | None = None
    notes: tuple[str, ...] = ()


def finish(
    path: str | Path,
    *,
    cache_dir: str | Path | None = None,
    dla: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> FinishResult:
    """Build what an artifact needs on this device, prove it with the golden vectors, and keep it.

    Nothing is kept of a build that fails or is interrupted. Where the engine is there already and still
    computes the golden vectors, nothing is built; one that is damaged is built again.

    Args:
        path: Of the artifact.
        cache_dir: Where engines are kept, the same as for `edgec.runtime.load`; None for
            ``~/.cache/edgec/engines``.
        dla: Core of the DLA to build for; None for the GPU. `load` takes what was finished last.
        force: Build again even if the engine is there.
        progress: Called with the step, how many of its parts are done, and of how many (0 if unknown);
            from threads of the engine too. It must not raise.
        clock: Seconds.

    Raises:
        DlaCoreError: The artifact is not for a DLA, or the target has no such core.
        ArtifactError: The artifact is damaged, malformed, or asks for what this edgec does not know.
        BackendUnavailableError: No GPU works here, or TensorRT is missing or of another line.
        InferenceError: TensorRT refuses the model, or fails.
        SelfTestError: The engine computes something else; it is not kept.
        OutputError: The engine cannot be written, because the disk is full, say.
    """
    start = clock()
    with Artifact.open(path) as artifact:
        manifest = artifact.manifest
        if not manifest.recipe:
            return FinishResult(state="not-needed", engine=manifest.engine.name)
        recipe = parse_recipe(manifest.recipe)
        _check_dla(recipe, dla, manifest.target)
        if recipe.onnx not in manifest.engine.files:
            raise ManifestError(f"{path}: the recipe builds {recipe.onnx!r}, which the engine does not load")
        artifact.verify()
        directory = default_cache_dir() if cache_dir is None else Path(cache_dir)
        library = TensorRt(manifest.engine)
        try:
            work = _Finishing(
                artifact=artifact,
                recipe=recipe,
                library=library,
                cache=EngineCache(directory),
                key=library.key(artifact.content_digest, recipe, dla),
                dla=dla,
                progress=progress or _silent,
            )
            return work.run(force, start, clock)
        finally:
            library.close()


@dataclass(kw_only=True)
class _Finishing:
    artifact: Artifact
    recipe: Recipe
    library: TensorRt
    cache: EngineCache
    key: EngineKey
    dla: int | None
    progress: Progress

    def run(self, force: bool, start: float, clock: Callable[[], float]) -> FinishResult:
        notes = _notes_on(self.recipe, self.library)
        with self.cache.building(
            lambda: self.progress("waiting for another build in this cache", 0, 0)
        ) as scratch:
            tested = None if force else self._kept(notes)
            if tested is not None:
                self.cache.touch(self.key)
                return self._result("kept", tested, notes, clock() - start)
            built = self._build(scratch, notes)
            tested = self._tested(built)
            notes += _notes_on_memory(self.recipe, tested, len(built.plan))
            seconds = clock() - start
            self.progress("writing the engine", 0, 0)
            self.cache.store(self.key, built.plan, self._facts(built, tested, seconds))
            return self._result("built", tested, notes, seconds)

    def _kept(self, notes: list[str]) -> _Tested | None:
        """Return how the engine that is there computes; None where there is none that can be used."""
        engine = self.cache.find(self.key)
        if engine is None:
            if self.cache.plan_path(self.key).exists():
                notes.append(f"an engine was replaced: {self.cache.problem}")
            return None
        self.progress("testing the engine that is here", 0, 0)
        try:
            tested = self._test(engine.plan)
        except EngineRefusedError as e:
            notes.append(f"the engine that was here was replaced: {e}")
        else:
            if tested.result.passed:
                return tested
            notes.append(
                f"the engine that was here was replaced: it fails the golden vectors: {_worst(tested)}"
            )
        self.cache.remove(self.key)
        return None

    def _build(self, scratch: Path, notes: list[str]) -> BuiltEngine:
        files = self.artifact.extract(scratch, self.artifact.manifest.engine.files)
        built = build_engine(
            self.library,
            files[self.recipe.onnx],
            self.recipe,
            dla=self.dla,
            timings=self.cache.read_timings(self.key),
            progress=self.progress,
        )
        notes += built.notes
        if built.timings:
            try:
                self.cache.store_timings(self.key, built.timings)
            except OutputError as e:
                notes.append(f"the next build will take as long: {e}")
        return built

    def _tested(self, built: BuiltEngine) -> _Tested:
        self.progress("testing the engine", 0, 0)
        try:
            tested = self._test(built.plan)
        except EngineRefusedError as e:
            raise InferenceError(f"{self.artifact.path}: the new engine cannot be used: {e}") from e
        if not tested.result.passed:
            raise SelfTestError(
                f"{self.artifact.path}: the engine that TensorRT {self.library.version} built fails the "
                f"golden vectors: {_worst(tested)}; it is not kept"
            )
        return tested

    def _test(self, plan: bytes) -> _Tested:
        manifest = self.artifact.manifest
        library = TensorRt(manifest.engine)
        try:
            program = TensorRtProgram(
                library, plan, self.dla, manifest.engine, manifest.inputs, manifest.outputs
            )
        except BaseException:
            library.close()
            raise
        try:
            result = _run_golden(program, self.artifact.golden(), manifest)
            return _Tested(result, program.memory_bytes, len(plan))
        finally:
            program.close()

    def _facts(self, built: BuiltEngine, tested: _Tested, seconds: float) -> Mapping[str, Any]:
        return {
            "model": self.artifact.manifest.model,
            "model_version": self.artifact.manifest.model_version,
            "device": self.library.device.name,
            "seconds": round(seconds, 3),
            "workspace_bytes": built.workspace_bytes,
            "memory_bytes": tested.memory_bytes,
            "golden_vectors": tested.result.vectors,
        }

    def _result(self, state: str, tested: _Tested, notes: list[str], seconds: float) -> FinishResult:
        if not tested.result.vectors:
            notes = [
                *notes,
                "the artifact has no golden vectors: the engine loads, and nothing else is proven",
            ]
        return FinishResult(
            state=state,
            engine=self.artifact.manifest.engine.name,
            engine_version=self.library.version,
            device=self.library.device.name,
            plan=self.cache.plan_path(self.key),
            size_bytes=tested.size_bytes,
            memory_bytes=tested.memory_bytes,
            dla=self.dla,
            seconds=seconds,
            self_test=tested.result,
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class _Tested:
    result: SelfTestResult
    memory_bytes: int
    size_bytes: int


def _run_golden(program: TensorRtProgram, vectors: list[GoldenVector], manifest: Manifest) -> SelfTestResult:
    return run_golden_vectors(program.run, vectors, manifest.golden)


def _check_dla(recipe: Recipe, dla: int | None, target: str) -> None:
    if dla is None or 0 <= dla < recipe.dla_cores:
        return
    if recipe.dla_cores == 0:
        raise DlaCoreError(
            f"the artifact is not for a DLA: {target} has none that its TensorRT can use, or the precision "
            "is not fp16"
        )
    raise DlaCoreError(f"the target {target} has DLA cores 0 to {recipe.dla_cores - 1}, got {dla}")


def _notes_on(recipe: Recipe, library: TensorRt) -> list[str]:
    here = library.device.compute_capability
    if recipe.compute_capability in ("", here):
        return []
    return [
        f"the artifact was made for GPUs of compute capability {recipe.compute_capability}, "
        f"{library.device.name} has {here}: the engine fits this one"
    ]


def _notes_on_memory(recipe: Recipe, tested: _Tested, plan_bytes: int) -> list[str]:
    needed = tested.memory_bytes + plan_bytes
    if not recipe.memory_budget_mib or needed <= recipe.memory_budget_mib * _MIB:
        return []
    return [
        f"the engine needs about {needed // _MIB} MiB, more than the {recipe.memory_budget_mib} MiB that the "
        "target allows a model"
    ]


def _worst(tested: _Tested) -> str:
    worst = tested.result.worst
    if worst is None:
        return "nothing was compared"
    rms = ""
    if worst.rms_tolerance is not None:
        rms = f"; by {worst.rms_error:.3g} in the root mean square, {worst.rms_tolerance:.3g} is allowed"
    return (
        f"{worst.output} is off by {worst.max_abs_error:.3g} in vector {worst.vector}, "
        f"{worst.tolerance:.3g} is allowed{rms}"
    )


def _silent(step: str, done: int, total: int) -> None:
    pass
