"""What a fleet knows of a release when it judges it, and what it concludes: values, as stored and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from edgec.sketch import Histogram, QuantileSketch

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"


@dataclass(frozen=True, kw_only=True)
class DeviceEvidence:
    """What one device did with one artifact, over the time that is looked at; nothing where it was silent.

    Attributes:
        device: Its id.
        hardware: Its class of hardware.
        digest: Of the artifact, in hex.
        seconds: That its windows cover.
        calls: Of the model.
        errors: Of these, those that failed.
        sampled: Of these, those that were looked into.
        non_finite: Of the sampled, those with NaN or infinity.
        crashes: Ends of the agent or the application that nobody asked for.
        latency: In milliseconds; None where there is none.
        confidence: Highest scores; None where the model has none.
        classes: Calls by class; -1 is all others.
        named: Calls of windows that left classes out, by how many classes these name, and under 0 those whose
            classes the fleet had no place for; what else has no name is of a class that nobody knows.
        outputs: Values by output.
        compared: Calls that the model before answered, too, in its shadow.
        disagreed: Of these, those with another answer.
        settled: Whether it has had the artifact for so long that it must have told something of it.
    """

    device: str
    hardware: str
    digest: str
    seconds: float = 0.0
    calls: int = 0
    errors: int = 0
    sampled: int = 0
    non_finite: int = 0
    crashes: int = 0
    latency: QuantileSketch | None = None
    confidence: Histogram | None = None
    classes: Mapping[int, int] = field(default_factory=dict)
    named: Mapping[int, int] = field(default_factory=dict)
    outputs: Mapping[str, Histogram] = field(default_factory=dict)
    compared: int = 0
    disagreed: int = 0
    settled: bool = True


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a gate judges by.

    Attributes:
        candidate: Every device of the stages so far that has installed the release.
        control: Other devices, on what was there before, at the same time.
        before: The candidate's devices on what was there before, before their update.
        attempts: Devices of which it is known how the installation ended.
        failures: Of these, those where it failed or never ended.
        references: Shares per bin that the calibration data had, by digest and output.
    """

    candidate: tuple[DeviceEvidence, ...] = ()
    control: tuple[DeviceEvidence, ...] = ()
    before: tuple[DeviceEvidence, ...] = ()
    attempts: int = 0
    failures: int = 0
    references: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much worse than the control a release may be. Differences are to the control's figure.

    Attributes:
        alpha: Probability that a release which is no worse than the control is ever stopped by the figures of
            its behaviour; over all looks, stages, metrics and classes of hardware.
        install_failures: Share of installations that may fail. With 95 % confidence of Wilson's bound, and
            two failures at least, it stops at 2 of 20, 3 of 50, 5 of 100, 16 of 500.
        crashed_devices: Difference of the shares of devices that crashed.
        silent_devices: Difference of the shares of devices that say nothing of the model.
        errors: Difference of the shares of calls that failed.
        non_finite: Difference of the shares of sampled calls with NaN or infinity.
        slowdown: Ratio of the 95th percentiles of the latency.
        distance: Largest difference of distribution functions of confidence and outputs, or of the share of a
            class.
        shift: Population stability index, less its bias, that a distance must come with.
        disagreement: Share of calls that the model before answered otherwise.
        least_devices: In each arm; with fewer, calls are the units, and what is allowed is doubled.
        least_calls: In each arm, before anything is said about rates, latency and distributions.
        reporting: Least share of candidates that have told something; below, data is missing.
    """

    alpha: float = 0.01
    install_failures: float = 0.02
    crashed_devices: float = 0.05
    silent_devices: float = 0.3
    errors: float = 0.01
    non_finite: float = 0.005
    slowdown: float = 1.3
    distance: float = 0.15
    shift: float = 0.1
    disagreement: float = 0.15
    least_devices: int = 10
    least_calls: int = 1000
    reporting: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One figure of a verdict.

    Attributes:
        metric: ``installs``, ``crashes``, ``silence``, ``errors``, ``non_finite``, ``latency_p95``,
            ``confidence``, ``classes``, ``output:NAME`` or ``disagreement``.
        outcome: ``pass``, ``fail`` or ``inconclusive``.
        hardware: Class of hardware; empty for all.
        figure: The estimate; None where there is none.
        limit: What it may be.
        low: It is less with the probability that was spent, or less often.
        high: Likewise, more.
        n: Units of the candidate.
        n_control: Units of what it was held against.
        units: ``devices`` or ``inferences``.
        against: ``control``, ``before`` (the same devices before their update), ``reference`` (calibration
            data) or ``limit`` (nothing but the limit).
        detail: For people.
    """

    metric: str
    outcome: str
    hardware: str = ""
    figure: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_control: int = 0
    units: str = "devices"
    against: str = "control"
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is concluded at one look.

    Attributes:
        outcome: ``fail`` where any finding fails, else ``inconclusive`` where any is, else ``pass``.
        findings: All of them, with their figures.
        look: Its number within the stage, from 1.
    """

    outcome: str
    findings: tuple[Finding, ...]
    look: int

    @property
    def reason(self) -> str:
        """The metrics that decided, for programs: ``latency_p95,errors``; empty for ``pass``."""
        words = [f.metric for f in self.findings if f.outcome == self.outcome != PASS]
        return ",".join(dict.fromkeys(words))

    @property
    def detail(self) -> str:
        """What decided, for people."""
        return "; ".join(
            dict.fromkeys(f.detail for f in self.findings if f.outcome == self.outcome != PASS and f.detail)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Verdict:
        """Return what `to_dict` gave; what a later version added is left out."""
        known = {f.name for f in fields(Finding)}
        findings = tuple(
            Finding(**{k: v for k, v in entry.items() if k in known}) for entry in document["findings"]
        )
        return cls(outcome=document["outcome"], findings=findings, look=document["look"])
