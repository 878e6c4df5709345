"""Whoever has a certificate of a device, or stands in between, is not taken for the fleet's server."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="a fleet's server needs the extra 'fleet'")

from tests.protocol.test_brokers import _csr

from edgec.device_agent._joining import Trusted, join
from edgec.errors import AgentError, FleetError
from edgec.fleet.enrolment import Asked, Enrolment, Whereabouts
from edgec.fleet.service import Fleet
from edgec.protocol import tls_context
from edgec.protocol.certificates import CertificateAuthority


@contextmanager
def _shows(certificate: Path, key: Path, reply: bytes = b"") -> Iterator[int]:
    """A server over HTTPS that answers everything with the same; gives its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ExitStack() as stack:
        server = stack.enter_context(http.server.HTTPServer(("127.0.0.1", 0), Handler))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        # A client that refuses the certificate is not worth a traceback.
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        yield int(server.server_address[1])


def _connect(port: int, context: ssl.SSLContext, name: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), 30) as plain,
        context.wrap_socket(plain, server_hostname=name),
    ):
        pass


def test_a_device_cannot_pose_as_a_server_under_its_own_name(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls")
    request, key = _csr("ignored")
    (tmp_path / "device.crt").write_text(authority.sign(request, "fleet.example")[1])
    (tmp_path / "device.key").write_bytes(key)
    trusting = [tls_context(authority.root), authority.server_trust(), authority.client("a").client_context()]
    with _shows(tmp_path / "device.crt", tmp_path / "device.key") as port:
        for context in trusting:
            with pytest.raises(ssl.SSLCertVerificationError):
                _connect(port, context, "fleet.example")
            # Certificates of before have no purpose: their names make nobody a server, either.
            assert not context.hostname_checks_common_name
        only_name = ssl.create_default_context(cafile=str(authority.root))
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            _connect(port, only_name, "fleet.example")
    honest = authority.server("http", ["fleet.example"])
    with _shows(honest.certificate, honest.key) as port:
        _connect(port, trusting[0], "fleet.example")


def test_a_device_cannot_have_the_name_of_a_server(tmp_path: Path) -> None:
    names = ("Fleet.example", "hub")
    where = Whereabouts(broker="mqtts://broker.example:8883", names=names)
    bad = ("fleet", "localhost", "fleet.example", "HUB", "hub.", "broker.example", "10.0.0.7")
    with Fleet(tmp_path) as fleet:
        enrolment = Enrolment(fleet, CertificateAuthority(tmp_path / "tls"), where)
        for device in (*bad, "cam.example"):
            secret = fleet.claims.create(now=fleet.clock(), actor="ann")[1]
            asked = Asked(claim=secret, hardware=["rpi5"], device=device, request=_csr()[0].decode())
            if device in bad:
                with pytest.raises(FleetError, match="cannot be the id"):
                    enrolment.enrol(asked)
            else:
                assert enrolment.enrol(asked).device == device


def test_devices_come_in_whatever_a_package_with_targets_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = tmp_path / "site"
    (site / "acme_unlicensed-1.0.dist-info").mkdir(parents=True)
    (site / "acme_unlicensed.py").write_text("raise RuntimeError('no licence')\n")
    (site / "acme_unlicensed-1.0.dist-info/METADATA").write_text("Name: acme-unlicensed\nVersion: 1.0\n")
    points = site / "acme_unlicensed-1.0.dist-info/entry_points.txt"
    points.write_text("[edgec.targets]\nacme = acme_unlicensed\n")
    monkeypatch.syspath_prepend(str(site))
    where = Whereabouts(broker="mqtts://broker.example:8883")
    with Fleet(tmp_path / "fleet") as fleet:
        enrolment = Enrolment(fleet, CertificateAuthority(tmp_path / "tls"), where)
        for device in ("cam-1", "cam-2"):
            secret = fleet.claims.create(now=fleet.clock(), actor="ann")[1]
            asked = Asked(claim=secret, hardware=["acme"], device=device, request=_csr()[0].decode())
            assert enrolment.enrol(asked).hardware == "acme"
    # Once, not for each device.
    assert [r.getMessage().count("no licence") for r in caplog.records if "hardware" in r.getMessage()] == [1]


def test_a_fingerprint_vouches_for_one_certificate_and_none_that_follows(tmp_path: Path) -> None:
    evil = CertificateAuthority(tmp_path / "evil")
    # Padding ends what lenient decoders of base64 read; signatures have one length or another.
    founded = (CertificateAuthority(tmp_path / f"real{number}") for number in range(100))
    real = next(a for a in founded if "=" in a.root.read_text())
    mine = evil.server(hosts=["127.0.0.1"])
    both = real.root.read_bytes() + evil.root.read_bytes()
    with (
        _shows(mine.certificate, mine.key, both) as port,
        pytest.raises(AgentError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        join(
            f"https://127.0.0.1:{port}",
            "edgec-claim_x",
            hardware=["cpu"],
            directory=tmp_path / "etc",
            state_dir=tmp_path / "state",
            trusted=Trusted(fingerprint=real.fingerprint),
        )
