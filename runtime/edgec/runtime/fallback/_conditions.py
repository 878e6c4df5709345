"""When a server is asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """A reason to ask the server: `unsupported`, `overloaded`, `engine_error` or a `low_confidence`.

    Attributes:
        name: Of the reason, as answers and counters have it.
        below: Confidence below which it holds; 0 where it is not about confidence.
    """

    name: str
    below: float = 0.0


UNSUPPORTED, OVERLOADED, LOW_CONFIDENCE, ENGINE_ERROR = (
    "unsupported", "overloaded", "low_confidence", "engine_error"
)  # fmt: skip
NAMES = (UNSUPPORTED, OVERLOADED, LOW_CONFIDENCE, ENGINE_ERROR)

unsupported = Condition(UNSUPPORTED)
"""No engine of this device can run the artifact: the session has no model of its own then."""

overloaded = Condition(OVERLOADED)
"""The pool refuses a call, or as many calls run here as ``Fallback.max_local`` allows."""

engine_error = Condition(ENGINE_ERROR)
"""The engine failed on a call."""


def low_confidence(below: float) -> Condition:
    """Return the condition that the least sure sample of a call has a highest score below `below`.

    Where the scores are, the pipeline or the artifact's ``observe.scores`` says.

    Raises:
        ValueError: `below` is not above 0 and up to 1.
    """
    if not 0 < below <= 1:
        raise ValueError(f"expected a confidence above 0 and up to 1, got {below}")
    return Condition(LOW_CONFIDENCE, below)
