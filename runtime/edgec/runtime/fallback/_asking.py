"""A session with a fallback: when it asks, what it does with the answer, and how it says so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import BackendUnavailableError, FallbackError, InferenceError, InputError, OverloadedError
from edgec.runtime._looking import scores_of
from edgec.runtime.fallback._answer import REMOTE, Answer
from edgec.runtime.fallback._conditions import ENGINE_ERROR, LOW_CONFIDENCE, OVERLOADED, UNSUPPORTED
from edgec.runtime.fallback._options import Fallback
from edgec.runtime.fallback._remote import Question, Remote
from edgec.runtime.pipeline import Context, Processor

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgec.artifact import Artifact, Manifest
    from edgec.runtime._observer import Observer
    from edgec.runtime._session import Session

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], "dict[str, NDArray[Any]]"]
PRIVACY = "privacy"
_WEIGHT = 0.2  # of the latest call in what a call here is expected to take
_RESERVE = 1.5


class AbsentProgram:
    """Stands where an engine would be that is not here."""

    engine_version = ""
    precisions: Mapping[str, int] = {}
    placement: Mapping[str, int] = {}

    def __init__(self, reason: str, precision: str) -> None:
        """Say why, and what the artifact promises."""
        self._reason = reason
        self.precision = precision

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Refuse."""
        raise BackendUnavailableError(
            f"{self._reason}; the server is asked instead, where a call allows that"
        )

    def close(self) -> None:
        """Do nothing."""


class Asking:
    """What a session asks its server with. Safe from several threads."""

    def __init__(self, fallback: Fallback, remote: Remote | None = None) -> None:
        """Connect to nobody yet.

        Args:
            fallback: What the application says.
            remote: None for one as `fallback` says.
        """
        self.fallback = fallback
        self.remote = Remote(fallback) if remote is None else remote
        self._lock = Lock()
        self._running = 0
        self._local_s = 0.0

    def around(self, session: Session, run: Run, observer: Observer | None) -> Run:
        """Return a function that runs a model as `run` does, and asks the server where that is wanted.

        Args:
            session: Whose present model it is.
            run: Runs it here.
            observer: That is told of what was asked.
        """
        return _Model(self, session, run, observer)

    def submit(
        self,
        session: Session,
        queue: Callable[[], Future[dict[str, NDArray[Any]]]],
        inputs: Arrays,
    ) -> Future[dict[str, NDArray[Any]]]:
        """Queue a call, or ask the server where the queue is full."""
        try:
            return queue()
        except OverloadedError as error:
            model = session.current_run()
            if not self.fallback.wants(OVERLOADED) or not isinstance(model, _Model):
                raise
            from concurrent.futures import Future  # here, because its import takes 5 ms

            future: Future[dict[str, NDArray[Any]]] = Future()
            future.set_running_or_notify_cancel()
            deadline = time.monotonic() + self.fallback.deadline_ms / 1e3
            Thread(target=_settle, args=(future, model, inputs, deadline, error), daemon=True).start()
            return future

    def close(self) -> None:
        """Close connections."""
        self.remote.close()

    def enter(self) -> bool:
        """Begin a call here, unless too many run."""
        most = self.fallback.max_local
        with self._lock:
            if most is not None and self._running >= most and self.fallback.wants(OVERLOADED):
                return False
            self._running += 1
            return True

    def leave(self, seconds: float | None) -> None:
        """End a call here; `seconds` is what it took, None where it failed."""
        with self._lock:
            self._running -= 1
            if seconds is not None:
                weight = _WEIGHT if self._local_s else 1.0
                self._local_s += weight * (seconds - self._local_s)

    @property
    def local_s(self) -> float:
        """What a call here takes, about; 0 where that is not known."""
        return self._local_s


class _Model:
    """One artifact, run here or there."""

    def __init__(self, asking: Asking, session: Session, run: Run, observer: Observer | None) -> None:
        self._asking, self._session, self._local, self._observer = asking, session, run, observer
        fallback = asking.fallback
        self._question = Question(session.manifest, session.content_digest, fallback)
        self._stays = session.manifest.privacy.inputs_stay
        self._absent = isinstance(session.current_program(), AbsentProgram)
        self._least = fallback.least_confidence
        self._scores = scores_of(session.manifest) if self._least else None
        self._deadline_s = fallback.deadline_ms / 1e3

    def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        begun = time.monotonic()
        deadline = begun + self._deadline_s
        if self._absent:
            return self.ask(inputs, deadline, UNSUPPORTED)
        if not self._asking.enter():
            return self._overloaded(inputs, deadline)
        return self._entered(inputs, deadline)

    def ask(self, inputs: Arrays, deadline: float, reason: str) -> Answer:
        """Return what the server says.

        Raises:
            FallbackError: It says nothing of use.
        """
        try:
            if self._stays:
                raise FallbackError("the artifact forbids its inputs to leave this device", PRIVACY)
            answer = Answer(self._asking.remote.ask(self._question, inputs, deadline), REMOTE, reason)
        except FallbackError as e:
            self._count(f"local:{reason}:{e.reason}")
            raise
        self._count(f"remote:{reason}")
        return answer

    def _entered(self, inputs: Arrays, deadline: float, reason: str = "", trouble: str = "") -> Answer:
        """Run here, where a place was taken already."""
        took, start = None, time.monotonic()
        try:
            outputs = self._local(inputs)
            took = time.monotonic() - start
        except InputError:
            raise
        except InferenceError as error:
            # Of a session that was swapped, the new model is to run it, here.
            if not self._asking.fallback.wants(ENGINE_ERROR) or self._session.current_run() is not self:
                raise
            try:
                return self.ask(inputs, deadline, ENGINE_ERROR)
            except FallbackError as e:
                raise error from e
        finally:
            self._asking.leave(took)
        if reason or not self._is_unsure(outputs):
            return Answer(outputs, reason=reason, trouble=trouble)
        try:
            return self.ask(inputs, deadline, LOW_CONFIDENCE)
        except FallbackError as e:
            return Answer(outputs, reason=LOW_CONFIDENCE, trouble=e.reason)

    def _overloaded(self, inputs: Arrays, deadline: float) -> Answer:
        """Ask the server; where it says nothing and there is time left, run here after all."""
        reserve = _RESERVE * self._asking.local_s
        keeps = 2 * reserve < self._deadline_s
        try:
            return self.ask(inputs, deadline - reserve if keeps else deadline, OVERLOADED)
        except FallbackError as e:
            if time.monotonic() + self._asking.local_s >= deadline:
                raise OverloadedError(
                    f"{self._asking.fallback.max_local} calls run here already, and {e}"
                ) from e
            while not self._asking.enter():  # beyond the limit, rather than no answer
                if time.monotonic() + self._asking.local_s >= deadline:
                    raise OverloadedError(
                        f"{self._asking.fallback.max_local} calls run here already, and {e}"
                    ) from e
                time.sleep(0.001)
            return self._entered(inputs, deadline, OVERLOADED, e.reason)

    def _is_unsure(self, outputs: Arrays) -> bool:
        scores = None if self._scores is None else self._scores(outputs)
        # NaN is unsure, too.
        return scores is not None and not float(np.max(scores, axis=1).min()) >= self._least

    def _count(self, what: str) -> None:
        if self._observer is not None:
            self._observer.fell_back(what)


class AnsweringProcessor(Processor):
    """Does what another processor does; its predictions say where they came from."""

    def __init__(self, plain: Processor) -> None:
        """Stand in front of `plain`."""
        self._plain = plain

    def preprocess(self, sample: Any) -> tuple[dict[str, NDArray[Any]], Context]:
        """See `Processor.preprocess`."""
        return self._plain.preprocess(sample)

    def postprocess(self, outputs: Mapping[str, NDArray[Any]], context: Context) -> dict[str, Any]:
        """See `Processor.postprocess`."""
        prediction = self._plain.postprocess(outputs, context)
        return outputs.with_values(prediction) if isinstance(outputs, Answer) else prediction


def check_confidence(manifest: Manifest, fallback: Fallback) -> None:
    """Do nothing if an artifact says where its confidence is, or nobody asks for it.

    Raises:
        ValueError: It does not.
    """
    if fallback.least_confidence and scores_of(manifest) is None:
        raise ValueError(
            "low_confidence: the artifact says nowhere how sure it is: its pipeline has to end in scores "
            "(top_k or threshold), or its observe.scores has to name an output"
        )


def absent_program(artifact: Artifact, fallback: Fallback | None, error: InferenceError) -> AbsentProgram:
    """Return what stands for an engine that cannot run an artifact.

    Raises:
        InferenceError: `error`: the server may not be asked.
    """
    manifest = artifact.manifest
    if fallback is None or not fallback.wants(UNSUPPORTED) or manifest.privacy.inputs_stay:
        raise error
    return AbsentProgram(str(error), manifest.engine.precision)


def _settle(
    future: Future[dict[str, NDArray[Any]]],
    model: _Model,
    inputs: Arrays,
    deadline: float,
    error: OverloadedError,
) -> None:
    try:
        future.set_result(model.ask(inputs, deadline, OVERLOADED))
    except FallbackError as e:
        error.__cause__ = e
        future.set_exception(error)
    except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who waits
        future.set_exception(e)
