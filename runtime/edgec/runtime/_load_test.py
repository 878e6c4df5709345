"""The self-test that loading makes: does this device compute what the source model computed?

It runs once per file of an artifact, engine and device; that it passed is kept as an empty file in the
user's cache.
Only passing is kept: what failed is tested again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgec.errors import OutputError, SelfTestError
from edgec.runtime._self_test import SelfTestResult, run_golden_vectors

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgec.artifact import Artifact, EngineSpec
    from edgec.runtime.backends import LoadOptions, Program

# A fault of a device shows in every vector; `edgec verify` runs them all.
MOST_VECTORS = 4
MOST_SECONDS = 2.0
_MOST_KEPT = 256


def test_at_load(artifact: Artifact, program: Program, spec: EngineSpec, options: LoadOptions) -> None:
    """Run up to `MOST_VECTORS` golden vectors, none after `MOST_SECONDS`, unless they passed here before.

    Raises:
        SelfTestError: The outputs are others than the artifact promises.
        ArtifactError: The golden vectors are damaged.
        InferenceError: The engine failed.
    """
    if not artifact.manifest.golden:
        return
    mark = _mark(artifact, program, spec, options)
    if mark is not None and _is_file(mark):
        return
    result = run_some(artifact, program)
    if not result.passed:
        raise SelfTestError(_sentence(artifact, spec, program, result))
    if mark is not None:
        _keep(mark)


def run_some(artifact: Artifact, program: Program) -> SelfTestResult:
    """Run the first golden vectors, as few as `test_at_load` says."""
    vectors = artifact.golden()
    outputs: list[dict[str, NDArray[Any]]] = []
    start = monotonic()
    for vector in vectors[:MOST_VECTORS]:
        if outputs and monotonic() - start > MOST_SECONDS:
            break
        outputs.append(program.run(vector.inputs))
    tolerances = artifact.manifest.golden
    if len(outputs) < len(vectors):
        # The root mean square is promised of all vectors together: a few of them may have all of the error.
        tolerances = {
            name: {limit: value for limit, value in limits.items() if limit != "rms_error"}
            for name, limits in tolerances.items()
        }
    given = iter(outputs)
    return run_golden_vectors(lambda _: next(given), vectors[: len(outputs)], tolerances)


def _sentence(artifact: Artifact, spec: EngineSpec, program: Program, result: SelfTestResult) -> str:
    worst = result.worst
    assert worst is not None, "without outputs, nothing fails"
    found = f"largest error {worst.max_abs_error:.3g}, allowed {worst.tolerance:.3g}"
    if worst.max_abs_error <= worst.tolerance:
        found = f"root mean square error {worst.rms_error:.3g}, allowed {worst.rms_tolerance:.3g}"
    return (
        f"{artifact.path}: this device computes something else than the artifact promises, with {spec.name} "
        f"{program.engine_version} on {spec.device}: golden vector {worst.vector}, output {worst.output!r}: "
        f"{found}; run  edgec verify  for all of them, and to see whether the file is damaged; update the "
        "engine or its driver, or compile for this device; load(..., self_test=False) loads it all the same"
    )


def _mark(artifact: Artifact, program: Program, spec: EngineSpec, options: LoadOptions) -> Path | None:
    """Return the file that says that the test passed; None where the user has no home."""
    from edgec.runtime._home import user_cache

    library = "" if options.delegate is None else f"{options.delegate} {_changed(options.delegate)}"
    # A home may be shared by machines. The digest is what the manifest promises: a copy may be damaged.
    facts = (
        artifact.content_digest, _changed(artifact.path), spec.name, program.engine_version, spec.device,
        spec.precision, library,
        sorted((name, sorted(given.items())) for name, given in options.providers.items()),
        os.uname() if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", ""), _cpu(),
    )  # fmt: skip
    try:
        home = user_cache("marks of self-tests", "self_test=False")
    except OutputError:
        return None
    return home / "self-tests" / sha256(repr(facts).encode()).hexdigest()


def _cpu() -> str:
    """Return what the CPU can do, as disks move between machines; empty where the system does not tell."""
    try:
        with open("/proc/cpuinfo", "rb") as file:
            lines = file.read(16384).splitlines()
    except OSError:
        return ""
    telling = [line for line in lines if line.startswith((b"model name", b"flags", b"Features", b"CPU part"))]
    return sha256(b"\n".join(dict.fromkeys(telling))).hexdigest()


def _changed(path: Path) -> tuple[int, int, int, int]:
    """Return what tells a file from another, and from itself before it was written into; zeros if unknown."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0, 0, 0
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a home that this user may not look into
        return False


def _keep(mark: Path) -> None:
    """Write the mark, where that can be; on a device whose disk is read-only each start tests again."""
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        kept = sorted(mark.parent.iterdir(), key=_changed)
        for old in kept[: max(0, len(kept) - _MOST_KEPT + 1)]:
            old.unlink(missing_ok=True)
        mark.touch()
