"""A process that loads an artifact, runs it once, and says what that cost.

    python -m edgec.runtime._cold_start ARTIFACT OPTIONS

OPTIONS is a JSON object with the keyword arguments of `edgec.runtime.load`. The answer is one line of
JSON on standard output. `edgec.runtime.benchmark` starts it, because only a fresh process can tell how
long a first load takes and how much memory a model needs.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import BackendUnavailableError, EdgecError
from edgec.runtime._isolation import IsolatedProgram
from edgec.runtime._session import Session, load
from edgec.runtime._synthetic import calling_inputs
from edgec.runtime.backends import get_backend


def measure_cold_start(path: str, options: dict[str, Any]) -> dict[str, float | None]:
    """Load an artifact and run it once, in this process.

    Returns:
        ``load_ms``, in which ``engine_import_ms`` is contained, ``first_inference_ms``,
        ``memory_before_mib`` (resident, before loading) and ``peak_memory_mib`` (of the process, and of the
        engine's own where it has one: then ``engine_import_ms`` is None).
    """
    with Artifact.open(path) as artifact:
        inputs = calling_inputs(artifact)[0][0]
        engine = artifact.manifest.engine.name
    before = _status_mib("VmRSS")
    start = time.perf_counter()
    isolated = bool(options.get("isolate"))
    if not isolated:
        with suppress(BackendUnavailableError):  # loading will say so, or take the fallback
            get_backend(engine)
    imported = time.perf_counter()
    # What every start costs: a self-test is made at the first one only.
    session: Session = load(path, self_test=False, **options)
    loaded = time.perf_counter()
    session.run(inputs)
    ran = time.perf_counter()
    session.run(inputs)  # the second call may need buffers that the first did not
    peak = _status_mib("VmHWM")
    if isolated and peak is not None:
        program = session.current_program()
        assert isinstance(program, IsolatedProgram)
        peak += (_status_mib("VmHWM", program.pid) if program.pid else None) or 0.0
    session.close()
    return {
        "engine_import_ms": None if isolated else (imported - start) * 1e3,
        "load_ms": (loaded - start) * 1e3,
        "first_inference_ms": (ran - loaded) * 1e3,
        "memory_before_mib": before,
        "peak_memory_mib": peak,
    }


def _status_mib(key: str, process: int | str = "self") -> float | None:
    """Return a figure of a process in MiB; None where the system does not tell.

    Not ``getrusage``: on Linux its peak is inherited from the process that started this one.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), None)


if __name__ == "__main__":
    try:
        print(json.dumps(measure_cold_start(sys.argv[1], json.loads(sys.argv[2]))))
    except EdgecError as error:
        sys.exit(str(error))
