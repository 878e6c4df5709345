"""On which terms devices take an artifact up: options of the commands that assign."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgec.trust import Terms

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = ("shadow_s", "probation_s", "probation_calls", "prepare")


def terms_options(command: F) -> F:
    """Give a command the options of terms; `read_terms` reads them."""
    options = [
        click.option(
            "--shadow",
            "shadow_s",
            type=click.IntRange(min=0),
            metavar="SECONDS",
            help="Beside the running model before the switch; else as the device has it set.",
        ),
        click.option(
            "--probation",
            "probation_s",
            type=click.IntRange(min=0),
            metavar="SECONDS",
            help="How long it must hold after the switch; else as the device has it set.",
        ),
        click.option(
            "--probation-calls",
            type=click.IntRange(min=0),
            metavar="N",
            help="Calls that prove it earlier; 0: only time does.",
        ),
        click.option(
            "--prepare", is_flag=True, help="Fetch and verify it only; without this, it is installed."
        ),
        click.option("--retry", is_flag=True, help="Try it also where a device has found it bad before."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_terms(values: dict[str, Any]) -> Terms:
    """Return what the options of `terms_options` say, but for ``retry``; takes them out of `values`.

    Raises:
        TrustError: A length is out of bounds.
    """
    from edgec.trust import Terms

    return Terms(**{name: values.pop(name) for name in _NAMES})
