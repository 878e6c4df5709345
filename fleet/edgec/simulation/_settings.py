"""How a simulation goes: values, as options and worker processes have them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgec.device_agent import TelemetryPolicy, UpdateSettings
from edgec.errors import EdgecError
from edgec.simulation._behaviour import HEALTHY, POISONED, POISONS, Behaviour

# What may leave a simulated device: as on a real one, but that a day has more windows.
TELEMETRY = TelemetryPolicy(max_bytes_per_day=10**9)
_UPDATES = UpdateSettings(refresh_s=0, probation_s=2.0, health_timeout_s=120)


class SimulationError(EdgecError):
    """A simulation cannot be run as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Poison:
    """What releases are bad in on some devices, whatever they declare.

    A device's first release is sound: it is what an undo brings back.

    Attributes:
        kind: One of `POISONS`.
        share: Of the devices.
    """

    kind: str
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in POISONS or not 0 < self.share <= 1:
            raise SimulationError(
                f"expected a poison as KIND:SHARE, the kind of {', '.join(POISONS)} the share above 0 and at "
                f"most 1, got {self.kind}:{self.share:g}"
            )

    @classmethod
    def parse(cls, text: str) -> Poison:
        """Return what ``slow:0.5`` or ``slow`` says.

        Raises:
            SimulationError: It is no poison.
        """
        kind, _, share = text.partition(":")
        try:
            return cls(kind=kind, share=float(share) if share else 1.0)
        except ValueError as e:
            raise SimulationError(f"expected a share from 0 to 1 behind the colon, got {share!r}") from e

    @property
    def behaviour(self) -> Behaviour:
        """How calls are where it strikes; those of a release that cannot be installed are as ever."""
        return replace(POISONED.get(self.kind, HEALTHY), afflicted=1.0)


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """What all devices of a simulation have in common.

    Attributes:
        seed: Of all chance.
        calls_per_s: Of each model on the median device.
        window_s: How often devices tell what they observed; real ones take 1, 10 and then 60 minutes.
        updates: Of each device.
        poison: None for what releases declare.
        churn_per_minute: Share of the devices that lose power each minute, and start again.
        first_retry_s: The first wait before a lost connection is made anew is random between 0 and this.
        last_retry_s: So the last; in between it doubles.
        ramp_s: Devices start evenly over so many seconds.
        backoff_s: Wait before an update that failed for a passing reason is tried again.
    """

    seed: int = 1
    calls_per_s: float = 20.0
    window_s: float = 60.0
    updates: UpdateSettings = _UPDATES
    poison: Poison | None = None
    churn_per_minute: float = 0.0
    first_retry_s: float = 2.0
    last_retry_s: float = 300.0
    ramp_s: float = 0.0
    backoff_s: float = 5.0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.calls_per_s <= 10_000:
            problems.append(f"calls_per_s must be from 0 to 10000, not {self.calls_per_s:g}")
        if self.window_s <= 0 or self.first_retry_s <= 0 or self.last_retry_s < self.first_retry_s:
            problems.append(
                "window_s and first_retry_s must be above 0, last_retry_s not below first_retry_s"
            )
        if not 0 <= self.churn_per_minute <= 1 or self.ramp_s < 0 or self.backoff_s <= 0:
            problems.append("churn_per_minute must be from 0 to 1, ramp_s from 0, backoff_s above 0")
        if problems:
            raise SimulationError("; ".join(problems))


# For demonstrations and examples: seconds are what hours are in the field.
QUICK = SimulationSettings(
    calls_per_s=100.0,
    window_s=1.0,
    updates=UpdateSettings(probation_s=1.0, refresh_s=0, health_timeout_s=120),
    first_retry_s=0.5,
    last_retry_s=5.0,
    backoff_s=2.0,
)
