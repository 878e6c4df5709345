"""What looks after a fleet in threads of its own goes on whatever fails, and says so meanwhile."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt", reason="a fleet's server needs the extra 'fleet'")
pytest.importorskip("fastapi", reason="a fleet's server needs the extra 'fleet'")

from tests.brokers import make_broker
from tests.fleet.servers import until

from edgec.fleet.enrolment import BrokerAccess
from edgec.fleet.server._broker import Keeper
from edgec.fleet.server._upkeep import Upkeep
from edgec.fleet.service import Fleet
from edgec.protocol.brokers import Access
from edgec.protocol.certificates import CertificateAuthority


def test_the_broker_is_started_again_once_its_files_can_be_written_again(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls")
    broker = make_broker("nats", tmp_path / "broker", authority=authority)
    keeper = Keeper(broker)
    keeper.start()
    try:
        moved = broker.directory.rename(tmp_path / "unplugged")
        broker.kill()
        until(lambda: "cannot be started again" in (keeper.problem() or ""), "the failure is told")
        moved.rename(broker.directory)
        until(lambda: keeper.restarts == 1 and keeper.problem() is None, "it runs again")
        assert broker.running
    finally:
        keeper.close()


def test_a_revocation_is_told_to_the_broker_once_that_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker("nats", tmp_path / "broker", authority=CertificateAuthority(tmp_path / "tls"))
    failing: list[bool] = []
    told: list[Access] = []

    def allow(access: Access) -> None:
        if failing:
            # What no part of edgec raises: an operating system that has run out of something.
            raise OSError(errno.EMFILE, "too many open files")
        told.append(access)

    monkeypatch.setattr(broker, "allow", allow)
    with Fleet(tmp_path / "fleet") as fleet:
        state = 0
        monkeypatch.setattr(fleet.claims, "state", lambda: (state,))
        access = BrokerAccess(fleet, broker)
        access.start()
        try:
            failing.append(True)
            state = 1
            fleet.wake()
            until(lambda: "too many open files" in (access.problem() or ""), "the failure is told")
            failing.clear()
            fleet.wake()
            until(lambda: len(told) == 2 and access.problem() is None, "the broker is told")
        finally:
            access.close()


def test_the_upkeep_goes_on_after_any_failure(tmp_path: Path) -> None:
    failing, done = [True], []

    def also() -> None:
        if failing:
            raise RuntimeError("a bug in one part")
        done.append(True)

    with Fleet(tmp_path) as fleet:
        upkeep = Upkeep(fleet, also=also, every_s=0.02)
        upkeep.start()
        try:
            until(lambda: "a bug in one part" in (upkeep.problem() or ""), "the failure is told")
            failing.clear()
            until(lambda: done and upkeep.problem() is None, "it goes on")
        finally:
            upkeep.close()
