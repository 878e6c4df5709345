"""The fleet's API: what it shows, what it changes, once each, and how it refuses."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the API needs the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="the API needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the API needs the extra 'fleet'")
pytest.importorskip("tuf", reason="the API needs the extra 'fleet'")

from starlette.testclient import TestClient
from tests.fleet.served import GOOD, HARDWARE, Sender, artifact, enrol, reports, serving, token, upload

from edgec.fleet.api import ApiLimits, create_app
from edgec.fleet.api._once import Once
from edgec.fleet.client import FleetClient
from edgec.fleet.rollouts import OpenIncident
from edgec.fleet.service import Fleet
from edgec.fleet.store._alerts import Condition
from edgec.fleet.store._drift import DriftRow
from edgec.protocol import ModelWindow, Telemetry, TelemetryRecord
from edgec.sketch import QuantileSketch

pytestmark = pytest.mark.slow
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of three devices that run version 1, with a version 2 in the registry."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder / "fleet") as opened:
        first = upload(opened, artifact(folder, "1"))
        upload(opened, artifact(folder, "2"))
        enrol(opened, "cam-1", "cam-2", site="lab")
        enrol(opened, "cam-3", site="hall")
        for name in ("cam-1", "cam-2", "cam-3"):
            reports(opened, name, first)
        yield opened


@pytest.fixture(scope="module")
def sender() -> Sender:
    return Sender()


@pytest.fixture(scope="module")
def api(fleet: Fleet, sender: Sender) -> TestClient:
    """The API, as an admin uses it."""
    limits = ApiLimits(rate=None, body_bytes=4096, artifact_bytes=100_000)
    headers = {"Authorization": f"Bearer {token(fleet, 'admin')}"}
    return TestClient(create_app(fleet, commands=sender, limits=limits), headers=headers)


def problem(reply: Any, status: int, reason: str) -> str:
    """Check that a reply is a problem; return its detail."""
    assert (reply.status_code, reply.headers["content-type"]) == (status, PROBLEM), reply.text
    found = reply.json()
    assert (found["status"], found["reason"]) == (status, reason)
    assert found["next"]
    assert found["request_id"] == reply.headers["x-request-id"]
    return str(found["detail"])


def test_devices_come_by_query_and_page(api: TestClient) -> None:
    page = api.get("/api/v1/devices", params={"limit": 2}).json()
    assert [d["id"] for d in page["items"]] == ["cam-1", "cam-2"]
    last = api.get("/api/v1/devices", params={"limit": 2, "cursor": page["next"]}).json()
    assert ([d["id"] for d in last["items"]], last["next"]) == (["cam-3"], None)
    lab = api.get("/api/v1/devices", params={"query": "site=lab, id!=cam-1"}).json()["items"]
    assert [(d["id"], d["online"], d["models"]["kws"]["version"]) for d in lab] == [("cam-2", True, "1")]
    assert "expected key" in problem(api.get("/api/v1/devices", params={"query": "=="}), 422, "query")


def test_a_device_is_shown_with_its_boots_and_why_it_is_not_newer(api: TestClient) -> None:
    found = api.get("/api/v1/devices/cam-1").json()
    assert (found["agent"], found["labels"]) == ("edgec 0", {"site": "lab"})
    assert [b["id"] for b in found["boots"]] == ["b1"]
    (why,) = api.get("/api/v1/devices/cam-1/why", params={"model": "kws"}).json()
    assert (why["has"], why["newest"], why["reason"]) == ("1", "2", "no_rollout")
    assert api.get("/api/v1/devices/cam-1/why").json() == [why], "of all its models"
    assert "cam-9" in problem(api.get("/api/v1/devices/cam-9"), 404, "not_found")
    problem(api.get("/api/v1/devices/cam%009"), 422, "invalid")


def test_labels_groups_and_settling_are_written_and_audited(api: TestClient, fleet: Fleet) -> None:
    reply = api.put("/api/v1/devices/cam-3/labels", json={"labels": {"site": "hall", "ring": "canary"}})
    assert reply.json()["labels"] == {"site": "hall", "ring": "canary"}
    assert api.put("/api/v1/groups/canaries", json={"query": "ring=canary"}).status_code == 200
    assert api.get("/api/v1/groups").json() == [{"name": "canaries", "query": "ring=canary"}]
    assert api.delete("/api/v1/groups/canaries").status_code == 204
    problem(api.delete("/api/v1/groups/canaries"), 404, "not_found")
    problem(api.post("/api/v1/devices/cam-3/settle", json={"boot_id": "other"}), 404, "not_found")
    assert api.post("/api/v1/devices/cam-3/settle", json={"boot_id": "b1"}).status_code == 200
    actions = [(e.action, e.actor) for e in fleet.store.audit.entries(limit=1000)][-4:]
    assert actions == [(a, "the admin") for a in ("device.label", "group.set", "group.drop", "device.settle")]


def test_what_is_wrong_in_a_request_is_said_all_at_once(api: TestClient) -> None:
    reply = api.post(
        "/api/v1/rollouts", json={"model": "kws", "quorum": 2, "stages": [{"percent": 0}], "x": 1}
    )
    problem(reply, 422, "invalid")
    assert {e["where"] for e in reply.json()["errors"]} == {"body.quorum", "body.stages.0.percent", "body.x"}
    reply = api.post("/api/v1/rollouts", json={"model": "kws", "stages": [{"percent": 50}]})
    assert "100 percent" in problem(reply, 422, "invalid")


def test_an_upload_is_verified_kept_and_downloaded_in_ranges(api: TestClient, tmp_path: Path) -> None:
    data = artifact(tmp_path, "3").read_bytes()
    made = api.post("/api/v1/artifacts", params={"hardware": [HARDWARE, "old"]}, content=data)
    assert made.status_code == 201
    shown = made.json()
    assert shown["hardware"] == [HARDWARE, "old"]
    assert shown["report"]["parity"]["passed"]
    digest = sha256(data).hexdigest()
    assert api.get(f"/api/v1/artifacts/{digest}").json() == shown
    release = api.get("/api/v1/releases/kws/3").json()
    assert [a["sha256"] for a in release["artifacts"]] == [digest]
    file = f"/api/v1/artifacts/{digest}/file"
    assert api.get(file).content == data
    part = api.get(file, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    # Devices read the same bytes from the repository, without a token.
    public = TestClient(api.app)
    folder, _, name = shown["path"].rpartition("/")
    found = public.get(f"/repo/targets/{folder}/{digest}.{name}")
    assert found.content == data
    again = public.get(found.request.url.path, headers={"If-None-Match": found.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_upload_that_did_not_pass_needs_a_reason(api: TestClient, tmp_path: Path) -> None:
    data = artifact(tmp_path, "4", report={"parity": {"passed": False}}).read_bytes()
    assert "parity failed" in problem(api.post("/api/v1/artifacts", content=data), 409, "refused")
    made = api.post("/api/v1/artifacts", params={"override": "only for the lab"}, content=data)
    assert (made.status_code, made.json()["override"]) == (201, "only for the lab")
    ungated = artifact(tmp_path, "4", model="free", report={**GOOD, "options": {"max_drop": None}})
    free = api.post("/api/v1/artifacts", content=ungated.read_bytes())
    told = ["no accuracy gate: it was compiled with --max-drop none"]
    assert (free.status_code, free.json()["warnings"], made.json()["warnings"]) == (201, told, [])
    assert api.get("/api/v1/releases/free/4").json()["artifacts"][0]["warnings"] == told
    problem(api.post("/api/v1/artifacts", content=b"no artifact"), 422, "artifact")
    problem(api.post("/api/v1/artifacts", content=bytes(100_001)), 413, "too_large")

    def pieces() -> Iterator[bytes]:
        yield from [bytes(50_000)] * 3

    problem(api.post("/api/v1/artifacts", content=pieces()), 413, "too_large")


def test_an_upload_is_once_under_its_key(api: TestClient, tmp_path: Path) -> None:
    data = artifact(tmp_path, "5").read_bytes()
    right = base64.b64encode(sha256(data).digest()).decode()
    wrong = base64.b64encode(sha256(b"x").digest()).decode()

    def send(body: bytes, digest: str | None) -> Any:
        named = {} if digest is None else {"Content-Digest": f"sha-256=:{digest}:"}
        return api.post("/api/v1/artifacts", content=body, headers={"Idempotency-Key": "u1", **named})

    assert "Content-Digest" in problem(send(data, None), 422, "invalid")
    assert "Content-Digest" in problem(send(data, wrong), 422, "invalid")
    first, again = send(data, right), send(data, right)
    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    assert "another request" in problem(send(b"x", wrong), 409, "conflict")


def test_a_rollout_is_made_ordered_and_shown_stage_by_stage(api: TestClient, fleet: Fleet) -> None:
    wanted = {"model": "kws", "version": "2", "query": "site=lab", "stages": [{"percent": 100, "soak_s": 0}]}
    made = api.post("/api/v1/rollouts", json=wanted)
    assert made.status_code == 201
    rollout = made.json()["id"]
    assert (made.json()["state"], made.json()["orders"]) == ("draft", ["start", "abort"])
    woken: list[int] = []
    forget = fleet.on_wake(lambda: woken.append(1))
    assert api.post(f"/api/v1/rollouts/{rollout}/start", json={}).json()["state"] == "running"
    forget()
    assert woken == [1]
    fleet.store.rollouts.tick(rollout, fleet.clock())
    shown = api.get(f"/api/v1/rollouts/{rollout}").json()
    assert (shown["stage"], shown["devices"]) == (1, {"assigned": 2})
    assert (shown["stages"][0]["state"], shown["stages"][0]["devices"]) == ("running", 2)
    told = api.get(f"/api/v1/rollouts/{rollout}/devices", params={"limit": 1}).json()
    assert (told["items"][0]["device"], told["next"]) == ("cam-1", "cam-1")
    kinds = [d["kind"] for d in api.get(f"/api/v1/rollouts/{rollout}/decisions").json()["items"]]
    assert kinds == ["order", "begin", "assign", "assign"]
    only = api.get(f"/api/v1/rollouts/{rollout}/decisions", params={"kind": "begin"}).json()["items"]
    assert [d["body"]["devices"] for d in only] == [2]
    refused = api.post(f"/api/v1/rollouts/{rollout}/start", json={})
    assert "only a draft" in problem(refused, 409, "refused")
    undone = api.post(f"/api/v1/rollouts/{rollout}/undo", json={"reason": "wrong"}).json()
    assert (undone["state"], undone["reason"]) == ("undoing", "wrong")
    second = api.post("/api/v1/rollouts", json={**wanted, "start": True})
    assert "under way" in problem(second, 409, "conflict")
    # All or nothing: the rollout that could not start was not made.
    assert len(api.get("/api/v1/rollouts").json()["items"]) == 1
    # Who makes another one of what somebody has undone is told so.
    (warning,) = api.post("/api/v1/rollouts", json=wanted).json()["warnings"]
    words = rf"rollout {rollout} of this release was undone by the admin at [-0-9]+ [:0-9]+ UTC: wrong"
    assert re.fullmatch(words, warning)
    assert api.get(f"/api/v1/rollouts/{rollout}").json()["warnings"] == made.json()["warnings"] == []


def test_incidents_are_listed_with_evidence_and_closed_once(api: TestClient, fleet: Fleet) -> None:
    from edgec.fleet.store._schema import incidents

    with fleet.store.database.write() as connection:
        for reason in ("one", "two", "three"):
            said = OpenIncident(reason=reason, detail="look at it", evidence={"p95": 9.5})
            row = {"reason": said.reason, "detail": said.detail, "evidence": said.evidence, "opened_at": 1.0}
            connection.execute(incidents.insert(), row)
    page = api.get("/api/v1/incidents", params={"open": True, "limit": 2}).json()
    assert [i["reason"] for i in page["items"]] == ["three", "two"]
    assert page["items"][0]["evidence"] == {"p95": 9.5}
    rest = api.get("/api/v1/incidents", params={"open": True, "cursor": page["next"]}).json()
    assert [i["reason"] for i in rest["items"]] == ["one"]
    number = rest["items"][0]["id"]
    closed = api.post(f"/api/v1/incidents/{number}/close", json={"reason": "seen"}).json()
    assert closed["closed_by"] == "the admin"
    problem(api.post(f"/api/v1/incidents/{number}/close", json={}), 404, "not_found")


def test_quarantine_is_set_and_released(api: TestClient, fleet: Fleet) -> None:
    digest = fleet.registry.by_hardware("kws", "1")[HARDWARE]
    made = api.post(f"/api/v1/quarantine/{digest}", json={"reason": "mislabelled"})
    assert (made.status_code, made.json()["reason"]) == (201, "mislabelled")
    assert [q["digest"] for q in api.get("/api/v1/quarantine").json()["items"]] == [digest]
    assert api.get(f"/api/v1/artifacts/{digest}").json()["quarantined"] == "mislabelled"
    assert api.post(f"/api/v1/quarantine/{digest}/release", json={"reason": "checked"}).status_code == 204
    problem(api.post(f"/api/v1/quarantine/{digest}/release", json={"reason": "x"}), 404, "not_found")


def test_telemetry_is_shown_by_artifact_and_hour(api: TestClient, fleet: Fleet) -> None:
    digest = fleet.registry.by_hardware("kws", "1")[HARDWARE]
    sketch = QuantileSketch()
    for value in range(1, 101):
        sketch.add(float(value))
    window = ModelWindow(
        model="kws", digest=bytes.fromhex(digest)[:8], since=fleet.clock() - 60, seconds=60.0, calls=100,
        sampled=100, errors=3, latency_ms=sketch.to_bytes(),
    )  # fmt: skip
    record = TelemetryRecord(offset=0, kind="window", at=fleet.clock(), payload=window.to_bytes())
    message = Telemetry(boot_id="b1", first_seq=0, sent_at=fleet.clock(), records=(record,))
    fleet.store.telemetry.ingest([("cam-1", message), ("cam-2", message)], fleet.clock())
    (said,) = api.get("/api/v1/telemetry", params={"model": "kws"}).json()
    assert (said["version"], said["calls"], said["errors"], said["hour"]) == ("1", 200, 6, None)
    assert said["latency_ms"]["p95"] == pytest.approx(95, rel=0.03)
    (own,) = api.get("/api/v1/devices/cam-1/telemetry", params={"model": "kws"}).json()
    assert own["calls"] == 100
    assert own["hour"] % 3600 == 0


def test_commands_are_sent_at_most_once_under_a_key(api: TestClient, sender: Sender) -> None:
    ask = {"name": "logs", "args": {"lines": 1}}
    first = api.post("/api/v1/devices/cam-1/commands", json=ask, headers={"Idempotency-Key": "c1"})
    assert first.json()["result"] == {"lines": ["hello"]}
    again = api.post("/api/v1/devices/cam-1/commands", json=ask, headers={"Idempotency-Key": "c1"})
    assert again.content == first.content
    assert sender.sent == [("cam-1", "logs", {"lines": 1})]


def test_the_same_key_gives_the_same_reply_and_no_other_request(api: TestClient, fleet: Fleet) -> None:
    ask = {"name": "build robot", "role": "releaser"}
    first = api.post("/api/v1/tokens", json=ask, headers={"Idempotency-Key": "k1"})
    again = api.post("/api/v1/tokens", json=ask, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code, again.content) == (201, 201, first.content)
    other = api.post("/api/v1/tokens", json={**ask, "role": "admin"}, headers={"Idempotency-Key": "k1"})
    assert "another request" in problem(other, 409, "conflict")
    assert [t.name for t in fleet.tokens.all()].count("build robot") == 1
    # Neither token nor reply is in the database as it was told.
    secret = first.json()["token"].encode()
    for file in fleet.data_dir.glob("fleet.db*"):
        assert secret not in file.read_bytes()


def test_a_crash_in_the_middle_leaves_nothing_and_after_the_end_the_same_reply(
    api: TestClient, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the commit, nothing was done; a new server on the same database keeps the reply."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    ask = {"query": "site=roof"}
    before = fleet.store.audit.entries(limit=1000)
    with monkeypatch.context() as patch:
        patch.setattr(Once, "ended", killed)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - anyio wraps it
            api.put("/api/v1/groups/roof", json=ask, headers={"Idempotency-Key": "g1"})
    assert fleet.store.audit.entries(limit=1000) == before
    assert "roof" not in fleet.store.devices.groups()
    first = api.put("/api/v1/groups/roof", json=ask, headers={"Idempotency-Key": "g1"})
    assert first.status_code == 200
    with Fleet(fleet.data_dir) as second:
        other = TestClient(create_app(second), headers=dict(api.headers))
        again = other.put("/api/v1/groups/roof", json=ask, headers={"Idempotency-Key": "g1"})
        assert again.content == first.content
        assert [e.subject for e in second.store.audit.entries(limit=1000)].count("roof") == 1


def test_the_audit_log_is_listed_and_verified(api: TestClient) -> None:
    page = api.get("/api/v1/audit", params={"limit": 3}).json()
    assert [e["seq"] for e in page["items"]] == [1, 2, 3]
    check = api.get("/api/v1/audit/verify").json()
    assert check["intact"]
    known = {"expected_entries": check["entries"], "expected_hash": "0" * 64}
    cut = api.get("/api/v1/audit/verify", params=known).json()
    assert (cut["intact"], "written anew" in cut["problem"]) == (False, True)


def test_tokens_end_when_they_are_taken_back(api: TestClient) -> None:
    made = api.post("/api/v1/tokens", json={"name": "bob", "role": "viewer", "valid_s": 3600}).json()
    mine = {"Authorization": f"Bearer {made['token']}"}
    assert api.get("/api/v1/tokens/self", headers=mine).json()["name"] == "bob"
    assert api.delete(f"/api/v1/tokens/{made['id']}").json()["revoked_at"]
    refused = api.get("/api/v1/tokens/self", headers=mine)
    problem(refused, 401, "unauthorised")
    assert refused.headers["www-authenticate"] == "Bearer"


def test_what_is_too_large_or_too_often_is_refused(fleet: Fleet, api: TestClient) -> None:
    problem(api.put("/api/v1/groups/big", content=b" " * 5000), 413, "too_large")
    limits = ApiLimits(rate=0.001, burst=2, refused_rate=0.001)
    slow = TestClient(create_app(fleet, limits=limits), headers=dict(api.headers))
    assert [slow.get("/api/v1/groups").status_code for _ in range(3)] == [200, 200, 429]
    reply = slow.get("/api/v1/groups")
    problem(reply, 429, "rate")
    assert int(reply.headers["retry-after"]) > 1
    unknown = [slow.get("/api/v1/groups", headers={"Authorization": "Bearer x"}) for _ in range(2)]
    assert [reply.status_code for reply in unknown] == [429, 429], "guesses are slowed down, too"


def test_health_says_what_is_wrong(fleet: Fleet) -> None:
    public = TestClient(create_app(fleet, checks={"broker": lambda: "it is down"}))
    assert public.get("/healthz").json() == {"ok": True, "problems": {}}
    ready = public.get("/readyz")
    assert (ready.status_code, ready.json()) == (503, {"ok": False, "problems": {"broker": "it is down"}})


@pytest.mark.parametrize(
    "path",
    [
        "keys/root-1.pem",
        "../fleet.db",
        "image/../../fleet.db",
        "%2e%2e/fleet.db",
        "staged/.lock",
        "image/",
        "",
    ],
)
def test_only_what_devices_may_read_is_in_the_repository(api: TestClient, path: str) -> None:
    assert TestClient(api.app).get(f"/repo/{path}").status_code == 404


def test_metadata_is_read_whole_and_with_its_digest(api: TestClient, fleet: Fleet) -> None:
    public = TestClient(api.app)
    found = public.get("/repo/image/timestamp.json")
    assert found.content == (fleet.data_dir / "repo" / "image" / "timestamp.json").read_bytes()
    same = public.get("/repo/image/timestamp.json", headers={"If-None-Match": found.headers["etag"]})
    assert same.status_code == 304


def test_what_only_python_takes_for_json_is_refused(api: TestClient, sender: Sender) -> None:
    sent = len(sender.sent)
    wrong = (
        '{"name": "logs", "args": {"a": NaN}}',
        '{"name": "logs", "args": {"a": "\\ud800"}}',
        "[" * 4000,
        "{",
    )
    for body in wrong:
        json_type = {"Content-Type": "application/json"}
        reply = api.post("/api/v1/devices/cam-1/commands", content=body.encode(), headers=json_type)
        assert reply.status_code in (400, 422), body[:60]
        assert reply.headers["content-type"] == PROBLEM
    assert len(sender.sent) == sent


def test_an_upload_that_stalls_gives_up_its_place(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.fleet.api._uploads._PATIENCE_S", 0.2)
    app = create_app(fleet, limits=ApiLimits(uploads=1, rate=None))
    secret = token(fleet, "releaser")
    with serving(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(
                f"POST /api/v1/artifacts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
                "Content-Length: 1000\r\n\r\nonly this".encode()
            )
            assert b"nothing came for" in slow.recv(65536)
        monkeypatch.undo()
        with FleetClient(url, secret) as client:
            assert client.upload(artifact(tmp_path, "6")).version == "6"


def test_alerts_and_drift_are_listed(api: TestClient, fleet: Fleet) -> None:
    conditions = [
        Condition(
            rule="offline", subject=name, severity="warning", summary=f"{name} is away", figures={"h": 2}
        )
        for name in ("cam-1", "cam-2")
    ]
    fleet.store.alerts.compare(conditions, fleet.clock(), rules=["offline"], quiet_s=60)
    page = api.get("/api/v1/alerts", params={"limit": 1}).json()
    assert [a["summary"] for a in page["items"]] == ["cam-2 is away"]
    rest = api.get("/api/v1/alerts", params={"cursor": page["next"]}).json()
    assert ([a["figures"] for a in rest["items"]], rest["next"]) == ([{"h": 2}], None)
    digest = fleet.registry.by_hardware("kws", "1")[HARDWARE][:16]
    hour = int(fleet.clock() // 3600)
    rows = [
        DriftRow(
            model="kws",
            digest=digest,
            hardware=HARDWARE,
            output="y",
            hour=h,
            hours=1,
            n=2000,
            psi=0.3,
            ks=0.2,
        )
        for h in (hour - 1, hour)
    ]
    fleet.store.drift.write(rows)
    (newest,) = api.get("/api/v1/drift").json()
    assert (newest["version"], newest["hour"], newest["psi"]) == ("1", hour * 3600.0, 0.3)
    assert (newest["kind"], newest["output"]) == ("output", "y")
    fleet.store.drift.write([replace(rows[1], kind="input", output="x/mean")])
    assert [(d["kind"], d["output"]) for d in api.get("/api/v1/drift").json()] == [
        ("input", "x/mean"), ("output", "y")
    ]  # fmt: skip
    assert len(api.get("/api/v1/drift", params={"model": "kws"}).json()) == 3
    assert api.get("/metrics").headers["content-type"].startswith("text/plain")
