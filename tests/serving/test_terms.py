"""What a request asks for besides its inference: an answer in time, and by the very model it names."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.oip_conformance.oip import Client, Model, Reply, assert_refused
from tests.serving.test_server import SlowSession, address

from edgec.artifact import Artifact
from edgec.errors import DeadlineError
from edgec.runtime._interrupt import interrupt_here
from edgec.runtime.testing import tiny_artifact
from edgec.serving import Server, ServerOptions
from edgec.serving._margin import Margin

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("terms") / "tiny.edgec", batch="n")


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with Server([artifact], ServerOptions(port=0)) as running:
        yield running


def infer(server: Server, **headers: str) -> Reply:
    with closing(Client(server.url)) as client:
        body = json.dumps(Model(client, "tiny").json_request()).encode()
        return client.request("POST", INFER, body, {k.replace("_", "-"): v for k, v in headers.items()})


def test_an_answer_says_which_model_gave_it(server: Server, artifact: Path) -> None:
    with Artifact.open(artifact) as opened:
        digest = opened.content_digest
    reply = infer(server, Edgec_Model_Digest=digest)
    assert (reply.status, reply.headers["edgec-model-digest"]) == (200, digest)


def test_another_model_than_the_one_named_does_not_answer(server: Server) -> None:
    for name in ("Edgec_Model_Digest", "Edgec_Source_Digest"):
        reply = infer(server, **{name: f"sha256:{'0' * 64}"})
        assert reply.status == 409
        assert_refused(reply)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Edgec_Deadline_Ms", "soon"),
        ("Edgec_Deadline_Ms", "-1"),
        ("Edgec_Deadline_Ms", "1e3"),
        ("Edgec_Deadline_Ms", "1" * 10),
        ("Edgec_Model_Digest", "md5:0"),
        ("Edgec_Source_Digest", "A" * 64),
    ],
)
def test_malformed_terms_are_refused(server: Server, name: str, value: str) -> None:
    reply = infer(server, **{name: value})
    assert reply.status == 400
    assert_refused(reply)


def test_a_deadline_that_cannot_be_kept_is_refused_before_any_work(server: Server) -> None:
    assert infer(server, Edgec_Deadline_Ms="60000").status == 200
    reply = infer(server, Edgec_Deadline_Ms="0")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_row_33_behind_a_queue_only_what_can_be_in_time_waits_and_who_hangs_up_costs_nothing(
    artifact: Path,
) -> None:
    sessions: list[SlowSession] = []

    def loader(path: Path) -> SlowSession:
        sessions.append(SlowSession(path))
        return sessions[0]

    options = ServerOptions(port=0, threads=os.cpu_count())
    with Server([artifact], options, loader=loader) as server, ThreadPoolExecutor(4) as pool:
        (session,) = sessions
        with closing(Client(server.url)) as watcher:
            body = json.dumps(Model(watcher, "tiny").json_request()).encode()
            session.go.clear()
            before = session.runs
            running = [pool.submit(infer, server) for _ in range(2)]  # both places
            until(lambda: session.runs == before + 2)
            begin = time.monotonic()
            assert infer(server, Edgec_Deadline_Ms="5").status == 503  # below what one inference takes
            late = infer(server, Edgec_Deadline_Ms="200")  # may wait, and is given up in time to say so
            assert (late.status, time.monotonic() - begin < 30) == (503, True)
            with socket.create_connection(address(server)) as leaving:
                head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                leaving.sendall(head.encode() + body)
                until(lambda: value(watcher, "edgec_queue_depth") == 1)
            until(lambda: value(watcher, "edgec_requests_abandoned_total") == 1)
            session.go.set()
            assert [reply.result().status for reply in running] == [200, 200]
            assert session.runs == before + 2
            assert value(watcher, "edgec_inference_unheard_seconds_total") == 0
            assert value(watcher, "edgec_inference_seconds_total") > 0


def test_what_runs_for_a_client_that_hung_up_is_counted(artifact: Path) -> None:
    sessions: list[SlowSession] = []

    def loader(path: Path) -> SlowSession:
        sessions.append(SlowSession(path))
        return sessions[0]

    with Server([artifact], ServerOptions(port=0), loader=loader) as server:
        (session,) = sessions
        with closing(Client(server.url)) as watcher:
            body = json.dumps(Model(watcher, "tiny").json_request()).encode()
            session.go.clear()
            before = session.runs
            with socket.create_connection(address(server)) as leaving:
                head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                leaving.sendall(head.encode() + body)
                until(lambda: session.runs == before + 1)
            until(lambda: value(watcher, "edgec_requests_stopped_total") == 1)
            session.go.set()
            until(lambda: value(watcher, "edgec_inference_seconds_total") > 0)
            assert value(watcher, "edgec_inference_unheard_seconds_total") == value(
                watcher, "edgec_inference_seconds_total"
            )


class WaitingSession(SlowSession):
    """Runs when it is told to stop, to see whether the engine does."""

    stopped = 0

    def run(self, inputs: Mapping[str, NDArray[Any]], /) -> Mapping[str, NDArray[Any]]:
        """Wait, run."""
        interrupt, told = interrupt_here(), threading.Event()
        if interrupt is None:  # it is measured
            return super().run(inputs)
        interrupt.attach(told.set)
        assert told.wait(60)
        try:
            return self._session.run(inputs)
        except DeadlineError:
            self.stopped += 1
            raise


@pytest.mark.parametrize("why", ["gone", "late"])
def test_row_33_an_inference_is_stopped_when_nobody_waits_for_it(artifact: Path, why: str) -> None:
    sessions: list[WaitingSession] = []

    def loader(path: Path) -> WaitingSession:
        sessions.append(WaitingSession(path))
        return sessions[0]

    with Server([artifact], ServerOptions(port=0), loader=loader) as server:
        with closing(Client(server.url)) as watcher:
            if why == "late":
                end = time.monotonic() + 60
                while not value(watcher, "edgec_requests_stopped_total"):  # else it came too late to begin
                    assert infer(server, Edgec_Deadline_Ms="400").status == 503
                    assert time.monotonic() < end
            else:
                body = json.dumps(Model(watcher, "tiny").json_request()).encode()
                with socket.create_connection(address(server)) as leaving:
                    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                    leaving.sendall(head.encode() + body)
                    until(lambda: value(watcher, "edgec_in_flight") == 1, 60)
            until(lambda: value(watcher, "edgec_in_flight") == 0, 60)
            assert value(watcher, "edgec_requests_stopped_total") == 1
            spent = value(watcher, "edgec_inference_seconds_total")
            assert value(watcher, "edgec_inference_unheard_seconds_total") == spent
        assert sessions[0].stopped == 1


def test_row_33_a_margin_grows_where_answers_are_not_heard_and_goes_by_itself() -> None:
    now = [0.0]
    margin = Margin(lambda: now[0])
    margin.learn(True, 0.01)
    assert margin.seconds() == 0
    margin.learn(False, 0.01)
    assert margin.seconds() == pytest.approx(0.005)
    margin.learn(True, 0.01)
    assert 0.0049 < margin.seconds() < 0.005
    for _ in range(100):
        margin.learn(False, 0.01)
    assert margin.seconds() == pytest.approx(0.08)
    now[0] += 10
    assert margin.seconds() == pytest.approx(0.04)


def until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def value(client: Client, name: str) -> float:
    lines = client.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))
