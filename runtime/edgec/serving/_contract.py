"""What a request asks for in headers besides its inference: a deadline, and which model is to answer."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgec.errors import RequestError

if TYPE_CHECKING:
    from edgec.serving._repository import Entry

DEADLINE, DIGEST, SOURCE = b"edgec-deadline-ms", b"edgec-model-digest", b"edgec-source-digest"
_MILLISECONDS = re.compile(rb"[0-9]{1,9}")
_DIGEST = re.compile(rb"(?:sha256:)?[0-9a-f]{64}")


@dataclass(frozen=True)
class Terms:
    """What has to hold for an answer to be of use.

    Attributes:
        deadline: When it has to be there, on the clock `time.monotonic`; None for whenever.
        digest: Of the artifact that is to answer; empty for any.
        source_digest: Of the model file that it was compiled from; empty for any.
    """

    deadline: float | None
    digest: str
    source_digest: str

    def check(self, entry: Entry) -> None:
        """Do nothing if a model is the one that is asked for.

        Raises:
            RequestError: It is another one, status 409.
        """
        for wanted, is_, what in (
            (self.digest, entry.digest, "artifact"),
            (self.source_digest, entry.source_digest, "source model"),
        ):
            if wanted and wanted != is_:
                raise RequestError(
                    f"expected the {what} {wanted}, version {entry.version} of {entry.name!r} is "
                    f"{is_ or 'of none that is known'}",
                    status=409,
                )


_NO_TERMS = Terms(None, "", "")


def read_terms(headers: Mapping[bytes, bytes]) -> Terms:
    """Return what a request asks for.

    Args:
        headers: By name in lower case.

    Raises:
        RequestError: A header is malformed.
    """
    deadline, digest, source = headers.get(DEADLINE), headers.get(DIGEST, b""), headers.get(SOURCE, b"")
    if deadline is None and not digest and not source:
        return _NO_TERMS
    if deadline is not None and not _MILLISECONDS.fullmatch(deadline):
        raise RequestError("Edgec-Deadline-Ms: expected milliseconds, a decimal number of up to 9 digits")
    for value in (digest, source):
        if value and not _DIGEST.fullmatch(value):
            raise RequestError("expected a digest as sha256:5e8f..., 64 hexadecimal digits in lower case")
    return Terms(
        None if deadline is None else time.monotonic() + int(deadline) / 1e3,
        digest.decode(),
        source.decode(),
    )


def told(entry: Entry) -> list[tuple[bytes, bytes]]:
    """Return headers of an answer that say which model gave it."""
    both = (DIGEST, entry.digest), (SOURCE, entry.source_digest)
    return [(name, value.encode()) for name, value in both if value]
