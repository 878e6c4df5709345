"""Metrics of observers, as real clients of Prometheus and OpenTelemetry see them."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from tests.runtime.test_observe import ALL, REFERENCE, X, doubling

from edgec.artifact import Observation, Pipeline
from edgec.artifact.steps import Softmax, TopK
from edgec.errors import InputError, MissingExtraError
from edgec.runtime import Host, Observer, ResultCache, Session, load
from edgec.runtime._families import families
from edgec.runtime.exporters import PrometheusCollector, export_otlp, exposed

pytest.importorskip("onnxruntime", reason="needs onnxruntime")

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    path = doubling(
        tmp_path / "a.edgec", factor=1, reference={"y": REFERENCE},
        pipeline=Pipeline(postprocess=(Softmax(), TopK(k=1))),
        observe=Observation(inputs={"x": ("mean",)}), input_reference={"x": {"mean": {"0.5": 100.0}}},
    )  # fmt: skip
    with load(path, cache=ResultCache(max_bytes=2**20)) as session:
        yield session


def use(session: Session) -> Observer:
    observer = session.observe(ALL)
    for _ in range(2):
        session.run({"x": np.array([[0, 9, 0, 0]], np.float32)})
    session.run(X)
    with pytest.raises(InputError):
        session.run({})
    return observer


def parsed(exposed: str) -> Values:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs the extra observe")
    return {
        (
            sample.name,
            tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ALWAYS)),
        ): sample.value
        for family in parser.text_string_to_metric_families(exposed)
        for sample in family.samples
    }


ALWAYS = ("model", "version", "artifact", "engine")


def check(values: Values) -> None:
    assert values["edgec_calls_total", ()] == 3  # two runs and a refusal
    assert values["edgec_call_errors_total", (("type", "InputError"),)] == 1
    assert values["edgec_cache_hits_total", ()] == 1
    assert values["edgec_cache_misses_total", ()] == 2
    assert values["edgec_calls_sampled_total", ()] == 2
    assert values["edgec_non_finite_calls_total", ()] == 0
    assert values["edgec_predicted_class_total", (("class", "1"),)] == 1
    assert values["edgec_predicted_class_total", (("class", "0"),)] == 1
    assert values["edgec_confidence_bucket", (("le", "0.2"),)] == 0
    assert values["edgec_confidence_bucket", (("le", "0.3"),)] == 1
    assert values["edgec_confidence_bucket", (("le", "+Inf"),)] == 2
    assert values["edgec_output_value_bucket", (("le", "0.0"), ("output", "y"))] == 0
    assert values["edgec_output_value_bucket", (("le", "0.5"), ("output", "y"))] == 3
    assert values["edgec_output_drift", (("output", "y"),)] > 0.25
    assert values["edgec_input_drift", (("input", "x"), ("statistic", "mean"))] > 0.25
    assert values["edgec_inference_duration_seconds_bucket", (("le", "+Inf"),)] == 2
    statistic = (("input", "x"), ("quantile", "0.95"), ("statistic", "mean"))
    assert values["edgec_input_statistic", statistic] == pytest.approx(1.0, rel=0.02)


def test_a_scrape_of_a_real_endpoint_is_parsed(session: Session) -> None:
    client = pytest.importorskip("prometheus_client", reason="needs the extra observe")
    observer = use(session)
    registry = client.CollectorRegistry()
    registry.register(PrometheusCollector([observer, Observer()]))
    server, thread = client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        observer.take()  # takes nothing from the exporter
        with urlopen(address, timeout=20) as response:
            values = parsed(response.read().decode())
        session.run(X)
        with urlopen(address, timeout=20) as response:
            later = parsed(response.read().decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    check(values)
    assert values["edgec_inference_duration_seconds_count", ()] == 2
    assert 0 < values["edgec_inference_duration_seconds_sum", ()] < 20
    assert later["edgec_cache_hits_total", ()] == 2


def test_our_own_text_is_what_prometheus_reads(session: Session) -> None:
    told = exposed([use(session)]).decode()
    check(parsed(told))
    assert f'artifact="{session.content_digest[7:19]}"' in told


def test_sessions_of_one_artifact_are_one_model(tmp_path: Path) -> None:
    path = doubling(tmp_path / "a.edgec")
    with load(path) as a, load(path) as b:
        observers = [a.observe(), b.observe()]
        a.run(X)
        b.run(X)
        calls = next(f for f in families(observers) if f.name == "edgec_calls")
    assert [sample.value for sample in calls.samples] == [2]


def test_classes_beyond_the_first_are_one_series(tmp_path: Path) -> None:
    pipeline = Pipeline(postprocess=(TopK(k=1),))
    with load(doubling(tmp_path / "a.edgec", size=100, pipeline=pipeline)) as session:
        observer = session.observe(ALL)
        for best in (3, 70, 99):
            scores = np.zeros((1, 100), np.float32)
            scores[0, best] = 0.4
            session.run({"x": scores})
        classes = next(f for f in families([observer]) if f.name == "edgec_predicted_class")
    assert {s.labels["class"]: s.value for s in classes.samples} == {"3": 1, "other": 2}


class Collector:
    """A collector of OpenTelemetry that keeps what it is sent."""

    def __init__(self) -> None:
        bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.bodies = bodies
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Collector:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_a_collector_gets_it_by_otlp(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk.metrics", reason="needs the extra observe")
    service = pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
    observer = use(session)
    with Collector() as collector:
        provider = export_otlp(
            lambda: [observer],
            f"http://127.0.0.1:{collector.server.server_port}/v1/metrics",
            interval_s=3600,
            attributes={"service.name": "gate-7"},
        )
        assert provider.force_flush(20_000)
        provider.shutdown(20_000)
    (resource,) = service.ExportMetricsServiceRequest.FromString(collector.bodies[0]).resource_metrics
    assert ("service.name", "gate-7") in {(a.key, a.value.string_value) for a in resource.resource.attributes}
    values, kinds = {}, {}
    for metric in resource.scope_metrics[0].metrics:
        kinds[metric.name] = metric.WhichOneof("data")
        for point in getattr(metric, kinds[metric.name]).data_points:
            labels = {a.key: a.value.string_value for a in point.attributes}
            assert labels["model"] == "doubling"
            key = tuple(sorted((k, v) for k, v in labels.items() if k not in ALWAYS))
            end = "_total" if kinds[metric.name] == "sum" and not metric.name.endswith("_bucket") else ""
            values[metric.name + end, key] = getattr(point, point.WhichOneof("value"))
    check(values)
    assert (kinds["edgec_calls"], kinds["edgec_output_drift"]) == ("sum", "gauge")


def test_a_host_is_asked_for_its_observers_each_time(tmp_path: Path) -> None:
    client = pytest.importorskip("prometheus_client", reason="needs the extra observe")
    with Host() as host:
        host.observe()
        registry = client.CollectorRegistry()
        registry.register(PrometheusCollector(lambda: host.observers().values()))
        assert client.generate_latest(registry) == b""
        host.add("m", doubling(tmp_path / "a.edgec"))
        host.run("m", X)
        assert parsed(client.generate_latest(registry).decode())["edgec_calls_total", ()] == 1


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith(("prometheus_client", "opentelemetry")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for make in (lambda: PrometheusCollector([]), lambda: export_otlp([], "http://127.0.0.1:1/")):
        with pytest.raises(MissingExtraError, match=r"edgec\[observe\]"):
            make()
