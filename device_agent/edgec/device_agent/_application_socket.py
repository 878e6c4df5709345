"""The socket on which applications of this device find the agent, and who may come in."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgec.errors import AgentError
from edgec.runtime import ShadowReport
from edgec.runtime._agent_socket import peer
from edgec.runtime._link_messages import (
    FROM_APPLICATION,
    MAX_FROM_APPLICATION,
    Done,
    Failed,
    Lines,
    LinkMessage,
    Refused,
)

# sockaddr_un of Linux, with the zero at its end.
_MOST_PATH = 107
_BACKLOG = 16
_READ = 64 * 1024
_MOST_UNSENT = 256 * 1024
_SPAN_S, _MOST_IN_SPAN = 10.0, 1000


def listen(path: Path, *, mode: int, group: int | None) -> socket.socket:
    """Return a socket that listens at a path; one that a killed agent left there is replaced.

    Args:
        path: Of the socket; its directory is there.
        mode: Who may connect, as of a file: 0o600 for this user and root.
        group: Id of the group that the file gets; None for this process's.

    Raises:
        AgentError: Another agent listens there, or the path cannot be used.
    """
    if len(os.fsencode(path)) > _MOST_PATH:
        raise AgentError(
            f"{path} is too long for a socket: at most {_MOST_PATH} bytes, got {len(os.fsencode(path))}"
        )
    _make_way(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # Before it has a name, so that it is never open to more than it should be.
        os.fchmod(server.fileno(), 0o600)
        server.bind(os.fspath(path))
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)
        server.listen(_BACKLOG)
    except OSError as e:
        server.close()
        raise AgentError(f"the agent cannot listen at {path}: {e}") from e
    return server


def _make_way(path: Path) -> None:
    """Remove a socket that nobody listens at."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AgentError(f"{path} is there, and is no socket: remove it, or name another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as test:
        test.settimeout(1.0)
        try:
            test.connect(os.fspath(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as e:
            raise AgentError(f"{path} cannot be used: {e}") from e
    raise AgentError(f"another agent listens at {path}: stop it, or name another path")


def may_come_in(user: int, mode: int, users: Collection[int] | None) -> bool:
    """Return whether a user may talk to the agent.

    Args:
        user: Its id, as the kernel tells.
        mode: Of the socket. One that is open to others was opened on purpose.
        users: Ids that are allowed beside root and this user; None for all whom the mode lets in.
    """
    if user in (0, os.geteuid()):
        return True
    return bool(mode & 0o066) if users is None else user in users


@dataclass(eq=False, kw_only=True)
class Caller:
    """An application that is connected. It belongs to the thread that serves; others only look.

    Attributes:
        link: To it.
        pid, user: Of it, as the kernel tells.
        since: When it came, in seconds of the server's clock.
        model: That it follows; empty until it has said hello.
        digest: Of the file that it runs.
        held: Of the files that it has open.
        name: As it calls itself.
        asked: Numbers of requests that somebody waits for.
        answers: What it replied, by request.
        reports: Of candidates, by request.
        finished: Whether it has said goodbye, or was sent away.
    """

    link: socket.socket
    pid: int
    user: int
    since: float
    model: str = ""
    digest: str = ""
    held: frozenset[str] = frozenset()
    name: str = ""
    asked: set[int] = field(default_factory=set)
    answers: dict[int, Done | Failed] = field(default_factory=dict)
    reports: dict[int, ShadowReport] = field(default_factory=dict)
    finished: bool = False
    lines: Lines = field(default_factory=lambda: Lines(FROM_APPLICATION, MAX_FROM_APPLICATION))
    unsent: bytearray = field(default_factory=bytearray)
    span_from: float = 0.0
    in_span: int = 0

    @classmethod
    def accept(cls, link: socket.socket, now: float) -> Caller:
        """Return who has connected."""
        link.setblocking(False)
        pid, user, _group = peer(link)
        return cls(link=link, pid=pid, user=user, since=now, span_from=now)

    def __str__(self) -> str:
        return f"{self.name or 'an application'} (process {self.pid})"

    def read(self, now: float) -> list[LinkMessage] | None:
        """Return the messages that have come; None where it has gone.

        Raises:
            ProtocolError: It says something else.
            AgentError: It says too much.
        """
        try:
            data = self.link.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        messages = self.lines.take(data)
        if now - self.span_from >= _SPAN_S:
            self.span_from, self.in_span = now, 0
        self.in_span += len(messages)
        if self.in_span > _MOST_IN_SPAN:
            raise AgentError(f"{self} sent more than {_MOST_IN_SPAN} messages within {_SPAN_S:.0f} s")
        return messages

    def say(self, message: LinkMessage) -> bool:
        """Put a message on its way; return whether there was room for it."""
        line = message.to_line()
        if len(self.unsent) + len(line) > _MOST_UNSENT:
            return False
        self.unsent += line
        return True

    def write(self) -> bool:
        """Send what waits, as far as that goes at once; return whether it is still there."""
        try:
            while self.unsent:
                del self.unsent[: self.link.send(self.unsent)]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def forget(self, number: int) -> None:
        """Wait for a request no longer."""
        self.asked.discard(number)
        self.answers.pop(number, None)
        self.reports.pop(number, None)

    def refuse(self, reason: str, detail: str) -> None:
        """Say why it has to go, if it listens."""
        self.finished = True
        self.say(Refused(reason=reason, detail=detail[:1000]))
        self.write()
