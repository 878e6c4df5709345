"""All that the API can do, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from edgec.fleet.client._devices import Devices
from edgec.fleet.client._http import Http
from edgec.fleet.client._part import NOTHING, Part, at, wanted_of
from edgec.fleet.client._releases import Releases
from edgec.fleet.client._rollouts import Rollouts
from edgec.fleet.views import (
    AuditCheck,
    AuditView,
    ClaimView,
    ClaimWanted,
    NewClaim,
    Role,
    TokenMade,
    TokenView,
    TokenWanted,
)


class FleetClient(Devices, Releases, Rollouts, Part):
    """A fleet over its API; a context manager. Not for several threads at once.

    What changes something is sent again after failures of the network under the same idempotency key: it is
    done once. All methods raise `FleetError`: its ``reason`` is the server's, or ``unreachable``, ``tls`` or
    ``reply``.
    """

    def __init__(
        self, url: str, token: str | None, *, ca: Path | None = None, timeout_s: float = 30.0, tries: int = 5
    ) -> None:
        """Know a server; nothing is sent yet.

        Args:
            url: ``https://fleet.example:8443``.
            token: Of its role depends what may be done.
            ca: Who may vouch for the server, PEM; the system's authorities if None.
            timeout_s: For each step of a request.
            tries: How often a request is sent at most.

        Raises:
            FleetError: The URL or the certificates are none.
        """
        self.http = Http(url, token, ca=ca, timeout_s=timeout_s, tries=tries)
        self.url = self.http.url

    def __enter__(self) -> FleetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def claims(self) -> list[ClaimView]:
        """Return all claims; what they are is not kept."""
        return self.http.get(list[ClaimView], "/api/v1/claims")

    def create_claim(
        self,
        *,
        uses: int = 1,
        valid_s: float | None = 7 * 86400.0,
        labels: Mapping[str, str] | None = None,
        hardware: str | None = None,
        device: str | None = None,
    ) -> NewClaim:
        """Make a claim with which devices come into the fleet; it is told only here.

        Args:
            uses: How many devices may come with it.
            valid_s: How long it is in force; None for ever.
            labels: That each of them is given.
            hardware: That each of them must be; None for any.
            device: The only one, also one that is in the fleet and has a new key; None for any new one.
        """
        wanted = wanted_of(
            ClaimWanted,
            uses=uses,
            expires_in_s=valid_s,
            labels=dict(labels or {}),
            hardware=hardware,
            device=device,
        )
        return self.http.change(NewClaim, "POST", "/api/v1/claims", wanted)

    def withdraw_claim(self, claim: str) -> None:
        """Take a claim back by its id; devices that came with it stay."""
        self.http.change(NOTHING, "POST", at("claims", claim, "withdraw"))

    def audit(self, after: int = 0) -> Iterator[AuditView]:
        """Yield who has changed what, oldest first, those after entry `after`."""
        return self.pages(AuditView, "/api/v1/audit", {"cursor": after})

    def verify_audit(self, entries: int = 0, digest: str = "") -> AuditCheck:
        """Check the audit log; with what an earlier check gave, also that it only grew."""
        query = {"expected_entries": entries, "expected_hash": digest}
        return self.http.get(AuditCheck, "/api/v1/audit/verify", query)

    def tokens(self) -> list[TokenView]:
        """Return what is known of tokens."""
        return self.http.get(list[TokenView], "/api/v1/tokens")

    def own_token(self) -> TokenView:
        """Return what is known of this client's token."""
        return self.http.get(TokenView, "/api/v1/tokens/self")

    def create_token(self, name: str, role: Role, valid_s: float | None = None) -> TokenMade:
        """Make a token; it is told only here."""
        wanted = wanted_of(TokenWanted, name=name, role=role, valid_s=valid_s)
        return self.http.change(TokenMade, "POST", "/api/v1/tokens", wanted)

    def revoke_token(self, token: str) -> TokenView:
        """Take a token back by its id."""
        return self.http.change(TokenView, "DELETE", at("tokens", token))
