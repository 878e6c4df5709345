"""Sessions that run what the agent of this device has installed, and change when it does."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from edgec.errors import InferenceError, LinkError, ProtocolError, UnknownModelError
from edgec.runtime._agent_socket import AgentSocket, agent_users
from edgec.runtime._follower import Follower
from edgec.runtime._link_messages import Hello, plain_text
from edgec.runtime._model_directory import InstalledFile, ModelDirectory
from edgec.runtime._session import Session, load

if TYPE_CHECKING:
    from edgec.runtime._observer import ObserveOptions, Observer

DIRECTORY = "/var/lib/edgec/models"
SOCKET = "/var/lib/edgec/agent.sock"
_LOOK_S = 0.2


def follow(
    model: str,
    *,
    directory: str | Path = DIRECTORY,
    socket: str | Path | None = SOCKET,
    loader: Callable[[Path], Session] | None = None,
    name: str = "",
    wait_s: float = 0.0,
    poll_s: float = 1.0,
    observe: ObserveOptions | bool = True,
    drain_s: float = 10.0,
) -> FollowedSession:
    """Load what the agent of this device has installed of a model, and change to what it installs later.

    Calls go on all the while: a swap drops none. Where the agent does not run, what it has installed is run
    all the same, and it is found again when it comes back. With it, this application takes part in updates:
    candidates see a sample of its calls, and what is observed of its calls decides whether an update stays.
    A process that ends without `close`, or by an error out of its ``with``, counts as a crash.

    Args:
        model: Its name on this device.
        directory: The agent's directory of models.
        socket: On which the agent listens; None to follow by the directory alone.
        loader: How artifacts are loaded: ``partial(load, threads=2)``; None for `load`.
        name: Of this application, for people.
        wait_s: How long to wait for a first artifact.
        poll_s: How often to look into the directory while the agent does not answer.
        observe: What to look at, and what that may cost; False for nothing, and the agent hears no figures.
        drain_s: As of ``Session.swap``.

    Raises:
        UnknownModelError: Nothing is installed of the model, and nothing came within `wait_s`.
        ArtifactError: What is installed cannot be read.
        EdgecError: As of `load`.
        ValueError: That is no name of a model, or `poll_s` is not above 0.
    """
    if not poll_s > 0:
        raise ValueError(f"expected to look every so many seconds, above 0, got {poll_s}")
    loader = load if loader is None else loader
    there = ModelDirectory(directory, model)
    installed = _first(there, wait_s)
    link = None if socket is None else _greet(socket, there, installed, name)
    try:
        session = FollowedSession(loader(installed.path))
    except BaseException:
        # Without a goodbye: an artifact that cannot be loaded here counts like one that crashes.
        if link is not None:
            link.close()
        raise
    if observe is not False:
        session.begin_to_observe(None if observe is True else observe)
    follower = Follower(
        session, there, installed, None if socket is None else Path(socket),
        loader=loader, name=name, poll_s=poll_s, drain_s=drain_s,
    )  # fmt: skip
    session.be_followed(follower)
    follower.start(link)
    return session


def _first(there: ModelDirectory, wait_s: float) -> InstalledFile:
    end = monotonic() + wait_s
    while (found := there.current()) is None:
        if monotonic() >= end:
            raise UnknownModelError(
                f"nothing is installed of {there.model} in {there.path.parent}: see  edgec agent status"
            )
        Event().wait(_LOOK_S)
    return found


def _greet(
    path: str | Path, there: ModelDirectory, installed: InstalledFile, name: str
) -> AgentSocket | None:
    """Tell the agent what is about to be loaded, so that it learns of a crash while it is."""
    digest = installed.digest
    try:
        link = AgentSocket(path, agent_users(there.path.parent))
        link.send(Hello(model=there.model, digest=digest, held=(digest,), name=plain_text(name)))
    except (LinkError, ProtocolError):
        return None
    return link


class FollowedSession(Session):
    """A session that changes to what the agent installs; made by `follow`.

    It is used like any other. `swap` is the agent's, and refused; so is another observer: what is observed is
    in ``observer.total()``.
    """

    def __init__(self, loaded: Session) -> None:
        """Use `follow`."""
        # It becomes what was loaded, options included; nobody else has that session.
        vars(self).update(vars(loaded))
        self._follower: Follower | None = None

    @property
    def digest(self) -> str:
        """SHA-256 in hex of the file that runs, as the agent names it."""
        return self._opened().installed.digest

    @property
    def linked(self) -> bool:
        """Whether the agent answers; without it, the directory is followed."""
        return self._opened().linked

    @property
    def problem(self) -> str:
        """Why it does not run what is installed; empty where it does."""
        return self._opened().problem

    def observe(self, options: ObserveOptions | None = None) -> Observer:
        """Refuse: the agent's observer is there already.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a followed session is observed already: read session.observer.total()")

    def swap(self, path: str | Path, *, drain_s: float = 10.0) -> None:
        """Refuse: the agent decides what it runs.

        Raises:
            ValueError: Always.
        """
        raise ValueError("a followed session runs what the agent has installed: load() another one to swap")

    def begin_to_observe(self, options: ObserveOptions | None) -> None:
        """Observe, for `follow`."""
        super().observe(options)

    def be_followed(self, follower: Follower) -> None:
        """Take what keeps it up to date, for `follow`."""
        self._follower = follower
        atexit.register(self._at_exit)

    def close(self) -> None:
        """Say goodbye to the agent, and free the model; calling it again does nothing."""
        self._end(goodbye=True)

    def __enter__(self) -> FollowedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        crashed = kind is not None and issubclass(kind, Exception)
        self._end(goodbye=not crashed)

    def _at_exit(self) -> None:
        # The interpreter sets this for an error that nobody caught.
        self._end(goodbye=getattr(sys, "last_value", None) is None)

    def _end(self, *, goodbye: bool) -> None:
        if self._follower is not None:
            self._follower.stop(goodbye=goodbye)
            atexit.unregister(self._at_exit)
        super().close()

    def _opened(self) -> Follower:
        if self._follower is None:
            raise InferenceError("the session follows nobody: make it by follow()")
        return self._follower
