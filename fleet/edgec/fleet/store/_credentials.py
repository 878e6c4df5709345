"""What is known of a claim and of a credential, and what a device asks for that wants one for the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is known of a claim; not the claim.

    Attributes:
        id: Its id; no secret.
        created_at: When it was made, seconds by the fleet's clock.
        created_by: By whom.
        expires_at: When it ends; None for never.
        withdrawn_at: When it was taken back; None where it was not.
        uses_left: How many more devices may come with it.
        labels: That each of them is given.
        hardware: That each of them must be; None for any.
        device: The only device that may come with it, also one that is in the fleet already and has a new
            key; None for any that is new.
    """

    id: str
    created_at: float
    created_by: str
    expires_at: float | None
    withdrawn_at: float | None
    uses_left: int
    labels: Mapping[str, str]
    hardware: str | None
    device: str | None


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a device proves its identity with.

    Attributes:
        fingerprint: SHA-256 of its public key (SubjectPublicKeyInfo, DER) or of its token, in hex.
        device: Its id.
        kind: ``certificate`` or ``token``.
        claim: Id of the claim that it came with.
        issued_at: When.
        replaced_at: When another took its place; None where none did.
        serial: Of its certificate, in hex; empty for a token.
        document: Its certificate, PEM; or what brokers keep of its token, by name of the broker, JSON.
        expires_at: When its certificate ends; None for a token, which does not.
    """

    fingerprint: str
    device: str
    kind: str
    claim: str
    issued_at: float
    replaced_at: float | None
    serial: str
    document: str
    expires_at: float | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a device asks for that comes with a claim.

    Attributes:
        device: The id that it wants.
        hardware: Classes of hardware that it is, the best first.
        kind: ``certificate`` or ``token``.
        fingerprint: As of `Credential`.
        targets: Hardware that there is, besides that of artifacts and of the claim; any if empty.
    """

    device: str
    hardware: Sequence[str]
    kind: str
    fingerprint: str
    targets: Collection[str] = ()


# Given the id of the device, makes serial and document of its credential, and says when that ends.
Issue = Callable[[str], tuple[str, str, float | None]]


def digest(secret: str) -> str:
    """Return what is kept of a secret of 256 random bits: its SHA-256 in hex."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
