"""What is asked and answered: a request as handlers see it, and the statuses and headers of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

from edgec.errors import RequestError
from edgec.serving._body import Receive
from edgec.serving._lanes import RETRY_AFTER_S, BusyError

Headers: TypeAlias = "list[tuple[bytes, bytes]]"
Answer: TypeAlias = "tuple[int, Headers, bytes]"
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


@dataclass(frozen=True)
class Call:
    """A request, as the handlers see it."""

    method: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    deadline: float | None = None


class MethodError(RequestError):
    """An address is asked in another way than it answers to; `allowed` says which it does."""

    def __init__(self, allowed: str, method: str) -> None:
        super().__init__(f"expected {allowed}, got {method}", status=405)
        self.allowed = allowed


def answer_json(document: object) -> Answer:
    """Return a document as an answer."""
    return 200, [JSON], json.dumps(document, separators=(",", ":")).encode()


def answer_error(error: RequestError) -> Answer:
    """Return what a client is told of an error."""
    fields: Headers = [JSON]
    if error.status in (429, 503):
        after = error.retry_after_s if isinstance(error, BusyError) else RETRY_AFTER_S
        fields.append((b"retry-after", b"%d" % after))
    elif error.status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    elif isinstance(error, MethodError):
        fields.append((b"allow", error.allowed.encode()))
    elif error.status == 413:
        fields.append((b"connection", b"close"))  # what is left of the body is not read
    return error.status, fields, json.dumps({"error": str(error)}).encode()


def allow(call: Call, method: str) -> None:
    """Raise RequestError, with status 405, where a call has another method."""
    if call.method != method and not (method == "GET" and call.method == "HEAD"):
        raise MethodError("GET, HEAD" if method == "GET" else method, call.method)


def segment(part: str) -> str:
    """Return a part of an address, decoded; RequestError where it is no UTF-8."""
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as e:
        raise RequestError("the address is not UTF-8") from e


def not_found() -> RequestError:
    """Return the error for an address that there is not."""
    return RequestError("no such address: see /openapi.json", status=404)


def check_json(size: int, most: int) -> None:
    """Raise RequestError, with status 413, where JSON is larger than a server takes."""
    if size > most:
        raise RequestError(
            f"the JSON has {size} bytes, at most {most} are taken: send tensors as binary data", status=413
        )
