"""The whole story on real models: compile, upload, roll out, watch, stop a bad release, undo it, fall back.

    python examples/whole_story/run.py [--devices 7] [--json]

A fleet server with its broker over TLS; simulated devices that call their models for real, on scans of
digits; one device that is nothing but real, an agent in a process of its own and an application that follows
it; and a gateway that serves what the fleet runs. Each step says what happened; the exit status is 1 if one
fails. Needs the extras compiler, fleet and gateway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgec.compiler import CompileOptions, compile_model
from edgec.device_agent import read_status
from edgec.errors import EdgecError
from edgec.fleet.client import FleetClient
from edgec.gateway import FollowOptions, Gateway, GatewayOptions
from edgec.runtime import Fallback, follow, load
from edgec.runtime.fallback import low_confidence, source_of
from edgec.serving import ServerOptions
from edgec.simulation import QUICK, Chapter, OwnServer, Simulation, Story, enrol_devices

DIGITS = Path(__file__).parents[1] / "digits"
MODEL, TARGET, KIOSK = "digits", "cpu-x86_64", "kiosk"
_KEY = "a-key-that-only-the-kiosk-has"
_UNSURE = 0.75
_PATIENCE_S = 300.0
# Half of the devices, then all; seconds are what hours are in the field.
_STAGES = ((50.0, 4.0), (100.0, 3.0))


class StepError(Exception):
    """A step did not go as it should."""


def check(condition: object, problem: str) -> None:
    """Fail the step where something does not hold."""
    if not condition:
        raise StepError(problem)


class WholeStory:
    """The story, step by step; what each returns is told of it.

    Args:
        folder: For all files; its path must be short, for it holds a socket.
        devices: How many are simulated.
        stack: Ends all that was begun.
        say: Told what goes on.
    """

    def __init__(self, folder: Path, devices: int, stack: ExitStack, say: Callable[[str], None]) -> None:
        self.folder, self.count, self.stack, self.say = folder, devices, stack, say
        with np.load(DIGITS / "evaluation.npz") as data:
            self.images: NDArray[np.uint8] = data["image"]
            self.labels: NDArray[np.int64] = data["labels"]

    # -- the steps

    def compile(self) -> str:
        """Compile the model twice: as it should be, and with a mistake that every proof passes."""
        sound = self._compile("1", "scale = 0.0625", evaluate=True)
        # Grey values end at 16, and somebody takes them for ones that end at 53: every scan is faint.
        self._compile("2", "scale = 0.01875", evaluate=False)
        with load(sound) as session:
            right = [self._digit(session.predict(self.images[i])) == self.labels[i] for i in range(200)]
        return f"version 1 reads {np.mean(right):.0%} of 200 scans; version 2 scales its input wrongly"

    def serve(self) -> str:
        """Start the fleet's server."""
        self.access = self.stack.enter_context(OwnServer(self.folder / "fleet"))
        self.ca = Path(self.access.authority)
        self.client = self.stack.enter_context(FleetClient(self.access.url, self.access.token, ca=self.ca))
        self.story = Story(self.client, lambda line: self.say(f"     {line}"))
        return f"API and dashboard at {self.access.url}, broker at {self.access.broker}"

    def enrol(self) -> str:
        """Bring simulated devices and a real one into the fleet."""
        claim = self.client.create_claim(uses=self.count + 1, labels={"site": "lab"}).claim
        names = [f"sim-{number:02}" for number in range(1, self.count + 1)]
        configs = enrol_devices(
            self.access.url, claim, names, self.folder / "sim",
            authority=self.ca, hardware=TARGET, settings=QUICK,
        )  # fmt: skip
        samples = {MODEL: list(self.images)}
        self.simulation = self.stack.enter_context(Simulation(configs, QUICK, samples=samples))
        self._edgec(
            *("agent", "enrol", self.access.url, "--claim", claim, "--ca", self.ca, "--hardware", TARGET),
            *("--device", KIOSK, "--directory", self.folder / "etc", "--state-dir", self.folder / "kiosk"),
        )
        settings = ("updates.probation_s=1", "updates.refresh_s=0")
        command = ["agent", "run", "--config", str(self.folder / "etc/agent.toml")]
        command += [word for setting in settings for word in ("--set", setting)]
        agent = subprocess.Popen(
            [sys.executable, "-m", "edgec.cli", *command],
            stdout=(self.folder / "agent.log").open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.stack.callback(_end, agent)
        self._wait(
            lambda: sum(device.online for device in self.client.devices()) == self.count + 1,
            "not all devices come online",
        )
        return f"{self.count} simulated devices and {KIOSK}, a real one, are online"

    def roll_out(self) -> str:
        """Roll version 1 out, and use it where it is real."""
        told = self._roll_out("1", "sound", "finished")
        self.session = self.stack.enter_context(
            follow(
                MODEL,
                directory=self.folder / "kiosk/models",
                socket=self.folder / "kiosk/agent.sock",
                name="reader",
                wait_s=_PATIENCE_S,
            )
        )
        digit = self._digit(self.session.predict(self.images[0]))
        check(digit == self.labels[0], f"the kiosk reads {digit}, and it is {self.labels[0]}")
        return f"{told} everywhere; the kiosk's application reads a {digit}"

    def watch(self) -> str:
        """Look at what the fleet says of its model."""

        def calls() -> int:
            return sum(part.calls for part in self.client.telemetry(MODEL))

        self._wait(lambda: calls() > 2000, "the fleet hears of no calls")
        (part,) = self.client.telemetry(MODEL)
        return f"{part.calls} calls of version {part.version} are known, {part.errors} of them failed"

    def fall_back(self) -> str:
        """Let the gateway answer for scans that the kiosk is not sure of."""
        options = GatewayOptions(
            server=ServerOptions(port=0),
            keys={KIOSK: _KEY.encode()},
            follow=FollowOptions(
                url=self.access.url, token=self.access.token, ca=self.ca,
                directory=self.folder / "gateway", every_s=1.0,
            ),
        )  # fmt: skip
        gateway = self.stack.enter_context(Gateway([], options))
        fallback = Fallback(
            gateway.url, [low_confidence(_UNSURE)], deadline_ms=10_000, api_key=_KEY, allow_plain_key=True
        )
        counted = {"local": 0, "remote": 0}
        with follow(
            MODEL,
            directory=self.folder / "kiosk/models",
            socket=None,
            loader=partial(load, fallback=fallback),
        ) as session:
            for image in self.images:
                counted[source_of(session.predict(image))] += 1
        check(counted["remote"], f"no scan of {len(self.images)} was answered by the gateway")
        return (
            f"{counted['remote']} of {len(self.images)} scans were below {_UNSURE}, and the gateway answered"
        )

    def poison(self) -> str:
        """Roll version 2 out: it is stopped, and undone."""
        told = self._roll_out("2", "poisoned", "undone")
        incident = next(iter(self.client.incidents()))
        return f"{told}; incident {incident.id}: {incident.reason}"

    def aftermath(self) -> str:
        """Check that all devices have version 1 again, and why none gets the newest."""
        self._wait(
            lambda: set(self.simulation.counts(records=False).serving) == {f"{MODEL} 1"},
            "not all simulated devices went back",
        )
        kiosk = next(m for m in read_status(self.folder / "kiosk").models if m.model == MODEL)
        digit = self._digit(self.session.predict(self.images[1]))
        check(digit == self.labels[1], f"the kiosk reads {digit}, and it is {self.labels[1]}")
        why = self.client.why(KIOSK, MODEL)
        return f"all run version 1 again ({kiosk.phase}); why not 2: {why.reason}"

    # -- pieces

    def _compile(self, version: str, scale: str, *, evaluate: bool) -> Path:
        pipeline = self.folder / f"pipeline-{version}.toml"
        text = (DIGITS / "pipeline.toml").read_text()
        pipeline.write_text(text.replace("scale = 0.0625", scale))
        data: dict[str, Any] = {"evaluation": DIGITS / "evaluation.npz", "metric": "top1"} if evaluate else {}
        compile_model(
            DIGITS / "digits.onnx",
            [TARGET],
            self.folder / version,
            pipeline=pipeline,
            calibration=DIGITS / "calibration.npz",
            options=CompileOptions(precision="fp32", fold="off", version=version, measure_s=0.2, workers=0),
            **data,
        )
        return self._artifact(version)

    def _artifact(self, version: str) -> Path:
        return self.folder / version / f"{MODEL}-{TARGET}.edgec"

    def _roll_out(self, version: str, what: str, state: str) -> str:
        self.story.upload(self._artifact(version), override=None)
        chapter = Chapter(
            name=f"{MODEL} {version}, {what}", model=MODEL, version=version, stages=_STAGES, least_devices=4
        )
        told = self.story.roll_out(chapter, _PATIENCE_S)
        found = [e for e in told["evidence"] if e["outcome"] == "fail"]
        check(told["state"] == state, f"{chapter.name} is {told['state']}, not {state}: {found}")
        return "; ".join([f"version {version} is {state}", *(str(e["detail"]) for e in found[:2])])

    def _digit(self, prediction: Any) -> int:
        return int(prediction["labels"][0])

    def _edgec(self, *arguments: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "edgec.cli", *map(str, arguments)], capture_output=True, text=True
        )
        check(done.returncode == 0, f"edgec {arguments[0]} {arguments[1]}: {done.stderr.strip()}")

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            check(time.monotonic() < deadline, problem)
            time.sleep(0.2)


STEPS: Sequence[tuple[str, Callable[[WholeStory], str]]] = (
    ("two versions are compiled", WholeStory.compile),
    ("a server", WholeStory.serve),
    ("devices enrol", WholeStory.enrol),
    ("version 1 is rolled out", WholeStory.roll_out),
    ("the fleet is watched", WholeStory.watch),
    ("a gateway answers for who is not sure", WholeStory.fall_back),
    ("version 2 is rolled out", WholeStory.poison),
    ("afterwards", WholeStory.aftermath),
)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tell(story: WholeStory, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Take all steps until one fails; return what they told."""
    told: list[dict[str, Any]] = []
    for number, (title, step) in enumerate(STEPS, 1):
        say(f"{number}. {title}")
        begin, passed = time.monotonic(), True
        try:
            text = step(story)
        except (StepError, EdgecError, OSError) as e:
            passed, text = False, str(e)
        seconds = round(time.monotonic() - begin, 1)
        say(f"   {'ok' if passed else 'FAILED'}: {text} ({seconds} s)")
        told.append({"step": title, "passed": passed, "told": text, "seconds": seconds})
        if not passed:
            break
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell the story; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, default=7, help="simulated ones, beside the real one")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and the story on stderr")
    options = parser.parse_args(arguments)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    begin = time.monotonic()
    # The path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="story-", dir="/tmp"))
    try:
        with ExitStack() as stack:
            told = tell(WholeStory(folder, options.devices, stack, say), say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    passed = len(told) == len(STEPS) and all(step["passed"] for step in told)
    say(f"{'all went well' if passed else 'it went wrong'}: {time.monotonic() - begin:.1f} s")
    if options.json:
        print(json.dumps({"passed": passed, "steps": told}, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
