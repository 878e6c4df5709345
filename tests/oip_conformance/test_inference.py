"""Inference in JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from tests.oip_conformance.oip import Model


def test_inference_is_200_and_json(model: Model) -> None:
    reply = model.infer(model.json_request())
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("application/json")
    assert "inference-header-content-length" not in reply.headers


@pytest.mark.parametrize("key", ["model_name", "outputs"])
def test_response_has(model: Model, key: str) -> None:
    assert key in model.infer(model.json_request()).json


def test_response_says_the_model(model: Model) -> None:
    response = model.infer(model.json_request()).json
    assert response["model_name"] == model.name
    assert response.get("model_version", "") in ["", *model.metadata.get("versions", [])]


@pytest.mark.parametrize("outputs", [None, []])
def test_without_outputs_all_come(model: Model, outputs: list[Any] | None) -> None:
    request = model.json_request()
    if outputs is not None:
        request["outputs"] = outputs
    names = {output["name"] for output in model.infer(request).json["outputs"]}
    assert names == {output["name"] for output in model.metadata["outputs"]}


@pytest.mark.parametrize("key", ["name", "shape", "datatype", "data"])
def test_outputs_have(model: Model, key: str) -> None:
    assert all(key in output for output in model.infer(model.json_request()).json["outputs"])


def test_outputs_have_the_datatypes_of_the_metadata(model: Model) -> None:
    declared = {output["name"]: output["datatype"] for output in model.metadata["outputs"]}
    for output in model.infer(model.json_request()).json["outputs"]:
        assert output["datatype"] == declared[output["name"]]


def test_outputs_have_the_shapes_of_the_metadata(model: Model) -> None:
    declared = {output["name"]: output["shape"] for output in model.metadata["outputs"]}
    for output in model.infer(model.json_request()).json["outputs"]:
        pairs = zip(declared[output["name"]], output["shape"], strict=True)
        assert all(want in (-1, have) for want, have in pairs)


def test_outputs_have_as_many_elements_as_their_shape(model: Model) -> None:
    reply = model.infer(model.json_request())
    for output in reply.json["outputs"]:
        assert len(reply.tensor(output["name"])) == math.prod(output["shape"])


@pytest.mark.parametrize("output", ["first", "last"])
def test_an_output_can_be_asked_for(model: Model, output: str) -> None:
    name = model.metadata["outputs"][0 if output == "first" else -1]["name"]
    response = model.infer({**model.json_request(), "outputs": [{"name": name}]}).json
    assert [output["name"] for output in response["outputs"]] == [name]


@pytest.mark.parametrize("identity", ["42", "a b", "Ünï", 'quote"', "x" * 64])
def test_the_id_is_echoed(model: Model, identity: str) -> None:
    assert model.infer({**model.json_request(), "id": identity}).json["id"] == identity


def test_without_an_id_none_comes(model: Model) -> None:
    # A server may make one up; an empty one is no answer to nothing.
    assert model.infer(model.json_request()).json.get("id", None) != ""


def test_nested_data_mean_the_same_as_flat(model: Model) -> None:
    flat = model.json_request()
    nested = json.loads(json.dumps(flat))
    for tensor in nested["inputs"]:
        tensor["data"] = _nest(tensor["data"], tensor["shape"])
    assert model.infer(nested).json["outputs"] == model.infer(flat).json["outputs"]


def test_the_same_request_gives_the_same_answer(model: Model) -> None:
    first, second = (model.infer(model.json_request()).json["outputs"] for _ in range(2))
    assert first == second


def test_a_version_can_be_named(model: Model) -> None:
    for version in model.metadata.get("versions", []):
        body = json.dumps(model.json_request()).encode()
        path = f"{model.path}/versions/{version}/infer"
        reply = model.client.request("POST", path, body, {"Content-Type": "application/json"})
        assert reply.status == 200
        assert reply.json.get("model_version", version) == version


@pytest.mark.parametrize(
    "parameters",
    [{}, {"nobody_knows_this": 1}, {"nobody_knows_this": "text"}, {"flag": True}, {"half": 0.5}],
)
def test_unknown_parameters_are_left_alone(model: Model, parameters: dict[str, Any]) -> None:
    request = {**model.json_request(), "parameters": parameters}
    for tensor in request["inputs"]:
        tensor["parameters"] = parameters
    assert model.infer(request).status == 200


def test_a_request_in_any_order_of_keys(model: Model) -> None:
    request = model.json_request()
    request["inputs"] = [dict(reversed(tensor.items())) for tensor in request["inputs"]]
    assert model.infer(request).status == 200


def test_white_space_is_allowed(model: Model) -> None:
    assert model.infer(json.dumps(model.json_request(), indent=4).encode() + b"\n\n").status == 200


def test_connections_are_kept(model: Model) -> None:
    for _ in range(20):
        assert model.infer(model.json_request()).status == 200


def test_a_larger_batch(model: Model) -> None:
    if not all(tensor["shape"][0] == -1 for tensor in model.metadata["inputs"] if tensor["shape"]):
        pytest.skip("the model has no free batch")
    request = model.json_request()
    for tensor in request["inputs"]:
        tensor["shape"][0] = 3
        tensor["data"] *= 3
    assert model.infer(request).status == 200


def _nest(data: list[Any], shape: list[int]) -> list[Any]:
    if len(shape) < 2:
        return data
    step = len(data) // shape[0]
    return [_nest(data[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]
