"""A device in the field, from enrolment to a rollback: real broker, real processes, real failures.

    python examples/ota_walkthrough/run.py [--broker mosquitto|nats] [--json]

A publisher with keys and a repository, a broker over TLS, a web server, and one device: its agent and an
application are processes of their own. Each step says what happened; the exit status is 1 if one fails.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # for what is beside this file

from examples.ota_walkthrough.device import Device
from examples.ota_walkthrough.fleet import Fleet
from examples.ota_walkthrough.models import (
    MODEL,
    TARGET,
    as_trained,
    make_artifact,
    nan_at_some_brightness,
    trained_on,
)
from examples.ota_walkthrough.server import FileServer

from edgec.cli import main_group
from edgec.errors import EdgecError
from edgec.protocol import Topics, desired_of
from edgec.protocol.brokers import FLEET, Broker, Mosquitto, Nats
from edgec.trust import KeyRing, open_repositories

DEVICE, TENANT = "press-17", "acme"
_SLOW_BYTES_PER_S = 1_000_000
_PATIENCE_S = 120.0
_RESTING = ("idle", "cleaned")


class StepError(Exception):
    """A step did not go as it should."""


def check(condition: object, problem: str) -> None:
    """Fail the step where something does not hold."""
    if not condition:
        raise StepError(problem)


class Walk:
    """The story, step by step; what each returns is told of it."""

    def __init__(
        self, directory: Path, broker: Broker, server: FileServer, say: Callable[[str], None]
    ) -> None:
        self.directory, self.broker, self.server, self.say = directory, broker, server, say
        self.repository, self.keys = directory / "repo", directory / "keys"
        self.stick = directory / "stick"
        self.devices = directory / "devices.txt"
        self.device = Device(directory, directory / "device", directory / "etc/agent.toml")
        self.digests: dict[str, str] = {}
        self.fleet = Fleet(broker, Topics(TENANT), DEVICE, self.repository)
        self.waiting = 0
        self._stack = ExitStack()

    def close(self) -> None:
        """End all processes."""
        self.device.close()
        self._stack.close()

    # -- the steps

    def prepare(self) -> str:
        """Make keys, a repository and five versions of a model."""
        self.edgec("keys", "init", self.keys)
        self.edgec("repo", "init", self.repository, "--keys", self.keys)
        changes = {
            "1": as_trained,
            "2": trained_on(2),
            "3": trained_on(3),
            "4": nan_at_some_brightness,
            "5": trained_on(5),
        }
        for version, change in changes.items():
            path = make_artifact(self.artifact(version), version, change)
            self.digests[version] = hashlib.sha256(path.read_bytes()).hexdigest()
        self.devices.write_text(f"{DEVICE} {TARGET}\n")
        self._stack.enter_context(self.fleet)
        return (
            f"7 keys, 5 versions of {MODEL}; {self.broker.name} listens with TLS, devices show certificates"
        )

    def enrol(self) -> str:
        """Give the device its certificate, the two roots, and its settings."""
        self.broker.admit(DEVICE)
        mine = self.broker.authority.client(DEVICE)
        self.edgec(
            *("agent", "provision", DEVICE, "--tenant", TENANT, "--hardware", TARGET),
            *("--roots", self.repository, "--source", self.stick),
            *("--broker", f"mqtts://{self.broker.host}:{self.broker.port}", "--ca", mine.authority),
            *("--cert", mine.certificate, "--key", mine.key),
            *("--directory", self.directory / "etc", "--state-dir", self.directory / "device"),
        )
        self.device.start_agent()
        check(self.fleet.wait(lambda: self.fleet.view.online, _PATIENCE_S), "the device does not come online")
        self.device.start_application()
        presence = self.fleet.view.presence
        return f"{DEVICE} is online: {presence.agent if presence else ''}, start {self.boot}"

    def install(self) -> str:
        """Bring version 1; nobody but the broker is needed, which carries the artifact as well."""
        self.push("1")
        self.serves("1")
        check(self.device.calls_go_on(), "the application makes no calls")
        return f"version 1 came over the broker, was tried, and serves; {self.calls}"

    def update_with_a_kill(self) -> str:
        """Bring version 2 over a slow line, and kill the agent in the middle of the download."""
        self.server.bytes_per_s = _SLOW_BYTES_PER_S
        # Nothing of version 1 is left in it: there is no patch to look for.
        self.push("2", "--url", self.server.url, "--deltas", "0", "--wait", "0")
        whole = self.artifact("2").stat().st_size
        self.wait(lambda: self.server.sent > whole // 2, "the download does not get on")
        self.device.kill_agent()
        sent = self.server.sent
        check(self.device.serving(MODEL) == self.digests["1"], "version 1 does not serve any more")
        check(self.device.calls_go_on(), "the application failed when the agent was killed")
        self.server.bytes_per_s = 0
        self.device.start_agent()
        self.ended("committed", "2")
        check(self.server.resumed, "the download began again from the start")
        return (
            f"killed after {sent // 1000} of {whole // 1000} kB: version 1 served on, the download went on "
            f"from there, version 2 serves; {self.calls}"
        )

    def refuse_tampered(self) -> str:
        """Announce without the director's key, and change version 3 where it is stored."""
        self.forge()
        heard = self.fleet.wait(lambda: "not believed" in self.alerts, _PATIENCE_S)
        check(heard, f"the device believes what nobody signed: {self.alerts}")
        alert = self.alerts.partition(":")[0]
        self.edgec(
            *("repo", "publish", self.repository, self.artifact("3")), "--keys", self.keys, "--deltas", "0"
        )
        for file in (self.repository / "targets" / MODEL).glob(f"*{MODEL}-3-{TARGET}.edgec*"):
            if not file.name.endswith(".intoto.json"):
                data = bytearray(file.read_bytes())
                data[len(data) // 2] ^= 1
                file.write_bytes(data)
        self.push(f"{MODEL}=3", "--url", self.server.url, "--wait", "0")
        event = self.ended("failed", "3")
        check(
            event.reason == "digest", f"version 3 failed for another reason: {event.reason}: {event.detail}"
        )
        self.serves("2")
        return (
            f"forged: not believed ({alert}); changed by one bit: digest; version 2 serves on; {self.calls}"
        )

    def fall_back(self) -> str:
        """Bring version 4, which is signed and whole, passes every trial, and gives NaN for some images."""
        before, whole = self.server.sent, self.artifact("4").stat().st_size
        # Patches from versions 3 and 2; the device has the latter.
        self.push("4", "--url", self.server.url, "--deltas", "2", "--wait", "0")
        event = self.ended("rolled_back", "4")
        self.serves("2")
        sent = self.server.sent - before
        check(sent < whole // 4, f"{sent} of {whole} bytes were sent: it did not come as a patch")
        nan = self.device.counts()["nan"]
        check(nan, "the application never saw version 4: nothing was tried")
        return (
            f"came as a patch, {sent // 1000} of {whole // 1000} kB; {event.reason}: rolled back to version "
            f"2 and quarantined; {self.calls}, {nan} gave NaN"
        )

    def offline(self) -> str:
        """Take the network away; bring version 5 on a stick, and kill the agent meanwhile."""
        self.broker.kill()
        self.server.offline = True
        self.push("5", "--deltas", "0", announce=False)
        shutil.copytree(self.repository, self.stick)
        self.wait(lambda: self.device.phase(MODEL) not in _RESTING, "the stick is not seen")
        self.device.kill_agent()
        self.device.start_agent()
        self.wait(lambda: self.device.serving(MODEL) == self.digests["5"], "version 5 is not installed")
        self.wait(lambda: self.device.phase(MODEL) in _RESTING, "version 5 stays on probation")
        self.serves("5")
        self.device.stop_agent()
        self.waiting = self.device.status().waiting
        check(self.waiting, "nothing waits to be sent")
        return f"version 5 serves, with no network at all; {self.waiting} records wait; {self.calls}"

    def deliver(self) -> str:
        """Pull the stick out, bring the network back, and count."""
        before = self.fleet.records
        shutil.rmtree(self.stick)
        self.broker.start()
        self.server.offline = False
        self.device.start_agent()
        got = self.fleet.wait(lambda: self.fleet.records - before >= self.waiting, _PATIENCE_S)
        here = self.fleet.records - before
        check(got, f"{here} of {self.waiting} records came")
        check(self.fleet.event("update_committed", self.epoch), "the update of the time offline is not told")
        self.device.stop_agent()
        status = self.device.status()
        check(not self.fleet.gaps, f"{self.fleet.gaps} records are missing")
        check(not status.lost, f"{status.lost} records were given up on the device")
        self.device.start_agent()
        return (
            f"all {self.waiting} came, none is missing; of {self.fleet.records} since the beginning, "
            f"{self.fleet.repeated} came twice and were counted once"
        )

    def take_back(self) -> str:
        """Take version 5 back: an older version in a new epoch, without a download."""
        sent = self.server.sent
        self.push("--rollback", f"{MODEL}=2", "--url", self.server.url)
        self.serves("2")
        check(self.server.sent == sent, "it was downloaded again")
        self.device.stop_application()
        counts = self.device.counts()
        check(not counts["failed"], f"{counts['failed']} calls of the application failed")
        self.device.stop_agent()
        return (
            f"version 2 serves again, from its slot, without a download; {counts['calls']} calls, none failed"
        )

    # -- what they are made of

    @property
    def boot(self) -> int:
        """The number of the agent's start."""
        return 0 if self.fleet.view.presence is None else self.fleet.view.presence.boot_epoch

    @property
    def alerts(self) -> str:
        """What the device says that a person should know."""
        reported = self.fleet.view.reported
        return "" if reported is None else "; ".join(f"{a.reason}: {a.detail}" for a in reported.alerts)

    @property
    def calls(self) -> str:
        """How the application is doing, for people."""
        counts = self.device.counts()
        return f"{counts['calls']} calls, {counts['failed']} failed"

    @property
    def epoch(self) -> int:
        """The number of the newest assignment."""
        return self.director()[0]

    def artifact(self, version: str) -> Path:
        """Return where a version is."""
        return self.directory / f"{MODEL}-{version}.edgec"

    def director(self) -> tuple[int, dict[str, str]]:
        """Return epoch and paths that are assigned to the device."""
        return open_repositories(self.repository, KeyRing([self.keys]))[1].assigned(DEVICE)

    def edgec(self, *words: object) -> dict[str, Any]:
        """Run a command, as one does in a shell; return what it says."""
        arguments = [str(word) for word in words]
        shown = " ".join(arguments).replace(f"{self.directory}/", "")
        self.say(f"   $ edgec {shown}")
        out, err = io.StringIO(), io.StringIO()
        status: object = 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main_group.main([*arguments, "--json"], prog_name="edgec", standalone_mode=False)
            except SystemExit as e:
                status = e.code
        text = out.getvalue()
        result: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        check(status == 0, f"edgec {shown}: {json.dumps(result.get('devices', err.getvalue()))}")
        return result

    def push(self, what: str, *words: object, announce: bool = True) -> dict[str, Any]:
        """Push a version, or with options alone, what they say."""
        target = [self.artifact(what)] if what.isdigit() else [what]
        certificate = self.broker.authority.client(FLEET)
        broker = [
            *("--broker", f"mqtts://{self.broker.host}:{self.broker.port}", "--tenant", TENANT),
            *("--ca", certificate.authority, "--cert", certificate.certificate, "--key", certificate.key),
        ]
        return self.edgec(
            *("push", *target, *words, "--devices", self.devices),
            *("--repo", self.repository, "--keys", self.keys),
            *(broker if announce else ()),
        )

    def forge(self) -> None:
        """Tell the device to run version 1, as somebody who has got hold of the broker."""
        _, director = open_repositories(self.repository, KeyRing([self.keys]))
        desired = desired_of(director.bundle(DEVICE))
        assert desired.metadata is not None
        files = {}
        for name, text in desired.metadata.director.items():
            document = json.loads(text)
            document["signed"]["version"] += 1
            files[name] = json.dumps(document)
        metadata = replace(desired.metadata, director=files)
        forged = replace(desired, epoch=desired.epoch + 1, metadata=metadata)
        self.fleet.publish(Topics(TENANT).desired(DEVICE), forged.to_bytes(), retain=True)

    def ended(self, result: str, version: str) -> Any:
        """Wait until the device tells that the update of the newest assignment ended like this."""
        ends = [f"update_{word}" for word in ("committed", "failed", "refused", "rolled_back")]
        epoch = self.epoch

        def end() -> Any:
            return next((e for kind in ends if (e := self.fleet.event(kind, epoch)) is not None), None)

        check(
            self.fleet.wait(end, _PATIENCE_S),
            f"version {version} comes to no end: {self.fleet.report(MODEL)}",
        )
        event = end()
        check(
            event.kind == f"update_{result}",
            f"version {version}: expected {result}, got {event.kind}: {event.reason}: {event.detail}",
        )
        return event

    def serves(self, version: str) -> None:
        """Check which version serves: on the disk, and in the application."""
        digest = self.digests[version]
        check(self.device.serving(MODEL) == digest, f"version {version} does not serve")
        self.wait(lambda: self.device.counts()["digest"] == digest, f"the application does not run {version}")
        check(not self.device.counts()["failed"], f"{self.device.counts()['failed']} calls failed")

    def wait(self, condition: Callable[[], object], problem: str) -> bool:
        """Wait until something holds.

        Raises:
            StepError: It does not in two minutes.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            check(time.monotonic() < deadline, problem)
            time.sleep(0.02)
        return True


STEPS: Sequence[tuple[str, Callable[[Walk], str]]] = (
    ("keys, a repository, a broker", Walk.prepare),
    ("a device is enrolled", Walk.enrol),
    ("version 1 is installed", Walk.install),
    ("version 2, and kill -9 in the middle of the download", Walk.update_with_a_kill),
    ("version 3 is forged, then changed by one bit", Walk.refuse_tampered),
    ("version 4 is signed and whole, and misbehaves", Walk.fall_back),
    ("offline: version 5 comes on a stick, kill -9 again", Walk.offline),
    ("back online: what was kept is delivered", Walk.deliver),
    ("version 5 is taken back", Walk.take_back),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Walk through; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--broker", choices=("mosquitto", "nats"), default="nats")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the story on stderr")
    parser.add_argument("--keep", type=Path, help="leave everything in this new directory")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    with ExitStack() as stack:
        if options.keep is None:
            # The path of a Unix socket has at most 107 bytes.
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walk-", dir="/tmp")))
        else:
            directory = options.keep.resolve()
            directory.mkdir(parents=True)
        result = walk(directory, options.broker, say)
    if options.json:
        print(json.dumps(result, indent=2))
    return 0 if result["passed"] else 1


def walk(directory: Path, broker_name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Walk through all steps until one fails; return what they told."""
    kind = Mosquitto if broker_name == "mosquitto" else Nats
    result: dict[str, Any] = {"broker": broker_name, "passed": False, "steps": []}
    begin = time.monotonic()
    try:
        with (
            kind(directory / "broker", tenant=TENANT) as broker,
            FileServer(directory / "repo") as server,
        ):
            story = Walk(directory, broker, server, say)
            try:
                result["passed"] = all(told(story, number, result, say) for number in range(len(STEPS)))
            finally:
                story.close()
    except EdgecError as e:
        say(f"FAILED: {e}")
        result["error"] = str(e)
    result["seconds"] = round(time.monotonic() - begin, 1)
    end = "all went well" if result["passed"] else "it went wrong"
    say(f"\n{end}: {result['seconds']} s with {broker_name}")
    return result


def told(story: Walk, number: int, result: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Take one step, and tell of it; return whether it went as it should."""
    title, step = STEPS[number]
    say(f"\n{number + 1}. {title}")
    begin = time.monotonic()
    passed, text = True, ""
    try:
        text = step(story)
    except (StepError, EdgecError, OSError, RuntimeError) as e:
        passed, text = False, str(e) or type(e).__name__
    seconds = round(time.monotonic() - begin, 1)
    say(f"   {'ok' if passed else 'FAILED'}: {text} ({seconds} s)")
    result["steps"].append({"step": title, "passed": passed, "told": text, "seconds": seconds})
    return passed


if __name__ == "__main__":
    sys.exit(main())
