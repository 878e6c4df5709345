"""How far a device is with what it was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from edgec.protocol._control import Desired, DesiredModel, DeviceEvent, ModelReport, Presence, Reported
from edgec.protocol._views import DeviceView

Outcome: TypeAlias = Literal[
    "waiting",
    "noticed",
    "working",
    "committed",
    "prepared",
    "refused",
    "failed",
    "rolled_back",
    "ahead",
    "superseded",
]
# After these nothing more comes of it.
ENDS: frozenset[Outcome] = frozenset(
    ("committed", "prepared", "refused", "failed", "rolled_back", "ahead", "superseded")
)
# Of an update that is over, as `ModelReport.state` says it.
_RESTING = frozenset(("idle", "cleaned", "committed"))
# What the end of an update means, by the kind of its event.
_RESULTS: Mapping[str, Outcome] = {
    "update_committed": "committed",
    "update_unchanged": "committed",
    "update_prepared": "prepared",
    "update_refused": "refused",
    "update_failed": "failed",
    "update_aborted": "failed",
    "update_rolled_back": "rolled_back",
    "update_superseded": "superseded",
}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How far a device is with one model of what it was told.

    Attributes:
        device: Its id.
        model: Name of the model.
        outcome: ``waiting`` until it takes notice, ``noticed``, ``working``, then one of `ENDS`:
            ``committed``, ``prepared`` where it was to be fetched ahead, ``refused`` before anything was
            tried, ``failed`` before the switch, ``rolled_back`` after it, ``superseded`` by a newer one,
            ``ahead`` where the device follows a greater epoch than it was told, of another server.
        state: Of the update, as the device calls it; "" before it took notice.
        reason: Why, for programs; "" where all is well.
        detail: The same for people.
        online: Whether the device is connected, as far as is known.
    """

    device: str
    model: str
    outcome: Outcome
    state: str = ""
    reason: str = ""
    detail: str = ""
    online: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.outcome in ENDS


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one device was told, and what it has said since.

    Its reports say where it is; how an update ended is an event, which it repeats until a server has it.

    Attributes:
        device: Its id.
        desired: What it was told.
        models: Names of the models that are followed; others of the document are as they were.
        view: What is known of the device.
        ends: By model, the event of how its update ended.
    """

    device: str
    desired: Desired
    models: tuple[str, ...]
    view: DeviceView = field(default_factory=DeviceView)
    ends: Mapping[str, DeviceEvent] = field(default_factory=dict)

    def after(self, message: Presence | Reported | DeviceEvent, now: float) -> Told:
        """Return it after a message of the device, maybe late, maybe again."""
        if not isinstance(message, DeviceEvent):
            return replace(self, view=self.view.apply(message, now))
        wanted = self.desired.models.get(message.model or "")
        if message.model is None or wanted is None or message.kind not in _RESULTS:
            return self
        about = (message.data.get("epoch"), message.data.get("digest"))
        if about != (str(self.desired.epoch), wanted.sha256):
            return self
        return replace(self, ends={**self.ends, message.model: message})

    def answers(self) -> tuple[Answer, ...]:
        """Return how far each model is."""
        return tuple(self._answer(model) for model in self.models)

    def _answer(self, model: str) -> Answer:
        reported, epoch = self.view.reported, self.desired.epoch
        answer = Answer(device=self.device, model=model, outcome="waiting", online=self.view.online)
        report = reported.models.get(model) if reported is not None else None
        state = report.state if report is not None else ""
        if (end := self.ends.get(model)) is not None:
            outcome, reason = _RESULTS[end.kind], end.reason or ""
            return replace(answer, outcome=outcome, state=state, reason=reason, detail=end.detail)
        if reported is None or reported.epoch < epoch:
            alert = next(iter(reported.alerts), None) if reported is not None else None
            return answer if alert is None else replace(answer, reason=alert.reason, detail=alert.detail)
        if reported.epoch > epoch:
            detail = (
                f"the device follows epoch {reported.epoch}, and was told {epoch}: another repository or "
                "server gives it orders, or this one was restored from a backup"
            )
            return replace(answer, outcome="ahead", state=state, detail=detail)
        if report is None:
            return replace(answer, outcome="noticed")
        outcome = _under_way(report, self.desired.models[model])
        return replace(answer, outcome=outcome, state=state, reason=report.reason or "", detail=report.detail)


def _under_way(report: ModelReport, wanted: DesiredModel) -> Outcome:
    if report.state not in _RESTING:
        return "working"
    # The reason of one at rest may be that of an update before.
    return "committed" if report.active == wanted.sha256 else "noticed"
