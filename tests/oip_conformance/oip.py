"""A client of the Open Inference Protocol that sends what it is told, right or wrong."""

from __future__ import annotations

import http.client
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4,
    "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
    "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: Of HTTP.
        headers: By name in lower case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, or its header where binary data follow."""
        size = self.headers.get("inference-header-content-length")
        return json.loads(self.body if size is None else self.body[: int(size)])

    @property
    def binary(self) -> bytes:
        """What follows the header."""
        return self.body[int(self.headers["inference-header-content-length"]) :]

    def tensor(self, name: str) -> list[Any]:
        """Return the values of an output, binary or not."""
        at = 0
        for output in self.json["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if output["name"] == name:
                return _flat(output["data"]) if size is None else _unpack(output, self.binary[at : at + size])
            at += size or 0
        raise AssertionError(f"no output {name} in the response")


class Client:
    """One connection to a server, kept alive; made again where the server closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=30)
        self._prefix = parts.path.rstrip("/")

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and return the answer."""
        self._connection.request(method, self._prefix + path, body, dict(headers or {}))
        response = self._connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, fields, response.read())

    def get(self, path: str) -> Reply:
        """Send a GET."""
        return self.request("GET", path)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


class Model:
    """A model of the server, and valid requests for it: zeros, free dimensions of size 1."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.path = f"/v2/models/{quote(name, safe='')}"
        self.metadata = client.get(self.path).json

    def inputs(self) -> list[dict[str, Any]]:
        """Return the inputs of a valid request, without data."""
        return [
            {"name": i["name"], "datatype": i["datatype"], "shape": [n if n > 0 else 1 for n in i["shape"]]}
            for i in self.metadata["inputs"]
        ]

    def json_request(self) -> dict[str, Any]:
        """Return a valid request with all data in JSON."""
        inputs = self.inputs()
        for tensor in inputs:
            zero: Any = {"BOOL": False, "BYTES": "0"}.get(tensor["datatype"], 0)
            tensor["data"] = [zero] * math.prod(tensor["shape"])
        return {"inputs": inputs}

    def binary_request(self) -> tuple[dict[str, Any], bytes]:
        """Return the header of a valid request with all data binary, and these."""
        inputs, parts = self.inputs(), []
        for tensor in inputs:
            count = math.prod(tensor["shape"])
            raw = bytes(count * (SIZES.get(tensor["datatype"]) or 4))  # BYTES: empty elements
            tensor["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        return {"inputs": inputs}, b"".join(parts)

    def infer(self, document: object, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a request in JSON."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        return self.client.request("POST", f"{self.path}/infer", body, sent)

    def infer_binary(self, document: object, raw: bytes, size: str | None = None) -> Reply:
        """Send a request with binary data; `size` in place of the true size of the header."""
        header = json.dumps(document).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": size or str(len(header)),
        }
        return self.client.request("POST", f"{self.path}/infer", header + raw, headers)

    def output(self) -> str:
        """Return the name of the first output."""
        name: str = self.metadata["outputs"][0]["name"]
        return name


def assert_refused(reply: Reply) -> None:
    """Assert that an answer is a 4xx with a message."""
    assert 400 <= reply.status < 500, (reply.status, reply.body[:300])
    message = json.loads(reply.body)["error"]
    assert isinstance(message, str)
    assert message


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    return [value for row in data for value in _flat(row)]


def _unpack(output: Mapping[str, Any], raw: bytes) -> list[Any]:
    if output["datatype"] == "BYTES":
        values, at = [], 0
        while at < len(raw):
            (length,) = struct.unpack_from("<I", raw, at)
            values.append(raw[at + 4 : at + 4 + length].decode())
            at += 4 + length
        return values
    count = math.prod(output["shape"])
    return list(struct.unpack(f"<{count}{_CODES[output['datatype']]}", raw))
