"""The page of a rollout: whom it counts, who ended it, and what it says of devices that never got it."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the dashboard needs the extra 'fleet'")
pytest.importorskip("itsdangerous", reason="the dashboard needs the extra 'fleet'")

import httpx2
from tests.fleet.dashboard_scene import MODEL, Clock, Scene, Ways
from tests.fleet.served import serving, token

from edgec.fleet.api import create_app
from edgec.fleet.dashboard import mount
from edgec.fleet.rollouts import Begin
from edgec.fleet.service import Fleet
from edgec.protocol import Presence

pytestmark = pytest.mark.slow


class Pages:
    """A fleet of 20 devices with a release, and the words of its pages."""

    def __init__(self, scene: Scene, client: httpx2.Client) -> None:
        self.scene, self.client = scene, client

    def words(self, page: str) -> str:
        """Return what a person reads on a page, spaces as one."""
        answer = self.client.get(page)
        assert answer.status_code == 200
        bare = re.sub(r"<[^>]*>", " ", answer.text.partition("<main")[2])
        return re.sub(r"\s+([,.:;])", r"\1", " ".join(html.unescape(bare).split()))

    def order(self, rollout: str, word: str, reason: str = "") -> None:
        """Give an order in the name of Ann."""
        rollouts = self.scene.fleet.store.rollouts
        rollouts.order(rollout, word, now=self.scene.clock(), actor="ann", reason=reason)

    def begun(self, rollout: str) -> list[Begin]:
        """Return how its stages began: what the API and the CLI tell of them."""
        found = self.scene.fleet.store.rollouts.decisions(rollout)
        return [entry.decision for entry in found if isinstance(entry.decision, Begin)]


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[Pages]:
    clock = Clock()
    with Fleet(tmp_path / "fleet", clock=clock) as fleet:
        scene = Scene(fleet, clock, tmp_path)
        scene.join(20)
        scene.release("1.0.0")
        app = create_app(fleet)
        mount(app, fleet)
        with serving(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
            client.post("/login", data={"token": token(fleet, "viewer")})
            yield Pages(scene, client)


def clone(scene: Scene, device: str) -> None:
    """Let a second machine come with the identity of a device, and the first one again."""
    for boot, epoch in (("other", 1), (f"boot-{device}", 1), ("other", 1)):
        told = Presence(
            online=True, boot_epoch=epoch, boot_id=boot, connection=2, agent="edgec 0", sent_at=scene.clock()
        )
        scene.fleet.store.devices.heard(device, told, scene.clock())


def test_who_is_given_nothing_is_counted_by_no_page_and_no_stage(pages: Pages) -> None:
    clone(pages.scene, "cam-007")
    assert pages.scene.fleet.store.devices.get("cam-007").fenced
    ident = pages.scene.roll_out("all", "1.0.0", soak_s=900, least_devices=100)
    pages.scene.fleet.store.rollouts.tick(ident, pages.scene.clock())
    assert pages.begun(ident)[0].eligible == 19
    said = pages.words(f"/rollouts/{ident}")
    counted = [int(n) for n in re.findall(r"% (\d+) devices?", said)]
    assert counted[0] == pages.begun(ident)[0].devices
    assert sum(counted) == 19


def test_who_joins_late_is_told_of_where_it_counts_and_left_out_where_it_gets_nothing(pages: Pages) -> None:
    scene = pages.scene
    ident = scene.roll_out("late", "1.0.0", soak_s=900, least_devices=15)
    scene.fleet.store.rollouts.tick(ident, scene.clock())
    begun = pages.begun(ident)[0]
    assert (begun.devices, begun.eligible) == (15, 20)
    scene.clock.now += 60
    scene.join(20, prefix="new")
    said = pages.words(f"/rollouts/{ident}")
    joined = re.search(r"1 % (\d+) devices, (\d+) joined after it began", said)
    assert joined
    assert int(joined[1]) - int(joined[2]) == 15
    assert f"{40 - int(joined[1])} not yet" in said
    pages.order(ident, "abort", "lunch")
    scene.clock.now += 60
    scene.join(20, prefix="newer")
    end = time.monotonic() + 60
    # What a page says may be a second old.
    while "by ann" not in (after := pages.words(f"/rollouts/{ident}").partition("The gate")[0]):
        assert time.monotonic() < end, after
        time.sleep(0.2)
    assert f"1 % {joined[1]} devices" in after
    assert sum(int(n) for n in re.findall(r"% (\d+) devices?", after)) == 40


@pytest.mark.parametrize(
    ("word", "did", "ended"),
    [
        ("undo", "undone", "Devices went back to what they had."),
        ("abort", "aborted", "What was installed stays."),
    ],
)
def test_who_ended_a_rollout_is_told_with_their_own_words(
    pages: Pages, word: str, did: str, ended: str
) -> None:
    scene = pages.scene
    ident = scene.roll_out("one", "1.0.0", soak_s=36000, least_devices=8)
    scene.go_on(ident, most_hours=0.5)
    pages.order(ident, word, "Bad classes, in the Hall")
    scene.clock.now += 3600
    scene.go_on(ident, most_hours=0.5)
    said = pages.words(f"/rollouts/{ident}")
    since = re.search(
        rf"{did} {did.capitalize()} by ann (\d+ min) ago: Bad classes, in the Hall\. {ended}", said
    )
    assert since, said[:600]
    assert f"{did} by ann {since[1]} ago, began" in said
    assert "stopped by" not in said
    assert "never begun" in said
    assert f"{20 - pages.begun(ident)[0].devices} never got it" in said
    assert "not yet" not in said
    assert "Bad classes, in the Hall" in pages.words("/rollouts")


def test_what_the_gate_stopped_is_told_as_that(pages: Pages) -> None:
    scene = pages.scene
    scene.ways["1.1.0"] = Ways(errors=0.3, slower=4)
    assert scene.go_on(scene.roll_out("first", "1.0.0", soak_s=900)) == "finished"
    for _ in range(3):
        scene.work(3600)
    scene.release("1.1.0")
    ident = scene.roll_out("bad", "1.1.0", least_devices=8)
    assert scene.go_on(ident) == "undone"
    said = pages.words(f"/rollouts/{ident}")
    assert re.search(r"Stopped by the gate \d+ min ago: [^.]*failed calls", said), said[:600]
    assert re.search(r"stopped by the gate \d+ min ago, began", said)


def test_a_rollout_of_what_was_quarantined_says_so(pages: Pages) -> None:
    scene = pages.scene
    ident = scene.roll_out("one", "1.0.0", soak_s=36000, least_devices=8)
    scene.go_on(ident, most_hours=0.5)
    digest = scene.fleet.registry.release(MODEL, "1.0.0")[0].sha256
    store = scene.fleet.store.rollouts
    store.quarantine(digest, now=scene.clock(), actor="ann", reason="a leak")
    store.tick(ident, scene.clock())
    assert re.search(
        rf"Stopped (just now|\d+ \w+ ago): {digest[:12]} was quarantined", pages.words(f"/rollouts/{ident}")
    )
