"""What a gateway is told when it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from edgec.serving import ServerOptions


@dataclass(frozen=True, kw_only=True)
class FollowOptions:
    """Whose devices a gateway serves, with what they run.

    Attributes:
        url: Of the fleet: ``https://fleet.example:8443``.
        token: With the role viewer, or any other.
        directory: For artifacts that are fetched, and nothing else.
        ca: PEM file of authorities to trust there; None for the system's.
        models: Names of those that are served; all if empty.
        every_s: How often the fleet is asked.
        most: Artifacts that are served at most: those that most devices run.
    """

    url: str
    token: str = field(repr=False)
    directory: Path
    ca: Path | None = None
    models: tuple[str, ...] = ()
    every_s: float = 15.0
    most: int = 32

    def __post_init__(self) -> None:
        """Raise ValueError where something is out of range."""
        if not 0 < self.every_s <= 86400 or not 1 <= self.most <= 1000:
            raise ValueError("expected every_s above 0 and up to a day, and most from 1 to 1000")


@dataclass(frozen=True, kw_only=True)
class GatewayOptions:
    """Who may ask, how often, and who is asked where no artifact here answers.

    Where there are neither `keys` nor ``server.client_ca``, everybody may ask, and a client is its address.

    Attributes:
        server: How it listens, and its limits; its own ``api_keys`` stay empty.
        keys: API key of each device, by name of the device.
        rate: Inferences per second that one device may ask for; None for any.
        burst: Inferences that it may ask for at once, having asked for none before.
        follow: The fleet whose devices' artifacts are served, beside those that are named; None for none.
        upstream: URL of a server that is asked for models that are not here; None for none.
        upstream_key: Sent to it as ``Authorization: Bearer``.
        upstream_ca: PEM file of authorities to trust there; None for the system's.
        upstream_requests: Requests that it is asked at once; one more is refused.
        upstream_timeout_s: Longest time for its answer, where a request has no deadline.
    """

    server: ServerOptions = field(default_factory=ServerOptions)
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    rate: float | None = None
    burst: float = 20.0
    follow: FollowOptions | None = None
    upstream: str | None = None
    upstream_key: str = field(default="", repr=False)
    upstream_ca: Path | None = None
    upstream_requests: int = 256
    upstream_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError where something is out of range; all of it is said."""
        problems = []
        if self.server.api_keys:
            problems.append("keys by name of the device, not server.api_keys")
        if self.rate is not None and not 0 < self.rate < 1e9:
            problems.append(f"a rate above 0, got {self.rate}")
        if not 1 <= self.burst < 1e9:
            problems.append(f"a burst from 1, got {self.burst}")
        if self.upstream is not None and not _is_address(self.upstream):
            problems.append(f"an upstream such as http://triton:8000, got {self.upstream!r:.200}")
        if self.upstream_requests < 1 or not self.upstream_timeout_s > 0:
            problems.append("upstream_requests from 1 and upstream_timeout_s above 0")
        if problems:
            raise ValueError(f"expected {'; '.join(problems)}")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        fit = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is none
        return False
    return fit and not parts.query and not parts.fragment and not parts.username
