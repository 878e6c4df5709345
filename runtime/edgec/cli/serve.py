"""``edgec serve``: artifacts over HTTP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from edgec.cli import _options

if TYPE_CHECKING:
    from edgec.serving import Server


def _read_priorities(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    priorities = {}
    for value in values:
        name, _sign, number = value.rpartition("=")
        try:
            priorities[name] = float(number)
        except ValueError as e:
            raise click.BadParameter(f"expected NAME=NUMBER, got {value!r}") from e
        if not name or not math.isfinite(priorities[name]):
            raise click.BadParameter(f"expected NAME=NUMBER, got {value!r}")
    return priorities


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0 for any that is free.",
)
@click.option(
    "--unix-socket",
    type=click.Path(path_type=Path),
    help="Listen at this socket, not at host and port; only this user may connect.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keys, one per line, of which every request must carry one.",
)
@click.option("--tls-cert", type=click.Path(dir_okay=False, path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="Its private key, PEM.")
@click.option(
    "--max-body-mb",
    type=click.IntRange(1, 2048),
    default=64,
    show_default=True,
    help="Largest body of a request, in MiB.",
)
@_options.queue
@_options.threads
@_options.max_batch
@click.option(
    "--batch-delay-ms",
    type=click.FloatRange(0, 1000),
    default=0.0,
    show_default=True,
    help="How long a request may wait for others to join while its model is idle.",
)
@click.option(
    "--priority",
    "priorities",
    multiple=True,
    metavar="NAME=N",
    callback=_read_priorities,
    help="Inferences of this model go before those of models with a smaller number; repeatable.",
)
@_options.isolate
@click.option(
    "--allow-repository-calls", is_flag=True, help="Let clients list, load again and unload the models."
)
@click.option(
    "--observe",
    is_flag=True,
    help="Show more in /metrics: latency, confidence, classes and drift of each model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is ready, not text.")
def command(
    artifacts: tuple[Path, ...],
    host: str,
    port: int,
    unix_socket: Path | None,
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    max_body_mb: int,
    queue: int,
    threads: int | None,
    max_batch: int,
    batch_delay_ms: float,
    priorities: dict[str, float],
    isolate: bool,
    allow_repository_calls: bool,
    observe: bool,
    as_json: bool,
) -> None:
    """Serve artifacts and chains over HTTP: Open Inference Protocol v2, with binary tensors.

    Ends on SIGINT or SIGTERM, after the requests in flight are answered.

    \b
    edgec serve digits.edgec
    edgec serve digits.edgec minilm.edgec --port 9000 --threads 2
    edgec serve camera.edgec archive.edgec --priority camera=1
    edgec serve digits.edgec --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem
    """
    given = click.get_current_context().get_parameter_source
    if unix_socket is not None and click.core.ParameterSource.COMMANDLINE in (given("host"), given("port")):
        raise click.UsageError("--unix-socket is instead of --host and --port: give one or the other")
    _options.prepare_server(tls_cert, tls_key)
    from edgec.serving import Server, ServerOptions, read_keys

    server = Server(
        artifacts,
        ServerOptions(
            host=host,
            port=port,
            unix_socket=unix_socket,
            tls_cert=tls_cert,
            tls_key=tls_key,
            api_keys=() if api_key_file is None else read_keys(api_key_file),
            max_body_bytes=max_body_mb * 2**20,
            queue=queue,
            threads=threads,
            max_batch=max_batch,
            batch_delay_ms=batch_delay_ms,
            priorities=priorities,
            isolate=isolate,
            allow_repository_calls=allow_repository_calls,
            observe=observe,
        ),
    )
    server.run(on_ready=lambda: _say(server, as_json))


def _say(server: Server, as_json: bool) -> None:
    models = [
        {"name": name, "version": version, "url": f"{server.url}/v2/models/{quote(name, safe='')}"}
        for name, version in server.models
    ]
    if as_json:
        click.echo(json.dumps({"url": server.url, "models": models}))
        return
    for model in models:
        click.echo(f"serving {model['name']} {model['version']} at {model['url']}")
