"""How far a device is with what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from edgec.protocol._control import Desired, DesiredModel, ModelReport, Presence, Reported
from edgec.protocol._views import DeviceView

Outcome: TypeAlias = Literal[
    "waiting", "noticed", "working", "committed", "refused", "failed", "rolled_back", "ahead", "superseded"
]
# After these nothing more comes of it.
ENDS: frozenset[Outcome] = frozenset(("committed", "refused", "failed", "rolled_back", "ahead", "superseded"))
# Of an update that is over, as `ModelReport.state` says it.
_RESTING = frozenset(("idle", "cleaned", "committed"))
# After the candidate has taken over: if it does not stay, it was rolled back.
_SWITCHED = frozenset(("switched", "probation", "rolling_back"))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How far a device is with one model of what it was told.

    Attributes:
        device: Its id.
        model: Name of the model.
        outcome: ``waiting`` until it takes notice, ``noticed``, ``working``, then one of `ENDS`:
            ``committed``, ``refused`` before anything was tried, ``failed`` before the switch,
            ``rolled_back`` after it, ``superseded`` by a newer one, ``ahead`` where the device follows a
            greater epoch than it was told, of another server.
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

    Attributes:
        device: Its id.
        desired: What it was told.
        models: Names of the models that are followed; others of the document are as they were.
        view: What is known of the device.
        tried: Models whose update was under way at some time since.
        switched: Models whose candidate served at some time since.
    """

    device: str
    desired: Desired
    models: tuple[str, ...]
    view: DeviceView = field(default_factory=DeviceView)
    tried: frozenset[str] = frozenset()
    switched: frozenset[str] = frozenset()

    def after(self, message: Presence | Reported, now: float) -> Told:
        """Return it after a message of the device, maybe late, maybe again."""
        view = self.view.apply(message, now)
        tried, switched = self.tried, self.switched
        if view.reported is not None and view.reported.epoch == self.desired.epoch:
            under_way = [(name, r) for name, r in view.reported.models.items() if self._is_on_it(name, r)]
            tried |= {name for name, _ in under_way}
            switched |= {name for name, report in under_way if report.state in _SWITCHED}
        return replace(self, view=view, tried=tried, switched=switched)

    def answers(self) -> tuple[Answer, ...]:
        """Return how far each model is."""
        return tuple(self._answer(model) for model in self.models)

    def _is_on_it(self, model: str, report: ModelReport) -> bool:
        wanted = self.desired.models.get(model)
        return wanted is not None and report.state not in _RESTING and report.candidate == wanted.sha256

    def _answer(self, model: str) -> Answer:
        reported, wanted = self.view.reported, self.desired.models[model]
        online = self.view.online
        if reported is None or reported.epoch < self.desired.epoch:
            refusal = next(iter(reported.alerts), None) if reported is not None else None
            return Answer(
                device=self.device,
                model=model,
                outcome="waiting",
                online=online,
                reason=refusal.reason if refusal else "",
                detail=refusal.detail if refusal else "",
            )
        report = reported.models.get(model)
        if reported.epoch > self.desired.epoch:
            return Answer(
                device=self.device,
                model=model,
                outcome="ahead",
                state=report.state if report else "",
                detail=f"the device follows epoch {reported.epoch}, and was told {self.desired.epoch}: "
                "another repository or server gives it orders, or this one was restored from a backup",
                online=online,
            )
        if report is None:
            return Answer(device=self.device, model=model, outcome="noticed", online=online)
        return Answer(
            device=self.device,
            model=model,
            outcome=self._outcome(model, report, wanted),
            state=report.state,
            reason=report.reason or "",
            detail=report.detail,
            online=online,
        )

    def _outcome(self, model: str, report: ModelReport, wanted: DesiredModel) -> Outcome:
        if report.state not in _RESTING:
            return "working"
        if report.active == wanted.sha256:
            return "committed"
        if not report.reason:
            return "noticed"
        if report.reason == "superseded":
            return "superseded"
        if model in self.switched:
            return "rolled_back"
        return "failed" if model in self.tried else "refused"
