"""Figures for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from edgec.fleet.api._access import FleetOf, Viewer
from edgec.fleet.metrics import metrics_text

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def get_metrics(who: Viewer, request: Request, fleet: FleetOf) -> Response:
    """Return figures of the fleet as text for Prometheus, which shows a token of role viewer."""
    counted = getattr(request.app.state, "counted", None)
    text, content_type = metrics_text(fleet.store, clock=fleet.clock, counted=counted)
    return Response(text, media_type=content_type)
