"""A fleet as its dashboard shows it: devices, hours of calls and rollouts, all through the real store.

`Scene` plays the devices: it hears, measures and obeys by a clock of its own, so that days pass in a second.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgec.artifact import Manifest, TensorSpec, pack
from edgec.fleet.rollouts import OVER, Plan, Stage
from edgec.fleet.service import Fleet
from edgec.protocol import (
    DeviceEvent,
    ModelReport,
    ModelWindow,
    Presence,
    Reported,
    Telemetry,
    TelemetryRecord,
)
from edgec.runtime.testing import onnxruntime_spec
from edgec.sketch import Histogram, QuantileSketch

MODEL = "kws"
HARDWARE = ("rpi5-arm64", "cpu-x86_64", "jetson-orin-nano")
SITES = ("lab", "hall", "gate")
EDGES = np.linspace(0.05, 0.95, 19)
BEGAN = 1767225600.0


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How a version does: factor of the latency, share of failed calls, mean of the confidence."""

    slower: float = 1.0
    errors: float = 0.0006
    confidence: float = 0.82
    install_failures: float = 0.0


@dataclass
class Clock:
    """Seconds since 1970, as the scene wants them."""

    now: float = BEGAN

    def __call__(self) -> float:
        """Return them."""
        return self.now


@dataclass
class _Device:
    name: str
    hardware: str
    pace: float
    load: float
    active: str | None = None
    previous: str | None = None
    epoch: int = 0
    said: int = 0
    seq: int = 0
    online: bool = True
    failed: str | None = None


def artifact(
    folder: Path, version: str, target: str, *, model: str = MODEL, passed: bool = True, gate: bool = True
) -> bytes:
    """Return a small artifact with a report as the compiler writes it."""
    manifest = Manifest(
        model=model,
        model_version=version,
        target=target,
        engine=onnxruntime_spec(weights=False),
        inputs=(TensorSpec("audio", "float32", (1, 49, 10)),),
        outputs=(TensorSpec("scores", "float32", (1, 12)),),
        reference={"scores": {"0.5": 0.0}},
    )
    path = folder / f"{model}-{version}-{target}.edgec"
    build = {
        "edgec": "0.1.0",
        "artifacts": [entry(target, passed)],
        "options": {"max_drop": 0.01 if gate else None},
        "machine": {"cpu": "Cortex-A76", "cores": 4},
    }
    pack(path, manifest, {"model.onnx": f"{model} {version} {target}".encode() * 40}, report=build)
    return path.read_bytes()


def entry(target: str, passed: bool = True) -> dict[str, Any]:
    """Return what a build says of one artifact."""

    def candidate(name: str, status: str, p50: float, top1: float, snr: float, size: int) -> dict[str, Any]:
        return {
            "name": name, "engine": "onnxruntime", "precision": name.split()[-1], "status": status,
            "latency_ms": {"p50": p50, "p90": 1.12 * p50, "p99": 1.4 * p50}, "speedup": 4.4 / p50,
            "size_bytes": size, "reason": "",
            "accuracy": {"metric": "top1", "artifact": top1, "source": 0.942, "verdict": "pass"},
            "parity": {"passed": True, "snr_db": snr, "max_abs_error": 0.004},
        }  # fmt: skip

    parity = {
        "passed": passed, "snr_db": 38.2, "max_abs_error": 0.0041,
        "outputs": [{"name": "scores", "max_abs_error": 0.0041, "tolerance": 0.02, "snr_db": 38.2}],
    }  # fmt: skip
    return {
        "target": target, "engine": "onnxruntime", "engine_version": "1.23.2", "precision": "int8",
        "effective_precision": "int8", "parity": parity, "latency_ms": {"p50": 1.92, "p99": 2.61},
        "accuracy": {"metric": "top1", "artifact": 0.939, "source": 0.942, "n": 4890, "verdict": "pass"},
        "candidates": [
            candidate("onnxruntime fp32", "admissible", 4.4, 0.942, 132.0, 1_020_000),
            candidate("onnxruntime fp16", "admissible", 3.1, 0.942, 66.0, 512_000),
            candidate("onnxruntime int8", "winner", 1.92, 0.939, 38.2, 289_000),
        ],
        "decisions": ["onnxruntime int8 ships: 1.92 ms median, the fastest within the accuracy budget"],
        "not_run": [], "measured_on": "Raspberry Pi 5, 4 threads",
        "inputs": [{"name": "audio", "dtype": "float32", "shape": [1, 49, 10]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [1, 12]}],
    }  # fmt: skip


@dataclass
class Scene:
    """Devices that do as they are told, and tell what they do.

    Attributes:
        fleet: That they are in.
        clock: Of the fleet.
        folder: For artifacts while they are made.
        ways: How versions do, by version; healthy where it is missing.
    """

    fleet: Fleet
    clock: Clock
    folder: Path
    ways: dict[str, Ways] = field(default_factory=dict)
    devices: dict[str, _Device] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def join(self, count: int, *, prefix: str = "cam", labels: Mapping[str, str] | None = None) -> None:
        """Let devices in; each is online and runs nothing."""
        for i in range(1, count + 1):
            name = f"{prefix}-{i:03d}"
            hardware = HARDWARE[(i % 10 > 5) + (i % 10 > 8)]
            own = {"site": SITES[zlib.crc32(name.encode()) % 3], **(labels or {})}
            self.fleet.store.devices.enrol(name, hardware, own=own, now=self.clock(), actor="claim 4f2a")
            pace = float(np.exp(self.rng.normal(scale=0.12)))
            self.devices[name] = _Device(name, hardware, pace, float(np.exp(self.rng.normal(scale=0.4))))
            self._presence(self.devices[name])
            self._report(self.devices[name])

    def release(self, version: str, *, targets: Iterable[str] = HARDWARE, model: str = MODEL) -> None:
        """Upload a release for some targets."""
        for target in targets:
            record = self.fleet.registry.upload(
                io.BytesIO(artifact(self.folder, version, target, model=model)), now=self.clock(), actor="ann"
            )
            self.versions[record.sha256] = version

    def roll_out(
        self, name: str, version: str, *, soak_s: float = 3600, actor: str = "ann", **more: Any
    ) -> str:
        """Make and start a rollout; return its id."""
        ident = name.replace(" ", "-")
        plan = Plan(
            id=ident, name=name, model=MODEL, version=version,
            artifacts=self.fleet.registry.by_hardware(MODEL, version),
            stages=tuple(Stage(percent=p, soak_s=soak_s) for p in (1, 5, 25, 100)), **more,
        )  # fmt: skip
        rollouts = self.fleet.store.rollouts
        rollouts.create(plan, now=self.clock(), actor=actor)
        rollouts.order(ident, "start", now=self.clock(), actor=actor)
        return ident

    def go_on(self, rollout: str, *, until: int = 9, most_hours: float = 48.0, step_s: float = 900.0) -> str:
        """Let time pass until a rollout is over, or in a stage of this number; return its state."""
        rollouts = self.fleet.store.rollouts
        for _ in range(int(most_hours * 3600 / step_s)):
            rollouts.tick(rollout, self.clock())
            self.obey()
            self.work(step_s)
            found = rollouts.get(rollout)
            if found.state in OVER or found.stage >= until:
                break
        return rollouts.get(rollout).state

    def obey(self) -> None:
        """Devices that are online do what they are told."""
        for record in self.fleet.store.devices.find(limit=10_000):
            device = self.devices.get(record.id)
            if device is None or not device.online or record.epoch <= device.epoch:
                continue
            device.epoch, wanted = record.epoch, record.wanted.get(MODEL)
            if wanted == device.active:
                self._report(device)
                continue
            ways = self.ways.get(self.versions.get(wanted or "", ""), Ways())
            device.failed = wanted if self.rng.random() < ways.install_failures else None
            if device.failed is None:
                device.previous, device.active = device.active, wanted
            self._report(device)

    def work(self, seconds: float) -> None:
        """Time passes; every device tells how its model did, in one transaction for all."""
        since, now = self.clock.now, self.clock.now + seconds
        self.clock.now = now
        hour = (since / 3600) % 24
        daylight = 0.45 + 0.55 * max(0.0, float(np.sin((hour - 5) / 14 * np.pi)))
        told = []
        for device in self.devices.values():
            if not device.online or device.active is None:
                continue
            window = self._window(device, since, seconds, daylight)
            record = TelemetryRecord(offset=0, kind="window", at=now, payload=window.to_bytes())
            message = Telemetry(
                boot_id=self._boot(device), first_seq=device.seq, sent_at=now, records=(record,)
            )
            device.seq += 1
            told.append((device.name, message))
        self.fleet.store.telemetry.ingest(told, now)

    def leave(self, name: str) -> None:
        """A device goes away."""
        device = self.devices[name]
        device.online = False
        self._presence(device)

    def tell(
        self, name: str, kind: str, *, severity: str = "info", reason: str = "", detail: str = ""
    ) -> None:
        """A device tells of something that happened."""
        device = self.devices[name]
        event = DeviceEvent(
            boot_epoch=1, boot_id=self._boot(device), seq=device.seq, at=self.clock(), kind=kind,
            severity=severity, model=MODEL, reason=reason or None, detail=detail,
        )  # fmt: skip
        device.seq += 1
        self.fleet.store.telemetry.ingest([(name, event)], self.clock())

    def _boot(self, device: _Device) -> str:
        return f"boot-{device.name}"

    def _presence(self, device: _Device) -> None:
        message = Presence(
            online=device.online, boot_epoch=1, boot_id=self._boot(device), connection=1, agent="edgec 0.1.0",
            sent_at=self.clock(),
        )  # fmt: skip
        self.fleet.store.devices.heard(device.name, message, self.clock())

    def _report(self, device: _Device) -> None:
        device.said += 1
        state, reason = ("failed", "refused") if device.failed else ("committed", None)
        own = ModelReport(
            state=state if device.active else "idle", active=device.active, previous=device.previous,
            candidate=device.failed, reason=reason, since=self.clock(),
        )  # fmt: skip
        models = {MODEL: own} if device.active or device.failed else {}
        message = Reported(
            boot_epoch=1, boot_id=self._boot(device), seq=device.said, epoch=device.epoch, models=models,
            sent_at=self.clock(),
        )  # fmt: skip
        self.fleet.store.devices.heard(device.name, message, self.clock())

    def _window(self, device: _Device, since: float, seconds: float, daylight: float) -> ModelWindow:
        assert device.active is not None
        ways = self.ways.get(self.versions.get(device.active, ""), Ways())
        calls = int(self.rng.poisson(900 * device.load * daylight * seconds / 3600)) + 1
        latency, confidence = QuantileSketch(), Histogram(EDGES)
        base = {"rpi5-arm64": 8.0, "cpu-x86_64": 2.2, "jetson-orin-nano": 1.4}[device.hardware]
        latency.add_many(
            base * device.pace * ways.slower * np.exp(self.rng.normal(scale=0.25, size=min(calls, 300)))
        )
        looked = min(calls, 150)
        confidence.add_many(np.clip(self.rng.normal(ways.confidence, 0.13, looked), 0, 1))
        third = calls // 3
        return ModelWindow(
            model=MODEL, digest=bytes.fromhex(device.active)[:8], since=since, seconds=seconds, calls=calls,
            errors=int(self.rng.binomial(calls, ways.errors)), sampled=looked, latency_ms=latency.to_bytes(),
            confidence=confidence.to_bytes(), classes={1: third, 2: third, 3: calls - 2 * third},
        )  # fmt: skip


def full(fleet: Fleet, clock: Clock, folder: Path, *, devices: int = 120, hours: int = 22) -> Scene:
    """Return a fleet after some days: one release everywhere, one that was undone, one half-way."""
    scene = Scene(fleet, clock, folder)
    scene.ways["1.1.0"] = Ways(slower=1.9, errors=0.03, confidence=0.7)
    scene.join(devices)
    scene.release("1.0.0")
    scene.go_on(scene.roll_out("kws 1.0.0", "1.0.0", soak_s=900, least_devices=10))
    for _ in range(hours):
        scene.work(3600)
    scene.release("1.1.0")
    scene.go_on(scene.roll_out("kws 1.1.0 larger model", "1.1.0", least_devices=10))
    scene.release("1.2.0")
    for name in ("cam-017", "cam-044", "cam-090"):
        scene.leave(name)
    scene.tell("cam-003", "update_failed", severity="error", reason="probation", detail="slower than before")
    scene.tell("cam-003", "fallback", severity="warning", reason="low_confidence", detail="3 calls went out")
    name = scene.roll_out("kws 1.2.0 quieter rooms", "1.2.0", least_devices=10)
    scene.go_on(name, until=2)
    for _ in range(2):
        scene.fleet.store.rollouts.tick(name, clock())
        scene.obey()
        scene.work(900)
    return scene


__all__ = ["MODEL", "Clock", "Scene", "Ways", "artifact", "full"]
