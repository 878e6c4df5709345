"""The gateway: who may ask, how often, what is passed on, and that nothing makes it answer 5xx but 503."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.oip_conformance.oip import Client, Model, Reply, assert_refused
from tests.serving.test_server import SlowSession, address

from edgec.artifact import Artifact
from edgec.cli import main_group
from edgec.errors import ServingError
from edgec.gateway import Gateway, GatewayOptions, read_identities
from edgec.protocol._rates import Rates
from edgec.runtime.testing import tiny_artifact
from edgec.serving import Server, ServerOptions

INFER = "/v2/models/tiny/infer"
KEYS = {"dev1": b"key-of-the-first-device", "dev2": b"key-of-the-second-device"}
ANY = ServerOptions(port=0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("gateway") / "tiny.edgec", batch="n")


@pytest.fixture(scope="module")
def gateway(artifact: Path) -> Iterator[Server]:
    options = GatewayOptions(server=ServerOptions(port=0, max_body_bytes=2**20, max_json_bytes=2**16))
    with Gateway([artifact], options) as running:
        yield running


@pytest.fixture(scope="module")
def behind(artifact: Path) -> Iterator[Server]:
    """A gateway without models of its own."""
    with Server([artifact], ANY) as server:
        options = GatewayOptions(server=ServerOptions(port=0, max_body_bytes=2**21), upstream=server.url)
        with Gateway([], options) as running:
            yield running


def ask(server: Server, key: bytes = b"", body: bytes | None = None, **more: str) -> Reply:
    headers = {"Authorization": f"Bearer {key.decode()}"} if key else {}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    with closing(Client(server.url)) as client:
        return client.request("POST", INFER, REQUEST if body is None else body, headers)


REQUEST = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


def metric(server: Server, name: str, key: bytes = b"") -> float:
    headers = {"X-API-Key": key.decode()} if key else {}
    with closing(Client(server.url)) as client:
        text = client.request("GET", "/metrics", headers=headers).body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_it_answers_as_the_server_does(gateway: Server, behind: Server, artifact: Path) -> None:
    with Server([artifact], ANY) as server:
        direct = ask(server)
    assert direct.status == 200
    for other in (gateway, behind):
        with closing(Client(other.url)) as client:
            model = Model(client, "tiny")
            assert model.metadata["inputs"][0]["datatype"] == "FP32"
            assert model.infer(model.json_request()).status == 200
            assert client.get("/v2/health/ready").status == 200
            assert client.get("/v2").status == 200
            assert client.get("/openapi.json").json["paths"]["/v2/health/live"]
        reply = ask(other)
        assert (reply.body, reply.headers["edgec-model-digest"]) == (
            direct.body,
            direct.headers["edgec-model-digest"],
        )


def test_only_known_devices_may_ask_each_at_its_rate(artifact: Path) -> None:
    options = GatewayOptions(server=ANY, keys=KEYS, rate=0.001, burst=2)
    with Gateway([artifact], options) as gateway:
        assert_refused(ask(gateway))
        assert ask(gateway, b"key-of-nobody-at-all").status == 401
        assert [ask(gateway, KEYS["dev1"]).status for _ in range(3)] == [200, 200, 429]
        refused = ask(gateway, KEYS["dev1"])
        assert int(refused.headers["retry-after"]) == 60
        assert ask(gateway, KEYS["dev2"]).status == 200
        assert metric(gateway, "edgec_gateway_limited_total", KEYS["dev1"]) == 2
        assert metric(gateway, "edgec_gateway_unauthorized_total", KEYS["dev1"]) == 2
        with closing(Client(gateway.url)) as client:
            assert client.get("/v2/health/ready").status == 200
            assert client.get("/metrics").status == 401


def test_a_bucket_fills_at_its_rate() -> None:
    now = [0.0]
    rates = Rates(2.0, 3.0, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] += 0.5
    assert (rates.wait_s("a"), rates.wait_s("b")) == (0, 0)
    assert rates.wait_s("a") == pytest.approx(0.5)
    now[0] += 1e6
    assert [rates.wait_s("a") for _ in range(4)][-1] > 0


def test_a_certificate_tells_which_device_asks(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="needs the extra agent")
    from edgec.protocol.certificates import CertificateAuthority

    ours, others = CertificateAuthority(tmp_path / "ca"), CertificateAuthority(tmp_path / "others")
    host = ours.server("127.0.0.1")
    options = GatewayOptions(
        server=ServerOptions(port=0, tls_cert=host.certificate, tls_key=host.key, client_ca=ours.root),
        rate=0.001,
        burst=1,
    )
    with Gateway([artifact], options) as gateway:
        port = int(gateway.url.rpartition(":")[2])

        said = []

        def status(context: ssl.SSLContext) -> int:
            with closing(HTTPSConnection("127.0.0.1", port, context=context, timeout=60)) as connection:
                connection.request("POST", INFER, REQUEST)
                response = connection.getresponse()
                said.append(response.read().decode())
                return response.status

        assert status(ours.client("dev1").client_context()) == 200
        assert status(ours.client("dev1").client_context()) == 429
        assert status(ours.client("dev2").client_context()) == 200
        assert status(ssl.create_default_context(cafile=str(ours.root))) == 401
        # Nobody has a key here that could be sent.
        assert "expected the certificate of a device" in said[-1]
        assert "KEY" not in said[-1]
        stranger = ssl.create_default_context(cafile=str(ours.root))
        foreign = others.client("dev1")
        stranger.load_cert_chain(str(foreign.certificate), str(foreign.key))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status(stranger)


@pytest.mark.parametrize(
    "text", ["", "dev1\n", "dev1 short\n", "a key-of-the-first-device x\n", "../x " + "k" * 20]
)
def test_unfit_files_of_keys_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ServingError, match="NAME KEY"):
        read_identities(tmp_path / "keys")
    (tmp_path / "keys").write_text("# ours\ndev1 key-of-the-first-device\n")
    assert read_identities(tmp_path / "keys") == {"dev1": b"key-of-the-first-device"}


def test_a_file_that_is_no_artifact_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "bad.edgec").write_bytes(b"nothing")
    with pytest.raises(ServingError, match="not an edgec artifact") as caught:
        Gateway([tmp_path / "bad.edgec"], GatewayOptions(server=ANY))
    assert str(caught.value).count("bad.edgec") == 1


def test_options_say_all_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"rate above 0.*burst from 1.*upstream such as"):
        GatewayOptions(rate=-1, burst=0, upstream="triton:8000")
    with pytest.raises(ServingError, match="nothing to serve"):
        Gateway([], GatewayOptions(server=ANY))


def test_options_of_ray_are_refused_without_it(artifact: Path) -> None:
    for given in (["--replicas", "1-2"], ["--gpus", "0.5"], ["--ray-address", "head:6379"]):
        result = CliRunner().invoke(main_group, ["gateway", "up", str(artifact), *given])
        assert result.exit_code == 2
        assert f"{given[0]} say how it runs on Ray: add --ray" in result.stderr


MALFORMED: list[tuple[bytes, dict[str, str]]] = [
    (b"", {}),
    (b"{", {}),
    (b"[]", {}),
    (b"null", {}),
    (b'{"inputs": []}', {}),
    (b'{"inputs": {}}', {}),
    (b'{"inputs": [1]}', {}),
    (b'{"inputs": [{"name": "x"}]}', {}),
    (REQUEST.replace(b"FP32", b"FP99"), {}),
    (REQUEST.replace(b"FP32", b"INT8"), {}),
    (REQUEST.replace(b"[1, 4]", b"[1, -4]"), {}),
    (REQUEST.replace(b"[1, 4]", b"[1, 5]"), {}),
    (REQUEST.replace(b"[1, 4]", b"[99999999999, 4]"), {}),
    (REQUEST.replace(b"[1, 4]", b"[18446744073709551616, 4]"), {}),
    (REQUEST.replace(b"[1, 2, 3, 4]", b'["a", 2, 3, 4]'), {}),
    (REQUEST.replace(b"[1, 2, 3, 4]", b"[NaN, 2, 3, 4]"), {}),
    (REQUEST.replace(b'"x"', b'"y"'), {}),
    (b'{"inputs": ' + b"[" * 5000, {}),
    (b"\xff\xfe" + REQUEST, {}),
    (REQUEST, {"Inference-Header-Content-Length": "-1"}),
    (REQUEST, {"Inference-Header-Content-Length": "999999"}),
    (REQUEST, {"Inference-Header-Content-Length": "x"}),
    (REQUEST, {"Content-Encoding": "br"}),
    (REQUEST, {"Content-Encoding": "gzip"}),
    (REQUEST, {"Edgec-Deadline-Ms": "soon"}),
    (REQUEST, {"Edgec-Model-Digest": "sha256:0"}),
]


@pytest.mark.parametrize("which", ["gateway", "behind"])
def test_row_32_malformed_requests_are_refused_with_4xx_and_it_lives(
    which: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(which)
    with closing(Client(server.url)) as client:
        for body, headers in MALFORMED:
            reply = client.request("POST", INFER, body, headers)
            assert 400 <= reply.status < 500, (body[:80], headers, reply)
            assert reply.json["error"]
        assert client.request("POST", INFER, REQUEST).status == 200
        assert client.request("GET", "/v2/models/nothing").status == 404
        assert client.request("DELETE", INFER).status == 405
    limit = {"gateway": 2**20, "behind": 2**21}[which]
    assert ask(server, body=bytes(limit + 1)).status == 413


def test_row_33_a_model_of_another_digest_is_not_asked(
    gateway: Server, behind: Server, artifact: Path
) -> None:
    with Artifact.open(artifact) as opened:
        digest = opened.content_digest
    for server in (gateway, behind):
        assert ask(server, Edgec_Model_Digest=digest).status == 200
        assert ask(server, Edgec_Model_Digest=f"sha256:{'0' * 64}").status == 409


def test_row_33_deadlines_hold_and_who_goes_away_is_forgotten(artifact: Path) -> None:
    sessions: list[SlowSession] = []

    def loader(path: Path) -> SlowSession:
        sessions.append(SlowSession(path))
        return sessions[0]

    with ExitStack() as stack:
        server = stack.enter_context(Server([artifact], ANY, loader=loader))
        gateway = stack.enter_context(Gateway([], GatewayOptions(server=ANY, upstream=server.url)))
        (session,) = sessions
        session.go.clear()
        stack.callback(session.go.set)
        assert ask(gateway, Edgec_Deadline_Ms="1").status == 503
        begin = time.monotonic()
        late = ask(gateway, Edgec_Deadline_Ms="300")
        assert late.status == 503
        assert int(late.headers["retry-after"]) >= 1
        assert time.monotonic() - begin < 30
        before = session.runs
        with socket.create_connection(address(gateway)) as leaving:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(REQUEST)}\r\n\r\n"
            leaving.sendall(head.encode() + REQUEST)
            until(lambda: metric(gateway, "edgec_gateway_upstream_in_flight") == 1)
        until(lambda: metric(gateway, "edgec_gateway_upstream_in_flight") == 0)
        assert metric(gateway, "edgec_gateway_upstream_abandoned_total") == 1
        assert session.runs <= before + 1


@contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does something with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(65536)
                    answer(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", 503),
        (b"HTTP/1.1 502 Oops\r\nContent-Length: 0\r\n\r\n", 503),
        (b"HTTP/1.1 404 No\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno", 404),
        (b"nonsense\r\n\r\n", 503),
        (b"", 503),
        (b"HTTP/1.1 200 OK\r\nContent-Leng", 503),
    ],
)
def test_row_33_whatever_the_upstream_does_is_4xx_or_503(sent: bytes, status: int) -> None:
    with (
        answering(lambda c: c.sendall(sent)) as url,
        Gateway([], GatewayOptions(server=ANY, upstream=url)) as gateway,
    ):
        reply = ask(gateway)
        assert reply.status == status
        assert reply.json["error"]


def test_row_33_an_upstream_that_is_down_is_left_alone_and_it_says_so() -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket())  # bound, so that nobody else listens there
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        gateway = stack.enter_context(Gateway([], GatewayOptions(server=ANY, upstream=url)))
        with closing(Client(gateway.url)) as client:
            assert client.get("/v2/health/live").status == 200
            assert client.get("/v2/health/ready").status == 503
        assert {ask(gateway).status for _ in range(8)} == {503}
        assert metric(gateway, "edgec_gateway_upstream_failures_total") == 5
        assert metric(gateway, "edgec_gateway_upstream_refused_total") == 3
        assert metric(gateway, "edgec_gateway_upstream_up") == 0


@pytest.mark.slow
def test_the_command_answers_what_is_in_flight_before_it_ends(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("dev1 key-of-the-first-device\n")
    command = [sys.executable, "-m", "edgec.cli", "gateway", "up", str(artifact), "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--key-file", str(tmp_path / "keys")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        with closing(Client(url)) as client:
            headers = {"X-API-Key": "key-of-the-first-device"}
            assert client.request("POST", INFER, REQUEST, headers).status == 200
            assert client.request("POST", INFER, REQUEST).status == 401
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("which", ["gateway", "behind"])
def test_row_32_it_never_fails_on_what_its_description_allows(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis: pip install --group test")
    server: Server = request.getfixturevalue(which)
    # 503 is what a request gets whose deadline cannot be kept.
    (tmp_path / "schemathesis.toml").write_text(
        '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]\n'
    )
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
    result = subprocess.run(
        [*command, "--max-examples", "5", "--seed", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
