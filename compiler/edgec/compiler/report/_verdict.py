"""What a build says in a few words: the same words in HTML and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgec.artifact._report_text import (
    decibel_text,
    difference_text,
    duration_text,
    engine_title,
    interval_text,
    number,
    one_line,
    score_text,
    significant,
)

_VERDICTS = {
    "pass": "within the budget",
    "fail": "outside the budget",
    "inconclusive": "too few samples to tell",
}
_STATES = {"fallback": "its own engine did not run here; what ran is the declared fallback"}


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A warning; `target` is None where it holds for the whole build."""

    target: str | None
    text: str


def candidates_of(artifact: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the candidates of an artifact, best first: by status, then by median latency."""
    ranks = {"winner": 0, "admissible": 1, "refused": 2, "failed": 3, "skipped": 4}

    def rank(candidate: Mapping[str, Any]) -> tuple[int, float]:
        p50 = number(_mapping(candidate.get("latency_ms")).get("p50"))
        return ranks.get(str(candidate.get("status")), 5), float("inf") if p50 is None else p50

    return sorted(artifact.get("candidates") or (), key=rank)


def winner_of(artifact: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the candidate that won; an empty mapping where none is marked."""
    return next((c for c in artifact.get("candidates") or () if c.get("status") == "winner"), {})


def chosen(artifact: Mapping[str, Any]) -> str:
    """Return what was chosen: ``ONNX Runtime int8``."""
    return f"{engine_title(artifact.get('engine'))} {artifact.get('precision') or ''}".strip()


def size_change(size_bytes: Any, source_bytes: Any) -> str | None:
    """Return a size against the source model's: ``62 % smaller than the source model``."""
    size, source = number(size_bytes), number(source_bytes)
    if size is None or not source:
        return None
    change = size / source - 1
    if abs(change) < 0.005:
        return "as large as the source model"
    return f"{abs(change) * 100:.0f} % {'smaller' if change < 0 else 'larger'} than the source model"


def drop_bound_text(accuracy: Any) -> str | None:
    """Return what the paired difference shows: ``at most 0.40 points worse than fp32``."""
    accuracy = _mapping(accuracy)
    bound = number(accuracy.get("drop_bound"))
    if bound is None:
        return None
    amount = difference_text(bound, accuracy.get("metric"))
    side = f"at least {amount} better" if bound < 0 else f"at most {amount} worse"
    return f"{side} than fp32 (95 % confidence, paired)"


def budget_text(accuracy: Any) -> str | None:
    """Return how an artifact stands to its accuracy budget; None where nothing was held against it."""
    verdict = _mapping(accuracy).get("verdict")
    words = _VERDICTS.get(str(verdict), str(verdict)) if verdict else None
    return ": ".join(filter(None, (words, drop_bound_text(accuracy)))) or None


def state_text(state: Any) -> str | None:
    """Return what a state other than ``ready`` means; None where there is nothing to say."""
    if not state or state == "ready":
        return None
    return _STATES.get(str(state), str(state))


def estimate_text(estimate: Any) -> str | None:
    """Return what a toolchain says: ``0.42 ms, 210000 cycles at 500 MHz, SRAM 96 KiB, estimated by ...``."""
    estimate = _mapping(estimate)
    if number(estimate.get("latency_ms")) is None:
        return None
    parts = [f"{significant(estimate['latency_ms'])} ms"]
    if number(estimate.get("cycles")) is not None:
        clock = number(estimate.get("clock_mhz"))
        at = f" at {clock:.0f} MHz" if clock is not None else ""
        parts.append(f"{estimate['cycles']:.0f} cycles{at}")
    for key, name in (("sram_kib", "SRAM"), ("dram_kib", "DRAM"), ("flash_kib", "flash")):
        if number(estimate.get(key)):
            parts.append(f"{name} {estimate[key]:.0f} KiB")
    if number(estimate.get("operators")) is not None and number(estimate.get("cpu_operators")) is not None:
        parts.append(f"{estimate['cpu_operators']:.0f} of {estimate['operators']:.0f} operators on the CPU")
    return ", ".join([*parts, *filter(None, [str(estimate.get("source") or "")])])


def accuracy_text(accuracy: Any) -> str | None:
    """Return a score beside its source's: ``source 98.1 %, 95 % CI 96.1 – 98.9 %, n = 540``."""
    accuracy = _mapping(accuracy)
    metric = accuracy.get("metric")
    parts = []
    if number(accuracy.get("source")) is not None:
        parts.append(f"source {score_text(accuracy['source'], metric)}")
    if accuracy.get("ci95"):
        parts.append(f"95 % CI {interval_text(accuracy['ci95'], metric)}")
    if number(accuracy.get("n")) is not None:
        parts.append(f"n = {accuracy['n']}")
    return ", ".join(parts) or None


def parity_text(parity: Any) -> str:
    """Return a parity result: ``passed, 38.2 dB``; ``not run`` where there is none."""
    if not isinstance(parity, Mapping):
        return "not run"
    figure = decibel_text(parity.get("snr_db"), max_abs_error=parity.get("max_abs_error"))
    return f"{'passed' if parity.get('passed') else 'FAILED'}, {figure}"


def overview(build: Mapping[str, Any]) -> str:
    """Return one sentence on the whole build."""
    made, skipped = len(build.get("artifacts") or ()), len(build.get("skipped") or ())
    text = f"{made} artifact{'' if made == 1 else 's'} built"
    if skipped:
        text += f", {skipped} target{'' if skipped == 1 else 's'} not built"
    if number(build.get("duration_s")) is not None:
        text += f", in {duration_text(build['duration_s'])}"
    return text + "."


def warnings_of(build: Mapping[str, Any]) -> list[Warned]:
    """Return what a reader must know before believing any figure, the most general first."""
    found: list[Warned] = []
    synthetic = _mapping(build.get("data")).get("synthetic")
    if synthetic:
        found.append(Warned(target=None, text=str(synthetic)))
    for skipped in build.get("skipped") or ():
        text = f"not built: {skipped.get('reason') or 'no reason given'}"
        found.append(Warned(target=one_line(skipped.get("target")), text=text))
    for artifact in build.get("artifacts") or ():
        target = one_line(artifact.get("target"))
        texts = [*_measured_warnings(artifact), *map(str, artifact.get("warnings") or ())]
        said = {w.text for w in found if w.target is None}
        found += [Warned(target=target, text=t) for t in dict.fromkeys(texts) if t not in said]
    return found


def is_other_precision(artifact: Mapping[str, Any]) -> bool:
    """Whether the engine says that it runs another precision than was promised."""
    promised, effective = artifact.get("precision"), artifact.get("effective_precision")
    return bool(promised and effective) and effective != promised


def _measured_warnings(artifact: Mapping[str, Any]) -> Iterator[str]:
    parity = artifact.get("parity")
    if isinstance(parity, Mapping) and not parity.get("passed"):
        yield "parity FAILED: the artifact does not compute what its source computes."
    if is_other_precision(artifact):
        yield (
            f"the engine runs {artifact['effective_precision']}, not the promised "
            f"{artifact.get('precision')}; figures are those of what ran."
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
