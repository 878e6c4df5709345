"""A server: what it allows, where it stops, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.oip_conformance.oip import Client, Model, Reply, assert_refused

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.artifact.steps import Decode
from edgec.errors import DeviceMemoryError, ServingError
from edgec.runtime import Session, load
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact
from edgec.serving import Server, ServerOptions, read_keys


class SlowSession:
    """A real session that waits before it runs, so that requests queue behind it."""

    def __init__(self, path: Path) -> None:
        self._session: Session = load(path)
        self.manifest = self._session.manifest
        self.inputs = self._session.inputs
        self.outputs = self._session.outputs
        self.predict = self._session.predict
        self.close = self._session.close
        self.runs = 0
        self.go = threading.Event()
        self.go.set()

    def run(self, inputs: Mapping[str, NDArray[Any]], /) -> Mapping[str, NDArray[Any]]:
        self.runs += 1
        time.sleep(0.02)  # longer than what runs on the event loop
        assert self.go.wait(60)
        return self._session.run(inputs)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "tiny.edgec"
    return tiny_artifact(path, batch="n", pipeline=Pipeline())


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    options = ServerOptions(port=0, allow_repository_calls=True, max_body_bytes=2**20, max_json_bytes=2**16)
    with Server([artifact], options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    connection = Client(server.url)
    yield connection
    connection.close()


def post(client: Client, path: str, document: object = None) -> Reply:
    return client.request("POST", path, json.dumps(document or {}).encode())


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def exchange(server: Server, sent: bytes) -> bytes:
    """Send bytes and return all that comes back until the server closes."""
    with socket.create_connection(address(server), timeout=60) as connection:
        connection.sendall(sent)
        parts = []
        with suppress(ConnectionResetError):  # the server had closed before it read all
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


def test_not_loaded_is_503_with_retry_after_until_it_is_loaded_again(client: Client) -> None:
    assert post(client, "/v2/repository/models/tiny/unload").status == 200
    reply = client.get("/v2/models/tiny/ready")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert [row["state"] for row in post(client, "/v2/repository/index").json] == ["UNAVAILABLE"]
    assert post(client, "/v2/repository/index", {"ready": True}).json == []
    assert_refused(post(client, "/v2/models/tiny/infer"))
    assert post(client, "/v2/repository/models/tiny/load").status == 200
    assert Model(client, "tiny").infer(Model(client, "tiny").json_request()).status == 200
    assert_refused(post(client, "/v2/repository/models/other/load"))


def test_memory_that_is_too_short_is_503_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, short = load(tiny_artifact(tmp_path / "tiny.edgec", batch="n")), threading.Event()
    run = session.run

    def told(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if short.is_set():  # tests/conformance has the engines themselves run out of it
            raise DeviceMemoryError("ONNX Runtime has not the memory for this call")
        return run(inputs)

    monkeypatch.setattr(session, "run", told)
    options = ServerOptions(port=0)
    with (
        Server([tmp_path / "tiny.edgec"], options, loader=lambda _: session) as server,
        closing(Client(server.url)) as client,
    ):
        model = Model(client, "tiny")
        short.set()
        reply = model.infer(model.json_request())
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert "has not the memory" in reply.json["error"]
        short.clear()
        assert model.infer(model.json_request()).status == 200


def test_predict_takes_json_and_gives_json(client: Client) -> None:
    for path in ("/v2/models/tiny/predict", "/v2/models/tiny/versions/1/predict"):
        reply = client.request("POST", path, b"[1, 2, 3, 4]")
        assert reply.status == 200
        assert np.shape(reply.json["y"]) == (1, 3)
    assert client.request("POST", "/v2/models/tiny/predict", b'{"x": [1, 2, 3, 4]}').json == reply.json


def test_metrics_show_what_observers_know_where_that_is_asked_for(artifact: Path, client: Client) -> None:
    assert "edgec_calls_total" not in client.get("/metrics").body.decode()
    options = ServerOptions(port=0, observe=True, allow_repository_calls=True)
    with Server([artifact], options) as server, closing(Client(server.url)) as client:
        model = Model(client, "tiny")
        for _ in range(3):
            model.infer(model.json_request())
        assert client.request("POST", "/v2/models/tiny/predict", b"[1, 2, 3, 4]").status == 200
        told = {name.partition("{")[0]: value for name, value in _metrics(client).items()}
        assert told["edgec_calls_total"] == told["edgec_inference_duration_seconds_count"] == 4
        assert told["edgec_calls_sampled_total"] >= 1
        assert 'edgec_requests_total{model="tiny",version="1",code="200"}' in _metrics(client)
        assert client.request("POST", "/v2/repository/models/tiny/unload", b"").status == 200
        assert "edgec_calls_total" not in client.get("/metrics").body.decode()


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b'"/etc/passwd"', b'["/etc/passwd"]', b"[[1],[2,3]]", b'{"w": [1]}', b"[1e999]", b"7"],
)
def test_predict_refuses_other_samples(client: Client, body: bytes) -> None:
    assert_refused(client.request("POST", "/v2/models/tiny/predict", body))


def test_a_package_that_the_pipeline_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = TensorSpec("x", "uint8", (1, 2, 2, 3))
    members = onnx_members([Node("Identity", ["x"], ["y"])], (picture,), (replace(picture, name="y"),), {})
    manifest = Manifest(
        model="picture",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(weights=False),
        inputs=(picture,),
        outputs=(replace(picture, name="y"),),
        pipeline=Pipeline(preprocess=(Decode(color="RGB"),)),
    )
    path = pack(tmp_path / "picture.edgec", manifest, members)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with Server([path], ServerOptions(port=0)) as server, closing(Client(server.url)) as client:
        reply = client.request("POST", "/v2/models/picture/predict", b"png")
        assert reply.status == 503
        assert "pip install 'edgec[vision]'" in reply.json["error"]
        model = Model(client, "picture")
        assert model.infer(model.json_request()).status == 200


def test_the_pipeline_is_a_model_of_bytes_too(client: Client) -> None:
    sent = {"Inference-Header-Content-Length": "0"}
    reply = client.request("POST", "/v2/models/tiny.predict/infer", b"[1, 2, 3, 4]", sent)
    assert reply.status == 200
    (size,) = struct.unpack_from("<I", reply.binary)
    assert np.shape(json.loads(reply.binary[4 : 4 + size])["y"]) == (1, 3)


def test_metrics_count_requests_errors_and_time(client: Client) -> None:
    model = Model(client, "tiny")
    before = _metrics(client)
    model.infer(model.json_request())
    model.infer({})
    after = _metrics(client)
    for code in ("200", "400"):
        name = f'edgec_requests_total{{model="tiny",version="1",code="{code}"}}'
        assert after[name] == before.get(name, 0) + 1
    labels = '{model="tiny",version="1"}'
    for name in ("edgec_request_errors_total", "edgec_queue_depth", "edgec_in_flight"):
        assert f"{name}{labels}" in after
    total = after[f"edgec_request_duration_seconds_count{labels}"]
    assert after['edgec_request_duration_seconds_bucket{model="tiny",version="1",le="+Inf"}'] == total


def test_bodies_are_bounded(client: Client, server: Server) -> None:
    head = "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    assert b" 413 " in exchange(server, (head % 10**15).encode())
    large = client.request("POST", "/v2/models/tiny/infer", bytes(2**20 + 1))
    assert large.status == 413
    assert_refused(large)
    assert client.request("POST", "/v2/models/tiny/infer", b" " * (2**16 + 1)).status == 413


@pytest.mark.parametrize("body", [zlib.compress(bytes(2**26)), zlib.compress(b"{}") + b"more", b"x", b""])
def test_compressed_bodies_are_bounded_and_whole(client: Client, body: bytes) -> None:
    reply = client.request("POST", "/v2/models/tiny/infer", body, {"Content-Encoding": "deflate"})
    assert_refused(reply)


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /v2/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 2**17 + b"\r\n\r\n",
        b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_http_is_refused_in_json(server: Server, sent: bytes) -> None:
    reply = exchange(server, sent)
    if reply or len(sent) < 2**16:
        assert reply.startswith(b"HTTP/1.1 4")
        assert b'{"error": ' in reply
    assert exchange(server, b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "path", ["/v2/models/%ff", "/v2/models/%2e%2e%2f", "/v2/models/" + "a" * 10**4, "//v2"]
)
def test_strange_addresses_are_refused(client: Client, path: str) -> None:
    assert_refused(client.get(path))


@pytest.mark.slow
def test_a_request_that_does_not_arrive_is_given_up(artifact: Path) -> None:
    with Server([artifact], ServerOptions(port=0, receive_timeout_s=1)) as server:
        assert exchange(server, b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: 9\r\n\r\n{") == b""


def test_a_response_is_compressed_for_who_asks_for_nothing_else(client: Client) -> None:
    document = client.get("/openapi.json")
    zipped = client.request("GET", "/openapi.json", headers={"Accept-Encoding": "deflate"})
    assert zlib.decompress(zipped.body) == document.body
    every = client.request("GET", "/openapi.json", headers={"Accept-Encoding": "gzip, deflate, br"})
    assert every.body == document.body


def test_keys_are_asked_for_except_by_health(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# of the tests\n\nfirst-key-of-sixteen\nsecond-key-of-sixteen\n")
    with Server([artifact], ServerOptions(port=0, api_keys=read_keys(tmp_path / "keys"))) as server:
        client = Client(server.url)
        assert client.get("/v2/health/ready").status == 200
        for path in ("/v2", "/metrics", "/v2/models/tiny", "/v2/models/tiny/ready", "/nothing"):
            reply = client.get(path)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        for headers in (
            {"Authorization": "Bearer first-key-of-sixteen"},
            {"Authorization": "bearer second-key-of-sixteen"},
            {"X-API-Key": "second-key-of-sixteen"},
        ):
            assert client.request("GET", "/v2", headers=headers).status == 200
        for headers in ({"X-API-Key": "third"}, {"Authorization": "Basic first-key-of-sixteen"}):
            assert client.request("GET", "/v2", headers=headers).status == 401
        assert post(client, "/v2/repository/index").status == 401
        client.close()


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", "a key with spaces in it\n"])
def test_unfit_keys_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ServingError, match="at least 16"):
        read_keys(tmp_path / "keys")


def test_a_full_queue_is_503_and_who_goes_away_is_not_served(artifact: Path) -> None:
    sessions: list[SlowSession] = []

    def loader(path: Path) -> SlowSession:
        sessions.append(SlowSession(path))
        return sessions[0]

    with Server([artifact], ServerOptions(port=0, queue=2, threads=os.cpu_count()), loader=loader) as server:
        (session,) = sessions
        session.go.clear()
        watcher = Client(server.url)
        body = json.dumps(Model(watcher, "tiny").json_request()).encode()
        before, width = session.runs, 2
        open_ones = [HTTPConnection(*address(server)) for _ in range(width + 2)]
        for connection in open_ones:
            connection.request("POST", "/v2/models/tiny/infer", body)
        _wait(lambda: _metrics(watcher)['edgec_queue_depth{model="tiny",version="1"}'] == 2)
        reply = watcher.request("POST", "/v2/models/tiny/infer", body)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        impatient = {**json.loads(body), "parameters": {"timeout": 1000}}
        open_ones[-1].close()
        _wait(lambda: _metrics(watcher)['edgec_requests_abandoned_total{model="tiny",version="1"}'] == 1)
        assert watcher.request("POST", "/v2/models/tiny/infer", json.dumps(impatient).encode()).status == 503
        assert watcher.get("/v2/health/live").status == 200
        session.go.set()
        assert [connection.getresponse().status for connection in open_ones[:-1]] == [200] * (width + 1)
        assert session.runs - before == width + 1
        for connection in open_ones:
            connection.close()
        watcher.close()


def test_two_artifacts_of_one_name_and_version_are_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="both hold version 1"):
        Server([artifact, artifact], ServerOptions(port=0))
    with pytest.raises(ServingError, match=r"nothing\.edgec"):
        Server([tmp_path / "nothing.edgec"], ServerOptions(port=0))


def test_a_taken_port_is_refused(server: Server, artifact: Path) -> None:
    with pytest.raises(ServingError, match="--port"):
        Server([artifact], ServerOptions(port=address(server)[1]))


@pytest.mark.parametrize("host", ["192.0.2.1", "no:host"])
def test_an_address_of_another_machine_is_called_that(artifact: Path, host: str) -> None:
    with pytest.raises(ServingError, match=f"cannot listen at {host}: .* choose another --host") as caught:
        Server([artifact], ServerOptions(host=host, port=0))
    assert "--port" not in str(caught.value)


@pytest.mark.slow
def test_the_command_drains_and_ends_on_sigterm(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "edgec.sock"
    command = [
        sys.executable,
        "-m",
        "edgec.cli",
        "serve",
        str(artifact),
        "--unix-socket",
        str(path),
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["url"] == f"unix:{path}"
        assert path.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not path.exists()


@pytest.mark.slow
def test_tls(artifact: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    with pytest.raises(ServingError, match="cannot use"):
        Server([artifact], ServerOptions(port=0, tls_cert=key, tls_key=key))
    with Server([artifact], ServerOptions(port=0, tls_cert=cert, tls_key=key)) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        trusting = ssl.create_default_context(cafile=cert)
        with (
            socket.create_connection((host, int(port))) as plain,
            trusting.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert secure.recv(4096).startswith(b"HTTP/1.1 200")


def _metrics(client: Client) -> dict[str, float]:
    text = client.get("/metrics").body.decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def _wait(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
