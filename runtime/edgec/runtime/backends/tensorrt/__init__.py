"""TensorRT, on NVIDIA GPUs.

An artifact for TensorRT carries a typed ONNX model and the recipe of its build. The engine is built on
the device by ``edgec finish`` and kept there; this backend loads it. Where none is kept, or the one that
is kept was built for something else or is damaged, the artifact's fallback runs the model.

The driver is asked first, because TensorRT crashes the process where there is none that works.
"""

from __future__ import annotations

from pathlib import Path

from edgec.artifact import EngineSpec, TensorSpec
from edgec.errors import BackendUnavailableError, OutputError
from edgec.runtime.backends import LoadOptions, Payload
from edgec.runtime.backends.tensorrt._cache import EngineCache, EngineKey, default_cache_dir
from edgec.runtime.backends.tensorrt._library import TensorRt
from edgec.runtime.backends.tensorrt._program import EngineRefusedError, TensorRtProgram
from edgec.runtime.backends.tensorrt._recipe import Recipe, parse_recipe


class TensorRtBackend:
    """Loads the engine that ``edgec finish`` has built here of an artifact."""

    def load(
        self,
        spec: EngineSpec,
        payload: Payload,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        options: LoadOptions,
    ) -> TensorRtProgram:
        """Load the engine; `payload` is not read.

        Raises:
            BackendUnavailableError: No GPU works here, TensorRT is missing or of another line, or there
                is no engine that fits; the message says what to run.
            ArtifactError: The recipe is malformed, or the engine is of another model.
            InferenceError: TensorRT cannot run the engine.
        """
        library = TensorRt(spec)
        try:
            recipe = parse_recipe(options.recipe)
            cache = EngineCache(_directory(options))
            dla, key = _newest(library, cache, recipe, options.content_digest)
            engine = cache.find(key)
            if engine is None:
                raise _unfinished(cache.problem, options)
            try:
                return TensorRtProgram(library, engine.plan, dla, spec, inputs, outputs)
            except EngineRefusedError as e:
                raise _unfinished(str(e), options) from e
        except BaseException:
            library.close()
            raise


def _newest(
    library: TensorRt, cache: EngineCache, recipe: Recipe, content_digest: str
) -> tuple[int | None, EngineKey]:
    """Return the DLA core and the key of the engine that was finished last; of the GPU where none is."""
    cores: list[int | None] = [None, *range(recipe.dla_cores)]
    keys = {library.key(content_digest, recipe, dla).stem: dla for dla in cores}
    key = cache.newest([library.key(content_digest, recipe, dla) for dla in cores])
    return keys[key.stem], key


def _directory(options: LoadOptions) -> Path:
    try:
        return options.cache_dir or default_cache_dir()
    except OutputError as e:
        raise BackendUnavailableError(f"no engine can be looked up: {e}") from e


def _unfinished(problem: str, options: LoadOptions) -> BackendUnavailableError:
    where = "" if options.cache_dir is None else f" --cache-dir {options.cache_dir}"
    return BackendUnavailableError(
        f"there is no TensorRT engine to run: {problem}; build it on this device with  "
        f"edgec finish ARTIFACT{where}"
    )
