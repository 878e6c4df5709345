"""The API's own description: complete, as it is kept in docs, and true of whatever is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the API needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the API needs the extra 'fleet'")
pytest.importorskip("tuf", reason="the API needs the extra 'fleet'")
pytest.importorskip("schemathesis", reason="requests are made of the document by schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.fleet.served import HARDWARE, Sender, artifact, enrol, reports, token, upload

from edgec.fleet.api import ApiLimits, create_app
from edgec.fleet.enrolment import Enrolment, Whereabouts
from edgec.fleet.service import Fleet
from edgec.protocol.certificates import CertificateAuthority

pytestmark = pytest.mark.slow
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
METHODS = {"get", "put", "post", "delete", "patch"}
UNLIMITED = ApiLimits(rate=None, refused_rate=1e6)


def peopled(folder: Path, database: str | None = None) -> Fleet:
    """Return a fleet with what the examples of the document name."""
    fleet = Fleet(folder / "fleet", database=database)
    digest = upload(fleet, artifact(folder, "2"))
    enrol(fleet, "cam-1", site="lab")
    reports(fleet, "cam-1", digest)
    return fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with peopled(tmp_path_factory.mktemp("fleet")) as opened:
        yield opened


@pytest.fixture(scope="module")
def document(fleet: Fleet) -> dict[str, Any]:
    return create_app(fleet).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield path, method, operation


def test_the_document_in_docs_is_the_one_of_the_api(document: dict[str, Any]) -> None:
    """``python -m tests.fleet.test_api_schema`` writes it anew."""
    assert json.loads(DOCUMENT.read_text("utf-8")) == document


def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation.get("description"), where
        assert "default" in operation["responses"], where
        for status, response in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                assert response["description"], where
                assert response["content"], where
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"], where


def test_every_field_that_is_sent_has_an_example_or_may_be_left_out(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        for media in content.values():
            name = media["schema"].get("$ref", "").rpartition("/")[2]
            for field, shape in schemas[name]["properties"].items() if name else ():
                assert {"examples", "default", "$ref"} & set(shape), f"{method} {path}: {name}.{field}"
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                assert parameter["schema"].get("examples"), f"{method} {path}: {parameter['name']}"


def test_every_mutation_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        if method == "get" or path == "/api/v1/enrol":
            continue  # enrolment is the same by its own request
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert "Idempotency-Key" in names, f"{method} {path}"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)


def send_all(fleet: Fleet, examples: int, methods: set[str] = METHODS) -> int:
    """Send each operation so many requests that the document allows; return how many there were."""
    app = create_app(fleet, commands=Sender(), limits=UNLIMITED)
    authority = CertificateAuthority(fleet.data_dir / "tls")
    app.state.enrolment = Enrolment(fleet, authority, Whereabouts(broker="mqtts://{host}:8883"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    headers = {"Authorization": f"Bearer {token(fleet, 'admin')}"}
    digest = fleet.registry.by_hardware("kws", "2")[HARDWARE]
    known = {"device": "cam-1", "model": "kws", "version": "2", "digest": digest}
    sent = 0

    def check(operation: Any) -> None:
        @given(case=operation.as_strategy(), there=booleans())
        @settings(
            deadline=None,
            max_examples=examples,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        def send(case: Any, there: bool) -> None:
            nonlocal sent
            sent += 1
            if there:
                # What there is, so that requests come further than to the word that there is nothing.
                case.path_parameters |= {k: v for k, v in known.items() if k in case.path_parameters}
            case.call_and_validate(headers=headers, checks=CHECKS)

        send()

    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr] # a document that is none fails here
        if operation.method.lower() in methods:
            check(operation)
    return sent


def test_nothing_that_is_sent_breaks_the_server(fleet: Fleet) -> None:
    assert send_all(fleet, examples=4) > 120


def test_nothing_that_is_sent_breaks_it_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    from tests.fleet.databases import make_database

    with peopled(tmp_path, make_database(postgresql)) as fleet:
        assert send_all(fleet, examples=2, methods={"put", "post", "delete"}) > 25


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made, Fleet(Path(made) / "fleet") as empty:
        text = json.dumps(create_app(empty).openapi(), indent=1, sort_keys=True)
    DOCUMENT.write_text(text + "\n", encoding="utf-8")
