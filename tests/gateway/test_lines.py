"""Connections to an upstream are used again only where nothing of an earlier request is left on them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

pytest.importorskip("httptools", reason="needs the extra gateway")

from edgec.errors import RequestError
from edgec.gateway._bodies import Body
from edgec.gateway._lines import Line, LineError, Lines

EARLY = b"HTTP/1.1 429 Too Many\r\nContent-Length: 2\r\n\r\n{}"
SIZED = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


async def with_line(
    answer: bytes, use: Callable[[Lines, Line], Awaitable[None]], *, at: bytes = b"\r\n\r\n"
) -> None:
    """Use a connection to a server that answers once, as soon as it has read so far, and stays."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(at)
        writer.write(answer)
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    lines = Lines(f"http://127.0.0.1:{port}", ssl.create_default_context())
    line = await lines.connect()
    try:
        await use(lines, line)
    finally:
        line.fail(LineError("over"))
        gone.set()
        server.close()
        await server.wait_closed()


async def answered(line: Line) -> None:
    """Return when all of the answer has come."""
    while not line.has_ended:
        await asyncio.wait_for(line.piece(), 60)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("end", [RuntimeError, asyncio.CancelledError])
def test_a_line_whose_request_was_not_sent_whole_is_closed(chunked: bool, end: type[BaseException]) -> None:
    async def use(lines: Lines, line: Line) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"a piece"
            await answered(line)  # early, and whole
            raise end

        with pytest.raises(end):
            await line.send(CHUNKED if chunked else SIZED, body(), chunked=chunked)
        assert (line.status, line.has_ended) == (429, True)
        lines.give_back(line)
        assert lines.idle() is None
        assert not line.is_open

    asyncio.run(with_line(EARLY, use))


@pytest.mark.parametrize(
    ("answer", "reused"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", False),
        (2 * b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", False),
    ],
)
def test_a_line_is_kept_where_both_request_and_answer_have_ended(answer: bytes, reused: bool) -> None:
    async def use(lines: Lines, line: Line) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        await line.send(CHUNKED, body(), chunked=True)
        await line.head()
        text = b""
        try:
            while not line.has_ended:
                text += await asyncio.wait_for(line.piece(), 60)
        except LineError:
            assert not reused
        else:
            assert text == b"ok"
        lines.give_back(line)
        assert (lines.idle() is line) == reused

    asyncio.run(with_line(answer, use, at=b"0\r\n\r\n"))


def test_what_comes_while_nothing_was_asked_answers_nothing() -> None:
    async def use(lines: Lines, line: Line) -> None:
        await line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"", chunked=False)
        await answered(line)
        lines.give_back(line)
        line.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        assert lines.idle() is None

    asyncio.run(with_line(EARLY, use))


@pytest.mark.parametrize("declared", [2 * 2**20, 4 * 2**20])
def test_a_body_of_another_size_than_it_says_is_refused(declared: int) -> None:
    messages = [{"type": "http.request", "body": bytes(2**20), "more_body": i < 2} for i in range(3)]

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    async def pass_on() -> None:
        body = Body(receive, {b"content-length": b"%d" % declared}, 2**23)
        await body.begin()
        data = body.data()
        assert not isinstance(data, bytes)
        async for _ in data:
            pass

    with pytest.raises(RequestError, match="content-length"):
        asyncio.run(pass_on())
