"""Where a broker or a fleet is, as people write it: ``mqtts://broker.example:8883``."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from edgec.errors import FleetError, LinkError

_PORTS = {"mqtts": 8883, "mqtt": 1883}
_HERE = frozenset(("localhost", "127.0.0.1", "::1"))


def broker_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is used.

    Raises:
        LinkError: It is no such URL, has a password in it, or goes elsewhere without TLS.
    """
    expected = f"expected a broker such as mqtts://broker.example:8883, got {url!r:.80}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise LinkError(f"{expected}: {e}") from e
    if parts.scheme not in _PORTS or not parts.hostname or not re.fullmatch(r"/?", parts.path):
        raise LinkError(expected)
    if parts.username is not None or parts.query or parts.fragment:
        # Command lines are seen by everybody on the machine, and logged.
        raise LinkError("a broker's URL has host and port only: give user name and password apart")
    if parts.scheme == "mqtt" and parts.hostname not in _HERE:
        raise LinkError(f"{url} would be reached without encryption: use mqtts://, with --ca for an own CA")
    return parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "mqtts"


def fleet_address(url: str) -> SplitResult:
    """Return the parts of the URL of a fleet, ``https://fleet.example:8443``: scheme, host, maybe a port.

    Raises:
        FleetError: It is no such URL, has a password in it, or goes elsewhere without TLS (``reason``
            ``invalid``).
    """
    expected = f"expected a fleet such as https://fleet.example:8443, got {url!r:.80}"
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0
    except ValueError as e:
        raise FleetError(f"{expected}: {e}", "invalid") from e
    if parts.username is not None:
        raise FleetError("a fleet's URL has host and port only: give the token apart", "invalid")
    if not fine or parts.path.strip("/") or parts.query or parts.fragment:
        raise FleetError(expected, "invalid")
    if parts.scheme == "http" and parts.hostname not in _HERE:
        raise FleetError(f"{url} would be told the token without encryption: use https://", "invalid")
    return parts


def client_context(*, cafile: str | Path | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """Return the TLS settings of a client that shows no certificate.

    A server is what its certificate's alternative names say: the common name, which is a device's id in the
    certificates that devices have from the same authority, makes nobody a server.

    Args:
        cafile: Certificates of who may vouch for servers, PEM; those of the system with neither.
        cadata: The same as text.

    Raises:
        OSError: The file cannot be read, or has no certificates; `ssl.SSLError` is one.
    """
    context = ssl.create_default_context(cafile=cafile, cadata=cadata)
    context.hostname_checks_common_name = False
    return context


def tls_context(
    ca: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the TLS settings of a client.

    Args:
        ca: Certificates of who may vouch for the broker, PEM; those of the system if None.
        certificate: To show to the broker, PEM; None for none.
        key: Of that certificate; None where it is in the same file.

    Raises:
        LinkError: A file cannot be read, or is no certificate or key.
    """
    try:
        context = client_context(cafile=None if ca is None else str(ca))
    except OSError as e:
        raise LinkError(f"{ca} has no certificates that can be read: {e.strerror or e}") from e
    if certificate is not None:
        # Without a password given, OpenSSL would ask on the terminal.
        try:
            context.load_cert_chain(str(certificate), None if key is None else str(key), password="")
        except (OSError, ValueError) as e:
            what = f"{certificate}" + (f" and {key}" if key else "")
            raise LinkError(f"{what}: no certificate with its key that can be read: {e}") from e
    return context
