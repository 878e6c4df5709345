"""What may leave a device: decided on the device, by its owner first and by the fleet within that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from edgec.errors import AgentError

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class TelemetryPolicy:
    """What may leave a device. The default is metadata: how models did, nothing of what they saw or said.

    Attributes:
        metrics: Counters and sketches over many calls: latency, errors, confidence, how often each class.
        outputs: What a model gave for single calls.
        inputs: What it was given, images and sounds included; with `outputs`, both of the same call.
        interval_s: Length of a window.
        max_bytes_per_day: Of windows and samples together; windows are made so small that all models have
            room. The default and what MQTT adds come to less than 100 kB.
        max_samples_per_day: Single calls.
    """

    metrics: bool = True
    outputs: bool = False
    inputs: bool = False
    interval_s: float = 3600.0
    max_bytes_per_day: int = 75_000
    max_samples_per_day: int = 100

    def __post_init__(self) -> None:
        """Raise ValueError where a limit makes no sense."""
        if not 60 <= self.interval_s <= DAY_S:
            raise ValueError(f"expected windows of 60 to {DAY_S:.0f} seconds, got {self.interval_s}")
        if self.max_bytes_per_day < 0 or self.max_samples_per_day < 0:
            raise ValueError("expected limits from 0")

    @property
    def samples(self) -> bool:
        """Whether anything of single calls may leave."""
        return (self.inputs or self.outputs) and self.max_samples_per_day > 0

    def within(self, ceiling: TelemetryPolicy) -> TelemetryPolicy:
        """Return what both policies allow: what a fleet asks, within what an owner permits."""
        return TelemetryPolicy(
            metrics=self.metrics and ceiling.metrics,
            outputs=self.outputs and ceiling.outputs,
            inputs=self.inputs and ceiling.inputs,
            interval_s=max(self.interval_s, ceiling.interval_s),
            max_bytes_per_day=min(self.max_bytes_per_day, ceiling.max_bytes_per_day),
            max_samples_per_day=min(self.max_samples_per_day, ceiling.max_samples_per_day),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON has it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TelemetryPolicy:
        """Return the policy that a file or a command holds; what is missing is as the default has it.

        Raises:
            AgentError: A field is unknown or has another type or an impossible value: nothing is guessed, for
                a misspelt word would let leave what should not.
        """
        default = cls()
        known: dict[str, type] = {field.name: type(getattr(default, field.name)) for field in fields(cls)}
        problems = [f"{name!r:.60} is unknown" for name in value if name not in known]
        for name, kind in known.items():
            given = value.get(name, getattr(default, name))
            fits = isinstance(given, bool) if kind is bool else _is_number(given, kind)
            if not fits:
                problems.append(f"{name} has to be {'true or false' if kind is bool else 'a number'}")
        if problems:
            raise AgentError(f"the telemetry policy is wrong: {'; '.join(problems)}")
        try:
            return cls(**{name: kind(value[name]) for name, kind in known.items() if name in value})
        except ValueError as e:
            raise AgentError(f"the telemetry policy is wrong: {e}") from e


def _is_number(value: object, kind: type) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return whole or (kind is float and isinstance(value, float))
