"""Claims as they are shown."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from edgec.fleet.views._base import View, Wanted

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class ClaimWanted(Wanted):
    """Which devices a new claim lets in, and what they are given."""

    uses: int = Field(default=1, ge=1, le=100_000, description="How many devices may come with it.")
    expires_in_s: float | None = Field(
        default=7 * 86400.0, gt=0, le=10 * 366 * 86400.0, description="Null for never."
    )
    labels: dict[str, str] = Field(default_factory=dict, max_length=64, examples=[{"site": "lab"}])
    hardware: Id | None = Field(default=None, description="That each of them must be.", examples=["rpi5"])
    device: Id | None = Field(
        default=None,
        description="The only one, also one that is in the fleet and has a new key.",
        examples=["cam-1"],
    )


class ClaimView(View):
    """What is known of a claim."""

    id: str
    created_at: float
    created_by: str
    expires_at: float | None
    withdrawn_at: float | None
    uses_left: int
    labels: dict[str, str]
    hardware: str | None
    device: str | None


class NewClaim(ClaimView):
    """A claim, which is told only here."""

    claim: str
    fingerprint: str | None = Field(
        description="SHA-256 of the authority's certificate, for `edgec agent enrol --fingerprint`."
    )
