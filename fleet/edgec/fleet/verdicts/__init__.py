"""Whether a release behaves no worse than what runs beside it: ``pass``, ``fail`` or ``inconclusive``."""

from edgec.fleet.verdicts._distributions import LEAST_VALUES
from edgec.fleet.verdicts._evidence import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    DeviceEvidence,
    Evidence,
    Finding,
    Limits,
    Verdict,
)
from edgec.fleet.verdicts._judge import judge
from edgec.fleet.verdicts._statistics import spend

__all__ = [
    "FAIL",
    "INCONCLUSIVE",
    "LEAST_VALUES",
    "PASS",
    "DeviceEvidence",
    "Evidence",
    "Finding",
    "Limits",
    "Verdict",
    "judge",
    "spend",
]
