"""A session with a fallback: when it asks, where answers come from, and that it never waits too long."""

from __future__ import annotations

import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgec.artifact import Artifact, Manifest, Observation, Privacy, Scores, TensorSpec, pack
from edgec.errors import BackendUnavailableError, FallbackError, InferenceError, OverloadedError
from edgec.runtime import Pool, Session, load
from edgec.runtime.fallback import (
    Answer,
    Breaker,
    Condition,
    Fallback,
    engine_error,
    low_confidence,
    overloaded,
    source_of,
    unsupported,
)
from edgec.runtime.fallback._asking import Asking
from edgec.runtime.fallback._remote import Question, Remote
from edgec.runtime.fallback._wire import MalformedError, read_response
from edgec.runtime.testing import tiny_artifact

# What a busy machine may add to a deadline.
SLACK_S = 15.0
X = {"x": np.array([[1, 2, 3, 4]], np.float32)}
REMOTE = np.array([[7, 8, 9]], np.float32)


def response(values: NDArray[np.float32] = REMOTE) -> tuple[bytes, int]:
    raw = values.tobytes()
    output: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(values.shape)}
    output["parameters"] = {"binary_data_size": len(raw)}
    header = json.dumps({"model_name": "tiny", "outputs": [output]}).encode()
    return header + raw, len(header)


class Stub:
    """A real HTTP server that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body, self.header_size = response()
        self.asked: list[tuple[str, Mapping[str, str], bytes]] = []
        self.connections = 0
        self.delay = threading.Event()
        self.delay.set()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                stub.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                stub.asked.append((self.path, dict(self.headers), body))
                stub.delay.wait(60)
                self.send_response(stub.status)
                fields = {
                    "Content-Length": str(len(stub.body)),
                    "Inference-Header-Content-Length": str(stub.header_size),
                    **stub.headers,
                }
                for name, value in fields.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(stub.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.delay.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = Stub()
    yield server
    server.close()


def made(path: Path, **changes: Any) -> Path:
    """Return the tiny artifact with another manifest."""
    first = tiny_artifact(path.with_suffix(".first"), batch="n")
    with Artifact.open(first) as artifact:
        manifest: Manifest = replace(artifact.manifest, members={}, **changes)
        return pack(path, manifest, {name: artifact.read(name) for name in artifact.names()})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model; its confidence is the highest softmax of y."""
    path = tmp_path_factory.mktemp("fallback") / "tiny.edgec"
    return made(path, observe=Observation(scores=Scores(output="y", activation="softmax")))


def asking(session: Session) -> Asking:
    found = session._asking
    assert found is not None
    return found


def origin(answer: Mapping[str, Any]) -> tuple[str, str, str]:
    assert isinstance(answer, Answer)
    return answer.source, answer.reason, answer.trouble


def test_without_a_fallback_nothing_changes(artifact: Path) -> None:
    with load(artifact) as session:
        answer = session.run(X)
        assert type(answer) is dict
        assert source_of(answer) == "local"


def test_an_unsure_answer_is_the_servers(artifact: Path, stub: Stub) -> None:
    with load(artifact) as session:
        mine = session.run(X)["y"]
    sure = float(np.exp(mine - mine.max()).max() / np.exp(mine - mine.max()).sum())
    for below, expected in ((min(1.0, sure + 0.01), "remote"), (sure - 0.01, "local")):
        fallback = Fallback(stub.url, when=[low_confidence(below)], deadline_ms=60_000)
        with load(artifact, fallback=fallback) as session:
            answer = session.run(X)
            assert source_of(answer) == expected
            np.testing.assert_array_equal(answer["y"], REMOTE if expected == "remote" else mine)
            prediction = session.predict(X["x"])
            assert source_of(prediction) == expected
            assert [source_of(a) for a in session.run_batch([X, X])] == [expected] * 2
            buffer = np.zeros((1, 3), np.float32)
            assert source_of(session.run(X, {"y": buffer})) == expected
            np.testing.assert_array_equal(buffer, answer["y"])


def test_the_request_names_deadline_and_model_and_tensors_are_binary(artifact: Path, stub: Stub) -> None:
    fallback = Fallback(
        f"{stub.url}/prefix", when=[low_confidence(1.0)], deadline_ms=60_000, model="a/b", version="2",
        api_key="secret", allow_plain_key=True,
    )  # fmt: skip
    with load(artifact, fallback=fallback) as session:
        assert source_of(session.run(X)) == "remote"
        digest = session.content_digest
    ((path, headers, body),) = stub.asked
    assert path == "/prefix/v2/models/a%2Fb/versions/2/infer"
    assert headers["Edgec-Model-Digest"] == digest
    assert 0 < int(headers["Edgec-Deadline-Ms"]) <= 60_000
    assert headers["Authorization"] == "Bearer secret"
    size = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:size])["inputs"][0]["parameters"] == {"binary_data_size": 16}
    assert body[size:] == X["x"].tobytes()


def test_connections_are_kept_and_a_lost_one_is_made_again(artifact: Path, stub: Stub) -> None:
    fallback = Fallback(stub.url, when=[low_confidence(1.0)], deadline_ms=60_000)
    with load(artifact, fallback=fallback) as session:
        for _ in range(5):
            assert source_of(session.run(X)) == "remote"
        assert stub.connections == 1
        idle = asking(session).remote._connections._idle
        idle[0].handle.shutdown(socket.SHUT_RDWR)  # as if the server had closed it
        assert origin(session.run(X)) == ("remote", "low_confidence", "")
        assert stub.connections == 2


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        ({"status": 503, "headers": {"Retry-After": "9"}}, "refused"),
        ({"status": 429}, "refused"),
        ({"status": 500}, "refused"),
        ({"status": 409}, "refused"),
        ({"status": 302, "headers": {"Location": "http://elsewhere/"}}, "refused"),
        ({"headers": {"Edgec-Model-Digest": "sha256:0"}}, "refused"),
        ({"body": b"{}", "header_size": 2}, "malformed"),
        ({"body": b"nonsense", "header_size": 3}, "malformed"),
        ({"header_size": 10**6}, "malformed"),
        ({"headers": {"Content-Length": str(2**40)}}, "malformed"),
        ({"body": response(np.zeros((1, 4), np.float32))[0]}, "malformed"),
        ({"body": b"x" * 5000, "header_size": 5000}, "malformed"),
    ],
)
def test_whatever_the_server_answers_there_is_a_local_answer(
    artifact: Path, stub: Stub, change: dict[str, Any], trouble: str
) -> None:
    for name, value in change.items():
        setattr(stub, name, value)
    fallback = Fallback(stub.url, when=[low_confidence(1.0)], deadline_ms=60_000, max_response_bytes=4096)
    with load(artifact, fallback=fallback) as session, load(artifact) as plain:
        observer = session.observe()
        answer = session.run(X)
        assert origin(answer) == ("local", "low_confidence", trouble)
        np.testing.assert_array_equal(answer["y"], plain.run(X)["y"])
        assert observer.take().fallbacks == {f"local:low_confidence:{trouble}": 1}


def test_a_server_that_asks_for_patience_gets_it(artifact: Path, stub: Stub) -> None:
    stub.status, stub.headers = 503, {"Retry-After": "30"}
    fallback = Fallback(stub.url, when=[low_confidence(1.0)], deadline_ms=60_000)
    with load(artifact, fallback=fallback) as session:
        assert [origin(session.run(X))[2] for _ in range(3)] == ["refused", "open", "open"]
    assert len(stub.asked) == 1


def hang_before_reading(connection: socket.socket, over: threading.Event) -> None:
    over.wait(60)


def hang_after_the_head(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    over.wait(60)


def drip(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not over.wait(0.02):
        connection.sendall(b"x")


def drip_headers(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not over.wait(0.02):
        connection.sendall(b"x")


def hang_up(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(10)


FAULTS = [hang_before_reading, hang_after_the_head, drip, drip_headers, hang_up]


@contextmanager
def faulty(fault: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            fault(connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=handle, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_server_holds_a_call_beyond_its_deadline(
    artifact: Path, fault: Callable[[socket.socket, threading.Event], None], scheme: str
) -> None:
    before = threading.active_count()
    with faulty(fault) as port:
        fallback = Fallback(
            f"{scheme}://127.0.0.1:{port}", when=[low_confidence(1.0)], deadline_ms=150, tls=trusting()
        )
        with load(artifact, fallback=fallback) as session:
            begin = time.monotonic()
            answer = session.run(X)
            assert time.monotonic() - begin < 0.15 + SLACK_S
            assert origin(answer)[:2] == ("local", "low_confidence")
            assert origin(answer)[2] in ("late", "unreachable", "malformed")
        end = time.monotonic() + 60  # the request that was given up has ended, too
        while any(t.name == "edgec-fallback" for t in threading.enumerate()):
            assert time.monotonic() < end
            time.sleep(0.005)
    assert threading.active_count() <= before


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.slow
@settings(max_examples=20, deadline=None, database=None)
@given(
    fault=st.sampled_from(FAULTS),
    deadline_ms=st.floats(1, 120),
    calls=st.integers(1, 3),
)
def test_deadlines_hold_for_any_fault_and_any_deadline(
    artifact: Path,
    fault: Callable[[socket.socket, threading.Event], None],
    deadline_ms: float,
    calls: int,
) -> None:
    with faulty(fault) as port:
        fallback = Fallback(
            f"http://127.0.0.1:{port}", when=[low_confidence(1.0)], deadline_ms=deadline_ms, max_requests=2
        )
        with load(artifact, fallback=fallback) as session, ThreadPoolExecutor(calls) as pool:

            def timed(_: int) -> tuple[float, str]:
                begin = time.monotonic()
                answer = session.run(X)
                return time.monotonic() - begin, origin(answer)[0]

            for took, source in pool.map(timed, range(calls)):
                assert took < deadline_ms / 1e3 + SLACK_S
                assert source == "local"


def test_a_server_that_is_not_there_is_left_alone_after_some_failures(artifact: Path) -> None:
    with socket.socket() as silent:  # bound, so that nobody else listens there
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        fallback = Fallback(url, when=[low_confidence(1.0)], deadline_ms=60_000)
        with load(artifact, fallback=fallback) as session:
            troubles = [origin(session.run(X))[2] for _ in range(7)]
    assert troubles == ["unreachable"] * 5 + ["open"] * 2


def test_a_breaker_opens_probes_and_closes_again() -> None:
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0], uniform=lambda low, high: high)
    for _ in range(4):
        assert breaker.allow()
        breaker.failed()
    assert breaker.state == "closed"
    breaker.failed()
    assert (breaker.state, breaker.allow()) == ("open", False)
    now[0] += 44.9  # 30 s, drawn at 1.5 of it
    assert not breaker.allow()
    now[0] += 0.2
    assert breaker.state == "half-open"
    assert [breaker.allow(), breaker.allow()] == [True, False]
    breaker.failed()
    now[0] += 89
    assert not breaker.allow()  # twice as long
    now[0] += 2
    assert breaker.allow()
    breaker.release()  # it came to nothing
    assert breaker.allow()
    breaker.succeeded()
    assert (breaker.state, breaker.allow()) == ("closed", True)
    for _ in range(5):
        now[0] += 10  # five failures in more than 30 s are none too many
        breaker.failed()
    assert breaker.state == "closed"
    breaker.hold(10)
    assert not breaker.allow()
    now[0] += 16
    assert breaker.allow()


def test_breakers_of_many_devices_do_not_close_at_once() -> None:
    now = [0.0]
    breakers = [
        Breaker(failures=1, clock=lambda: now[0], uniform=random.Random(i).uniform) for i in range(200)
    ]
    for breaker in breakers:
        breaker.failed()
    shares = []
    for at in (14.0, 30.0, 46.0):
        now[0] = at
        shares.append(sum(breaker.state == "half-open" for breaker in breakers))
    assert shares[0] == 0
    assert 50 < shares[1] < 150
    assert shares[2] == 200


def test_too_many_requests_at_once_are_answered_here(artifact: Path, stub: Stub) -> None:
    stub.delay.clear()
    fallback = Fallback(stub.url, when=[low_confidence(1.0)], deadline_ms=60_000, max_requests=1)
    with load(artifact, fallback=fallback) as session, ThreadPoolExecutor(1) as pool:
        first = pool.submit(session.run, X)
        while not stub.asked:
            time.sleep(0.002)
        assert origin(session.run(X))[2] == "busy"
        stub.delay.set()
        assert source_of(first.result()) == "remote"


def test_a_full_pool_or_too_many_calls_go_to_the_server(artifact: Path, stub: Stub) -> None:
    begun, gate = threading.Event(), threading.Event()

    def wait(_: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        begun.set()
        gate.wait(60)
        return {}

    with Pool(1, max_queue=1) as pool:
        fallback = Fallback(stub.url, when=[overloaded], deadline_ms=60_000, max_local=1)
        with load(artifact, pool=pool, fallback=fallback) as session:
            pool.submit(wait, X)
            assert begun.wait(60)
            waiting = session.submit(X)
            answer = session.submit(X).result(60)
            assert origin(answer) == ("remote", "overloaded", "")
            stub.status = 500
            with pytest.raises(OverloadedError):
                session.submit(X).result(60)
            stub.status = 200
            gate.set()
            assert source_of(waiting.result(60)) == "local"
            assert asking(session).enter()  # as if another call ran here
            assert origin(session.run(X)) == ("remote", "overloaded", "")
            asking(session).leave(None)
            assert origin(session.run(X)) == ("local", "", "")


def test_a_device_that_cannot_run_the_artifact_asks_the_server(
    tmp_path: Path, stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    first = tiny_artifact(tmp_path / "first.edgec", batch="n")
    with Artifact.open(first) as opened:
        engine = replace(opened.manifest.engine, version=">=99")
    path = made(tmp_path / "new.edgec", engine=engine)
    with pytest.raises(BackendUnavailableError):
        load(path)
    with pytest.raises(BackendUnavailableError):
        load(path, fallback=Fallback(stub.url, when=[overloaded]))
    with load(path, fallback=Fallback(stub.url, when=[unsupported], deadline_ms=60_000)) as session:
        assert (session.state, session.engine) == ("remote", "remote")
        assert caplog.messages[-1].endswith(f"{stub.url} is asked instead")
        assert caplog.messages[-1].count(str(path)) == 1
        observer = session.observe()
        assert origin(session.run(X)) == ("remote", "unsupported", "")
        stub.status = 500
        with pytest.raises(FallbackError) as caught:
            session.run(X)
        assert caught.value.reason == "refused"
        window = observer.take()
        assert window.fallbacks == {"remote:unsupported": 1, "local:unsupported:refused": 1}
        assert (window.calls, window.errors) == (0, {})


def test_an_engine_that_fails_is_replaced_for_that_call(
    artifact: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = Fallback(stub.url, when=[engine_error], deadline_ms=60_000)
    with load(artifact, fallback=fallback) as session:
        program = session.current_program()

        def fail(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            raise InferenceError("the engine failed")

        monkeypatch.setattr(program, "run", fail)
        session.set_observer(None)  # arranges calls anew
        assert origin(session.run(X)) == ("remote", "engine_error", "")
        stub.status = 400
        with pytest.raises(InferenceError, match="the engine failed"):
            session.run(X)


def test_inputs_that_must_stay_never_leave(tmp_path: Path, stub: Stub) -> None:
    path = made(
        tmp_path / "private.edgec",
        observe=Observation(scores=Scores(output="y", activation="softmax")),
        privacy=Privacy(inputs_stay=True),
    )
    fallback = Fallback(stub.url, when=[low_confidence(1.0), unsupported], deadline_ms=60_000)
    with load(path, fallback=fallback) as session:
        assert origin(session.run(X)) == ("local", "low_confidence", "privacy")
        session.swap(path)
        assert origin(session.run(X)) == ("local", "low_confidence", "privacy")
    with Artifact.open(path) as opened:
        engine = replace(opened.manifest.engine, version=">=99")
    other = made(tmp_path / "other.edgec", engine=engine, privacy=Privacy(inputs_stay=True))
    with pytest.raises(BackendUnavailableError):
        load(other, fallback=fallback)
    assert stub.asked == []


def test_a_swapped_session_goes_on_asking(artifact: Path, stub: Stub) -> None:
    fallback = Fallback(stub.url, when=[low_confidence(1.0)], deadline_ms=60_000)
    with load(artifact, fallback=fallback) as session:
        session.swap(artifact)
        assert source_of(session.run(X)) == "remote"
        session.use_fallback(None)
        assert type(session.run(X)) is dict


def test_confidence_has_to_be_known(tmp_path: Path, stub: Stub) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec")
    with pytest.raises(ValueError, match="nowhere how sure"):
        load(path, fallback=Fallback(stub.url, when=[low_confidence(0.5)]))


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("gateway:8000", {}, "a url such as"),
        ("ftp://gateway", {}, "a url such as"),
        ("http://gateway:0x1", {}, "a url such as"),
        ("http://user:word@gateway", {}, "a url such as"),
        ("http://gateway\r\nX: y", {}, "a url such as"),
        ("http://gateway", {"api_key": "k"}, "https where there is an api_key"),
        ("https://gateway", {"api_key": "a\r\nb"}, "plain characters"),
        ("http://gateway", {"deadline_ms": 0}, "deadline_ms above 0"),
        ("http://gateway", {"deadline_ms": float("nan")}, "deadline_ms above 0"),
        ("http://gateway", {"when": []}, "when: conditions"),
        ("http://gateway", {"when": [Condition("sometimes")]}, "when: conditions"),
        ("http://gateway", {"match": "none"}, "match: artifact, source or any"),
        ("http://gateway", {"max_requests": 0, "max_local": 0}, "max_local from 1.*max_requests"),
    ],
)
def test_unfit_options_are_refused(url: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fallback(url, **{"when": [overloaded], **more})


def test_a_model_of_the_same_source_may_answer(tmp_path: Path, stub: Stub) -> None:
    path = made(tmp_path / "one.edgec", provenance={"source": {"sha256": "a" * 64}})
    for match, expected in (
        ("source", {"Edgec-Source-Digest": "a" * 64}),
        ("any", {}),
    ):
        fallback = Fallback(stub.url, when=[overloaded], match=match)  # type: ignore[arg-type]
        with Artifact.open(path) as opened:
            assert Question(opened.manifest, opened.content_digest, fallback).wanted == expected


SPECS = (TensorSpec("y", "float32", ("n", 3)), TensorSpec("k", "uint8", (2,)))


@settings(max_examples=150, deadline=None, database=None)
@given(
    body=st.binary(max_size=200), size=st.one_of(st.none(), st.text(max_size=5), st.integers(0, 200).map(str))
)
def test_no_response_breaks_the_reader(body: bytes, size: str | None) -> None:
    with suppress(MalformedError):
        read_response(body, size, SPECS)


def output(name: str, datatype: str, shape: object, **more: object) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


Y = output("y", "FP32", [1, 3], data=[[1, 2, 3]])
K = output("k", "UINT8", [2], data=[1, 2])


def test_json_outputs_are_read_too_and_in_the_models_order() -> None:
    found = read_response(json.dumps({"outputs": [K, Y]}).encode(), None, SPECS)
    assert list(found) == ["y", "k"]
    assert found["y"].tolist() == [[1, 2, 3]]
    assert [array.dtype.name for array in found.values()] == ["float32", "uint8"]


@pytest.mark.parametrize(
    "outputs",
    [
        [Y],
        [Y, K, K],
        [Y, {**K, "name": "z"}],
        [Y, {**K, "datatype": "INT8"}],
        [Y, {**K, "shape": [3]}],
        [Y, {**K, "shape": [True, 2]}],
        [Y, {**K, "data": [1, 256]}],
        [Y, {**K, "data": [1, -1]}],
        [Y, {**K, "data": ["a", "b"]}],
        [Y, {**K, "data": [[1], [2, 3]]}],
        [Y, output("k", "UINT8", [2], parameters={"binary_data_size": 2})],
        [Y, output("k", "UINT8", [2], parameters={"binary_data_size": -2})],
        [{**Y, "shape": [2**39, 3]}, K],
        [7],
        "y",
        None,
    ],
)
def test_outputs_of_another_model_are_refused(outputs: object) -> None:
    with pytest.raises(MalformedError):
        read_response(json.dumps({"outputs": outputs}).encode(), None, SPECS)


def test_a_remote_may_be_asked_by_itself(artifact: Path, stub: Stub) -> None:
    fallback = Fallback(stub.url, when=[overloaded])
    with Artifact.open(artifact) as opened:
        question = Question(opened.manifest, opened.content_digest, fallback)
    remote = Remote(fallback)
    np.testing.assert_array_equal(remote.ask(question, X, time.monotonic() + 60)["y"], REMOTE)
    with pytest.raises(FallbackError, match="no time was left"):
        remote.ask(question, X, time.monotonic())
    remote.close()
