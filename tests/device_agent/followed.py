"""Models in slots, and applications that follow them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.device_agent._applications import SocketApplications
from edgec.device_agent._slot_work import SlotWork
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import Installed, Slot
from edgec.runtime import FollowedSession
from edgec.runtime.testing import Node, onnx_members, onnxruntime_spec

X = {"x": np.ones((1, 4), np.float32)}
MODEL = "scaled"


def scaled(path: Path, factor: float, *, size: int = 4) -> Path:
    """Pack ``y = factor * x``."""
    inputs, outputs = (TensorSpec("x", "float32", (1, size)),), (TensorSpec("y", "float32", (1, size)),)
    members = onnx_members(
        [Node("Mul", ["x", "f"], ["y"])], inputs, outputs, {"f": np.array([factor], np.float32)}
    )
    manifest = Manifest(
        model=MODEL, model_version=str(factor), target="cpu-x86_64", inputs=inputs, outputs=outputs,
        engine=onnxruntime_spec(weights=False),
    )  # fmt: skip
    return pack(path, manifest, members)


class Device:
    """A directory of models and a socket; what an agent notes of crashes is in `crashes`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.socket = root / "s"
        self.slots = Slots(self.models, MODEL)
        self.crashes: list[str] = []
        self.epoch = 7

    def crashed(self, model: str, detail: str) -> None:
        """Note a crash, as an agent does."""
        assert model == MODEL
        self.crashes.append(detail)

    def stage(self, factor: float, *, size: int = 4) -> Path:
        """Put a model into the slot that does not serve."""
        source = scaled(self.root / "new.edgec", factor, size=size)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        shutil.copy(source, self.slots.incoming(digest))
        slot: Slot = "b" if self.slots.current() == "a" else "a"
        wanted = Installed(digest=digest, length=source.stat().st_size, slot=slot)
        self.slots.stage(wanted)
        return self.slots.artifact(slot)

    def install(self, factor: float, *, size: int = 4) -> Path:
        """Make a model current on disk."""
        artifact = self.stage(factor, size=size)
        slot: Slot = "a" if artifact.parent.name == "a" else "b"
        found = self.slots.installed(slot)
        assert found is not None
        self.slots.switch(found, proven=False)
        return artifact

    def digest(self) -> str:
        """Return the digest of what serves."""
        serving = self.slots.current()
        found = None if serving is None else self.slots.installed(serving)
        return "" if found is None else found.digest

    @contextmanager
    def applications(self, **options: Any) -> Iterator[SocketApplications]:
        """Serve applications."""
        served = SocketApplications(
            self.socket, self.models, **{"observe_s": 0.05, "watch_s": 0.05, **options}
        )
        served.start(self)
        try:
            yield served
        finally:
            served.stop()

    @contextmanager
    def application(self, script: str) -> Iterator[subprocess.Popen[str]]:
        """Run a program in a process of its own; it finds `directory` and `socket` in its first line."""
        head = f"directory, socket = {str(self.models)!r}, {str(self.socket)!r}\n"
        process = subprocess.Popen(
            [sys.executable, "-c", head + script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextmanager
def device() -> Iterator[Device]:
    """Give a device whose socket has a short path, whatever pytest calls its directories."""
    with tempfile.TemporaryDirectory(prefix="ec") as root:
        yield Device(Path(root))


def eventually(happens: Callable[[], Any], seconds: float = 90.0) -> Any:
    """Wait until something is so; return it."""
    end = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


def line(process: subprocess.Popen[str]) -> Any:
    """Return the next line of JSON that a program prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def tell(process: subprocess.Popen[str], word: str) -> None:
    """Write a line to a program."""
    assert process.stdin is not None
    process.stdin.write(word + os.linesep)
    process.stdin.flush()


class SlotsInUse(SlotWork):
    """Work on the slots of a device, whose applications have some of them open."""

    def __init__(self, here: Device, served: SocketApplications) -> None:
        super().__init__(here.models)
        self._served = served

    def held(self, model: str) -> frozenset[str]:
        """Return what the applications say."""
        return self._served.held(model)


def answer(session: FollowedSession) -> float:
    """Return by what the model multiplies."""
    return float(session.run(X)["y"][0, 0])
