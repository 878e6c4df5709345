"""What a device believes of what it hears: only what is signed, and that whatever else is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")
pytest.importorskip("onnx", reason="artifacts are built with onnx, of the extra `compiler`")

from tests.device_agent import poison
from tests.device_agent.fleet_side import DEVICE, HARDWARE, Publisher

from edgec.device_agent._seams import Clock
from edgec.device_agent._wishes import Wishes
from edgec.errors import OutputError
from edgec.protocol import Desired, desired_of
from edgec.trust import DeviceTrust

pytestmark = pytest.mark.slow
PATH = f"digits/digits-1-{HARDWARE}.edgec"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    folder = tmp_path_factory.mktemp("shop")
    publisher = Publisher(folder)
    publisher.publish(poison.artifact(folder / "1.edgec", version="1"))
    return publisher


class Work:
    """Runs what is begun when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], None]] = []

    def run(self) -> None:
        while self.begun:
            self.begun.pop(0)()


def wishes(
    folder: Path, shop: Publisher, work: Work, sources: tuple[str, ...] = (), clock: Clock | None = None
) -> Wishes:
    trust = DeviceTrust(
        folder / "trust",
        device_id=DEVICE,
        hardware=(HARDWARE,),
        image_root=(shop.repo / "image/1.root.json").read_bytes(),
        director_root=(shop.repo / "director/1.root.json").read_bytes(),
    )
    return Wishes(
        trust=trust,
        device=DEVICE,
        sources=sources,
        allow_http=False,
        refresh_s=0,
        path=folder / "desired.json",
        clock=clock or Clock(),
        spawn=work.begun.append,
    )


def wanted(shop: Publisher, models: dict[str, str]) -> Desired:
    return desired_of(shop.open()[1].assign(DEVICE, models))


def forged(desired: Desired, epoch: int) -> Desired:
    """Return a message whose metadata nobody has signed."""
    assert desired.metadata is not None
    director = {name: text.replace('"version":', '"version" :').replace("digits", "digitz")
                for name, text in desired.metadata.director.items()}  # fmt: skip
    return replace(desired, epoch=epoch, metadata=replace(desired.metadata, director=director))


def believed(wishes: Wishes, work: Work) -> list[int]:
    """Return epochs of what is believed, until nothing is left to be checked."""
    epochs = []
    for _ in range(20):
        epochs += [o.assignment.epoch for o in wishes.turn() if o.assignment is not None]
        work.run()
    return epochs


def test_a_forged_epoch_that_waits_does_not_put_the_signed_one_aside(tmp_path: Path, shop: Publisher) -> None:
    work = Work()
    device = wishes(tmp_path, shop, work)
    honest = wanted(shop, {"digits": PATH})
    assert device.hear(forged(honest, 2**50), retained=False)
    assert device.hear(honest, retained=True)
    assert believed(device, work) == [honest.epoch]
    assert device.epoch == honest.epoch
    assert set(device.targets) == {"digits"}
    # And after it, too.
    assert device.hear(forged(honest, 2**50), retained=False)
    assert set(believed(device, work)) <= {honest.epoch}
    assert device.error is not None
    assert set(device.targets) == {"digits"}


def test_what_is_signed_at_a_source_is_believed_whatever_was_announced(
    tmp_path: Path, shop: Publisher
) -> None:
    work = Work()
    device = wishes(tmp_path, shop, work, (str(shop.repo),))
    honest = wanted(shop, {"digits": PATH})
    device.hear(forged(honest, 2**50), retained=False)
    assert believed(device, work) == [honest.epoch]
    assert device.error is not None
    assert device.error.reason == "epoch"


def test_a_flood_of_forged_messages_leaves_room_for_the_last(tmp_path: Path, shop: Publisher) -> None:
    work = Work()
    device = wishes(tmp_path, shop, work)
    honest = wanted(shop, {"digits": PATH})
    for i in range(100):
        device.hear(forged(honest, 2**50 + i), retained=False)
    device.hear(honest, retained=True)
    assert honest.epoch in believed(device, work)


def test_of_two_signed_messages_that_come_in_the_wrong_order_the_later_one_holds(
    tmp_path: Path, shop: Publisher
) -> None:
    work = Work()
    device = wishes(tmp_path, shop, work)
    first, second = wanted(shop, {}), wanted(shop, {"digits": PATH})
    device.hear(second, retained=False)
    device.hear(first, retained=True)
    assert believed(device, work) == [second.epoch]
    assert set(device.targets) == {"digits"}


def test_row_16_what_could_not_be_kept_is_checked_again_when_there_may_be_space(
    tmp_path: Path, shop: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    work = Work()
    device = wishes(tmp_path, shop, work, clock=Clock(monotonic=lambda: now[0]))
    honest = wanted(shop, {"digits": PATH})
    with monkeypatch.context() as full:
        full.setattr("edgec.trust._state.write_document", _full)
        device.hear(honest, retained=False)
        assert believed(device, work) == []
        assert device.error is not None
        assert device.error.reason == "storage"
    assert believed(device, work) == []
    now[0] = 31.0
    assert believed(device, work) == [honest.epoch]
    assert device.error is None
    now[0] = 1e6
    assert believed(device, work) == []


def _full(path: Path, content: object) -> None:
    raise OutputError(f"cannot write {path}: the disk is full")
