"""The application's end of the socket on which the agent of this device listens."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Collection
from pathlib import Path

from edgec.errors import LinkError
from edgec.runtime._link_messages import FROM_AGENT, MAX_FROM_AGENT, Lines, LinkMessage

_SEND_S = 5.0
_CREDENTIALS = struct.Struct("3i")


def peer(link: socket.socket) -> tuple[int, int, int]:
    """Return process, user and group at the other end of a Unix socket (SO_PEERCRED), as the kernel knows."""
    data = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, group = _CREDENTIALS.unpack(data)
    return pid, user, group


def agent_users(models: Path) -> set[int]:
    """Return the ids of users that an agent may run as: this one, and the owner of its directory."""
    try:
        return {os.geteuid(), models.stat().st_uid}
    except OSError:
        return {os.geteuid()}


class AgentSocket:
    """A connection to the agent.

    Args:
        path: Of its socket.
        users: Ids of users that it may run as, root beside them.

    Raises:
        LinkError: Nobody listens there, or somebody else.
    """

    def __init__(self, path: str | Path, users: Collection[int]) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_SEND_S)
            self._socket.connect(os.fspath(path))
            user = peer(self._socket)[1]
        except OSError as e:
            self._socket.close()
            raise LinkError(f"the agent does not listen at {path}: {e}") from e
        if user not in (0, *users):
            self._socket.close()
            raise LinkError(f"user {user} listens at {path}; expected root or one of {sorted(users)}")
        self._lines = Lines(FROM_AGENT, MAX_FROM_AGENT)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def wake_by(self, other: socket.socket) -> None:
        """Let `receive` return, too, when something can be read from another socket."""
        self._poll.register(other, select.POLLIN)

    def send(self, message: LinkMessage) -> None:
        """Send a message.

        Raises:
            LinkError: The agent has gone, or takes nothing.
        """
        try:
            self._socket.sendall(message.to_line())
        except OSError as e:
            raise LinkError(f"the agent does not listen any more: {e}") from e

    def receive(self, timeout_s: float) -> list[LinkMessage]:
        """Return what has come by then; nothing where nothing has, or where it was woken.

        Raises:
            LinkError: The agent has gone.
            ProtocolError: It said something else.
        """
        ready = self._poll.poll(max(timeout_s, 0.0) * 1e3)
        if self._socket.fileno() not in [descriptor for descriptor, _ in ready]:
            return []
        try:
            data = self._socket.recv(MAX_FROM_AGENT)
        except OSError as e:
            raise LinkError(f"the agent has gone: {e}") from e
        if not data:
            raise LinkError("the agent has gone")
        return self._lines.take(data)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
