"""Profiles: which layers an inference spends its time in, where the engine tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact
from edgec.runtime._session import load
from edgec.runtime._synthetic import calling_inputs
from edgec.runtime.backends import LoadOptions, Profiler, get_backend
from edgec.runtime.backends._profiles import LayerTime

__all__ = ["LayerTime", "Profile", "profile"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What the layers of a model take.

    Attributes:
        engine: Name of the engine that ran.
        layers: In the order in which they run; empty where the engine does not tell.
        runs: How many inferences each figure is the median of.
        absent: Why there is none, in a sentence; empty where there is one.
    """

    engine: str
    layers: tuple[LayerTime, ...]
    runs: int
    absent: str = ""

    @property
    def total_ms(self) -> float:
        """What all layers take together; measuring each slows the whole down."""
        return sum(layer.ms for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON has it."""
        return {**asdict(self), "total_ms": self.total_ms}


def profile(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    runs: int = 30,
) -> Profile:
    """Run an artifact with its engine's own profiler, on its golden inputs, or synthetic ones.

    ONNX Runtime (its profiling) and OpenVINO (``PERF_COUNT``) tell; LiteRT's Python package has no way to,
    and TensorRT's engines are built without it. The model is loaded a second time for it.

    Args:
        path: Of the artifact.
        threads: Threads of one inference; None for the engine's own choice.
        cache_dir: See `edgec.runtime.load`.
        delegate: Likewise.
        runs: Inferences to take the median of, after two that warm up.

    Raises:
        ArtifactError: The artifact cannot be read.
        InferenceError: It does not load, or fails on the inputs.
        ValueError: `runs` is below 1.
    """
    if runs < 1:
        raise ValueError(f"expected at least 1 run, got {runs}")
    with load(path, threads=threads, cache_dir=cache_dir, delegate=delegate) as session:
        engine, state = session.engine, session.state
    with Artifact.open(path) as artifact:
        manifest = artifact.manifest
        spec = manifest.engine if state == "ready" else manifest.fallback or manifest.engine
        backend = get_backend(engine)
        if not isinstance(backend, Profiler):
            return Profile(
                engine=engine, layers=(), runs=0, absent=f"{engine} does not tell what layers take"
            )
        # Without the cache: what was compiled without a profiler has none.
        options = LoadOptions(
            threads=threads,
            delegate=None if delegate is None else Path(delegate),
            content_digest=artifact.content_digest,
            recipe=manifest.recipe,
        )
        feeds = calling_inputs(artifact)[0]
        layers = backend.profile(spec, artifact, manifest.inputs, manifest.outputs, options, feeds, runs)
    return Profile(engine=engine, layers=tuple(layers), runs=runs)
