"""Makes the pictures of the dashboard in docs/images: `python -m tests.fleet.screenshots`.

120 devices live through a day and a half by the real store and the real gate; Chromium looks at them then.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.fleet.browser import Browser, open_browser
from tests.fleet.dashboard_scene import Clock, full
from tests.fleet.served import serving

from edgec.fleet.alerts import AlertSettings, conditions
from edgec.fleet.api import create_app
from edgec.fleet.dashboard import mount
from edgec.fleet.drift import measure_drift
from edgec.fleet.service import Fleet

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
WIDTH, HEIGHT, PHONE = 1280, 860, (390, 844)
MOST_BYTES = 150_000
PICTURES = (
    ("overview", "/", "light"), ("overview", "/", "dark"),
    ("rollout", "/rollouts/kws-1.2.0-quieter-rooms", "light"),
    ("rollout", "/rollouts/kws-1.2.0-quieter-rooms", "dark"),
    ("device", "/devices/cam-003", "light"), ("device", "/devices/cam-003", "dark"),
    ("incident", "/incidents/1", "light"),
)  # fmt: skip


def take(browser: Browser, name: str, page: str, scheme: str) -> None:
    """Write one picture.

    Raises:
        ValueError: It is larger than a picture of a README may be.
    """
    browser.scheme(scheme)
    browser.go(page)
    plots = len(browser.all(".plot"))
    browser.until(lambda: len(browser.all(".plot[data-drawn]")) == plots, "charts are missing")
    path = IMAGES / f"dashboard-{name}-{scheme}.webp"
    browser.picture(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes; at most {MOST_BYTES} are fine")
    print(f"{path.name}: {path.stat().st_size} bytes")


def main() -> None:
    """Write all pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        with Fleet(Path(folder) / "fleet", clock=clock) as fleet:
            full(fleet, clock, Path(folder))
            settings = AlertSettings()
            found = [c for c in conditions(fleet, settings, clock()) if c.rule not in ("disk", "expiry")]
            fleet.store.alerts.compare(found, clock(), rules={c.rule for c in found}, quiet_s=0)
            fleet.store.drift.write(measure_drift(fleet.store, clock()))
            secret = fleet.tokens.create("ann", "releaser", now=clock(), actor="first")[1]
            app = create_app(fleet)
            mount(app, fleet, poll_s=3600)
            with serving(app) as url, open_browser(url, Path(folder) / "profile") as browser:
                browser.go("/login")
                browser.size(WIDTH, HEIGHT)
                browser.sign_in(secret)
                for picture in PICTURES:
                    take(browser, *picture)
                browser.size(*PHONE)
                take(browser, "phone", "/rollouts/kws-1.2.0-quieter-rooms", "light")


if __name__ == "__main__":
    main()
