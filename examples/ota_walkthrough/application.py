"""An application that knows nothing of updates: it asks its model all day, and counts what goes wrong.

python application.py MODELS SOCKET COUNTS
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # for what is beside this file

from examples.ota_walkthrough.models import MODEL, images

from edgec.errors import EdgecError
from edgec.runtime import ObserveOptions, follow

_PAUSE_S = 0.004


def main(models: Path, socket: Path, counts: Path) -> None:
    """Ask, until SIGTERM; write how that goes to a file, several times a second."""
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    pictures = images("evaluation")
    calls = failed = nan = 0
    written = 0.0
    # Every call is looked into, so that seconds are enough to judge by; the default is one per cent.
    closely = ObserveOptions(max_share=math.inf)
    with follow(
        MODEL, directory=models, socket=socket, name="reader", wait_s=120, observe=closely
    ) as session:
        while not stopped:
            try:
                logits = session.run({"pixels": pictures[calls % len(pictures)]})["logits"]
                nan += not np.isfinite(logits).all()
            except EdgecError as e:
                failed += 1
                print(f"a call failed: {e}", file=sys.stderr, flush=True)
            calls += 1
            if stopped or time.monotonic() - written > 0.2:
                written = time.monotonic()
                _write(counts, {"calls": calls, "failed": failed, "nan": nan, "digest": session.digest})
            time.sleep(_PAUSE_S)


def _write(path: Path, values: dict[str, object]) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(values))
    os.replace(aside, path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
