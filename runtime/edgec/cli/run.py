"""``edgec run``: an artifact on inputs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _options

if TYPE_CHECKING:
    from edgec.evaluation import Dataset, Sample
    from edgec.runtime import Chain, Session
    from edgec.runtime.results import Result

    Source = Dataset | Sequence[Sample]
    Model = Session | Chain

_SUFFIXES = (".npz", ".json", ".csv", ".jsonl", ".parquet")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_TEXTS = (".jsonl", ".csv")
_SHOWN = 20


def _check_suffix(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in _SUFFIXES:
        raise click.BadParameter(f"expected a name that ends in {', '.join(_SUFFIXES)}, got {value.name!r}")
    return value


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "-i",
    "inputs",
    multiple=True,
    metavar="DATA",
    help="A .npz by input name, an image, a folder of images, a .jsonl or .csv of text, or "
    "package.module:function; repeatable.",
)
@click.option(
    "--text", "texts", multiple=True, help="A text, for models of text. May be given several times."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    callback=_check_suffix,
    help="Write the results here: .npz, .json, .csv, .jsonl or .parquet. A run that was killed goes on when "
    "it is started again.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    help="With --output: samples at a time. Each then gets its share of the cores, unless --threads says "
    "otherwise. Default: 1.",
)
@click.option(
    "--annotate",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="With --output: also draw boxes, or maps of classes, on copies of the images, into this folder.",
)
@click.option("--raw", is_flag=True, help="Bare tensors in and out, without pre- and post-processing.")
@_options.threads
@_options.engine_cache
@_options.delegate
@_options.isolate
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    output: Path | None,
    jobs: int | None,
    annotate: Path | None,
    raw: bool,
    threads: int | None,
    cache_dir: Path | None,
    delegate: Path | None,
    isolate: bool,
    as_json: bool,
) -> None:
    """Run an artifact on inputs, one sample at a time, through its whole pipeline.

    \b
    edgec run digits.edgec --input images/ --output predictions.csv
    edgec run digits.edgec --input test.npz --raw --output scores.npz
    edgec run minilm.edgec --text "a first text" --json
    edgec run page.chain.toml --input pages/
    """
    from edgec.cli._chains import is_chain
    from edgec.evaluation import Sample
    from edgec.runtime import Chain, Isolation, load, load_chain
    from edgec.runtime.results import plain, write_results

    if not inputs and not texts:
        raise click.UsageError("nothing to run on: give --input DATA or --text TEXT")
    if raw and texts:
        raise click.UsageError("--raw takes tensors: give them as --input tensors.npz")
    if output is None and (jobs is not None or annotate is not None):
        raise click.UsageError("--jobs and --annotate are for runs that write an --output")
    if raw and annotate is not None:
        raise click.UsageError("--annotate draws predictions, and --raw makes none")
    chained = is_chain(artifact)
    if chained and raw:
        raise click.UsageError("--raw is for artifacts, not for chains")
    if jobs is not None and threads is None:
        threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    if chained and isolate:
        raise click.UsageError("--isolate is for artifacts, not for chains")
    open_model = load_chain if chained else partial(load, isolate=isolate and Isolation(retry=True))
    with open_model(artifact, threads=threads, cache_dir=cache_dir, delegate=delegate) as session:
        ordered = isinstance(session, Chain) and bool(session.new_state())
        if ordered and (jobs is not None or annotate is not None):
            raise click.UsageError("--jobs and --annotate are not for a chain that keeps a state")
        sources = [(f"{spec}: ", _open(session, spec, raw)) for spec in inputs]
        if texts:
            _check_texts(session, "--text")
            sources.append(("text: ", [Sample(text, name=text[:40]) for text in texts]))
        if output is not None and not ordered:
            from edgec.cli._run_batch import write_batch

            identity = {"inputs": [_seen(spec) for spec in inputs], "texts": list(texts), "raw": raw}
            call = _caller(session, raw)
            numbered = [(prefix * (len(sources) > 1), source) for prefix, source in sources]
            with _progress(sum(len(source) for _, source in sources)) as advance:
                try:
                    batch = write_batch(
                        session.content_digest, output, numbered, call, identity, jobs or 1, annotate, advance
                    )
                except KeyboardInterrupt:
                    click.echo("\nedgec: stopped; the same command goes on where this one was", err=True)
                    sys.exit(130)
            shape = _summary(artifact, session, batch["samples"], batch["seconds"], raw) | batch
            results: list[Result] = []
        else:
            results, seconds = _run(session, sources, raw)
            shape = _summary(artifact, session, len(results), seconds, raw)
            if output is None:
                shape["results"] = [{"name": result.name, **plain(result.values)} for result in results]
            else:
                write_results(output, results)
                shape["output"] = str(output)
    if as_json:
        click.echo(json.dumps(shape, indent=2, allow_nan=False))
    else:
        _show(shape, results, output)
    if shape.get("failed"):
        sys.exit(1)


def _open(session: Model, spec: str, raw: bool) -> Source:
    from edgec.evaluation import Sample, open_dataset
    from edgec.runtime import Session

    path = Path(spec)
    suffix = path.suffix.lower()
    if raw and (path.is_dir() or suffix in (*_IMAGES, *_TEXTS)):
        raise click.UsageError(
            f"--raw takes tensors, a .npz: leave it out, or give other --input than {spec}"
        )
    if suffix in _TEXTS:
        _check_texts(session, spec)
    if suffix in _IMAGES and path.is_file():
        return [Sample(path, name=path.name)]
    pipeline = None if raw else session.manifest.pipeline
    # A chain fits rows itself: its inputs need no batch axis.
    inputs = session.inputs if isinstance(session, Session) else None
    return open_dataset(spec, inputs=inputs, pipeline=pipeline)


def _check_texts(session: Model, what: str) -> None:
    """Refuse texts for a model of images, which would take each for the path of a file.

    Raises:
        UsageError: The model takes images.
    """
    from edgec.artifact.steps import Decode
    from edgec.runtime import Session

    pipeline = session.manifest.pipeline if isinstance(session, Session) else None
    if pipeline is not None and any(isinstance(step, Decode) for step in pipeline.preprocess):
        raise click.UsageError(f"{what} is for models that take texts, and this one takes images")


def _seen(spec: str) -> list[str | int]:
    """Return what tells an input from another: its name and, of a file, its size and when it was written."""
    path = Path(spec)
    if not path.is_file():
        return [spec]
    stat = path.stat()
    return [spec, stat.st_size, stat.st_mtime_ns]


def _caller(session: Model, raw: bool) -> Callable[[Sample], Mapping[str, Any]]:
    """Return what runs a sample; a chain that keeps a state begins anew with each call of this."""
    from edgec.runtime import Session

    if isinstance(session, Session):
        return partial(_run_raw, session) if raw else lambda sample: session.predict(sample.data)
    predict = session.stream().predict if session.new_state() else session.predict
    return lambda sample: predict(sample.data)


def _run(session: Model, sources: Sequence[tuple[str, Source]], raw: bool) -> tuple[list[Result], float]:
    from edgec.runtime.results import Result

    results: list[Result] = []
    start = time.perf_counter()
    with _progress(sum(len(source) for _, source in sources)) as advance:
        for prefix, source in sources:
            call = _caller(session, raw)
            for sample in source:
                values = call(sample)
                results.append(Result(prefix * (len(sources) > 1) + sample.name, values))
                advance()
    return results, time.perf_counter() - start


def _run_raw(session: Session, sample: Sample) -> Mapping[str, Any]:
    from edgec.errors import DataError

    if isinstance(sample.data, Mapping):
        return session.run(sample.data)
    raise DataError(
        f"sample {sample.name} is {type(sample.data).__name__}: --raw takes arrays by input name (.npz)"
    )


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; nothing elsewhere, and nothing where there is not much to wait for."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=total, label="running", file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _summary(artifact: Path, session: Model, samples: int, seconds: float, raw: bool) -> dict[str, Any]:
    return {
        "artifact": str(artifact),
        "engine": session.engine,
        "engine_version": session.engine_version,
        "state": session.state,
        "call": "run" if raw else "predict",
        "samples": samples,
        "seconds": seconds,
        "output": None,
    }


def _show(shape: Mapping[str, Any], results: Sequence[Result], output: Path | None) -> None:
    if output is None:
        for result in results[:_SHOWN]:
            click.echo(f"{result.name}: {_line(result.values)}")
        if len(results) > _SHOWN:
            click.echo(f"... {len(results) - _SHOWN} more: write them all with --output")
    samples = shape["samples"]
    what = "sample" if samples == 1 else "samples"
    place = f", results in {output}" if output is not None else ""
    click.echo(
        f"{samples} {what} in {shape['seconds']:.2f} s on {shape['engine']} {shape['engine_version']}"
        f"{' (fallback)' if shape['state'] == 'fallback' else ''}{place}"
    )
    if shape.get("resumed"):
        click.echo(f"{shape['resumed']} of them were finished by an earlier run")
    if shape.get("annotated") is not None:
        none = "" if shape["annotated"] else ": only boxes and maps of classes are drawn, on image files"
        click.echo(f"{shape['annotated']} images annotated{none}")
    failed = shape.get("failed", [])
    for failure in failed[:_SHOWN]:
        click.echo(f"failed: {failure['name']}: {failure['error']}", err=True)
    if failed:
        click.echo(
            f"{len(failed)} of them failed; started again, the same command tries only those", err=True
        )


def _line(values: Mapping[str, Any]) -> str:
    """Return a prediction in one line: the best three classes, a number, or what there is of it."""
    import numpy as np

    if "classes" in values:
        labels = values.get("labels") or [f"class {i}" for i in values["classes"]]
        parts = [f"{label} {score:.3f}" for label, score in zip(labels, values["scores"], strict=True)]
        return ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "") or "nothing"
    parts = []
    for key, value in values.items():
        array = np.asarray(value)
        if array.size <= 4:
            parts.append(f"{key} {' '.join(f'{item:.6g}' for item in array.reshape(-1).tolist())}")
        else:
            parts.append(f"{key} {array.dtype}{list(array.shape)}")
    return ", ".join(parts)
