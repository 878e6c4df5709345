"""Health and metadata."""

from __future__ import annotations

import json

import pytest
from tests.oip_conformance.oip import SIZES, Client, Model, assert_refused


@pytest.mark.parametrize("what", ["live", "ready"])
def test_health_is_200(client: Client, what: str) -> None:
    assert client.get(f"/v2/health/{what}").status == 200


@pytest.mark.parametrize("what", ["live", "ready"])
def test_health_with_a_body_says_true_in_json(client: Client, what: str) -> None:
    body = client.get(f"/v2/health/{what}").body
    if not body:
        pytest.skip("the server answers with its status alone")
    assert True in json.loads(body).values()


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(client: Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status == 200
    assert set(reply.json) >= {"name", "version", "extensions"}
    assert isinstance(reply.json["name"], str)
    assert isinstance(reply.json["version"], str)


def test_extensions_are_names(client: Client) -> None:
    assert all(isinstance(name, str) for name in client.get("/v2").json["extensions"])


def test_metadata_are_json(client: Client, model: Model) -> None:
    for path in ("/v2", model.path):
        assert client.get(path).headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("key", ["name", "platform", "inputs", "outputs"])
def test_model_metadata_have(model: Model, key: str) -> None:
    assert key in model.metadata


def test_model_metadata_say_the_name(model: Model) -> None:
    assert model.metadata["name"] == model.name


def test_platform_is_a_text(model: Model) -> None:
    assert isinstance(model.metadata["platform"], str)


def test_versions_are_texts(model: Model) -> None:
    assert all(isinstance(version, str) for version in model.metadata.get("versions", []))


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("key", ["name", "datatype", "shape"])
def test_tensor_metadata_have(model: Model, side: str, key: str) -> None:
    assert model.metadata[side]
    assert all(key in tensor for tensor in model.metadata[side])


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_datatypes_are_of_the_protocol(model: Model, side: str) -> None:
    assert {tensor["datatype"] for tensor in model.metadata[side]} <= {*SIZES, "BYTES"}


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_free_dimensions_are_minus_one(model: Model, side: str) -> None:
    sizes = [n for tensor in model.metadata[side] for n in tensor["shape"]]
    assert all(isinstance(n, int) and n >= -1 for n in sizes)


def test_model_is_ready(client: Client, model: Model) -> None:
    reply = client.get(f"{model.path}/ready")
    assert reply.status == 200
    if reply.body:
        assert reply.json["ready"] is True


def test_versions_have_metadata_and_are_ready(client: Client, model: Model) -> None:
    for version in model.metadata.get("versions", []):
        assert client.get(f"{model.path}/versions/{version}").json["name"] == model.name
        assert client.get(f"{model.path}/versions/{version}/ready").status == 200


@pytest.mark.parametrize("end", ["", "/ready", "/versions/1", "/versions/1/ready"])
def test_an_unknown_model_is_refused(client: Client, end: str) -> None:
    reply = client.get(f"/v2/models/no-such-model{end}")
    assert 400 <= reply.status < 500


@pytest.mark.parametrize("end", ["", "/ready"])
def test_an_unknown_version_is_refused(client: Client, model: Model, end: str) -> None:
    assert 400 <= client.get(f"{model.path}/versions/9999999{end}").status < 500


def test_names_are_case_sensitive(client: Client, model: Model) -> None:
    other = model.name.swapcase()
    if other == model.name:
        pytest.skip("the name has no letters")
    assert 400 <= client.get(f"/v2/models/{other}").status < 500


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/health", "/v2/health/other", "/v2/models"])
def test_unknown_addresses_are_refused(client: Client, path: str) -> None:
    assert 400 <= client.get(path).status < 500


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_metadata_are_not_posted(client: Client, path: str) -> None:
    assert client.request("POST", path, b"{}").status in (400, 404, 405)


def test_infer_is_not_got(client: Client, model: Model) -> None:
    assert client.get(f"{model.path}/infer").status in (400, 404, 405)


def test_an_unknown_model_is_an_error_with_a_message(client: Client) -> None:
    assert_refused(client.get("/v2/models/no-such-model"))
