"""Rows 6 and 31: metadata over HTTP, from servers that are slow, endless, or not there."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from tests.trust.simulator import Publisher, refused, versions

from edgec.trust import HttpSource


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Hostile(_Quiet):
    """What a server does is in the first part of the path."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        how = self.path.split("/")[1]
        if how.isdigit():
            self.send_error(int(how))
            return
        if how == "loop":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        try:
            if how == "endless":
                while True:
                    self.wfile.write(b" " * 65536)
            for _ in range(200):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass


@contextmanager
def served(handler: type[http.server.SimpleHTTPRequestHandler], folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_metadata_comes_from_any_web_server(publisher: Publisher, tmp_path: Path) -> None:
    device = publisher.device(tmp_path / "device")
    with served(_Quiet, publisher.repo) as url:
        assert versions(device.update(url)) == ["1"]
        assert versions(device.update(f"{url}/")) == ["1"]
    refused(device, url, "unreachable")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("404", "not_found"),
        ("403", "not_found"),
        ("410", "not_found"),
        ("500", "unreachable"),
        ("503", "unreachable"),
        ("loop", "unreachable"),
        ("endless", "too_large"),
        ("drip", "too_slow"),
    ],
)
@pytest.mark.slow
def test_row_06_and_31_hostile_servers(publisher: Publisher, tmp_path: Path, how: str, reason: str) -> None:
    device = publisher.device(tmp_path / "device")
    _Hostile.requests = 0
    with served(_Hostile, tmp_path) as url:
        refused(device, HttpSource(f"{url}/{how}", timeout_s=0.3 if how == "drip" else 60.0), reason)
    assert _Hostile.requests <= 15
    assert versions(device.update(publisher.repo)) == ["1"]


def test_a_token_is_not_told_to_another_server(publisher: Publisher, tmp_path: Path) -> None:
    class First(_Quiet):
        tokens: ClassVar[list[str | None]] = []

        def do_GET(self) -> None:
            self.tokens.append(self.headers.get("Authorization"))
            self.send_response(302)
            self.send_header("Location", url + self.path)
            self.end_headers()

    class Second(_Quiet):
        tokens: ClassVar[list[str | None]] = []

        def do_GET(self) -> None:
            self.tokens.append(self.headers.get("Authorization"))
            super().do_GET()

    with served(Second, publisher.repo) as url, served(First, tmp_path) as first:
        source = HttpSource(first, headers={"Authorization": "Bearer secret"})
        assert versions(publisher.device(tmp_path / "device").update(source)) == ["1"]
    assert set(First.tokens) == {"Bearer secret"}
    assert set(Second.tokens) == {None}


def test_a_base_that_is_no_web_address_is_wrong() -> None:
    for base in ("ftp://host/", "file:///etc", "https://", "repo"):
        with pytest.raises(ValueError, match="must begin with http"):
            HttpSource(base)
