"""Load for a fleet: many simulated devices that run until they are told to end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec.simulation._places import state_directory
from edgec.simulation._settings import SimulationError, SimulationSettings
from edgec.simulation._simulation import Counts

# Of one process: beyond this, its interpreter is what is measured.
_DEVICES_PER_PROCESS = 250
_SAY_S = 5.0
_LOOK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Which devices, and where to.

    Attributes:
        devices: How many.
        url: Of the fleet server; None for one of one's own, which ends with the devices.
        claim: That lets them in; of a server of one's own, it is made.
        authority: File with the certificate that vouches for the server; None for the system's.
        hardware: Class of hardware that they say they are.
        prefix: Of their ids.
        processes: How many they are spread over; None for one per 250 devices, at most one per core.
        state_dir: Of their state, to go on with the same devices later; None for one that ends with them.
        settings: Of all.
    """

    devices: int
    url: str | None = None
    claim: str | None = None
    authority: Path | None = None
    hardware: str = "cpu-x86_64"
    prefix: str = "sim"
    processes: int | None = None
    state_dir: Path | None = None
    settings: SimulationSettings = SimulationSettings()  # noqa: RUF009 - it is frozen

    def __post_init__(self) -> None:
        if self.devices < 1 or (self.processes is not None and self.processes < 1):
            raise SimulationError("expected at least one device, and at least one process")
        if self.url is not None and self.claim is None and self.state_dir is None:
            raise SimulationError(
                f"expected a claim for {self.devices} devices: make one on the server, with as many uses"
            )

    def names(self) -> list[str]:
        """Return the ids of the devices."""
        digits = max(3, len(str(self.devices)))
        return [f"{self.prefix}-{number:0{digits}}" for number in range(1, self.devices + 1)]

    def spread(self) -> int:
        """Return over how many processes they are spread."""
        if self.processes is not None:
            return self.processes
        return max(1, min(os.cpu_count() or 1, -(-self.devices // _DEVICES_PER_PROCESS)))


def run_load(
    options: LoadOptions,
    say: Callable[[str], None],
    wait: Callable[[float], bool],
    *,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Simulate devices.

    Args:
        options: Which, and where to.
        say: Told, line by line, how they are.
        wait: Waits for so many seconds, maybe none, and returns whether it is to end.
        seconds: To run for, once they were started; None for until `wait` says so.

    Returns:
        The last counts, how long devices took to enrol and to come online, and how long they ran.

    Raises:
        SimulationError: The server cannot be reached, or a process has died.
        FleetError: The server refuses something.
    """
    from edgec.simulation._enrolling import enrol_devices
    from edgec.simulation._swarm import Swarm

    begin = time.monotonic()
    failed: list[str] = []
    with (
        state_directory(options.devices, options.state_dir) as states,
        _server(options, say) as (url, claim, ca),
    ):

        def told(number: int) -> None:
            if number % 100 == 0:
                say(f"{number} of {options.devices} devices are enrolled")

        configs = enrol_devices(
            url,
            claim,
            options.names(),
            states,
            authority=ca,
            hardware=options.hardware,
            settings=options.settings,
            told=told,
            over=lambda: wait(0.0),
        )
        enrolled = time.monotonic()
        say(f"{len(configs)} devices are enrolled; their state is in {states}")
        swarm = Swarm(configs, options.settings, processes=options.spread(), failed=failed.append)
        online_s: float | None = None
        with swarm:
            started = said = time.monotonic()
            while True:
                counts, now = swarm.counts(), time.monotonic()
                if online_s is None and counts.online == options.devices:
                    online_s = now - started
                    say(f"all are online after {online_s:.1f} s")
                if now - said >= _SAY_S:
                    said = now
                    say(line(counts, now - started))
                if (seconds is not None and now - started >= seconds) or wait(_LOOK_S):
                    break
            counts = swarm.counts()
        for message in failed[:10]:
            say(f"failed: {message}")
        return {
            **asdict(counts),
            # A process that has just begun has told of none.
            "devices": len(configs),
            "failed": len(failed),
            "processes": options.spread(),
            "enrol_s": round(enrolled - begin, 2),
            "online_s": None if online_s is None else round(online_s, 2),
            "seconds": round(time.monotonic() - started, 1),
        }


def line(counts: Counts, seconds: float) -> str:
    """Return counts for people."""
    serving = ", ".join(f"{count} x {what}" for what, count in counts.serving.items()) or "nothing yet"
    return (
        f"{seconds:6.0f} s  {counts.online} of {counts.devices} online, {counts.orders} orders, "
        f"{counts.waiting} records wait, {counts.lost} lost, {counts.restarts} restarts, "
        f"{counts.crashes} crashes; they run {serving}"
    )


@contextmanager
def _server(options: LoadOptions, say: Callable[[str], None]) -> Iterator[tuple[str, str, Path | None]]:
    """Give URL, claim and authority of the server; start one where there is none."""
    if options.url is not None:
        yield options.url, options.claim or "", options.authority
        return
    from edgec.fleet.client import FleetClient
    from edgec.simulation._demo import check_extras
    from edgec.simulation._serve import OwnServer

    check_extras()
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="edgec-fleet-", ignore_cleanup_errors=True)
        )
        access = stack.enter_context(OwnServer(Path(folder)))
        authority = Path(access.authority)
        with FleetClient(access.url, access.token, ca=authority) as client:
            claim = client.create_claim(uses=options.devices, labels={"site": "simulation"}).claim
        say(f"dashboard:  {access.url}")
        say(f"token:      {access.token}   (role admin)")
        say(f"authority:  {access.authority}")
        yield access.url, claim, authority
