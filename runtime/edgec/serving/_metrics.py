"""Counters of the server, and their text for Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgec.serving._scheduling import Batching

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Upper bounds of the latency histogram, in seconds.
_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip


class ModelMetrics:
    """What is counted of one model; only the event loop writes it.

    Attributes:
        in_flight: Inferences that run now.
        queued: Requests that wait for their turn.
        refused: Requests refused because the queue was full, or their own limit of waiting was over.
        abandoned: Requests whose client went away before their turn.
        stopped: Inferences that were given up while they ran: their client went away, or their deadline came.
        run_s: Time that inferences in threads took, in seconds.
        unheard_s: Of it, that of inferences whose client was gone when they ended.
        batching: Whether calls are joined; None where nobody asked.
    """

    def __init__(self, model: str, version: str, artifact: str = "") -> None:
        self.labels = f'model="{_escaped(model)}",version="{_escaped(version)}"'
        if artifact:
            self.labels += f',artifact="{_escaped(artifact)}"'
        self.in_flight = 0
        self.queued = 0
        self.refused = 0
        self.abandoned = 0
        self.stopped = 0
        self.run_s = 0.0
        self.unheard_s = 0.0
        self.batching: Batching | None = None
        self._statuses: dict[int, int] = {}
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def count(self, status: int, seconds: float) -> None:
        """Count a request that was answered, and how long it took from its last byte on."""
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._buckets[bisect_left(_BOUNDS, seconds)] += 1
        self._seconds += seconds

    def computed(self, seconds: float, *, heard: bool) -> None:
        """Count what an inference took, and whether there was anybody to answer when it ended."""
        self.run_s += seconds
        self.unheard_s += 0.0 if heard else seconds

    def rows(self) -> Iterable[tuple[str, str]]:
        """Yield the name of a metric and a line of it."""
        for status, n in sorted(self._statuses.items()):
            yield "edgec_requests_total", f'edgec_requests_total{{{self.labels},code="{status}"}} {n}'
        errors = sum(n for status, n in self._statuses.items() if status >= 400)
        for name, value in (
            ("edgec_request_errors_total", errors),
            ("edgec_requests_refused_total", self.refused),
            ("edgec_requests_abandoned_total", self.abandoned),
            ("edgec_requests_stopped_total", self.stopped),
            ("edgec_queue_depth", self.queued),
            ("edgec_in_flight", self.in_flight),
            ("edgec_inference_seconds_total", self.run_s),
            ("edgec_inference_unheard_seconds_total", self.unheard_s),
        ):
            yield name, f"{name}{{{self.labels}}} {value}"
        if self.batching is not None:
            yield from self._batches(self.batching)
        yield from self._histogram()

    def _batches(self, batching: Batching) -> Iterable[tuple[str, str]]:
        batcher = batching.batcher
        name, why = "edgec_batching_enabled", f'{self.labels},reason="{_escaped(batching.reason)}"'
        yield name, f"{name}{{{why}}} {int(batcher is not None)}"
        if batcher is not None:
            for name, value in (
                ("edgec_batches_total", batcher.batches),
                ("edgec_batched_requests_total", batcher.calls),
            ):
                yield name, f"{name}{{{self.labels}}} {value}"

    def _histogram(self) -> Iterable[tuple[str, str]]:
        name, total = "edgec_request_duration_seconds", 0
        for bound, n in zip((*_BOUNDS, "+Inf"), self._buckets, strict=True):
            total += n
            yield name, f'{name}_bucket{{{self.labels},le="{bound}"}} {total}'
        yield name, f"{name}_sum{{{self.labels}}} {self._seconds!r}"
        yield name, f"{name}_count{{{self.labels}}} {total}"


_HELP = {
    "edgec_requests_total": ("counter", "Inference requests answered, by HTTP status."),
    "edgec_request_errors_total": ("counter", "Inference requests answered with an error."),
    "edgec_requests_refused_total": ("counter", "Requests refused because the queue was full or too slow."),
    "edgec_requests_abandoned_total": ("counter", "Requests whose client went away while they waited."),
    "edgec_requests_stopped_total": ("counter", "Requests whose client, or deadline, went while they ran."),
    "edgec_queue_depth": ("gauge", "Requests that wait for their turn."),
    "edgec_in_flight": ("gauge", "Inferences that run now."),
    "edgec_inference_seconds_total": ("counter", "Time that inferences took in threads."),
    "edgec_inference_unheard_seconds_total": ("counter", "Of it, for clients that were gone at the end."),
    "edgec_batching_enabled": ("gauge", "Whether requests that come together run as one, and why."),
    "edgec_batches_total": ("counter", "Inferences that requests were joined into."),
    "edgec_batched_requests_total": ("counter", "Requests that went through them."),
    "edgec_request_duration_seconds": ("histogram", "From the last byte of a request to its response."),
}


def exposition(metrics: Iterable[ModelMetrics]) -> bytes:
    """Return all metrics as Prometheus reads them."""
    lines: dict[str, list[str]] = {name: [] for name in _HELP}
    for model in metrics:
        for name, line in model.rows():
            lines[name].append(line)
    text = []
    for name, (kind, what) in _HELP.items():
        text += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", *lines[name]]
    return ("\n".join(text) + "\n").encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
