"""Artifacts, releases and the quarantine as they are shown."""

from __future__ import annotations

from pydantic import Field

from edgec.fleet.views._base import Json, Seconds, View, Wanted


class ArtifactView(View):
    """An artifact."""

    sha256: str = Field(examples=["a" * 64])
    model: str = Field(examples=["kws"])
    version: str = Field(examples=["2"])
    number: int = Field(description="Of the release within the model; larger is later.", examples=[2])
    target: str = Field(examples=["cpu-x86_64"])
    hardware: list[str] = Field(
        description="Classes of hardware that it may run on.", examples=[["cpu-x86_64"]]
    )
    path: str = Field(description="In the repository; its file is /repo/targets/FOLDER/SHA256.NAME.")
    length: int = Field(description="Bytes.")
    content_digest: str
    uploaded_at: Seconds
    uploaded_by: str
    override: str | None = Field(description="Why it is here although it did not pass; null where it did.")
    quarantined: str | None = Field(description="Why it must not be installed; null where it may.")
    warnings: list[str] = Field(
        default=[],
        description="What it was not held to, as was chosen when it was compiled.",
        examples=[["no accuracy gate: it was compiled with --max-drop none"]],
    )


class ArtifactDetail(ArtifactView):
    """An artifact, with what was measured when it was compiled."""

    report: Json | None = Field(description="Of its compilation; null for none.")


class ReleaseView(View):
    """A release: one version of a model, with an artifact for each target."""

    model: str = Field(examples=["kws"])
    version: str = Field(examples=["2"])
    number: int = Field(examples=[2])


class ReleaseDetail(ReleaseView):
    """A release, with its artifacts."""

    artifacts: list[ArtifactView]


class QuarantinedView(View):
    """An artifact that may not be installed."""

    digest: str = Field(examples=["a" * 64])
    reason: str = Field(examples=["latency_p95"])
    at: Seconds
    rollout: str | None = Field(description="That found it bad; null where a person did.")


class RunningView(View):
    """An artifact that devices run."""

    digest: str = Field(examples=["a" * 64])
    model: str = Field(examples=["kws"])
    devices: int = Field(description="That run it, try it or are told to have it.", examples=[120])
    quarantined: bool = Field(description="Whether it may not be installed.")


class QuarantineWanted(Wanted):
    """Why an artifact may not be installed any more, or may again."""

    reason: str = Field(min_length=1, max_length=256, examples=["wrong labels in the training data"])
