"""A server: its socket, its threads, its beginning and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Protocol

from edgec.errors import ServingError
from edgec.errors.addresses import cannot_listen
from edgec.errors.extras import needs_extra
from edgec.serving._app import App, Send
from edgec.serving._assembly import assemble
from edgec.serving._body import Receive
from edgec.serving._options import ServerOptions
from edgec.serving._protocol import bounded_protocol
from edgec.serving._repository import Loader, Repository

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
# A thread that comes back from an engine waits for the interpreter at most this long, while the event
# loop is busy; Python's own 5 ms would be longer than most inferences.
_SWITCH_INTERVAL_S = 0.0005


class Front(Protocol):
    """What stands in front of the application: an ASGI application that passes on what it does not answer."""

    async def start(self, app: App, repository: Repository) -> None:
        """Begin, on the event loop that serves; `app` answers what is passed on."""
        ...

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI 3 has it."""
        ...

    async def stop(self) -> None:
        """End; no request is left."""
        ...


class Server:
    """Serves artifacts over HTTP: `run` it until it is told to stop, or use ``with`` to have it in a thread.

    Args:
        paths: Of the artifacts, and of the TOML files of chains.
        options: How it listens, what it allows.
        loader: Loads one artifact or chain; as `edgec.runtime.load` and `load_chain` do if None.
        front: Stands in front of the application; with one there may be no artifact.
        room: Artifacts that `front` may add.

    Raises:
        MissingExtraError: The extra ``serve`` is not installed.
        ServingError: An artifact cannot be loaded, the address is taken, or the certificate is unfit.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        options: ServerOptions | None = None,
        *,
        loader: Loader | None = None,
        front: Front | None = None,
        room: int = 0,
    ) -> None:
        self._options = options = options or ServerOptions()
        self._uvicorn = _make_uvicorn(options)
        self._assembly = assemble(paths, options, loader, may_be_empty=front is not None, room=room)
        self._repository = self._assembly.repository
        self._front = front
        try:
            self._check_priorities()
            self._socket = _listen(options)
        except BaseException:
            self._assembly.close()
            raise
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens: ``http://127.0.0.1:8000``, or ``unix:/run/edgec.sock``."""
        if self._options.unix_socket is not None:
            return f"unix:{self._options.unix_socket}"
        host, port = self._socket.getsockname()[:2]
        scheme = "http" if self._options.tls_cert is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def models(self) -> list[tuple[str, str]]:
        """Name and version of each model it serves."""
        return [(entry.name, entry.version) for entry in self._repository.entries()]

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, then answer what is in flight, and free the models.

        It is for a process of its own: it makes Python switch threads more often, and takes the signals
        while it runs.

        Args:
            on_ready: Called once requests are answered.
        """
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        # uvicorn handles the signals while it serves, then gives them to the handlers from before.
        before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._run(on_ready or _nothing)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.setswitchinterval(interval)

    def close(self) -> None:
        """Stop a server that runs in a thread: no new connections, requests in flight are answered."""
        self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Server:
        ready = Event()
        self._thread = Thread(target=self._run_in_thread, args=(ready,), name="edgec-server")
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_priorities(self) -> None:
        names = {slot.name for slot in self._repository.slots}
        unknown = sorted(set(self._options.priorities) - names)
        if unknown:
            raise ServingError(
                f"priorities are for models that are served, {', '.join(sorted(names))}, "
                f"and there is no {', '.join(unknown)}"
            )

    def _run_in_thread(self, ready: Event) -> None:
        try:
            self._run(ready.set)
        finally:
            ready.set()

    def _run(self, on_ready: Callable[[], None]) -> None:
        import uvloop

        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(self._serve(on_ready))
        finally:
            loop.close()
            self._assembly.close()
            self._socket.close()
            if self._options.unix_socket is not None:
                self._options.unix_socket.unlink(missing_ok=True)

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        app = self._assembly.app(lambda: self._uvicorn.should_exit)
        await app.start()
        if self._front is not None:
            await self._front.start(app, self._repository)
        self._uvicorn.config.app = app if self._front is None else self._front
        self._uvicorn.config.load()
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._socket]))
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.005)
        on_ready()
        try:
            await serving
        finally:
            if self._front is not None:
                await self._front.stop()


def _make_uvicorn(options: ServerOptions) -> Any:
    with needs_extra("serving", "serve"):
        import httptools
        import uvicorn
        import uvloop
    assert httptools, uvloop
    if (options.tls_cert is None) != (options.tls_key is None):
        raise ServingError("TLS needs both a certificate and its key")
    _check_tls(options)
    config = uvicorn.Config(
        _unset,
        http=bounded_protocol(options.receive_timeout_s),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(options.drain_timeout_s)),
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
        ssl_ca_certs=None if options.client_ca is None else str(options.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if options.client_ca is None else ssl.CERT_OPTIONAL,
    )
    return uvicorn.Server(config)


def _check_tls(options: ServerOptions) -> None:
    if options.tls_cert is None:
        if options.client_ca is not None:
            raise ServingError("certificates of clients need TLS: give a certificate and its key")
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.tls_cert, options.tls_key)
        if options.client_ca is not None:
            context.load_verify_locations(options.client_ca)
    except OSError as e:  # ssl.SSLError is one
        raise ServingError(f"cannot use {options.tls_cert} with {options.tls_key}: {e}") from e


def _listen(options: ServerOptions) -> socket.socket:
    if options.unix_socket is not None:
        return _listen_unix(options.unix_socket)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as e:
        listener.close()
        raise ServingError(cannot_listen(options.host, options.port, e)) from e
    listener.listen(_BACKLOG)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_answered(path):
            path.unlink()  # of a server that was killed
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
    except OSError as e:
        listener.close()
        raise ServingError(f"cannot listen at {path}: {e.strerror or e}") from e
    listener.listen(_BACKLOG)
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


async def _unset(*_: object) -> None:
    raise AssertionError("the application is set before the server starts")


def _nothing() -> None:
    pass


def _ignore(*_: object) -> None:
    pass
