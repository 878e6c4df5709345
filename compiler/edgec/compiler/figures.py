"""Figures of a build in the shape of its report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from edgec.artifact import TensorSpec
from edgec.compiler import report
from edgec.compiler.accuracy import Baseline
from edgec.compiler.converters import Estimate
from edgec.compiler.explain import Flip, LayerError
from edgec.compiler.model import SourceModel
from edgec.compiler.options import CompileOptions
from edgec.compiler.parity import Parity
from edgec.compiler.samples import Samples
from edgec.compiler.tournament import Contender
from edgec.compiler.variants import Variant
from edgec.evaluation import Dataset
from edgec.runtime.benchmark import this_machine
from edgec.runtime.measurement import LatencySamples

_TOOLS = (
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "ai-edge-litert",
    "ethos-u-vela",
    "onnxslim",
    "onnx-ir",
)


def build_info(
    source: SourceModel,
    samples: Samples,
    options: CompileOptions,
    name: str,
    command: Sequence[str],
) -> report.Build:
    """Return the report of a build that has no artifacts yet."""
    return {
        "edgec": version("edgec"),
        "model": {
            "name": name,
            "version": options.version,
            "file": str(source.path) if source.origin is None else source.origin.file,
            "sha256": source.sha256,
            "size_bytes": source.size_bytes,
            "nodes": len(source.proto.graph.node),
            "parameters": source.parameters,
            "opset": source.opset,
            "inputs": tensor_infos(source.inputs),
            "outputs": tensor_infos(source.outputs),
            "origin": None if source.origin is None else source.origin.to_dict(),
        },
        "command": list(command),
        "options": options.to_dict(),
        "data": {
            "calibration": data_source(samples.calibration),
            "evaluation": data_source(samples.evaluation),
            "synthetic": samples.synthetic_sentence(source.inputs),
        },
        "machine": machine_info(),
        "tools": tool_versions(),
        "duration_s": None,
        "artifacts": [],
        "skipped": [],
    }


def machine_info() -> report.MachineInfo:
    """Return this machine in the report's shape."""
    machine = this_machine()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "arch": machine.arch,
        "os": machine.system,
        "python": machine.python,
        "governor": machine.governor,
        "load_1m": machine.load_average,
        "memory_mib": machine.memory_mib,
    }


def tool_versions() -> dict[str, str]:
    """Return the versions of the installed tools that shape an artifact."""
    return {tool: found for tool in _TOOLS if (found := _version(tool)) is not None}


def _version(tool: str) -> str | None:
    try:
        return version(tool)
    except PackageNotFoundError:
        return None


def tensor_infos(specs: Sequence[TensorSpec]) -> list[report.TensorInfo]:
    """Return specs in the report's shape."""
    return [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]


def data_source(data: Dataset | None) -> report.DataSource | None:
    """Return a data set in the report's shape."""
    if data is None:
        return None
    return {
        "description": data.description,
        "source": data.source,
        "digest": data.digest,
        "samples": len(data),
    }


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold; None for one that it cannot."""
    return value if value is not None and math.isfinite(value) else None


def parity_info(parity: Parity | None) -> report.Parity | None:
    """Return parity in the report's shape."""
    if parity is None:
        return None
    worst = parity.worst
    return {
        "passed": parity.passed,
        "snr_db": finite(worst.comparison.snr_db),
        "max_abs_error": _error(worst.comparison.max_abs_error),
        "tolerance": worst.tolerance.max_abs,
        "reference": parity.reference,
        "outputs": [
            {
                "name": o.comparison.name,
                "max_abs_error": _error(o.comparison.max_abs_error),
                "snr_db": finite(o.comparison.snr_db),
                "cosine": finite(o.comparison.cosine),
                "tolerance": o.tolerance.max_abs,
            }
            for o in parity.outputs
        ],
    }


def _error(value: float) -> float:
    # JSON has no infinity: an error without bound is the largest number there is.
    return value if math.isfinite(value) else 1.7976931348623157e308


def accuracy_info(contender: Contender, baseline: Baseline | None) -> report.Accuracy | None:
    """Return accuracy in the report's shape; None where there are no labels."""
    gate = contender.gate
    if gate is None or gate.score is None or baseline is None:
        return None
    return {
        "metric": baseline.metric.name,
        "source": finite(baseline.score.value),
        "artifact": gate.score.value,
        "ci95": [gate.score.ci95[0], gate.score.ci95[1]],
        "n": gate.score.n,
        "drop_bound": -gate.difference.lower_bound if gate.difference is not None else None,
        "verdict": gate.verdict,
        "higher_is_better": gate.score.higher_is_better,
    }


def latency_info(latency: LatencySamples | None) -> report.Latency | None:
    """Return latency in the report's shape."""
    if latency is None:
        return None
    return {
        "p50": latency.p50_ms,
        "p90": latency.p90_ms,
        "p99": latency.p99_ms,
        "mean": latency.mean_ms,
        "cv": latency.cv,
        "n": latency.n,
    }


def estimate_info(estimate: Estimate) -> report.EstimateInfo:
    """Return what a toolchain says in the report's shape."""
    figures = {"latency_ms": estimate.latency_ms, "source": estimate.source, **estimate.figures}
    return cast("report.EstimateInfo", figures)


def candidate_info(
    contender: Contender, reason: str, fp32: LatencySamples | None, baseline: Baseline | None
) -> report.CandidateInfo:
    """Return a candidate in the report's shape."""
    speedup = (
        fp32.p50_ms / contender.latency.p50_ms if fp32 is not None and contender.latency is not None else None
    )
    info: report.CandidateInfo = {
        "name": contender.name,
        "engine": contender.engine,
        "precision": contender.precision,
        "status": contender.status,
        "reason": reason,
        "size_bytes": contender.size_bytes,
        "parity": parity_info(contender.parity),
        "accuracy": accuracy_info(contender, baseline),
        "latency_ms": latency_info(contender.latency),
        "speedup": speedup,
        "memory_mib": contender.memory_mib,
        "source_snr_db": finite(contender.source_snr_db),
    }
    if contender.estimate is not None:
        info["estimate"] = estimate_info(contender.estimate)
    if contender.layers:
        info["layers"] = layer_infos(contender.layers)
    if contender.flips:
        info["flips"] = flip_infos(contender.flips)
    return info


def flip_infos(flips: Sequence[Flip]) -> list[report.FlipInfo]:
    """Return turned predictions in the report's shape."""
    return [{"name": f.name, "label": f.label, "before": f.before, "after": f.after} for f in flips]


def layer_infos(layers: Sequence[LayerError]) -> list[report.LayerInfo]:
    """Return errors of layers in the report's shape."""
    return [
        {
            "name": e.name,
            "op": e.op,
            "tensor": e.tensor,
            "precision": e.precision,
            "accumulated_snr_db": e.accumulated_snr_db,
            "local_snr_db": e.local_snr_db,
            "isolated": e.isolated,
            "isolated_snr_db": e.isolated_snr_db,
            "isolated_score": e.isolated_score,
        }
        for e in layers
    ]


def provenance(build: report.Build, variant: Variant, extra: dict[str, Any]) -> dict[str, Any]:
    """Return what an artifact was made from and with: digests and versions, no paths and no times."""
    data = build.get("data", {})
    return {
        "edgec": build["edgec"],
        "tools": build.get("tools", {}),
        "source": {"sha256": build["model"]["sha256"], "size_bytes": build["model"]["size_bytes"]},
        "calibration": _digest_of(data.get("calibration")),
        "evaluation": _digest_of(data.get("evaluation")),
        "options": build.get("options", {}),
        "variant": variant.name,
        "notes": list(variant.notes),
        **extra,
    }


def _digest_of(source: report.DataSource | None) -> dict[str, Any] | None:
    return None if source is None else {"sha256": source.get("digest"), "samples": source.get("samples")}
