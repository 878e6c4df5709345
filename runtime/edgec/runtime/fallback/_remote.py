"""A model on a server: asked within a deadline, whatever the server or the network does."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http.client import HTTPException
from threading import BoundedSemaphore, Event, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from numpy.typing import NDArray

from edgec.artifact import Manifest, source_digest
from edgec.errors import FallbackError
from edgec.runtime._oip import DEADLINE, DIGEST, HEADER_SIZE, SOURCE
from edgec.runtime.fallback._breaker import Breaker
from edgec.runtime.fallback._connections import Attempt, Connections, Response, TooLargeError
from edgec.runtime.fallback._options import Fallback
from edgec.runtime.fallback._wire import MalformedError, read_described, read_response, write_request

if TYPE_CHECKING:
    from edgec.runtime.fallback._unfolding import Unfolded

LATE, UNREACHABLE, REFUSED, MALFORMED, OPEN, BUSY = (
    "late", "unreachable", "refused", "malformed", "open", "busy"
)  # fmt: skip
_LONGEST_HOLD_S = 60.0
_TRY_LATER = (429, 503)
_LARGEST_METADATA = 2**20


class Question:
    """What is asked for one artifact: address, headers, and what the answer has to look like."""

    def __init__(self, manifest: Manifest, content_digest: str, fallback: Fallback) -> None:
        """Prepare it; `manifest` and `content_digest` are those of the artifact on this device."""
        name = quote(fallback.model or manifest.model, safe="")
        version = f"/versions/{quote(fallback.version, safe='')}" if fallback.version else ""
        self.model = f"/v2/models/{name}{version}"
        self.path = f"{self.model}/infer"
        self.manifest = manifest
        self.outputs = manifest.outputs
        # Only another artifact than this one can take other inputs.
        self.may_differ = fallback.match != "artifact"
        #: What has to be done to inputs for the model that answered last.
        self.unfolded: tuple[Unfolded, ...] = ()
        self.headers: dict[str, str] = {"Content-Type": "application/octet-stream"}
        self.wanted: dict[str, str] = {}
        if fallback.match == "artifact":
            self.wanted[DIGEST] = content_digest
        elif fallback.match == "source" and source_digest(manifest):
            self.wanted[SOURCE] = source_digest(manifest)
        self.headers.update(self.wanted)
        if fallback.api_key:
            self.headers["Authorization"] = f"Bearer {fallback.api_key}"


class Remote:
    """A server that may be asked. Safe from several threads; close it.

    Each request has a thread of its own, so that who asks stops waiting at the deadline even while the
    system looks up a name. A request that was given up has its connection shut down.
    """

    def __init__(self, fallback: Fallback, breaker: Breaker | None = None) -> None:
        """Connect to nobody yet.

        Args:
            fallback: Where it is, and limits.
            breaker: None for one with its defaults.
        """
        self._fallback = fallback
        self.breaker = Breaker() if breaker is None else breaker
        self._connections = Connections(fallback.url, fallback.tls, fallback.max_requests)
        self._slots = BoundedSemaphore(fallback.max_requests)

    def ask(
        self, question: Question, inputs: Mapping[str, NDArray[Any]], deadline: float
    ) -> dict[str, NDArray[Any]]:
        """Return the server's outputs.

        Args:
            question: Of the artifact.
            inputs: Of the model, checked.
            deadline: On the clock `time.monotonic`; nobody waits beyond it.

        Raises:
            FallbackError: There are none; the reason is a word of `Answer.trouble`.
        """
        if deadline - time.monotonic() <= 0:
            raise FallbackError("no time was left to ask the server", LATE)
        if not self._slots.acquire(blocking=False):
            raise FallbackError(f"{self._fallback.max_requests} requests are under way already", BUSY)
        if not self.breaker.allow():
            self._slots.release()
            raise FallbackError("the server failed lately, and is left alone for a while", OPEN)
        task = _Task(Attempt(deadline))
        Thread(target=self._work, args=(task, question, inputs), name="edgec-fallback", daemon=True).start()
        if not task.done.wait(max(0.0, deadline - time.monotonic())):
            task.attempt.give_up()
            self.breaker.failed()
            raise FallbackError("the server did not answer before the deadline", LATE)
        return self._judged(task)

    def close(self) -> None:
        """Close connections that are idle."""
        self._connections.close()

    def _work(self, task: _Task, question: Question, inputs: Mapping[str, NDArray[Any]]) -> None:
        try:
            task.outputs = self._exchange(task.attempt, question, inputs)
        except FallbackError as e:
            task.error = e
        except TimeoutError:
            task.error = FallbackError("the server did not answer before the deadline", LATE)
        except TooLargeError as e:
            task.error = FallbackError(str(e), MALFORMED)
        except (OSError, HTTPException) as e:
            said = f"{type(e).__name__}: {e}"[:200]
            task.error = FallbackError(f"{self._fallback.url} cannot be reached: {said}", UNREACHABLE)
        except MalformedError as e:
            task.error = FallbackError(f"the server's response is malformed: {e}", MALFORMED)
        except Exception as e:  # noqa: BLE001 - it belongs to who waits, who would wait until the deadline
            task.bug = e
        finally:
            self._slots.release()
            task.done.set()

    def _exchange(
        self, attempt: Attempt, question: Question, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Return outputs; where the server's model takes other inputs than this one, in its way."""
        # Calls beside this one learn, too.
        sent = question.unfolded
        try:
            return self._infer(attempt, question, _fitted(sent, inputs))
        except _Refusal as e:
            learned = self._learned(attempt, question) if e.is_malformed and question.may_differ else None
            if learned is None or learned == sent:
                raise
        question.unfolded = learned
        return self._infer(attempt, question, _fitted(learned, inputs))

    def _learned(self, attempt: Attempt, question: Question) -> tuple[Unfolded, ...] | None:
        """Ask what the server's model takes; return how to make it, None where it does not say.

        Raises:
            FallbackError: It takes what cannot be made of this artifact's inputs.
        """
        headers = {name: value for name, value in question.headers.items() if name != "Content-Type"}
        try:
            response = self._connections.ask(question.model, headers, None, attempt, _LARGEST_METADATA)
            wanted = read_described(response.body) if response.status == 200 else None
        except (MalformedError, TooLargeError):
            return None
        if wanted is None:
            return None
        from edgec.runtime.fallback._unfolding import unfolded  # with pipelines, which few need here

        return unfolded(question.manifest, wanted)

    def _infer(
        self, attempt: Attempt, question: Question, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        size, body = write_request(inputs, question.outputs)
        headers = {
            **question.headers,
            HEADER_SIZE: str(size),
            DEADLINE: str(max(1, int(attempt.left_s * 1e3))),
        }
        response = self._connections.ask(
            question.path, headers, body, attempt, self._fallback.max_response_bytes
        )
        if response.status != 200:
            raise _Refusal(response)
        for name, wanted in question.wanted.items():
            if response.headers.get(name.lower(), wanted) != wanted:
                raise FallbackError("another model answered than the one that was asked for", REFUSED)
        return read_response(response.body, response.headers.get(HEADER_SIZE.lower()), question.outputs)

    def _judged(self, task: _Task) -> dict[str, NDArray[Any]]:
        """Return the outcome, and tell the breaker."""
        if task.outputs is not None:
            self.breaker.succeeded()
            return task.outputs
        error = task.error
        if isinstance(error, _Refusal) and error.try_later:
            self.breaker.hold(error.retry_after_s)
        else:
            self.breaker.failed()
        if error is None:
            assert task.bug is not None
            raise task.bug
        if isinstance(error, _Refusal):
            raise FallbackError(str(error), error.reason)  # without the part that is for here only
        raise error


def _fitted(steps: tuple[Unfolded, ...], inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    if not steps:
        return inputs
    from edgec.runtime.fallback._unfolding import fitted

    return fitted(steps, inputs)


class _Task:
    """A request and what became of it."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.done = Event()
        self.outputs: dict[str, NDArray[Any]] | None = None
        self.error: FallbackError | None = None
        self.bug: Exception | None = None


class _Refusal(FallbackError):
    """The server answered, and not with outputs."""

    def __init__(self, response: Response) -> None:
        said = response.body[:300].decode(errors="replace")
        super().__init__(f"the server refuses with status {response.status}: {said}", REFUSED)
        self.try_later = response.status in _TRY_LATER
        self.is_malformed = response.status == 400
        after = response.headers.get("retry-after", "")
        known = after.isascii() and after.isdigit() and len(after) < 9
        self.retry_after_s = min(float(after), _LONGEST_HOLD_S) if known else 0.0
