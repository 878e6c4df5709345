"""A small RTSP server for tests: JPEGs over RTP (RFC 2435) within the connection (RFC 2326, 10.12)."""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

_JPEG = 26
_TICKS_PER_S = 90_000
_SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\na=control:*\r\n"
    f"m=video 0 RTP/AVP {_JPEG}\r\na=control:track1\r\n"
)


def rtp_payload(jpeg: bytes, width: int, height: int) -> bytes:
    """Return a JPEG, of 4:2:0 colors and standard Huffman tables, as one payload: head, tables, scan."""
    place, tables = 2, b""
    while jpeg[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", jpeg, place + 2)
        if jpeg[place + 1] == 0xDB:
            segment = jpeg[place + 4 : place + 2 + length]
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        place += 2 + length
    (length,) = struct.unpack_from(">H", jpeg, place + 2)
    scan = jpeg[place + 2 + length :].removesuffix(b"\xff\xd9")
    head = struct.pack(">BBHBBBB", 0, 0, 0, 1, 255, width // 8, height // 8)
    return head + struct.pack(">BBH", 0, 0, len(tables)) + tables + scan


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            while request := self._read():
                if not self._answer(*request):
                    self._send_frames()
                    return
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            return

    def _read(self) -> tuple[str, str, dict[str, str]] | None:
        line = self.rfile.readline().decode()
        if not line.strip():
            return None
        method, url, _ = line.split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return method, url, headers

    def _answer(self, method: str, url: str, headers: dict[str, str]) -> bool:
        """Answer a request; return whether more may come before frames do."""
        more, body = {}, ""
        if method == "OPTIONS":
            more["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
        elif method == "DESCRIBE":
            more |= {"Content-Type": "application/sdp", "Content-Base": f"{url}/"}
            body = _SDP
        elif method == "SETUP":
            assert "TCP" in headers["transport"]
            more["Transport"] = "RTP/AVP/TCP;unicast;interleaved=0-1"
        more |= {"CSeq": headers["cseq"], "Session": "1", "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        self.wfile.write(f"RTSP/1.0 200 OK\r\n{head}\r\n{body}".encode())
        return method != "PLAY"

    def _send_frames(self) -> None:
        server = cast("_Server", self.server)
        for count in range(server.frames):
            payload = server.payload(server.next_number())
            rtp = struct.pack(">BBHII", 0x80, 0x80 | _JPEG, count & 0xFFFF, count * _TICKS_PER_S // 50, 7)
            self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp) + len(payload)) + rtp + payload)
            time.sleep(0.02)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, payload: Callable[[int], bytes], frames: int) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.payload, self.frames = payload, frames
        self._number = -1
        self._lock = threading.Lock()

    def next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number


@contextmanager
def rtsp_camera(picture: Callable[[int], NDArray[np.uint8]], frames: int, cv2: Any) -> Iterator[str]:
    """Give the address of a camera that hangs up after `frames` frames, and then goes on counting."""

    def payload(number: int) -> bytes:
        image = picture(number)
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        return rtp_payload(data, image.shape[1], image.shape[0])

    with _Server(payload, frames) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()
            thread.join()
