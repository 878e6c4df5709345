"""Answers that say where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOCAL, REMOTE = "local", "remote"


class Answer(dict[str, Any]):
    """What ``Session.run`` or ``predict`` gives where a session has a fallback: a dict as ever.

    Attributes:
        source: ``local`` or ``remote``.
        reason: Why the server was to be asked, the name of a condition: ``low_confidence``; empty where it
            was not.
        trouble: Why the answer is local all the same, a word: ``late``, ``unreachable``, ``refused``,
            ``malformed``, ``open`` (it failed lately and is left alone), ``busy`` (too many requests are
            under way), ``privacy``; empty where nothing went wrong.
    """

    source: str
    reason: str
    trouble: str

    def __init__(
        self, values: Mapping[str, Any], source: str = LOCAL, reason: str = "", trouble: str = ""
    ) -> None:
        """Say where `values` came from."""
        super().__init__(values)
        self.source = source
        self.reason = reason
        self.trouble = trouble

    def with_values(self, values: Mapping[str, Any]) -> Answer:
        """Return other values of the same origin."""
        return Answer(values, self.source, self.reason, self.trouble)


def source_of(answer: Mapping[str, Any]) -> str:
    """Return ``local`` or ``remote``; of sessions without a fallback, all is local."""
    return answer.source if isinstance(answer, Answer) else LOCAL
