"""How much the API takes, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from edgec.fleet.registry import MAX_ARTIFACT_BYTES


@dataclass(frozen=True, kw_only=True)
class ApiLimits:
    """Limits of the API.

    Attributes:
        rate: Requests per second of one token; None for no limit.
        burst: Requests of one token at once.
        refused_rate: Requests per second without a token that is in force, of one address.
        body_bytes: Of a request, but of an upload.
        artifact_bytes: Of an upload.
        uploads: Uploads that are received at once; more wait.
        command_s: How long a request may wait for what a device answers.
        replies_s: How long replies are kept under their idempotency keys.
    """

    rate: float | None = 50.0
    burst: float = 200.0
    refused_rate: float = 1.0
    body_bytes: int = 256 * 1024
    artifact_bytes: int = MAX_ARTIFACT_BYTES
    uploads: int = 4
    command_s: float = 60.0
    replies_s: float = 48 * 3600.0
