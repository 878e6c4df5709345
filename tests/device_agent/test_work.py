"""Work of updates over a trust that is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from tests.trust.simulator import Publisher, make_publisher

from edgec.device_agent._actions import Context
from edgec.device_agent._config import UpdateSettings
from edgec.device_agent._events import Work
from edgec.device_agent._seams import Clock
from edgec.device_agent._state import Wanted
from edgec.device_agent._work import AgentActions
from edgec.trust import DeviceTrust


def actions(folder: Path, trust: DeviceTrust, asked: list[str], **more: Any) -> AgentActions:
    def metadata() -> list[Path]:
        asked.append("metadata")
        return []

    return AgentActions(
        folder / "models", settings=UpdateSettings(), clock=Clock(), trust=trust,
        target=lambda model: trust.known().target(model), files=lambda place: [], chunks=None,
        metadata=metadata, applications=[], tap=lambda model: pytest.fail("no window is looked at"),
        report=lambda model, report: None, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return make_publisher(tmp_path_factory.mktemp("publisher"))


def work(wanted: Wanted) -> Work:
    return Work(
        number=1, name="confirm", model="tiny", wanted=wanted, slot="a", reuse=False, active=None,
        fallback=None, keep=(),
    )  # fmt: skip


def test_sources_are_asked_again_unless_the_order_was_signed_a_moment_ago(
    publisher: Publisher, tmp_path: Path
) -> None:
    trust = publisher.device(tmp_path / "trust")
    (target,) = trust.update(publisher.repo).targets
    asked: list[str] = []
    does = actions(tmp_path, trust, asked)
    confirm = work(Wanted(epoch=1, digest=target.sha256, length=target.length, target=target.path))
    does.confirm(confirm, Context())
    assert asked == []
    publisher.clock.now += 61
    does.confirm(confirm, Context())
    assert asked == ["metadata"]
