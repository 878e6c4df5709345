"""A candidate that sees a sample of live inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import IncompatibleArtifactError

if TYPE_CHECKING:
    from edgec.runtime._session import Session

Arrays = Mapping[str, NDArray[Any]]
_KEPT_TIMES = 1000


@dataclass(frozen=True, kw_only=True)
class ShadowReport:
    """How a candidate did beside the live model.

    Attributes:
        sampled: Calls that were chosen for it.
        dropped: Of these, those that its queue had no room for.
        failed: Of these, those that it failed on.
        compared: Of these, those that both answered.
        disagreed: Of the compared, those where the answers are not the same to the application.
        non_finite: Of the compared, those where only the candidate gave NaN or infinity.
        max_abs_error: Largest difference of two numbers, by output; infinite where shapes differ.
        live_p50_ms: Median latency of the live model, of the last 1000 compared calls; NaN of none.
        candidate_p50_ms: Of the candidate, likewise.
        last_error: What it failed with last; empty where it did not.
        scored: Of the compared, those where both gave scores.
        live_score: Mean over these of the highest score of the live model, from 0 to 1; NaN of none.
        candidate_score: Of the candidate, likewise.
    """

    sampled: int
    dropped: int
    failed: int
    compared: int
    disagreed: int
    non_finite: int
    max_abs_error: Mapping[str, float]
    live_p50_ms: float
    candidate_p50_ms: float
    last_error: str
    scored: int
    live_score: float
    candidate_score: float


class Shadow:
    """Made by ``Host.shadow``.

    Attributes:
        candidate: Version that sees the sample.
    """

    candidate: str

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        candidate: str,
        *,
        fraction: float,
        max_queue: int,
        agree: Callable[[Arrays, Arrays], bool] | None,
    ) -> None:
        """Start its thread.

        Raises:
            ValueError: The fraction is not within 0 and 1, or the queue is below 1.
        """
        if not 0 <= fraction <= 1 or max_queue < 1:
            raise ValueError(
                f"expected a fraction from 0 to 1 and a queue of at least 1, got {fraction} and {max_queue}"
            )
        self.candidate = candidate
        self._run = run
        self._agree = agree or same_to_most
        self._fraction = fraction
        self._due = 0.0
        self._most = max_queue
        self._changed = Condition()
        self._queue: deque[tuple[Arrays, Arrays, float]] = deque()
        self._busy = False
        self._closed = False
        self._sampled = self._dropped = self._failed = self._compared = self._disagreed = 0
        self._non_finite = self._scored = 0
        self._live_score = self._own_score = 0.0
        self._errors: dict[str, float] = {}
        self._live: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._own: deque[float] = deque(maxlen=_KEPT_TIMES)
        self._last_error = ""
        self._thread = Thread(target=self._work, name="edgec-shadow", daemon=True)
        self._thread.start()

    def wants(self) -> bool:
        """Return whether this call is in the sample: evenly spread over all calls."""
        # Threads may lose a count to each other; a lock would cost more than that.
        due = self._due + self._fraction
        self._due = due - 1 if due >= 1 else due
        return due >= 1

    def around(self, run: Callable[[Arrays], dict[str, NDArray[Any]]]) -> Callable[[Arrays], Any]:
        """Return a function that runs the live model as another one, and shows a sample to the candidate."""

        def shadowed(inputs: Arrays) -> dict[str, NDArray[Any]]:
            if not self.wants():
                return run(inputs)
            start = perf_counter()
            outputs = run(inputs)
            self.offer(inputs, outputs, perf_counter() - start)
            return outputs

        return shadowed

    def offer(self, inputs: Arrays, outputs: Arrays, seconds: float) -> None:
        """Show a call to the candidate, later; nothing where too many wait.

        Args:
            inputs: Of the call; copied.
            outputs: Of the live model; copied.
            seconds: That it took.
        """
        with self._changed:
            self._sampled += 1
            if self._closed or len(self._queue) >= self._most:
                self._dropped += 1
                return
        # Outside of the lock. So many may wait as there are callers beyond the bound, and no more.
        copies = {n: np.array(a) for n, a in inputs.items()}, {n: np.array(a) for n, a in outputs.items()}
        with self._changed:
            self._queue.append((*copies, seconds))
            self._changed.notify_all()

    def report(self) -> ShadowReport:
        """Return what is known by now."""
        with self._changed:
            return ShadowReport(
                sampled=self._sampled,
                dropped=self._dropped,
                failed=self._failed,
                compared=self._compared,
                disagreed=self._disagreed,
                non_finite=self._non_finite,
                max_abs_error=dict(self._errors),
                live_p50_ms=_median_ms(self._live),
                candidate_p50_ms=_median_ms(self._own),
                last_error=self._last_error,
                scored=self._scored,
                live_score=self._live_score / self._scored if self._scored else float("nan"),
                candidate_score=self._own_score / self._scored if self._scored else float("nan"),
            )

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing waits for the candidate; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self) -> None:
        """End it; what waits is dropped. The report stays."""
        with self._changed:
            self._closed = True
            self._dropped += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                inputs, live, seconds = self._queue.popleft()
                self._busy = True
            self._compare(inputs, live, seconds)

    def _compare(self, inputs: Arrays, live: Arrays, seconds: float) -> None:
        start = perf_counter()
        try:
            own = self._run(inputs)
            taken = perf_counter() - start
            errors = {name: _largest_error(live[name], own[name]) for name in live}
            agree = self._agree(live, own)
            broken = is_finite(live) and not is_finite(own)
            scores = top_score(live), top_score(own)
        except Exception as e:  # noqa: BLE001 - an application's `agree` may raise anything
            with self._changed:
                self._failed += 1
                self._last_error = str(e) or type(e).__name__
            return
        with self._changed:
            self._compared += 1
            self._disagreed += not agree
            self._non_finite += broken
            if scores[0] is not None and scores[1] is not None:
                self._scored += 1
                self._live_score += scores[0]
                self._own_score += scores[1]
            self._live.append(seconds)
            self._own.append(taken)
            for name, error in errors.items():
                self._errors[name] = max(error, self._errors.get(name, 0.0))


def check_same_interface(live: Session, other: Session) -> None:
    """Raise IncompatibleArtifactError where two sessions have not the same inputs and outputs."""
    if (live.inputs, live.outputs) != (other.inputs, other.outputs):
        raise IncompatibleArtifactError(
            f"a candidate sees what the live model takes, {', '.join(map(str, live.inputs))}, and is "
            f"compared by what that gives, {', '.join(map(str, live.outputs))}; it has "
            f"{', '.join(map(str, other.inputs))} and {', '.join(map(str, other.outputs))}"
        )


def same_to_most(live: Arrays, candidate: Arrays) -> bool:
    """Return whether integers, texts, and the largest value along the last axis are the same."""
    return all(_same(live[name], candidate[name]) for name in live)


def is_finite(outputs: Arrays) -> bool:
    """Return whether no output has a NaN or an infinity."""
    return all(bool(np.isfinite(value).all()) for value in outputs.values() if value.dtype.kind in "fc")


def top_score(outputs: Arrays) -> float | None:
    """Return the highest probability of the first output that holds such, or logits of classes."""
    for value in outputs.values():
        if value.dtype.kind == "f" and value.ndim and value.shape[-1] > 1 and is_finite({"": value}):
            rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
            if not rows.size:
                continue
            if not (rows.min() >= 0 and rows.max() <= 1):
                rows = np.exp(rows - rows.max(-1, keepdims=True))
                rows /= rows.sum(-1, keepdims=True)
            return float(rows.max(-1).mean())
    return None


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind == "f" and a.ndim and a.shape[-1] > 1 and a.size:
        return bool(np.array_equal(a.argmax(-1), b.argmax(-1)))
    if a.dtype.kind in "fc":
        return bool(np.allclose(a, b, rtol=0.05, atol=1e-6, equal_nan=True))
    return bool(np.array_equal(a, b))


def _largest_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.dtype.kind not in "biufc":
        return 0.0 if np.array_equal(a, b) else float("inf")
    from edgec.runtime._self_test import max_abs_error

    return max_abs_error(a, b)


def _median_ms(seconds: Sequence[float] | deque[float]) -> float:
    return float(np.median(seconds)) * 1e3 if seconds else float("nan")
