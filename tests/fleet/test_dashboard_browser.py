"""The dashboard in a real browser: a rollout from upload to incident, on phone and desk, in the dark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra 'fleet'")
pytest.importorskip("itsdangerous", reason="the dashboard needs the extra 'fleet'")

from tests.fleet.browser import Browser, open_browser
from tests.fleet.dashboard_scene import HARDWARE, MODEL, Clock, Scene, Ways, artifact
from tests.fleet.served import serving, token

from edgec.fleet.api import create_app
from edgec.fleet.dashboard import mount
from edgec.fleet.service import Fleet

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=window.taken=1><script>window.taken=1</script>"
PAGES = (
    "/", "/devices", "/devices/cam-003", "/releases", f"/releases/{MODEL}/1.0.0", "/rollouts", "/incidents",
    "/alerts", "/audit?check=true", "/access", f"/rollouts/new?release={MODEL}+1.0.0",
)  # fmt: skip


AUDITED = {
    "light": ("/", "/devices/cam-003", "/rollouts/first", "/access"),
    "dark": ("/rollouts/first", "/rollouts/new"),
}


@dataclass
class Desk:
    """A fleet, its dashboard, and a browser before it."""

    scene: Scene
    browser: Browser

    def goes_on(self, rollout: str, *, until: int = 9) -> str:
        """Let devices obey and time pass."""
        return self.scene.go_on(rollout, until=until)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("dashboard")
    clock = Clock()
    with Fleet(folder / "fleet", clock=clock) as fleet:
        scene = Scene(fleet, clock, folder)
        scene.ways["3.0.0"] = Ways(errors=0.2, slower=3)
        scene.join(24)
        scene.release("1.0.0")
        assert scene.go_on(scene.roll_out("first", "1.0.0", soak_s=900)) == "finished"
        for _ in range(3):
            scene.work(3600)
        app = create_app(fleet)
        mount(app, fleet, poll_s=0.5)
        with serving(app) as url, open_browser(url, folder / "profile") as browser:
            browser.go("/login")
            browser.size(1280, 900)
            yield Desk(scene, browser)


@pytest.fixture(autouse=True)
def nothing_to_complain_about(desk: Desk) -> Iterator[None]:
    """No error in the console, no violated policy, whatever a test does; no rollout goes on after it."""
    desk.browser.complaints()
    yield
    rollouts = desk.scene.fleet.store.rollouts
    for rollout in rollouts.find(states=("running", "paused")):
        rollouts.order(rollout.plan.id, "abort", now=desk.scene.clock(), actor="test")
    assert desk.browser.complaints() == []


def id_of(browser: Browser) -> str:
    """Return the id of the rollout whose page is open."""
    return browser.path.removeprefix("/rollouts/")


def create(browser: Browser, version: str, **fields: str) -> str:
    """Create and start a rollout in the browser; return its id."""
    browser.go(f"/rollouts/new?release={MODEL}+{version}")
    browser.until(lambda: browser.all("#reach table"), "nobody says whom it reaches")
    browser.click("#plan .fold > summary")
    browser.fill(**fields)
    browser.click("button[value=yes]")
    browser.until_text("The rollout has started.")
    return id_of(browser)


def order(browser: Browser, word: str, reason: str) -> None:
    """Give an order with a reason."""
    browser.until(lambda: browser.all(f"#order-{word}"), f"there is no order {word}")
    browser.click(f"#order-{word} > summary")
    browser.write(f"#reason-{word}", reason)
    browser.click(f"#order-{word} button")


def test_a_rollout_is_led_from_upload_to_the_end(desk: Desk, tmp_path: Path) -> None:
    browser, scene = desk.browser, desk.scene
    browser.sign_in(token(scene.fleet, "releaser"))
    for target in HARDWARE:
        file = tmp_path / f"{target}.edgec"
        file.write_bytes(artifact(tmp_path, "2.0.0", target))
        browser.go("/releases")
        browser.write("input[type=file]", str(file))
        browser.click("form[enctype] button")
        browser.until_text(f"{MODEL} 2.0.0 for {target} was taken in and signed.")
    scene.versions |= {r.sha256: "2.0.0" for r in scene.fleet.registry.release(MODEL, "2.0.0")}
    assert browser.path == f"/releases/{MODEL}/2.0.0"
    assert "93.9 %" in browser.text
    browser.click("main .button.main")
    browser.until(lambda: browser.path.startswith("/rollouts/new"), "the form does not come")

    ident = create(browser, "2.0.0", name="two", least_devices="5", stages="25, 100", soak="60")
    assert "Stage 1" in browser.text or "under way" in browser.text
    desk.goes_on(ident, until=1)
    # The page is kept up to date without being loaded anew.
    browser.until_text("Stage 2 begins: 100 %")
    browser.until(lambda: browser.all(".dot.installed"), "no device is drawn as installed")
    browser.until_text("figures pass")
    # Chance says which devices come first; of one class of hardware there is one table, and no fold.
    if browser.all(".fold > summary"):
        browser.click(".fold > summary")
    browser.until(lambda: browser.all(".gate .forest .span"), "no interval is drawn")
    evidence = browser.text_of("table.gate")
    for words in ("95th percentile of the latency", "Failed calls", "1.60×", "pass"):
        assert words in evidence

    order(browser, "pause", "")
    browser.until_text("paused: no further device is told")
    order(browser, "resume", "")
    browser.until_text("Resume: done.")
    order(browser, "abort", f"lunch {HOSTILE}")
    browser.until_text("What was installed stays.")
    assert HOSTILE in browser.text
    assert browser.run("return window.taken") is None
    assert scene.fleet.store.rollouts.get(ident).state == "aborted"
    # What was installed may still be taken back.
    assert browser.run("return [...document.querySelectorAll('.order')].map(e => e.id)") == ["order-undo"]


def test_a_bad_release_is_undone_and_its_incident_settled(desk: Desk) -> None:
    browser, scene = desk.browser, desk.scene
    browser.sign_in(token(scene.fleet, "releaser"))
    scene.release("3.0.0")
    name = f"three {HOSTILE}"
    ident = create(browser, "3.0.0", name=name, least_devices="8", stages="34, 100", soak="60")
    assert desk.goes_on(ident) == "undone"
    browser.until_text("Devices went back to what they had")
    assert name in browser.text
    assert browser.all(".stage.failed")
    browser.until(lambda: browser.all(".dot.undone"), "no device is drawn as gone back")
    browser.go("/incidents")
    browser.click("tbody th a")
    browser.until_text("Evidence")
    assert browser.all(".forest.fail")
    # A row has two lines at the most, and no figure is apart from its unit.
    shown = "[...document.querySelectorAll('table.gate tbody tr')].filter(e => e.offsetHeight)"
    assert max(browser.run(f"return {shown}.map(e => e.offsetHeight)")) < 70
    assert browser.run(f"return {shown}.some(e => e.innerText.includes(' %'))") is False
    browser.fill(reason="compiled anew")
    browser.click("main form button")
    browser.until_text("is settled.")
    assert "Nothing waits for a person" in browser.text
    browser.go(f"/releases/{MODEL}/3.0.0")
    assert "quarantined" in browser.text
    browser.go("/audit?check=true")
    assert "The chain holds" in browser.text
    assert browser.run("return window.taken") is None


def test_charts_are_drawn_and_have_tables(desk: Desk) -> None:
    browser = desk.browser
    browser.sign_in(token(desk.scene.fleet, "viewer"))
    desk.scene.tell("cam-003", "crash", severity="error", reason="out_of_memory", detail=HOSTILE)
    browser.go("/devices/cam-003")
    browser.until(lambda: len(browser.all(".plot[data-drawn] canvas")) == 4, "there are not four charts")
    assert HOSTILE in browser.text
    assert browser.run("return window.taken") is None
    browser.click(".chart .fold > summary")
    assert (
        browser.run("return document.querySelector('.chart table').querySelectorAll('tbody tr').length") >= 3
    )
    ink = browser.run(
        "const c = document.querySelector('.plot canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return d.some((v, i) => i % 4 === 3 && v > 0)"
    )
    assert ink is True


def test_a_viewer_sees_no_order_and_nobody_sees_anything_after_signing_out(desk: Desk) -> None:
    browser = desk.browser
    browser.sign_in(token(desk.scene.fleet, "viewer"))
    for page in ("/rollouts/first", "/devices/cam-003", "/releases", "/rollouts"):
        browser.go(page)
        forms = [f.get_attribute("action") for f in browser.all("main form[method=post]")]
        assert forms == [], page
        assert not browser.all("a[href='/rollouts/new'], a[href='/access']")
    browser.click(".side > .foot button")
    browser.until(lambda: browser.path == "/login", "it is still signed in")
    browser.go("/devices")
    assert browser.path == "/login?next=/devices"
    # A page may have been asking for news while it signed out.
    assert all("Failed to load resource" in line or "fetch" in line for line in browser.complaints())


def test_a_page_says_that_the_server_is_away(desk: Desk) -> None:
    browser = desk.browser
    browser.sign_in(token(desk.scene.fleet, "viewer"))
    network = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    browser.until_text("The server does not answer")
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**network, "offline": False})
    browser.until(lambda: "The server does not answer" not in browser.text, "it still says that it is away")
    # The failed requests themselves are in the console.
    assert all("ERR_INTERNET_DISCONNECTED" in line or "fetch" in line for line in browser.complaints())


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1280, "dark")])
def test_pages_fit_the_screen(desk: Desk, width: int, scheme: str) -> None:
    browser = desk.browser
    browser.size(width, 844)
    browser.scheme(scheme)
    try:
        browser.sign_in(token(desk.scene.fleet, "admin"))
        grounds = set()
        for page in (*PAGES, "/rollouts/first"):
            browser.go(page)
            assert browser.too_wide() == [], page
            grounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        assert grounds == {"rgb(246, 246, 244)" if scheme == "light" else "rgb(18, 20, 22)"}
        if width < 1000:
            browser.click(".menu > summary")
            assert browser.one(".menu nav a[href='/devices']").is_displayed()
    finally:
        browser.size(1280, 900)
        browser.scheme("light")


def test_lists_are_dense_on_a_phone_and_what_is_tapped_is_large_enough(desk: Desk) -> None:
    browser = desk.browser
    browser.size(390, 844)
    try:
        browser.sign_in(token(desk.scene.fleet, "admin"))
        for page in ("/devices", "/audit"):
            browser.go(page)
            row, link = (
                f"return [...document.querySelectorAll('.dense tbody {css}')].map(e => e.offsetHeight)"
                for css in ("tr", "a, .dense tbody summary")
            )
            heights = sorted(browser.run(row))
            assert len(heights) >= 20
            assert heights[len(heights) // 2] <= 84, page
            assert heights[-1] <= 130, page
            assert min(browser.run(link)) >= 44, page
            # Name and state stand beside each other.
            apart = browser.run(
                "const mid = e => { const b = e.getBoundingClientRect(); return b.top + b.height / 2; };"
                "const row = document.querySelector('.dense tbody tr');"
                "return Math.abs(mid(row.querySelector('th')) - mid(row.querySelector('.first')))"
            )
            assert apart < 6, page
            assert browser.too_wide() == []
        browser.click(".log summary")
        browser.until(lambda: browser.one(".log details[open] pre").is_displayed(), "no figures are shown")
        assert browser.run("return document.querySelector('.log pre').offsetWidth") > 280
        assert browser.too_wide() == []
    finally:
        browser.size(1280, 900)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(desk: Desk, scheme: str) -> None:
    source = Path(pytest.importorskip("axe_core_python").__file__ or "").with_name("axe.min.js").read_text()
    browser = desk.browser
    browser.scheme(scheme)
    try:
        browser.sign_in(token(desk.scene.fleet, "admin"))
        for page in AUDITED[scheme]:
            browser.go(page)
            assert browser.axe(source) == [], page
        # It would find what is wrong.
        browser.run("document.querySelector('main').insertAdjacentHTML('beforeend', '<input>')")
        assert any(line.startswith("label:") for line in browser.axe(source))
    finally:
        browser.scheme("light")
