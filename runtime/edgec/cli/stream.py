"""``edgec stream``: an artifact over a camera, a video, files, sound or messages."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _options
from edgec.errors import SourceError

if TYPE_CHECKING:
    from edgec.runtime.streams import Predictor, Stream, StreamResult, StreamStatistics

_EVERY_S = 1.0
_SUFFIXES = (".jsonl",)


def _check_output(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.startswith(("mqtt://", "mqtts://")) and not value.endswith(_SUFFIXES):
        raise click.BadParameter(f"expected a name that ends in .jsonl, or mqtt://host/topic, got {value!r}")
    return value


def _check_state(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if not all(part for part in value.partition("=")):
            raise click.BadParameter(f"expected INPUT=OUTPUT, got {value!r}")
    return {value.partition("=")[0]: value.partition("=")[2] for value in values}


def _check_fixed(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for value in values:
        name, _sign, number = value.partition("=")
        try:
            numbers[name] = int(number) if number.lstrip("-").isdecimal() else float(number)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"expected INPUT=NUMBER, got {value!r}")
    return numbers


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--source",
    "-s",
    required=True,
    metavar="SOURCE",
    help="A camera (0, /dev/video0), rtsp://..., http://..., mqtt://host/topic, mic, mic:DEVICE, - (16-bit "
    "samples of sound on standard input), or the path of a video, a sound, an image, a folder or a pattern.",
)
@click.option(
    "--policy",
    type=click.Choice(["latest", "drop_oldest", "block"]),
    help="What happens to samples that come too fast: only the newest waits, the oldest give way, or the "
    "source waits. Default: latest for what is live, else block.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(0, min_open=True),
    help="The oldest that a sample may be when its result comes out; older ones are dropped.",
)
@click.option("--queue", type=click.IntRange(1), default=8, show_default=True, help="Samples that may wait.")
@click.option(
    "--on-error",
    type=click.Choice(["raise", "drop"]),
    default="raise",
    show_default=True,
    help="Whether a sample that cannot be predicted ends the stream, or is dropped and counted.",
)
@click.option(
    "--annotate",
    type=click.Path(path_type=Path),
    metavar="VIDEO|DIR",
    help="Draw the predictions on the pictures: a video by its suffix (.mp4, .avi, .mkv), else a folder.",
)
@click.option(
    "--output",
    "-o",
    callback=_check_output,
    metavar="JSONL|URL",
    help="Write each result as JSON: results.jsonl, or mqtt://host/topic.",
)
@click.option("--duration-s", type=click.FloatRange(0, min_open=True), help="End after this time.")
@click.option("--realtime", is_flag=True, help="Let a video or a sound take as long as it lasts.")
@click.option("--watch", is_flag=True, help="Wait for new files of a folder or a pattern.")
@click.option("--window", type=click.IntRange(1), help="Samples of sound that the model takes.")
@click.option("--hop", type=click.IntRange(1), help="Samples of sound from one window to the next.")
@click.option(
    "--rate", type=click.IntRange(1), default=16_000, show_default=True, help="Samples of sound per second."
)
@click.option(
    "--state",
    multiple=True,
    callback=_check_state,
    metavar="INPUT=OUTPUT",
    help="Carry a state from call to call: the output becomes the input. May be given several times.",
)
@click.option(
    "--fixed",
    multiple=True,
    callback=_check_fixed,
    metavar="INPUT=NUMBER",
    help="An input that is this number in every call, such as sr=16000. May be given several times.",
)
@_options.threads
@_options.engine_cache
@_options.delegate
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, not text.")
def command(
    artifact: Path,
    source: str,
    policy: Any,
    deadline_ms: float | None,
    queue: int,
    on_error: Any,
    annotate: Path | None,
    output: str | None,
    duration_s: float | None,
    realtime: bool,
    watch: bool,
    window: int | None,
    hop: int | None,
    rate: int,
    state: dict[str, str],
    fixed: dict[str, float],
    threads: int | None,
    cache_dir: Path | None,
    delegate: Path | None,
    as_json: bool,
) -> None:
    """Run an artifact, or a chain, on what comes from a source, for as long as it comes.

    Ends with the source, after --duration-s, or on Ctrl-C or SIGTERM, and then says how it went.

    \b
    edgec stream faces.edgec --source 0 --deadline-ms 200 --annotate faces.mp4
    edgec stream digits.edgec --source inbox/ --watch --output results.jsonl
    edgec stream faces.edgec --source rtsp://camera/1 --output mqtt://broker/door/faces
    edgec stream alarm.edgec --source kitchen.wav --rate 8000 --state state=next_state
    """
    from edgec.cli._chains import is_chain
    from edgec.cli._stream_inputs import make_predictor
    from edgec.runtime import load, load_chain
    from edgec.runtime.streams import Stream, annotation_sink, open_sink, open_source

    with ExitStack() as stack:
        options: dict[str, Any] = {"threads": threads, "cache_dir": cache_dir, "delegate": delegate}
        if is_chain(artifact):
            if state or fixed:
                raise click.UsageError("--state and --fixed are for artifacts; a chain declares its own")
            session: Any = stack.enter_context(load_chain(artifact, **options))
        else:
            session = stack.enter_context(load(artifact, **options))
        opened = open_source(
            source, session, realtime=realtime, watch=watch, window=window, hop=hop, rate=rate
        )
        predictor: Predictor = session
        if not is_chain(artifact):
            predictor = make_predictor(session, state, fixed, opened)
        sinks = []
        if output is not None:
            sinks.append(open_sink(output))
        if annotate is not None:
            sinks.append(annotation_sink(annotate))
        for sink in sinks:
            stack.callback(sink.close)
        stream = stack.enter_context(
            Stream(opened, predictor, policy=policy, deadline_ms=deadline_ms, queue=queue, on_error=on_error)
        )
        show = _Line(stream, as_json or output is not None)
        with _ended_by_signals() as ended:
            stream.run(*sinks, show, duration_s=duration_s)
        show.end()
        stream.close()
        statistics = stream.statistics
    nothing_came = bool(statistics.last_error) and not statistics.captured and not ended
    if as_json:
        click.echo(json.dumps({"artifact": str(artifact), **statistics.to_dict()}, indent=2))
    else:
        _summarize(statistics, with_error=not nothing_came)
    if nothing_came:
        # The time was over before the source was open, or it never gave anything.
        raise SourceError(f"nothing came from the source: {statistics.last_error}")


@contextmanager
def _ended_by_signals() -> Iterator[list[int]]:
    """End what is within on Ctrl-C and SIGTERM, and go on after it; what is given then has an entry."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield ended
    except KeyboardInterrupt:
        ended.append(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Line:
    """Shows how a stream does, on a terminal; and results as lines, where nothing else takes them."""

    def __init__(self, stream: Stream, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._quiet, self._clock = stream, quiet, clock
        self._terminal = sys.stderr.isatty()
        self._next = clock() + _EVERY_S
        self._shown = False

    def __call__(self, result: StreamResult) -> None:
        if not self._quiet:
            from edgec.cli._text import printable

            if self._terminal and self._shown:
                self.end()
            name = result.name or str(result.index)
            click.echo(printable(f"{name}: {json.dumps(result.to_dict()['prediction'])}"))
        if self._terminal and self._clock() >= self._next:
            self._next = self._clock() + _EVERY_S
            s = self._stream.statistics
            dropped = sum(s.dropped.values())
            line = f"{s.fps_in:.1f} in/s, {s.fps_out:.1f} out/s, {s.given} given, {dropped} dropped"
            click.echo(f"\r{line}, age p95 {s.age_ms.quantile(0.95):.1f} ms   ", nl=False, err=True)
            self._shown = True

    def end(self) -> None:
        """End the line that changes, if there is one."""
        if self._shown:
            click.echo(err=True)
            self._shown = False


def _summarize(statistics: StreamStatistics, *, with_error: bool) -> None:
    s = statistics
    causes = ", ".join(f"{count} {cause}" for cause, count in s.dropped.items() if count)
    dropped = f"{sum(s.dropped.values())} dropped" + (f" ({causes})" if causes else "")
    click.echo(
        f"{s.captured} captured, {s.given} given, {dropped} in {s.seconds:.2f} s: {s.fps_in:.1f} in/s, "
        f"{s.fps_out:.1f} out/s",
        err=True,
    )
    if s.given:
        click.echo(
            f"latency p50 {s.latency_ms.quantile(0.5):.2f} ms, p95 {s.latency_ms.quantile(0.95):.2f} ms; "
            f"age p50 {s.age_ms.quantile(0.5):.2f} ms, p95 {s.age_ms.quantile(0.95):.2f} ms",
            err=True,
        )
    if s.reconnects:
        click.echo(f"the source was opened again {s.reconnects} times", err=True)
    if s.last_error and with_error:
        from edgec.cli._text import printable

        click.echo(f"last error: {printable(s.last_error)}", err=True)
