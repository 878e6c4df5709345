"""Devices and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgec.fleet.client._part import NOTHING, Part, at, wanted_of
from edgec.fleet.views import (
    BehaviourView,
    CommandAnswer,
    CommandWanted,
    DeviceDetail,
    DeviceView,
    FleetView,
    GroupView,
    GroupWanted,
    LabelsWanted,
    Page,
    ReasonWanted,
    RecordView,
    SettleWanted,
    WhyView,
)


class Devices(Part):
    """Devices, what they say, and groups of them."""

    def fleet(self) -> FleetView:
        """Return the fleet at a glance."""
        return self.http.get(FleetView, "/api/v1/fleet")

    def devices(self, query: str = "") -> Iterator[DeviceView]:
        """Yield devices that a query names, by their ids."""
        return self.pages(DeviceView, "/api/v1/devices", {"query": query})

    def device(self, device: str) -> DeviceDetail:
        """Return one device."""
        return self.http.get(DeviceDetail, at("devices", device))

    def why(self, device: str, model: str) -> WhyView:
        """Return what keeps a device from the newest version of a model."""
        return self.http.get(list[WhyView], at("devices", device, "why"), {"model": model})[0]

    def why_all(self, device: str) -> list[WhyView]:
        """Return the same for each model that it has, is told to have or could have."""
        return self.http.get(list[WhyView], at("devices", device, "why"))

    def records(self, device: str, limit: int = 100) -> list[RecordView]:
        """Return the newest that a device said other than its figures, newest first."""
        path = at("devices", device, "records")
        return self.http.get(Page[RecordView], path, {"limit": limit}).items

    def device_telemetry(self, device: str, model: str, hours: float = 24.0) -> list[BehaviourView]:
        """Return what a device did with a model, by hour and artifact."""
        path = at("devices", device, "telemetry")
        return self.http.get(list[BehaviourView], path, {"model": model, "hours": hours})

    def telemetry(self, model: str, hours: float = 24.0, hardware: str | None = None) -> list[BehaviourView]:
        """Return what all devices did with a model, by artifact."""
        query = {"model": model, "hours": hours, "hardware": hardware}
        return self.http.get(list[BehaviourView], "/api/v1/telemetry", query)

    def label(self, device: str, labels: Mapping[str, str]) -> DeviceDetail:
        """Give a device labels in place of all it had."""
        wanted = wanted_of(LabelsWanted, labels=dict(labels))
        return self.http.change(DeviceDetail, "PUT", at("devices", device, "labels"), wanted)

    def revoke(self, device: str, reason: str = "") -> DeviceDetail:
        """Put a device out of the fleet."""
        wanted = wanted_of(ReasonWanted, reason=reason)
        return self.http.change(DeviceDetail, "POST", at("devices", device, "revoke"), wanted)

    def settle(self, device: str, boot_id: str) -> DeviceDetail:
        """Say which of the machines with one identity is the device."""
        wanted = wanted_of(SettleWanted, boot_id=boot_id)
        return self.http.change(DeviceDetail, "POST", at("devices", device, "settle"), wanted)

    def command(
        self, device: str, name: str, args: Mapping[str, Any] | None = None, *, timeout_s: float = 30.0
    ) -> CommandAnswer:
        """Send a device a signed command, at most once, and wait for what it answers."""
        wanted = wanted_of(CommandWanted, name=name, args=dict(args or {}), timeout_s=timeout_s)
        path = at("devices", device, "commands")
        return self.http.change(CommandAnswer, "POST", path, wanted, timeout_s=timeout_s + 15)

    def groups(self) -> list[GroupView]:
        """Return the queries that have names."""
        return self.http.get(list[GroupView], "/api/v1/groups")

    def set_group(self, name: str, query: str) -> GroupView:
        """Name a query."""
        wanted = wanted_of(GroupWanted, query=query)
        return self.http.change(GroupView, "PUT", at("groups", name), wanted)

    def drop_group(self, name: str) -> None:
        """Forget the name of a query."""
        self.http.change(NOTHING, "DELETE", at("groups", name))
