"""Rollouts, incidents, alerts and drift."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgec.fleet.client._part import Part, at, wanted_of
from edgec.fleet.views import (
    AlertView,
    AssignedView,
    DecisionView,
    DriftView,
    IncidentView,
    OrderWanted,
    ReasonWanted,
    RolloutSummary,
    RolloutView,
    RolloutWanted,
    Word,
)


class Rollouts(Part):
    """Rollouts, their decisions, incidents, alerts and drift."""

    def create_rollout(self, wanted: RolloutWanted) -> RolloutView:
        """Write down what is to be rolled out, and how; with `start`, begin."""
        return self.http.change(RolloutView, "POST", "/api/v1/rollouts", wanted)

    def rollouts(self, states: Sequence[str] = (), model: str | None = None) -> Iterator[RolloutSummary]:
        """Yield rollouts, newest first."""
        return self.pages(RolloutSummary, "/api/v1/rollouts", {"state": list(states), "model": model})

    def rollout(self, rollout: str) -> RolloutView:
        """Return how far a rollout is, stage by stage."""
        return self.http.get(RolloutView, at("rollouts", rollout))

    def decisions(self, rollout: str, *, kinds: Sequence[str] = (), after: int = 0) -> Iterator[DecisionView]:
        """Yield what was decided, in order, those after number `after`."""
        query = {"kind": list(kinds), "cursor": after}
        return self.pages(DecisionView, at("rollouts", rollout, "decisions"), query)

    def rollout_devices(self, rollout: str, phase: str | None = None) -> Iterator[AssignedView]:
        """Yield what a rollout has told devices, and what became of it."""
        return self.pages(AssignedView, at("rollouts", rollout, "devices"), {"phase": phase})

    def order(self, rollout: str, word: Word, reason: str = "") -> RolloutView:
        """Give a rollout an order: ``start``, ``pause``, ``resume``, ``abort``, ``undo`` or ``retry``."""
        wanted = wanted_of(OrderWanted, reason=reason)
        return self.http.change(RolloutView, "POST", at("rollouts", rollout, word), wanted)

    def incidents(self, *, only_open: bool = False, rollout: str | None = None) -> Iterator[IncidentView]:
        """Yield what a person must know, newest first."""
        return self.pages(IncidentView, "/api/v1/incidents", {"open": only_open, "rollout": rollout})

    def close_incident(self, incident: int, reason: str = "") -> IncidentView:
        """Say that an incident is settled."""
        wanted = wanted_of(ReasonWanted, reason=reason)
        return self.http.change(IncidentView, "POST", at("incidents", str(incident), "close"), wanted)

    def alerts(self, *, only_open: bool = True) -> Iterator[AlertView]:
        """Yield what a person should know now, newest first, or also what was."""
        return self.pages(AlertView, "/api/v1/alerts", {"open": only_open})

    def drift(self, model: str | None = None, hours: float = 24.0) -> list[DriftView]:
        """Return how far inputs and outputs have moved: of a model hour by hour, or the newest of each."""
        return self.http.get(list[DriftView], "/api/v1/drift", {"model": model, "hours": hours})
