"""Ask a server where this device cannot answer, or is not sure enough.

    from edgec.runtime import load
    from edgec.runtime.fallback import Fallback, low_confidence, overloaded, source_of

    fallback = Fallback("https://gateway:8000", when=[overloaded, low_confidence(0.6)], deadline_ms=200)
    with load("digits.edgec", fallback=fallback) as session:
        answer = session.predict(image)
        print(source_of(answer))

Any server of the Open Inference Protocol v2 with binary tensors will do: ``edgec gateway``, Triton, KServe.
"""

from edgec.runtime.fallback._answer import LOCAL, REMOTE, Answer, source_of
from edgec.runtime.fallback._breaker import Breaker
from edgec.runtime.fallback._conditions import (
    Condition,
    engine_error,
    low_confidence,
    overloaded,
    unsupported,
)
from edgec.runtime.fallback._options import Fallback

__all__ = [
    "LOCAL",
    "REMOTE",
    "Answer",
    "Breaker",
    "Condition",
    "Fallback",
    "engine_error",
    "low_confidence",
    "overloaded",
    "source_of",
    "unsupported",
]
