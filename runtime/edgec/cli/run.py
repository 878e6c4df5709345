"""``edgec run``: an artifact on inputs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgec.evaluation import Dataset, Sample
    from edgec.runtime import Session
    from edgec.runtime.results import Result

    Source = Dataset | Sequence[Sample]

_SUFFIXES = (".npz", ".json", ".csv")
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
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
    help="Write the results here: .npz, .json or .csv.",
)
@click.option("--raw", is_flag=True, help="Bare tensors in and out, without pre- and post-processing.")
@click.option("--threads", type=click.IntRange(1), help="Threads of one inference.")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the engine keeps what it compiles; for TensorRT, where edgec finish put it.",
)
@click.option(
    "--delegate",
    type=click.Path(path_type=Path),
    metavar="LIB",
    help="Shared library through which LiteRT reaches the NPU; it is loaded into this process.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path,
    inputs: tuple[str, ...],
    texts: tuple[str, ...],
    output: Path | None,
    raw: bool,
    threads: int | None,
    cache_dir: Path | None,
    delegate: Path | None,
    as_json: bool,
) -> None:
    """Run an artifact on inputs, one sample at a time, through its whole pipeline.

    \b
    edgec run digits.edgec --input images/ --output predictions.csv
    edgec run digits.edgec --input test.npz --raw --output scores.npz
    edgec run minilm.edgec --text "a first text" --json
    """
    from edgec.evaluation import Sample
    from edgec.runtime import load

    if not inputs and not texts:
        raise click.UsageError("nothing to run on: give --input DATA or --text TEXT")
    if raw and texts:
        raise click.UsageError("--raw takes tensors: give them as --input tensors.npz")
    with load(artifact, threads=threads, cache_dir=cache_dir, delegate=delegate) as session:
        sources = [(f"{spec}: ", _open(session, spec, raw)) for spec in inputs]
        if texts:
            sources.append(("text: ", [Sample(text, name=text[:40]) for text in texts]))
        results, seconds = _run(session, sources, raw)
        shape = _summary(artifact, session, results, seconds, raw, output)
    if output is not None:
        from edgec.runtime.results import write_results

        write_results(output, results)
    if as_json:
        click.echo(json.dumps(shape, indent=2, allow_nan=False))
    else:
        _show(shape, results, output)


def _open(session: Session, spec: str, raw: bool) -> Source:
    from edgec.evaluation import Sample, open_dataset

    path = Path(spec)
    if path.suffix.lower() in _IMAGES and path.is_file() and not raw:
        return [Sample(path, name=path.name)]
    pipeline = None if raw else session.manifest.pipeline
    return open_dataset(spec, inputs=session.inputs, pipeline=pipeline)


def _run(session: Session, sources: Sequence[tuple[str, Source]], raw: bool) -> tuple[list[Result], float]:
    from edgec.runtime.results import Result

    results: list[Result] = []
    start = time.perf_counter()
    with _progress(sum(len(source) for _, source in sources)) as advance:
        for prefix, source in sources:
            for sample in source:
                values = _run_raw(session, sample) if raw else session.predict(sample.data)
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


def _summary(
    artifact: Path,
    session: Session,
    results: Sequence[Result],
    seconds: float,
    raw: bool,
    output: Path | None,
) -> dict[str, Any]:
    from edgec.runtime.results import plain

    shape: dict[str, Any] = {
        "artifact": str(artifact),
        "engine": session.engine,
        "engine_version": session.engine_version,
        "state": session.state,
        "call": "run" if raw else "predict",
        "samples": len(results),
        "seconds": seconds,
        "output": None if output is None else str(output),
    }
    if output is None:
        shape["results"] = [{"name": result.name, **plain(result.values)} for result in results]
    return shape


def _show(shape: Mapping[str, Any], results: Sequence[Result], output: Path | None) -> None:
    if output is None:
        for result in results[:_SHOWN]:
            click.echo(f"{result.name}: {_line(result.values)}")
        if len(results) > _SHOWN:
            click.echo(f"... {len(results) - _SHOWN} more: write them all with --output")
    what = "sample" if len(results) == 1 else "samples"
    place = f", results in {output}" if output is not None else ""
    click.echo(
        f"{len(results)} {what} in {shape['seconds']:.2f} s on {shape['engine']} {shape['engine_version']}"
        f"{' (fallback)' if shape['state'] == 'fallback' else ''}{place}"
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
