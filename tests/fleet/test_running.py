"""What devices run is counted, and of a fleet where little changes little is read."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the API needs the extra 'fleet'")
pytest.importorskip("tuf", reason="a fleet needs the extra 'fleet'")

from starlette.testclient import TestClient
from tests.fleet.served import artifact, enrol, reports, token, upload

from edgec.fleet.api import create_app
from edgec.fleet.service import Fleet
from edgec.fleet.store import RunningCount


@pytest.mark.slow
def test_only_devices_that_have_changed_are_read(url: str, tmp_path: Path) -> None:
    with Fleet(tmp_path / "fleet", database=url) as fleet:
        one, two = (upload(fleet, artifact(tmp_path, version)) for version in "12")
        enrol(fleet, *(f"d{i}" for i in range(8)))
        for i in range(8):
            reports(fleet, f"d{i}", one)
        count = RunningCount(fleet.store.database)
        assert [(r.digest, r.model, r.devices, r.quarantined) for r in count.look()] == [
            (one, "kws", 8, False)
        ]
        assert (count.look(), count.read) == (count.look(), 8)
        reports(fleet, "d1", two, seq=2)
        # What no registry has is not counted, whatever a device says.
        reports(fleet, "d2", "f" * 64, seq=2)
        fleet.store.devices.revoke("d3", now=fleet.clock(), actor="ann")
        fleet.store.rollouts.quarantine(two, now=fleet.clock(), actor="ann", reason="bad")
        found = {r.digest: (r.devices, r.quarantined) for r in count.look()}
        assert found == {one: (5, False), two: (1, True)}
        assert count.read == 10
        with TestClient(
            create_app(fleet), headers={"Authorization": f"Bearer {token(fleet, 'viewer')}"}
        ) as client:
            reply = client.get("/api/v1/running")
            assert {item["digest"]: item["devices"] for item in reply.json()} == {one: 5, two: 1}
            again = client.get("/api/v1/running", headers={"If-None-Match": reply.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
