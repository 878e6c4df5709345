"""Settings of an agent: options over environment over file over default."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgec.cli._text import printable

if TYPE_CHECKING:
    from edgec.device_agent import AgentConfig

C = TypeVar("C", bound=Callable[..., Any])
DEFAULT_CONFIG = Path("/etc/edgec/agent.toml")
DEFAULT_STATE = Path("/var/lib/edgec")
_PREFIX = "EDGEC_AGENT_"
# Of the environment, what is no setting.
_OURS = ("CONFIG",)
_PATHS = (
    "state_dir", "image_root", "director_root", "broker.authority", "broker.certificate", "broker.key",
    "broker.password_file", "applications.socket",
)  # fmt: skip

config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="EDGEC_AGENT_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    help="File with the settings.",
)
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting in place of the file's: updates.probation_s=60, 'groups=[\"north\"]'.",
)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def known_hardware(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """Put a target in place of an alias; say on standard error what is one, and what edgec does not know."""
    from edgec.errors import UnknownTargetError
    from edgec.targets import resolve_target

    if name is None:
        return None
    try:
        resolution = resolve_target(name)
    except UnknownTargetError as e:
        note = f"{name!r} is no target of edgec's; artifacts reach such a device if they were built for it"
        click.echo(f"WARNING {printable(note)} (edgec targets)", err=True)
        for problem in e.unread:
            click.echo(f"WARNING targets of a package could not be read: {printable(problem)}", err=True)
        return name
    if resolution.note is not None:
        click.echo(printable(resolution.note), err=True)
    return resolution.target.name


def _known(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    found = [known_hardware(context, parameter, name) for name in names]
    return tuple(dict.fromkeys(name for name in found if name is not None))


hardware_option = click.option(
    "--hardware",
    multiple=True,
    required=True,
    metavar="TARGET",
    callback=_known,
    help="Target that this device can run (edgec targets); several times, the best first.",
)
_JOINING = (
    click.option(
        "--state-dir", type=_FOLDER, default=DEFAULT_STATE, show_default=True, help="Directory of the agent."
    ),
    click.option(
        "--directory",
        type=_FOLDER,
        default=DEFAULT_CONFIG.parent,
        show_default=True,
        help="Where settings and identity go.",
    ),
    click.option(
        "--secrets-group",
        metavar="GROUP",
        help="System group of the agent, which may read key, token and password.",
    ),
    click.option("--force", is_flag=True, help="Write over the settings that are there."),
)


def joining_options(command: C) -> C:
    """Add the options that say where a device that joins a fleet keeps what it gets, and who may read it."""
    for option in reversed(_JOINING):
        command = option(command)
    return command


def next_line(path: Path) -> str:
    """Return what to do once settings are written to `path`, for people."""
    option = "" if path.absolute() == DEFAULT_CONFIG else f" --config {shlex.quote(str(path))}"
    return f"next      edgec agent run{option}, or  edgec agent install{option}"


def read_settings(config_file: Path, assignments: Sequence[str]) -> AgentConfig:
    """Return the settings that count.

    Raises:
        AgentError: They are wrong; the message has every problem.
        click.BadParameter: An assignment is none.
    """
    from edgec.device_agent import make_config, read_config

    environment = {
        name.removeprefix(_PREFIX).lower().replace("__", "."): value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in _OURS
    }
    given = {**environment, **dict(_assigned(text) for text in assignments)}
    needed = config_file.exists() or not given
    values: dict[str, Any] = read_config(config_file) if needed else {}
    for name, text in given.items():
        values = _with(values, name.split("."), _value(name, text))
    return make_config(values, base=config_file.absolute().parent)


def _assigned(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"expected NAME=VALUE, got {text!r:.80}", param_hint="--set")
    return name.strip(), value.strip()


def _value(name: str, text: str) -> Any:
    """Return a value as TOML has it; what is none of its values is text."""
    if name in _PATHS:
        # Relative to where this command runs, and not to the file.
        return str(Path(text).absolute())
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _with(values: Mapping[str, Any], names: Sequence[str], value: Any) -> dict[str, Any]:
    """Return settings with one of them changed, in a table where its name has two parts."""
    if len(names) == 1:
        return {**values, names[0]: value}
    table = values.get(names[0], {})
    return {**values, names[0]: _with(table if isinstance(table, Mapping) else {}, names[1:], value)}
