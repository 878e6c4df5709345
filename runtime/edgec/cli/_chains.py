"""What the commands do with a chain in place of an artifact."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._text import columns, printable, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgec.artifact.steps import Step
    from edgec.runtime.chains import ChainBenchmark, ChainSpec

_MOST_SAMPLES = 256


def is_chain(path: Path) -> bool:
    """Whether a path is that of a chain, not of an artifact."""
    return path.suffix.lower() == ".toml"


def inspect_chain(path: Path, as_json: bool) -> None:
    """Show what a chain and the artifacts in it say of themselves."""
    from edgec.artifact import Artifact
    from edgec.runtime.chains import read_chain

    spec = read_chain(path)
    artifacts: dict[str, dict[str, Any]] = {}
    for name, place in spec.artifacts.items():
        with Artifact.open(place) as artifact:
            manifest = artifact.manifest
            artifacts[name] = {
                "path": str(place),
                "content_digest": artifact.content_digest,
                "size_bytes": artifact.size_bytes,
                "model": manifest.model,
                "model_version": manifest.model_version,
                "target": manifest.target,
                "engine": manifest.engine.name,
                "precision": manifest.engine.precision,
            }
    shape = {
        "chain": str(path),
        "model": spec.model,
        "model_version": spec.model_version,
        "inputs": {name: declared.to_dict() for name, declared in spec.inputs.items()},
        "stages": [_stage(name, stage, artifacts.get(name)) for name, stage in spec.stages.items()],
        "outputs": spec.outputs,
    }
    click.echo(json.dumps(shape, indent=2) if as_json else "\n".join(_inspect_lines(spec, artifacts)))


def _stage(name: str, stage: Step, artifact: dict[str, Any] | None) -> dict[str, Any]:
    values = {key: value for key, value in stage.to_dict().items() if key != "step"}
    if artifact is None:
        return {"name": name, "step": stage.step, **values}
    values["state"] = [
        {key: value for key, value in state.to_dict().items() if key != "step"} for state in values["state"]
    ]
    return {"name": name, **values, "of": artifact}


def _inspect_lines(spec: ChainSpec, artifacts: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield printable(f"{spec.model} {spec.model_version}: a chain of {len(spec.stages)} stages")
    yield from ("", "inputs", *columns([(name, _keys(step)) for name, step in spec.inputs.items()]))
    rows = []
    for name, stage in spec.stages.items():
        artifact = artifacts.get(name)
        what = stage.step if artifact is None else f"{artifact['model']} {artifact['model_version']}"
        rows.append((name, printable(what), printable(_keys(stage))))
    yield from ("", "stages", *columns(rows))
    outputs = spec.outputs if isinstance(spec.outputs, dict) else {"all of": spec.outputs}
    yield from ("", "outputs", *columns([(name, value) for name, value in outputs.items()]))
    told = [
        (name, a["engine"], a["precision"], a["target"], size(a["size_bytes"]), a["content_digest"])
        for name, a in artifacts.items()
    ]
    yield from ("", "artifacts", *columns(told))


def _keys(step: Step) -> str:
    shown = {
        key: value for key, value in step.to_dict().items() if key != "step" and value not in ((), [], {})
    }
    return ", ".join(f"{key} {_short(value)}" for key, value in shown.items())


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " and ".join(f"{key} from {item}" for key, item in value.items())
    if isinstance(value, list):
        return " and ".join(map(_short_state, value))
    return str(value)


def _short_state(value: object) -> str:
    from edgec.runtime.chains import RecurrentState

    return f"{value.output} to {value.input}" if isinstance(value, RecurrentState) else str(value)


def verify_chain(
    path: Path, digests_only: bool, cache_dir: Path | None, delegate: Path | None
) -> dict[str, Any]:
    """Verify every artifact of a chain, and that its stages fit each other.

    Returns:
        ``chain``, ``stages`` (as of each artifact, by stage), ``fits`` (None where nothing was loaded) and
        ``passed``.

    Raises:
        EdgecError: An artifact is damaged or does not load, or the stages do not fit.
    """
    from edgec.cli.verify import verify_artifact
    from edgec.runtime.chains import load_chain, read_chain

    stages = {
        name: verify_artifact(place, digests_only, cache_dir, delegate)
        for name, place in read_chain(path).artifacts.items()
    }
    passed = all(stage["passed"] for stage in stages.values())
    if digests_only or not passed:
        return {"chain": str(path), "stages": stages, "fits": None, "passed": passed}
    load_chain(path, cache_dir=cache_dir, delegate=delegate, self_test=False).close()
    return {"chain": str(path), "stages": stages, "fits": True, "passed": passed}


def benchmark(
    path: Path,
    data: str | None,
    duration_s: float,
    threads: int | None,
    cache_dir: Path | None,
    delegate: Path | None,
    as_json: bool,
) -> None:
    """Measure a chain and say what came out."""
    from edgec.runtime.chains import benchmark_chain

    samples = None if data is None else _read_samples(path, data)
    result = benchmark_chain(
        path,
        samples=samples,
        duration_s=duration_s,
        threads=threads,
        cache_dir=cache_dir,
        delegate=delegate,
    )
    shape = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    click.echo(shape if as_json else "\n".join(_benchmark_lines(result)))


def _read_samples(path: Path, data: str) -> list[object]:
    from edgec.evaluation import open_dataset
    from edgec.runtime.chains import read_chain

    dataset = open_dataset(data, pipeline=read_chain(path).pipeline)
    return [sample.data for sample in islice(dataset, _MOST_SAMPLES)]


def _benchmark_lines(result: ChainBenchmark) -> Iterator[str]:
    latency = result.latency
    threads = "as many as the engine takes" if result.threads is None else str(result.threads)
    inputs = {"data": "the samples given", "synthetic": "synthetic inputs"}[result.inputs]
    verdict = "stable" if latency.is_stable else "unstable"
    facts = [
        ("engine", f"{result.engine} {result.engine_version}"),
        ("measured", f"{latency.n} calls on {inputs}; threads: {threads}"),
        ("latency", f"p50 {latency.p50_ms:.3f}   p90 {latency.p90_ms:.3f}   p99 {latency.p99_ms:.3f} ms"),
        ("throughput", f"{result.throughput_per_s:.0f} per second, one call after the other"),
        ("verdict", f"{verdict} (the typical latency drifted by {latency.drift_cv:.1%})"),
        ("machine", f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"),
    ]
    yield f"{result.model}: {result.path}"
    yield from (f"  {label:<16}{fact}" for label, fact in facts)
    yield "  stages"
    yield from (f"    {stage.ms:9.4f} ms {stage.share:6.1%}  {stage.stage}" for stage in result.stages)
    yield from (f"  note: {concern}" for concern in result.concerns)
