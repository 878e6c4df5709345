"""What runs on a device, since when, and why not the newest: whether its agent runs or not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgec.device_agent._durable import read_json
from edgec.device_agent._plain import from_plain
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import State
from edgec.device_agent._store import MIRROR
from edgec.errors import AgentError

STATUS = "status.json"
_RESTING = ("idle", "cleaned")
_WORDS: Mapping[str, str] = {
    "notified": "it is about to be looked at",
    "deferred": "it waits",
    "admitted": "space is made for it",
    "downloading": "it is downloading",
    "verified": "it is put into its slot",
    "staged": "it is checked once more",
    "self_test": "it is tried in a process of its own",
    "shadow": "it runs beside what serves",
    "switched": "it is being switched to",
    "probation": "it serves on probation",
    "committed": "it is being cleaned up after",
    "rolling_back": "it is being rolled back",
    "failed": "it is being cleaned up after",
    "removing": "the model is being removed",
}


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model.

    Attributes:
        model: Its name.
        serving: Digest of the artifact that serves; None for none.
        target: Its name in the repository; empty where that is not known.
        since: When it began to serve, in seconds since 1970; None where nothing does.
        proven: Whether its probation is over.
        phase: Of the update: ``idle``, ``downloading`` ...
        wanted: Name in the repository of what is being installed, or is next; empty for nothing.
        epoch: Of the newest assignment that was taken note of.
        result: How the last update ended: ``committed``, ``rolled_back`` ...; None before the first.
        reason: For programs, why it is where it is.
        detail: The same for people.
        why: Why the newest does not serve, in a sentence; or that it does.
        previous: Digest that can serve again without a download; None for none.
        quarantined: Digests that were found bad here, with the reason.
    """

    model: str
    serving: str | None
    target: str
    since: float | None
    proven: bool
    phase: str
    wanted: str
    epoch: int
    result: str | None
    reason: str
    detail: str
    why: str
    previous: str | None
    quarantined: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class AgentStatus:
    """A device and its agent.

    Attributes:
        device: Its id; empty where no agent has run here yet.
        running: Whether the agent runs now.
        pid: Of its process; None where it does not run.
        started: When it started, in seconds since 1970; None likewise.
        boot: Number of its last start.
        agent: Name and version of the software.
        link: ``connected``, ``not_connected``, ``no_broker`` or, where the agent does not run, ``unknown``.
        link_error: What ended the last connection; empty where nothing did.
        epoch: Of the newest assignment that was believed.
        alerts: What a person should know, as word and detail.
        waiting: Records that the fleet has not acknowledged.
        lost: Records that had to be given up.
        models: By name.
    """

    device: str = ""
    running: bool = False
    pid: int | None = None
    started: float | None = None
    boot: int = 0
    agent: str = ""
    link: str = "unknown"
    link_error: str = ""
    epoch: int = 0
    alerts: tuple[tuple[str, str], ...] = ()
    waiting: int = 0
    lost: int = 0
    models: tuple[ModelStatus, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a running agent writes of itself."""

    device: str
    process: str
    boot: int
    agent: str
    link: str
    pid: int | None = None
    started: float | None = None
    link_error: str = ""
    epoch: int = 0
    waiting: int = 0
    lost: int = 0
    alerts: tuple[_WrittenAlert, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class _WrittenAlert:
    reason: str
    detail: str


def write_status(directory: Path, status: AgentStatus) -> None:
    """Write what a running agent knows of itself; without a sync, for it is worth nothing after a reboot."""
    plain = {name: value for name, value in status.to_dict().items() if name not in ("models", "running")}
    plain["alerts"] = [{"reason": reason, "detail": detail} for reason, detail in status.alerts]
    plain["process"] = _process(status.pid) if status.pid is not None else ""
    aside = directory / f".edgec-{os.getpid()}-status.partial"
    try:
        aside.write_text(json.dumps(plain))
        os.replace(aside, directory / STATUS)
    except OSError:  # a full disk: what is there is old, and its reader is told how old by the models
        aside.unlink(missing_ok=True)


def read_status(directory: Path) -> AgentStatus:
    """Return the status of the agent of a directory, whether it runs or not; nothing is written.

    Raises:
        AgentError: There is no such directory, or it may not be read.
    """
    try:
        names = sorted(p.name for p in (directory / "models").iterdir() if (p / MIRROR).exists())
    except FileNotFoundError as e:
        if not directory.is_dir():
            raise AgentError(f"no agent has run on {directory} yet: see  edgec agent run") from e
        names = []
    except OSError as e:
        raise AgentError(f"{directory} cannot be read: {e.strerror}") from e
    models = []
    for name in names:
        try:
            state = State.from_plain(read_json(directory / "models" / name / MIRROR))
        except AgentError:
            state = Slots(directory / "models", name).found()
        models.append(model_status(directory / "models", state))
    plain = read_json(directory / STATUS)
    if not plain:
        return AgentStatus(models=tuple(models))
    try:
        written = from_plain(_Written, plain, STATUS)
    except AgentError:
        return AgentStatus(models=tuple(models))
    running = bool(written.process) and _process(written.pid or 0) == written.process
    return AgentStatus(
        device=written.device,
        running=running,
        pid=written.pid if running else None,
        started=written.started if running else None,
        boot=written.boot,
        agent=written.agent,
        link=written.link if running else "unknown",
        link_error=written.link_error if running else "",
        epoch=written.epoch,
        alerts=tuple((a.reason, a.detail) for a in written.alerts),
        waiting=written.waiting,
        lost=written.lost,
        models=tuple(models),
    )


def model_status(models: Path, state: State) -> ModelStatus:
    """Return the status of one model: what the link on the disk says, and what the state says of it."""
    slots = Slots(models, state.model)
    serving = slots.current()
    installed = None if serving is None else slots.installed(serving)
    wanted = state.candidate if state.phase not in _RESTING else None
    following = state.pending or wanted
    return ModelStatus(
        model=state.model,
        serving=None if installed is None else installed.digest,
        target="" if installed is None else installed.target,
        since=_changed(slots.link) if installed is not None else None,
        proven=installed is not None and state.phase not in ("switched", "probation", "rolling_back"),
        phase=state.phase,
        wanted="" if following is None else following.target,
        epoch=state.epoch,
        result=state.verdict,
        reason=state.reason,
        detail=state.detail,
        why=_why(state),
        previous=None if state.previous is None else state.previous.digest,
        quarantined={q.digest: q.reason for q in state.quarantine},
    )


def _why(state: State) -> str:
    because = ": ".join(part for part in (state.reason, state.detail) if part)
    if state.phase in _RESTING:
        if state.verdict in (None, "committed", "unchanged"):
            return "it is what is wanted" if state.active is not None else "nothing is wanted yet"
        if state.verdict == "removed":
            return "the model was removed, as is wanted"
        return f"the update of epoch {state.epoch} was {state.verdict.replace('_', ' ')} ({because})"
    target = "" if state.candidate is None else state.candidate.target
    text = f"{target}: {_WORDS[state.phase]}" if target else _WORDS[state.phase]
    return f"{text} ({because})" if because else text


def status_of(states: Sequence[State], models: Path) -> tuple[ModelStatus, ...]:
    """Return the status of models."""
    return tuple(model_status(models, state) for state in sorted(states, key=lambda s: s.model))


def _changed(link: Path) -> float | None:
    try:
        return link.lstat().st_mtime
    except OSError:
        return None


def _process(pid: int) -> str:
    """Return what tells a process from a later one of the same number; empty where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # After the name in brackets, which may hold anything, the 20th field is when it started.
    fields = text.rpartition(")")[2].split()
    return f"{pid}-{fields[19]}" if len(fields) > 19 and fields[0] != "Z" else ""
