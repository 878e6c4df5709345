"""The worker process: ``python -m edgec.compiler.worker ADDRESS CONTEXT NUMBER``, key on standard input.

Only `edgec.compiler.workers` starts it. What it unpickles comes from its own parent.
"""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Client
from pathlib import Path

from edgec.compiler.candidates import Candidate, Shared
from edgec.compiler.repair import RepairOrder, perform
from edgec.errors import OutputError
from edgec.targets import Target


def main() -> None:
    """Serve jobs, each a target and what to do for it, until the parent hangs up."""
    address, context, number = sys.argv[1:]
    # That a candidate runs on its fallback is in its figures.
    logging.getLogger("edgec.runtime").addHandler(logging.NullHandler())
    with Client(address, family="AF_UNIX", authkey=sys.stdin.buffer.read()) as parent:
        shared = _shared(Path(context), number)
        while True:
            try:
                target, work = parent.recv()
            except EOFError:
                return
            parent.send(_answer(target, work, shared, lambda line: parent.send(("progress", line))))


def _shared(context: Path, number: str) -> Shared:
    with context.open("rb") as file:
        shared = pickle.load(file)  # noqa: S301 - written by the parent a moment ago
    assert isinstance(shared, Shared)
    scratch = shared.scratch / f"worker-{number}"
    scratch.mkdir()
    return replace(shared, scratch=scratch)


def _answer(
    target: Target, work: Candidate | RepairOrder, shared: Shared, progress: Callable[[str], None]
) -> tuple[str, object]:
    try:
        return "done", perform(target, work, shared, progress)
    except OutputError as e:
        return "output-error", str(e)
    except Exception:  # noqa: BLE001 - whatever it is, the parent must hear of it
        return "bug", traceback.format_exc()


if __name__ == "__main__":
    main()
