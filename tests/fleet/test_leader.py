"""Who leads on PostgreSQL goes on leading over a network that forgets connections, or falls silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("psycopg", reason="PostgreSQL needs the extra 'postgres'")

from tests.fleet.databases import make_database
from tests.fleet.servers import until

from edgec.errors import FleetError
from edgec.fleet.server._leader import Leader

pytestmark = pytest.mark.slow


class Network:
    """Between a leader and a database; it forgets connections on one side only, or is silent."""

    def __init__(self, url: str) -> None:
        before, _, after = url.rpartition(":")
        port, _, name = after.partition("/")
        self._port = int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{before}:{self._listener.getsockname()[1]}/{name}"
        self.audible = threading.Event()
        self.audible.set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """End what there is, as the leader sees it; the database hears nothing of that."""
        for near, _ in self._pairs:
            near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.audible.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._port))
                self._pairs.append((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.audible.wait()
                sink.sendall(data)


@pytest.fixture
def network(postgresql: str) -> Iterator[Network]:
    with closing(Network(make_database(postgresql))) as made:
        yield made


def test_a_connection_that_only_the_database_has_left_is_no_rival(network: Network) -> None:
    with closing(Leader(network.url, every_s=0.05)) as leader:
        before = leader.pid
        network.forget()
        until(lambda: leader.pid != before or leader.lost is not None, "it looks")
        assert leader.lost is None
        until(lambda: leader.problem() is None, "it leads")
        with pytest.raises(FleetError, match=r"another server .*pg_terminate_backend\(\d+\)"):
            Leader(network.url, patience_s=0.0)


def test_a_silent_network_is_told_of_and_keeps_nobody(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgec.fleet.server._leader._SILENCE_S", 0.5)
    monkeypatch.setattr("edgec.fleet.server._leader._JOIN_S", 0.5)
    leader = Leader(network.url, every_s=0.05)
    network.audible.clear()
    until(lambda: "has not answered for" in str(leader.problem()), "health tells of it")
    closing_it = threading.Thread(target=leader.close, daemon=True)
    closing_it.start()
    closing_it.join(60)
    assert not closing_it.is_alive()
