"""Tokens, and replies under idempotency keys, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cryptography", reason="the store needs the extra 'fleet'")

from sqlalchemy import text

from edgec.errors import FleetError
from edgec.fleet.store import Store
from edgec.fleet.store._replies import Replies, Reply
from edgec.fleet.store._tokens import Tokens

NOW = 1.75e9
pytestmark = pytest.mark.slow


def begin(
    replies: Replies, key: str = "k", *, request: str = "r", secret: str = "s", at: float = NOW
) -> Reply | None:
    return replies.begin("t", secret, key, request, now=at, kept_s=3600)


def test_a_token_is_found_by_what_it_is_as_long_as_it_is_in_force(store: Store) -> None:
    tokens = Tokens(store.database)
    made, secret = tokens.create("ann", "operator", now=NOW, actor="test", expires_at=NOW + 100)
    assert tokens.find(secret, NOW + 1) == made
    assert [t.used_at for t in tokens.all()] == [NOW + 1]
    tokens.find(secret, NOW + 2)
    assert [t.used_at for t in tokens.all()] == [NOW + 1], "once a minute is enough"
    for wrong in (secret[:-1], secret.upper(), made.id, "", "\0", "\ud800"):
        assert tokens.find(wrong, NOW) is None
    assert tokens.find(secret, NOW + 100) is None
    assert (made.allows("viewer"), made.allows("operator"), made.allows("releaser")) == (True, True, False)


def test_a_token_ends_when_it_is_taken_back_but_never_the_last_of_an_admin(store: Store) -> None:
    tokens = Tokens(store.database)
    first, secret = tokens.create("ann", "admin", now=NOW, actor="test")
    tokens.create("bob", "admin", now=NOW, actor="test", expires_at=NOW + 100)
    with pytest.raises(FleetError, match="last token of an admin") as refused:
        tokens.revoke(first.id, now=NOW, actor="test")
    assert refused.value.reason == "refused"
    tokens.create("eve", "admin", now=NOW, actor="test")
    assert tokens.revoke(first.id, now=NOW + 1, actor="test").revoked_at == NOW + 1
    assert tokens.revoke(first.id, now=NOW + 2, actor="test").revoked_at == NOW + 1
    assert tokens.find(secret, NOW + 3) is None
    with pytest.raises(FleetError, match="there is no token"):
        tokens.revoke("none", now=NOW, actor="test")
    with pytest.raises(FleetError, match=r"expected a role.*expected a name.*expected an end"):
        tokens.create("", "king", now=NOW, actor="test", expires_at=NOW)
    actions = [(e.action, e.subject) for e in store.audit.entries()]
    assert actions.count(("token.revoke", first.id)) == 1
    store.audit.verify()


def test_no_two_tokens_in_force_have_one_name(store: Store) -> None:
    tokens = Tokens(store.database)
    first, secret = tokens.create("ann", "admin", now=NOW, actor="test")
    brief, _ = tokens.create("ci", "viewer", now=NOW, actor="test", expires_at=NOW + 100)
    with pytest.raises(FleetError, match=f"token {first.id} in force is named 'ann'") as refused:
        tokens.create("ann", "viewer", now=NOW, actor="test")
    assert refused.value.reason == "conflict"
    with pytest.raises(FleetError, match=f"revoke {brief.id} first"):
        tokens.create("ci", "viewer", now=NOW + 99, actor="test")
    # One that has ended, or was taken back, is no other any more.
    again, _ = tokens.create("ci", "viewer", now=NOW + 100, actor="test")
    tokens.revoke(again.id, now=NOW + 101, actor="test")
    tokens.create("ci", "viewer", now=NOW + 102, actor="test")
    assert tokens.create("ann", "admin", now=NOW, actor="test", instead_of=[first.id])[0].id != first.id
    assert tokens.find(secret, NOW) is None
    store.audit.verify()


def test_a_reply_is_kept_with_its_work_or_not_at_all(store: Store) -> None:
    replies = Replies(store.database)

    def break_off() -> None:
        with store.database.together():
            assert begin(replies) is None
            store.devices.set_group("lab", "site=lab", now=NOW, actor="test")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert store.devices.groups() == {}
    with store.database.together():
        assert begin(replies) is None
        store.devices.set_group("lab", "site=lab", now=NOW, actor="test")
        assert store.devices.groups() == {"lab": "site=lab"}, "it sees what it has written"
        replies.keep("t", "s", "k", "r", Reply(status=201, body=b"made"))
    assert store.devices.groups() == {"lab": "site=lab"}
    assert begin(replies) == Reply(status=201, body=b"made")


def test_a_key_is_for_one_request_of_one_token(store: Store) -> None:
    replies = Replies(store.database)
    begin(replies)
    replies.keep("t", "s", "k", "r", Reply(status=200, body=b"x"))
    with pytest.raises(FleetError, match="another request"):
        begin(replies, request="other")
    with pytest.raises(FleetError, match="damaged"):
        begin(replies, secret="other")
    assert replies.begin("another", "s", "k", "r", now=NOW, kept_s=3600) is None
    assert begin(replies, at=NOW + 3601) is None, "it was forgotten"


def test_what_may_not_be_done_again_is_refused_until_it_is_known(store: Store) -> None:
    replies = Replies(store.database)
    once: Callable[[], Reply | None] = lambda: replies.begin(  # noqa: E731
        "t", "s", "k", "r", now=NOW, kept_s=3600, again=False
    )
    assert once() is None
    with pytest.raises(FleetError, match="not known"):
        once()
    replies.forget("t", "k")
    assert once() is None
    replies.keep("t", "s", "k", "r", Reply(status=200, body=b"done"))
    replies.forget("t", "k")
    assert once() == Reply(status=200, body=b"done")


def test_of_the_same_request_at_once_one_is_carried_out(store: Store) -> None:
    replies = Replies(store.database)
    begun = threading.Barrier(6)
    found: list[bytes] = []

    def ask(number: int) -> None:
        begun.wait(60)
        with store.database.together():
            reply = begin(replies)
            if reply is None:
                reply = Reply(status=200, body=f"by {number}".encode())
                store.audit.add(NOW, "test", "work", str(number), {})
                replies.keep("t", "s", "k", "r", reply)
        found.append(reply.body)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert [e.action for e in store.audit.entries()] == ["work"]


@pytest.fixture
def shared(postgresql: str) -> Iterator[Store]:
    """A store whose writers are several at once."""
    from tests.fleet.databases import make_database

    opened = Store(make_database(postgresql))
    yield opened
    opened.close()


def beside(store: Store, first: Callable[[], object], second: Callable[[], object]) -> list[object]:
    """Do the second while the first is done and not committed; return what each returned, or raised."""
    found: list[object] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            found.append(work())
        except FleetError as e:
            found.append(e.reason)

    other = threading.Thread(target=attempt, args=(second,))
    waits = text(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with store.database.together():
        attempt(first)
        other.start()
        end = time.monotonic() + 60
        while other.is_alive() and time.monotonic() < end:
            with store.database.engine.connect() as connection:
                if connection.execute(waits).first():
                    break
            other.join(0.02)
    other.join(60)
    return found


def test_what_may_not_be_done_twice_is_begun_once_by_two_at_once(shared: Store) -> None:
    replies = Replies(shared.database)
    once: Callable[[], object] = lambda: replies.begin(  # noqa: E731
        "t", "s", "k", "r", now=NOW, kept_s=3600, again=False
    )
    assert beside(shared, once, once) == [None, "conflict"]


def test_a_name_is_given_once_by_two_at_once(shared: Store) -> None:
    tokens = Tokens(shared.database)
    tokens.create("ann", "admin", now=NOW, actor="test")
    make: Callable[[], object] = lambda: tokens.create("ci", "viewer", now=NOW, actor="test")[0].name  # noqa: E731
    assert beside(shared, make, make) == ["ci", "conflict"]
    assert [token.name for token in tokens.all()].count("ci") == 1


def test_one_of_two_admins_who_revoke_each_other_at_once_remains(shared: Store) -> None:
    tokens = Tokens(shared.database)
    ann, bob = (tokens.create(name, "admin", now=NOW, actor="test")[0] for name in ("ann", "bob"))
    found = beside(
        shared,
        lambda: tokens.revoke(bob.id, now=NOW, actor="ann").name,
        lambda: tokens.revoke(ann.id, now=NOW, actor="bob").name,
    )
    assert found == ["bob", "refused"]
    assert [token.name for token in tokens.all() if token.revoked_at is None] == ["ann"]
