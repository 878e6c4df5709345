"""The text of ``edgec benchmark``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgec.runtime.benchmark import BenchmarkResult, ColdStart, ThermalState
    from edgec.runtime.comparison import RunComparison
    from edgec.runtime.profiling import Profile
    from edgec.runtime.scenarios import ScenarioResult
    from edgec.runtime.sweep import SweepResult

_SHOWN_LAYERS = 15


def result_lines(result: BenchmarkResult) -> list[str]:
    """Return all there is to say of a benchmark, a fact per line."""
    latency, cold = result.latency, result.cold_start
    facts = [
        ("engine", f"{result.engine} {result.engine_version}{_declared(result.state)}"),
        ("precision", _precision(result)),
        ("placement", ", ".join(f"{count} nodes on {place}" for place, count in result.placement.items())),
        ("measured", _what(result)),
        ("latency", f"p50 {latency.p50_ms:.3f}   p90 {latency.p90_ms:.3f}   p99 {latency.p99_ms:.3f} ms"),
        ("throughput", f"{result.throughput_per_s:.0f} per second, one call after the other"),
        ("load", _load(cold)),
        ("first inference", f"{cold.first_inference_ms:.1f} ms"),
        ("peak memory", _memory(result)),
        ("verdict", _verdict(result)),
        ("machine", f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"),
        ("state", _state(result)),
        ("heat", _heat(result)),
        ("energy", _energy(result)),
    ]
    lines = [f"{result.model}: {result.artifact}"]
    lines += [f"  {label:<16}{fact}" for label, fact in facts]
    return lines + [f"  note: {concern}" for concern in result.concerns]


def _load(cold: ColdStart) -> str:
    if cold.engine_import_ms is None:
        return f"{cold.load_ms:.0f} ms, with the start of the engine's own process"
    return f"{cold.load_ms:.0f} ms, of which {cold.engine_import_ms:.0f} ms import the engine"


def _precision(result: BenchmarkResult) -> str:
    if not result.precisions:
        return f"{result.promised_precision} promised; the engine does not tell"
    layers = ", ".join(f"{name}: {count}" for name, count in sorted(result.precisions.items()))
    return f"{result.precision} measured (layers in {layers}), {result.promised_precision} promised"


def _what(result: BenchmarkResult) -> str:
    inputs = {
        "data": "the samples given, pre- and post-processing included",
        "golden": "the inputs of the golden vectors, bare tensors",
        "synthetic": "synthetic inputs (normal floats, integers 0 and 1), bare tensors",
    }
    threads = "as many as the engine takes" if result.threads is None else str(result.threads)
    runs = len(result.runs_p50_ms)
    where = f" in {runs} processes" if runs > 1 else ""
    where += ", the engine in its own," if result.isolated else ""
    return f"{result.latency.n} calls of {result.call}{where} on {inputs[result.inputs]}; threads: {threads}"


def _memory(result: BenchmarkResult) -> str:
    cold = result.cold_start
    if cold.peak_memory_mib is None or cold.memory_before_mib is None:
        return "unknown: this system does not tell"
    return f"{cold.peak_memory_mib:.0f} MiB, of which {cold.memory_before_mib:.0f} MiB before loading"


def _verdict(result: BenchmarkResult) -> str:
    latency = result.latency
    return (
        f"{result.verdict} (the typical latency drifted by {latency.drift_cv:.1%}; "
        f"coefficient of variation of all calls {latency.cv:.0%})"
    )


def _state(result: BenchmarkResult) -> str:
    machine = result.machine
    governor = machine.governor or "unknown (the system does not tell)"
    load = "unknown" if machine.load_average is None else f"{machine.load_average:.2f}"
    after = "unknown" if result.load_average_after is None else f"{result.load_average_after:.2f}"
    return f"governor {governor}, load average {load} before and {after} after"


def _heat(result: BenchmarkResult) -> str:
    before, after = result.thermal_before, result.thermal_after
    if not (before.is_known or after.is_known):
        return "unknown: this system shows neither temperatures nor clocks"
    return f"{_degrees(before)} before and {_degrees(after)} after; clock {_clock(after)}"


def _degrees(state: ThermalState) -> str:
    if not state.temperatures_c:
        return "unknown temperature"
    zone, degrees = max(state.temperatures_c.items(), key=lambda item: item[1])
    return f"{degrees:.0f} °C ({zone})"


def _clock(state: ThermalState) -> str:
    if state.clock_mhz is None or state.nominal_mhz is None:
        return "unknown"
    return f"{state.clock_mhz:.0f} of {state.nominal_mhz:.0f} MHz"


def _energy(result: BenchmarkResult) -> str:
    energy = result.energy
    if energy is None:
        return f"not measured: {result.energy_absent or 'the meter gave nothing'}"
    return (
        f"{energy.joules_per_call * 1e3:.3g} mJ per call, {energy.watts:.1f} W in the mean, idle included "
        f"({energy.source})"
    )


def comparison_lines(comparison: RunComparison, changes: Sequence[str]) -> list[str]:
    """Return what a comparison with a baseline came to, and what else changed."""
    change = f"{comparison.ratio - 1:+.1%} ({comparison.lower - 1:+.1%} to {comparison.upper - 1:+.1%})"
    line = (
        f"against baseline: {comparison.verdict}: {change} at {comparison.confidence:.0%} confidence, "
        f"p = {comparison.p_value:.3g}, {comparison.runs} runs against {comparison.baseline_runs}"
    )
    return [line, *(f"  note: other {change}" for change in changes)]


def profile_lines(profile: Profile) -> list[str]:
    """Return the layers that take longest, or why nobody knows."""
    if profile.absent:
        return [f"profile: none: {profile.absent}"]
    slowest = sorted(profile.layers, key=lambda layer: -layer.ms)
    total = profile.total_ms or 1.0
    lines = [
        f"profile: {len(slowest)} layers, {profile.total_ms:.3f} ms, medians of {profile.runs} inferences"
    ]
    lines += [
        f"  {layer.ms:9.4f} ms {layer.ms / total:6.1%}  {layer.kind}  {layer.name}"
        for layer in slowest[:_SHOWN_LAYERS]
    ]
    rest = slowest[_SHOWN_LAYERS:]
    if rest:
        ms = sum(layer.ms for layer in rest)
        lines.append(f"  {ms:9.4f} ms {ms / total:6.1%}  {len(rest)} others; --json has all of them")
    return lines


def scenario_lines(result: ScenarioResult) -> list[str]:
    """Return what LoadGen said of a run, and what it is not."""
    from edgec.runtime.scenarios import LABEL

    latency = result.latency_ms
    shown = "   ".join(f"{key} {latency[key]:.3f}" for key in ("p50", "p90", "p99") if key in latency)
    value = "none: too few queries" if result.value is None else f"{result.value:.6g} {result.unit}"
    settings = ", ".join(f"{key} {number:.6g}" for key, number in result.settings.items())
    met = ", ".join(f"{name} {'met' if met else 'NOT met'}" for name, met in result.constraints.items())
    inputs = {"data": "the samples given", "golden": "the golden inputs", "synthetic": "synthetic inputs"}
    facts = [
        ("scenario", f"{result.scenario}, by LoadGen {result.loadgen_version}: {LABEL}"),
        ("engine", f"{result.engine} {result.engine_version}{_declared(result.state)}"),
        (
            "measured",
            f"{result.queries} queries of {result.call} on {inputs[result.inputs]}, {_lanes(result)}",
        ),
        ("result", f"{result.metric}: {value}"),
        ("latency", f"{shown} ms per query"),
        ("verdict", f"{'valid' if result.valid else 'INVALID'} ({met})"),
        ("early stopping", result.early_stopping or "does not apply"),
        ("settings", settings),
        ("machine", f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"),
    ]
    lines = [f"{result.model}: {result.artifact}"]
    lines += [f"  {label:<16}{fact}" for label, fact in facts]
    return lines + [f"  note: {concern}" for concern in result.machine.concerns]


def _declared(state: str) -> str:
    return ", the declared fallback" if state == "fallback" else ""


def _lanes(result: ScenarioResult) -> str:
    return "one at a time" if result.concurrency == 1 else f"{result.concurrency} at once"


def sweep_lines(result: SweepResult) -> list[str]:
    """Return a table with a row per setting, and which is the best for what."""
    lines = [
        result.title,
        f"  {'engine':<14}{'threads':>8}{'batch':>7}{'p50 ms':>10}{'p99 ms':>10}{'samples/s':>12}",
    ]
    for point in result.points:
        threads = "own" if point.threads is None else point.threads
        latency = point.latency
        lines.append(
            f"  {point.engine:<14}{threads:>8}{point.batch:>7}{latency.p50_ms:>10.3f}{latency.p99_ms:>10.3f}"
            f"{point.samples_per_s:>12.0f}{'' if latency.is_stable else '  unstable'}"
        )
    for what, best in (("lowest latency", result.fastest), ("most samples per second", result.busiest)):
        lines.append(f"  {what}: {best.engine} {best.label}")
    return lines + [f"  note: {note}" for note in (*result.notes, *result.machine.concerns)]
