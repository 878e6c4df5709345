"""``edgec compare``: how far apart are what two models compute?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._models import OpenModel, is_source, open_model
from edgec.cli._progress import progress
from edgec.cli._text import columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgec.artifact import TensorSpec
    from edgec.evaluation import OutputComparison

    Arrays = Mapping[str, NDArray[Any]]

_SYNTHETIC_SAMPLES = 8


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="DATA",
    help="Samples to run both on, each through its own pre-processing; see `edgec evaluate --data`.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    help="With --data, the most samples to use, spread evenly; without, how many synthetic inputs to make.",
)
@click.option("--seed", type=click.IntRange(0), help="Of synthetic inputs; 0 if not given.")
@click.option(
    "--pipeline",
    "-p",
    type=click.Path(path_type=Path),
    help="Pre-processing of ONNX models; artifacts carry their own.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    a: Path,
    b: Path,
    data: str | None,
    samples: int | None,
    seed: int | None,
    pipeline: Path | None,
    as_json: bool,
) -> None:
    """Compare what B computes with what A does, output by output: artifacts or ONNX models.

    Inputs are those of --data, else the golden vectors of A (or of B where A has none), else synthetic
    ones, which is said loudly. With --samples or --seed they are synthetic in any case.

    \b
    edgec compare digits-fp32.edgec digits-int8.edgec --data evaluation.npz
    edgec compare digits.onnx digits-int8.edgec --pipeline pipeline.toml --data evaluation.npz
    edgec compare model.onnx model-int8.edgec --samples 64 --seed 1 --json
    """
    if data is not None and seed is not None:
        raise click.UsageError("--seed is for synthetic inputs: leave it out, or leave out --data")
    if pipeline is not None and not (is_source(a) or is_source(b)):
        raise click.UsageError("--pipeline is for ONNX models; artifacts carry their own")
    with (
        open_model(a, pipeline if is_source(a) else None) as first,
        open_model(b, pipeline if is_source(b) else None) as second,
    ):
        inputs = _inputs(first, second, data, samples, seed)
        if inputs.kind == "synthetic":
            click.echo(f"warning: {inputs.description}: give --data to compare on real inputs", err=True)
        found = _compare(first, second, inputs)
    if as_json:
        click.echo(json.dumps(_shape(first, second, inputs, found), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(_lines(first, second, inputs, found)))


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What both models are run on.

    Attributes:
        kind: ``data``, ``golden`` or ``synthetic``.
        description: In words.
        n: How many.
        pairs: For each sample the inputs of the first model and of the second.
    """

    kind: str
    description: str
    n: int
    pairs: Iterator[tuple[Arrays, Arrays]]


def _inputs(
    first: OpenModel, second: OpenModel, data: str | None, samples: int | None, seed: int | None
) -> _Inputs:
    if data is not None:
        return _from_data(first, second, data, samples)
    specs = _common_specs(first, second)
    golden = next((m for m in (first, second) if m.golden), None)
    if golden is not None and samples is None and seed is None:
        return _Inputs(
            kind="golden",
            description=f"{len(golden.golden)} golden vectors of {golden.path}",
            n=len(golden.golden),
            pairs=((vector.inputs, vector.inputs) for vector in golden.golden),
        )
    return _synthetic(specs, samples or _SYNTHETIC_SAMPLES, seed or 0)


def _from_data(first: OpenModel, second: OpenModel, data: str, limit: int | None) -> _Inputs:
    from edgec.evaluation import open_dataset

    _check_preparation(first, second)
    # Raw samples, where one of them prepares them: the other may have that in its graph.
    opener = first if _prepares(first) or not _prepares(second) else second
    dataset = open_dataset(data, inputs=opener.inputs, pipeline=opener.pipeline)
    n = len(dataset) if limit is None else min(limit, len(dataset))
    return _Inputs(
        kind="data",
        description=f"{n} of the samples of {dataset.description}"
        if n < len(dataset)
        else dataset.description,
        n=n,
        pairs=(
            (first.processor.preprocess(sample.data)[0], second.processor.preprocess(sample.data)[0])
            for sample in dataset.select(limit)
        ),
    )


def _prepares(model: OpenModel) -> bool:
    return model.pipeline is not None and bool(model.pipeline.preprocess)


def _check_preparation(first: OpenModel, second: OpenModel) -> None:
    """Refuse to feed to one model as it is what the other one prepares."""
    for model, other in ((first, second), (second, first)):
        if model.state == "source" and model.pipeline is None and _prepares(other):
            raise click.UsageError(
                f"{other.path} prepares its samples, {model.path} would take them as they are: give the "
                "pipeline that they share, --pipeline FILE.toml"
            )


def _synthetic(specs: Sequence[TensorSpec], n: int, seed: int) -> _Inputs:
    from edgec.evaluation import describe_synthetic, synthetic_inputs

    return _Inputs(
        kind="synthetic",
        description=f"the {n} inputs are synthetic ({describe_synthetic(specs)}; seed {seed})",
        n=n,
        pairs=((inputs, inputs) for inputs in synthetic_inputs(specs, n, seed)),
    )


def _common_specs(first: OpenModel, second: OpenModel) -> list[TensorSpec]:
    """Return inputs that both models take as they are.

    Raises:
        DataError: There are none: the models take different inputs.
    """
    from edgec.errors import DataError

    theirs = {spec.name: spec for spec in second.inputs}
    specs = [_common_spec(spec, theirs[spec.name]) for spec in first.inputs if spec.name in theirs]
    if len(specs) != len(first.inputs) or len(specs) != len(theirs) or None in specs:
        raise DataError(
            f"{first.path} takes {', '.join(map(str, first.inputs))}; {second.path} takes "
            f"{', '.join(map(str, second.inputs))}: give --data, which goes through the pre-processing of "
            "each (--pipeline for an ONNX model)"
        )
    return [spec for spec in specs if spec is not None]


def _common_spec(a: TensorSpec, b: TensorSpec) -> TensorSpec | None:
    if a.dtype != b.dtype or len(a.shape) != len(b.shape):
        return None
    shape = tuple(y if isinstance(x, str) else x for x, y in zip(a.shape, b.shape, strict=True))
    fits = all(isinstance(y, str) or x == y for x, y in zip(shape, b.shape, strict=True))
    return replace(a, shape=shape) if fits else None


def _compare(first: OpenModel, second: OpenModel, inputs: _Inputs) -> list[OutputComparison]:
    from edgec.errors import DataError
    from edgec.evaluation import OutputTally

    names, others = ([spec.name for spec in model.outputs] for model in (first, second))
    if set(names) != set(others):
        raise DataError(
            f"{first.path} gives {', '.join(names)}; {second.path} gives {', '.join(others)}: "
            "only models with the same outputs can be compared"
        )
    tallies = [OutputTally(name) for name in names]
    with progress("comparing", inputs.n) as advance:
        for mine, theirs in inputs.pairs:
            reference, actual = first.run(mine), second.run(theirs)
            for name, tally in zip(names, tallies, strict=True):
                tally.add(reference[name], actual[name])
            advance()
    return [tally.result for tally in tallies]


def _shape(
    first: OpenModel, second: OpenModel, inputs: _Inputs, found: Sequence[OutputComparison]
) -> dict[str, Any]:
    return {
        "a": first.facts(),
        "b": second.facts(),
        "inputs": {"kind": inputs.kind, "description": inputs.description, "samples": inputs.n},
        "outputs": [
            {
                "name": output.name,
                "max_abs_error": _finite(output.max_abs_error),
                "snr_db": _finite(output.snr_db),
                "cosine": output.cosine,
                "agreement": output.agreement,
                "identical": output.max_abs_error == 0,
            }
            for output in found
        ],
    }


def _lines(
    first: OpenModel, second: OpenModel, inputs: _Inputs, found: Sequence[OutputComparison]
) -> list[str]:
    told = columns([("a", str(first)), ("b", str(second)), ("inputs", inputs.description)], "")
    rows = [("output", "max abs error", "SNR", "cosine", "agreement"), *map(_row, found)]
    return [*told, "", *columns(rows, "")]


def _row(output: OutputComparison) -> tuple[str, ...]:
    snr = "identical" if output.max_abs_error == 0 else f"{output.snr_db:.1f} dB"
    agreement = "-" if output.agreement is None else f"{output.agreement:.1%}"
    return output.name, f"{output.max_abs_error:.3g}", snr, f"{output.cosine:.6f}", agreement


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
