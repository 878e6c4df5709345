"""The link of an agent to its broker, out of its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.device_agent._config import AgentConfig
from edgec.errors import LinkError
from edgec.protocol import LinkOptions, MqttLink, Subscription, Topics, tls_context

if TYPE_CHECKING:
    from edgec.device_agent._seams import Link
    from edgec.protocol import Announcement


def mqtt_link(options: LinkOptions, announce: Callable[[int], Announcement]) -> Link:
    """Return a link over MQTT."""
    return MqttLink(options, announce=announce)


def link_options(config: AgentConfig) -> LinkOptions:
    """Return how an agent reaches its broker, and what it hears there.

    Raises:
        LinkError: A certificate, key or password cannot be read; or there is no broker.
    """
    broker = config.broker
    if broker is None:
        raise LinkError("the settings name no broker")
    filters = Topics(config.tenant).for_device(config.device, config.groups)
    return LinkOptions(
        host=broker.host,
        port=broker.port,
        client_id=config.device,
        tls=tls_context(broker.authority, broker.certificate, broker.key) if broker.tls else None,
        username=broker.username,
        password=None if broker.password_file is None else _secret(broker.password_file),
        subscriptions=tuple(Subscription(filter=f) for f in filters),
        version=broker.version,
        keepalive_s=broker.keepalive_s,
    )


def _secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as e:
        raise LinkError(f"the password in {path} cannot be read: {e}") from e
    if not secret:
        raise LinkError(f"{path} is empty: its first line is the password")
    return secret
