"""What an agent is given from outside: time, a link, who uses its models, what it can be told to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgec.errors import AgentError, LinkError
from edgec.protocol import Inbound, LinkStatus, Outgoing, Publication

if TYPE_CHECKING:
    from pathlib import Path

    from edgec.device_agent._agent import Agent
    from edgec.device_agent._findings import Verdict
    from edgec.device_agent._health import HealthBudgets, HealthReport
    from edgec.protocol import Announcement, LinkOptions
    from edgec.runtime import Window
    from edgec.trust import SignedCommand


class OrderRefusedError(AgentError):
    """A command is not carried out.

    Attributes:
        reason: For programs, a word: ``rate``, ``args``, ``unknown_command`` ...
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The time of an agent.

    Attributes:
        monotonic: Seconds that only grow within one start; all that is decided goes by them.
        wall: Seconds since 1970 as far as the device knows; may be wrong, and may jump.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Applications(Protocol):
    """Some of those who use the models of this device: sessions in this process, programs over a socket.

    An agent may have several. All methods but `start` and `stop` are called from threads of updates, one at a
    time per model.
    """

    def start(self, agent: Agent) -> None:
        """Begin to serve; ``agent.serving(model)`` gives what is current. Called once, by ``Agent.start``."""
        ...

    def stop(self) -> None:
        """End; nothing is called afterwards."""
        ...

    def follow(self, model: str, artifact: Path | None) -> None:
        """Use another artifact from now on, or none; return when those who answer have followed.

        Called after the switch on disk, and again where it is repeated after a crash.

        Raises:
            EdgecError: An application cannot use it: the switch is undone, and the artifact quarantined.
        """
        ...

    def held(self, model: str) -> frozenset[str]:
        """Return the digests of the model's files that are open: they stay where they are."""
        ...

    def restart(self, model: str) -> None:
        """Load what serves anew, by order of an operator; calls go on meanwhile.

        Raises:
            EdgecError: It cannot be loaded; what ran before goes on.
        """
        ...

    def take(self, model: str) -> list[Window]:
        """Return what was observed of calls of the model since the last time; nothing where nobody looks."""
        ...

    def shadow(
        self, model: str, candidate: Path, seconds: float, wanted: Callable[[], bool]
    ) -> Verdict | None:
        """Run a candidate beside what serves, on live inputs, and judge it.

        Args:
            model: Its name.
            candidate: Path of the artifact.
            seconds: For at most so long.
            wanted: Whether to go on; asked at least once a second.

        Returns:
            None where nobody here runs the model.
        """
        ...


class Operations(Protocol):
    """Remote commands beside those that every agent has (``abort``, ``refresh``).

    The agent has verified signature, receiver, time and repetition, and written the command down; it replies,
    and keeps the audit.

    Attributes:
        names: Of the commands.
    """

    names: Collection[str]

    def carry_out(self, command: SignedCommand, agent: Agent) -> Mapping[str, Any]:
        """Do what a command says, in a thread of its own; return what JSON can hold, at most 64 KiB of it.

        Raises:
            OrderRefusedError: It is not done: ``rate``, ``args`` ...
            EdgecError, OSError: It has failed.
        """
        ...


class Link(Protocol):
    """A connection to a broker: what an agent needs of `MqttLink`."""

    def start(self) -> None:
        """Start to connect; return at once."""
        ...

    def publish(self, message: Outgoing) -> Publication:
        """Send a message, or raise LinkError where there is no connection."""
        ...

    def get(self, timeout_s: float | None = None) -> Inbound | None:
        """Return the next message that came in; None after `timeout_s` or `nudge`."""
        ...

    def nudge(self) -> None:
        """Let `get` return, now or the next time."""
        ...

    @property
    def status(self) -> LinkStatus:
        """How the link is doing."""
        ...

    def close(self, timeout_s: float = 5.0) -> None:
        """Say good-bye and end."""
        ...


class Trial(Protocol):
    """Tries a model before it may serve: what an agent needs of `check_health`."""

    def __call__(
        self,
        artifact: Path,
        /,
        *,
        previous: Path | None,
        budgets: HealthBudgets,
        timeout_s: float,
        cache_dir: Path | None,
    ) -> HealthReport:
        """Return what the trial found; see `check_health`."""
        ...


LinkFactory = Callable[["LinkOptions", Callable[[int], "Announcement"]], Link]


class NoLink:
    """The link of an agent without a broker."""

    def __init__(self) -> None:
        self._nudged = threading.Event()

    def start(self) -> None:
        """Do nothing."""

    def publish(self, message: Outgoing) -> Publication:
        """Refuse; there is no broker."""
        raise LinkError("this agent has no broker")

    def get(self, timeout_s: float | None = None) -> Inbound | None:
        """Wait; nothing comes."""
        self._nudged.wait(timeout_s)
        self._nudged.clear()
        return None

    def nudge(self) -> None:
        """Let `get` return."""
        self._nudged.set()

    @property
    def status(self) -> LinkStatus:
        """Never connected."""
        return LinkStatus(
            connected=False,
            capabilities=None,
            connections=0,
            last_heard_s=None,
            error=None,
            dropped=0,
            taken_over=0,
            revived=0,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Do nothing."""
