"""The process that verifies or measures an artifact on order: it tells what it found in a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import EdgecError
from edgec.runtime import load
from edgec.runtime._containment import contain


def main() -> int:
    """Do what the one line of JSON on the standard input says."""
    request = json.loads(sys.stdin.readline())
    contain(memory_mib=request["memory_mib"], cpu_seconds=request["cpu_seconds"])
    os.nice(10)  # what serves goes first
    path = Path(request["artifact"])
    try:
        found = _verify(path) if request["do"] == "verify" else _benchmark(path, request["seconds"])
    except (EdgecError, OSError) as e:
        found = {"error": str(e)}
    # A line of its own, whatever an engine has printed.
    print("\n" + json.dumps(found), flush=True)
    return 0


def _verify(path: Path) -> dict[str, Any]:
    with Artifact.open(path) as artifact:
        artifact.verify()
        digest = artifact.content_digest
    with load(path, self_test=False) as session:
        result = session.self_test()
        return {
            "content_digest": digest,
            "vectors": result.vectors,
            "passed": result.passed,
            "engine": session.engine,
            "engine_version": session.engine_version,
            "state": session.state,
            "precision": session.precision,
        }


def _benchmark(path: Path, seconds: float) -> dict[str, Any]:
    from edgec.runtime.benchmark import benchmark

    shape = benchmark(path, duration_s=seconds, cold_starts=1).to_dict()
    del shape["artifact"]
    return shape


if __name__ == "__main__":
    sys.exit(main())
