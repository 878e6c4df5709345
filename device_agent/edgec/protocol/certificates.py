"""A small certificate authority: for tests, demos and small fleets."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from edgec.artifact import atomic_write
from edgec.errors import ProtocolError
from edgec.errors.extras import needs_extra
from edgec.protocol._address import client_context
from edgec.protocol._kinds import ID

_ORGANIZATION = "edgec"
# A certificate of a server or of the fleet that ends sooner is made anew.
_RENEWED_BEFORE = timedelta(days=30)
_MAX_REQUEST = 16 * 1024
# So many digits of a key's fingerprint are in the subject of its certificate.
_NAMED_KEY = 32


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Files of one identity, PEM: its certificate, its private key, and who vouches for both."""

    certificate: Path
    key: Path
    authority: Path

    def client_context(self) -> ssl.SSLContext:
        """Return the TLS settings of a client that shows this certificate."""
        context = client_context(cafile=str(self.authority))
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


class CertificateAuthority:
    """Keys and certificates (ECDSA P-256) below one directory, made when they are first asked for."""

    def __init__(
        self, directory: Path, *, now: datetime | None = None, days: int = 365, authority_days: int = 0
    ) -> None:
        """Open the authority of a directory, or found one.

        Args:
            directory: Holds the private key ``ca.key``; made where it is missing.
            now: The time that certificates hold from; today's.
            days: How long they hold.
            authority_days: How long the authority's own holds; as long if 0.

        Raises:
            MissingExtraError: The extra ``agent``, which brings `cryptography`, is not installed.
        """
        self._x509, self._hashes, self._serialization, self._ec = _cryptography()
        self._fixed_now, self._days, self._authority_days = now, days, authority_days or days
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        if not self.root.exists():
            self._found()

    @property
    def _now(self) -> datetime:
        return self._fixed_now or datetime.now(timezone.utc)

    @property
    def root(self) -> Path:
        """The certificate that everybody is to trust."""
        return self.directory / "ca.crt"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate (DER), in hex: short enough to be compared by people."""
        certificate = self._x509.load_pem_x509_certificate(self.root.read_bytes())
        return str(certificate.fingerprint(self._hashes.SHA256()).hex())

    def server(self, name: str = "server", hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> Certificate:
        """Return the certificate of a server reached under these names and addresses; a new one in time."""
        return self._issue(name, hosts)

    def client(self, identity: str) -> Certificate:
        """Return the certificate of a client; its common name is the identity.

        Raises:
            ProtocolError: The identity is no id.
        """
        return self._issue(ID.read(identity, "identity"), ())

    def sign(self, request: bytes, identity: str, *, days: int | None = None) -> tuple[str, str]:
        """Vouch for the key of whoever asks; its private half is with them, and stays there.

        The subject names the key, too (`subject`), so that a broker can tell it from one that it replaces.

        Args:
            request: A certificate signing request, PEM, as `read_request` accepts it.
            identity: The common name that the certificate has, whatever the request says.
            days: How long it holds; as the authority's others if None.

        Returns:
            Its serial number in hex, and the certificate, PEM.

        Raises:
            ProtocolError: The request or the identity cannot be used.
        """
        key, fingerprint = read_request(request)
        name = ID.read(identity, "identity")
        certificate = self._certify(name, key, (), days or self._days, fingerprint)
        pem = certificate.public_bytes(self._serialization.Encoding.PEM)
        return f"{certificate.serial_number:x}", bytes(pem).decode("ascii")

    def write_revoked(self, path: Path, serials: Iterable[str]) -> None:
        """Write the list of certificates that count no more (CRL, PEM).

        Args:
            path: Of the file; replaced whole.
            serials: In hex.
        """
        issuer, signer = self._signer()
        # A list that has ended would shut everybody out: it ends as late as the authority.
        builder = (
            self._x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(issuer.not_valid_before_utc)
            .next_update(issuer.not_valid_after_utc)
        )
        for serial in sorted(set(serials)):
            one = self._x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
            builder = builder.add_revoked_certificate(one.revocation_date(self._now).build())
        with atomic_write(path) as file:
            file.write(
                builder.sign(signer, self._hashes.SHA256()).public_bytes(self._serialization.Encoding.PEM)
            )

    def subject(self, identity: str, fingerprint: str = "") -> str:
        """Return the subject of an identity's certificate as RFC 2253 writes it.

        Args:
            identity: Its common name.
            fingerprint: Of the key, where the certificate was signed on request.
        """
        key = f"SERIALNUMBER={fingerprint[:_NAMED_KEY]}," if fingerprint else ""
        return f"{key}CN={ID.read(identity, 'identity')},O={_ORGANIZATION}"

    def server_trust(self) -> ssl.SSLContext:
        """Return the TLS settings of a client that shows no certificate."""
        return client_context(cafile=str(self.root))

    def _issue(self, name: str, hosts: Sequence[str]) -> Certificate:
        files = Certificate(
            certificate=self.directory / f"{name}.crt",
            key=self.directory / f"{name}.key",
            authority=self.root,
        )
        if not files.certificate.exists():
            key = self._ec.generate_private_key(self._ec.SECP256R1())
            self._write_key(files.key, key)
        elif self._outlived(files.certificate, hosts):
            # The key stays: a certificate that is replaced alone always fits.
            key = self._serialization.load_pem_private_key(files.key.read_bytes(), None)
        else:
            return files
        self._write_certificate(files.certificate, self._certify(name, key.public_key(), hosts, self._days))
        return files

    def _outlived(self, certificate: Path, hosts: Sequence[str]) -> bool:
        """Return whether a certificate ends soon, in its own time, or names other hosts."""
        known = self._x509.load_pem_x509_certificate(certificate.read_bytes())
        if self._days * timedelta(days=1) > _RENEWED_BEFORE > known.not_valid_after_utc - self._now:
            return True
        if not hosts:
            return False
        names = known.extensions.get_extension_for_class(self._x509.SubjectAlternativeName).value
        return set(names) != {self._host(host) for host in hosts}

    def _certify(self, name: str, key: Any, hosts: Sequence[str], days: int, fingerprint: str = "") -> Any:
        issuer, signer = self._signer()
        builder = self._builder(name, issuer.subject, key, days, fingerprint).add_extension(
            self._x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        # Who has a certificate of a client, whatever its name, is no server.
        usage = self._x509.oid.ExtendedKeyUsageOID
        purpose = usage.SERVER_AUTH if hosts else usage.CLIENT_AUTH
        builder = builder.add_extension(self._x509.ExtendedKeyUsage([purpose]), critical=True)
        if hosts:
            names = self._x509.SubjectAlternativeName([self._host(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(
            self._x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        return builder.sign(signer, self._hashes.SHA256())

    def _signer(self) -> tuple[Any, Any]:
        """Return the authority's certificate and private key."""
        signer = self._serialization.load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
        return self._x509.load_pem_x509_certificate(self.root.read_bytes()), signer

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
        builder = self._builder("authority", None, key.public_key(), self._authority_days)
        builder = builder.add_extension(self._x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        self._write_certificate(self.root, builder.sign(key, self._hashes.SHA256()))

    def _builder(self, name: str, issuer: Any, key: Any, days: int, fingerprint: str = "") -> Any:
        oid = self._x509.NameOID
        parts = [(oid.ORGANIZATION_NAME, _ORGANIZATION), (oid.COMMON_NAME, name)]
        if fingerprint:
            parts.append((oid.SERIAL_NUMBER, fingerprint[:_NAMED_KEY]))
        subject = self._x509.Name([self._x509.NameAttribute(kind, value) for kind, value in parts])
        # An hour back: a device's clock may be behind.
        start = self._now - timedelta(hours=1)
        return (
            self._x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key)
            .serial_number(self._x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + timedelta(days=days))
            .add_extension(self._x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
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
        with atomic_write(path) as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(certificate.public_bytes(self._serialization.Encoding.PEM))


def end_of(certificate: str) -> float:
    """Return when a certificate (PEM) ends, seconds since 1970."""
    x509 = _cryptography()[0]
    return float(x509.load_pem_x509_certificate(certificate.encode("ascii")).not_valid_after_utc.timestamp())


def read_request(request: bytes) -> tuple[Any, str]:
    """Check a certificate signing request; return its public key, and the SHA-256 of that in hex.

    Raises:
        ProtocolError: It is too long, none, not signed with its own key, or the key is weak.
    """
    x509, hashes, serialization, ec = _cryptography()
    if len(request) > _MAX_REQUEST:
        raise ProtocolError(f"a request for a certificate has at most {_MAX_REQUEST} bytes")
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        asked = x509.load_pem_x509_csr(request)
        signed, key = asked.is_signature_valid, asked.public_key()
    # As the documentation of x509 has it; an unknown curve or algorithm is the last.
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ProtocolError(f"expected a request for a certificate (CSR, PEM): {e}") from e
    if not signed:
        raise ProtocolError("the request for a certificate is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in ("secp256r1", "secp384r1"):
        raise ProtocolError("expected a key on the curve P-256 or P-384")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return key, digest.finalize().hex()


def _cryptography() -> tuple[Any, Any, Any, Any]:
    with needs_extra("making certificates", "agent"):
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    return x509, hashes, serialization, ec
