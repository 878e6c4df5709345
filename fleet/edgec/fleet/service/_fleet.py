"""The one object that broker, API and dashboard are given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgec.errors import EdgecError, FleetError, OutputError
from edgec.fleet.registry import Registry
from edgec.fleet.service._first import (
    FirstStart,
    first_token,
    make_keys,
    make_repositories,
    root_key_files,
)
from edgec.fleet.store import Claims, Store
from edgec.fleet.store._tokens import Tokens
from edgec.trust import KeyRing, open_repositories, read_lifetimes


class Fleet:
    """A fleet, as far as it needs no network: opened from a directory, made there on first use.

    The directory holds ``fleet.db`` (unless the database is elsewhere), ``repo/`` (both repositories and all
    files of artifacts: what devices may read), ``keys/`` (mode 0700), ``tls/`` and ``broker/``. What is made
    on first use is made whole or not at all: after a kill the next start goes on.

    Attributes:
        data_dir: The directory.
        tenant: Whose topics devices use.
        clock: Seconds since 1970.
        store: What is kept.
        tokens: Who may do what over the API.
        claims: What lets devices in, and what they hold since.
        ring: The keys at hand.
        image: Which artifacts there are; changed by whoever holds `publishing`.
        director: Which device runs which.
        registry: Releases.
        publishing: One thread at a time changes the image repository.
        first: What was made by this start; None where nothing was.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        database: str | None = None,
        tenant: str = "default",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open a fleet; make what is missing.

        Args:
            data_dir: Its directory; made if missing.
            database: ``postgresql://user@host/name``; ``fleet.db`` in the directory if None.
            tenant: Whose topics devices use.
            clock: Seconds since 1970.

        Raises:
            FleetError: The database cannot be opened (``reason`` ``database``), or keys or repositories of a
                fleet that is in use are missing (``data``).
            OutputError: The directory cannot be written to.
            TrustError: Keys or repositories are damaged.
            MissingExtraError: PostgreSQL needs the extra ``postgres``.
        """
        self.data_dir = data_dir.absolute()
        self.tenant = tenant
        self.clock = clock
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as e:
            raise OutputError(f"cannot make the directory {data_dir}: {e.strerror}") from e
        self.store = Store(database or self.data_dir / "fleet.db")
        try:
            made = self._open_repositories()
        except EdgecError:
            self.store.close()
            raise
        self.tokens = Tokens(self.store.database)
        self.claims = Claims(self.store.database)
        self.publishing = threading.RLock()
        self.registry = Registry(self.store, self.image, lock=self.publishing)
        self._callbacks: list[Callable[[], None]] = []
        self.first = self._first(made)

    def wake(self) -> None:
        """Something changed: whoever directs devices is to look at once. From any thread."""
        for callback in list(self._callbacks):
            callback()

    def on_wake(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back at each `wake`, from its thread: it must be quick. Return what ends that."""
        self._callbacks.append(callback)

        def forget() -> None:
            with suppress(ValueError):
                self._callbacks.remove(callback)

        return forget

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_repositories(self) -> list[str]:
        keys, repository = self.data_dir / "keys", self.data_dir / "repo"
        missing = [folder for folder in (keys, repository) if not folder.is_dir()]
        if missing and (self.store.audit.entries(limit=1) or missing == [keys]):
            raise FleetError(
                f"{' and '.join(map(str, missing))} cannot be found, and the fleet is in use: restore "
                "the whole directory from a backup; devices believe no other keys",
                "data",
            )
        made = []
        if make_keys(keys):
            made.append(f"signing keys in {keys}")
        self.ring = KeyRing([keys])
        if make_repositories(repository, self.ring, self.clock):
            made.append(f"signed repositories in {repository}")
        self.image, self.director = open_repositories(
            repository, self.ring, lifetimes=read_lifetimes(repository), clock=self.clock
        )
        return made

    def _first(self, made: list[str]) -> FirstStart | None:
        token = first_token(self.tokens, self.clock())
        if token is not None:
            made = [*made, "the first token of role admin"]
        if not made:
            return None
        roots = root_key_files(self.data_dir / "keys")
        advice = []
        if roots:
            advice.append(
                f"move {', '.join(path.name for path in roots)} out of {roots[0].parent} to their holders, "
                "each with a backup: who has two of them can replace every key"
            )
        return FirstStart(made=tuple(made), admin_token=token, advice=tuple(advice))
