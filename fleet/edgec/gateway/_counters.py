"""What the gateway counts itself, beside what each model has counted, for Prometheus."""

from __future__ import annotations

_HELP = {
    "edgec_gateway_unauthorized_total": ("counter", "Requests of nobody who may ask."),
    "edgec_gateway_limited_total": ("counter", "Inferences refused because a device asked too often."),
    "edgec_gateway_upstream_requests_total": ("counter", "Requests passed to the upstream."),
    "edgec_gateway_upstream_failures_total": (
        "counter",
        "Of them, those that it did not answer, or with 5xx.",
    ),
    "edgec_gateway_upstream_abandoned_total": ("counter", "Of them, those whose client went away."),
    "edgec_gateway_upstream_late_total": ("counter", "Of them, those that were given up at their deadline."),
    "edgec_gateway_upstream_refused_total": ("counter", "Requests not passed on: too many, or it fails."),
    "edgec_gateway_upstream_seconds_total": ("counter", "Time that requests to the upstream took."),
    "edgec_gateway_upstream_in_flight": ("gauge", "Requests that the upstream works on."),
    "edgec_gateway_upstream_up": ("gauge", "Whether the upstream said lately that it is ready."),
    "edgec_gateway_fleet_up": ("gauge", "Whether the fleet said lately what its devices run."),
    "edgec_gateway_fleet_failures_total": ("counter", "Times that it did not, or gave no file."),
    "edgec_gateway_fleet_follow_failures_total": (
        "counter",
        "Times that this machine failed to follow it, such as by a full disk.",
    ),
    "edgec_gateway_fleet_followed_timestamp_seconds": (
        "gauge",
        "When what devices run was last asked and served, in seconds since 1970; 0 for never.",
    ),
    "edgec_gateway_fleet_artifacts": ("gauge", "Artifacts that are served because devices run them."),
    "edgec_gateway_fleet_artifacts_left_out": ("gauge", "Those that devices run and that are not served."),
}


class Counters:
    """Numbers by name; only the event loop writes them."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(_HELP, 0.0)

    def add(self, name: str, value: float = 1.0) -> None:
        """Add to ``edgec_gateway_{name}``."""
        self._values[f"edgec_gateway_{name}"] += value

    def set(self, name: str, value: float) -> None:
        """Set ``edgec_gateway_{name}``."""
        self._values[f"edgec_gateway_{name}"] = value

    def exposition(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        lines = []
        for name, (kind, what) in _HELP.items():
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name} {self._values[name]:.15g}"]
        return ("\n".join(lines) + "\n").encode()
