"""Requests that are sent again where that is safe, and replies that are checked."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, TypeAdapter, ValidationError

from edgec.errors import FleetError, LinkError
from edgec.protocol import fleet_address, tls_context

T = TypeVar("T")
_MOST_REPLY = 64 * 2**20
_AGAIN = (429, 502, 503)
_FIRST_WAIT_S, _MOST_WAIT_S = 0.3, 10.0
Query = Mapping[str, Any]
Body = Callable[[], Iterator[bytes]]


class Http:
    """Sends requests to one server, as often as it takes and is safe."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        ca: Path | None,
        timeout_s: float,
        tries: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Know a server; nothing is sent yet.

        Raises:
            FleetError: The URL, the token or the certificates are none.
        """
        self._tries, self._sleep = tries, sleep
        self.url = _checked(url)
        if token and not (token.isascii() and token.isprintable()):
            raise FleetError("a token has only letters, digits, - and _; copy it again", "invalid")
        headers = {"User-Agent": "edgec"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            verify = tls_context(ca)
        except LinkError as e:
            raise FleetError(str(e), "invalid") from e
        self._client = httpx2.Client(
            base_url=self.url, headers=headers, verify=verify, timeout=timeout_s, trust_env=False
        )

    def get(self, kind: type[T], path: str, query: Query | None = None) -> T:
        """Return what is at a path, as a value of this type.

        Raises:
            FleetError: The server refuses, or cannot be reached.
        """
        return _read(kind, self._ask("GET", path, query))

    def change(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        query: Query | None = None,
        upload: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> T:
        """Change something, once however often it must be sent; return the reply as a value of this type.

        Raises:
            FleetError: The server refuses, or cannot be reached.
        """
        more = {"Idempotency-Key": str(uuid.uuid4()), **(headers or {})}
        content = upload
        if body is not None:
            more["Content-Type"] = "application/json"
            data = body.model_dump_json(exclude_unset=True).encode()
            content = lambda: iter([data])  # noqa: E731
        return _read(kind, self._ask(method, path, query, content, more, timeout_s))

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """Give the pieces of a file; not sent again.

        Raises:
            FleetError: The server refuses, or cannot be reached.
        """
        with self._foreign(), self._client.stream("GET", path) as reply:
            if reply.status_code != 200:
                raise _refused(reply.status_code, _bounded(reply))
            yield reply.iter_bytes(2**20)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _ask(
        self,
        method: str,
        path: str,
        query: Query | None,
        content: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        params = {k: v for k, v in (query or {}).items() if v is not None}
        wait_s = _FIRST_WAIT_S
        for left in range(self._tries - 1, -1, -1):
            try:
                with (
                    self._foreign(),
                    self._client.stream(
                        method,
                        path,
                        params=params,
                        content=content() if content else None,
                        headers=headers,
                        timeout=timeout_s or httpx2.USE_CLIENT_DEFAULT,
                    ) as reply,
                ):
                    data = _bounded(reply)
                    if reply.is_success:
                        return data
                    if reply.status_code not in _AGAIN or not left:
                        raise _refused(reply.status_code, data)
                    wait_s = max(wait_s, _retry_after(reply.headers))
            except FleetError as e:
                if e.reason != "unreachable" or not left:
                    raise
            self._sleep(min(wait_s, _MOST_WAIT_S) * random.uniform(0.7, 1.3))
            wait_s *= 2
        raise AssertionError  # the last try returned, or raised

    @contextmanager
    def _foreign(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException as e:
            raise FleetError(f"{self.url} did not answer in time; try again", "unreachable") from e
        except httpx2.TransportError as e:
            if "CERTIFICATE_VERIFY_FAILED" in str(e):
                hint = "give the certificate of its authority (--ca), as edgec fleet up has printed it"
                raise FleetError(f"{self.url} shows a certificate that is not trusted; {hint}", "tls") from e
            hint = "is the server up?"
            if isinstance(e, httpx2.RemoteProtocolError) and self.url.startswith("http:"):
                hint = "does it speak TLS? Then its address begins with https://"
            why = str(e).rstrip(".")
            raise FleetError(f"{self.url} cannot be reached: {why}; {hint}", "unreachable") from e
        except httpx2.HTTPError as e:
            raise FleetError(
                f"the reply of {self.url} cannot be read: {e}; is it an edgec fleet?", "reply"
            ) from e


def _checked(url: str) -> str:
    parts = fleet_address(url)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _bounded(reply: httpx2.Response) -> bytes:
    data = bytearray()
    for piece in reply.iter_bytes():
        data += piece
        if len(data) > _MOST_REPLY:
            raise FleetError(f"the server sent more than {_MOST_REPLY} bytes; ask for less", "too_large")
    return bytes(data)


def _read(kind: type[T], data: bytes) -> T:
    adapter: TypeAdapter[T] = TypeAdapter(kind)
    try:
        return adapter.validate_json(data or b"null")
    except ValidationError as e:
        raise FleetError(
            f"the server's reply is none: {e.error_count()} problems; is it an edgec fleet?", "reply"
        ) from e


def _refused(status: int, data: bytes) -> FleetError:
    try:
        problem = json.loads(data)
        detail, reason, step = problem["detail"], problem["reason"], problem["next"]
    except (ValueError, KeyError, TypeError, RecursionError):
        if status in (502, 503):
            # As a proxy answers whose server is away.
            return FleetError(f"the server answered {status}; is it up behind its proxy?", "unreachable")
        return FleetError(f"the server answered {status}; is it an edgec fleet?", "reply")
    return FleetError(f"{detail}; {step}", str(reason))


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0.0
