"""Servers that lie about ranges, or fail: each transfer ends, within bounds, and never with a wrong file.

Rows 4, 6 and 31 of the fault matrix: a server lies about ranges; endless or slow data; errors of HTTP.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.device_agent.range_server import Asked, Behaviour, honest, serving
from tests.device_agent.transfers import CHUNK, CONTENT, get, hidden

from edgec.device_agent._line import Spent
from edgec.errors import TransferError

MOST_REQUESTS = 24
MOST_BYTES = 3 * len(CONTENT) + 2**20


def content_range(text: Callable[[Asked], str]) -> Behaviour:
    return lambda asked: asked.answer(Content_Range=text(asked))


def early_start(asked: Asked) -> None:
    start = asked.first - 1 if asked.first else 1
    asked.answer(Content_Range=f"bytes {start}-{asked.stop - 1}/{len(asked.content)}")


def shifted_body(asked: Asked) -> None:
    asked.answer(asked.content[asked.first + 1 : asked.stop] + b"x")


def without_ranges(asked: Asked) -> None:
    asked.head("200 OK", Content_Length=len(asked.content))
    asked.send(asked.content)


def without_ranges_and_length(asked: Asked) -> None:
    asked.head("200 OK")
    asked.send(asked.content)


def two_content_ranges(asked: Asked) -> None:
    header = f"Content-Range: {asked.range}\r\n"
    asked.send(f"HTTP/1.1 206 Partial\r\n{header}{header}\r\n".encode() + asked.part)


def two_lengths(asked: Asked) -> None:
    head = f"HTTP/1.1 206 Partial\r\nContent-Range: {asked.range}\r\n"
    size = len(asked.part)
    asked.send(f"{head}Content-Length: {size}\r\nContent-Length: {size + 1}\r\n\r\n".encode() + asked.part)


def no_content_range(asked: Asked) -> None:
    asked.head(Content_Length=len(asked.part))
    asked.send(asked.part)


def multipart(asked: Asked) -> None:
    body = b"--x\r\nContent-Range: bytes 0-1/2\r\n\r\n" + asked.part + b"\r\n--x--"
    asked.head(Content_Type="multipart/byteranges; boundary=x", Content_Length=len(body))
    asked.send(body)


def endless(asked: Asked) -> None:
    asked.head(Content_Range=asked.range)
    asked.send(asked.part)
    while True:
        asked.send(bytes(65536))


def endless_whole(asked: Asked) -> None:
    asked.head("200 OK", Content_Length=10**15)
    while True:
        asked.send(bytes(65536))


def endless_headers(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 206 Partial\r\n")
    while True:
        asked.send(b"X-More: and more\r\n")


def endless_header(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 206 Partial\r\nX-Long: ")
    while True:
        asked.send(b"x" * 4096)


def endless_continue(asked: Asked) -> None:
    while True:
        asked.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def dripping(asked: Asked) -> None:
    asked.head(Content_Range=asked.range, Content_Length=len(asked.part))
    for byte in asked.part:
        asked.send(bytes([byte]))
        time.sleep(0.03)


def slow_headers(asked: Asked) -> None:
    for letter in "HTTP/1.1 206 Partial Content\r\nX-Slow: " + "very " * 100:
        asked.send(letter.encode())
        time.sleep(0.03)


def silent(asked: Asked) -> None:
    asked.send(b"")
    time.sleep(0.6)


def stalls(asked: Asked) -> None:
    asked.head(Content_Range=asked.range, Content_Length=len(asked.part))
    asked.send(asked.part[:10])
    time.sleep(0.6)


def drops(asked: Asked) -> None:
    asked.head(Content_Range=asked.range, Content_Length=len(asked.part))


def says_goodbye(asked: Asked) -> None:
    del asked


def garbled(asked: Asked) -> None:
    asked.answer(bytes(byte ^ 1 for byte in asked.part))


def garbled_once(asked: Asked) -> None:
    (garbled if asked.number == 1 else honest)(asked)


def compressed(asked: Asked) -> None:
    body = gzip.compress(asked.part)
    asked.head(Content_Range=asked.range, Content_Length=len(body), Content_Encoding="gzip")
    asked.send(body)


def chunked_bomb(asked: Asked) -> None:
    asked.head(Content_Range=asked.range, Transfer_Encoding="chunked")
    while True:
        asked.send(b"1;" + b"x" * 60000 + b"\r\nA\r\n")


def changed_tag(asked: Asked) -> None:
    asked.head(Content_Range=asked.range, Content_Length=len(asked.part), ETag=f'"{asked.number}"')
    asked.send(asked.part[: CHUNK + 10])


def changed_length(asked: Asked) -> None:
    total = len(asked.content) + (asked.number > 1)
    asked.head(Content_Range=f"bytes {asked.first}-{asked.stop - 1}/{total}", Content_Length=len(asked.part))
    asked.send(asked.part[: CHUNK + 10])


def redirects_to(where: str) -> Behaviour:
    return lambda asked: asked.head("302 Found", Location=where, Content_Length=0)


def redirect_chain(asked: Asked) -> None:
    asked.head("307 Temporary Redirect", Location=f"/file?{asked.number}", Content_Length=0)


def status(line: str, **headers: object) -> Behaviour:
    return lambda asked: asked.head(line, **{"Content_Length": 10**12, **headers})


def not_http(asked: Asked) -> None:
    asked.send(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)


def half_range(asked: Asked) -> None:
    """Allowed: fewer bytes than were asked for."""
    stop = min(asked.first + CHUNK + 1, asked.stop)
    asked.head(
        Content_Range=f"bytes {asked.first}-{stop - 1}/{len(asked.content)}",
        Content_Length=stop - asked.first,
    )
    asked.send(asked.content[asked.first : stop])


def unavailable_twice(asked: Asked) -> None:
    if asked.number > 2:
        return honest(asked)
    return asked.head("503 Service Unavailable", Retry_After=9999, Content_Length=0)


# What the server does, and how the transfer ends: "" with the right file, else the reason of its error.
LIES: dict[str, tuple[Behaviour, str]] = {
    "an early start": (early_start, "range"),
    "a late start": (content_range(lambda a: f"bytes {a.first + 5}-{a.stop - 1}/{len(a.content)}"), "range"),
    "a start like the end": (content_range(lambda a: f"bytes {a.stop}-{a.first}/{len(a.content)}"), "range"),
    "an end beyond the range": (
        content_range(lambda a: f"bytes {a.first}-{a.stop + 9}/{len(a.content)}"),
        "range",
    ),
    "a body that is shifted": (shifted_body, "digest"),
    "a wrong length": (lambda a: a.answer(Content_Length=len(a.part) + 1), "range"),
    "a negative length": (lambda a: a.answer(Content_Length=-5), "range"),
    "a length that is no number": (lambda a: a.answer(Content_Length="ten"), "range"),
    "two lengths": (two_lengths, "range"),
    "no 206, but the whole file": (without_ranges, ""),
    "no 206, and no length": (without_ranges_and_length, "length"),
    "200 for a file of another length": (status("200 OK", Content_Length=12), "length"),
    "no Content-Range": (no_content_range, "range"),
    "a garbled Content-Range": (content_range(lambda a: "bytes 1~2of3"), "range"),
    "an empty Content-Range": (content_range(lambda a: ""), "range"),
    "too many Content-Ranges": (two_content_ranges, "range"),
    "a Content-Range of many digits": (content_range(lambda a: f"bytes {'9' * 5000}-1/2"), "range"),
    "a negative range": (content_range(lambda a: f"bytes -5-{a.stop - 1}/{len(a.content)}"), "range"),
    "another unit": (content_range(lambda a: a.range.replace("bytes", "lines")), "range"),
    "a range of a file of unknown length": (
        content_range(lambda a: a.range.rpartition("/")[0] + "/*"),
        "",
    ),
    "a range of another file": (content_range(lambda a: a.range + "0"), "length"),
    "several ranges": (multipart, "range"),
    "half of the range": (half_range, ""),
    "an ETag that changes every time": (changed_tag, ""),
    "a length that changes": (changed_length, "length"),
    "a garbled body": (garbled, "digest"),
    "a body that is garbled once": (garbled_once, ""),
    "an endless body": (endless, ""),
    "an endless file": (endless_whole, "length"),
    "endless headers": (endless_headers, "range"),
    "an endless header": (endless_header, "range"),
    "100 Continue without end": (endless_continue, "bytes"),
    "a byte now and then": (dripping, "too_slow"),
    "a header now and then": (slow_headers, "too_slow"),
    "silence": (silent, "too_slow"),
    "silence after some bytes": (stalls, "too_slow"),
    "a connection that drops after the head": (drops, "link"),
    "a connection that drops at once": (says_goodbye, "link"),
    "another protocol": (not_http, "range"),
    "gzip that nobody asked for": (compressed, "range"),
    "a bomb of chunks": (chunked_bomb, "range"),
    "a redirect to itself": (redirects_to("/file"), "redirects"),
    "a chain of redirects": (redirect_chain, "redirects"),
    "a redirect to a file": (redirects_to("file:///etc/passwd"), "redirects"),
    "a redirect to another protocol": (redirects_to("ftp://localhost/file"), "redirects"),
    "a redirect to nowhere": (redirects_to(""), "redirects"),
    "a redirect to no URL": (redirects_to("http://[::1/file"), "redirects"),
    "a redirect with a name and password": (redirects_to("http://a:b@localhost/file"), "redirects"),
    "204": (status("204 No Content"), "range"),
    "304": (status("304 Not Modified"), "range"),
    "400": (status("400 Bad Request"), "refused"),
    "401": (status("401 Unauthorized"), "refused"),
    "403": (status("403 Forbidden"), "refused"),
    "404": (status("404 Not Found"), "not_found"),
    "408": (status("408 Request Timeout"), "unavailable"),
    "410": (status("410 Gone"), "not_found"),
    "416": (status("416 Range Not Satisfiable"), "length"),
    "429": (status("429 Too Many Requests", Retry_After=86400), "unavailable"),
    "500": (status("500 Internal Server Error"), "unavailable"),
    "503": (status("503 Service Unavailable", Retry_After="Thu, 01 Jan 2099 00:00:00 GMT"), "unavailable"),
    "503 with a Retry-After of no sense": (status("503 No", Retry_After="soon" * 100), "unavailable"),
    "503 twice": (unavailable_twice, ""),
    "504": (status("504 Gateway Timeout"), "unavailable"),
}
SLOW = {name for name, (_, reason) in LIES.items() if reason == "too_slow"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in LIES]
)
def test_row_04_and_06_servers_that_lie_cost_little_and_give_no_wrong_file(tmp_path: Path, name: str) -> None:
    behave, reason = LIES[name]
    spent = Spent()
    with serving(CONTENT, behave) as server:
        if reason:
            with pytest.raises(TransferError) as caught:
                get(server, tmp_path / "file", spent=spent, watch_s=0.25 if name in SLOW else 20.0)
            assert caught.value.reason == reason, str(caught.value)
            assert not (tmp_path / "file").exists()
        else:
            get(server, tmp_path / "file", spent=spent)
            assert (tmp_path / "file").read_bytes() == CONTENT
            assert hidden(tmp_path) == []
        assert spent.requests == len(server.asked) <= MOST_REQUESTS
    assert spent.received <= MOST_BYTES + 65536


def test_row_31_404_and_410_cost_one_request(tmp_path: Path) -> None:
    for line in ("404 Not Found", "410 Gone"):
        with serving(CONTENT, status(line)) as server:
            with pytest.raises(TransferError):
                get(server, tmp_path / "file")
            assert len(server.asked) == 1


def test_row_05_without_a_map_a_garbled_file_is_fetched_twice_and_no_more(tmp_path: Path) -> None:
    spent = Spent()
    with serving(CONTENT, garbled) as server, pytest.raises(TransferError) as caught:
        get(server, tmp_path / "file", mapped=False, spent=spent)
    assert caught.value.reason == "digest"
    assert len(server.asked) == 2
    assert spent.received < 2 * len(CONTENT) + 2000


def test_without_a_map_a_file_that_changes_is_begun_again_once(tmp_path: Path) -> None:
    def changes_once(asked: Asked) -> None:
        tag = '"old"' if asked.number == 1 else '"new"'
        asked.head(Content_Range=asked.range, Content_Length=len(asked.part), ETag=tag)
        asked.send(asked.part[:200_000] if asked.number == 1 else asked.part)

    content = CONTENT * 8
    with serving(content, changes_once) as server:
        get(server, tmp_path / "file", mapped=False)
    assert (tmp_path / "file").read_bytes() == content
    assert [asked.first for asked in server.asked] == [0, 200_000, 0]
    assert server.asked[1].headers["if-range"] == '"old"'
    assert "if-range" not in server.asked[2].headers
