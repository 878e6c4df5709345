"""The unit by which systemd runs an agent, and how the agent tells systemd that it is well."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
import time
from pathlib import Path

_WATCHDOG_S = 90
_UNIT = """\
[Unit]
Description=edgec device agent
# The network is not waited for: what is installed is served without one.
After=local-fs.target time-set.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=always
RestartSec=5
WatchdogSec={watchdog_s}
TimeoutStopSec=60
User={user}
Group={group}
UMask=0022
{directories}
# The health check tries a model in a process of its own, which is ended first where memory is short.
MemoryMax={memory_max}
OOMPolicy=continue
OOMScoreAdjust=-100
Nice=5

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectClock=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
# Engines compile code while they run, and reach accelerators below /dev: neither is forbidden.

[Install]
WantedBy=multi-user.target
"""
_SAFE = re.compile(r"[A-Za-z0-9_./@%+=:,-]+")


def unit_text(config_file: Path, state_dir: Path, *, user: str, group: str, memory_max: str) -> str:
    """Return the unit.

    Args:
        config_file: With the settings.
        state_dir: Which the agent may write to, and to nothing else.
        user: It runs as.
        group: Likewise.
        memory_max: Of the agent and what it starts: ``1G``, ``50%``.
    """
    command = [sys.executable, "-m", "edgec.cli", "agent", "run", "--config", str(config_file)]
    directories = [f"ReadWritePaths={_quoted(str(state_dir))}", "RuntimeDirectory=edgec"]
    if state_dir.parent == Path("/var/lib"):
        # Made by systemd, and given to the user.
        directories = [f"StateDirectory={state_dir.name}", "StateDirectoryMode=0755", *directories]
    return _UNIT.format(
        command=" ".join(map(_quoted, command)),
        watchdog_s=_WATCHDOG_S,
        user=user,
        group=group,
        directories="\n".join([*directories, f"Environment=HOME={_quoted(str(state_dir))}"]),
        memory_max=memory_max,
    )


def _quoted(text: str) -> str:
    """Return a word as a unit file has it: ``%`` and ``$`` mean something there."""
    word = text.replace("%", "%%")
    return word if _SAFE.fullmatch(word) else shlex.quote(word.replace("$", "$$"))


class Notifier:
    """Tells systemd how the agent is, where that asks for it; does nothing elsewhere."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        watchdog = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._every_s = int(watchdog) / 4e6 if watchdog.isdigit() and mine else 0.0
        self._last = 0.0

    def tell(self, message: str) -> None:
        """Send a message: ``READY=1``."""
        if not self._address:
            return
        # A name that begins with @ is in no file system.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            try:
                link.sendto(message.encode(), address)
            except OSError:  # who listened has gone; the agent has better things to do
                return

    def heartbeat(self) -> None:
        """Say that the agent lives, four times as often as must be."""
        now = time.monotonic()
        if self._every_s and now - self._last >= self._every_s:
            self._last = now
            self.tell("WATCHDOG=1")
