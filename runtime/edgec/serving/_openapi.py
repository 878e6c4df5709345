"""The OpenAPI document of the server: what it takes, what it answers, with which statuses."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from edgec.runtime._oip import DATATYPES
from edgec.serving._options import ServerOptions

_TEXT = {"type": "string"}
_SIZES = {"type": "array", "items": {"type": "integer", "minimum": -1}}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}

_TERMS = [
    {"name": name, "in": "header", "schema": schema}
    for name, schema in (
        ("Edgec-Deadline-Ms", {"type": "integer", "minimum": 0}),
        ("Edgec-Model-Digest", _TEXT),
        ("Edgec-Source-Digest", _TEXT),
    )
]


def openapi(options: ServerOptions) -> dict[str, Any]:
    """Return the document, as OpenAPI 3.1 has it."""
    paths = {
        "/v2/health/live": {"get": _operation("Whether the server lives", _object(live={"type": "boolean"}))},
        "/v2/health/ready": {
            "get": _operation("Whether all models are ready", _object(ready={"type": "boolean"}), 503)
        },
        "/v2": {"get": _operation("What the server is", _ref("Server"), 401)},
        "/metrics": {"get": _text("Counters, for Prometheus")},
        "/openapi.json": {"get": _operation("This document", {"type": "object"}, 401)},
        **_model_paths(),
        **(_repository_paths() if options.allow_repository_calls else {}),
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "edgec, Open Inference Protocol v2", "version": version("edgec")},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }
    if options.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _model_paths() -> dict[str, Any]:
    paths = {}
    for prefix, names in (
        ("/v2/models/{model}", ("model",)),
        ("/v2/models/{model}/versions/{version}", ("model", "version")),
    ):
        where = [{"name": n, "in": "path", "required": True, "schema": _TEXT} for n in names]
        infer = _operation("Run an inference", _ref("InferenceResponse"), 400, 401, 404, 409, 413, 415, 503)
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": {}}
        infer["parameters"] = [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "schema": {"type": "integer", "minimum": 0},
            },
            *_TERMS,
        ]
        infer["requestBody"] = _body(_ref("InferenceRequest"))
        predict = _operation(
            "Run the whole pipeline: image, text or JSON in",
            {"type": "object"},
            400,
            401,
            404,
            409,
            413,
            415,
            503,
        )
        predict["requestBody"] = _body({})
        predict["parameters"] = _TERMS
        ready = _object(name=_TEXT, ready={"type": "boolean"})
        paths[prefix] = {
            "parameters": [*where, *_TERMS[1:]],
            "get": _operation("What a model is", _ref("Model"), 400, 401, 404),
        }
        paths[f"{prefix}/ready"] = {
            "parameters": where,
            "get": _operation("Whether a model is ready", ready, 400, 401, 404, 503),
        }
        paths[f"{prefix}/infer"] = {"parameters": where, "post": infer}
        paths[f"{prefix}/predict"] = {"parameters": where, "post": predict}
    return paths


def _repository_paths() -> dict[str, Any]:
    row = _object(name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)
    index = _operation("List the models", {"type": "array", "items": row}, 400, 401, 413, 415)
    index["requestBody"] = _body(
        {"type": "object", "properties": {"ready": {"type": "boolean"}}}, required=False
    )
    paths: dict[str, Any] = {"/v2/repository/index": {"post": index}}
    for verb in ("load", "unload"):
        operation = _operation(f"{verb.capitalize()} a model", {"type": "object"}, 400, 401, 404, 413, 415)
        operation["requestBody"] = _body({"type": "object"}, required=False)
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}],
            "post": operation,
        }
    return paths


def _schemas() -> dict[str, Any]:
    datatype = {"type": "string", "enum": sorted(DATATYPES.values())}
    described = _object(name=_TEXT, datatype=datatype, shape=_SIZES)
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32}
    given = _object(name=_TEXT, datatype=datatype, shape=shape)
    given["properties"] |= {"parameters": _PARAMETERS, "data": {"type": "array"}}
    wanted = {**_object(name=_TEXT), "properties": {"name": _TEXT, "parameters": _PARAMETERS}}
    request = _object(inputs={"type": "array", "items": given, "minItems": 1})
    request["properties"] |= {
        "id": _TEXT, "parameters": _PARAMETERS, "outputs": {"type": "array", "items": wanted}
    }  # fmt: skip
    response = _object(model_name=_TEXT, model_version=_TEXT, outputs={"type": "array", "items": given})
    response["properties"]["id"] = _TEXT
    tensors = {"type": "array", "items": described}
    texts = {"type": "array", "items": _TEXT}
    return {
        "Error": _object(error=_TEXT),
        "Server": _object(name=_TEXT, version=_TEXT, extensions=texts),
        "Model": _object(name=_TEXT, versions=texts, platform=_TEXT, inputs=tensors, outputs=tensors),
        "InferenceRequest": request,
        "InferenceResponse": response,
    }


def _operation(summary: str, schema: dict[str, Any], *statuses: int) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "Done", "content": {"application/json": {"schema": schema}}}
    }
    for status in statuses:
        content = {"application/json": {"schema": _ref("Error")}}
        responses[str(status)] = {"description": "Refused", "content": content}
    return {"summary": summary, "responses": responses}


def _text(summary: str) -> dict[str, Any]:
    operation = _operation(summary, {}, 401)
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": _TEXT}}
    return operation


def _body(schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    binary: dict[str, Any] = {"application/octet-stream": {"schema": {}}} if required else {}
    return {"required": required, "content": {"application/json": {"schema": schema}, **binary}}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
