"""How a release does in the field, as an artifact declares it: what simulated devices draw from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import ArtifactError, EdgecError

MEMBER = "simulation.json"
_MOST_BYTES = 65536
_MOST_CLASSES = 1000
_SHARES = (
    "confidence", "collapse", "output_shift", "input_shift", "errors", "non_finite", "disagreement",
    "afflicted",
)  # fmt: skip


class BehaviourError(EdgecError):
    """A declared behaviour cannot be; the message has all that is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What the calls of one release are like. The default is a healthy one.

    Attributes:
        latency_ms: Median of the time of one call.
        spread: Standard deviation of its logarithm.
        confidence: Mean of the highest score.
        classes: How often each class is the answer; of any scale.
        collapse: Share of calls that are answered with the first class, whatever they show.
        output_shift: Share of output values that lie beyond the last quantile of the reference.
        input_shift: Share of calls with inputs whose statistics lie beyond the last quantile of theirs.
        errors: Share of calls that fail.
        non_finite: Share of calls with NaN.
        crashes_per_minute: How often the application dies of it, on each device.
        disagreement: Share of calls that the model before answers otherwise.
        afflicted: Share of devices that it is so on; on the others it does as a healthy one.
    """

    latency_ms: float = 8.0
    spread: float = 0.25
    confidence: float = 0.86
    classes: tuple[float, ...] = (1.0,) * 10
    collapse: float = 0.0
    output_shift: float = 0.0
    input_shift: float = 0.0
    errors: float = 0.0005
    non_finite: float = 0.0
    crashes_per_minute: float = 0.0
    disagreement: float = 0.03
    afflicted: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be, all of it at once."""
        problems = [f"{name} must be from 0 to 1" for name in _SHARES if not 0 <= getattr(self, name) <= 1]
        if not 0 < self.latency_ms <= 1e6 or not 0 <= self.spread <= 3:
            problems.append("latency_ms must be above 0 and at most 1e6, spread from 0 to 3")
        if not 0 <= self.crashes_per_minute <= 600:
            problems.append("crashes_per_minute must be from 0 to 600")
        fit = 0 < len(self.classes) <= _MOST_CLASSES and all(0 <= c < math.inf for c in self.classes)
        if not fit or not sum(self.classes):
            problems.append(f"classes must be 1 to {_MOST_CLASSES} weights, not all 0")
        if problems:
            raise BehaviourError(f"this behaviour cannot be: {'; '.join(problems)}")

    def to_json(self) -> bytes:
        """Return it as the member of an artifact has it."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Behaviour:
        """Return what a member declares; what is missing is as of a healthy release.

        Raises:
            BehaviourError: It is no object of known fields, or a value cannot be.
        """
        try:
            plain = json.loads(data, parse_int=float)
        except (ValueError, RecursionError) as e:
            raise BehaviourError(f"{MEMBER} is no JSON: {e}") from e
        if not isinstance(plain, dict):
            raise BehaviourError(f"{MEMBER} must hold an object")
        return cls(**_checked(plain))

    def of_device(self, luck: float) -> Behaviour:
        """Return how it does on one device.

        Args:
            luck: Of the device with this release, from 0 to 1.
        """
        if luck < self.afflicted:
            return self
        return Behaviour(classes=self.classes)


def _checked(plain: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(Behaviour)}
    problems = [f"{name!r:.40} is unknown" for name in plain if name not in names]
    values: dict[str, Any] = {}
    for name in names & set(plain):
        many = name == "classes"
        given = plain[name] if many and isinstance(plain[name], list) else [plain[name]]
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in given):
            problems.append(f"{name} must be {'numbers' if many else 'a number'}")
        else:
            values[name] = tuple(float(n) for n in given) if many else float(given[0])
    if problems:
        raise BehaviourError(f"{MEMBER} cannot be used: {'; '.join(sorted(problems))}")
    return values


HEALTHY = Behaviour()
# What a release can be bad in. Two more of `POISONS` are no behaviour: a device's own trial stops them.
POISONED: Mapping[str, Behaviour] = {
    "crashes": replace(HEALTHY, crashes_per_minute=60.0, afflicted=0.6),
    "slow": replace(HEALTHY, latency_ms=17.0),
    "nan": replace(HEALTHY, non_finite=0.1),
    "wrong_outputs": replace(HEALTHY, collapse=0.6, output_shift=0.3, disagreement=0.5),
    "low_confidence": replace(HEALTHY, confidence=0.55),
    "disagreement": replace(HEALTHY, disagreement=0.85),
}
POISONS = (*POISONED, "memory", "install")


def behaviour_of(artifact: Artifact) -> Behaviour:
    """Return what an artifact declares; that of a healthy release with its labels where it declares nothing.

    Raises:
        BehaviourError: What it declares cannot be used.
        ArtifactError: It is damaged.
    """
    if MEMBER in artifact.manifest.members:
        data = bytes(artifact.view(MEMBER))
        if len(data) > _MOST_BYTES:
            raise ArtifactError(f"{MEMBER} has {len(data)} bytes; at most {_MOST_BYTES} are read")
        return Behaviour.from_json(data)
    pipeline = artifact.manifest.pipeline
    labels = len(pipeline.labels) if pipeline is not None and pipeline.labels else len(HEALTHY.classes)
    return replace(HEALTHY, classes=(1.0,) * min(labels, _MOST_CLASSES))
