"""What all pages share: the fleet, who asks, and how an answer is made."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment

from edgec.fleet.api._commands import CommandSender
from edgec.fleet.dashboard._sessions import Session, Sessions
from edgec.fleet.service import Fleet
from edgec.fleet.store import AlertRecord

T = TypeVar("T")
_MOST_KEPT = 500


@dataclass
class _Kept:
    """An answer, and when it was made; whoever holds the lock makes the next one."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    at: float = -math.inf
    value: Any = None


@dataclass
class Recent:
    """Answers that may be a few seconds old, so that many viewers cost what one does."""

    _kept: dict[Any, _Kept] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Any, seconds: float, make: Callable[[], T]) -> T:
        """Return what `make` gave at most so many seconds ago, or gives now."""
        with self._lock:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            kept = self._kept.setdefault(key, _Kept())
        with kept.lock:
            if time.monotonic() - kept.at > seconds:
                kept.value, kept.at = make(), time.monotonic()
            value: T = kept.value
        return value

    def forget(self) -> None:
        """Make all answers anew: something was changed."""
        with self._lock:
            self._kept.clear()


@dataclass(frozen=True)
class Dashboard:
    """The fleet, and how its pages are made.

    Attributes:
        fleet: What is shown.
        commands: Sends commands to devices; None where nothing does.
        sessions: Who asks.
        templates: Of all pages.
        poll_s: How often an open page asks for what is new.
        recent: Answers that may be a few seconds old.
    """

    fleet: Fleet
    commands: CommandSender | None
    sessions: Sessions
    templates: Environment
    poll_s: float = 5.0
    recent: Recent = field(default_factory=Recent)

    @property
    def now(self) -> float:
        """Seconds by the fleet's clock."""
        return self.fleet.clock()

    def render(
        self, request: Request, session: Session | None, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Return a page, with what the last one left to be said."""
        polled = request.headers.get("hx-request") == "true"
        page = self.templates.get_template(template).render(
            request=request,
            session=session,
            now=self.now,
            poll_s=f"{self.poll_s:g}",
            notice=None if polled else self.sessions.take_notice(request),
            waiting=self.recent.get("waiting", 2, self._waiting) if session else {},
            **values,
        )
        response = HTMLResponse(page, status_code=status)
        if not polled:
            self.sessions.take_notice(request, response)
        return response

    def done(self, request: Request, where: str, text: str) -> RedirectResponse:
        """Return the way to a page that says what was done; wake whoever directs devices."""
        self.recent.forget()
        self.fleet.wake()
        return self.go(request, where, "good", text)

    def go(self, request: Request, where: str, kind: str, text: str) -> RedirectResponse:
        """Return the way to a page that says something: ``good`` or ``bad``."""
        response = RedirectResponse(where, status_code=303)
        self.sessions.leave_notice(request, response, kind, text)
        return response

    def alerts(self) -> list[AlertRecord]:
        """Return alerts that wait for a person: not those of incidents, nor what is over."""
        # Asked for by a page and by what stands on each.
        found = self.recent.get("alerts", 2, self.fleet.store.alerts.find)
        return [alert for alert in found if alert.rule != "incident" and alert.quiet_since is None]

    def _waiting(self) -> dict[str, int]:
        """Return what waits for a person, by page."""
        store = self.fleet.store
        return {
            "incidents": len(store.rollouts.incidents(only_open=True)),
            "alerts": len(self.alerts()),
        }
