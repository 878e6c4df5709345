"""The fleet's side of a broker: keeps and acknowledges what devices say, tells them what they are to have."""

from edgec.fleet.mqtt._counters import Counters
from edgec.fleet.mqtt._settings import MqttSettings
from edgec.fleet.mqtt._side import MqttSide

__all__ = ["Counters", "MqttSettings", "MqttSide"]
