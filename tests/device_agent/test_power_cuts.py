"""What outbox and trust have promised holds after a power cut, whatever of the rest the disk has kept."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from tests.device_agent.kill_driver import MEMORY
from tests.device_agent.traced_cuts import Cut, can_trace, run
from tests.trust.simulator import DEVICE, Publisher, make_publisher, path_of, refused

from edgec.device_agent import Outbox
from edgec.errors import TrustError
from edgec.trust import sign_command

Case = tuple[list[str], Callable[[Path, Cut], None]]
_SENDS = """
import sys
from pathlib import Path
from tests.device_agent.traced_cuts import promise
from edgec.device_agent import Outbox, Priority

for boot, first in (("b", 0), ("c", 8)):
    with Outbox(Path(sys.argv[-1], "outbox.db"), boot_id=boot, clock=lambda: 1.0) as outbox:
        for n in range(first, first + 8):
            outbox.put("event", Priority.EVENT, b"%d " % n + bytes(n * 397 % 5_000))
            promise(f"put {n}")
            if n % 4 == 3:
                records = outbox.take(max_records=3)
                promise("sent " + " ".join(r.payload.split(b" ")[0].decode() for r in records))
                outbox.ack(records[-1].boot_id, records[-1].seq)
"""
_BELIEVES = """
import json, sys
from pathlib import Path
from tests.device_agent.traced_cuts import promise
from tests.trust.simulator import Publisher

folder = Path(sys.argv[1])
device = Publisher(folder).device(Path(sys.argv[-1]))
for name in ("first", "second"):
    files = json.loads((folder / f"{name}.json").read_text())
    epoch = device.update({name: text.encode() for name, text in files.items()}).epoch
    promise(f"epoch {epoch}")
    device.verify_command((folder / f"{name}.order").read_bytes())
    promise(f"obeyed {name}")
"""


def outbox_case(root: Path) -> Case:
    """Records of two starts, some of them acknowledged."""

    def check(left: Path, cut: Cut) -> None:
        said = [words.split() for words in cut.promises]
        put = {words[1] for words in said if words[0] == "put"}
        sent = {number for words in said if words[0] == "sent" for number in words[1:]}
        with Outbox(left / "outbox.db", boot_id="after", clock=lambda: 1.0) as outbox:
            there = set()
            while records := outbox.take(max_records=100, max_bytes=2**30):
                there |= {record.payload.split(b" ")[0].decode() for record in records}
            assert put <= there | sent, f"lost: {put - there - sent}"
            assert not outbox.state().losses
        assert not (left / "outbox.db.corrupt").exists()

    return [sys.executable, "-c", _SENDS], check


def trust_case(root: Path) -> Case:
    """Two assignments that are believed, and a command after each."""
    publisher = make_publisher(root / "publisher")
    for name, version in (("first", "1"), ("second", "2")):
        bundle = publisher.director.assign(DEVICE, {"tiny": path_of(version)})
        texts = {file: data.decode() for file, data in bundle.metadata.items()}
        (publisher.folder / f"{name}.json").write_text(json.dumps(texts))
        order = sign_command(
            publisher.signers("director"), "logs", device=DEVICE, issued_at=publisher.clock(), command_id=name
        )
        (publisher.folder / f"{name}.order").write_bytes(order)

    def check(left: Path, cut: Cut) -> None:
        _holds(publisher, left, cut.promises)

    return [sys.executable, "-c", _BELIEVES, str(publisher.folder)], check


def _holds(publisher: Publisher, left: Path, promises: tuple[str, ...]) -> None:
    device = publisher.device(left)
    believed = max((int(words.split()[1]) for words in promises if words.startswith("epoch")), default=0)
    assert device.epoch >= believed, f"epoch {device.epoch} after {believed}"
    first, second = (
        {name: text.encode() for name, text in json.loads(file.read_text()).items()}
        for file in (publisher.folder / "first.json", publisher.folder / "second.json")
    )
    if device.epoch == 2:
        refused(device, first, "epoch", "rollback")
    assert device.update(second).epoch == 2
    for name in ("first", "second"):
        order = (publisher.folder / f"{name}.order").read_bytes()
        if f"obeyed {name}" in promises:
            with pytest.raises(TrustError) as caught:
                device.verify_command(order)
            assert caught.value.reason == "replay"


CASES = {"outbox": outbox_case, "trust": trust_case}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_row_01_what_was_promised_holds_after_a_power_cut(name: str) -> None:
    if not can_trace():
        pytest.skip("strace is not installed, or may not trace here")
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        work, check = CASES[name](Path(directory))
        there, tried = run(work, Path(directory), check, replays=100, seed=1)
    assert tried == 100
    assert there > 150
