"""A simulated fleet: devices with ways of their own, releases that are healthy, or poisoned in known ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgec.fleet.verdicts import DeviceEvidence, Evidence
from edgec.sketch import Histogram, QuantileSketch

CONFIDENCE_EDGES = np.linspace(0.1, 0.9, 9)
OUTPUT_EDGES = np.linspace(-2, 2, 20)
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Release:
    """How a release does, beside one that does as before.

    Attributes:
        errors: Share of calls that fail.
        non_finite: Share of calls with NaN.
        slower: Factor of the latency.
        confidence: Added to the mean of the highest score.
        output: Added to the mean of the output.
        collapse: Share of calls that are answered with the first class.
        crash: Probability that a device crashes within an hour.
        install: Probability that it cannot be installed.
        disagreement: Share of calls that are answered otherwise than before.
        share: Of devices that it is bad on; the others do as before.
    """

    errors: float = 0.0005
    non_finite: float = 0.0
    slower: float = 1.0
    confidence: float = 0.0
    output: float = 0.0
    collapse: float = 0.0
    crash: float = 0.001
    install: float = 0.002
    disagreement: float = 0.03
    share: float = 1.0


HEALTHY = Release()
POISONS: Mapping[str, Release] = {
    "nan": Release(non_finite=0.1),
    "errors": Release(errors=0.08),
    "slow": Release(slower=10.0),
    "out_of_memory": Release(crash=0.5),
    "garbage": Release(confidence=-0.3, output=1.0, disagreement=0.9),
    "one_class": Release(collapse=0.6, disagreement=0.5),
    "other_class_order": Release(disagreement=0.85),
    "does_not_install": Release(install=0.25),
}


@dataclass
class World:
    """Devices, each with its own latency, inputs, load and luck.

    Attributes:
        seed: Of all chance.
        calls_per_hour: Of the median device.
    """

    seed: int
    calls_per_hour: float = 200.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self._own: dict[str, NDArray[np.float64]] = {}

    def device(
        self, name: str, release: Release, hours: float, *, hardware: str = "cpu", digest: str = "old"
    ) -> DeviceEvidence:
        """Return what a device did with a release over some hours, in all since it began."""
        rng = self.rng
        own = self._own.setdefault(name, rng.normal(size=6))
        if rng.random() >= release.share:
            release = HEALTHY
        calls = int(rng.poisson(self.calls_per_hour * np.exp(0.5 * own[0]) * hours))
        looked = min(calls, 400)
        latency = QuantileSketch()
        times = 20 * np.exp(0.25 * own[1] + rng.normal(scale=0.3, size=min(calls, 600)))
        latency.add_many(times * release.slower)
        confidence = Histogram(CONFIDENCE_EDGES)
        confidence.add_many(np.clip(rng.normal(0.8 + 0.03 * own[2] + release.confidence, 0.12, looked), 0, 1))
        output = Histogram(OUTPUT_EDGES)
        output.add_many(rng.normal(0.1 * own[3] + release.output, 1.0, looked))
        weights = np.full(CLASSES, 1 / CLASSES) * np.exp(0.3 * own[4] * np.linspace(-1, 1, CLASSES))
        weights /= weights.sum()
        weights = (1 - release.collapse) * weights + release.collapse * np.eye(CLASSES)[0]
        counts = rng.multinomial(calls, weights)
        # Some devices err more than others.
        errors = rng.binomial(calls, min(release.errors * float(np.exp(own[5])), 1.0))
        return DeviceEvidence(
            device=name,
            hardware=hardware,
            digest=digest,
            seconds=hours * 3600,
            calls=calls,
            errors=int(errors),
            sampled=looked,
            non_finite=int(rng.binomial(looked, release.non_finite)),
            crashes=int(rng.poisson(release.crash * hours)),
            latency=latency,
            confidence=confidence,
            classes={i: int(n) for i, n in enumerate(counts) if n},
            outputs={"y": output},
            compared=looked // 4,
            disagreed=int(rng.binomial(looked // 4, release.disagreement)),
        )

    def evidence(
        self, release: Release, *, candidates: int, controls: int, hours: float = 1.0, before: bool = False
    ) -> Evidence:
        """Return what a gate would see of some devices with a release and others without."""
        failures = int(self.rng.binomial(candidates, release.install))
        names = [f"c{i}" for i in range(candidates - failures)]
        return Evidence(
            candidate=tuple(self.device(n, release, hours, digest="new") for n in names),
            control=tuple(self.device(f"o{i}", HEALTHY, hours) for i in range(controls)),
            before=tuple(self.device(n, HEALTHY, hours) for n in names) if before else (),
            attempts=candidates,
            failures=failures,
        )
