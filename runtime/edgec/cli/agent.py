"""``edgec agent``: keep this device's models as the fleet wants them, and say how that goes."""

from __future__ import annotations

import grp
import json
import logging
import os
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli._agent_enrol import command as enrol
from edgec.cli._agent_settings import (
    config_option,
    hardware_option,
    joining_options,
    next_line,
    read_settings,
    set_option,
)
from edgec.cli._agent_unit import Notifier, unit_text
from edgec.cli._lazy import SentencesGroup
from edgec.cli._signals import Signals
from edgec.cli._text import columns, moment, printable
from edgec.errors import AgentError

if TYPE_CHECKING:
    from edgec.device_agent import AgentConfig, AgentStatus, ModelStatus, SocketApplications

_LOOK_S = 5.0
_LEVELS = ("debug", "info", "warning", "error")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group(cls=SentencesGroup)
def command() -> None:
    """The device agent: updates that survive power cuts, and telemetry that is not lost.

    status, enrol and provision take --json. enrol joins a fleet that has a server; provision writes what you
    give, for a device that follows a broker or a repository alone.

    \b
    edgec agent enrol https://fleet.example:8443 --claim CLAIM --fingerprint SHA256 --hardware rpi5
    edgec agent provision camera-7 --broker mqtts://broker.example --ca ca.crt --roots repo --hardware rpi5
    edgec agent run
    edgec agent status
    """


command.add_command(enrol, "enrol")


@command.command()
@config_option
@set_option
@click.option("--log-level", type=click.Choice(_LEVELS), default="info", show_default=True)
def run(config_file: Path, assignments: tuple[str, ...], log_level: str) -> None:
    """Run the agent in the foreground until SIGTERM or SIGINT.

    For containers as it is, and for systemd (edgec agent install), which it tells when it is ready and that
    it lives. Settings: --set over the environment (EDGEC_AGENT_BROKER__HOST) over the file over defaults.
    """
    from edgec.device_agent import Agent, RemoteOperations

    config = read_settings(config_file, assignments)
    # The journal has its own times.
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(level=log_level.upper(), format=f"{stamp}%(levelname)s %(name)s: %(message)s")
    notifier = Notifier()
    operations = RemoteOperations()
    logging.getLogger().addHandler(operations.memory)
    agent = Agent(
        config,
        heartbeat=notifier.heartbeat,
        applications=[_applications(config)],
        operations=[operations],
    )
    with Signals() as signals:
        agent.start()
        notifier.tell("READY=1")
        click.echo(f"edgec agent of {config.device} runs on {config.state_dir}", err=True)
        try:
            while agent.alive and not signals.wait(_LOOK_S):
                pass
        finally:
            died = not agent.alive
            notifier.tell("STOPPING=1")
            agent.stop()
    if died:
        # Its thread has told why.
        sys.exit(70)


def _applications(config: AgentConfig) -> SocketApplications:
    """Return who serves programs on this device, as the settings say.

    Raises:
        AgentError: A group or user is not known here.
    """
    from edgec.device_agent import SocketApplications

    settings = config.applications
    try:
        group = grp.getgrnam(settings.group).gr_gid if settings.group else None
        users = [pwd.getpwnam(name).pw_uid for name in settings.users] or None
    except KeyError as e:
        raise AgentError(f"applications: {e.args[0]}; make it, or name another") from e
    # Where only some users may connect, who it is decides, not the mode.
    mode = 0o660 if group is not None else 0o666 if users else 0o600
    return SocketApplications(config.socket, config.models_dir, users=users, mode=mode, group=group)


@command.command()
@config_option
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the agent, instead of what the settings say.",
)
@json_option
def status(config_file: Path, state_dir: Path | None, as_json: bool) -> None:
    """Say what runs, since when, and why not the newest; whether the agent runs or not.

    Exit status 1: a model is not what is wanted, or something should be looked at.
    """
    from edgec.device_agent import read_status

    directory = read_settings(config_file, ()).state_dir if state_dir is None else state_dir
    found = read_status(directory)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(_told(found)))
    if found.alerts or any(
        model.result not in (None, "committed", "unchanged", "removed") for model in found.models
    ):
        sys.exit(1)


def _told(status: AgentStatus) -> list[str]:
    started = f", pid {status.pid}, since {moment(status.started)}" if status.running else ""
    lines = [
        f"device  {status.device or '(unknown)'}",
        f"agent   {'runs' if status.running else 'does not run'}{started}, start {status.boot}",
        f"broker  {status.link.replace('_', ' ')}{': ' + status.link_error if status.link_error else ''}",
        f"outbox  {status.waiting} records wait, {status.lost} were given up",
        *(f"alert   {reason}: {detail}" for reason, detail in status.alerts),
    ]
    if not status.models:
        return [*map(printable, lines), "", "no model is installed"]
    rows = [["model", "serves", "since", "update"], *(_row(model) for model in status.models)]
    return [*map(printable, lines), "", *columns(rows)]


def _row(model: ModelStatus) -> list[str]:
    serving = "nothing" if model.serving is None else model.target or model.serving[:12]
    proven = "" if model.proven or model.serving is None else " (on probation)"
    return [model.model, printable(serving) + proven, moment(model.since), printable(model.why)]


@command.command()
@config_option
@click.option("--user", default="edgec", show_default=True, help="System user that the agent runs as.")
@click.option("--group", help="System group; by default as the user.")
@click.option("--memory-max", default="50%", show_default=True, help="Of the agent and what it starts.")
@click.option(
    "--unit",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("/etc/systemd/system/edgec-agent.service"),
    show_default=True,
    help="Where the unit goes.",
)
@click.option("--dry-run", is_flag=True, help="Print the unit, and write nothing.")
def install(
    config_file: Path, user: str, group: str | None, memory_max: str, unit: Path, dry_run: bool
) -> None:
    """Write a unit by which systemd runs the agent: as a user without rights, on a read-only system.

    It can write to its own directory only, is restarted when it ends or hangs, and starts without a network.
    """
    from edgec.artifact import atomic_write

    state_dir = read_settings(config_file, ()).state_dir
    text = unit_text(
        config_file.absolute(), state_dir.absolute(), user=user, group=group or user, memory_max=memory_max
    )
    if dry_run:
        click.echo(text, nl=False)
        return
    with atomic_write(unit) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text.encode())
    click.echo(f"wrote   {unit}")
    if not _is_user(user):
        click.echo(f"next    useradd --system --home-dir {state_dir} --shell /usr/sbin/nologin {user}")
    click.echo(f"next    systemctl daemon-reload && systemctl enable --now {unit.name}")


def _is_user(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@command.command()
@click.argument("device")
@hardware_option
@click.option(
    "--roots",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The publisher's repository, or a copy of image/1.root.json and director/1.root.json.",
)
@click.option("--image-root", type=_FILE, help="Instead of --roots: first root of the image repository.")
@click.option("--director-root", type=_FILE, help="Instead of --roots: first root of the director.")
@click.option("--broker", "broker_url", metavar="URL", help="mqtts://broker.example; none for no broker.")
@click.option("--ca", type=_FILE, help="Who may vouch for the broker, PEM; else the system's.")
@click.option("--cert", "certificate", type=_FILE, help="The device's certificate, where it has one already.")
@click.option("--key", type=_FILE, help="The private key of --cert.")
@click.option("--username", help="For brokers that ask for one; with --password-file.")
@click.option("--password-file", type=_FILE, help="Its first line is the password, or a token.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="BASE",
    help="Where the repository is: https://..., or a directory; several times, the best first.",
)
@click.option("--group", "groups", multiple=True, help="Group of devices that it is in; several times.")
@click.option("--tenant", default="default", show_default=True, help="Whose topics it uses.")
@joining_options
@json_option
def provision(device: str, as_json: bool, **options: Any) -> None:
    """Give this device its identity: id, trusted roots, broker, and a key or a token of its own.

    With neither certificate nor password, a private key is made here, which never leaves the device, and a
    request for its certificate, to be signed by who vouches for devices.

    \b
    edgec agent provision camera-7 --hardware rpi5 --roots repo --broker mqtts://broker.example --ca ca.crt
    edgec agent provision kiosk-1 --hardware cpu-x86_64 --roots /media/usb/repo --source /media/usb/repo
    """
    from edgec.device_agent._enrolment import CERTIFICATE
    from edgec.device_agent._enrolment import provision as write

    if "://" in device:
        raise click.UsageError(f"to join the fleet at {device}, run  edgec agent enrol {device}")
    roots = _roots(options["roots"], options["image_root"], options["director_root"])
    files = {"image-root.json": _content(roots[0]), "director-root.json": _content(roots[1])}
    secrets: dict[str, bytes] = {}
    settings: dict[str, Any] = {
        "device": device,
        "tenant": options["tenant"],
        "groups": list(options["groups"]),
        "hardware": list(options["hardware"]),
        "state_dir": str(options["state_dir"].absolute()),
        "image_root": "image-root.json",
        "director_root": "director-root.json",
        "sources": [s if "://" in s else str(Path(s).absolute()) for s in options["sources"]],
    }
    make_key = False
    if options["broker_url"] is not None:
        settings["broker"], make_key = _broker(device, options, files, secrets)
    elif not settings["sources"]:
        raise click.UsageError("give a --broker, a --source, or both: where shall it hear of updates?")
    made = write(
        options["directory"],
        settings,
        files,
        secrets=secrets,
        make_key=make_key,
        group=options["secrets_group"],
        replace=options["force"],
    )
    facts = {
        "device": device,
        "config": str(made.path),
        "request": None if made.request is None else str(made.request),
        "certificate": None if made.request is None else str(made.path.parent / CERTIFICATE),
    }
    lines = [f"device    {device}", f"settings  {made.path}"]
    if made.request is not None:
        lines.append(f"request   {made.request}: have it signed, and put {CERTIFICATE} beside it")
    lines.append(next_line(made.path))
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


def _roots(folder: Path | None, image: Path | None, director: Path | None) -> tuple[Path, Path]:
    if folder is not None:
        image = image or folder / "image/1.root.json"
        director = director or folder / "director/1.root.json"
    if image is None or director is None:
        raise click.UsageError("give --roots, or both of --image-root and --director-root")
    return image, director


def _broker(
    device: str, options: dict[str, Any], files: dict[str, bytes], secrets: dict[str, bytes]
) -> tuple[dict[str, Any], bool]:
    """Return the settings of the broker, and whether a key is to be made; what belongs to it is noted."""
    from edgec.device_agent._enrolment import CERTIFICATE, KEY
    from edgec.protocol import broker_address

    host, port, tls = broker_address(options["broker_url"])
    settings: dict[str, Any] = {"host": host, "port": port, "tls": tls}
    if options["ca"] is not None:
        files["broker-ca.crt"] = _content(options["ca"])
        settings["authority"] = "broker-ca.crt"
    if (options["certificate"] is None) != (options["key"] is None):
        raise click.UsageError("--cert and --key go together")
    if options["password_file"] is not None:
        secrets["broker-password"] = _content(options["password_file"])
        settings |= {"username": options["username"] or device, "password_file": "broker-password"}
    if options["certificate"] is not None:
        files[CERTIFICATE], secrets[KEY] = _content(options["certificate"]), _content(options["key"])
    make_key = tls and options["certificate"] is None and options["password_file"] is None
    if make_key or options["certificate"] is not None:
        settings |= {"certificate": CERTIFICATE, "key": KEY}
    return settings, make_key


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()[: 1 << 20]
    except OSError as e:
        raise AgentError(f"{path} cannot be read: {e.strerror}") from e
