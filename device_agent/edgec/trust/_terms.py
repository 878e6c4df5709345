"""On which terms a device takes an artifact up: signed by the director, beside the artifact."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from edgec.artifact._fields import Fields, natural, wrong
from edgec.errors import TrustError

_DAY_S = 86_400
MAX_SHADOW_S, MAX_PROBATION_S, MAX_PROBATION_CALLS = 7 * _DAY_S, 30 * _DAY_S, 10**9


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How an artifact is to be taken up. What is None is as the owner of the device has set it.

    Seconds are whole ones: signed documents hold no fractions.

    Attributes:
        shadow_s: Seconds beside the running model before the switch, at most a week; 0 for none.
        probation_s: Seconds that it must hold after the switch, at most 30 days.
        probation_calls: Calls that prove it earlier; 0: only time does.
        retry: Epoch of the last order to try it although the device has found it bad; 0 for none. It forgives
            what was found before that epoch, and nothing that is found later.
        prepare: Fetch and verify it, and wait for another word before it is installed.
    """

    shadow_s: int | None = None
    probation_s: int | None = None
    probation_calls: int | None = None
    retry: int = 0
    prepare: bool = False

    def __post_init__(self) -> None:
        """Raise TrustError (``reason`` ``assignment``) where a length is none."""
        problems = [
            f"{name} is {value}, and must be from 0 to {most}"
            for name, value, most in (
                ("shadow_s", self.shadow_s, MAX_SHADOW_S),
                ("probation_s", self.probation_s, MAX_PROBATION_S),
                ("probation_calls", self.probation_calls, MAX_PROBATION_CALLS),
            )
            if value is not None and not 0 <= value <= most
        ]
        if problems:
            raise TrustError("; ".join(problems), "assignment")

    def custom(self) -> dict[str, Any]:
        """Return what goes into the signed metadata: only what is said."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        said = {name: value for name, value in values.items() if value is not None and value != 0}
        # No shadow, and no probation, are words, too.
        said |= {name: 0 for name, value in values.items() if name.endswith("_s") and value == 0}
        said |= {"probation_calls": 0} if self.probation_calls == 0 else {}
        return said


def terms_of(custom: Fields) -> Terms:
    """Read the terms in an entry of a device's targets; defaults where it has none.

    Args:
        custom: The entry's custom fields.

    Raises:
        ManifestError: They are malformed.
        TrustError: They are out of bounds (``reason`` ``malformed``).
    """
    given = custom.may("terms", Fields, None)
    if given is None:
        return Terms()
    try:
        return Terms(
            shadow_s=given.may("shadow_s", natural, None),
            probation_s=given.may("probation_s", natural, None),
            probation_calls=given.may("probation_calls", natural, None),
            retry=given.may("retry", natural, 0),
            prepare=given.may("prepare", _flag, False),
        )
    except TrustError as e:
        raise TrustError(f"the terms of an assigned target: {e}", "malformed") from e


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(value, where, "true or false")
    return value
