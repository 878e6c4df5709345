"""Why a socket cannot listen: what servers of all kinds say of it."""

from __future__ import annotations

import errno
import socket


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Return what a server says that could not bind its socket, and which of its two options is the cause."""
    why = error.strerror or str(error)
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return f"cannot listen at {host}: {why}; give an address in place of the name, or try again later"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen at {host}: {why}; it is no address of this machine: choose another --host"
    return f"cannot listen at {host} port {port}: {why}; choose another --port"
