"""Times as dates, also those that a wrong clock gives."""

from __future__ import annotations

from datetime import datetime, timezone


def date(at: float) -> str:
    """Return a time as ``2026-01-31 14:05:09 UTC``."""
    moment = _moment(at)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else f"{at:g} s since 1970"


def iso(at: float) -> str:
    """Return a time for programs; empty for one that no calendar has."""
    moment = _moment(at)
    return moment.isoformat(timespec="seconds") if moment else ""


def _moment(at: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(at, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
