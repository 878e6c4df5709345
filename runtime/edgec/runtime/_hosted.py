"""The models of a host: what is known of each, and those that are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.runtime._memory import give_back_memory

if TYPE_CHECKING:
    from edgec.runtime._observer import ObserveOptions, Observer
    from edgec.runtime._session import Session

_FIRST_CALLS = 3  # that an engine allocates in what it keeps


@dataclass(frozen=True, kw_only=True)
class HostedModel:
    """A model of a host.

    Attributes:
        name: That it is called by.
        version: Of it.
        path: Of its artifact.
        default: Whether calls that name no version go to it.
        loaded: Whether it is in memory.
        memory_bytes: What it takes there, or took last: how much the process grew while it was loaded, at
            least the size of its artifact, and in its first calls by `Host.run` that nothing ran beside. It
            is measured anew whenever the model is loaded.
    """

    name: str
    version: str
    path: Path
    default: bool
    loaded: bool
    memory_bytes: int


class Loaded:
    """A model in memory, and how many use it; closed when it is retired and nobody does."""

    __slots__ = ("calls", "first_calls", "retired", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls = 0
        self.first_calls = _FIRST_CALLS  # that are to come
        self.retired = False


class Entry:
    """A model of a host, loaded or not. What is in it changes under the host's lock only."""

    __slots__ = (
        *("loaded", "memory", "name", "observer", "path", "removed", "size", "too_large", "used"),
        "version",
    )

    def __init__(self, name: str, version: str, path: Path, size: int) -> None:
        self.name = name
        self.version = version
        self.path = path
        self.size = self.memory = size
        self.too_large = 0  # times in a row that it was measured so
        self.loaded: Loaded | None = None
        self.observer: Observer | None = None
        self.used = 0
        self.removed = False


def retire(entry: Entry) -> Session | None:
    """Take a model from its entry, under the host's lock; return the session if nobody uses it any more."""
    loaded, entry.loaded = entry.loaded, None
    if loaded is None:
        return None
    loaded.retired = True
    return None if loaded.calls else loaded.session


def observed(session: Session, before: Observer | None, options: ObserveOptions) -> Observer:
    """Go on with the observer that a model had when it was loaded before."""
    if before is None:
        return session.observe(options)
    session.set_observer(before)
    return before


def end(session: Session | None) -> None:
    """Close a session, if there is one, and give its memory back."""
    if session is not None:
        session.close()
        del session
        give_back_memory()
