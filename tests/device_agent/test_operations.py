"""Remote operations: bounded in number, time and size, and all of them in a log that tells of changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device_agent.followed import scaled

from edgec.device_agent._audit import FIRST, AuditLog
from edgec.device_agent._logs import LogMemory, clean_tail
from edgec.device_agent._operations import RATES, RemoteOperations
from edgec.device_agent._policy import TelemetryPolicy
from edgec.device_agent._rates import Rate, TokenBucket
from edgec.device_agent._seams import OrderRefusedError
from edgec.errors import AgentError, OutputError
from edgec.trust import SignedCommand


class Status:
    def to_dict(self) -> dict[str, Any]:
        return {"running": True}


class Agent:
    """What operations need of one."""

    def __init__(self, artifact: Path | None = None) -> None:
        self.artifact = artifact
        self.ceiling = TelemetryPolicy(max_bytes_per_day=1000)
        self.restarted: list[str] = []

    def status(self) -> Status:
        return Status()

    def serving(self, model: str) -> Path | None:
        return self.artifact if model == "m" else None

    def restart(self, model: str) -> None:
        self.restarted.append(model)

    def set_telemetry_policy(self, policy: TelemetryPolicy) -> TelemetryPolicy:
        return policy.within(self.ceiling)


def order(
    operations: RemoteOperations, name: str, agent: Agent | None = None, **args: Any
) -> Mapping[str, Any]:
    command = SignedCommand(
        id="1", name=name, args=args, device="d", group="", issued_at=0, expires_at=1
    )  # fmt: skip
    return operations.carry_out(command, agent or Agent())


def refused(operations: RemoteOperations, name: str, agent: Agent | None = None, **args: Any) -> str:
    with pytest.raises(OrderRefusedError) as caught:
        order(operations, name, agent, **args)
    return caught.value.reason


def made(**options: Any) -> RemoteOperations:
    return RemoteOperations(clock=lambda: 0.0, **options)


def test_arguments_are_checked_before_anything_is_done() -> None:
    generous = dict.fromkeys(RATES, Rate(burst=100, every_s=1.0))
    operations, agent = made(rates=generous), Agent()
    assert refused(operations, "format_disk") == "unknown_command"
    for name in ("verify", "benchmark", "restart"):
        assert refused(operations, name, agent) == "args"
        assert refused(operations, name, agent, model="../m") == "args"
        assert refused(operations, name, agent, model=["m"]) == "args"
        assert refused(operations, name, agent, model="m") == "unknown_model"
    agent.artifact = Path("/x")
    for seconds in (0, 1e9, "1", float("nan"), True, -1):
        assert refused(operations, "benchmark", agent, model="m", seconds=seconds) == "args"
    for args in ({"lines": -1}, {"lines": "1"}, {"source": "../etc/passwd"}, {"source": "syslog"}):
        assert refused(operations, "logs", agent, **args) == "args"
    for policy in (None, {"inputs": 1}, {"imputs": True}, {"interval_s": 1}):
        assert refused(operations, "telemetry", agent, policy=policy) == "args"
    assert agent.restarted == []


def test_a_policy_is_never_more_than_the_owner_permits() -> None:
    told = order(made(), "telemetry", policy={"inputs": True, "outputs": True, "max_bytes_per_day": 10**9})
    assert told["policy"]["inputs"] is False
    assert told["policy"]["outputs"] is False
    assert told["policy"]["max_bytes_per_day"] == 1000


def test_operations_are_rationed() -> None:
    now = [0.0]
    operations, agent = RemoteOperations(clock=lambda: now[0]), Agent(Path("/x"))
    for _ in range(2):
        order(operations, "restart", agent, model="m")
    assert refused(operations, "restart", agent, model="m") == "rate"
    assert order(operations, "status") == {"running": True}
    now[0] = 300.0
    order(operations, "restart", agent, model="m")
    assert refused(operations, "restart", agent, model="m") == "rate"
    now[0] = 10.0  # a clock that goes back gives nothing away
    assert refused(operations, "restart", agent, model="m") == "rate"
    assert agent.restarted == ["m"] * 3


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_no_more_than_its_rate_passes_a_bucket(waits: list[float]) -> None:
    now = [0.0]
    bucket, passed = TokenBucket(Rate(burst=3, every_s=7.0), lambda: now[0]), 0
    for wait in waits:
        now[0] += wait
        passed += bucket.take() == 0
    assert passed <= 3 + now[0] / 7.0 + 1e-6


def test_row_30_bad_logs_are_sent_trimmed_and_clean(tmp_path: Path) -> None:
    logs = {
        "binary": os.urandom(100_000),
        "huge_line": b"x" * 5_000_000,
        "invalid": b"good\n\xff\xfe bad \xc3\n" * 3,
        "terminal": b"\x1b[31mred\x07\x00\n",
        "empty": b"",
    }
    for name, data in logs.items():
        (tmp_path / name).write_bytes(data)
    operations = made(
        logs={name: tmp_path / name for name in logs}, rates={"logs": Rate(burst=99, every_s=1.0)}
    )
    for name in logs:
        told = order(operations, "logs", source=name, bytes=10**9, lines=10**9)
        assert len(told["text"].encode()) <= 32 * 1024
        assert not set(told["text"]) & {chr(i) for i in range(32) if chr(i) not in "\t\n"}
        json.dumps(told).encode()
    assert order(operations, "logs", source="invalid", lines=2)["text"] == "good\n\ufffd\ufffd bad \ufffd"
    assert order(operations, "logs", source="huge_line")["cut"] is True
    assert order(operations, "logs", source="empty") == {"source": "empty", "text": "", "cut": False}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 20), st.integers(1, 100))
def test_the_end_of_any_bytes_is_text_within_its_bounds(raw: bytes, lines: int, most: int) -> None:
    text, _ = clean_tail(raw, lines=lines, most_bytes=most)
    assert len(text.encode()) <= most
    assert len(text.split("\n")) <= max(lines, 1)


def test_what_the_agent_logs_is_kept_within_bounds() -> None:
    memory = LogMemory(most_bytes=5000)
    log = logging.Logger("edgec.test")
    log.addHandler(memory)
    for i in range(200):
        log.info("line %d of \x00\udcff%s", i, "x" * 10)
    log.info("%s", "y" * 10**6)
    told = memory.tail(10**6).decode()
    assert len(told) <= 5000
    assert "\x00" not in told
    assert told.rstrip("y").splitlines()[-1].endswith("edgec.test: ")


def test_an_audit_tells_whether_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "a" / "audit.jsonl"
    log = AuditLog(path)
    assert log.check().head == FIRST
    heads = [log.append({"command": "logs", "id": str(i), "detail": "d" * 5000}) for i in range(5)]
    assert AuditLog(path).check() == log.check()
    assert (log.check().lines, log.check().problem, log.check().head) == (5, "", heads[-1])
    assert [entry["id"] for entry in log.last(2)] == ["3", "4"]
    whole = path.read_bytes().splitlines(keepends=True)
    changed = {
        "changed": [whole[0], whole[1].replace(b"logs", b"lags"), *whole[2:]],
        "removed": [whole[0], *whole[2:]],
        "swapped": [whole[1], whole[0], *whole[2:]],
        "torn": [*whole[:4], whole[4][:-20]],
        "not json": [b"[" * 5000 + b"\n", *whole],
        "NaN": [*whole, b'{"hash":"","before":"","x":NaN}\n'],
    }
    for case, lines in changed.items():
        path.write_bytes(b"".join(lines))
        assert AuditLog(path).check().problem, case


def test_an_audit_goes_on_after_a_restart_a_torn_line_and_at_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for i in range(30):
        AuditLog(path, most_bytes=2000).append({"id": i})
    found = AuditLog(path).check()
    assert found.problem == ""
    assert path.stat().st_size <= 2000
    assert path.with_name("audit.jsonl.1").stat().st_size <= 2000
    with path.open("ab") as file:
        file.write(b'{"id":100,"bef')
    AuditLog(path).append({"id": 101})
    assert "is damaged" in AuditLog(path).check().problem
    assert [entry["id"] for entry in AuditLog(path).last(3)] == [29, 101]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        AuditLog(tmp_path / "file" / "audit.jsonl").append({})


@pytest.mark.slow
def test_artifacts_are_verified_and_measured_in_a_process_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    agent = Agent(scaled(tmp_path / "m.edgec", 2))
    operations = made(rates={"verify": Rate(burst=9, every_s=1.0)})
    told = order(operations, "verify", agent, model="m")
    assert (told["passed"], told["engine"]) == (True, "onnxruntime")
    measured = order(operations, "benchmark", agent, model="m", seconds=0.2)
    assert measured["calls"] >= 20
    assert len(json.dumps(dict(measured))) < 32 * 1024
    damaged = bytearray(agent.artifact.read_bytes() if agent.artifact else b"")
    damaged[len(damaged) // 2] ^= 1
    agent.artifact = tmp_path / "damaged.edgec"
    agent.artifact.write_bytes(damaged)
    with pytest.raises(AgentError):
        order(operations, "verify", agent, model="m")
    with pytest.raises(AgentError, match=r"not through after 0\.05 s"):
        order(made(child_s=0.05), "verify", agent, model="m")
