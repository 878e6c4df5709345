"""``edgec compile``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edgec.artifact import PRECISIONS, atomic_write
from edgec.cli import _options
from edgec.cli._home import default_home
from edgec.cli._metrics import METRICS
from edgec.errors import ConversionError

if TYPE_CHECKING:
    from edgec.compiler.report import Build

_CHOICES = ("auto", *PRECISIONS)


def parse_shapes(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Turn ``name=1,3,224,224`` into ``{"name": (1, 3, 224, 224)}``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, equals, sizes = value.rpartition("=")
        try:
            shape = tuple(int(n) for n in sizes.split(","))
        except ValueError:
            shape = ()
        if not equals or not name or not shape or min(shape) < 1:
            raise click.BadParameter(f"expected name=1,3,224,224, got {value!r}")
        shapes[name] = shape
    return shapes


def parse_share(_: click.Context, __: click.Parameter, value: str) -> float | None:
    text = value.strip().lower()
    if text == "none":
        return None
    try:
        drop = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        drop = -1.0
    if not 0 <= drop < 1:
        raise click.BadParameter(f"expected a share such as 1% or 0.01, or none; got {value!r}")
    return drop


def parse_prune(_: click.Context, __: click.Parameter, value: str | None) -> float | str | None:
    """Turn ``0.3`` or ``30%`` into 0.3; ``auto`` and patterns of zeros stay."""
    if value is None:
        return None
    text = value.strip().lower()
    if text == "auto":
        return text
    if ":" in text:
        return _checked_pattern(text)
    try:
        ratio = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        ratio = 0.0
    if not 0 < ratio < 1:
        raise click.BadParameter(
            f"expected auto, a share between 0 and 1 such as 30%, 2:4, or unstructured:50%; got {value!r}"
        )
    return ratio


def _checked_pattern(text: str) -> str:
    from edgec.compiler.pruning.patterns import parse_pattern
    from edgec.errors import CompileError

    try:
        parse_pattern(text)
    except CompileError as e:
        raise click.BadParameter(str(e)) from e
    return text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target",
    "-t",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="Target, alias, or path of a target's .toml; may be given more than once.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("build"),
    show_default=True,
    help="Directory for artifacts and report.",
)
@click.option(
    "--pipeline", "-p", type=click.Path(path_type=Path), help="Pre- and post-processing, a TOML file."
)
@click.option(
    "--calibration",
    "-c",
    metavar="DATA",
    help="Representative samples: .npz, folder, .jsonl, .csv or module:function.",
)
@click.option(
    "--evaluation",
    "-e",
    metavar="DATA",
    help="Samples to judge on, of the same forms: labelled, for --metric; or to compare with the source on.",
)
@click.option("--metric", "-m", type=click.Choice(METRICS), help="What to score.")
@click.option(
    "--precision",
    type=click.Choice(_CHOICES),
    default="auto",
    show_default=True,
    help="Precision to build besides fp32; auto lets all that the target allows compete.",
)
@click.option(
    "--max-drop",
    callback=parse_share,
    default="1%",
    show_default=True,
    help="Largest accuracy loss against fp32; none turns the gate off.",
)
@click.option(
    "--accept-inconclusive", is_flag=True, help="Ship what too few samples can neither pass nor fail."
)
@click.option(
    "--objective",
    type=click.Choice(("latency", "size", "accuracy")),
    default="latency",
    show_default=True,
    help="What the winner is best at, among those within the accuracy budget.",
)
@click.option("--budget-latency-ms", type=click.FloatRange(0, min_open=True), help="Largest median latency.")
@click.option(
    "--budget-size-mb", type=click.FloatRange(0, min_open=True), help="Largest payload, in 1e6 bytes."
)
@click.option(
    "--budget-memory-mb",
    type=click.FloatRange(0, min_open=True),
    help="Largest peak memory of a process that loads the artifact and runs one inference, in MiB.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    callback=parse_shapes,
    metavar="NAME=1,3,224,224",
    help="Pin the dimensions of an input; may be given more than once.",
)
@click.option(
    "--fold",
    type=click.Choice(("auto", "on", "off")),
    default="auto",
    show_default=True,
    help="Put pre-processing into the graph: where measurably faster, always, or never.",
)
@click.option(
    "--prune",
    callback=parse_prune,
    metavar="auto|RATIO|2:4|unstructured:RATIO",
    help="Let forms with fewer channels compete. RATIO is the share of the multiply-accumulates of one "
    "inference (of Conv, ConvTranspose, Gemm and MatMul) to remove: 0.3 or 30%; a little more goes, because "
    "channels go in steps. auto takes the largest of 10% to 70% within --max-drop. 2:4 and unstructured make "
    "single weights zero, for targets that use it: TensorRT, Ethos-U. Needs --calibration or --evaluation.",
)
@click.option(
    "--repair/--no-repair",
    default=True,
    show_default=True,
    help="Repair int8 that loses too much accuracy: ranges, biases, channels, then layers in float.",
)
@click.option(
    "--emit",
    type=click.Choice(("c-array",)),
    help="Write this beside each artifact too. c-array: its TFLite file as .h and .cc, with the tensor arena "
    "that LiteRT for Microcontrollers needs, estimated.",
)
@click.option("--name", help="Name of the model; the file's name by default.")
@click.option("--model-version", default="1", show_default=True, help="Version of the model.")
@click.option(
    "--inputs-stay",
    is_flag=True,
    help="Forbid devices to send inputs of the model to a server, whatever the application says.",
)
@click.option(
    "--threads",
    type=_options.THREADS,
    default=1,
    show_default=True,
    help="Threads of one inference while candidates are measured.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Processes that make candidates; one per core, up to 4, by default; 0 for none besides this one.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, min_open=True),
    default=900.0,
    show_default=True,
    help="For one candidate; one that takes longer is out, the others go on.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is random.")
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEC_CACHE_DIR",
    help="Where results are kept and found again; by default in $XDG_CACHE_HOME or ~/.cache.",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="EDGEC_HOME",
    help="Where environments of converters are (edgec doctor); by default edgec in the cache directory.",
)
@click.option("--no-cache", is_flag=True, help="Build anew, and keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result for machines.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def command(
    model: Path,
    targets: tuple[str, ...],
    output: Path,
    pipeline: Path | None,
    calibration: str | None,
    evaluation: str | None,
    metric: str | None,
    precision: str,
    max_drop: float | None,
    accept_inconclusive: bool,
    objective: Literal["latency", "size", "accuracy"],
    budget_latency_ms: float | None,
    budget_size_mb: float | None,
    budget_memory_mb: float | None,
    shapes: dict[str, tuple[int, ...]],
    fold: str,
    prune: float | str | None,
    repair: bool,
    emit: str | None,
    name: str | None,
    model_version: str,
    inputs_stay: bool,
    threads: int,
    workers: int | None,
    timeout_s: float,
    seed: int,
    cache_dir: Path | None,
    home: Path | None,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compile MODEL to one proven artifact per target.

    MODEL is an ONNX file; or a TFLite or Keras file, a SavedModel directory or a program of torch.export,
    which are converted in an environment of their own (edgec doctor) and held against their framework first.

    Every candidate (engine x precision) is converted, held against the source (parity), scored and
    measured side by side; the fastest within the accuracy budget ships, and the report says why.

    \b
    edgec compile model.onnx --target cpu -o build
    edgec compile model.onnx -t cpu -t openvino -t jetson -o build \\
        --pipeline pipeline.toml --calibration calibration.npz \\
        --evaluation evaluation.npz --metric top1
    edgec compile model.onnx --target intel-cpu --shape image=1,3,224,224 --json
    edgec compile model.onnx -t cpu --calibration calibration.npz --prune 0.3

    Ctrl-C ends the tournament early and ships the best of the candidates that are finished.

    Exit status: 0 built, 1 not built for at least one target, 2 wrong usage, 130 interrupted.
    """
    import logging

    from edgec.compiler import CompileOptions, compile_model
    from edgec.compiler.report import render_html, render_text

    if emit:
        _require_tflite(targets)
    # That a candidate runs on its fallback here is in the report, once, not on the terminal, per candidate.
    logging.getLogger("edgec.runtime").addHandler(logging.NullHandler())
    result = compile_model(
        model,
        targets,
        output,
        pipeline=pipeline,
        calibration=calibration,
        evaluation=evaluation,
        metric=metric,
        options=CompileOptions(
            precision=precision,
            max_drop=max_drop,
            accept_inconclusive=accept_inconclusive,
            objective=objective,
            budget_latency_ms=budget_latency_ms,
            budget_size_bytes=None if budget_size_mb is None else int(budget_size_mb * 1e6),
            budget_memory_mib=budget_memory_mb,
            shapes=shapes,
            fold=fold,
            prune=prune,
            repair=repair,
            name=name,
            version=model_version,
            inputs_stay=inputs_stay,
            threads=threads,
            workers=workers,
            timeout_s=timeout_s,
            seed=seed,
        ),
        cache_dir=None if no_cache else cache_dir or (default_home() / "builds"),
        home=home or default_home(),
        progress=progress_lines(quiet),
        command=["edgec", *sys.argv[1:]],
    )
    build = result.report
    stem = build["model"]["name"]
    html, data = output / f"{stem}-report.html", output / f"{stem}-report.json"
    _write(html, render_html(build))
    _write(data, json.dumps(build, indent=2, allow_nan=False) + "\n")
    emitted, not_emitted = emit_c_arrays(build) if emit else ([], [])
    if as_json:
        printed = public_result(build, html)
        if emit:
            printed |= {"emitted": emitted, "not_emitted": not_emitted}
        click.echo(json.dumps(printed, indent=2, allow_nan=False))
    else:
        click.echo(render_text(build, width=shutil.get_terminal_size((100, 0)).columns), nl=False)
        click.echo(f"report    {html}")
        for path in emitted:
            click.echo(f"emitted   {path}")
        for problem in not_emitted:
            click.echo(f"edgec: {problem}", err=True)
    if result.interrupted:
        sys.exit(130)
    if build.get("skipped") or not_emitted:
        sys.exit(1)


def public_result(build: Build, html: Path) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {"artifacts": build["artifacts"], "skipped": build.get("skipped", []), "report": str(html)}


def _require_tflite(targets: Sequence[str]) -> None:
    """Refuse, before any work, targets for which no TFLite file is ever made.

    Raises:
        BadParameter: There are such.
        TargetError: A target is unknown or wrong.
    """
    from edgec.targets import load_target

    without = [t for t in targets if "litert" not in [e.name for e in load_target(t).engines]]
    if without:
        raise click.BadParameter(
            f"c-array needs a TFLite file, and none is made for {', '.join(without)}: name targets with "
            "LiteRT, such as npu-tflite",
            param_hint="'--emit'",
        )


def emit_c_arrays(build: Build) -> tuple[list[str], list[str]]:
    """Write each artifact of a build as C beside it; return the paths, and why there are none of others."""
    from edgec.compiler.tflite.c_array import emit_c_array

    made = [_emitted(Path(one["path"]), emit_c_array) for one in build["artifacts"]]
    return [str(p) for paths, _ in made for p in paths], [problem for _, problem in made if problem]


def _emitted(artifact: Path, emit: Callable[[Path], tuple[Path, ...]]) -> tuple[tuple[Path, ...], str]:
    try:
        return emit(artifact), ""
    except ConversionError as e:  # LiteRT was among the candidates, and another engine won
        return (), str(e)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())


def progress_lines(quiet: bool) -> Callable[[str], None]:
    """Return what to tell of progress to: standard error, or nobody."""
    return _silent if quiet else _Progress()


def _silent(_: str) -> None:
    pass


class _Progress:
    """Prints each step with the time since the start to standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start = clock, clock()

    def __call__(self, line: str) -> None:
        click.echo(f"[{self._clock() - self._start:6.1f} s] {line}", err=True)
