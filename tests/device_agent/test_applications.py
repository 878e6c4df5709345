"""Applications follow what the agent installs: through its directory, and over its socket."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from tests.device_agent.followed import MODEL, Device, SlotsInUse, X, answer, eventually, line, tell

from edgec.device_agent._actions import Context, PostponedError, WorkFailedError
from edgec.device_agent._application_socket import listen, may_come_in
from edgec.device_agent._events import Work
from edgec.device_agent._judging import ShadowCriteria
from edgec.device_agent._state import Wanted
from edgec.errors import AgentError, ArtifactError, ProtocolError, UnknownModelError
from edgec.runtime import FollowedSession, Window, follow
from edgec.runtime._link_figures import observed, window_from_plain
from edgec.runtime._link_messages import (
    FROM_APPLICATION,
    MAX_FROM_APPLICATION,
    Goodbye,
    Hello,
    Lines,
    Observe,
)
from edgec.runtime._model_directory import ModelDirectory
from edgec.sketch import Histogram

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
SHORT = {"poll_s": 0.02, "drain_s": 5.0}


def followed(here: Device, **options: Any) -> FollowedSession:
    return follow(MODEL, directory=here.models, socket=here.socket, **{**SHORT, **options})


def test_without_an_agent_the_directory_is_followed(here: Device) -> None:
    here.install(2)
    with follow(MODEL, directory=here.models, socket=None, poll_s=0.02) as session:
        assert (answer(session), session.linked, session.digest) == (2, False, here.digest())
        here.install(3)
        eventually(lambda: answer(session) == 3)
        assert session.predict(X)["y"][0, 0] == 3
        with pytest.raises(ValueError, match="agent"):
            session.swap("x.edgec")
        with pytest.raises(ValueError, match="observed already"):
            session.observe()


def test_an_application_waits_for_a_first_artifact(here: Device) -> None:
    with pytest.raises(UnknownModelError, match="nothing is installed"):
        followed(here)
    ready = Thread(target=lambda: here.install(2))
    ready.start()
    with followed(here, wait_s=60) as session:
        assert answer(session) == 2
    ready.join()


def test_a_slot_that_is_damaged_is_not_loaded(here: Device) -> None:
    artifact = here.install(2)
    there = ModelDirectory(here.models, MODEL)
    (artifact.parent / "slot.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"slot\.json"):
        there.current()
    (here.models / MODEL / "current.edgec").unlink()
    (here.models / MODEL / "current.edgec").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match=r"current\.edgec must be"):
        there.current()
    with pytest.raises(ValueError, match="model must be"):
        ModelDirectory(here.models, "../x")


def test_a_switch_is_followed_and_the_old_file_released(here: Device) -> None:
    here.install(2)
    with here.applications() as served, followed(here, name="camera") as session:
        eventually(lambda: served.connected(MODEL))
        assert served.connected(MODEL)[0].startswith("camera (process ")
        old = here.digest()
        eventually(lambda: served.held(MODEL) == {old})
        for _ in range(3):
            answer(session)
        served.follow(MODEL, here.install(3))
        assert answer(session) == 3
        assert served.held(MODEL) == {here.digest()}
        windows: list[Window] = []

        def all_four() -> bool:
            windows.extend(served.take(MODEL))
            return sum(w.calls for w in windows) == 4

        eventually(all_four)
        assert {w.model_version: w.calls for w in windows} == {"2": 3, "3": 1}
    assert here.crashes == []


def test_a_model_is_loaded_anew_by_order(here: Device) -> None:
    here.install(2)
    with here.applications() as served, followed(here) as session:
        eventually(lambda: served.connected(MODEL))
        before = weakref.ref(session.current_program())  # holding it would hold up the swap
        served.follow(MODEL, here.slots.artifact("a"))
        assert before() is not None
        served.restart(MODEL)
        assert before() is None
        assert answer(session) == 2


def test_a_slot_that_an_application_has_open_is_left_alone(here: Device) -> None:
    here.install(1)
    old = here.digest()
    here.install(2)
    with here.applications() as served:
        doing = SlotsInUse(here, served)
        wanted = Wanted(epoch=3, digest="3" * 64, length=1)
        work = Work(
            number=1, name="stage", model=MODEL, wanted=wanted, slot="a", active=here.slots.installed("b")
        )
        raw = Raw(here)
        raw.say(Hello(model=MODEL, digest=old, held=(old,)).to_line())
        eventually(lambda: served.held(MODEL) == {old})
        with pytest.raises(PostponedError, match="still runs") as caught:
            doing.stage(work, Context())
        assert caught.value.reason == "in_use"
        doing.clean(work, Context())
        assert here.slots.installed("a") is not None
        raw.say(Hello(model=MODEL).to_line())  # which ends the connection, as a second one does
        eventually(lambda: not served.held(MODEL))
        raw.close()
        doing.clean(work, Context())
        assert here.slots.installed("a") is None
        assert here.slots.installed("b") is not None


def test_what_cannot_be_used_fails_the_switch(here: Device) -> None:
    here.install(2)
    with here.applications() as served, followed(here) as session:
        eventually(lambda: served.connected(MODEL))
        with pytest.raises(WorkFailedError, match="inputs and outputs") as caught:
            served.follow(MODEL, here.install(3, size=5))
        assert caught.value.reason == "incompatible_artifact"
        assert not caught.value.passing
        assert answer(session) == 2


@pytest.mark.slow
def test_a_candidate_sees_live_inputs_before_the_switch(here: Device) -> None:
    here.install(2)
    over = Event()
    with here.applications(criteria=ShadowCriteria(slowdown=1000)) as served, followed(here) as session:
        assert served.shadow("other", here.slots.artifact("a"), 1.0, lambda: True) is None
        eventually(lambda: served.connected(MODEL))

        def call() -> None:
            while not over.is_set():
                answer(session)
                over.wait(0.0005)

        caller = Thread(target=call)
        caller.start()
        try:
            good = served.shadow(MODEL, here.stage(2.001), 20.0, lambda: True)
            assert good is not None
            assert good.outcome == "pass"
            assert len(served.held(MODEL)) == 2
            bad = served.shadow(MODEL, here.stage(float("nan")), 20.0, lambda: True)
            assert bad is not None
            assert bad.outcome == "fail"
            assert "failures" in {finding.word for finding in bad.findings}
            eventually(lambda: served.held(MODEL) == {here.digest()})
        finally:
            over.set()
            caller.join()


def test_an_agent_that_comes_back_is_found_again(here: Device) -> None:
    here.install(2)
    with followed(here) as session:
        with here.applications() as served:
            eventually(lambda: session.linked and served.connected(MODEL))
        eventually(lambda: not session.linked)
        here.install(3)
        eventually(lambda: answer(session) == 3)
        with here.applications() as served:
            eventually(lambda: served.connected(MODEL))
            # What was observed meanwhile is not lost.
            eventually(lambda: {w.model_version for w in served.take(MODEL)} >= {"3"})
    assert here.crashes == []
    assert not here.socket.exists()


class Raw:
    """An application that says what it is told to."""

    def __init__(self, here: Device) -> None:
        self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link.settimeout(60)
        self.link.connect(os.fspath(here.socket))
        self.file = self.link.makefile("rb")

    def say(self, data: bytes) -> None:
        self.link.sendall(data)

    def close(self) -> None:
        self.file.close()
        self.link.close()

    def heard(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads(self.file.readline() or "{}")
        except ConnectionResetError:  # it hung up before it had read all
            return {}
        return told


HELLO = Hello(model=MODEL).to_line()
BAD: dict[str, bytes] = {
    "no json": b"{\n",
    "no object": b"[]\n",
    "no utf-8": b'{"type":"\xff"}\n',
    "no type": b"{}\n",
    "a type of another kind": b'{"type":1}\n',
    "deeply nested": b"[" * 100_000 + b"\n",
    "a number that is none": b'{"type":"hello","model":"scaled","v":NaN}\n',
    "no model": b'{"type":"hello"}\n',
    "a path as a model": b'{"type":"hello","model":"../scaled"}\n',
    "a digest that is none": b'{"type":"hello","model":"scaled","digest":"x"}\n',
    "too many files": json.dumps({"type": "hello", "model": MODEL, "held": ["0" * 64] * 9}).encode() + b"\n",
    "half a surrogate": b'{"type":"hello","model":"scaled","name":"\\ud800"}\n',
    "no hello first": b'{"type":"goodbye"}\n',
    "two hellos": HELLO + HELLO,
    "an endless line": b" " * (MAX_FROM_APPLICATION + 1),
    "a window that is none": HELLO
    + json.dumps({"type": "observed", "digest": "0" * 64, "window": {}}).encode()
    + b"\n",
    "too much": HELLO + b'{"type":"done","request":1}\n' * 1001,
}


def last_words(here: Device, data: bytes) -> str:
    """Say something; return why the agent hung up."""
    raw = Raw(here)
    with suppress(BrokenPipeError):  # it hung up before all was sent
        raw.say(data)
    words: list[dict[str, Any]] = [{}]
    while word := raw.heard():
        words.append(word)
    raw.close()
    return str(words[-1].get("reason"))


def test_an_application_that_says_something_else_is_refused(here: Device) -> None:
    here.install(2)
    with here.applications() as served, followed(here):
        eventually(lambda: served.connected(MODEL))
        assert {case: last_words(here, data) for case, data in BAD.items()} == dict.fromkeys(BAD, "malformed")
        # The others are served all the same.
        assert len(served.connected(MODEL)) == 1
    assert here.crashes == []


def test_newer_applications_are_told_so_and_newer_messages_ignored(here: Device) -> None:
    here.install(2)
    with here.applications():
        raw = Raw(here)
        raw.say(b'{"type":"hello","model":"scaled","v":2}\n')
        assert raw.heard()["reason"] == "version"
        raw.close()
        raw = Raw(here)
        raw.say(b'{"type":"hello","model":"scaled","more":1}\n{"type":"sung"}\n')
        active = raw.heard()
        assert active == {
            "type": "active",
            "v": 1,
            "digest": here.digest(),
            "file": "a/model.edgec",
            "epoch": 7,
        }
        assert raw.heard() == {"type": "observe", "every_s": 0.05}
        raw.say(Goodbye().to_line())
        assert raw.heard() == {}
        raw.close()


def test_who_goes_without_a_goodbye_has_crashed_if_it_ran_what_serves(here: Device) -> None:
    here.install(2)
    with here.applications() as served:
        for digest in (here.digest(), "0" * 64, ""):
            raw = Raw(here)
            raw.say(Hello(model=MODEL, digest=digest, name="camera").to_line())
            eventually(lambda: served.connected(MODEL))
            raw.close()
            eventually(lambda: not served.connected(MODEL))
            eventually(lambda: len(here.crashes) == 1)
    assert here.crashes[0].startswith("camera (process ")


def test_a_goodbye_is_heard_though_the_agent_was_about_to_speak(here: Device) -> None:
    here.install(2)
    with here.applications() as served:
        raw, other = Raw(here), Raw(here)
        raw.say(Hello(model=MODEL, digest=here.digest()).to_line())
        other.say(HELLO)
        eventually(lambda: len(served.connected(MODEL)) == 2)
        (caller,) = (caller for caller in served._callers if caller.digest)
        with served._changed:
            # The agent's thread hears the other one, and waits here until all else has happened.
            other.say(Goodbye().to_line())
            time.sleep(0.5)
            caller.say(Observe(every_s=1.0))
            raw.say(Goodbye().to_line())
            raw.close()
        eventually(lambda: not served.connected(MODEL))
        other.close()
    assert here.crashes == []


def test_the_socket_is_open_to_whom_it_should_be(here: Device) -> None:
    here.install(2)
    with here.applications(mode=0o660):
        assert stat.S_IMODE(here.socket.stat().st_mode) == 0o660
        with pytest.raises(AgentError, match="another agent listens"):
            listen(here.socket, mode=0o600, group=None)
    own = os.geteuid()
    assert may_come_in(own, 0o600, ())
    assert may_come_in(0, 0o600, ())
    assert not may_come_in(own + 12345, 0o600, None)
    assert may_come_in(own + 12345, 0o660, None)
    assert not may_come_in(own + 12345, 0o660, (own + 1,))
    with pytest.raises(AgentError, match="at most 107 bytes"):
        listen(here.root / ("x" * 120), mode=0o600, group=None)
    here.socket.write_text("a file")
    with pytest.raises(AgentError, match="is no socket"):
        listen(here.socket, mode=0o600, group=None)


@pytest.mark.slow
def test_another_user_is_refused(here: Device) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    here.install(2)
    here.root.chmod(0o755)
    script = (
        "import os, socket\nos.setuid(12345)\ns = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(60)\ns.connect(socket_path)\nprint(s.recv(4096).decode())\n"
    )
    for mode, expected in ((0o600, "PermissionError"), (0o666, '"permission"')):
        with here.applications(mode=mode, users=(1,)):
            head = f"socket_path = {str(here.socket)!r}\n"
            done = subprocess.run(
                ["/usr/bin/env", "python3", "-c", head + script], capture_output=True, text=True, check=False
            )
            assert expected in done.stdout + done.stderr


def test_windows_survive_the_way_and_damaged_ones_do_not(here: Device) -> None:
    here.install(2)
    with follow(MODEL, directory=here.models, socket=None) as session:
        for _ in range(10):
            answer(session)
        assert session.observer is not None
        window = session.observer.take()
    message = observed("0" * 64, window)
    (back,) = Lines(FROM_APPLICATION, MAX_FROM_APPLICATION).take(message.to_line())
    assert back == message
    plain = dict(message.window)
    assert window_from_plain(plain) == window
    seen = Histogram([0.0, 1.0])
    seen.add_many([0.5, 2.0])
    described = dict(observed("0" * 64, replace(window, input_bins={"x": {"mean": seen}})).window)
    assert window_from_plain(described).input_bins["x"]["mean"].to_bytes() == seen.to_bytes()
    del described["input_bins"]  # as of an application with an older edgec
    assert window_from_plain(described).input_bins == {}
    wrong: list[tuple[str, object]] = [
        ("calls", -1), ("calls", 2**53), ("calls", True), ("since", 1e13), ("since", 10**400),
        ("latency_ms", "!"), ("latency_ms", "AAAA"), ("classes", {"x": 1}), ("artifact", "sha256:0"),
        ("classes", {str(i): 1 for i in range(4300)}), ("outputs", {"y": "AAAA"}), ("errors", {"e": "1"}),
        ("input_bins", {"x": {"mean": "AAAA"}}), ("input_bins", {"x": 1}),
        ("confidence", 1), ("model", None), ("errors", {str(i): 1 for i in range(200)}),
    ]  # fmt: skip
    for field, value in wrong:
        with pytest.raises(ProtocolError):
            window_from_plain({**plain, field: value})
    with pytest.raises(ProtocolError):
        window_from_plain([])


LOADED = """
import json, sys, threading, time
import numpy as np
from edgec.runtime import follow
X = {"x": np.ones((1, 4), np.float32)}
over, failed, calls, seen = threading.Event(), [], [0, 0], []
with follow("scaled", directory=directory, socket=socket, poll_s=0.05) as session:
    def call(i):
        while not over.is_set():
            try:
                y = float(session.run(X)["y"][0, 0])
            except Exception as e:
                failed.append(repr(e))
            calls[i] += 1
            if i == 0 and (not seen or seen[-1] != y):
                seen.append(y)
    threads = [threading.Thread(target=call, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    print(json.dumps("ready"), flush=True)
    for word in sys.stdin:
        if word.strip() == "maps":
            maps = open("/proc/self/maps").read()
            print(json.dumps([l.split(None, 5)[5] for l in maps.splitlines() if ".edgec" in l]), flush=True)
        else:
            break
    over.set()
    [t.join() for t in threads]
print(json.dumps({"calls": sum(calls), "failed": failed, "seen": seen}), flush=True)
"""


@pytest.mark.slow
def test_a_loaded_application_loses_no_call_over_twenty_switches(here: Device) -> None:
    here.install(1)
    with here.applications() as served, here.application(LOADED) as process:
        assert line(process) == "ready"
        eventually(lambda: served.connected(MODEL))
        for factor in range(2, 22):
            served.follow(MODEL, here.install(factor))
            assert served.held(MODEL) == {here.digest()}
        tell(process, "maps")
        current = os.path.realpath(here.slots.link)
        assert set(line(process)) <= {current}
        calls = sum(w.calls for w in served.take(MODEL))
        tell(process, "end")
        told = line(process)
        assert process.wait(90) == 0
    assert told["failed"] == []
    assert told["seen"] == [float(factor) for factor in range(1, 22)]
    assert told["calls"] > 1000
    assert calls > 0
    assert here.crashes == []


@pytest.mark.slow
def test_an_application_goes_on_while_its_agent_is_killed_and_started_again(here: Device) -> None:
    here.install(1)
    agent = f"""
import sys, time
from pathlib import Path
from edgec.device_agent._applications import SocketApplications
class Owner:
    epoch = 0
    def crashed(self, model, detail): print(detail, flush=True)
served = SocketApplications(Path({str(here.socket)!r}), Path({str(here.models)!r}))
served.start(Owner())
while not served.connected("scaled"): time.sleep(0.02)
print("1", flush=True)
for word in sys.stdin: served.follow("scaled", Path(word.strip())); print("2", flush=True)
"""
    with here.application(LOADED) as process:
        assert line(process) == "ready"
        with here.application(agent) as killed:
            assert line(killed) == 1
            tell(killed, str(here.install(2)))
            assert line(killed) == 2
            killed.kill()
            killed.wait()
        here.install(3)
        with here.application(agent) as again:
            assert line(again) == 1
            tell(again, str(here.install(4)))
            assert line(again) == 2
        tell(process, "end")
        told = line(process)
    assert told["failed"] == []
    assert told["seen"] in ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "crashes"),
    [
        ("session.close()", 0),
        ("pass", 0),
        ("import sys; sys.exit(3)", 0),
        ("raise ValueError('of the model')", 1),
        ("import os; os._exit(1)", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1),
    ],
)
def test_an_application_that_dies_has_crashed_and_one_that_ends_has_not(
    here: Device, end: str, crashes: int
) -> None:
    here.install(1)
    script = (
        "import sys\nfrom edgec.runtime import follow\n"
        "session = follow('scaled', directory=directory, socket=socket)\nprint(1, flush=True)\n"
        f"sys.stdin.readline()\n{end}\n"
    )
    with here.applications() as served, here.application(script) as process:
        assert line(process) == 1
        eventually(lambda: served.connected(MODEL))
        tell(process, "go")
        process.wait(90)
        eventually(lambda: not served.connected(MODEL))
        eventually(lambda: len(here.crashes) == crashes)


@pytest.mark.slow
def test_an_artifact_that_kills_whoever_loads_it_is_a_crash(here: Device) -> None:
    here.install(1)
    script = (
        "import os\nfrom edgec.runtime import follow\n"
        "follow('scaled', directory=directory, socket=socket, loader=lambda path: os._exit(9))\n"
    )
    with here.applications(), here.application(script) as process:
        assert process.wait(90) == 9
        eventually(lambda: len(here.crashes) == 1)


def test_a_socket_of_somebody_else_is_not_talked_to(here: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    here.install(2)
    with here.applications():
        monkeypatch.setattr("edgec.runtime._agent_socket.peer", lambda link: (1, 54321, 1))
        with followed(here) as session:
            assert answer(session) == 2
            assert not session.linked


def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path, here: Device) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(here.socket))
    left.close()
    with here.applications():
        Raw(here).close()
