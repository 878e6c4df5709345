"""The outbox: durable, bounded, truthful about what it lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import MAX_RECORD_BYTES, OutboxRecord, Priority
from edgec.errors import AgentError, ProtocolError
from edgec.protocol._losses import LOSS_KIND, decode_losses

HOUR = 3600.0
SMALL = MAX_RECORD_BYTES + 128


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is such a place: these tests are about what is written, not when."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="edgec-outbox-") as directory:
        yield Path(directory)


def drain(outbox: Outbox, *, acknowledge: bool = True) -> list[OutboxRecord]:
    """Take all there is, in batches, as a sender does."""
    found: list[OutboxRecord] = []
    while records := outbox.take(max_records=50):
        found += records
        if acknowledge:
            outbox.ack(records[-1].boot_id, records[-1].seq)
    return found


def lost(outbox: Outbox) -> dict[tuple[str, str], int]:
    """Return the records lost, by kind and reason."""
    return {(loss.kind, loss.reason): loss.records for loss in outbox.state().losses}


def test_records_come_back_in_order_after_a_restart(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        assert [outbox.put("window", Priority.METRIC, b"%d" % i) for i in range(3)] == [
            ("a-m", 0),
            ("a-m", 1),
            ("a-m", 2),
        ]
    with Outbox(disk / "o.db", boot_id="b") as outbox:
        outbox.put("window", Priority.METRIC, b"3")
        first, second = outbox.take(), outbox.take()
    assert [(r.boot_id, r.seq, r.payload) for r in first] == [
        ("a-m", 0, b"0"),
        ("a-m", 1, b"1"),
        ("a-m", 2, b"2"),
    ]
    assert [(r.boot_id, r.seq, r.payload) for r in second] == [("b-m", 0, b"3")]


def test_a_boot_id_used_twice_goes_on_where_it_ended(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put("window", Priority.METRIC, b"0")
        drain(outbox)
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        assert outbox.put("window", Priority.METRIC, b"1") == ("a-m", 1)


def test_events_are_sent_before_metrics_and_these_before_samples(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put_many(
            [
                ("sample", Priority.SAMPLE, b"1"),
                ("window", Priority.METRIC, b"2"),
                ("note", Priority.EVENT, b"3"),
            ]
        )
        assert [r.kind for r in drain(outbox)] == ["note", "window", "sample"]


def test_what_is_not_acknowledged_is_sent_again(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put_many([("window", Priority.METRIC, b"%d" % i) for i in range(10)])
        assert len(outbox.peek(max_records=3)) == len(outbox.take(max_records=3)) == 3
        assert [r.seq for r in outbox.take(max_records=3)] == [3, 4, 5]
        assert outbox.ack("a-m", 1) == 2
        outbox.rewind()
        assert [r.seq for r in outbox.take()] == [2, 3, 4, 5, 6, 7, 8, 9]
        assert outbox.take() == []


def test_what_comes_after_nothing_was_left_is_taken_too(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a", max_bytes=SMALL) as outbox:
        assert drain(outbox) == []
        outbox.put("window", Priority.METRIC, b"1")
        assert [record.payload for record in outbox.take()] == [b"1"]
        assert outbox.take() == []
        outbox.rewind()
        assert [record.payload for record in outbox.take()] == [b"1"]
        assert outbox.take() == []
        outbox.count_loss("window", Priority.METRIC, "rate")
        assert [record.kind for record in outbox.take()] == [LOSS_KIND]


def test_a_disk_that_failed_once_is_asked_again(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put("window", Priority.METRIC, b"1")

        def fail(*_: object) -> Iterator[object]:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as broken:
            broken.setattr("edgec.device_agent._outbox_file.OutboxFile.following", fail)
            with pytest.raises(AgentError, match="disk I/O error"):
                outbox.take()
        assert [record.payload for record in outbox.take()] == [b"1"]


def test_an_acknowledgement_of_what_was_never_sent_removes_nothing(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put_many([("window", Priority.METRIC, b"%d" % i) for i in range(10)])
        outbox.take(max_records=2)
        assert outbox.ack("a-m", 2**40) == 2
        assert outbox.ack("b-m", 5) == outbox.ack("a-e", 5) == outbox.ack("a-m", -1) == 0
        assert outbox.state().records[Priority.METRIC] == 8


def test_a_batch_has_bounded_bytes_but_at_least_one_record(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put_many([("window", Priority.METRIC, bytes(1000)) for _ in range(5)])
        assert len(outbox.take(max_bytes=2500)) == 2
        assert len(outbox.take(max_bytes=10)) == 1


def test_without_room_the_oldest_of_the_lowest_priority_go_and_are_counted(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a", max_bytes=SMALL) as outbox:
        outbox.put_many([("note", Priority.EVENT, bytes(900)) for _ in range(10)])
        outbox.put_many([("sample", Priority.SAMPLE, bytes(900)) for _ in range(10)])
        for i in range(200):
            outbox.put("window", Priority.METRIC, b"%03d" % i + bytes(900))
        state = outbox.state()
        assert state.bytes <= state.max_bytes
        assert state.records[Priority.EVENT] == 10
        assert state.records[Priority.SAMPLE] == 0
        counts = lost(outbox)
        assert counts["sample", "full"] == 10
        records = drain(outbox)
    kinds = Counter(r.kind for r in records)
    assert kinds["window"] + counts["window", "full"] == 200
    assert [int(r.payload[:3]) for r in records if r.kind == "window"][-1] == 199


def test_losses_are_reported_as_a_record_until_that_is_acknowledged(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a", max_bytes=SMALL) as outbox:
        for _ in range(100):
            outbox.put("window", Priority.METRIC, bytes(2000))
        told = lost(outbox)["window", "full"]
        records = drain(outbox)
        reports = [decode_losses(r.payload) for r in records if r.kind == LOSS_KIND]
        assert len(reports) == 1
        assert [(c.kind, c.priority, c.reason, c.records, c.bytes) for c in reports[0][1]] == [
            ("window", 1, "full", told, told * 2000)
        ]
        assert told + sum(r.kind == "window" for r in records) == 100
        assert drain(outbox) == []  # nothing new, nothing to report
        outbox.count_loss("sample", Priority.SAMPLE, "policy", 3)
        ((counters, counts),) = [decode_losses(r.payload) for r in drain(outbox)]
        assert counters == reports[0][0]
        assert {c.reason: c.records for c in counts} == {"full": told, "policy": 3}


def test_a_record_for_which_there_is_no_room_is_refused_and_counted(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a", max_bytes=SMALL) as outbox:
        outbox.put("note", Priority.EVENT, bytes(MAX_RECORD_BYTES))
        assert outbox.put("window", Priority.METRIC, b"") is None
        assert lost(outbox) == {("window", "full"): 1}
        assert outbox.put("note", Priority.EVENT, b"1") == ("a-e", 1)
        assert lost(outbox)["note", "full"] == 1


def test_row_18_two_weeks_without_a_broker_lose_nothing(disk: Path) -> None:
    now = [1.7e9]
    with Outbox(disk / "o.db", boot_id="a", clock=lambda: now[0]) as outbox:
        for _ in range(14 * 24):
            now[0] += HOUR
            outbox.put_many([("window", Priority.METRIC, os.urandom(1500)) for _ in range(4)])
            outbox.put("note", Priority.EVENT, b"restarted")
        assert outbox.state().losses == ()
    with Outbox(disk / "o.db", boot_id="b") as outbox:
        kinds = Counter(r.kind for r in drain(outbox))
        assert kinds == {"window": 14 * 24 * 4, "note": 14 * 24}
        assert outbox.state().bytes == 0


def test_row_29_a_report_that_cannot_be_sent_is_sent_later(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put("update", Priority.EVENT, b"committed v2")
        for _ in range(5):  # a link that breaks before each acknowledgement
            assert [r.payload for r in outbox.take()] == [b"committed v2"]
            outbox.rewind()
    with Outbox(disk / "o.db", boot_id="b") as outbox:
        assert [r.payload for r in drain(outbox)] == [b"committed v2"]
        assert drain(outbox) == []


@pytest.mark.parametrize("times", [(0.0, 1.0), (4.1e9, 1.7e9, -5.0), (float("nan"), float("inf"))])
def test_a_clock_that_jumps_changes_no_order_and_removes_nothing(
    disk: Path, times: tuple[float, ...]
) -> None:
    clock = iter(times * 10)
    with Outbox(disk / "o.db", boot_id="a", clock=lambda: next(clock)) as outbox:
        for i in range(len(times)):
            outbox.put("window", Priority.METRIC, b"%d" % i)
        assert [int(r.payload) for r in drain(outbox)] == list(range(len(times)))
        assert outbox.state().losses == ()


def test_threads_share_writes_and_none_loses_a_record(disk: Path) -> None:
    got: list[list[tuple[str, int] | None]] = [[] for _ in range(4)]
    with Outbox(disk / "o.db", boot_id="a") as outbox:

        def put(mine: list[tuple[str, int] | None], thread: int) -> None:
            mine.extend(outbox.put("window", Priority.METRIC, b"%d %d" % (thread, i)) for i in range(30))

        threads = [Thread(target=put, args=(mine, i)) for i, mine in enumerate(got)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        records = {(r.boot_id, r.seq): r.payload for r in drain(outbox)}
    answers = {answer: b"%d %d" % (t, i) for t, mine in enumerate(got) for i, answer in enumerate(mine)}
    assert records == answers
    assert sorted(seq for _, seq in records) == list(range(120))


@pytest.mark.parametrize("damage", ["text", "empty header", "zeros", "cut"])
def test_a_damaged_file_is_set_aside_counted_and_replaced(disk: Path, damage: str) -> None:
    path = disk / "o.db"
    with Outbox(path, boot_id="a") as outbox:
        for _ in range(20):
            outbox.put("window", Priority.METRIC, bytes(4000))
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"no database at all " * 1000)
    elif damage == "empty header":
        data[:100] = bytes(100)
    elif damage == "zeros":
        data[4096:] = bytes(len(data) - 4096)
    else:
        del data[8192:]
    path.write_bytes(data)
    with Outbox(path, boot_id="b") as outbox:
        assert outbox.put("window", Priority.METRIC, b"new") == ("b-m", 0)
        records = drain(outbox)
    (report,) = [decode_losses(r.payload)[1] for r in records if r.kind == LOSS_KIND]
    assert [(c.reason, c.incidents) for c in report] == [("corrupt", 1)]
    assert [r.payload for r in records if r.kind == "window"] == [b"new"]
    assert (disk / "o.db.corrupt").read_bytes() == data


def test_a_file_that_is_damaged_while_it_is_used_is_replaced_and_every_record_counted(disk: Path) -> None:
    path = disk / "o.db"
    with Outbox(path, boot_id="a", max_bytes=2**20) as outbox:
        outbox.put_many([("window", Priority.METRIC, bytes(3000)) for _ in range(300)])
        outbox._books.file.shrink()  # all is in the file, and nothing in the log
        outbox._books.file._db.execute("PRAGMA cache_size = 0")
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        answers = []
        for i in range(3):
            answers += outbox.put_many([("note", Priority.EVENT, b"%d" % i)])
        drained = drain(outbox)
        assert [r.payload for r in drained if r.kind == "note"] == [b"0", b"1", b"2"]
        assert [r.seq for r in drained if r.kind == "note"] == [seq for _, seq in filter(None, answers)]
        assert lost(outbox)["window", "corrupt"] == 300


def test_a_record_with_other_bytes_than_were_put_is_not_sent_but_counted(disk: Path) -> None:
    path = disk / "o.db"
    with Outbox(path, boot_id="a") as outbox:
        outbox.put_many([("window", Priority.METRIC, b"%d" % i) for i in range(5)])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET payload = x'00' WHERE seq = 2")
    connection.commit()
    connection.close()
    with Outbox(path, boot_id="b") as outbox:
        records = drain(outbox)
        assert [r.payload for r in records if r.kind == "window"] == [b"0", b"1", b"3", b"4"]
        assert lost(outbox) == {("window", "corrupt"): 1}


def test_a_second_process_is_refused(disk: Path) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox:
        outbox.put("window", Priority.METRIC, b"1")
        code = (
            "import sys; from edgec.device_agent._outbox import Outbox; from edgec.errors import AgentError\n"
            "try: Outbox(sys.argv[1], boot_id='b')\n"
            "except AgentError as e: print('another agent' in str(e))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(disk / "o.db")], capture_output=True, text=True, check=True
        )
        assert done.stdout == "True\n"


def _limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


def test_a_disk_that_cannot_take_more_refuses_counts_and_goes_on(disk: Path) -> None:
    code = """
import sys, json
from edgec.device_agent._outbox import Outbox
from edgec.device_agent._outbox_records import Priority
from edgec.errors import AgentError
outbox = Outbox(sys.argv[1], boot_id="a")
kept, refused = [], 0
for i in range(400):
    try:
        kept.append(outbox.put("window", Priority.METRIC, b"%04d" % i + bytes(1000))[1])
    except AgentError as e:
        refused += 1
print(json.dumps([kept, refused, [[l.reason, l.records] for l in outbox.state().losses]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(disk / "o.db")],
        capture_output=True, text=True, check=True, preexec_fn=_limit_files,
    )  # fmt: skip
    kept, refused, losses = json.loads(done.stdout)
    assert refused > 0
    assert len(kept) + refused == 400
    assert losses == [["disk", refused]]
    with Outbox(disk / "o.db", boot_id="b") as outbox:  # there is room again
        outbox.put("window", Priority.METRIC, b"more")
        records = drain(outbox)
        assert [r.seq for r in records if r.boot_id == "a-m"] == kept


def fill(outbox: Outbox) -> int:
    """Put records until one is refused; return how many were not."""
    kept = 0
    try:
        while kept < 400:
            outbox.put("window", Priority.METRIC, bytes(1000))
            kept += 1
    except AgentError:
        pass
    return kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk of its own")
def test_a_full_disk_refuses_and_is_usable_when_space_is_free(disk: Path) -> None:
    disk /= "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        (disk / "other").write_bytes(bytes(150_000))
        with Outbox(disk / "o.db", boot_id="a") as outbox:
            kept = fill(outbox)
            assert 0 < kept < 400
            (disk / "other").unlink()
            assert outbox.put("note", Priority.EVENT, b"still here") is not None
            records = drain(outbox)
            assert sum(r.kind == "window" for r in records) == kept
            (report,) = [decode_losses(r.payload)[1] for r in records if r.kind == LOSS_KIND]
            assert [(c.kind, c.reason, c.records) for c in report] == [("window", "disk", 1)]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(("kind", "size"), [("Not a word", 1), ("", 1), ("window", MAX_RECORD_BYTES + 1)])
def test_wrong_records_are_refused(disk: Path, kind: str, size: int) -> None:
    with Outbox(disk / "o.db", boot_id="a") as outbox, pytest.raises(ValueError, match="expected a word"):
        outbox.put(kind, Priority.METRIC, bytes(size))


def test_wrong_arguments_are_refused(disk: Path) -> None:
    with pytest.raises(ValueError, match="expected an id"):
        Outbox(disk / "o.db", boot_id="a/b")
    with pytest.raises(ValueError, match="room"):
        Outbox(disk / "o.db", boot_id="a", max_bytes=10)
    with pytest.raises(AgentError, match="cannot open"):
        Outbox(disk / "missing" / "o.db", boot_id="a")


def test_a_closed_outbox_says_so(disk: Path) -> None:
    outbox = Outbox(disk / "o.db", boot_id="a")
    outbox.close()
    outbox.close()
    with pytest.raises(AgentError, match="closed"):
        outbox.put("window", Priority.METRIC, b"")


COUNT = '{"kind":"a","reason":"b","priority":1,"records":%s,"bytes":0,"incidents":0}'
ONE = f'{{"v":1,"counters":"a","counts":[{COUNT}]}}'
BAD = [
    b"", b"\xff", b"[]", b'{"v":2}', b'{"v":1,"counters":1,"counts":[]}',
    b'{"v":1,"counters":"a","counts":[1]}',
    (ONE % "-2").encode(), (ONE % "true").encode(), (ONE % "1e3").encode(),
    b"[" * 100_000, (ONE % "1").encode() + b" " * 70_000,
]  # fmt: skip


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_loss_reports_from_outside_are_checked(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_losses(data)


@pytest.mark.slow
def test_no_record_is_lost_when_the_process_is_killed_a_hundred_times() -> None:
    command = [sys.executable, "-m", "tests.device_agent.kill_outbox", "--kills", "100", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr + done.stdout
    counts = json.loads(done.stdout)
    assert counts["kills"] == 100
    assert counts["lost"] == counts["counted_as_lost"] == 0
    assert counts["put"] > 200
