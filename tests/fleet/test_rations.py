"""Who has no token cannot wear the server out: failures are rationed, and silent connections end."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("uvicorn", reason="a fleet's server needs the extra 'fleet'")

from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.protocol.test_brokers import _csr

from edgec.fleet.api import create_app
from edgec.fleet.api._limits import ApiLimits
from edgec.fleet.dashboard import mount
from edgec.fleet.enrolment import Enrolment, Whereabouts
from edgec.fleet.server._http import Http
from edgec.fleet.server._patience import PatientProtocol
from edgec.fleet.service import Fleet
from edgec.protocol.certificates import Certificate, CertificateAuthority

Connect: TypeAlias = Callable[[str], socket.socket]


def test_attempts_without_a_token_are_rationed_where_they_fail(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        app = create_app(fleet, limits=ApiLimits(refused_rate=0.1))
        app.state.enrolment = Enrolment(
            fleet, CertificateAuthority(tmp_path / "tls"), Whereabouts(broker="mqtts://{host}:8883")
        )
        mount(app, fleet)
        claim = fleet.claims.create(now=fleet.clock(), actor="ann", uses=100)[1]
        api = TestClient(app)

        def enrol(claim: str, device: str) -> int:
            body = {"claim": claim, "hardware": ["rpi5"], "device": device, "request": _csr()[0].decode()}
            return api.post("/api/v1/enrol", json=body).status_code

        assert {enrol(claim, f"cam-{number}") for number in range(8)} == {200}
        assert [enrol("edgec-claim_no", "cam"), enrol(claim, "cam-x")] == [403, 200]
        # A bucket of two that takes ten seconds for the next: a slow machine needs a few attempts more.
        assert 429 in (api.post("/login", data={"token": "wrong"}).status_code for _ in range(10))
        assert 429 in (enrol("edgec-claim_no", "cam") for _ in range(10))


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@contextmanager
def answering(per_address: int, certificate: Certificate | None = None) -> Iterator[Connect]:
    """Serve 200 at ``/``; give what connects to it from an address of this machine."""
    http, app = Http("127.0.0.1", 0, per_address), FastAPI()

    @app.get("/")
    async def give() -> dict[str, int]:
        return {}

    with ExitStack() as opened:
        opened.callback(http.close)
        http.start(app, certificate)
        yield lambda address: opened.enter_context(
            socket.create_connection(("127.0.0.1", http.port), 60, (address, 0))
        )


def status(link: socket.socket, request: bytes = GET) -> bytes:
    # Who is refused may hear so only as an end of the connection.
    with suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
        link.sendall(request)
        return link.recv(4096)[9:12]
    return b""


def eventually(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_address_gets_only_so_many_connections() -> None:
    with answering(2) as connected:
        kept = [connected("127.0.0.2") for _ in range(2)]
        assert [status(link) for link in kept] == [b"200"] * 2
        assert connected("127.0.0.2").recv(4096)[9:12] == b"503"
        # Others come in all the same, and a proxy on this machine as often as it likes.
        assert status(connected("127.0.0.3")) == b"200"
        assert [status(connected("127.0.0.1")) for _ in range(4)] == [b"200"] * 4
        kept[0].close()
        eventually(lambda: status(connected("127.0.0.2")) == b"200")


def test_an_address_that_asks_for_websockets_is_not_locked_out(caplog: pytest.LogCaptureFixture) -> None:
    with answering(1) as connected:
        for request in (UPGRADE, UPGRADE, GET):

            def asked(request: bytes = request) -> bool:
                with connected("127.0.0.2") as link:
                    return status(link, request) == b"200"

            eventually(asked)
    assert not caplog.records


def test_connections_count_before_their_handshake(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls")
    trust = ssl.create_default_context(cafile=str(authority.root))
    with answering(2, authority.server("http", ("127.0.0.1",))) as connected:

        def asked(address: str) -> bool:
            with (
                suppress(OSError),
                connected(address) as plain,
                trust.wrap_socket(plain, server_hostname="127.0.0.1") as link,
            ):
                return status(link) == b"200"
            return False

        kept = [connected("127.0.0.2") for _ in range(2)]
        assert (asked("127.0.0.2"), asked("127.0.0.3")) == (False, True)
        kept[0].close()
        eventually(lambda: asked("127.0.0.2"))


def test_an_address_may_be_given_any_number_of_connections() -> None:
    with answering(0) as connected:
        assert [status(connected("127.0.0.2")) for _ in range(4)] == [b"200"] * 4


def test_connections_without_a_request_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.1)
    monkeypatch.setattr(PatientProtocol, "silence_s", 0.2)
    http = Http("127.0.0.1", 0)
    app = FastAPI()

    @app.post("/")
    async def take(body: dict[str, int]) -> dict[str, int]:
        return body

    http.start(app, None)
    try:
        for sent in (
            b"",
            b"POST / HTTP/1.1\r\nHost: a\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
        ):
            with socket.create_connection(("127.0.0.1", http.port), 60) as link:
                link.sendall(sent)
                link.settimeout(60)
                while link.recv(4096):
                    pass
    finally:
        http.close()
