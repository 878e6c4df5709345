"""Artifacts and ONNX models under one face, for commands that take either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._home import default_home

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.artifact import GoldenVector, Pipeline, TensorSpec
    from edgec.runtime.pipeline import Processor

    Arrays = Mapping[str, NDArray[Any]]


_SOURCES = (".onnx", ".tflite", ".keras", ".h5", ".pt2")


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model that is ready to run.

    Attributes:
        path: Of the artifact or the ONNX file.
        engine: Name of the engine that runs it.
        engine_version: Its version.
        precision: Effective precision, as far as the engine tells.
        state: ``ready``, or ``fallback`` where an artifact's declared fallback runs it; ``source`` of an
            ONNX file.
        pipeline: Pre- and post-processing.
        processor: The same, ready to work.
        inputs: What `run` takes.
        outputs: What `run` gives.
        run: Bare tensors to bare tensors.
        golden: Golden vectors; none of an ONNX file.
    """

    path: Path
    engine: str
    engine_version: str
    precision: str
    state: str
    pipeline: Pipeline | None
    processor: Processor
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    run: Callable[[Arrays], Arrays]
    golden: tuple[GoldenVector, ...] = ()

    def predict(self, sample: Any) -> dict[str, Any]:
        """Return the prediction for a sample, through the whole pipeline."""
        inputs, context = self.processor.preprocess(sample)
        return self.processor.postprocess(self.run(inputs), context)

    def facts(self) -> dict[str, Any]:
        """Return what runs here, as ``--json`` has it."""
        return {
            "path": str(self.path),
            "engine": self.engine,
            "engine_version": self.engine_version,
            "precision": self.precision,
            "state": self.state,
        }

    def __str__(self) -> str:
        told = {"fallback": ", the declared fallback", "source": ", unoptimized"}.get(self.state, "")
        return f"{self.path} on {self.engine} {self.engine_version} in {self.precision}{told}"


def is_source(path: Path) -> bool:
    """Whether a path names a model, ONNX or of another framework, and not an artifact."""
    return path.suffix.lower() in _SOURCES or (path / "saved_model.pb").is_file()


@contextmanager
def open_model(path: Path, pipeline: Path | None = None, threads: int | None = None) -> Iterator[OpenModel]:
    """Open an artifact, or an ONNX model.

    Args:
        path: Of either.
        pipeline: Pre- and post-processing of an ONNX model; an artifact carries its own.
        threads: Threads of one inference of an artifact.

    Raises:
        EdgecError: It cannot be opened.
        click.UsageError: A pipeline or threads were given for what does not take them.
    """
    if not is_source(path):
        if pipeline is not None:
            raise click.UsageError(f"--pipeline is for an ONNX model; the artifact {path} carries its own")
        with _open_artifact(path, threads) as model:
            yield model
        return
    if threads is not None:
        raise click.UsageError("--threads is for artifacts; an ONNX model runs in one thread, as a reference")
    with _open_source(path, pipeline) as model:
        yield model


@contextmanager
def _open_artifact(path: Path, threads: int | None) -> Iterator[OpenModel]:
    from edgec.artifact import Artifact
    from edgec.runtime import load
    from edgec.runtime.pipeline import Processor

    with load(path, threads=threads) as session:
        pipeline = session.manifest.pipeline
        with Artifact.open(path) as artifact:
            processor = Processor(pipeline, session.inputs, session.outputs, artifact.read)
            golden = tuple(artifact.golden())
        yield OpenModel(
            path=path,
            engine=session.engine,
            engine_version=session.engine_version,
            precision=session.precision,
            state=session.state,
            pipeline=pipeline,
            processor=processor,
            inputs=session.inputs,
            outputs=session.outputs,
            run=session.run,
            golden=golden,
        )


@contextmanager
def _open_source(path: Path, pipeline: Path | None) -> Iterator[OpenModel]:
    from edgec.artifact import read_pipeline
    from edgec.compiler import open_source
    from edgec.runtime.pipeline import Processor

    declared = None if pipeline is None else read_pipeline(pipeline)
    with open_source(path, home=default_home()) as program:
        files = None if declared is None else declared.read_source
        yield OpenModel(
            path=path,
            engine=program.engine,
            engine_version=program.engine_version,
            precision="fp32",
            state="source",
            pipeline=declared,
            processor=Processor(declared, program.inputs, program.outputs, files),
            inputs=program.inputs,
            outputs=program.outputs,
            run=program.run,
        )
