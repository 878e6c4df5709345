"""Requests that run as one, and models that share a machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.oip_conformance.oip import Client, Reply

from edgec.artifact import Manifest, Pipeline, TensorSpec, pack
from edgec.errors import DeadlineError, ServingError
from edgec.runtime import Isolation, Pool, load
from edgec.runtime._isolation import IsolatedProgram
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec, tiny_artifact
from edgec.serving import Server, ServerOptions
from edgec.serving._models import measure
from edgec.serving._scheduling import ScheduledModel, Scheduling

SIZE = 2048


def wide_artifact(path: Path, batch: int | str) -> Path:
    """Pack ``x @ w @ w ...``, 12 times, with 16 MiB of weights, which one call reads as eight do."""
    w = (np.random.default_rng(0).standard_normal((SIZE, SIZE)) / SIZE**0.5).astype(np.float32)
    names = ["x", *(f"h{i}" for i in range(11)), "y"]
    nodes = [Node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    inputs, outputs = (
        (TensorSpec("x", "float32", (batch, SIZE)),),
        (TensorSpec("y", "float32", (batch, SIZE)),),
    )
    manifest = Manifest(
        model="wide",
        model_version="1",
        target="cpu-x86_64",
        engine=onnxruntime_spec(),
        inputs=inputs,
        outputs=outputs,
        pipeline=Pipeline(),
    )
    return pack(path, manifest, onnx_members(nodes, inputs, outputs, {"w": w}))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_artifact(tmp_path_factory.mktemp("wide") / "wide.edgec", "n")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("tiny") / "tiny.edgec", batch="n", pipeline=Pipeline())


def samples(count: int) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return [random.standard_normal((1 + n % 2, SIZE)).astype(np.float32) for n in range(count)]


def infer(url: str, model: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    client = Client(url)
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(x.shape),
        "parameters": {"binary_data_size": x.nbytes},
    }
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = client.request("POST", f"/v2/models/{model}/infer", head + x.tobytes(), headers)
    client.close()
    assert reply.status == 200, reply.body
    size = int(reply.headers["inference-header-content-length"])
    shape = json.loads(reply.body[:size])["outputs"][0]["shape"]
    return np.frombuffer(reply.body[size:], np.float32).reshape(shape)


def metadata(url: str, model: str) -> dict[str, Any]:
    client = Client(url)
    found: dict[str, Any] = client.get(f"/v2/models/{model}").json
    client.close()
    return found


def metrics(url: str) -> dict[str, float]:
    client = Client(url)
    lines = client.get("/metrics").body.decode().splitlines()
    client.close()
    return {
        line.rpartition(" ")[0].partition("{")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("edgec_batch")
    }


@pytest.fixture(scope="module")
def server(wide: Path) -> Iterator[Server]:
    # A delay that is long for requests that come together, so that they are joined on a busy machine, too.
    with Server([wide], ServerOptions(port=0, batch_delay_ms=200)) as running:
        yield running


@pytest.mark.slow
def test_requests_that_come_together_run_as_one_where_that_pays(server: Server, wide: Path) -> None:
    said = metadata(server.url, "wide")["properties"]["batching"]
    assert said.startswith("on: 8 calls as one are ")
    xs = samples(24)
    before = metrics(server.url)
    with ThreadPoolExecutor(12) as pool, load(wide) as session:
        answers = list(pool.map(lambda x: infer(server.url, "wide", x), xs))
        for x, y in zip(xs, answers, strict=True):
            np.testing.assert_allclose(y, session.run({"x": x})["y"], rtol=1e-3, atol=1e-2)
    found = metrics(server.url)
    assert found["edgec_batching_enabled"] == 1
    assert found["edgec_batched_requests_total"] - before["edgec_batched_requests_total"] == 24
    assert found["edgec_batches_total"] - before["edgec_batches_total"] < 24


@pytest.mark.slow
def test_predictions_that_come_together_run_as_one(server: Server, wide: Path) -> None:
    xs = [x[:1] for x in samples(12)]

    def predict(x: NDArray[np.float32]) -> list[float]:
        client = Client(server.url)
        reply = client.request("POST", "/v2/models/wide/predict", json.dumps({"x": x[0].tolist()}).encode())
        client.close()
        assert reply.status == 200, reply.body
        found: list[float] = reply.json["y"]
        return found

    before = metrics(server.url)
    with ThreadPoolExecutor(12) as pool, load(wide) as session:
        answers = list(pool.map(predict, xs))
        for x, y in zip(xs, answers, strict=True):
            np.testing.assert_allclose(np.reshape(y, -1), session.run({"x": x})["y"][0], rtol=1e-3, atol=1e-2)
    after = metrics(server.url)
    assert after["edgec_batched_requests_total"] - before["edgec_batched_requests_total"] == 12
    assert after["edgec_batches_total"] - before["edgec_batches_total"] < 12


@pytest.mark.slow
def test_a_request_alone_does_not_wait_for_others_unless_that_is_asked_for(wide: Path) -> None:
    with Server([wide], ServerOptions(port=0)) as server:
        (x,) = samples(1)
        for _ in range(5):
            infer(server.url, "wide", x)
        assert metrics(server.url)["edgec_batches_total"] == 5


@pytest.mark.slow
def test_batching_is_off_where_the_shapes_are_fixed_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = wide_artifact(tmp_path / "fixed.edgec", 1)
    with caplog.at_level("INFO", "edgec.serving"), Server([path], ServerOptions(port=0)) as server:
        said = metadata(server.url, "wide")["properties"]["batching"]
        assert said.startswith("off: not every input and output has the same named dimension in front")
        assert metrics(server.url) == {"edgec_batching_enabled": 0}
    assert "wide 1: batching off: not every input" in caplog.text


def test_batching_is_off_where_the_model_is_faster_than_the_wait(tiny: Path) -> None:
    with Server([tiny], ServerOptions(port=0)) as server:
        assert metadata(server.url, "tiny")["properties"]["batching"].startswith("off: an inference takes 0.")
    with Server([tiny], ServerOptions(port=0, max_batch=1)) as server:
        assert metadata(server.url, "tiny")["properties"]["batching"] == "off: it is turned off"


@pytest.mark.slow
def test_batching_has_to_beat_calls_side_by_side(wide: Path) -> None:
    with load(wide) as session:
        model = Scheduling(max_batch=8, side_by_side=1000).apply(session, measure(session)[0])
        assert isinstance(model, ScheduledModel)
        assert not model.waits
        assert "and 1000 at once are, too; from 1200 it would pay" in model.batching.reason


def test_a_model_that_takes_too_long_is_not_measured(tiny: Path) -> None:
    with load(tiny) as session:
        model = Scheduling(max_batch=8).apply(session, 1.0)
        assert isinstance(model, ScheduledModel)
        assert model.batching.sentence == "off: 8 inferences take 8.0 s, too long to measure it"


def test_inferences_of_a_model_with_a_higher_priority_go_first(tiny: Path) -> None:
    order: list[str] = []
    go = threading.Event()
    feed = {"x": np.ones((1, 4), np.float32)}
    with Pool(1) as pool, ThreadPoolExecutor(4) as callers:
        models = {}
        for name, priority in (("low", 0.0), ("high", 5.0)):
            session = load(tiny)
            run = session.run
            # The manifest of both is the same, and so would be their priorities.
            scheduling = Scheduling(pool=pool, priorities={"tiny": priority})
            model = scheduling.apply(session, 0.0)

            def recorded(*arguments: Any, name: str = name, run: Any = run) -> Any:
                order.append(name)
                return run(*arguments)

            session.run = recorded  # type: ignore[assignment, method-assign]
            models[name] = model
        pool.submit(go.wait, 60)
        waiting = [callers.submit(models["low"].run, feed) for _ in range(2)]
        end = time.monotonic() + 60
        while pool.waiting < 2 and time.monotonic() < end:
            time.sleep(0.005)
        waiting.append(callers.submit(models["high"].run, feed))
        waiting.append(callers.submit(models["high"].predict, feed))
        while pool.waiting < 4 and time.monotonic() < end:
            time.sleep(0.005)
        go.set()
        for future in waiting:
            assert np.shape(future.result(60)["y"]) == (1, 3)
        for model in models.values():
            model.close()
    assert order[0] == "high"
    assert order[-2:] == ["low", "low"]


def test_an_inference_that_cannot_begin_in_time_is_not_run(tiny: Path) -> None:
    go = threading.Event()
    feed = {"x": np.ones((1, 4), np.float32)}
    with Pool(1) as pool, ThreadPoolExecutor(1) as callers:
        model = Scheduling(pool=pool).apply(load(tiny), 0.0)
        assert isinstance(model, ScheduledModel)
        pool.submit(go.wait, 60)
        late = callers.submit(model.run, feed, time.monotonic() + 0.02)
        time.sleep(0.05)
        go.set()
        with pytest.raises(DeadlineError, match="it was not run"):
            late.result(60)
        assert np.shape(model.run(feed, time.monotonic() + 60)["y"]) == (1, 3)
        model.close()


@pytest.mark.slow
def test_a_server_with_priorities_answers_all_of_its_models(wide: Path, tiny: Path) -> None:
    with Server([wide, tiny], ServerOptions(port=0, priorities={"tiny": 1})) as server:
        xs = samples(12)
        with ThreadPoolExecutor(12) as pool:
            large = [pool.submit(infer, server.url, "wide", x) for x in xs]
            small = [pool.submit(infer, server.url, "tiny", np.ones((1, 4), np.float32)) for _ in range(24)]
            assert [future.result().shape for future in large] == [x.shape for x in xs]
            assert all(future.result().shape == (1, 3) for future in small)


def test_priorities_are_for_models_that_are_there(tiny: Path) -> None:
    with pytest.raises(
        ServingError, match="priorities are for models that are served, tiny, and there is no"
    ):
        Server([tiny], ServerOptions(port=0, priorities={"other": 1}))


@pytest.mark.parametrize("other", [("--port", "8000"), ("--host", "127.0.0.1")])
def test_a_unix_socket_has_neither_host_nor_port(other: tuple[str, str], tiny: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from edgec.cli.serve import command

    result = CliRunner().invoke(command, [str(tiny), "--unix-socket", str(tmp_path / "a.sock"), *other])
    assert result.exit_code == 2
    assert "--unix-socket is instead of --host and --port" in result.output


@pytest.mark.parametrize("wrong", ["tiny", "=1", "tiny=much", "tiny=nan"])
def test_the_command_line_reads_priorities(wrong: str, tiny: Path) -> None:
    from click.testing import CliRunner

    from edgec.cli.serve import command

    result = CliRunner().invoke(command, [str(tiny), "--priority", wrong])
    assert result.exit_code == 2
    assert "expected NAME=NUMBER" in result.output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="isolation needs Linux")
def test_a_server_outlives_the_process_of_a_model(tiny: Path, tmp_path: Path) -> None:
    x = np.ones((1, 4), np.float32)
    with Server([tiny], ServerOptions(port=0, isolate=True)) as server:
        before = infer(server.url, "tiny", x)
        (slot,) = server._repository.slots
        assert slot.loaded is not None
        model = slot.loaded.model
        assert isinstance(model, ScheduledModel)
        program = model.session.current_program()
        assert isinstance(program, IsolatedProgram)
        first = program.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        np.testing.assert_array_equal(infer(server.url, "tiny", x), before)
        assert program.pid != first
    chain = tmp_path / "page.chain.toml"
    chain.write_text("")
    with pytest.raises(ServingError, match="chains do not run in processes of their own"):
        Server([chain], ServerOptions(port=0, isolate=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="isolation needs Linux")
def test_a_model_whose_process_fails_again_and_again_is_not_ready(tiny: Path) -> None:
    isolation = Isolation(retry=True, crash_loop=1, settle_s=1.0)
    with Server(
        [tiny], ServerOptions(port=0, isolate=True), loader=partial(load, isolate=isolation)
    ) as server:
        client = Client(server.url)
        assert client.get("/v2/health/ready").status == client.get("/v2/models/tiny/ready").status == 200
        (slot,) = server._repository.slots
        assert slot.loaded is not None
        assert isinstance(slot.loaded.model, ScheduledModel)
        program = slot.loaded.model.session.current_program()
        assert isinstance(program, IsolatedProgram)
        replies: list[Reply] = []
        end = time.monotonic() + 60
        while {reply.status for reply in replies} != {
            503
        } and time.monotonic() < end:  # a process that was just started is soon well
            assert program.pid is not None or program.trouble
            if program.pid is not None:
                os.kill(program.pid, signal.SIGKILL)
            client.request("POST", "/v2/models/tiny/predict", b"[1, 2, 3, 4]")
            replies = [client.get("/v2/health/ready"), client.get("/v2/models/tiny/ready")]
        assert replies
        assert all("fails again and again" in reply.json["error"] for reply in replies)
        assert client.get("/v2/health/live").status == 200
        while client.get("/v2/health/ready").status != 200 and time.monotonic() < end:
            time.sleep(0.05)
        assert client.get("/v2/models/tiny/ready").status == 200
        client.close()
