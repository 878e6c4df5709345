"""What an application says about the server that it may ask."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from edgec.runtime.fallback._conditions import LOW_CONFIDENCE, NAMES, Condition

MIB = 2**20


@dataclass(frozen=True)
class Fallback:
    """A server that answers where the device does not, and when it is asked. For ``load``.

    Attributes:
        url: Of a server of the Open Inference Protocol v2: ``https://gateway:8000``.
        when: Conditions, any of which is enough.
        deadline_ms: From the begin of a call: no call waits for the server beyond it.
        api_key: Sent as ``Authorization: Bearer``; never over plain HTTP unless `allow_plain_key`.
        allow_plain_key: Whether the key may go over plain HTTP, as in a network of one's own.
        tls: Settings of TLS, such as a certificate of this device; None for the system's authorities.
        model: Name of the model there; None for that of the artifact.
        version: Version of it there; None for the server's choice.
        match: Which model may answer: ``artifact``, the very same by its digest; ``source``, any that was
            compiled from the same model file, such as the GPU's; ``any``. Servers that say nothing of digests
            are believed.
        max_local: Calls that may run here at once before `overloaded` holds; None for what the pool says.
        max_requests: Requests under way at once; where there are more, the answer is local.
        max_response_bytes: Larger responses are refused.
    """

    url: str
    when: Sequence[Condition]
    deadline_ms: float = field(default=1000.0, kw_only=True)
    api_key: str = field(default="", kw_only=True, repr=False)
    allow_plain_key: bool = field(default=False, kw_only=True)
    tls: ssl.SSLContext | None = field(default=None, kw_only=True, repr=False)
    model: str | None = field(default=None, kw_only=True)
    version: str | None = field(default=None, kw_only=True)
    match: Literal["artifact", "source", "any"] = field(default="artifact", kw_only=True)
    max_local: int | None = field(default=None, kw_only=True)
    max_requests: int = field(default=8, kw_only=True)
    max_response_bytes: int = field(default=64 * MIB, kw_only=True)

    def __post_init__(self) -> None:
        """Raise ValueError where something is out of range; all of it is said."""
        problems = [*self._address_problems(), *self._number_problems()]
        unknown = [c for c in self.when if not isinstance(c, Condition) or c.name not in NAMES]
        if unknown or not self.when:
            problems.append(f"when: conditions out of {', '.join(NAMES)}, got {list(self.when)}")
        if self.match not in ("artifact", "source", "any"):
            problems.append(f"match: artifact, source or any, got {self.match!r}")
        if problems:
            raise ValueError(f"expected {'; '.join(problems)}")

    def _address_problems(self) -> list[str]:
        try:
            parts = urlsplit(self.url)
            fit = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is none
            return [f"a url such as https://gateway:8000, got {self.url!r:.200}"]
        problems = []
        if not fit or parts.query or parts.fragment or parts.username or not self.url.isprintable():
            problems.append(f"a url such as https://gateway:8000, got {self.url!r:.200}")
        if self.api_key and parts.scheme == "http" and not self.allow_plain_key:
            problems.append("https where there is an api_key, or allow_plain_key=True")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            problems.append("an api_key of plain characters")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        if not 0 < self.deadline_ms <= 3_600_000:
            problems.append(f"a deadline_ms above 0 and up to an hour, got {self.deadline_ms}")
        if self.max_local is not None and self.max_local < 1:
            problems.append(f"max_local from 1, got {self.max_local}")
        if self.max_requests < 1 or self.max_response_bytes < 1:
            given = f"{self.max_requests} and {self.max_response_bytes}"
            problems.append(f"max_requests and max_response_bytes from 1, got {given}")
        return problems

    def wants(self, name: str) -> bool:
        """Return whether a condition is among those of `when`."""
        return any(condition.name == name for condition in self.when)

    @property
    def least_confidence(self) -> float:
        """Confidence below which the server is asked; 0 where that is no condition."""
        return max((c.below for c in self.when if c.name == LOW_CONFIDENCE), default=0.0)
