"""Simulate the vibration of a rolling-element bearing, healthy and defective.

Writes ``training.npz`` (healthy only), ``calibration.npz`` (healthy, part of the training set) and
``evaluation.npz`` (healthy and defective, with labels). README.md has the equations, the parameters
and their sources. The same seed gives the same arrays.

    python examples/vibration/generate.py build/vibration
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Defect = str | None

TRAINING_WINDOWS = 8000
CALIBRATION_WINDOWS = 128
EVALUATION_WINDOWS = 240  # of healthy bearings, and as many of defective ones


@dataclass(frozen=True, kw_only=True)
class Bearing:
    """Geometry of a deep-groove ball bearing; the defaults are a 6205.

    Attributes:
        balls: Number of rolling elements.
        ball_diameter_mm: Diameter of one.
        pitch_diameter_mm: Diameter of the circle of their centres.
        contact_angle_rad: Zero for a purely radial load.
    """

    balls: int = 9
    ball_diameter_mm: float = 7.94
    pitch_diameter_mm: float = 39.04
    contact_angle_rad: float = 0.0

    def outer_race_frequency_hz(self, shaft_hz: float) -> float:
        """How often the balls pass a point of the outer race (BPFO)."""
        return self.balls / 2 * shaft_hz * (1 - self._ratio())

    def inner_race_frequency_hz(self, shaft_hz: float) -> float:
        """How often the balls pass a point of the inner race (BPFI)."""
        return self.balls / 2 * shaft_hz * (1 + self._ratio())

    def _ratio(self) -> float:
        return self.ball_diameter_mm / self.pitch_diameter_mm * math.cos(self.contact_angle_rad)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A shaft with one gear, its bearing, and the accelerometer on the housing.

    Attributes:
        sample_rate_hz: Of the accelerometer's converter.
        window: Samples in one window.
        counts_per_g: 12 bits over +-8 g.
        shaft_hz: Nominal speed, 1797 rpm.
        speed_spread: Relative standard deviation of the speed from window to window.
        harmonics_g: Median amplitude of the shaft's harmonics: unbalance, misalignment, looseness.
        teeth: Of the gear; it meshes at ``teeth * speed``.
        mesh_g: Median amplitude of the mesh tone.
        mesh_modulation: Depth of its modulation by the shaft's rotation.
        amplitude_spread: Standard deviation of the logarithm of each amplitude above (load).
        resonance_hz: Of the housing, excited by impacts and by rolling noise.
        damping: Ratio of the resonance's damping to the critical one.
        rolling_noise_g: RMS of the noise that the resonance answers with.
        sensor_noise_g: RMS of the white noise of the sensor.
        noise_spread: Standard deviation of the logarithm of both.
        slip: Relative standard deviation of the time between two impacts.
        impact_g: Median peak of the answer to one impact of a defect.
        impact_spread: Standard deviation of its logarithm, from window to window (size of the defect).
    """

    bearing: Bearing = Bearing()
    sample_rate_hz: float = 12_000.0
    window: int = 512
    counts_per_g: float = 256.0
    shaft_hz: float = 29.95
    speed_spread: float = 0.01
    harmonics_g: tuple[float, ...] = (0.30, 0.15, 0.08)
    teeth: int = 23
    mesh_g: float = 0.20
    mesh_modulation: float = 0.4
    amplitude_spread: float = 0.35
    resonance_hz: float = 3_200.0
    damping: float = 0.05
    rolling_noise_g: float = 0.06
    sensor_noise_g: float = 0.06
    noise_spread: float = 0.03
    slip: float = 0.01
    impact_g: float = 0.5
    impact_spread: float = 0.35

    def acquire(self, rng: np.random.Generator, defect: Defect = None) -> NDArray[np.int16]:
        """One window of the accelerometer, as the converter gives it.

        Args:
            rng: Where speed, amplitudes, phases, slip and noise come from.
            defect: None, ``"outer"`` or ``"inner"``: the race with a pit.

        Returns:
            int16[window], in counts of ``1 / counts_per_g`` g.
        """
        speed = self.shaft_hz * (1 + self.speed_spread * rng.standard_normal())
        time = np.arange(self.window) / self.sample_rate_hz
        signal = self._shaft(rng, speed, time) + self._mesh(rng, speed, time) + self._noise(rng)
        if defect is not None:
            signal += self._impacts(rng, speed, time, inner=defect == "inner")
        counts = np.rint(signal * self.counts_per_g)
        return np.clip(counts, -2048, 2047).astype(np.int16)

    def _amplitude(self, rng: np.random.Generator, median: float, spread: float) -> float:
        return median * math.exp(spread * rng.standard_normal())

    def _shaft(self, rng: np.random.Generator, speed: float, time: Float64) -> Float64:
        signal = np.zeros_like(time)
        for order, median in enumerate(self.harmonics_g, start=1):
            amplitude = self._amplitude(rng, median, self.amplitude_spread)
            signal += amplitude * np.cos(2 * np.pi * order * speed * time + _phase(rng))
        return signal

    def _mesh(self, rng: np.random.Generator, speed: float, time: Float64) -> Float64:
        amplitude = self._amplitude(rng, self.mesh_g, self.amplitude_spread)
        modulation = 1 + self.mesh_modulation * np.cos(2 * np.pi * speed * time + _phase(rng))
        return amplitude * modulation * np.cos(2 * np.pi * self.teeth * speed * time + _phase(rng))

    def _noise(self, rng: np.random.Generator) -> Float64:
        answer = self._resonance(np.arange(self.window) / self.sample_rate_hz)
        rolling = np.convolve(rng.standard_normal(2 * self.window - 1), answer, mode="valid")
        rolling /= math.sqrt(float(np.sum(answer**2)))
        level = self._amplitude(rng, 1.0, self.noise_spread)
        white = rng.standard_normal(self.window)
        return level * (self.rolling_noise_g * rolling + self.sensor_noise_g * white)

    def _impacts(self, rng: np.random.Generator, speed: float, time: Float64, *, inner: bool) -> Float64:
        rate_of = self.bearing.inner_race_frequency_hz if inner else self.bearing.outer_race_frequency_hz
        period = 1 / rate_of(speed)
        peak = self._amplitude(rng, self.impact_g, self.impact_spread)
        # Impacts of before the window still ring in it.
        at, phase = -2 * period * rng.uniform(0.5, 1.0), _phase(rng)
        signal = np.zeros_like(time)
        while at < time[-1]:
            # A pit of the inner race turns with the shaft through the loaded zone and out of it.
            load = 0.5 * (1 + math.cos(2 * math.pi * speed * at + phase)) if inner else 1.0
            signal += peak * load * self._resonance(time - at)
            at += period * (1 + self.slip * rng.standard_normal())
        return signal

    def _resonance(self, since: Float64) -> Float64:
        """Answer of the housing to a unit impact `since` seconds ago."""
        after = np.maximum(since, 0.0)
        natural = 2 * np.pi * self.resonance_hz
        ringing = np.sin(natural * math.sqrt(1 - self.damping**2) * after)
        return np.where(since >= 0, np.exp(-self.damping * natural * after) * ringing, 0.0)


def _phase(rng: np.random.Generator) -> float:
    return float(rng.uniform(0, 2 * np.pi))


def healthy_windows(count: int, seed: int, machine: Machine | None = None) -> NDArray[np.int16]:
    """int16[count, 1, window] of a healthy bearing."""
    return _windows(count, seed, machine or Machine(), lambda i: None)


def defective_windows(count: int, seed: int, machine: Machine | None = None) -> NDArray[np.int16]:
    """int16[count, 1, window] of a bearing with a pit, in turn on the outer and on the inner race."""
    return _windows(count, seed, machine or Machine(), lambda i: ("outer", "inner")[i % 2])


def _windows(count: int, seed: int, machine: Machine, defect: Callable[[int], Defect]) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return np.stack([machine.acquire(rng, defect(i))[None] for i in range(count)])


def calibration_set() -> dict[str, Any]:
    """Arrays of ``calibration.npz``: the first windows of the training set."""
    return {"signal": healthy_windows(CALIBRATION_WINDOWS, seed=0)}


def evaluation_set() -> dict[str, Any]:
    """Arrays of ``evaluation.npz``; label 1 stands for a defect."""
    signal = np.concatenate(
        [healthy_windows(EVALUATION_WINDOWS, seed=1), defective_windows(EVALUATION_WINDOWS, seed=2)]
    )
    labels = np.repeat(np.array([0, 1], dtype=np.int64), EVALUATION_WINDOWS)
    return {"signal": signal, "labels": labels}


def main() -> None:
    """Write the three sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="where the .npz files go; made if missing")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / "training.npz", signal=healthy_windows(TRAINING_WINDOWS, seed=0))
    np.savez_compressed(directory / "calibration.npz", **calibration_set())
    np.savez_compressed(directory / "evaluation.npz", **evaluation_set())


if __name__ == "__main__":
    main()
