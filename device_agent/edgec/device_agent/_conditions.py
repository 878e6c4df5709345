"""Whether now is the time for an update: the owner's window, and power."""

from __future__ import annotations

import time
from pathlib import Path

from edgec.device_agent._actions import PostponedError
from edgec.device_agent._config import UpdateSettings

_DAY_MIN = 24 * 60
_BATTERY_RETRY_S = 900.0


def check_conditions(settings: UpdateSettings, wall_s: float, root: Path = Path("/")) -> None:
    """Return where an update may begin now.

    A device whose clock was never set has no time of day; its updates do not wait for one.

    Args:
        settings: Of the owner.
        wall_s: Seconds since 1970.
        root: Where ``sys`` is.

    Raises:
        PostponedError: It is not the time (``window``), or there is too little power (``power``).
    """
    _check_window(settings.window, wall_s)
    _check_battery(settings.min_battery_percent, root)


def _check_window(window: str | None, wall_s: float) -> None:
    if window is None or wall_s < 1.6e9:
        return
    here = time.localtime(wall_s)
    now = here.tm_hour * 60 + here.tm_min
    begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in window.split("-"))
    if (now - begin) % _DAY_MIN < (end - begin) % _DAY_MIN or begin == end:
        return
    wait = (begin - now) % _DAY_MIN * 60.0 - here.tm_sec
    raise PostponedError("window", f"updates begin between {window} here", retry_s=max(wait, 1.0))


def _check_battery(least: int, root: Path) -> None:
    if not least:
        return
    levels = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        kind, online, status, capacity = (
            _read(supply / name) for name in ("type", "online", "status", "capacity")
        )
        if (kind != "Battery" and online == "1") or status in ("Charging", "Full"):
            return
        if kind == "Battery" and capacity.isdigit():
            levels.append(int(capacity))
    if levels and max(levels) < least:
        detail = f"the battery has {max(levels)} %, and an update needs {least} % or a charger"
        raise PostponedError("power", detail, retry_s=_BATTERY_RETRY_S)


def _read(path: Path) -> str:
    try:
        return path.read_text()[:64].strip()
    except (OSError, UnicodeDecodeError):
        return ""
