"""A PostgreSQL cluster of the tests' own, and an empty database in it for each test that wants one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

_TRIES = 3
# Nothing of it outlives its tests: no test is about a machine that PostgreSQL runs on and that loses power.
_HASTE = ("-c", "fsync=off", "-c", "full_page_writes=off")


def _program(name: str) -> str:
    found = shutil.which(name) or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"PostgreSQL is not installed: there is no {name}")
    return os.path.realpath(found)


@contextmanager
def running_cluster(folder: Path) -> Iterator[str]:
    """Start a cluster on a free port; give its URL without a database."""
    initdb, postgres = _program("initdb"), _program("postgres")
    user: str | None = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        user = "nobody"
        for parent in (folder, *folder.parents[:3]):
            if parent.stat().st_uid == 0 and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
        shutil.chown(folder, "nobody")
    data = folder / "data"
    made = subprocess.run(
        [initdb, "-D", str(data), "-U", "edgec", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"],
        capture_output=True, text=True, check=False, cwd=folder, user=user,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no PostgreSQL cluster can be made here: {made.stderr.strip()[-300:]}")
    with (folder / "log").open("wb") as log:
        port, server = _started(postgres, data, log, user)
        try:
            yield f"postgresql://edgec@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: what it would write down first goes with it
            server.wait(60)


def _started(
    postgres: str, data: Path, log: BinaryIO, user: str | None
) -> tuple[int, subprocess.Popen[bytes]]:
    """Start a server that answers; on another port where somebody else was quicker on the first."""
    for _ in range(_TRIES):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", "", *_HASTE],
            stdout=log, stderr=log, cwd=data.parent, user=user,
        )  # fmt: skip
        if _wait(port, server):
            return port, server
        server.kill()
        server.wait(60)
    pytest.skip(f"PostgreSQL does not start here: {Path(log.name).read_text(errors='replace')[-300:]}")


def make_database(url: str) -> str:
    """Make an empty database; return its URL."""
    return _made(url, "template1")


def copied_database(url: str) -> str:
    """Return the URL of a copy of a database that nobody is connected to."""
    return _made(*url.rsplit("/", 1))


def _made(url: str, template: str) -> str:
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
    return f"{url}/{name}"


def _wait(port: int, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + 120
    while not _answers(port):
        if server.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _answers(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(f"postgresql://edgec@127.0.0.1:{port}/postgres", connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
