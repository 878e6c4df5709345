"""One message of every type, with every field set."""

from __future__ import annotations

from edgec.protocol import (
    Alert,
    Chunk,
    ChunkRequest,
    Command,
    CommandReply,
    Desired,
    DesiredModel,
    DeviceEvent,
    Message,
    Metadata,
    ModelReport,
    ModelWindow,
    Patch,
    Poke,
    Presence,
    Reported,
    SeqRange,
    Telemetry,
    TelemetryAck,
    TelemetryRecord,
)
from edgec.protocol._window import ModelSample, Note, SystemState

A, B, C = "a" * 64, "b" * 64, "c" * 64
PATCH = Patch(source_sha256=A, path="patches/kws/1-2.delta", length=120, sha256=C)
PRESENCE = Presence(
    online=True,
    boot_epoch=7,
    boot_id="boot-7",
    connection=2,
    agent="edgec 0.1.0",
    sent_at=1.75e9,
    hardware="cpu",
)
DESIRED = Desired(
    epoch=12,
    revision=3,
    models={"kws": DesiredModel(path="models/kws/2.edgec", length=4096, sha256=B, patches=(PATCH,))},
    metadata=Metadata(director={"timestamp.json": '{"signed":{}}'}, image={"3.root.json": '{"ü":1}'}),
    sources=("https://models.example/repo",),
)
REPORT = ModelReport(
    state="rolling_back",
    active=A,
    previous=B,
    candidate=C,
    reason="self_test",
    detail="p95 14 ms > 10 ms",
    since=1.0,
)
REPORTED = Reported(
    boot_epoch=7,
    boot_id="boot-7",
    seq=3,
    epoch=12,
    models={"kws": REPORT},
    sent_at=1.75e9,
    alerts=(Alert(reason="disk_full", detail="3 MB left"),),
)
EVENT = DeviceEvent(
    boot_epoch=7,
    boot_id="boot-7",
    seq=40,
    at=1.75e9,
    kind="update_failed",
    severity="error",
    model="kws",
    reason="digest",
    detail="expected aa, got bb",
    data={"path": "models/kws/2.edgec"},
)
TELEMETRY = Telemetry(
    boot_id="boot-7",
    first_seq=41,
    records=(
        TelemetryRecord(offset=0, kind="window", at=1.0, payload=b"\x00\xff"),
        TelemetryRecord(offset=3, kind="system", at=2.5, payload=b""),
    ),
    floor=41,
    sent_at=1.75e9,
)
MESSAGES: list[Message] = [
    PRESENCE,
    PRESENCE.as_will(),
    DESIRED,
    REPORTED,
    EVENT,
    TELEMETRY,
    TelemetryAck(boot_id="boot-7", seq=44, ranges=(SeqRange(first=46, last=47),)),
    ModelWindow(
        model="kws",
        digest=bytes(8),
        since=1.0,
        seconds=3600.0,
        calls=10,
        errors=1,
        non_finite=2,
        latency_ms=b"\x01",
        confidence=b"\x02",
        classes={-1: 3, 4: 7},
        outputs={"scores:0": b"\x03"},
        inputs={"image/mean": b"\x04"},
        model_version="2",
        sampled=9,
        error_types={"InputError": 1},
        drops={"overloaded": 3},
        fallbacks={"no TensorRT": 10},
        joined_bins=2,
        left_out=1,
        system=SystemState(
            cpu_decidegrees=-21, memory_free_mib=512, disk_free_mib=4000, throttled=0, load_percent=130
        ),
        input_bins={"image/mean": b"\x05"},
    ),
    ModelSample(model="kws", digest=bytes(8), tensors=b"\x01"),
    Note(source="agent", text="started", cut=2),
    Poke(reason="desired"),
    Command(id="c1", name="verify", issued_at=1.0, expires_at=2.0, envelope='{"payload":""}'),
    CommandReply(
        id="c1", name="verify", state="done", boot_id="b", sent_at=2.0, reason="ok", detail="d", result="{}"
    ),
    ChunkRequest(id="r1", path="models/kws/2.edgec", sha256=B, offset=0, length=1000),
    Chunk(id="r1", offset=0, total=4, data=b"\x00\x01\x02\x03"),
    Chunk(id="r2", offset=0, total=0, error="not_found"),
]
