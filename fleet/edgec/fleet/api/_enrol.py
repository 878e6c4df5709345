"""Devices come with a claim, and get an identity; claims are made for them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse

from edgec.errors import FleetError
from edgec.fleet.api._access import Admin, FleetOf, Gate, Operator, address_of
from edgec.fleet.api._once import OnceOf
from edgec.fleet.api._params import TokenId
from edgec.fleet.api._problems import ApiError
from edgec.fleet.enrolment import Asked, Enrolment
from edgec.fleet.store import Claim
from edgec.fleet.views import ClaimView, ClaimWanted, NewClaim

router = APIRouter(tags=["enrolment"])
_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Id = Annotated[str, Field(pattern=_ID)]


class EnrolWanted(BaseModel):
    """What a device sends that comes with a claim: a request for a certificate, or a token of its own."""

    model_config = ConfigDict(extra="forbid")

    claim: str = Field(
        max_length=128, description="That the device was given.", examples=["edgec-claim_9xQ2"]
    )
    hardware: list[Id] = Field(
        min_length=1,
        max_length=16,
        description="Classes of hardware that it is, the best first.",
        examples=[["rpi5", "cpu-aarch64"]],
    )
    device: Id | None = Field(
        default=None, description="The id that it wants; any if null.", examples=["cam-1"]
    )
    request: str | None = Field(
        default=None,
        max_length=16_384,
        description="For a certificate (CSR, PEM), with a key on P-256 or P-384.",
        examples=["-----BEGIN CERTIFICATE REQUEST-----"],
    )
    token: str | None = Field(
        default=None,
        pattern="^[A-Za-z0-9_-]{43,72}$",
        description="Made by the device of 32 random bytes, base64url.",
        examples=["A" * 43],
    )


class EnrolView(BaseModel):
    """What a device is given: all that it needs besides its own secret."""

    device: str
    tenant: str
    hardware: str
    kind: str = Field(description="`certificate` or `token`.")
    certificate: str | None = Field(description="PEM; null with a token.")
    authority: str = Field(description="Who vouches for server and broker, PEM.")
    broker: str = Field(description="`mqtts://host:port`")
    image_root: str = Field(description="First root of the image repository, JSON as text.")
    director_root: str = Field(description="The same of the director.")
    sources: list[str] = Field(description="Base URLs of the repository.")
    labels: dict[str, str]


def enrolment_of(request: Request) -> Enrolment:
    """Return what lets devices in."""
    enrolment = getattr(request.app.state, "enrolment", None)
    if not isinstance(enrolment, Enrolment):
        raise ApiError(503, "unavailable", "this server lets no devices in: it has no authority")
    return enrolment


EnrolmentOf = Annotated[Enrolment, Depends(enrolment_of)]


@router.get("/authority", response_class=PlainTextResponse)
def get_authority(enrolment: EnrolmentOf) -> str:
    """Return the certificate (PEM) of who vouches for this server: to be compared with its fingerprint."""
    return enrolment.authority


@router.post("/enrol", response_model=EnrolView)
async def enrol_device(request: Request, enrolment: EnrolmentOf, body: EnrolWanted) -> Any:
    """Take a device in that comes with a claim. The same question again gets the same answer."""
    gate: Gate = request.app.state.gate
    gate.look(address_of(request))
    asked = Asked(
        claim=body.claim, hardware=body.hardware, device=body.device, request=body.request, token=body.token
    )
    try:
        # A whole batch of devices may come from one address: only failures are rationed.
        return vars(await run_in_threadpool(enrolment.enrol, asked, host=request.url.hostname))
    except FleetError:
        gate.failed(address_of(request))
        raise


@router.get("/claims")
def list_claims(who: Operator, fleet: FleetOf) -> list[ClaimView]:
    """List all claims; what they are is not kept."""
    return [ClaimView.model_validate(vars(claim)) for claim in fleet.claims.all()]


@router.post("/claims", status_code=201, response_model=NewClaim)
def make_claim(who: Admin, fleet: FleetOf, request: Request, body: ClaimWanted, once: OnceOf) -> Response:
    """Make a claim that lets devices in."""

    def deed() -> NewClaim:
        now = fleet.clock()
        claim, secret = fleet.claims.create(
            now=now,
            actor=who.name,
            uses=body.uses,
            expires_at=None if body.expires_in_s is None else now + body.expires_in_s,
            labels=body.labels,
            hardware=body.hardware,
            device=body.device,
        )
        enrolment = getattr(request.app.state, "enrolment", None)
        fingerprint = enrolment.fingerprint if isinstance(enrolment, Enrolment) else None
        return NewClaim(**_known(claim), claim=secret, fingerprint=fingerprint)

    return once.carry_out(deed, 201)


@router.post("/claims/{claim}/withdraw", status_code=204, response_class=Response)
def withdraw_claim(who: Admin, fleet: FleetOf, claim: TokenId, once: OnceOf) -> Response:
    """Take a claim back; devices that came with it stay."""
    return once.carry_out(lambda: fleet.claims.withdraw(claim, now=fleet.clock(), actor=who.name))


def _known(claim: Claim) -> dict[str, Any]:
    return {name: getattr(claim, name) for name in ClaimView.model_fields}
