"""Which server the checks are for: ``pytest tests/oip_conformance --url http://host:8000 --model NAME``.

Without ``--url`` they start edgec's own, with a model of four numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.oip_conformance.oip import Client, Model


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("Open Inference Protocol")
    group.addoption("--url", default=None, help="server to check: http://host:8000; edgec's own by default")
    group.addoption("--model", default="tiny", help="name of a model of it that takes zeros")


@pytest.fixture(scope="package")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = request.config.getoption("--url", default=None)
    if given:
        yield given
        return
    for package in ("uvicorn", "httptools", "uvloop"):
        pytest.importorskip(package, reason="needs the extra serve, or --url")
    from edgec.runtime.testing import tiny_artifact
    from edgec.serving import Server, ServerOptions

    path = tiny_artifact(tmp_path_factory.mktemp("oip") / "tiny.edgec", batch="n")
    with Server([path], ServerOptions(port=0, allow_repository_calls=True)) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    connection = Client(url)
    yield connection
    connection.close()


@pytest.fixture
def model(client: Client, request: pytest.FixtureRequest) -> Model:
    return Model(client, str(request.config.getoption("--model", default="tiny")))


@pytest.fixture
def binary(client: Client) -> None:
    if "binary_tensor_data" not in client.get("/v2").json.get("extensions", []):
        pytest.skip("the server has no binary tensor data extension")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
