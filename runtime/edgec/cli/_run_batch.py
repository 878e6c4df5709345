"""``edgec run --output``: many samples, several at a time, resumable, past those that fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgec.evaluation import Dataset, Sample
    from edgec.runtime.journal import Journal
    from edgec.runtime.results import Result

    Source = tuple[str, Dataset | Sequence[Sample]]

# Forms in which failures have a row of their own; in the others they would spoil the columns.
_WITH_FAILURES = (".json", ".jsonl", ".csv")


def write_batch(
    content_digest: str,
    output: Path,
    sources: Sequence[Source],
    call: Callable[[Sample], Mapping[str, Any]],
    identity: Mapping[str, Any],
    jobs: int,
    annotate: Path | None,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Run all samples and write the results, when all are there, whole or not at all.

    What is finished is noted in ``OUTPUT.journal`` meanwhile, and stays there if the run is killed or samples
    fail, so that the next run does only what is left.

    Args:
        content_digest: Of what is run.
        output: Of the results.
        sources: Prefix of the names, and the samples, of each input.
        call: What to do with a sample; safe from `jobs` threads.
        identity: What else makes a run another run.
        jobs: Samples at a time.
        annotate: Folder for images with the predictions drawn on them.
        advance: Called after each sample.

    Returns:
        ``samples``, ``seconds``, ``output``, ``resumed``, ``failed``, and ``annotated`` where images were
        asked for.

    Raises:
        OutputError: A file cannot be written, or the journal is of another run.
        MissingExtraError: A package for the form of the output is missing.
    """
    from edgec.runtime.batch import run_many
    from edgec.runtime.journal import Journal
    from edgec.runtime.results import check_parquet, write_results

    if output.suffix.lower() == ".parquet":
        check_parquet()
    who = {"artifact": content_digest, **identity, "annotate": annotate and str(annotate)}
    drawing = _Drawing(call, annotate)
    start = time.perf_counter()
    with Journal(output.with_name(f"{output.name}.journal"), who) as journal:
        summary = run_many(_named(sources), drawing, journal, jobs=jobs, advance=advance)
        results = list(_results(journal, summary.failed, output.suffix.lower()))
        write_results(output, results)
        if not summary.failed:
            journal.remove()
    found: dict[str, Any] = {
        "samples": summary.done + len(summary.failed),
        "seconds": time.perf_counter() - start,
        "output": str(output),
        "resumed": summary.resumed,
        "failed": [{"name": name, "error": error} for name, error in summary.failed],
    }
    return found if annotate is None else {**found, "annotated": drawing.drawn}


class _Drawing:
    """A call that draws what it predicts, where there is a folder for that.

    Attributes:
        drawn: How many images were written.
    """

    def __init__(self, call: Callable[[Sample], Mapping[str, Any]], folder: Path | None) -> None:
        self.drawn = 0
        self._call = call
        self._folder = folder
        self._lock = Lock()

    def __call__(self, named: tuple[str, Sample]) -> Mapping[str, Any]:
        name, sample = named
        values = self._call(sample)
        if self._folder is not None and isinstance(sample.data, Path):
            from edgec.runtime.annotation import annotate

            # The name of a sample is its path within what was given, and never leads out of it.
            parts = [part for part in Path(name.replace(": ", "/")).parts if part not in ("/", "..")]
            if annotate(sample.data, values, self._folder.joinpath(*parts)):
                with self._lock:
                    self.drawn += 1
        return values


def _named(sources: Iterable[Source]) -> Iterator[tuple[str, tuple[str, Sample]]]:
    for prefix, source in sources:
        for sample in source:
            yield prefix + sample.name, (prefix + sample.name, sample)


def _results(journal: Journal, failed: Sequence[tuple[str, str]], suffix: str) -> Iterator[Result]:
    from edgec.runtime.results import Result

    for _, name, values in journal.rows():
        yield Result(name, values)
    if suffix in _WITH_FAILURES:
        for name, error in failed:
            yield Result(name, {"error": error})
