"""A server: its socket, its threads, its beginning and its end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any

from edgec.errors import MissingExtraError, ServingError
from edgec.serving._app import App
from edgec.serving._chains import load_served
from edgec.serving._options import ServerOptions
from edgec.serving._protocol import bounded_protocol
from edgec.serving._repository import Loader, Repository

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_SPARE_THREADS = 2  # for large headers, and for loading models
# A thread that comes back from an engine waits for the interpreter at most this long, while the event
# loop is busy; Python's own 5 ms would be longer than most inferences.
_SWITCH_INTERVAL_S = 0.0005


class Server:
    """Serves artifacts over HTTP: `run` it until it is told to stop, or use ``with`` to have it in a thread.

    Args:
        paths: Of the artifacts, and of the TOML files of chains.
        options: How it listens, what it allows.
        loader: Loads one artifact or chain; as `edgec.runtime.load` and `load_chain` do if None.

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
    ) -> None:
        self._options = options = options or ServerOptions()
        self._uvicorn = _make_uvicorn(options)
        width = _width(options.threads)
        self._executor = ThreadPoolExecutor(width * len(paths) + _SPARE_THREADS, "edgec-serving")
        self._repository = Repository(
            [Path(path) for path in paths],
            loader or partial(load_served, threads=options.threads),
            self._executor,
            width=width,
            queue=options.queue,
            observe=options.observe,
        )
        try:
            self._socket = _listen(options)
        except BaseException:
            self._repository.close()
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
            self._executor.shutdown()
            self._repository.close()
            self._socket.close()
            if self._options.unix_socket is not None:
                self._options.unix_socket.unlink(missing_ok=True)

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        app = App(self._repository, self._options, self._executor, lambda: self._uvicorn.should_exit)
        await app.start()
        self._uvicorn.config.app = app
        self._uvicorn.config.load()
        serving = asyncio.ensure_future(self._uvicorn.serve(sockets=[self._socket]))
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.005)
        on_ready()
        await serving


def _make_uvicorn(options: ServerOptions) -> Any:
    try:
        import httptools
        import uvicorn
        import uvloop
    except ModuleNotFoundError as e:
        raise MissingExtraError("serving", e.name, "serve") from e
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
    )
    return uvicorn.Server(config)


def _check_tls(options: ServerOptions) -> None:
    if options.tls_cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key)
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
        raise ServingError(
            f"cannot listen at {options.host} port {options.port}: {e.strerror or e}; choose another --port"
        ) from e
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


def _width(threads: int | None) -> int:
    """Return how many inferences of a model run at once: as many as keep the cores busy, and one more
    that is being read or written meanwhile."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (threads or cores)) + 1


async def _unset(*_: object) -> None:
    raise AssertionError("the application is set before the server starts")


def _nothing() -> None:
    pass


def _ignore(*_: object) -> None:
    pass
