"""From where on something is an alert."""

from __future__ import annotations

from dataclasses import dataclass

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class AlertSettings:
    """From where on something is an alert. Of pairs, the first raises it, and beyond the second it is kept.

    Attributes:
        offline_s: A device is not connected for so long.
        silent_s: A device that is said to be connected was not heard of for so long.
        many: Of more devices than these, one alert tells of all.
        error_rate: Share of calls that fail, of an artifact on a class of hardware, within two hours.
        least_calls: Of fewer calls nothing is said.
        drift_psi: Stability index against the calibration data, less its bias.
        drift_ks: Distance of the distributions; both must be exceeded.
        hold_s: A rollout holds for so long.
        expiry_days: Before certificates and signed metadata expire.
        certificate_days: The same of certificates of devices, which only their enrolment renews; of those
            made for less than three times as long, a third of their time raises it.
        disk_free: Share of the disk below the fleet's directory.
        quiet_s: An alert is cleared when its condition has been away for so long.
        every_s: Rules are looked at so often.
    """

    offline_s: float = 900.0
    silent_s: float = 26 * _HOUR_S
    many: int = 20
    error_rate: tuple[float, float] = (0.05, 0.02)
    least_calls: int = 200
    drift_psi: tuple[float, float] = (0.25, 0.15)
    drift_ks: tuple[float, float] = (0.1, 0.06)
    hold_s: float = 6 * _HOUR_S
    expiry_days: tuple[float, float] = (14.0, 15.0)
    certificate_days: tuple[float, float] = (30.0, 31.0)
    disk_free: tuple[float, float] = (0.1, 0.15)
    quiet_s: float = 300.0
    every_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse pairs that would raise and clear in turn.

        Raises:
            ValueError: A pair is in the wrong order, or a time is not above 0.
        """
        for name in ("error_rate", "drift_psi", "drift_ks"):
            raised, kept = getattr(self, name)
            if kept > raised:
                raise ValueError(
                    f"{name}: what keeps an alert, {kept}, must not be above what raises it, {raised}"
                )
        for name in ("expiry_days", "certificate_days", "disk_free"):
            raised, kept = getattr(self, name)
            if kept < raised:
                raise ValueError(
                    f"{name}: what keeps an alert, {kept}, must not be below what raises it, {raised}"
                )
        if min(self.offline_s, self.silent_s, self.hold_s, self.every_s) <= 0 or self.quiet_s < 0:
            raise ValueError("times must be above 0")
