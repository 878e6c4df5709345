"""Why a socket cannot listen: what servers of all kinds say of it."""

from __future__ import annotations

import errno
import socket


def cannot_listen(host: str, port: int, error: OSError, option: str = "--port") -> str:
    """Return what a server says that could not bind its socket, and which of its options is the cause.

    Args:
        host: That it wanted to listen at.
        port: That it wanted.
        error: Of the attempt.
        option: That has given the port.
    """
    why = error.strerror or str(error)
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return f"cannot listen at {host}: {why}; give an address in place of the name, or try again later"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"cannot listen at {host}: {why}; it is no address of this machine: choose another --host"
    return f"cannot listen at {host} port {port}: {why}; choose another {option}"
