"""Files come in whole or not at all, and what is here is not fetched twice.

Rows 3, 5, 8, 16 and 31 of the fault matrix: partial downloads, corrupted blocks, sizes at 2**31 and 2**32,
full disks, servers that fail for a day.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.device_agent.range_server import Asked, honest, serving
from tests.device_agent.transfers import CHUNK, CONTENT, get, hidden, limits, source, wanted

from edgec.delta import ChunkMap
from edgec.device_agent._disk import Disk
from edgec.device_agent._download import Surroundings, Wanted, fetch
from edgec.device_agent._http import HttpSource
from edgec.device_agent._line import Cancel, Spent
from edgec.device_agent._partial import Partial
from edgec.device_agent._sources import ChunkSource, DirectorySource
from edgec.errors import LinkError, TransferError

BOUNDARIES = [n for at in range(0, len(CONTENT), CHUNK) for n in (at - 1, at, at + 1) if n >= 0]


def cut_at(byte: int) -> Callable[[Asked], None]:
    """A server whose first connection breaks after some bytes of the body."""

    def behave(asked: Asked) -> None:
        asked.head(Content_Range=asked.range, Content_Length=len(asked.part), ETag='"v1"')
        asked.send(asked.part[:byte] if asked.number == 1 else asked.part)

    return behave


@pytest.mark.slow
def test_row_03_a_link_that_is_cut_anywhere_costs_no_byte_twice(tmp_path: Path) -> None:
    for byte in BOUNDARIES:
        with serving(CONTENT, cut_at(byte)) as server:
            get(server, tmp_path / f"{byte}", mapped=byte % 2 == 0)
            assert (tmp_path / f"{byte}").read_bytes() == CONTENT
            assert [asked.first for asked in server.asked] == [0, byte]


@pytest.mark.slow
def test_row_03_a_restart_fetches_less_than_one_chunk_again(tmp_path: Path) -> None:
    for byte in BOUNDARIES:
        path = tmp_path / f"{byte}"
        with serving(CONTENT, cut_at(byte)) as server:
            with pytest.raises(TransferError):
                get(server, path, attempts=1)
            fetched = get(server, path)
            assert path.read_bytes() == CONTENT
            assert server.asked[1].first == byte // CHUNK * CHUNK == fetched.resumed
            assert fetched.received < len(CONTENT) - fetched.resumed + 500


def test_a_file_that_is_there_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / ".file.part").write_bytes(b"left over")
    with serving(CONTENT) as server:
        assert get(server, tmp_path / "file").received == 0
        assert server.asked == []
    assert hidden(tmp_path) == []


def test_another_file_of_that_name_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(len(CONTENT)))
    with serving(CONTENT) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_row_05_only_a_damaged_chunk_is_fetched_again(tmp_path: Path) -> None:
    def damages_one(asked: Asked) -> None:
        body = bytearray(asked.part)
        if asked.number == 1:
            body[3 * CHUNK + 7] ^= 0x40
        asked.answer(bytes(body))

    with serving(CONTENT, damages_one) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [asked.first for asked in server.asked] == [0, 3 * CHUNK]


def test_row_05_a_second_corruption_switches_the_mirror(tmp_path: Path) -> None:
    def damages(asked: Asked) -> None:
        asked.answer(bytes(byte ^ 1 for byte in asked.part))

    with serving(CONTENT, damages) as bad, serving(CONTENT) as good:
        fetch(wanted(), [source(bad), source(good)], tmp_path / "file", limits=limits())
        assert (len(bad.asked), len(good.asked)) == (2, 1)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_row_05_what_the_disk_damaged_is_fetched_again(tmp_path: Path) -> None:
    content = CONTENT * 12
    for mapped in (True, False):
        path = tmp_path / f"{mapped}"
        with serving(content, cut_at(400_000)) as server:
            with pytest.raises(TransferError):
                get(server, path, mapped=mapped, attempts=1)
            part = path.with_name(f".{path.name}.part")
            with part.open("r+b") as file:
                file.seek(130_000)
                file.write(b"damaged")
            get(server, path, mapped=mapped)
            size = CHUNK if mapped else 112 * 1024
            assert path.read_bytes() == content
            assert server.asked[1].first == 130_000 // size * size
            assert server.asked[1].stop == server.asked[1].first + size


@pytest.mark.parametrize("damage", [b"", b"{", b"[]\n", b'{"file": 1}\n', b"\xff\xfe\n", b"\n" * 9, b"9" * 9])
def test_a_damaged_journal_costs_no_more_than_a_fresh_start(tmp_path: Path, damage: bytes) -> None:
    with serving(CONTENT, cut_at(5 * CHUNK)) as server:
        with pytest.raises(TransferError):
            get(server, tmp_path / "file", attempts=1)
        (tmp_path / ".file.progress").write_bytes(damage)
        get(server, tmp_path / "file")
        assert server.asked[1].first == 0
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_lines_of_the_journal_are_not_believed(tmp_path: Path) -> None:
    with serving(CONTENT, cut_at(5 * CHUNK)) as server:
        with pytest.raises(TransferError):
            get(server, tmp_path / "file", attempts=1)
        with (tmp_path / ".file.progress").open("ab") as journal:
            journal.write(
                b'{"chunk": 7, "sha256": "' + b"0" * 32 + b'"}\n{"chunk": -1}\n{"chunk": 99999999}\n'
                b'{"chunk": true, "sha256": 5}\n{"source": 1, "validator": "x"}\n{"chunk": 8, "sha'
            )
        get(server, tmp_path / "file")
        assert server.asked[1].first == 5 * CHUNK
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_what_is_here_of_another_file_is_forgotten(tmp_path: Path) -> None:
    with serving(CONTENT, cut_at(5 * CHUNK)) as server, pytest.raises(TransferError):
        get(server, tmp_path / "file", attempts=1)
    other = bytes(reversed(CONTENT))
    with serving(other) as server:
        get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == other


def test_sources_take_turns_when_they_fail(tmp_path: Path) -> None:
    def breaks(asked: Asked) -> None:
        asked.head(Content_Range=asked.range, Content_Length=len(asked.part))
        asked.send(asked.part[:CHUNK])

    with serving(CONTENT, breaks) as first, serving(CONTENT, breaks) as second:
        fetch(wanted(), [source(first), source(second)], tmp_path / "file", limits=limits())
        assert abs(len(first.asked) - len(second.asked)) <= 1
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_an_empty_file_needs_no_source(tmp_path: Path) -> None:
    fetch(Wanted(length=0, sha256=sha256().hexdigest()), [], tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""
    with pytest.raises(TransferError, match="empty"):
        fetch(Wanted(length=0, sha256="0" * 64), [], tmp_path / "none")


class FullDisk(Disk):
    """A disk on which one of the operations finds no space."""

    def __init__(self, fails_at: int) -> None:
        self.left = fails_at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path: Path) -> int:
        self._step()
        return super().open(path)

    def reserve(self, descriptor: int, length: int) -> None:
        self._step()
        super().reserve(descriptor, length)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, at: int) -> None:
        self._step()
        super().write(descriptor, data, at)

    def truncate(self, descriptor: int, length: int) -> None:
        self._step()
        super().truncate(descriptor, length)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def replace(self, old: Path, new: Path) -> None:
        self._step()
        super().replace(old, new)


def test_row_16_a_full_disk_is_said_at_every_write_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "file").write_bytes(CONTENT)
    usb = DirectorySource(tmp_path / "usb", "file")
    failed, folder = 0, tmp_path
    for fails_at in range(100):
        folder = tmp_path / str(fails_at)
        folder.mkdir()
        world = Surroundings(disk=FullDisk(fails_at))
        small = limits(sync_bytes=3 * CHUNK)
        reason = ""
        try:
            fetch(wanted(), [usb], folder / "file", surroundings=world, limits=small)
        except TransferError as e:
            reason = e.reason
        if not reason:
            break
        assert reason == "disk_full"
        assert list(folder.iterdir()) == []
        failed += 1
    assert failed > 15
    assert (folder / "file").read_bytes() == CONTENT
    assert hidden(folder) == []


def test_row_16_space_that_is_not_there_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    class Small(Disk):
        def reserve(self, descriptor: int, length: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    world = Surroundings(disk=Small())
    with serving(CONTENT) as server:
        with pytest.raises(TransferError) as caught:
            fetch(wanted(), [source(server)], tmp_path / "file", surroundings=world)
        assert server.asked == []
    assert caught.value.reason == "disk_full"


def test_only_one_process_fetches_a_file(tmp_path: Path) -> None:
    other = Partial(
        tmp_path / "file",
        length=len(CONTENT),
        digest="0" * 64,
        chunk_bytes=CHUNK,
        chunks=None,
        disk=Disk(),
        sync_bytes=1,
    )
    with serving(CONTENT) as server, pytest.raises(TransferError) as caught:
        get(server, tmp_path / "file")
    assert caught.value.reason == "busy"
    other.close()


def test_a_transfer_is_cancelled_at_once_and_goes_on_later(tmp_path: Path) -> None:
    def stalls(asked: Asked) -> None:
        asked.head(Content_Range=asked.range, Content_Length=len(asked.part))
        asked.send(asked.part[: 4 * CHUNK])
        time.sleep(5 if asked.number == 1 else 0)
        asked.send(asked.part[4 * CHUNK :])

    cancel = Cancel()

    def seen(here: int, total: int) -> None:
        assert total == len(CONTENT)
        if here == 4 * CHUNK:
            cancel.set()

    with serving(CONTENT, stalls) as server:
        with pytest.raises(TransferError) as caught:
            fetch(
                wanted(),
                [source(server)],
                tmp_path / "file",
                cancel=cancel,
                progress=seen,
                limits=limits(),
            )
        assert caught.value.reason == "cancelled"
        assert get(server, tmp_path / "file").resumed == 4 * CHUNK


@dataclass
class FakeTime:
    """A clock that only waiting moves."""

    now: float = 0.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self.waits.append(seconds)
        self.now += seconds

    def world(self, random: Callable[[], float] = lambda: 0.5) -> Surroundings:
        """What a transfer takes from it."""
        return Surroundings(clock=lambda: self.now, sleep=self.sleep, random=random)


def test_row_31_a_day_of_a_server_that_fails_costs_little(tmp_path: Path) -> None:
    def fails(asked: Asked) -> None:
        asked.head("503 Service Unavailable", Content_Length=10**9)
        asked.send(bytes(2000))

    fake, spent = FakeTime(), Spent()
    with serving(CONTENT, fails) as server:
        while fake.now < 86400:
            with pytest.raises(TransferError) as caught:
                fetch(wanted(), [source(server)], tmp_path / "file", surroundings=fake.world(), spent=spent)
            assert caught.value.reason == "unavailable"
            fake.sleep(900)
    assert spent.requests == len(server.asked) < 300
    assert spent.received < 300 * 4000


def test_waits_grow_and_are_drawn_at_random(tmp_path: Path) -> None:
    fake = FakeTime()
    with serving(CONTENT, lambda asked: asked.head("500 Oops")) as server, pytest.raises(TransferError):
        fetch(
            wanted(),
            [source(server)],
            tmp_path / "file",
            surroundings=fake.world(lambda: 1.0),
            limits=limits(attempts=8, first_delay_s=1.0, largest_delay_s=20.0),
        )
    assert fake.waits == [1, 2, 4, 8, 16, 20, 20]


def test_a_server_that_asks_to_wait_is_left_alone_that_long(tmp_path: Path) -> None:
    def asks(asked: Asked) -> None:
        if asked.number == 1:
            return asked.head("429 Too Many Requests", Retry_After=120)
        if asked.number == 2:
            date = "Sun, 06 Nov 1994 08:49:37 GMT"
            later = "Sun, 06 Nov 1994 08:54:37 GMT"
            return asked.head("503 Service Unavailable", Retry_After=later, Date=date)
        return honest(asked)

    fake = FakeTime()
    with serving(CONTENT, asks) as server:
        fetch(
            wanted(),
            [source(server)],
            tmp_path / "file",
            surroundings=fake.world(),
            limits=limits(retry_after_s=200.0),
        )
    assert fake.now == pytest.approx(120 + 200, abs=1)


def test_the_bandwidth_limit_holds(tmp_path: Path) -> None:
    fake = FakeTime()
    with serving(CONTENT) as server:
        fetch(
            wanted(),
            [source(server)],
            tmp_path / "file",
            surroundings=fake.world(),
            limits=limits(bytes_per_s=10_000.0),
        )
    assert len(CONTENT) / 10_000 - 1.1 <= fake.now <= len(CONTENT) / 10_000 + 0.5
    with pytest.raises(ValueError, match="at most half"):
        limits(bytes_per_s=100.0)


def test_requests_are_bounded(tmp_path: Path) -> None:
    def little(asked: Asked) -> None:
        asked.head(Content_Range=f"bytes {asked.first}-{asked.first}/{len(asked.content)}")
        asked.send(asked.part[:1])

    with serving(CONTENT, little) as server, pytest.raises(TransferError) as caught:
        get(server, tmp_path / "file", requests=7, attempts=100)
    assert caught.value.reason == "requests"
    assert len(server.asked) == 7


# Directories.


def test_a_directory_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "usb" / "targets").mkdir(parents=True)
    (tmp_path / "usb" / "targets" / "file").write_bytes(CONTENT)
    usb = DirectorySource(tmp_path / "usb", "targets/file")
    assert fetch(wanted(), [usb], tmp_path / "file").received == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret", "refused"),
        ("/etc/hostname", "refused"),
        ("link", "refused"),
        ("missing", "not_found"),
        ("short", "length"),
        ("folder", "not_found"),
        ("pipe", "not_found"),
        ("loop", "refused"),
        ("x" * 5000, "refused"),
    ],
)
def test_a_directory_is_not_left(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    usb = tmp_path / "usb"
    (usb / "folder").mkdir(parents=True)
    (usb / "link").symlink_to(tmp_path / "secret")
    (usb / "loop").symlink_to(usb / "loop")
    (usb / "short").write_bytes(CONTENT[:-1])
    os.mkfifo(usb / "pipe")
    with pytest.raises(TransferError) as caught:
        fetch(wanted(), [DirectorySource(usb, path)], tmp_path / "file", limits=limits())
    assert caught.value.reason == reason


# Chunks by request, as over MQTT.


class Chunks:
    """Answers requests for chunks."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.most = self.now = 0
        self.lock = threading.Lock()

    def __call__(self, at: int, size: int) -> bytes:
        with self.lock:
            self.asked.append((at, size))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self.lock:
            self.now -= 1
        return self.answer(at, size)

    def answer(self, at: int, size: int) -> bytes:
        """Return what was asked for."""
        return CONTENT[at : at + size]


def test_chunks_are_asked_for_a_few_at_a_time_and_once(tmp_path: Path) -> None:
    chunks = Chunks()
    broker = ChunkSource("broker", chunks, window=3, chunk_bytes=CHUNK)
    assert fetch(wanted(), [broker], tmp_path / "file").received == len(CONTENT)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sorted(at for at, _ in chunks.asked) == list(range(0, len(CONTENT), CHUNK))
    assert 1 < chunks.most <= 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TransferError("no", "not_found"), "not_found"),
        (TransferError("no", "busy"), "busy"),
        (LinkError("the broker is away"), "link"),
    ],
)
def test_chunks_that_do_not_come_end_the_transfer(tmp_path: Path, error: Exception, reason: str) -> None:
    class Failing(Chunks):
        def answer(self, at: int, size: int) -> bytes:
            if at >= 3 * CHUNK:
                raise error
            return super().answer(at, size)

    chunks = Failing()
    broker = ChunkSource("broker", chunks, window=2, chunk_bytes=CHUNK)
    with pytest.raises(TransferError) as caught:
        fetch(wanted(), [broker], tmp_path / "file", limits=limits())
    assert caught.value.reason == reason
    assert len(chunks.asked) < 24
    with serving(CONTENT) as server:
        assert get(server, tmp_path / "file").resumed == 3 * CHUNK


def test_a_chunk_of_another_size_is_a_lie(tmp_path: Path) -> None:
    broker = ChunkSource("broker", lambda at, size: CONTENT[at : at + size + 1], chunk_bytes=CHUNK)
    with pytest.raises(TransferError) as caught:
        fetch(wanted(), [broker], tmp_path / "file", limits=limits())
    assert caught.value.reason == "length"


# Maps.


def test_a_map_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    made = ChunkMap.of_file(tmp_path / "file", chunk_bytes=CHUNK)
    assert made == wanted().chunks
    assert ChunkMap.from_bytes(made.to_bytes(), length=len(CONTENT)) == made


def test_malformed_maps_are_refused() -> None:
    chunks = wanted().chunks
    assert chunks is not None
    good = chunks.to_bytes()
    bad = [b"", b"x" * 40, good[:-1], good + b"x", good[:8] + bytes(4) + good[12:], good[:8] + b"\xff" * 12]
    for data in bad:
        with pytest.raises(TransferError) as caught:
            ChunkMap.from_bytes(data, length=len(CONTENT))
        assert caught.value.reason == "digest"
    with pytest.raises(TransferError):
        ChunkMap.from_bytes(good, length=len(CONTENT) + 1)


# Row 8: sizes at which numbers change their width.


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1])
def test_row_08_offsets_beyond_31_and_32_bits(tmp_path: Path, size: int) -> None:
    class Sparse(Disk):
        def reserve(self, descriptor: int, length: int) -> None:
            os.ftruncate(descriptor, length)

    with (tmp_path / "usb").open("wb") as sparse:
        sparse.truncate(size)
        sparse.seek(size - 5)
        sparse.write(b"hello")
    chunk = 16 * 2**20
    zeros = sha256(bytes(chunk)).digest()[:16]
    last = size % chunk or chunk
    end = sha256(bytes(last - 5) + b"hello").digest()[:16] if last >= 5 else None
    count = -(-size // chunk)
    if end is None:
        before = sha256(bytes(chunk - 5 + last) + b"hello"[: 5 - last]).digest()[:16]
        digests = zeros * (count - 2) + before + sha256(b"hello"[5 - last :]).digest()[:16]
    else:
        digests = zeros * (count - 1) + end
    chunks = ChunkMap(length=size, digests=digests, chunk_bytes=chunk)
    options: dict[str, Any] = {"digest": "0" * 64, "disk": Sparse(), "sync_bytes": 2**40}
    partial = Partial(tmp_path / "f", length=size, chunk_bytes=chunk, chunks=chunks, **options)
    with (tmp_path / "usb").open("rb") as file:
        for index in (0, count - 2, count - 1):
            file.seek(index * chunk)
            assert partial.put(index, file.read(partial.size_of(index)))
    assert not partial.put(1, b"x" * chunk)
    assert list(partial.missing()) == [(chunk, (count - 2) * chunk)]
    partial.close()
    assert (tmp_path / ".f.part").stat().st_size == size
    with (tmp_path / ".f.part").open("rb") as file:
        file.seek(size - 5)
        assert file.read() == b"hello"


# Kills.

_CHILD = """
import sys
from pathlib import Path
from edgec.device_agent._download import Wanted, fetch
from edgec.device_agent._http import HttpSource
from edgec.device_agent._line import Limits
url, path, length, digest, sync = sys.argv[1:]
def progress(here, total):
    sys.stdout.write(f"{here}\\n")
    sys.stdout.flush()
wanted = Wanted(length=int(length), sha256=digest)
limits = Limits(sync_bytes=int(sync))
fetch(wanted, [HttpSource(url, allow_http=True)], Path(path), limits=limits, progress=progress)
"""


@pytest.mark.slow
def test_row_03_killed_at_random_points_and_resumed(tmp_path: Path) -> None:
    def steadily(asked: Asked) -> None:
        asked.head(Content_Range=asked.range, Content_Length=len(asked.part), ETag='"v"')
        for at in range(0, len(asked.part), 50_000):
            asked.send(asked.part[at : at + 50_000])
            time.sleep(0.002)

    rng, content, sync, chunk = random.Random(4), random.Random(5).randbytes(8_000_000), 400_000, 112 * 1024
    path, kills, reported = tmp_path / "file", 0, 0
    with serving(content, steadily) as server:
        words = [server.url, str(path), str(len(content)), sha256(content).hexdigest(), str(sync)]
        for _ in range(40):
            child = subprocess.Popen([sys.executable, "-c", _CHILD, *words], stdout=subprocess.PIPE)
            assert child.stdout is not None
            lines, most = 0, rng.randint(1, 30)
            for line in child.stdout:
                if not lines and kills:
                    # What was on disk is not asked for again.
                    assert server.asked[-1].first >= reported - sync - chunk
                reported, lines = int(line), lines + 1
                if lines == most:
                    with suppress(ProcessLookupError):
                        child.send_signal(signal.SIGKILL)
                    break
            child.stdout.close()
            kills += child.wait() == -signal.SIGKILL
            if child.returncode == 0:
                break
            assert not path.exists() or path.read_bytes() == content
    assert path.read_bytes() == content
    assert kills >= 5
    assert hidden(tmp_path) == []


# TLS.


def test_https_shows_a_certificate_and_trusts_nobody_else(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="certificates need the extra agent")
    from edgec.protocol.certificates import CertificateAuthority

    authority = CertificateAuthority(tmp_path / "authority")
    server_side = authority.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_side.certificate, server_side.key)
    context.load_verify_locations(server_side.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    ours = authority.client("device").client_context()
    with serving(CONTENT, context=context) as server:
        with pytest.raises(TransferError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            fetch(wanted(), [HttpSource(server.url)], tmp_path / "file", limits=limits(attempts=2))
        assert caught.value.reason == "link"
        fetch(wanted(), [HttpSource(server.url, context=ours)], tmp_path / "file", limits=limits())
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_token_goes_to_its_own_host_only(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer secret"}
    with serving(CONTENT) as other:

        def redirects(asked: Asked) -> None:
            asked.head("302 Found", Location=other.url.replace("localhost", "127.0.0.1"), Content_Length=0)

        with serving(CONTENT, redirects) as home:
            fetch(wanted(), [source(home, headers=headers)], tmp_path / "file", limits=limits())
            assert home.asked[0].headers["authorization"] == "Bearer secret"
        assert "authorization" not in other.asked[0].headers


@pytest.mark.parametrize("url", ["http://host/x", "ftp://host/x", "https:///x", "https://a:b@host/x", "x"])
def test_urls_that_are_not_allowed_are_wrong_arguments(url: str) -> None:
    with pytest.raises(ValueError, match=r"host|expected"):
        HttpSource(url)
