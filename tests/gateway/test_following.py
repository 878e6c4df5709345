"""A gateway serves what the devices of a fleet run: what the fleet's own API says, fetched by digest."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("uvicorn", reason="needs the extra gateway")

from tests.gateway.test_gateway import ANY, INFER, REQUEST, metric, until
from tests.oip_conformance.oip import Client, Reply
from tests.runtime.test_calls import artifact as artifact_for
from tests.runtime.test_session import repacked

from edgec.artifact import Artifact, Privacy
from edgec.errors import BackendUnavailableError, FleetError
from edgec.gateway import FollowOptions, Gateway, GatewayOptions
from edgec.gateway._counters import Counters
from edgec.gateway._fleet import FleetSource, Seen
from edgec.gateway._following import Following
from edgec.runtime import Session
from edgec.runtime.testing import tiny_artifact
from edgec.serving import App, Server, ServerOptions
from edgec.serving._chains import load_served

TOKEN = "a-token"
A, B = "a" * 64, "b" * 64


def versioned(folder: Path, version: str, **changes: Any) -> Path:
    """Return a tiny artifact of a version of its model."""
    path = tiny_artifact(folder / f"tiny-{version}-{len(changes)}.edgec")
    return repacked(path, model_version=version, **changes)


def content_digest(path: Path) -> str:
    with Artifact.open(path) as opened:
        return opened.content_digest


def ask(server: Server, digest: str = "", address: str = INFER) -> Reply:
    headers = {"Edgec-Model-Digest": digest} if digest else {}
    with closing(Client(server.url)) as client:
        return client.request("POST", address, REQUEST, headers)


def ready(server: Server) -> int:
    with closing(Client(server.url)) as client:
        return client.get("/v2/health/ready").status


@pytest.mark.slow
def test_it_serves_what_devices_run_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra fleet")
    from tests.fleet.served import enrol, serving, token

    from edgec.fleet.api import create_app
    from edgec.fleet.service import Fleet
    from edgec.protocol import ModelReport, Reported

    one, two, other, secret = (
        versioned(tmp_path, "1"),
        versioned(tmp_path, "2"),
        versioned(tmp_path, "2", target="cpu-aarch64"),
        versioned(tmp_path, "3", privacy=Privacy(inputs_stay=True)),
    )
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(tmp_path / "fleet"))
        names = [
            fleet.registry.upload(
                io.BytesIO(path.read_bytes()), now=fleet.clock(), actor="test", override="a test"
            ).sha256
            for path in (one, two, other, secret)
        ]
        enrol(fleet, "d1", "d2", "d3")
        told = 0

        def runs(device: str, digest: str) -> None:
            nonlocal told
            told += 1
            own = ModelReport(state="committed", active=digest, since=fleet.clock())
            report = Reported(
                boot_epoch=1, boot_id="b1", seq=told, epoch=0, models={"tiny": own}, sent_at=fleet.clock()
            )
            fleet.store.devices.heard(device, report, fleet.clock())

        runs("d1", names[0])
        runs("d2", names[1])
        runs("d3", names[3])
        url = stack.enter_context(serving(create_app(fleet)))
        options = FollowOptions(
            url=url, token=token(fleet, "viewer"), directory=tmp_path / "kept", every_s=0.3
        )
        gateway = stack.enter_context(Gateway([], GatewayOptions(server=ANY, follow=options)))
        assert ready(gateway) == 200
        # Several versions at once; each device is answered by its own artifact, or not at all.
        for path in (one, two):
            reply = ask(gateway, content_digest(path))
            assert (reply.status, reply.headers["edgec-model-digest"]) == (200, content_digest(path))
        assert ask(gateway).headers["edgec-model-digest"] == content_digest(two)
        assert ask(gateway, content_digest(other)).status == 409
        assert ask(gateway, content_digest(secret)).status == 409  # its inputs stay on devices
        assert metric(gateway, "edgec_gateway_fleet_artifacts_left_out") == 1
        # A third device runs the same version for another target: both are served.
        runs("d3", names[2])
        until(lambda: ask(gateway, content_digest(other)).status == 200, 60)
        assert ask(gateway, content_digest(two)).status == 200
        # Nobody runs the first any more.
        runs("d1", names[1])
        until(lambda: ask(gateway, content_digest(one)).status == 409, 60)
        until(lambda: not (tmp_path / "kept" / f"{names[0]}.edgec").exists(), 60)
        # What is bad is not served, even where it still runs.
        fleet.store.rollouts.quarantine(names[1], now=fleet.clock(), actor="test", reason="bad")
        until(lambda: ask(gateway, content_digest(two)).status == 409, 60)
        assert ask(gateway, content_digest(other)).status == 200
        until(lambda: metric(gateway, "edgec_gateway_fleet_artifacts") == 1, 60)
        until(lambda: names[2] in (tmp_path / "kept" / "following.json").read_text(), 60)
    # The fleet is away: what was served before is served again.
    away = GatewayOptions(server=ANY, follow=options)
    with Gateway([], away) as again:
        assert ready(again) == 200
        assert ask(again, content_digest(other)).status == 200
        assert metric(again, "edgec_gateway_fleet_up") == 0


@contextmanager
def answering(replies: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers each path as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = replies(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def running(*items: Any) -> bytes:
    return json.dumps(items).encode()


def item(digest: str = A, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "model": "tiny", "devices": 1, "quarantined": False, **more}


def test_what_devices_run_is_what_the_fleet_has_counted() -> None:
    body = running(item(devices=3), item(B, quarantined=True))
    with answering(lambda path: (200 if path == "/api/v1/running" else 404, body)) as url:
        seen = FleetSource(url, TOKEN).look()
        assert seen.devices == {A: 3, B: 1}
        assert seen.quarantined == {B}
        assert FleetSource(url, TOKEN, models=("other",)).look().devices == {}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"{"),
        (200, b"{}"),
        (200, b"[" * 100_000),
        (200, running(1)),
        (200, running({})),
        (200, running(item(devices="1"))),
        (200, running(item(devices=True))),
        (200, running(item(model=7))),
        (200, running(item("../../etc"))),
        (304, b""),
        (401, b'{"detail": "no"}'),
        (500, b"oops"),
    ],
)
def test_a_reply_that_is_none_is_refused(status: int, body: bytes) -> None:
    with answering(lambda path: (status, body)) as url, pytest.raises(FleetError) as caught:
        FleetSource(url, TOKEN).look()
    assert caught.value.reason == ("denied" if status == 401 else "reply")


def test_who_asks_an_older_server_hears_what_to_do() -> None:
    old = answering(lambda path: (404, b"{}"))
    with old as url, pytest.raises(FleetError, match="update the server first"):
        FleetSource(url, TOKEN).look()


def test_a_file_of_another_digest_is_not_kept(tmp_path: Path) -> None:
    with answering(lambda path: (200, b"something else")) as url, pytest.raises(FleetError, match="expected"):
        FleetSource(url, TOKEN).fetch(A, tmp_path / "a.edgec")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["ftp://x", "https://", "http://fleet.example", "https://x/y", "https://x:y"])
def test_a_token_goes_to_no_wrong_address(url: str) -> None:
    with pytest.raises(FleetError):
        FleetSource(url, TOKEN)
    with pytest.raises(FleetError, match="token"):
        FleetSource("https://x", "a\r\ntoken")


def test_a_gateway_that_knows_nothing_yet_is_not_ready(tmp_path: Path) -> None:
    begin = time.monotonic()
    options = FollowOptions(url="http://127.0.0.1:9", token=TOKEN, directory=tmp_path / "kept")
    with Gateway([], GatewayOptions(server=ANY, follow=options)) as gateway:
        assert ready(gateway) == 503
        assert ask(gateway).status == 404
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_the_command_follows_a_fleet(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    name = sha256(artifact.read_bytes()).hexdigest()
    pages = {
        "/api/v1/running": running(item(name)),
        f"/api/v1/artifacts/{name}/file": artifact.read_bytes(),
    }
    (tmp_path / "token").write_text("a-token-of-the-fleet\n")
    with answering(lambda path: (200, pages[path])) as url:
        command = [
            sys.executable,
            "-m",
            "edgec.cli",
            "gateway",
            "up",
            "--port",
            "0",
            "--json",
            "--fleet",
            url,
        ]
        command += ["--token-file", str(tmp_path / "token"), "--models", "tiny", "--device", "auto"]
        command += ["--fleet-dir", str(tmp_path / "kept")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert (said["models"], said["fleet"]) == ([{"name": "tiny", "version": "1"}], url)
            with closing(Client(said["url"])) as client:
                assert client.request("POST", INFER, REQUEST).status == 200
            process.terminate()
            assert process.wait(60) == 0


class Told:
    """A fleet that runs what it is told, and has the files."""

    def __init__(self, *paths: Path) -> None:
        self.files = {sha256(path.read_bytes()).hexdigest(): path for path in paths}
        self.devices = dict.fromkeys(self.files, 1)
        self.quarantined: frozenset[str] = frozenset()
        self.error: Exception | None = None
        self.looks = 0

    def look(self) -> Seen:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Seen(self.devices, self.quarantined)

    def fetch(self, digest: str, path: Path) -> None:
        path.write_bytes(self.files[digest].read_bytes())


class Served:
    """Takes artifacts as an application does."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()

    async def adopt(self, path: Path, label: str) -> Any:
        self.paths.add(path)
        return SimpleNamespace(path=path, name=label, version="1")

    async def dismiss(self, slot: Any) -> None:
        self.paths.remove(slot.path)


def numbers(counters: Counters) -> dict[str, float]:
    lines = counters.exposition().decode().splitlines()
    pairs = (line.split() for line in lines if not line.startswith("#"))
    return {name.removeprefix("edgec_gateway_fleet_"): float(value) for name, value in pairs}


def test_what_is_quarantined_goes_however_the_disk_and_the_turns_before_failed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    source, served, counters = Told(tiny_artifact(tmp_path / "tiny.edgec")), Served(), Counters()
    (digest,) = source.files
    now = 1.79e9 + 1.0

    async def turns(n: int) -> None:
        before, end = source.looks, time.monotonic() + 60
        while source.looks < before + n + 1:
            assert time.monotonic() < end
            await asyncio.sleep(0.002)

    async def follow() -> None:
        following = Following(source, kept, every_s=0.01, most=3, clock=lambda: now)
        await following.start(cast("App", served), counters)
        try:
            assert len(served.paths) == 1
            assert numbers(counters)["followed_timestamp_seconds"] == now
            assert numbers(counters)["follow_failures_total"] == 0
            # Neither the list nor the file can be written or removed: directories have their names.
            for name in ("following.json", f"{digest}.edgec"):
                (kept / name).unlink()
                (kept / name / "full").mkdir(parents=True)
            await turns(2)
            failures = numbers(counters)["follow_failures_total"]
            assert failures > 0
            # What nobody foresaw.
            source.error = RuntimeError("unforeseen")
            await turns(2)
            assert numbers(counters)["follow_failures_total"] > failures
            assert len(served.paths) == 1
            source.error, source.quarantined = None, frozenset({digest})
            await turns(2)
            assert not served.paths
            assert following.is_ready
        finally:
            await following.stop()

    asyncio.run(follow())


def test_a_device_that_is_not_there_is_an_error_and_auto_goes_on_without(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    session = load_served(path, device="auto")
    assert isinstance(session, Session)
    with session:
        if "CUDA" in session.placement:
            pytest.skip("CUDA is here")
        assert list(session.placement) == ["CPU"]
    with pytest.raises(BackendUnavailableError, match="CUDA"):
        load_served(path, device="cuda")
    with pytest.raises(ValueError, match="device out of"):
        ServerOptions(device="tpu")


def test_what_does_not_run_on_cuda_is_served_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    session = load_served(artifact_for(tmp_path / "lite.edgec", "litert"), device="cuda")
    assert isinstance(session, Session)
    with session:
        assert session.engine == "litert"
    assert "lite.edgec runs in litert, not on cuda" in caplog.text


@pytest.mark.slow
def test_it_follows_a_real_fleet_over_tls(tmp_path: Path) -> None:
    """Uploaded, run by a device, replaced: what the gateway answers follows."""
    from tests.fleet.served import enrol, reports, token
    from tests.fleet.servers import running_server, skip_without

    skip_without("nats")
    one, two = versioned(tmp_path, "1"), versioned(tmp_path, "2")
    with running_server(tmp_path / "fleet", "nats") as server:
        fleet = server.fleet
        names = [
            fleet.registry.upload(
                io.BytesIO(path.read_bytes()), now=fleet.clock(), actor="test", override="a test"
            ).sha256
            for path in (one, two)
        ]
        enrol(fleet, "cam-1")
        reports(fleet, "cam-1", names[0], model="tiny")
        certificate = server.authority.server("gateway", ("127.0.0.1",))
        options = FollowOptions(
            url=server.url, token=token(fleet, "viewer"), directory=tmp_path / "kept",
            ca=server.authority.root, every_s=0.3,
        )  # fmt: skip
        listening = ServerOptions(port=0, tls_cert=certificate.certificate, tls_key=certificate.key)
        with Gateway([], GatewayOptions(server=listening, follow=options)) as gateway:
            assert gateway.url.startswith("https://")

            trust = ssl.create_default_context(cafile=server.authority.root)

            def served(path: Path) -> bool:
                headers = {"Edgec-Model-Digest": content_digest(path), "Content-Type": "application/json"}
                request = urllib.request.Request(gateway.url + INFER, REQUEST, headers, method="POST")
                try:
                    with urllib.request.urlopen(request, timeout=60, context=trust) as reply:
                        return bool(reply.headers["Edgec-Model-Digest"] == content_digest(path))
                except urllib.error.HTTPError as e:
                    if e.code != 409:
                        raise
                    return False

            assert (served(one), served(two)) == (True, False)
            reports(fleet, "cam-1", names[1], seq=2, model="tiny")
            until(lambda: (served(one), served(two)) == (False, True), 60)
            source = FleetSource(options.url, options.token, ca=options.ca)
            assert source.look().devices == {names[1]: 1}
            # Where nothing has changed, the fleet says just that.
            assert source.look() is source.look()
