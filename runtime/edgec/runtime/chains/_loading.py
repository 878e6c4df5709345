"""From the file of a chain to a chain with all of its artifacts loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgec.errors import PipelineError
from edgec.runtime._session import Session, load
from edgec.runtime.chains._chain import Chain, at_stage
from edgec.runtime.chains._declaration import read_chain

if TYPE_CHECKING:
    from edgec.runtime._pool import Pool


def load_chain(
    path: str | Path,
    *,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    delegate: str | Path | None = None,
    allow_fallback: bool = True,
    strict: bool = True,
    self_test: bool = True,
    pool: Pool | None = None,
    priority: float = 0.0,
) -> Chain:
    """Load a chain and all of its artifacts.

    Args:
        path: Of its TOML file; see docs/chains.md.
        threads: As of `edgec.runtime.load`, for each artifact; so are the others.
        cache_dir: Where engines may keep what they compiled.
        delegate: Shared library through which LiteRT reaches the device's NPU.
        allow_fallback: Whether declared fallbacks may run.
        strict: Whether to refuse models that would run elsewhere, or more coarsely.
        self_test: Whether to run golden vectors.
        pool: Runs what is submitted.
        priority: Of what is submitted.

    Raises:
        PipelineError: The file is wrong, or its stages do not fit each other; all of it is said.
        EdgecError: As of `edgec.runtime.load`; the message names the stage.
    """
    spec = read_chain(path)
    sessions: dict[str, Session] = {}
    try:
        for name, artifact in spec.artifacts.items():
            with at_stage(name):
                sessions[name] = load(
                    artifact, threads=threads, cache_dir=cache_dir, delegate=delegate,
                    allow_fallback=allow_fallback, strict=strict, self_test=self_test, pool=pool,
                    priority=priority,
                )  # fmt: skip
        try:
            return Chain(spec, sessions, pool, priority)
        except PipelineError as e:
            raise PipelineError(f"{path}: {e}") from e
    except BaseException:
        for session in sessions.values():
            session.close()
        raise
