"""A process that is the fleet's side of a broker, to be killed."""

from __future__ import annotations

import signal
import ssl
from pathlib import Path

from tests.fleet.shop import QUICK

from edgec.fleet.mqtt import MqttSide
from edgec.fleet.service import Fleet
from edgec.protocol import LinkOptions


def main(
    folder: str, database: str | None, host: str, port: int, authority: str, certificate: str, key: str
) -> None:
    """Connect, say so, and go on until killed."""
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    options = LinkOptions(
        host=host, port=port, client_id="fleet", tls=context, first_retry_s=0.1, last_retry_s=0.5
    )
    with Fleet(Path(folder), database=database) as fleet, MqttSide(fleet, options, settings=QUICK) as side:
        side.wait_connected(60)
        print('{"up": true}', flush=True)
        signal.pause()
