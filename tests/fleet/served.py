"""A fleet with a release and devices, its API in this process, and the API on a port."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.fleet.service import Fleet
from edgec.protocol import CommandReply, ModelReport, Presence, Reported
from edgec.protocol.certificates import Certificate
from edgec.runtime.testing import onnxruntime_spec

GOOD: dict[str, Any] = {"parity": {"passed": True, "max_abs_error": 0.0}, "latency_ms": {"p50": 2.0}}
HARDWARE = "cpu-x86_64"


class Sender:
    """Answers commands, and counts them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, Any]] = []

    def send_command(
        self, device: str, name: str, args: Any = None, *, timeout_s: float = 30.0, actor: str = "fleet"
    ) -> CommandReply:
        self.sent.append((device, name, args))
        return CommandReply(
            id="c1", name=name, state="done", boot_id="b1", sent_at=1.0, result='{"lines": ["hello"]}'
        )


def artifact(folder: Path, version: str, *, model: str = "kws", report: dict[str, Any] | None = GOOD) -> Path:
    """Return a small artifact that has proven itself, or not."""
    manifest = Manifest(
        model=model,
        model_version=version,
        target=HARDWARE,
        engine=onnxruntime_spec(weights=False),
        inputs=(TensorSpec("x", "float32", (1, 4)),),
        outputs=(TensorSpec("y", "float32", (1, 3)),),
        reference={"y": {"0.5": 0.0}},
    )
    path = folder / f"{model}-{version}.edgec"
    pack(path, manifest, {"model.onnx": f"{model} {version}".encode()}, report=report)
    return path


def upload(fleet: Fleet, path: Path) -> str:
    """Put an artifact into the registry; return its digest."""
    file = io.BytesIO(path.read_bytes())
    return fleet.registry.upload(file, now=fleet.clock(), actor="test").sha256


def enrol(fleet: Fleet, *names: str, **labels: str) -> None:
    """Take devices into the fleet that are connected."""
    for name in names:
        fleet.store.devices.enrol(name, HARDWARE, own=labels, now=fleet.clock(), actor="test")
        birth = Presence(
            online=True, boot_epoch=1, boot_id="b1", connection=1, agent="edgec 0", sent_at=fleet.clock()
        )
        fleet.store.devices.heard(name, birth, fleet.clock())


def reports(
    fleet: Fleet, device: str, digest: str, *, seq: int = 1, epoch: int = 0, model: str = "kws"
) -> None:
    """Have a device say that an artifact serves."""
    own = ModelReport(state="committed", active=digest, since=fleet.clock())
    told = Reported(
        boot_epoch=1, boot_id="b1", seq=seq, epoch=epoch, models={model: own}, sent_at=fleet.clock()
    )
    fleet.store.devices.heard(device, told, fleet.clock())


def token(fleet: Fleet, role: str) -> str:
    """Return a token of a role."""
    taken = {made.name for made in fleet.tokens.all()}
    names = chain([f"the {role}"], (f"the {role} {number}" for number in count(2)))
    name = next(name for name in names if name not in taken)
    return fleet.tokens.create(name, role, now=fleet.clock(), actor="test")[1]


@contextmanager
def serving(app: ASGIApp, tls: Certificate | None = None, *, port: int = 0) -> Iterator[str]:
    """Serve an app on a port, or on any that is free; give its URL."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="off",
        timeout_graceful_shutdown=1,
        ssl_certfile=tls and str(tls.certificate),
        ssl_keyfile=tls and str(tls.key),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
