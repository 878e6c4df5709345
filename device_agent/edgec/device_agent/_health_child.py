"""The process in which a model is tried: reads what to do from its input, and tells in lines what it finds.

Run by `edgec.device_agent._health`, as ``python -m edgec.device_agent._health_child``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgec.artifact import Artifact
from edgec.device_agent._comparing import compare
from edgec.device_agent._findings import Finding
from edgec.device_agent._trial_inputs import Feed, edge_inputs, golden_inputs
from edgec.errors import (
    ArtifactError,
    BackendUnavailableError,
    EdgecError,
    InferenceError,
    PlacementError,
)
from edgec.runtime import Session, load
from edgec.runtime._containment import contain
from edgec.runtime._memory import resident_bytes

_PR_SET_PDEATHSIG = 1
_WARMUP = 5
_LEAST_CALLS = 20
# What engines keep for themselves in their first calls is no leak.
_LEAK_MIB = 8.0
_SLACK_MIB = 64.0
_SLACK_MS = 0.2
_OUTSIDE = 0.2


class Trial:
    """One model, tried in phases; see `run`."""

    def __init__(self, request: Mapping[str, Any], out: IO[str]) -> None:
        self._request, self._out = request, out
        self._budgets: Mapping[str, Any] = request["budgets"]
        self._end = time.monotonic() + request["seconds"]
        self._previous_mib: float | None = None

    def run(self) -> None:
        """Try it, until all was tried or the model cannot be used."""
        with ExitStack() as stack:
            previous = self._load_previous(stack)
            self._say(phase="load")
            before = resident_bytes()
            _reset_peak()
            session, artifact = self._load(stack)
            self._say(phase="golden")
            self._check_golden(session)
            self._say(phase="inputs")
            golden = golden_inputs(artifact)
            named = [(f"golden {i}", feed) for i, feed in enumerate(golden)]
            feeds = [*named, *edge_inputs(session.inputs, golden)]
            outputs = [session.run(feed) for _, feed in feeds]
            theirs = self._previous_outputs(previous, session, [feed for _, feed in feeds])
            self._check_values(artifact, feeds, outputs, theirs, len(golden))
            if previous is not None and theirs is not None:
                self._say(phase="compare")
                with Artifact.open(self._request["previous"]) as old:
                    both = _distinct([*golden, *golden_inputs(old)])
                found, figures = compare(session, previous, both, self._budgets)
                self._say(figures=figures)
                for finding in found:
                    self._find(finding)
            self._say(phase="calls")
            # What takes too much at once need not be called again and again.
            if self._fits_in_memory(session, before):
                usable = None if theirs is None else previous
                self._call_again(session, usable, [feed for _, feed in feeds])
                self._fits_in_memory(session, before)
        self._say(phase="done")

    # -- loading

    def _load_previous(self, stack: ExitStack) -> Session | None:
        path = self._request["previous"]
        if path is None:
            return None
        self._say(phase="previous")
        before = resident_bytes()
        _reset_peak()
        try:
            session = stack.enter_context(self._open(path, strict=False))
            with Artifact.open(path) as artifact:
                for feed in golden_inputs(artifact):
                    session.run(feed)
        except EdgecError as e:  # it says nothing of the new one
            self._say(figures={"previous_usable": 0.0}, note=f"the previous model: {e}")
            return None
        self._previous_mib = max(_peak_bytes() - before, 0) / 2**20
        self._say(figures={"previous_usable": 1.0, "previous_memory_mib": self._previous_mib})
        return session

    def _load(self, stack: ExitStack) -> tuple[Session, Artifact]:
        path = self._request["artifact"]
        try:
            artifact = stack.enter_context(Artifact.open(path))
            artifact.verify()
            return stack.enter_context(self._open(path, strict=True)), artifact
        except (ArtifactError, InferenceError) as e:
            words = {PlacementError: "placement", BackendUnavailableError: "engine"}
            word = "artifact" if isinstance(e, ArtifactError) else words.get(type(e), "load")
            self._find(Finding(word=word, message=str(e)))
            raise _EndOfTrial from e

    def _open(self, path: str, *, strict: bool) -> Session:
        request = self._request
        return load(
            path, threads=request["threads"], cache_dir=request["cache_dir"], strict=strict, self_test=False
        )

    # -- values

    def _check_golden(self, session: Session) -> None:
        result = session.self_test()
        worst = result.worst
        if worst is None:
            return
        self._say(figures={"golden_error": worst.max_abs_error})
        if not result.passed:
            by_rms = worst.max_abs_error <= worst.tolerance and worst.rms_tolerance is not None
            figure, limit = worst.max_abs_error, worst.tolerance
            if by_rms and worst.rms_tolerance is not None:
                figure, limit = worst.rms_error, worst.rms_tolerance
            where = f"golden vector {worst.vector}, output {worst.output!r}"
            message = f"{where}: error {figure:.3g}, allowed {limit:.3g}"
            self._find(Finding(word="golden", message=message, figure=figure, limit=limit))

    def _previous_outputs(
        self, previous: Session | None, session: Session, feeds: list[Feed]
    ) -> list[dict[str, Any]] | None:
        """Return what the previous model gives for the same inputs; None where it takes or gives others."""
        if previous is None or (previous.inputs, previous.outputs) != (session.inputs, session.outputs):
            return None
        self._say(phase="previous")
        try:
            outputs = [previous.run(feed) for feed in feeds]
        except InferenceError as e:
            self._say(figures={"previous_usable": 0.0}, note=f"the previous model: {e}")
            return None
        self._say(phase="inputs")
        return outputs

    def _check_values(
        self,
        artifact: Artifact,
        feeds: list[tuple[str, Feed]],
        outputs: list[dict[str, Any]],
        theirs: list[dict[str, Any]] | None,
        golden: int,
    ) -> None:
        """Check that numbers are finite, differ with the input, and lie where they usually do.

        What the previous model does as well is no reason to stop this one.
        """
        bad = [
            name
            for i, (name, _) in enumerate(feeds)
            if not _finite(outputs[i]) and (theirs is None or _finite(theirs[i]))
        ]
        expected = [_finite(dict(vector.outputs)) for vector in artifact.golden()]
        if bad and all(expected):
            message = f"an output has NaN or infinity for the inputs: {', '.join(bad)}"
            self._find(Finding(word="non_finite", message=message, figure=float(len(bad)), limit=0.0))
        differ = [i for i in range(len(feeds)) if i < golden or feeds[i][0].startswith("random")]
        as_before = theirs is not None and _constant([theirs[i] for i in differ])
        if len(differ) > 1 and _constant([outputs[i] for i in differ]) and not as_before:
            message = f"{len(differ)} different inputs give the same outputs"
            self._find(Finding(word="constant", message=message, figure=float(len(differ)), limit=1.0))
        for name, quantiles in artifact.manifest.reference.items():
            values = [outputs[i][name].ravel() for i in range(golden) if name in outputs[i]]
            self._check_reference(name, quantiles, values)

    def _check_reference(self, name: str, quantiles: Mapping[str, float], values: list[Any]) -> None:
        if not values or len(quantiles) < 2:
            return
        low, high = min(quantiles.values()), max(quantiles.values())
        joined = np.concatenate(values).astype(np.float64)
        span = high - low
        share = float(np.mean((joined < low - span) | (joined > high + span))) if joined.size else 0.0
        if share > _OUTSIDE:
            message = (
                f"{share:.0%} of the values of output {name!r} lie far from where the artifact says that "
                f"they usually do, {low:g} to {high:g}"
            )
            self._find(Finding(word="reference", message=message, figure=share, limit=_OUTSIDE))

    # -- time and memory

    def _call_again(self, session: Session, previous: Session | None, feeds: list[Feed]) -> None:
        """Call both models in turns, each with the same inputs; judge latency, failures and leaks."""
        mine: list[float] = []
        theirs: list[float] = []
        resident: list[int] = []
        for i in range(self._request["calls"] + _WARMUP if feeds else 0):
            if i >= _LEAST_CALLS and time.monotonic() > self._end:
                break
            feed = feeds[i % len(feeds)]
            self._say(call=i + 1)
            try:
                mine.append(_timed(session, feed))
            except InferenceError as e:
                self._find(Finding(word="call_failed", message=f"call {i + 1}: {e}", figure=float(i + 1)))
                break
            if previous is not None:
                try:
                    theirs.append(_timed(previous, feed))
                except InferenceError:
                    previous = None
            resident.append(resident_bytes())
        self._judge_latency(session, np.array(mine[_WARMUP:]) * 1e3, np.array(theirs[_WARMUP:]) * 1e3)
        self._judge_leak(resident)

    def _judge_latency(self, session: Session, mine: Any, theirs: Any) -> None:
        if not len(mine):
            return
        p50, p95 = np.quantile(mine, (0.5, 0.95)).tolist()
        self._say(figures={"calls": float(len(mine)), "latency_p50_ms": p50, "latency_p95_ms": p95})
        budget, stated = self._budgets["latency_p95_ms"], session.manifest.budgets.latency_ms
        if budget is not None:
            if p95 > budget:
                message = f"the 95th percentile of its latency is {p95:.3g} ms, {budget:g} ms are allowed"
                self._find(Finding(word="latency", message=message, figure=p95, limit=budget))
        elif stated is not None:
            if p50 > stated:
                message = f"its median latency is {p50:.3g} ms, the artifact was held to {stated:g} ms"
                self._find(Finding(word="latency", message=message, figure=p50, limit=stated))
        elif len(theirs):
            their25, their50, their95 = np.quantile(theirs, (0.25, 0.5, 0.95)).tolist()
            self._say(figures={"previous_latency_p50_ms": their50, "previous_latency_p95_ms": their95})
            limit = self._budgets["slowdown"]
            # Not of the tail, which on a busy machine is other work's; and not of one quantile alone.
            if p50 > limit * their50 + _SLACK_MS and float(np.quantile(mine, 0.25)) > limit * their25:
                message = (
                    f"its latency is {p50:.3g} ms, {p50 / their50:.1f} times that of the previous model in "
                    f"the same run; {limit:g} times are allowed"
                )
                self._find(Finding(word="latency", message=message, figure=p50 / their50, limit=limit))

    def _judge_leak(self, resident: list[int]) -> None:
        quarter = len(resident) // 4
        if quarter < 5:
            return
        at = [resident[i * quarter - 1] / 2**20 for i in (1, 2, 3, 4)]
        steps = [b - a for a, b in pairwise(at)]
        self._say(figures={"growth_mib": at[-1] - at[0]})
        if min(steps) > _LEAK_MIB / 2 and at[-1] - at[0] > 2 * _LEAK_MIB:
            each = (at[-1] - at[0]) / (3 * quarter)
            message = f"its memory grows by {each:.2f} MiB with each call"
            self._find(Finding(word="leak", message=message, figure=at[-1] - at[0], limit=2 * _LEAK_MIB))

    def _fits_in_memory(self, session: Session, before: int) -> bool:
        used = max(_peak_bytes() - before, 0) / 2**20
        self._say(figures={"memory_mib": used})
        limit = self._budgets["memory_mib"] or session.manifest.budgets.memory_mib
        told = "is allowed"
        if limit is None and getattr(self, "_previous_mib", None) is not None:
            limit, told = (
                self._budgets["growth"] * self._previous_mib + _SLACK_MIB,
                "follows from the previous model",
            )
        if limit is not None and used > limit:
            message = f"it took up to {used:.0f} MiB of memory, and {limit:.0f} MiB {told}"
            self._find(Finding(word="memory", message=message, figure=used, limit=limit))
            return False
        return True

    # -- telling

    def _find(self, finding: Finding) -> None:
        self._say(finding=finding.to_dict())

    def _say(self, **words: Any) -> None:
        print(json.dumps(words), file=self._out, flush=True)


class _EndOfTrial(Exception):
    """The model cannot be used, which was told."""


def _timed(session: Session, feed: Feed) -> float:
    start = time.perf_counter()
    session.run(feed)
    return time.perf_counter() - start


def _finite(outputs: Mapping[str, Any]) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind in "fc")


def _constant(outputs: list[dict[str, Any]]) -> bool:
    first = outputs[0]
    return all(
        value.shape == first[name].shape
        and np.array_equal(value, first[name], equal_nan=value.dtype.kind in "fc")
        for other in outputs[1:]
        for name, value in other.items()
    )


def _distinct(feeds: list[Feed]) -> list[Feed]:
    known = {tuple(value.tobytes() for value in feed.values()): feed for feed in feeds}
    return list(known.values())


def _reset_peak() -> None:
    with suppress(OSError):  # then the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def protect(request: Mapping[str, Any]) -> None:
    """Let this process go first where memory is short, bound all it takes, and end it with its parent."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    contain(memory_mib=request["memory_mib"], cpu_seconds=request["cpu_seconds"])


def main() -> None:
    """Try what the input says."""
    request = json.loads(sys.stdin.buffer.read(2**20))
    protect(request)
    # Engines print to the standard output, too: from here on that is the error stream.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        Trial(request, out).run()
    except _EndOfTrial:
        out.write(json.dumps({"phase": "done"}) + "\n")
    except (InferenceError, MemoryError) as e:
        word = "memory" if isinstance(e, MemoryError) or "alloc" in str(e).lower() else "call_failed"
        finding = Finding(word=word, message=str(e) or "there is no memory left").to_dict()
        out.write(json.dumps({"finding": finding, "phase": "done"}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
