"""What tests of transfers share: a file of a few chunks, and limits under which nothing takes long."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tests.device_agent.range_server import RangeServer

from edgec.delta import ChunkMap
from edgec.device_agent._download import Fetched, Wanted, fetch
from edgec.device_agent._http import HttpSource
from edgec.device_agent._line import Limits, Spent

CHUNK = 4096
CONTENT = np.random.default_rng(3).bytes(10 * CHUNK + 100)
QUICK: dict[str, Any] = {
    "attempts": 5,
    "first_delay_s": 0.001,
    "largest_delay_s": 0.002,
    "retry_after_s": 0.01,
    "watch_s": 20.0,
    "least_bytes_per_s": 2000.0,
    "connect_s": 30.0,
}


def wanted(content: bytes = CONTENT, *, mapped: bool = True) -> Wanted:
    """What metadata promises of a file, with a map of small chunks."""
    digests = b"".join(sha256(content[at : at + CHUNK]).digest()[:16] for at in range(0, len(content), CHUNK))
    chunks = ChunkMap(length=len(content), digests=digests, chunk_bytes=CHUNK) if mapped else None
    return Wanted(length=len(content), sha256=sha256(content).hexdigest(), chunks=chunks)


def limits(**changes: Any) -> Limits:
    """Limits under which a failing transfer ends at once."""
    return Limits(**{**QUICK, **changes})


def source(server: RangeServer, **options: Any) -> HttpSource:
    """The file on a server."""
    return HttpSource(server.url, **{"allow_http": server.scheme == "http", **options})


def get(
    server: RangeServer, path: Path, *, mapped: bool = True, spent: Spent | None = None, **changes: Any
) -> Fetched:
    """Fetch the file from a server."""
    return fetch(
        wanted(server.content, mapped=mapped), [source(server)], path, limits=limits(**changes), spent=spent
    )


def hidden(folder: Path) -> list[str]:
    """What a transfer left beside the file."""
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))
