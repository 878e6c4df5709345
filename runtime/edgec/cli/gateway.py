"""``edgec gateway``: models on a machine with room, for devices that cannot answer themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgec.cli import _options
from edgec.cli._home import default_home
from edgec.cli._lazy import SentencesGroup

if TYPE_CHECKING:
    from edgec.gateway import Gateway, RayGateway

_FILE = click.Path(dir_okay=False, path_type=Path)


def _read_replicas(_: click.Context, __: click.Parameter, value: str) -> tuple[int, int]:
    least, _sign, most = value.partition("-")
    numbers = [int(n) for n in (least, most or least) if n.isascii() and n.isdigit() and len(n) < 5]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= 1000:
        raise click.BadParameter(f"expected LEAST-MOST such as 1-4, got {value!r}")
    return numbers[0], numbers[1]


@click.group(cls=SentencesGroup)
def command() -> None:
    """Answer for devices that cannot answer themselves: GPU fallback, Open Inference Protocol v2.

    up takes --json.

    \b
    edgec gateway up digits.edgec --key-file devices.txt
    edgec gateway up --upstream http://triton.local:8000 --key-file devices.txt --json
    """


@command.command()
@click.argument("artifacts", nargs=-1, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 for any.")
@click.option("--key-file", type=_FILE, help="NAME KEY of each device, one per line.")
@click.option("--tls-cert", type=_FILE, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option("--client-ca", type=_FILE, help="Authorities of the devices' certificates, PEM.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Inferences per second of one device.")
@click.option(
    "--burst", type=click.FloatRange(1), default=20, show_default=True, help="Of one device, at once."
)
@click.option("--fleet", metavar="URL", help="Serve what the devices of this fleet run: https://fleet:8443.")
@click.option("--token-file", type=_FILE, help="Holds a token of the fleet; the role viewer is enough.")
@click.option("--fleet-ca", type=_FILE, help="Authorities to trust there, PEM.")
@click.option("--models", metavar="A,B", help="Serve these models of the fleet only.")
@click.option(
    "--fleet-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where artifacts of the fleet are kept; gateway below EDGEC_HOME, or below ~/.cache/edgec.",
)
@click.option("--upstream", help="URL of the server that is asked for models that are not here.")
@click.option("--upstream-key-file", type=_FILE, help="Holds the API key that is sent there.")
@click.option("--upstream-ca", type=_FILE, help="Authorities to trust there, PEM.")
@click.option(
    "--max-body-mb", type=click.IntRange(1, 2048), default=64, show_default=True, help="Of a request, in MiB."
)
@_options.queue
@_options.threads
@_options.max_batch
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="Where ONNX Runtime runs artifacts; auto is CUDA where it starts.",
)
@click.option("--ray", "on_ray", is_flag=True, help="Run it on Ray Serve: replicas that follow the load.")
@click.option(
    "--replicas",
    default="1-2",
    show_default=True,
    metavar="LEAST-MOST",
    callback=_read_replicas,
    help="Of them, with --ray.",
)
@click.option("--gpus", type=click.FloatRange(0), default=0.0, help="Of each replica, with --ray.")
@click.option("--ray-address", metavar="HOST:PORT", help="A Ray cluster; one of its own without it.")
@click.option("--observe", is_flag=True, help="Show more in /metrics: latency, confidence, classes, drift.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is ready, not text.")
def up(
    artifacts: tuple[Path, ...],
    host: str,
    port: int,
    key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    client_ca: Path | None,
    rate: float | None,
    burst: float,
    fleet: str | None,
    token_file: Path | None,
    fleet_ca: Path | None,
    models: str | None,
    fleet_dir: Path | None,
    upstream: str | None,
    upstream_key_file: Path | None,
    upstream_ca: Path | None,
    max_body_mb: int,
    queue: int,
    threads: int | None,
    max_batch: int,
    device: str,
    on_ray: bool,
    replicas: tuple[int, int],
    gpus: float,
    ray_address: str | None,
    observe: bool,
    as_json: bool,
) -> None:
    """Serve ARTIFACTS, and what a fleet runs, to devices; pass on what asks for other models.

    Ends on SIGINT or SIGTERM, after the requests in flight are answered.

    \b
    edgec gateway up digits.edgec --key-file devices.txt --tls-cert cert.pem --tls-key key.pem --host 0.0.0.0
    edgec gateway up --fleet https://fleet:8443 --token-file token.txt --key-file devices.txt
    edgec gateway up --upstream http://triton:8000 --key-file devices.txt --rate 5
    edgec gateway up digits.edgec --key-file devices.txt --ray --replicas 1-8
    """
    _options.prepare_server(tls_cert, tls_key)
    if not artifacts and upstream is None and fleet is None:
        raise click.UsageError("nothing to serve: name artifacts, a --fleet or an --upstream")
    if (fleet is None) != (token_file is None):
        raise click.UsageError("--fleet and --token-file belong together")
    given = click.get_current_context().get_parameter_source
    alone = [
        f"--{name.replace('_', '-')}"
        for name in ("replicas", "gpus", "ray_address")
        if not on_ray and given(name) is not click.core.ParameterSource.DEFAULT
    ]
    if alone:
        raise click.UsageError(f"{' and '.join(alone)} say how it runs on Ray: add --ray")
    from edgec.gateway import (
        FollowOptions,
        Gateway,
        GatewayOptions,
        RayGateway,
        RayOptions,
        read_identities,
    )
    from edgec.serving import ServerOptions, read_keys

    try:
        options = GatewayOptions(
            server=ServerOptions(
                host=host,
                port=port,
                tls_cert=tls_cert,
                tls_key=tls_key,
                client_ca=client_ca,
                max_body_bytes=max_body_mb * 2**20,
                queue=queue,
                threads=threads,
                max_batch=max_batch,
                device=device,
                observe=observe,
            ),
            keys={} if key_file is None else read_identities(key_file),
            rate=rate,
            burst=burst,
            follow=None
            if fleet is None or token_file is None
            else FollowOptions(
                url=fleet,
                token=read_keys(token_file)[0].decode(),
                directory=fleet_dir or default_home() / "gateway",
                ca=fleet_ca,
                models=() if models is None else tuple(filter(None, models.split(","))),
            ),
            upstream=upstream,
            upstream_key="" if upstream_key_file is None else read_keys(upstream_key_file)[0].decode(),
            upstream_ca=upstream_ca,
        )
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    gateway: Gateway | RayGateway
    if on_ray:
        least, most = replicas
        ray = RayOptions(least=least, most=most, gpus=gpus, address=ray_address)
        gateway = RayGateway(artifacts, options, ray)
    else:
        gateway = Gateway(artifacts, options)
    gateway.run(on_ready=lambda: _say(gateway, fleet, upstream, as_json))


def _say(gateway: Gateway | RayGateway, fleet: str | None, upstream: str | None, as_json: bool) -> None:
    models = [{"name": name, "version": version} for name, version in gateway.models]
    if as_json:
        click.echo(json.dumps({"url": gateway.url, "models": models, "fleet": fleet, "upstream": upstream}))
        return
    for model in models:
        click.echo(f"serving {model['name']} {model['version']} at {gateway.url}")
    if fleet is not None:
        click.echo(f"serving what devices of {fleet} run at {gateway.url}")
    if upstream is not None:
        click.echo(f"passing other models to {upstream} at {gateway.url}")
