"""Devices as they are shown."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from edgec.fleet.views._base import Json, Seconds, View, Wanted

_MOST_ARGS = 32 * 1024


class ModelView(View):
    """One model on a device."""

    state: str = Field(examples=["committed"], description="Of the update.")
    version: str | None = Field(
        examples=["2"], description="That serves; null where the registry does not have it."
    )
    active: str | None = Field(description="Digest of the artifact that serves.")
    wanted: str | None = Field(description="Digest that it is told to have.")
    candidate: str | None = Field(description="Digest that an update is about.")
    reason: str | None = Field(description="Why it is in this state, for programs.")
    detail: str = Field(description="The same for people.")
    since: Seconds


class DeviceView(View):
    """A device."""

    id: str = Field(examples=["cam-1"])
    hardware: str = Field(examples=["cpu-x86_64"], description="Class of hardware.")
    labels: dict[str, str] = Field(examples=[{"site": "lab"}])
    online: bool
    fenced: bool = Field(description="Several machines have its identity; see `clones`.")
    enrolled_at: Seconds
    revoked_at: Seconds | None
    certificate_expires_at: Seconds | None = Field(
        default=None, description="When it needs another certificate; null for a token, which does not end."
    )
    seen_at: float = Field(description="When it was last heard of, seconds since 1970; 0 for never.")
    epoch: int = Field(description="Of the newest order.")
    acknowledged: bool = Field(description="Whether it has taken notice of the newest order.")
    models: dict[str, ModelView]


class BootView(View):
    """A start of a device's agent."""

    id: str
    epoch: int
    first_heard: Seconds


class AlertOfDevice(View):
    """Something about a device that a person should know."""

    reason: str
    detail: str


class DeviceDetail(DeviceView):
    """A device, with all that is believed of it."""

    agent: str = Field(description="Name and version of its software.", examples=["edgec 0.1.0"])
    boots: list[BootView]
    clones: list[str] = Field(description="Boots that cannot all be this device.")
    alerts: list[AlertOfDevice]


class RecordView(View):
    """Something that a device said, other than its figures."""

    boot_id: str
    seq: int
    kind: str = Field(examples=["crash"])
    at: Seconds
    severity: str
    reason: str
    event: Json | None = Field(description="What it said; null where that is no event.")


class WhyView(View):
    """What keeps a device from the newest version."""

    device: str
    model: str
    has: str | None = Field(description="Version that serves.")
    newest: str | None = Field(description="Newest version for its hardware.")
    reason: str = Field(examples=["later_stage"], description="For programs.")
    detail: str
    rollout: str | None


LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:@/ -]{1,256}$")]


class LabelsWanted(Wanted):
    """Labels in place of all that a device had."""

    labels: dict[LabelKey, LabelValue] = Field(max_length=64, examples=[{"site": "lab", "ring": "canary"}])


class ReasonWanted(Wanted):
    """Why, for the audit log."""

    reason: str = Field(default="", max_length=500, examples=["stolen"])


class SettleWanted(Wanted):
    """Which of several machines is the device."""

    boot_id: str = Field(
        min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", examples=["b7f2"]
    )


class CommandWanted(Wanted):
    """A command for a device."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", examples=["logs"])
    args: Json = Field(default={}, examples=[{"lines": 100}])
    timeout_s: float = Field(default=30.0, gt=0, le=60, description="How long to wait for the answer.")

    @field_validator("args")
    @classmethod
    def _are_json(cls, args: Json) -> Json:
        """Refuse what Python takes for JSON and nobody else does: NaN, halves of surrogate pairs."""
        try:
            data = json.dumps(args, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as e:
            raise ValueError(f"expected JSON: {e}") from e
        if len(data) > _MOST_ARGS:
            raise ValueError(f"expected at most {_MOST_ARGS} bytes of JSON, got {len(data)}")
        return args


class CommandAnswer(View):
    """What became of a command."""

    id: str
    name: str
    state: str = Field(examples=["done"], description="accepted, done, failed, refused or expired.")
    reason: str | None
    detail: str
    result: Any = Field(description="What the command returned.")
