"""Windows of calls that nobody made, drawn from what an artifact declares of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from edgec.artifact import Artifact
from edgec.runtime._window import CONFIDENCE_EDGES, Window
from edgec.simulation._behaviour import Behaviour, behaviour_of
from edgec.sketch import Histogram, QuantileSketch, reference_bins

# Of the values of a call, so many are looked at.
_VALUES_PER_CALL = 4
# A sketch of more values than this says nothing more; the calls are counted all the same.
_MOST_DRAWN = 2000


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a simulated device needs to know of an artifact.

    Attributes:
        model: Its name.
        version: Of it.
        digest: Of the content: ``sha256:5e8f...``.
        engine: That would run it.
        behaviour: Of its calls.
        reference: Quantiles of its outputs.
        input_reference: Of the statistics of its inputs.
    """

    model: str
    version: str
    digest: str
    engine: str
    behaviour: Behaviour
    reference: Mapping[str, Mapping[str, float]]
    input_reference: Mapping[str, Mapping[str, Mapping[str, float]]]


def read_declared(path: Path) -> Declared:
    """Read what an artifact declares.

    Raises:
        ArtifactError: It is damaged.
        BehaviourError: What it declares cannot be used.
    """
    with Artifact.open(path) as artifact:
        manifest = artifact.manifest
        return Declared(
            model=manifest.model,
            version=manifest.model_version,
            digest=artifact.content_digest,
            engine=manifest.engine.name,
            behaviour=behaviour_of(artifact),
            reference=manifest.reference,
            input_reference=manifest.input_reference,
        )


class Chance:
    """What differs between devices, and all chance of one of them; the same for the same seed and name.

    Attributes:
        random: Of this device.
        load: Factor of how often its model is called.
        speed: Factor of its latency.
        taste: How its inputs are spread over classes, from about -2 to 2.
        sharp: Added to its confidence.
    """

    def __init__(self, seed: int, device: str) -> None:
        self.random = np.random.default_rng((seed, crc32(device.encode())))
        own = self.random.normal(size=4)
        self.load, self.speed = float(np.exp(0.3 * own[0])), float(np.exp(0.15 * own[1]))
        self.taste, self.sharp = float(own[2]), 0.02 * float(own[3])
        self._seed, self._device = seed, device

    def luck(self, digest: str) -> float:
        """Return whether the device is among those that a release is bad on, as a number from 0 to 1."""
        return crc32(f"{self._seed}:{self._device}:{digest}".encode()) / 2**32


def draw_window(
    declared: Declared, chance: Chance, *, since: float, seconds: float, calls_per_s: float
) -> Window:
    """Return what an observer would have seen of calls over some time.

    Args:
        declared: Of the artifact that serves.
        chance: Of the device.
        since: When the time began, in seconds since 1970.
        seconds: How long it is.
        calls_per_s: Of the median device.
    """
    does, random = declared.behaviour.of_device(chance.luck(declared.digest)), chance.random
    calls = int(random.poisson(calls_per_s * chance.load * seconds))
    errors = int(random.binomial(calls, does.errors))
    answered = calls - errors
    drawn = min(answered, _MOST_DRAWN)
    latency, confidence = QuantileSketch(), Histogram(CONFIDENCE_EDGES)
    times = random.normal(scale=does.spread, size=min(calls, _MOST_DRAWN))
    latency.add_many(does.latency_ms * chance.speed * np.exp(times))
    confidence.add_many(_scores(does, chance, drawn))
    weights = np.asarray(does.classes) * np.exp(0.2 * chance.taste * np.linspace(-1, 1, len(does.classes)))
    weights *= (1 - does.collapse) / weights.sum()
    weights[0] += does.collapse
    counts = random.multinomial(answered, weights)
    return Window(
        model=declared.model,
        model_version=declared.version,
        artifact=declared.digest,
        engine=declared.engine,
        engine_version="simulated",
        since=since,
        seconds=seconds,
        calls=calls,
        errors={"InferenceError": errors} if errors else {},
        latency_ms=latency,
        sampled=answered,
        non_finite=int(random.binomial(answered, does.non_finite)),
        confidence=confidence,
        classes={number: int(n) for number, n in enumerate(counts) if n},
        outputs=_drawn(declared.reference, does.output_shift, chance, _VALUES_PER_CALL * drawn),
        input_bins={
            name: _drawn(reference, does.input_shift, chance, drawn)
            for name, reference in declared.input_reference.items()
        },
    )


def _scores(does: Behaviour, chance: Chance, n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.clip(chance.random.normal(does.confidence + chance.sharp, 0.12, n), 0.0, 1.0)


def _drawn(
    reference: Mapping[str, Mapping[str, float]], shift: float, chance: Chance, values: int
) -> dict[str, Histogram]:
    """Return so many values between the quantiles of each name, a share of them beyond the last one."""
    found = {}
    for name, quantiles in reference.items():
        edges, shares = reference_bins(quantiles)
        if not edges:
            continue
        likely = np.asarray(shares) * (1 - shift)
        likely[-1] += shift
        histogram = Histogram(edges)
        histogram.counts += chance.random.multinomial(values, likely / likely.sum())
        found[name] = histogram
    return found
