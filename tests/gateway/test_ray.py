"""The gateway on Ray Serve, run for real: one hop behind HAProxy, and the same guard as everywhere."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra gateway")

from tests.gateway.test_gateway import INFER, REQUEST
from tests.oip_conformance.oip import Client, assert_refused

from edgec.artifact import Artifact, Pipeline
from edgec.artifact.steps import Normalize
from edgec.errors import MissingExtraError, ServingError
from edgec.gateway import FollowOptions, GatewayOptions, RayGateway, RayOptions
from edgec.gateway._ray import _reason
from edgec.gateway._replica import Replica, _share
from edgec.runtime.testing import tiny_artifact
from edgec.serving import ServerOptions

HAS_RAY = find_spec("ray") is not None
KEY = {"X-API-Key": "key-of-the-first-device"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("ray") / "tiny.edgec", batch="n")


@pytest.fixture(scope="module")
def running(artifact: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    keys = artifact.parent / "keys"
    keys.write_text("dev1 key-of-the-first-device\ndev2 key-of-the-second-device\n")
    command = [sys.executable, "-m", "edgec.cli", "gateway", "up", str(artifact), "--port", "0", "--json"]
    command += ["--key-file", str(keys), "--rate", "0.001", "--burst", "60", "--threads", "1", "--ray"]
    env = {
        **os.environ,
        # On a busy machine it takes longer than 30 s.
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "240",
    }
    with (
        (artifact.parent / "said").open("w+") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        said.seek(0)
        assert line.startswith("{"), line + said.read()[-4000:]
        try:
            yield process, json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(120)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray: pip install 'edgec[ray]'")
def test_it_answers_as_the_gateway_does_one_hop_behind_haproxy(
    running: tuple[subprocess.Popen[str], str], artifact: Path
) -> None:
    process, url = running
    with Artifact.open(artifact) as opened:
        digest = opened.content_digest
    with closing(Client(url)) as client:
        assert client.get("/v2/health/ready").status == 200
        assert client.get("/v2/health/live").status == 200
        assert_refused(client.request("POST", INFER, REQUEST))
        reply = client.request("POST", INFER, REQUEST, {**KEY, "Edgec-Model-Digest": digest})
        assert (reply.status, reply.headers["edgec-model-digest"]) == (200, digest)
        other = client.request("POST", INFER, REQUEST, {**KEY, "Edgec-Model-Digest": f"sha256:{'0' * 64}"})
        assert other.status == 409
        late = client.request("POST", INFER, REQUEST, {**KEY, "Edgec-Deadline-Ms": "0"})
        assert (late.status, int(late.headers["retry-after"]) >= 1) == (503, True)
        for body in (b"", b"{", REQUEST.replace(b"FP32", b"FP99")):
            assert client.request("POST", INFER, body, KEY).status == 400
        metadata = client.request("GET", "/v2/models/tiny", headers=KEY).json
        assert metadata["inputs"][0]["datatype"] == "FP32"
        assert b"edgec_gateway_unauthorized_total 1" in client.request("GET", "/metrics", headers=KEY).body

    def one(_: int) -> int:
        with closing(Client(url)) as client:
            return client.request("POST", INFER, REQUEST, KEY).status

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(one, range(80)))
    assert set(statuses) == {200, 429}  # beyond its burst a device is refused
    with closing(Client(url)) as client:  # and another one is not
        assert client.request("POST", INFER, REQUEST, {"X-API-Key": "key-of-the-second-device"}).status == 200
    process.terminate()
    assert process.wait(120) == 0
    with (artifact.parent / "said").open() as said:
        assert "failed to shut down" not in said.read()  # its replicas ended in time


def test_a_replica_answers_with_its_share_of_what_is_allowed(artifact: Path, tmp_path: Path) -> None:
    follow = FollowOptions(url="https://fleet", token="a-token", directory=tmp_path)
    options = GatewayOptions(rate=6.0, burst=8.0, follow=follow)
    share = _share(options, 1, 4)
    assert (share.rate, share.burst) == (1.5, 2.0)
    assert share.follow is not None
    assert share.follow.directory == tmp_path / "replica-1"

    async def answered() -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        replica = Replica([str(artifact)], GatewayOptions(rate=0.001, burst=4.0), number=0, of=4)

        async def send(message: dict[str, Any]) -> None:
            said.append(message)

        async def whole() -> dict[str, Any]:
            return {"type": "http.request", "body": REQUEST, "more_body": False}

        living = asyncio.ensure_future(replica({"type": "lifespan"}, orders.get, send))
        orders.put_nowait({"type": "lifespan.startup"})
        while not said:
            await asyncio.sleep(0.001)
        scope = {
            "type": "http",
            "method": "POST",
            "raw_path": INFER.encode(),
            "headers": [],
            "query_string": b"",
        }
        for _ in range(2):
            await replica(scope, whole, send)
        orders.put_nowait({"type": "lifespan.shutdown"})
        await living
        return said

    interval = sys.getswitchinterval()
    try:
        said = asyncio.run(answered())
    finally:
        sys.setswitchinterval(interval)
    assert (said[0]["type"], said[-1]["type"]) == ("lifespan.startup.complete", "lifespan.shutdown.complete")
    assert [m["status"] for m in said if m["type"] == "http.response.start"] == [200, 429]


@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray: pip install 'edgec[ray]'")
def test_a_port_that_is_in_use_is_told_before_ray_starts(artifact: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(preprocess=(Normalize(scale=(0.5,)),))
    prepared = tiny_artifact(tmp_path / "prepared.edgec", pipeline=pipeline)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = RayGateway([prepared], GatewayOptions(server=ServerOptions(port=port)), RayOptions())
        assert gateway.models == [("tiny", "1"), ("tiny.predict", "1")]
        with pytest.raises(ServingError, match=f"cannot listen at 127.0.0.1 port {port}: .*--port"):
            gateway.run()
    assert RayGateway([artifact], GatewayOptions(server=ServerOptions(port=0)), RayOptions()).models == [
        ("tiny", "1")
    ]


def test_what_ray_says_is_told_without_its_traceback() -> None:
    class Told(Exception):
        cause = RuntimeError(
            "HAProxy crashed during startup: [NOTICE]   (7) : version 2\n"
            "[WARNING]  (7) : config\n[ALERT]    (7) : Binding [haproxy.cfg:50]: Address already in use\n"
            "[ALERT]    (7) : Some protocols failed\n"
        )

    assert (
        _reason(Told("ray::HAProxyManager\n  File x")) == "Binding [haproxy.cfg:50]: Address already in use"
    )
    assert _reason(RuntimeError("Deploying application edgec failed")) == "Deploying application edgec failed"


def test_what_ray_does_not_do_is_refused(artifact: Path, tmp_path: Path) -> None:
    options = GatewayOptions(server=ServerOptions(unix_socket=tmp_path / "x", isolate=True))
    expected: type[Exception] = ServingError if HAS_RAY else MissingExtraError
    with pytest.raises(expected, match="no Unix socket.*neither processes" if HAS_RAY else r"edgec\[ray\]"):
        RayGateway([artifact], options, RayOptions())
    with pytest.raises(ValueError, match="least"):
        RayOptions(least=2, most=1)
