"""Which calls of a model run together, and whose turn it is where models share a device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from logging import getLogger
from time import monotonic
from typing import Any, TypeVar

from numpy.typing import NDArray

from edgec.artifact import Manifest, TensorSpec
from edgec.errors import DeadlineError, ServingError
from edgec.runtime import Batcher, Pool, Session
from edgec.runtime._batcher import LEAST_GAIN
from edgec.runtime._interrupt import interrupt_here
from edgec.serving._models import ServedModel

T = TypeVar("T")
# A model that is faster than this runs on the event loop, where waiting for others would be the slowest part.
_LEAST_BATCHED_S = 0.0005
# What `max_batch` inferences may take one by one: measuring does that at least twice.
_LONGEST_PROBE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How the models of a server share its machine.

    Attributes:
        max_batch: Most rows of one joined call; 1 to join none.
        max_delay_ms: How long a request may wait for others while the model is idle.
        side_by_side: Inferences of one model that run at once where calls are not joined.
        queue: Calls of one model that may wait to be joined.
        pool: Runs the inferences of all models by priority; None where each runs when it comes.
        priorities: By name of the model; 0 for the others.
        isolated: Whether models run in processes of their own.
    """

    max_batch: int = 1
    max_delay_ms: float = 0.0
    side_by_side: int = 1
    queue: int = 128
    pool: Pool | None = None
    priorities: Mapping[str, float] = field(default_factory=dict)
    isolated: bool = False

    def apply(self, model: ServedModel, run_s: float) -> ServedModel:
        """Return a model that is called as this says; closing it closes the one that was given.

        Args:
            model: That was just loaded.
            run_s: Median time of one inference, in seconds.

        Raises:
            ServingError: It is a chain, and has a priority.
            InferenceError: It fails when it is measured.
        """
        name = model.manifest.model
        if not isinstance(model, Session):
            if name in self.priorities:
                raise ServingError(f"{name!r} is a chain, and only models have priorities: leave its out")
            return model
        if self.pool is not None:
            model.set_pool(self.pool, self.priorities.get(name, 0.0))
        return ScheduledModel(model, self._batching(model, run_s), self)

    def _batching(self, model: Session, run_s: float) -> Batching:
        found = self._measured(model, run_s)
        version, state = model.manifest.model_version, "on" if found.batcher else "off"
        getLogger("edgec.serving").info(
            "%s %s: batching %s: %s", model.manifest.model, version, state, found.reason
        )
        return found

    def _measured(self, model: Session, run_s: float) -> Batching:
        if self.max_batch < 2:
            return Batching(None, "it is turned off")
        if run_s < _LEAST_BATCHED_S:
            return Batching(None, f"an inference takes {run_s * 1e3:.2f} ms only")
        if (longest := run_s * self.max_batch) > _LONGEST_PROBE_S:
            return Batching(None, f"{self.max_batch} inferences take {longest:.1f} s, too long to measure it")
        batcher = Batcher(
            model, max_batch=self.max_batch, max_delay_ms=self.max_delay_ms, max_queue=self.queue
        )
        # Joined calls run one after the other; those that are not, side by side.
        needed = LEAST_GAIN * self.side_by_side
        if not batcher.enabled or batcher.gain < needed:
            batcher.close()
            reason = batcher.reason
            if batcher.enabled:
                reason = (
                    f"{self.max_batch} calls as one are {batcher.gain:.2f} times as fast, and "
                    f"{self.side_by_side} at once are, too; from {needed:g} it would pay"
                )
            return Batching(None, reason, batcher.gain)
        return Batching(batcher, batcher.reason, batcher.gain)


@dataclass(frozen=True)
class Batching:
    """Whether calls of a model are joined.

    Attributes:
        batcher: What joins them; None where nothing does.
        reason: Why, in a sentence.
        gain: How many times faster joined calls are; NaN where that was not measured.
    """

    batcher: Batcher | None
    reason: str
    gain: float = math.nan

    @property
    def sentence(self) -> str:
        """``on: ...`` or ``off: ...``."""
        return f"{'off' if self.batcher is None else 'on'}: {self.reason}"


class ScheduledModel:
    """A session whose calls are joined, or wait for their turn among those of other models.

    Attributes:
        session: That is called.
        batching: Whether calls are joined.
        manifest: What the artifact says of itself.
        inputs: What `run` takes.
        outputs: What `run` gives.
    """

    session: Session
    batching: Batching
    manifest: Manifest
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, session: Session, batching: Batching, scheduling: Scheduling) -> None:
        self.session = session
        self.batching = batching
        self.manifest = session.manifest
        self.inputs = session.inputs
        self.outputs = session.outputs
        self._pool = scheduling.pool
        self._isolated = scheduling.isolated
        self._priority = scheduling.priorities.get(session.manifest.model, 0.0)

    @property
    def engine(self) -> str:
        """Name of the engine that runs it."""
        return self.session.engine

    @property
    def content_digest(self) -> str:
        """Digest of what the artifact is."""
        return self.session.content_digest

    @property
    def waits(self) -> bool:
        """Whether a call may wait for others, or for another process, so that it is for a thread."""
        return self._isolated or self._pool is not None or self.batching.batcher is not None

    def run(
        self, inputs: Mapping[str, NDArray[Any]], begin: float | None = None, /
    ) -> Mapping[str, NDArray[Any]]:
        """Run one inference, with others or when its turn comes.

        Args:
            inputs: Of the model.
            begin: When it has to begin, on the clock `time.monotonic`; None for whenever.

        Raises:
            DeadlineError: It was not begun by then, and not run.
        """
        left = None if begin is None else max(0.0, begin - monotonic()) * 1e3
        if self.batching.batcher is not None:
            return self.batching.batcher.run(inputs, deadline_ms=left)
        if self._pool is not None:
            return _result(self.session.submit(inputs, deadline_ms=left))
        return self.session.run(inputs)

    def predict(self, sample: object, /) -> Mapping[str, Any]:
        """Run the whole pipeline on one sample, its inference with others or when its turn comes."""
        if self.batching.batcher is not None:
            return self.batching.batcher.predict(sample)
        if self._pool is not None:
            return _result(self._pool.submit(self.session.predict, sample, priority=self._priority))
        return self.session.predict(sample)

    def close(self) -> None:
        """Free the model; calls that wait to be joined are cancelled."""
        if self.batching.batcher is not None:
            self.batching.batcher.close()
        self.session.close()


def _result(future: Future[T]) -> T:
    """Return what a call in a queue gives; it is taken out of it where nobody waits for it any more.

    Raises:
        DeadlineError: Nobody does.
    """
    interrupt = interrupt_here()
    if interrupt is not None:
        interrupt.attach(future.cancel)
    try:
        return future.result()
    except CancelledError as e:
        if interrupt is not None:
            interrupt.was_begun = False
        raise DeadlineError("nobody waits for the call any more; it was not run") from e


def session_of(model: ServedModel) -> Session | None:
    """Return the session behind a model; None for a chain."""
    if isinstance(model, ScheduledModel):
        return model.session
    return model if isinstance(model, Session) else None
