"""A small certificate authority: for tests, demos and small fleets."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from edgec.errors import MissingExtraError
from edgec.protocol._kinds import ID

_ORGANIZATION = "edgec"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Files of one identity, PEM: its certificate, its private key, and who vouches for both."""

    certificate: Path
    key: Path
    authority: Path

    def client_context(self) -> ssl.SSLContext:
        """Return the TLS settings of a client that shows this certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


class CertificateAuthority:
    """Keys and certificates (ECDSA P-256) below one directory, made when they are first asked for."""

    def __init__(self, directory: Path, *, now: datetime | None = None, days: int = 365) -> None:
        """Open the authority of a directory, or found one.

        Args:
            directory: Holds the private key ``ca.key``; made where it is missing.
            now: The time that certificates hold from; today's.
            days: How long they hold.

        Raises:
            MissingExtraError: The extra ``agent``, which brings `cryptography`, is not installed.
        """
        self._x509, self._hashes, self._serialization, self._ec = _cryptography()
        self._now, self._days = now or datetime.now(timezone.utc), days
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if not self.root.exists():
            self._found()

    @property
    def root(self) -> Path:
        """The certificate that everybody is to trust."""
        return self.directory / "ca.crt"

    def server(self, name: str = "server", hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> Certificate:
        """Return the certificate of a server reached under these names and addresses."""
        return self._issue(name, hosts)

    def client(self, identity: str) -> Certificate:
        """Return the certificate of a client; its common name is the identity.

        Raises:
            ProtocolError: The identity is no id.
        """
        return self._issue(ID.read(identity, "identity"), ())

    def subject(self, identity: str) -> str:
        """Return the subject of an identity's certificate as RFC 2253 writes it."""
        return f"CN={ID.read(identity, 'identity')},O={_ORGANIZATION}"

    def server_trust(self) -> ssl.SSLContext:
        """Return the TLS settings of a client that shows no certificate."""
        return ssl.create_default_context(cafile=str(self.root))

    def _issue(self, name: str, hosts: Sequence[str]) -> Certificate:
        files = Certificate(
            certificate=self.directory / f"{name}.crt",
            key=self.directory / f"{name}.key",
            authority=self.root,
        )
        if not files.certificate.exists():
            key = self._ec.generate_private_key(self._ec.SECP256R1())
            self._write_key(files.key, key)
            signer = self._serialization.load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
            issuer = self._x509.load_pem_x509_certificate(self.root.read_bytes())
            builder = self._builder(name, issuer.subject, key).add_extension(
                self._x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            if hosts:
                names = self._x509.SubjectAlternativeName([self._host(host) for host in hosts])
                builder = builder.add_extension(names, critical=False)
            builder = builder.add_extension(
                self._x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
            )
            self._write_certificate(files.certificate, builder.sign(signer, self._hashes.SHA256()))
        return files

    def _found(self) -> None:
        key = self._ec.generate_private_key(self._ec.SECP256R1())
        self._write_key(self.directory / "ca.key", key)
        usage = self._x509.KeyUsage(
            **dict.fromkeys(
                ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
            ),
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = self._builder("authority", None, key)
        builder = builder.add_extension(self._x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        self._write_certificate(self.root, builder.sign(key, self._hashes.SHA256()))

    def _builder(self, name: str, issuer: Any, key: Any) -> Any:
        oid = self._x509.NameOID
        subject = self._x509.Name(
            [
                self._x509.NameAttribute(oid.ORGANIZATION_NAME, _ORGANIZATION),
                self._x509.NameAttribute(oid.COMMON_NAME, name),
            ]
        )
        # An hour back: a device's clock may be behind.
        start = self._now - timedelta(hours=1)
        return (
            self._x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(self._x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=self._days))
            .add_extension(self._x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _host(self, host: str) -> Any:
        try:
            return self._x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            return self._x509.DNSName(host)

    def _write_key(self, path: Path, key: Any) -> None:
        serialization = self._serialization
        data = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)

    def _write_certificate(self, path: Path, certificate: Any) -> None:
        path.write_bytes(certificate.public_bytes(self._serialization.Encoding.PEM))


def _cryptography() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as e:
        raise MissingExtraError("making certificates", e.name, "agent") from e
    return x509, hashes, serialization, ec
