"""Brokers as a fleet runs them: who may connect changes while they run, and nobody else notices."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt", reason="the extra `agent` is not installed")
pytest.importorskip("cryptography", reason="the extra `agent` is not installed")

from tests.brokers import BROKERS, make_broker
from tests.protocol.test_link import options, until

from edgec.errors import LinkError, OutputError, ProtocolError
from edgec.protocol import LinkOptions, MqttLink, Outgoing, Topics
from edgec.protocol.brokers import FLEET, Access, Broker, hash_password
from edgec.protocol.certificates import CertificateAuthority, read_request

TOPICS = Topics("default")
NOW = datetime(2026, 11, 1, tzinfo=timezone.utc)


def _csr(common_name: str = "cam-1", curve: str = "SECP256R1") -> tuple[bytes, bytes]:
    """Return a request for a certificate and the private key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common_name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return request.public_bytes(serialization.Encoding.PEM), private


def _signed(authority: CertificateAuthority, device: str, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Return serial and fingerprint of a new certificate of a device, and the settings of TLS with it."""
    request, private = _csr(device)
    serial, certificate = authority.sign(request, device)
    (folder / f"{device}.crt").write_text(certificate)
    (folder / f"{device}.key").write_bytes(private)
    context = authority.server_trust()
    context.load_cert_chain(str(folder / f"{device}.crt"), str(folder / f"{device}.key"))
    return serial, read_request(request)[1], {"tls": context}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKERS)
def test_devices_come_and_go_and_the_others_stay_connected(name: str, tmp_path: Path) -> None:
    with make_broker(name, tmp_path / "broker", devices=()) as broker:
        serials, keys, tls = {}, {}, {}
        for device in ("one", "two"):
            serials[device], keys[device], tls[device] = _signed(broker.authority, device, tmp_path)
        first = {"one": keys["one"]}
        _allow(broker, Access(devices=first))
        with MqttLink(options(broker, "one", **tls["one"])) as one:
            one.wait_connected(60)
            connections = one.status.connections
            _allow(broker, Access(devices=keys))
            with MqttLink(options(broker, "two", **tls["two"])) as two:
                two.wait_connected(60)
                _allow(
                    broker,
                    Access(
                        devices=first,
                        refused=frozenset({"two"}),
                        revoked=frozenset({serials["two"]}),
                    ),
                )
                with MqttLink(options(broker, FLEET)) as fleet:
                    fleet.wait_connected(60)
                    with suppress(LinkError):
                        two.publish(Outgoing(topic=TOPICS.event("two"), payload=b"{}"))
                    one.publish(Outgoing(topic=TOPICS.event("one"), payload=b"{}")).wait(60)
                    heard = fleet.get(60)
                    assert heard is not None
                    assert heard.topic == TOPICS.event("one")
            with MqttLink(options(broker, "two", **tls["two"])) as again:
                until(lambda: again.status.error is not None)
                assert not again.status.connected
            one.publish(Outgoing(topic=TOPICS.event("one"), payload=b"{}")).wait(60)
            assert one.status.connections == connections


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKERS)
def test_tokens_are_kept_as_hashes_and_end_when_they_are_taken_back(name: str, tmp_path: Path) -> None:
    secret = "t" * 43
    with make_broker(name, tmp_path / "broker", devices=(), passwords={FLEET: "f" * 43}) as broker:
        kept = {"dev.1": hash_password(secret, name)}
        _allow(broker, Access(hashes=kept))
        with (
            _with_password(broker, "dev.1", secret) as device,
            _with_password(broker, FLEET, "f" * 43) as fleet,
        ):
            device.wait_connected(60)
            fleet.wait_connected(60)
            connections = fleet.status.connections
            device.publish(Outgoing(topic=TOPICS.event("dev.1"), payload=b"{}")).wait(60)
            _allow(broker, Access())
            with _with_password(broker, "dev.1", secret) as again:
                until(lambda: again.status.error is not None)
                assert not again.status.connected
            assert fleet.status.connections == connections
        assert all(secret not in path.read_text("latin-1") for path in broker.directory.glob("*.conf"))


@pytest.mark.parametrize("name", BROKERS)
def test_a_revocation_that_could_not_be_written_is_told_when_it_is_said_again(
    name: str, tmp_path: Path
) -> None:
    if name == "nats":
        pytest.importorskip("bcrypt", reason="passwords of nats-server need the extra `fleet`")
    authority = CertificateAuthority(tmp_path / "tls")
    passwords = {FLEET: "f" * 43}
    broker = make_broker(name, tmp_path / "broker", devices=(), passwords=passwords, authority=authority)
    hashes = {"lost": hash_password("t" * 43, name)}
    broker.allow(Access(hashes=hashes))
    settings = broker.directory / ("passwords" if name == "mosquitto" else "nats.conf")
    assert "lost" in settings.read_text()
    moved = broker.directory.rename(tmp_path / "unplugged")
    with pytest.raises(OutputError):
        broker.allow(Access())
    moved.rename(broker.directory)
    broker.allow(Access())
    assert "lost" not in settings.read_text()


def _allow(broker: Broker, access: Access) -> None:
    """Let these in, and wait until the broker has read it."""
    words = "Reloading config" if broker.name == "mosquitto" else "Reloaded server configuration"
    before = broker.log.count(words)
    broker.allow(access)
    if broker.name == "nats" or access.refused or access.hashes or broker.password_port:
        until(lambda: broker.log.count(words) > before)


def _with_password(broker: Broker, device: str, password: str) -> MqttLink:
    return MqttLink(
        LinkOptions(
            host=broker.host,
            port=broker.password_port,
            client_id=device.replace(".", "="),
            username=device,
            password=password,
            tls=broker.authority.server_trust(),
        )
    )


def test_a_certificate_is_made_anew_in_time_and_for_other_names(tmp_path: Path) -> None:
    made = CertificateAuthority(tmp_path, now=NOW, authority_days=3650).server(hosts=["a.example"])
    before, key = made.certificate.read_bytes(), made.key.read_bytes()
    later = CertificateAuthority(tmp_path, now=NOW + timedelta(days=300))
    assert later.server(hosts=["a.example"]).certificate.read_bytes() == before
    later = CertificateAuthority(tmp_path, now=NOW + timedelta(days=340))
    renewed = later.server(hosts=["a.example"]).certificate.read_bytes()
    assert renewed != before
    assert later.server(hosts=["a.example", "10.0.0.1"]).certificate.read_bytes() != renewed
    assert made.key.read_bytes() == key


def test_a_request_is_signed_for_the_identity_that_the_server_says(tmp_path: Path) -> None:
    from cryptography import x509

    authority = CertificateAuthority(tmp_path)
    request, _ = _csr("fleet")
    serial, pem = authority.sign(request, "cam-1", days=10)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    fingerprint = read_request(request)[1]
    named = certificate.subject.rfc4514_string({x509.NameOID.SERIAL_NUMBER: "SERIALNUMBER"})
    assert named == authority.subject("cam-1", fingerprint)
    assert int(serial, 16) == certificate.serial_number
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.root.read_bytes()))
    (tmp_path / "one.crt").write_text(pem)
    crl = tmp_path / "revoked.crl"
    for revoked in ([], [serial]):
        authority.write_revoked(crl, revoked)
        command: list[str | Path] = ["openssl", "verify", "-crl_check", "-CAfile", authority.root]
        command += ["-CRLfile", crl]
        done = subprocess.run([*command, tmp_path / "one.crt"], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == (not revoked), done.stderr


@pytest.mark.parametrize("bad", [b"", b"no request", b"-----BEGIN CERTIFICATE REQUEST-----\n", b"x" * 20_000])
def test_what_is_no_request_is_refused(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_request(bad)


def test_a_request_with_another_key_or_a_weak_one_is_refused() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    request, _ = _csr(curve="SECP192R1")
    with pytest.raises(ProtocolError, match="P-256"):
        read_request(request)
    der = bytearray(x509.load_pem_x509_csr(_csr()[0]).public_bytes(serialization.Encoding.DER))
    at = der.index(b"cam-1")
    der[at : at + 5] = b"cam-2"
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ProtocolError, match="not signed"):
        read_request(forged)
