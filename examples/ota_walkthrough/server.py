"""A web server for a repository, as any other: files, ranges, and a line as slow as wanted."""

from __future__ import annotations

import re
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE = 8192


class FileServer(ThreadingHTTPServer):
    """Serves a directory on a free port of 127.0.0.1.

    Attributes:
        url: Of the directory.
        bytes_per_s: Of each answer; 0 for as fast as it goes.
        sent: Bytes of artifacts that went out so far; metadata is not counted.
        resumed: Requests that began in the middle of a file.
        offline: Whether nothing is served.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.bytes_per_s = 0
        self.offline = False
        self.sent = self.resumed = 0
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def files(self) -> FileServer:
        assert isinstance(self.server, FileServer)
        return self.server

    def do_GET(self) -> None:
        path = self.files.directory / self.path.lstrip("/")
        if self.files.offline:
            self.close_connection = True
            return
        if ".." in Path(self.path).parts or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        data = path.read_bytes()
        tag = f'"{path.stat().st_mtime_ns}-{len(data)}"'
        first, last = 0, len(data) - 1
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range", tag) == tag and int(wanted[1]) < len(data):
            first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", tag)
        self.end_headers()
        self.files.resumed += first > 0
        self._send(data[first : last + 1])

    def _send(self, data: bytes) -> None:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            try:
                self.wfile.write(piece)
            except OSError:  # the device was killed
                self.close_connection = True
                return
            self.files.sent += len(piece) if self.path.startswith("/targets/") else 0
            if self.files.bytes_per_s:
                time.sleep(len(piece) / self.files.bytes_per_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the story is told elsewhere."""
