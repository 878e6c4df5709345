"""A real browser for the tests of the dashboard: Debian's Chromium, driven by its own driver."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("selenium", reason="browser tests need selenium: pip install --group test")

from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
    WebDriverException,
)
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
# Generous: the machine may be busy with other tests.
WAIT_S = 60.0
# While a part of a page is put in anew.
_PASSING = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
Found = TypeVar("Found")


class Browser:
    """A window, and what a person does in it."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.url = url

    def go(self, path: str) -> None:
        """Open a page."""
        self.driver.get(self.url + path)

    @property
    def path(self) -> str:
        """Where it is."""
        return self.driver.current_url.removeprefix(self.url)

    @property
    def text(self) -> str:
        """What a person reads on the page, spaces as one."""
        return " ".join(self.driver.find_element(By.TAG_NAME, "body").text.split())

    def one(self, css: str) -> WebElement:
        """Return the first element of a selector, once there is one: parts of pages are put in anew."""
        return self.until(lambda: self.all(css), f"there is no {css}")[0]

    def all(self, css: str) -> list[WebElement]:
        """Return all elements of a selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text_of(self, css: str) -> str:
        """Return what a person reads in the first element of a selector, once there is one."""
        return self.until(lambda: [e.text for e in self.all(css)[:1]], f"there is no {css}")[0]

    def write(self, css: str, words: str) -> None:
        """Write into the first element of a selector."""

        def written() -> bool:
            self.one(css).send_keys(words)
            return True

        self.until(written, f"{css} cannot be written into")

    def click(self, css: str) -> None:
        """Click where a person could."""

        def clicked() -> bool:
            element = self.one(css)
            self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
            element.click()
            return True

        self.until(clicked, f"{css} cannot be clicked")

    def fill(self, **values: str) -> None:
        """Write into fields of the page by their names."""
        for name, value in values.items():

            def filled(css: str = f"main [name={name}]", value: str = value) -> bool:
                field = self.one(css)
                if field.tag_name != "select" and field.get_attribute("type") != "file":
                    field.clear()
                field.send_keys(value)
                return True

            self.until(filled, f"{name} cannot be filled in")

    def until(self, true: Callable[[], Found], what: str) -> Found:
        """Wait until something is true, and return it; the page may change meanwhile."""
        wait: WebDriverWait[Chrome] = WebDriverWait(self.driver, WAIT_S, 0.1, ignored_exceptions=_PASSING)
        try:
            return wait.until(lambda _: true())
        except TimeoutException:
            pytest.fail(f"{what}; the page is {self.path}: {self.text[:600]}", pytrace=False)

    def until_text(self, words: str) -> None:
        """Wait until words are on the page."""
        self.until(lambda: words in self.text, f"{words!r} is not on the page")

    def sign_in(self, token: str) -> None:
        """Sign in with a token."""
        # From elsewhere: a page that is open would ask on, without its session.
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
        self.go("/login")
        self.write("#token", token)
        self.click("button[type=submit]")
        self.until(lambda: self.path == "/", "the overview does not come")

    def run(self, script: str, *values: object) -> Any:
        """Run a script in the page, outside its policy."""
        return self.driver.execute_script(script, *values)

    def size(self, width: int, height: int) -> None:
        """Make the page as large as a screen, exactly."""
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)

    def scheme(self, name: str) -> None:
        """Prefer ``dark`` or ``light``."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def too_wide(self) -> list[str]:
        """Return what reaches beyond the screen, but for what scrolls in its own frame."""
        found: list[str] = self.run(
            """
            const limit = document.documentElement.clientWidth;
            const inside = e => e.closest(".scroll, .hidden, thead, caption, .skip, .u-wrap") !== null;
            return [...document.querySelectorAll("body *")].filter(e => {
              const box = e.getBoundingClientRect();
              return box.width > 1 && box.right > limit + 0.5 && !inside(e);
            }).map(e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 50)}`)
              .concat(document.documentElement.scrollWidth > limit ? ["the page scrolls sideways"] : []);
            """
        )
        return found

    def complaints(self) -> list[str]:
        """Return errors and violated policies that the browser told of since the last call."""
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]

    def picture(self, path: Path, *, quality: int = 80) -> None:
        """Write what is seen as WebP."""
        values = {"format": "webp", "quality": quality, "captureBeyondViewport": False}
        data = self.driver.execute_cdp_cmd("Page.captureScreenshot", values)["data"]
        path.write_bytes(base64.b64decode(data))

    def axe(self, source: str) -> list[str]:
        """Return what axe-core finds wrong with the page, in words."""
        self.run(source)
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']})"
            ".then(r => done(JSON.stringify(r.violations)),"
            " e => done(JSON.stringify([{id: String(e), nodes: []}])));"
        )
        return [
            f"{v['id']}: {v.get('help', '')} {[n['html'][:160] for n in v['nodes'][:3]]}"
            for v in json.loads(found)
        ]


@contextmanager
def open_browser(url: str, profile: Path) -> Iterator[Browser]:
    """Open a window; skip the test where there is no browser."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver is installed: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        "--force-color-profile=srgb", f"--user-data-dir={profile}", "--window-size=1400,1000",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        driver = Chrome(options=options, service=Service(DRIVER))
    except WebDriverException as e:
        pytest.skip(f"Chromium does not start here: {e.msg}")
    try:
        driver.set_script_timeout(WAIT_S)
        yield Browser(driver, url)
    finally:
        driver.quit()
