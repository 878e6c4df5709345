"""Every operation of the API against every role: who may less is refused, who may is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the API needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the API needs the extra 'fleet'")
pytest.importorskip("tuf", reason="the API needs the extra 'fleet'")

from starlette.testclient import TestClient
from tests.fleet.served import Sender, token

from edgec.fleet.api import ApiLimits, create_app
from edgec.fleet.service import Fleet
from edgec.fleet.store._tokens import ROLES

pytestmark = pytest.mark.slow
DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text("utf-8"))
# What needs no token: what devices send that come with a claim, and what says whether the server lives.
OPEN = {"/api/v1/authority", "/api/v1/enrol", "/healthz", "/readyz"}
OPERATIONS = [
    (path, method, operation.get("x-edgec-role"))
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
WANTED = {
    "GET": "viewer",
    "PUT": "operator",
    "DELETE": "operator",
    "POST": "operator",
}
# Where the method alone does not say it.
SPECIAL = {
    ("POST", "/api/v1/artifacts"): "releaser",
    ("POST", "/api/v1/quarantine/{digest}"): "releaser",
    ("POST", "/api/v1/quarantine/{digest}/release"): "releaser",
    ("POST", "/api/v1/rollouts"): "releaser",
    ("POST", "/api/v1/rollouts/{rollout}/start"): "releaser",
    ("POST", "/api/v1/devices/{device}/revoke"): "admin",
    ("GET", "/api/v1/audit"): "operator",
    ("GET", "/api/v1/audit/verify"): "operator",
    ("GET", "/api/v1/claims"): "operator",
    ("POST", "/api/v1/claims"): "admin",
    ("POST", "/api/v1/claims/{claim}/withdraw"): "admin",
    ("GET", "/api/v1/tokens"): "admin",
    ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{token}"): "admin",
}


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TestClient]]:
    """A client of each role, and one without a token."""
    with Fleet(tmp_path_factory.mktemp("fleet") / "fleet") as fleet:
        app = create_app(fleet, commands=Sender(), limits=ApiLimits(rate=None, refused_rate=1e6))
        found = {
            role: TestClient(app, headers={"Authorization": f"Bearer {token(fleet, role)}"}) for role in ROLES
        }
        yield {**found, "nobody": TestClient(app)}


def ask(client: TestClient, method: str, path: str) -> Any:
    """Send what is in form, of things that there are not."""
    for name, value in (
        ("digest", "0" * 64),
        ("incident", "1"),
        ("token", "0"),
        ("claim", "0"),
        ("version", "1"),
    ):
        path = path.replace(f"{{{name}}}", value)
    path = path.replace("{", "no-").replace("}", "")
    return client.request(method, path, json=None if method in ("GET", "DELETE") else {})


@pytest.mark.parametrize(("path", "method", "role"), OPERATIONS)
def test_an_operation_needs_the_role_it_should(path: str, method: str, role: str | None) -> None:
    verb = method.upper()
    wanted = None if path in OPEN else SPECIAL.get((verb, path), WANTED[verb])
    assert role == wanted


def test_every_operation_refuses_lesser_roles_and_lets_others_in(clients: dict[str, TestClient]) -> None:
    for path, method, role in OPERATIONS:
        if role is None:
            continue
        verb = method.upper()
        assert ask(clients["nobody"], verb, path).status_code == 401, path
        for other in ROLES:
            reply = ask(clients[other], verb, path)
            refused = reply.status_code == 403
            assert refused == (ROLES.index(other) < ROLES.index(role)), f"{other}: {verb} {path}"
            if refused:
                assert role in reply.json()["detail"]


def test_a_wrong_token_says_nothing_of_what_there_is(clients: dict[str, TestClient]) -> None:
    wrong = {"Authorization": "Bearer edgec_" + "x" * 43}
    for path, method, role in OPERATIONS:
        if role is not None:
            reply = clients["nobody"].request(method.upper(), path, headers=wrong)
            assert (reply.status_code, reply.json()["reason"]) == (401, "unauthorised"), path
