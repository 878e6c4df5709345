"""Bodies of requests and responses: their limits, and their compression."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from edgec.errors import RequestError
from edgec.serving._lanes import ClientGoneError

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
# A body above the limit is read on and thrown away up to this multiple of it, so that the client, which
# is still sending, gets to read the answer.
_PATIENCE = 2
_LEAST_COMPRESSED = 1024
_LEVEL = 1


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """Return the body of a request, decompressed.

    Args:
        receive: Of ASGI.
        headers: By name in lower case.
        limit: Largest size in bytes, before and after decompression.

    Raises:
        RequestError: It is too large (413), or its encoding is unknown (415) or broken.
        ClientGoneError: The client went away before its end.
    """
    body = await _receive(receive, headers, limit)
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if not encoding or encoding == b"identity":
        return body
    if encoding not in _WINDOW:
        raise RequestError("Content-Encoding: expected gzip or deflate", status=415)
    return _inflate(body, encoding, limit)


def compressed(body: bytes, accepted: bytes | None) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return a body as a client asks for it, and the headers that say so.

    Only a client that accepts exactly one of gzip and deflate is taken to ask for it: libraries for HTTP
    name all codings they know with every request, and tensors take long to compress for what it saves.
    """
    coding = (accepted or b"").strip().lower()
    if coding not in _WINDOW or len(body) < _LEAST_COMPRESSED:
        return body, []
    smaller = gzip.compress(body, _LEVEL, mtime=0) if coding == b"gzip" else zlib.compress(body, _LEVEL)
    return smaller, [(b"content-encoding", coding), (b"vary", b"accept-encoding")]


# What zlib is told of the format: deflate in HTTP has zlib's own frame (RFC 9110, 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


async def _receive(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > _PATIENCE * limit):
        raise _too_large(limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
            if size > _PATIENCE * limit:
                break
    if size > limit:
        raise _too_large(limit)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW[encoding])
    try:
        data = decompressor.decompress(body, limit + 1)
    except zlib.error as e:
        raise RequestError(f"the body is not {encoding.decode()}: {e}") from e
    if len(data) > limit or decompressor.unconsumed_tail:
        raise _too_large(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise RequestError(f"the body is not {encoding.decode()}: it is cut off, or more follows it")
    return data


def _too_large(limit: int) -> RequestError:
    return RequestError(f"the body is larger than {limit} bytes", status=413)
