"""The application over HTTP, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from edgec.errors import FleetError
from edgec.errors.extras import needs_extra
from edgec.fleet.server._listener import PER_ADDRESS, Listener
from edgec.protocol.certificates import Certificate

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

_START_S = 60.0
_GRACE_S = 10


class Http:
    """uvicorn in a thread.

    Attributes:
        port: That it listens at.
    """

    def __init__(self, host: str, port: int, per_address: int = PER_ADDRESS) -> None:
        """Take an address; `start` begins to answer.

        Args:
            host: To listen at.
            port: To listen at; 0 for any that is free.
            per_address: How many connections an address may have at once; 0 for any number.

        Raises:
            FleetError: The address is taken, or is none of this machine (``reason`` ``address``).
            MissingExtraError: The extra ``fleet`` is not installed.
        """
        with needs_extra("a fleet's server", "fleet"):
            import uvicorn
        self._uvicorn = uvicorn
        self._socket = Listener(host, port, per_address)
        self.port = int(self._socket.getsockname()[1])
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, app: FastAPI, certificate: Certificate | None) -> None:
        """Begin to answer; return when it does.

        Args:
            app: Is served.
            certificate: Of the server; None for HTTP without TLS.

        Raises:
            FleetError: It does not start.
        """
        from edgec.fleet.server._patience import PatientProtocol

        self._socket.tls = certificate is not None
        config = self._uvicorn.Config(
            app,
            http=PatientProtocol,
            # An upgrade would take connections from the protocol that watches over them.
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # What a proxy says of who asks is believed only from this machine.
            proxy_headers=True,
            forwarded_allow_ips="127.0.0.1",
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=None if certificate is None else str(certificate.certificate),
            ssl_keyfile=None if certificate is None else str(certificate.key),
        )
        self._server = server = self._uvicorn.Server(config)
        begun = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(server, begun), name="fleet-http", daemon=True
        )
        self._thread.start()
        if not begun.wait(_START_S) or self._error is not None:
            raise FleetError(f"the API does not start: {self._error or 'it takes too long'}", "address")

    def renew(self, certificate: Certificate) -> None:
        """Show another certificate from now on; connections that there are stay.

        Raises:
            FleetError: It cannot be read.
        """
        context = None if self._server is None else self._server.config.ssl
        if context is not None:
            try:
                context.load_cert_chain(str(certificate.certificate), str(certificate.key))
            except OSError as e:
                raise FleetError(f"{certificate.certificate} cannot be read: {e}", "data") from e

    def close(self) -> None:
        """Answer what is in hand, and stop."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()
        self._socket.close()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread is not None and self._thread.is_alive()

    def _run(self, server: uvicorn.Server, begun: threading.Event) -> None:
        async def serve() -> None:
            serving = asyncio.ensure_future(server.serve(sockets=[self._socket]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            begun.set()
            await serving

        try:
            asyncio.run(serve())
        except (OSError, SystemExit) as e:
            # uvicorn ends so where the application does not start.
            self._error = e
        finally:
            begun.set()
