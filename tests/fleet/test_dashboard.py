"""The dashboard: what comes without a session, from elsewhere, or with too small a role is refused."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra 'fleet'")
pytest.importorskip("itsdangerous", reason="the dashboard needs the extra 'fleet'")

import httpx2
from fastapi import FastAPI
from tests.fleet.dashboard_scene import MODEL, Clock, Scene, artifact
from tests.fleet.served import Sender, serving, token

from edgec.fleet._dates import date, iso
from edgec.fleet.api import create_app
from edgec.fleet.dashboard import mount
from edgec.fleet.service import Fleet
from edgec.fleet.store import Condition, DriftRow

pytestmark = pytest.mark.slow
PAGES = (
    "/", "/devices", "/devices/cam-001", "/releases", f"/releases/{MODEL}/1.0.0", "/rollouts",
    "/rollouts/new", "/rollouts/first", "/incidents", "/alerts", "/audit", "/access", "/series",
    f"/devices/cam-001/series/{MODEL}",
)  # fmt: skip


@dataclass
class Place:
    """A fleet with a dashboard on a port."""

    scene: Scene
    url: str
    sender: Sender
    app: FastAPI

    @property
    def fleet(self) -> Fleet:
        return self.scene.fleet

    @contextmanager
    def client(self, role: str = "admin") -> Iterator[httpx2.Client]:
        """Give a client that is signed in."""
        with httpx2.Client(base_url=self.url, timeout=60) as made:
            answer = made.post("/login", data={"token": token(self.fleet, role)})
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("dashboard")
    clock = Clock()
    with Fleet(folder / "fleet", clock=clock) as fleet:
        scene = Scene(fleet, clock, folder)
        scene.join(3)
        scene.release("1.0.0")
        assert scene.go_on(scene.roll_out("first", "1.0.0", soak_s=900)) == "finished"
        scene.work(900)
        sender = Sender()
        app = create_app(fleet, commands=sender)
        mount(app, fleet)
        with serving(app) as url:
            yield Place(scene, url, sender, app)


def csrf(page: str) -> str:
    """Return what forms of a page send along."""
    found = re.search(r'name="csrf" value="(\w+)"', page)
    assert found
    return found[1]


def test_every_page_is_there_for_who_is_signed_in_and_for_nobody_else(place: Place) -> None:
    with httpx2.Client(base_url=place.url, timeout=60) as nobody, place.client() as admin:
        for page in PAGES:
            assert admin.get(page).status_code == 200, page
            refused = nobody.get(page)
            assert (refused.status_code, refused.headers["location"].partition("?")[0]) == (303, "/login"), (
                page
            )
            polled = nobody.get(page, headers={"HX-Request": "true"})
            assert (polled.status_code, polled.headers["hx-redirect"]) == (401, "/login")
        where = nobody.get("/devices?query=site%3Dlab").headers["location"]
        assert where == "/login?next=/devices%3Fquery%3Dsite%253Dlab"
        unknown = admin.get("/rollouts/nothing")
        assert unknown.status_code == 404
        assert "There is no rollout" in unknown.text


def test_an_unknown_page_is_a_page_for_browsers_and_a_problem_for_programs(place: Place) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    with httpx2.Client(base_url=place.url, timeout=60) as nobody, place.client() as admin:
        # What is for forms only, asked for by its address, is no page either.
        for path in ("/nothing/<b>", "/access/tokens"):
            page = admin.get(path, headers=browser)
            assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
            assert page.headers["content-security-policy"]
            assert "There is no page" in page.text
            assert 'aria-label="Pages"' in page.text
            assert "<b>" not in page.text
        bare = nobody.get("/nothing", headers=browser)
        assert (bare.status_code, 'aria-label="Pages"' in bare.text) == (404, False)
        for path, headers in (("/api/v1/nothing", browser), ("/repo/nothing", browser), ("/nothing", {})):
            problem = admin.get(path, headers=headers)
            assert (problem.status_code, problem.json()["reason"]) == (404, "not_found"), path


def test_pages_load_nothing_from_elsewhere_and_no_script_of_their_own(place: Place) -> None:
    with place.client() as admin:
        for page in PAGES:
            answer = admin.get(page)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            if not answer.headers["content-type"].startswith("text/html"):
                continue
            assert not re.search(r"<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=|javascript:", answer.text), page
            for link in re.findall(r'(?:src|href|action)="([^"]*)"', answer.text):
                assert link.startswith(("/", "#")), (page, link)
        for file in re.findall(r'(?:src|href)="(/static/[^"]+)"', admin.get("/").text):
            assert admin.get(file).status_code == 200, file


def test_a_session_is_a_signed_cookie_that_ends_with_its_token(place: Place) -> None:
    fleet = place.fleet
    made, secret = fleet.tokens.create("carl", "operator", now=fleet.clock(), actor="test")
    with httpx2.Client(base_url=place.url, timeout=60) as client:
        answer = client.post("/login", data={"token": f" {secret} ", "next": "/rollouts"})
        assert answer.headers["location"] == "/rollouts"
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert secret not in cookie
        assert client.get("/").status_code == 200
        value = client.cookies["edgec_session"]
        for wrong in (value[:-2] + "xx", "x" + value, "", "a.b.c"):
            forged = {"Cookie": f"edgec_session={wrong}"}
            assert httpx2.get(f"{place.url}/", headers=forged, timeout=60).status_code == 303
        fleet.tokens.revoke(made.id, now=fleet.clock(), actor="test")
        assert client.get("/").status_code == 303


@pytest.mark.parametrize(
    "there", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/login"]
)
def test_nobody_is_sent_elsewhere_after_signing_in(place: Place, there: str) -> None:
    secret = token(place.fleet, "viewer")
    answer = httpx2.post(f"{place.url}/login", data={"token": secret, "next": there}, timeout=60)
    assert answer.headers["location"] == "/"


def test_a_wrong_token_opens_nothing(place: Place) -> None:
    for wrong in ("", "edgec_" + "x" * 43, "\udcff".encode("utf-8", "surrogatepass").decode("latin-1")):
        answer = httpx2.post(f"{place.url}/login", data={"token": wrong}, timeout=60)
        assert (answer.status_code, "opens nothing" in answer.text) == (401, True)
        assert "set-cookie" not in answer.headers


def test_forms_from_elsewhere_do_nothing(place: Place) -> None:
    with place.client() as admin, place.client() as other:
        good, foreign = csrf(admin.get("/").text), csrf(other.get("/").text)
        before = place.fleet.store.devices.get("cam-001").labels
        form = {"labels": "site=mars"}
        sent: list[tuple[dict[str, Any], int]] = [
            ({"data": form}, 403),
            ({"data": {**form, "csrf": foreign}}, 403),
            ({"data": {**form, "csrf": good}, "headers": {"Origin": "https://evil.example"}}, 403),
            ({"data": {**form, "csrf": good}, "headers": {"Origin": "http://["}}, 403),
            ({"data": {**form, "csrf": good}, "headers": {"Sec-Fetch-Site": "cross-site"}}, 403),
            ({"data": {**form, "csrf": good, "more": "x" * 70_000}}, 413),
        ]
        for request, status in sent:
            assert admin.post("/devices/cam-001/labels", **request).status_code == status
            assert place.fleet.store.devices.get("cam-001").labels == before
        fine = {
            "data": {**form, "csrf": good},
            "headers": {"Origin": place.url, "Sec-Fetch-Site": "same-origin"},
        }
        assert admin.post("/devices/cam-001/labels", **fine).status_code == 303  # type: ignore[arg-type]
        assert place.fleet.store.devices.get("cam-001").labels == {"site": "mars"}


# What needs which role; a smaller one is neither shown it nor may send it.
FORMS = {
    "/devices/cam-002/labels": "operator",
    "/devices/cam-002/settle": "operator",
    "/devices/cam-002/command": "operator",
    "/devices/cam-002/revoke": "admin",
    "/groups": "operator",
    "/releases": "releaser",
    "/rollouts/new": "releaser",
    "/rollouts/first/start": "releaser",
    "/rollouts/first/pause": "operator",
    "/rollouts/first/undo": "operator",
    "/incidents/1/close": "operator",
    "/access/tokens": "admin",
    "/access/tokens/x/revoke": "admin",
    "/access/claims": "admin",
    "/access/claims/x/withdraw": "admin",
}


@pytest.mark.parametrize("role", ["viewer", "operator", "releaser"])
def test_a_role_is_shown_and_may_do_what_it_says(place: Place, role: str) -> None:
    order = ("viewer", "operator", "releaser", "admin")
    artifact_page = f"/artifacts/{place.fleet.registry.release(MODEL, '1.0.0')[0].sha256}"
    forms = {**FORMS, f"{artifact_page}/quarantine": "releaser"}
    with place.client(role) as client:
        pages = [
            client.get(p).text for p in ("/devices/cam-002", "/releases", "/rollouts/first", artifact_page)
        ]
        shown = set(re.findall(r'action="([^"]+)"', " ".join(pages))) - {"/logout", "/devices"}
        allowed = {path for path, needs in forms.items() if order.index(role) >= order.index(needs)}
        assert {path for path in shown if path in forms} <= allowed
        seal = csrf(pages[0])
        for path in set(forms) - allowed:
            assert client.post(path, data={"csrf": seal}).status_code == 403, path
        assert client.get("/access").status_code == 403
        overview, reads = client.get("/").text, role != "viewer"
        assert (client.get("/audit").status_code == 200, 'href="/audit"' in overview) == (reads, reads)
        assert ("Who changed what" in overview) == reads
        assert (client.get("/rollouts/new").status_code == 200) == (role == "releaser")


def test_an_alert_that_is_over_waits_for_nobody(place: Place) -> None:
    alerts = place.fleet.store.alerts
    held = Condition(rule="disk", subject="the disk", severity="critical", summary="the disk is almost full")
    with place.client() as admin:
        for conditions, waits in (([held], True), ([], False)):
            alerts.compare(conditions, place.fleet.clock(), rules=["disk"], quiet_s=300)
            # What a button does is seen at once, and all else with it.
            claim = place.fleet.claims.create(now=place.fleet.clock(), actor="test")[0]
            seal = csrf(admin.get("/access").text)
            assert admin.post(f"/access/claims/{claim.id}/withdraw", data={"csrf": seal}).status_code == 303
            overview, listed = admin.get("/").text, admin.get("/alerts").text
            assert ("disk is almost full" in overview) == waits
            assert ("Nothing waits for you" in overview) != waits
            assert "disk is almost full" in listed
            assert ("over since" in listed) != waits
    alerts.compare([], place.fleet.clock(), rules=["disk"], quiet_s=0)


def test_the_overview_asks_for_open_alerts_once(place: Place) -> None:
    from sqlalchemy import event

    engine, asked = place.fleet.store.database.engine, list[str]()

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM alerts" in statement:
            asked.append(statement)

    with place.client() as admin:
        seal = csrf(admin.get("/access").text)
        for _ in range(20):
            claim = place.fleet.claims.create(now=place.fleet.clock(), actor="test")[0]
            # Then nothing is known that may be a few seconds old.
            assert admin.post(f"/access/claims/{claim.id}/withdraw", data={"csrf": seal}).status_code == 303
            asked.clear()
            began = time.monotonic()
            assert admin.get("/").status_code == 200
            if time.monotonic() - began < 1.0:  # it may be asked again where that took longer
                break
    event.remove(engine, "before_cursor_execute", note)
    assert len(asked) == 1


def test_drift_of_inputs_is_shown_beside_that_of_outputs(place: Place) -> None:
    row = DriftRow(
        model="seen", digest="e" * 16, hardware="cpu", output="scores", hour=int(place.fleet.clock() // 3600),
        hours=1, n=1000, psi=0.01, ks=0.02,
    )  # fmt: skip
    place.fleet.store.drift.write([row, replace(row, kind="input", output="image/mean", psi=0.7)])
    with place.client() as admin:
        page = admin.get("/alerts").text
    assert page.index(">input image/mean<") < page.index(">output scores<")


def test_what_a_form_says_wrong_is_told_and_nothing_is_made(place: Place) -> None:
    with place.client() as admin:
        seal = csrf(admin.get("/").text)
        good = {
            "csrf": seal, "release": f"{MODEL} 1.0.0", "stages": "1, 100", "soak": "1", "least_devices": "5",
            "quorum": "50", "install": "60", "first_look": "1", "patience": "60", "attempts": "1",
        }  # fmt: skip
        before = len(place.fleet.store.rollouts.find())
        wrong = [
            ({"release": ""}, "Choose a release"), ({"release": f"{MODEL} 9"}, "there is no release"),
            ({"stages": "5, 1"}, "stages must grow"), ({"stages": "ten"}, "per cents such as"),
            ({"soak": "long", "quorum": "x"}, "Soak: expected a number"), ({"query": "a="}, "expected key"),
            ({"quorum": "0"}, "quorum must be above 0"), ({"soak": "nan"}, "expected a number"),
            ({"least_devices": "1e999"}, "expected a number"),
        ]  # fmt: skip
        for change, words in wrong:
            answer = admin.post("/rollouts/new", data={**good, **change})
            assert (answer.status_code, words.lower() in answer.text.lower()) == (400, True), (change, words)
        assert len(place.fleet.store.rollouts.find()) == before
        for path, data in (
            ("/access/tokens", {"name": "", "role": "viewer"}),
            ("/access/tokens", {"name": "x", "role": "king"}),
            ("/access/claims", {"uses": "many"}),
            ("/access/claims", {"uses": "1", "days": "x"}),
            ("/access/claims", {"uses": "1", "labels": "site"}),
            *(("/access/claims", {"uses": "1", "days": d}) for d in ("0", "-1", "3661", "inf", "nan", "1e9")),
            ("/access/tokens", {"name": "x", "role": "viewer", "days": "3000000"}),
        ):
            assert admin.post(path, data={"csrf": seal, **data}).status_code == 400, (path, data)
        assert admin.get("/access").status_code == 200


def test_times_and_numbers_out_of_range_break_no_page(place: Place) -> None:
    with place.client() as admin:
        place.fleet.tokens.create("far", "viewer", now=place.fleet.clock(), actor="test", expires_at=1e15)
        assert "1e+15 s since 1970" in admin.get("/access").text
        far = "99999999999999999999"
        assert admin.get(f"/incidents/{far}").status_code == 404
        seal = csrf(admin.get("/").text)
        closing = admin.post(f"/incidents/{far}/close", data={"csrf": seal, "reason": "x"})
        assert closing.status_code == 404
    for at in (math.inf, -math.inf, math.nan, 1e300, -1e15):
        assert (date(at), iso(at)) == (f"{at:g} s since 1970", "")


def test_a_button_does_what_it_said_when_the_page_was_loaded(place: Place) -> None:
    digest = place.fleet.registry.release(MODEL, "1.0.0")[0].sha256
    where = f"/artifacts/{digest}"
    with place.client("releaser") as client:
        seal = csrf(client.get(where).text)

        def send(wanted: str) -> tuple[str, bool]:
            form = {"csrf": seal, "reason": "too <hot>", "wanted": wanted}
            page = client.post(f"{where}/quarantine", data=form, follow_redirects=True).text
            return page, place.fleet.registry.get(digest).quarantined is not None

        assert 'name="wanted" value="quarantine"' in client.get(where).text
        assert send("release") == (ANY, False)
        assert send("") == (ANY, False)
        assert send("quarantine") == (ANY, True)
        assert 'name="wanted" value="release"' in client.get(where).text
        page, quarantined = send("quarantine")
        assert quarantined
        assert "it is quarantined already: too &lt;hot&gt;" in page
        assert send("release") == (ANY, False)
        assert "not quarantined any more" in send("release")[0]


def test_uploads_are_refused_as_the_registry_refuses_them(place: Place, tmp_path: Path) -> None:
    with place.client("releaser") as client:
        seal = csrf(client.get("/releases").text)

        def send(data: bytes, **more: str) -> httpx2.Response:
            files = {"file": ("m.edgec", data)}
            return client.post("/releases", data={"csrf": seal, **more}, files=files)

        assert "cannot" in send(b"PK no artifact").text or "not" in send(b"PK no artifact").text
        failed = artifact(tmp_path, "7.0.0", "cpu-x86_64", passed=False)
        refused = send(failed)
        assert refused.status_code == 409
        assert "parity failed" in refused.text
        taken = send(failed, override="measured <b>elsewhere</b>")
        assert taken.headers["location"] == f"/releases/{MODEL}/7.0.0"
        page = client.get(taken.headers["location"]).text
        assert "measured &lt;b&gt;elsewhere&lt;/b&gt;" in page
        free = send(artifact(tmp_path, "7.0.1", "cpu-x86_64", gate=False)).headers["location"]
        (digest,) = [r.sha256 for r in place.fleet.registry.release(MODEL, "7.0.1")]
        for path in (free, f"/artifacts/{digest}"):
            assert "No accuracy gate: it was compiled with --max-drop none" in client.get(path).text
        assert "with warnings" in client.get("/releases").text
        assert send(b"").status_code == 409


def test_a_command_is_sent_as_it_would_be_from_a_terminal_and_its_result_shown(place: Place) -> None:
    with place.client("operator") as client:
        seal = csrf(client.get("/devices/cam-002").text)
        form = {"csrf": seal, "name": "logs", "args": "lines=50\nsource = agent\n\nx=<b>"}
        page = client.post("/devices/cam-002/command", data=form)
        assert page.status_code == 200
        assert place.sender.sent == [("cam-002", "logs", {"lines": 50, "source": "agent", "x": "<b>"})]
        assert "logs: done" in page.text
        assert "&#34;hello&#34;" in page.text


def test_the_commands_that_every_agent_knows_are_offered_and_told(place: Place) -> None:
    from edgec.device_agent import RemoteOperations

    known = {"abort", "refresh", *RemoteOperations().names}
    with place.client("operator") as client:
        page = client.get("/devices/cam-002").text
    form = page[page.index('id="command-name"') :]
    assert set(re.findall(r'<option value="(\w+)" label="[^"]+">', form)) == known
    assert set(re.findall(r"<dt><code>(\w+)</code></dt><dd>\w", form)) == known
    hint = page[page.index("Every agent knows") : page.index('id="command-name"')]
    assert all(name in hint for name in known)


def test_waiting_for_a_device_takes_no_thread_that_makes_pages(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, waiting = place.sender.send_command, []

    def count(device: str, name: str, args: Any = None, **more: Any) -> Any:
        waiting.append(place.app.state.waiting.borrowed_tokens)
        return send(device, name, args, **more)

    monkeypatch.setattr(place.sender, "send_command", count)
    with place.client("operator") as client:
        form = {"csrf": csrf(client.get("/devices/cam-002").text), "name": "status"}
        assert client.post("/devices/cam-002/command", data=form).status_code == 200
    assert waiting == [1]


def test_pages_ask_the_database_the_same_however_many_devices_there_are(place: Place) -> None:
    from sqlalchemy import event

    engine, asked = place.fleet.store.database.engine, [0]

    @event.listens_for(engine, "before_cursor_execute")
    def count(*_: object) -> None:
        asked[0] += 1

    def queries(page: str, client: httpx2.Client) -> int:
        asked[0] = 0
        assert client.get(page).status_code == 200
        return asked[0]

    pages = ("/devices", "/rollouts/first", "/rollouts")
    with place.client() as admin:
        admin.get("/")
        few = [queries(page, admin) for page in pages]
        place.scene.join(40, prefix="more")
        many = [queries(page, admin) for page in pages]
    event.remove(engine, "before_cursor_execute", count)
    assert all(b <= a + 4 for a, b in zip(few, many, strict=True))
