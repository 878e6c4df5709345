"""Simulate what a microphone hears in a house: smoke alarms, other things that beep, noise.

Sound is made as it is asked for; README.md has the patterns and their sources. The same seed gives the same
arrays. Writes ``evaluation.wav``, three minutes of all of it, and when smoke alarms sounded in them.

    python examples/alarm/generate.py build/alarm
"""

from __future__ import annotations

import argparse
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 8000
WINDOW = 640  # samples: 80 ms
# Seconds from the start of an alarm until it can be told: three beeps, and no fourth where one would be.
HEARD_S = 3.5
RELEASE_S = 2.0  # no longer pause belongs to the pattern

# Durations of sound and silence in turn, in seconds.
SMOKE = (0.5, 0.5, 0.5, 0.5, 0.5, 1.5)  # temporal three, ISO 8201
OTHERS = (
    (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 5.0),  # carbon monoxide: temporal four
    (0.5, 0.5),  # a lorry in reverse
    (1.0, 1.0),
    (0.2, 1.0),
    (0.25, 0.25, 0.25, 0.25, 0.25, 1.5),  # a kitchen timer: three beeps, too short
    (1.0, 0.5, 1.0, 2.0),
    (0.5, 0.5, 0.5, 1.5),  # a microwave: two beeps
    (3.0, 2.0),
)


@dataclass(frozen=True)
class Clip:
    """Sound, and where in it there is a smoke alarm.

    Attributes:
        sound: float32[n] within -1 and 1.
        alarm: Whether a smoke alarm has been heard long enough to tell, by window; float32[n // 640].
        sure: Whether `alarm` is beyond doubt: not while a pattern begins or fades; bool[n // 640].
    """

    sound: NDArray[np.float32]
    alarm: NDArray[np.float32]
    sure: NDArray[np.bool_]


def beeps(rng: np.random.Generator, pattern: tuple[float, ...], samples: int) -> NDArray[np.float64]:
    """A piezo sounder that follows a pattern: a tone with one harmonic; float64[samples]."""
    pace = rng.uniform(0.93, 1.07)
    edges = np.cumsum(np.tile(pattern, 1 + int(samples / RATE_HZ / (pace * sum(pattern))))) * pace * RATE_HZ
    part = np.searchsorted(edges, np.arange(samples), side="right")
    gate = np.convolve(part % 2 == 0, np.full(40, 1 / 40), "same")  # 5 ms to rise and to fall
    phase = 2 * np.pi * rng.uniform(2800, 3500) / RATE_HZ * np.arange(samples)
    return np.asarray(gate * (np.sin(phase) + rng.uniform(0, 0.3) * np.sin(phase / 2 + 1)))


def background(rng: np.random.Generator, samples: int) -> NDArray[np.float64]:
    """Noise of a random colour, with bursts as of steps, voices and doors; its RMS is 1; float64[samples]."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum *= np.maximum(np.arange(len(spectrum)), 50.0) ** -rng.uniform(0, 1.2)
    noise = np.fft.irfft(spectrum, samples)
    knots = np.exp(rng.normal(0, 0.8, samples // 1600 + 2))
    noise *= np.interp(np.arange(samples), 1600 * np.arange(len(knots)), knots)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def clip(rng: np.random.Generator, seconds: float, smoke: bool | None = None) -> Clip:
    """Make one piece of sound; None for `smoke`: at random."""
    samples = int(seconds * RATE_HZ) // WINDOW * WINDOW
    level = 10 ** rng.uniform(-2.2, -0.5)
    sound = background(rng, samples) * level * 10 ** rng.uniform(-1.6, -0.3)
    windows = np.arange(1, samples // WINDOW + 1) * WINDOW / RATE_HZ  # where each ends, in seconds
    alarm, sure = np.zeros(len(windows), np.float32), np.ones(len(windows), np.bool_)
    kind = rng.random()
    if smoke or (smoke is None and kind < 0.5):
        start, end = rng.uniform(0.05, 0.4) * seconds, rng.uniform(0.75, 1.2) * seconds
        first, last = int(start * RATE_HZ), min(samples, int(end * RATE_HZ))
        sound[first:last] += level * beeps(rng, SMOKE, last - first)
        alarm[(windows >= start + HEARD_S) & (windows < end)] = 1
        sure[(windows >= start + 2.3) & (windows < start + HEARD_S + 0.4)] = False
        sure[(windows >= end) & (windows < end + RELEASE_S)] = False
    elif kind < 0.9:
        first = int(rng.uniform(0, 0.5) * samples)
        sound[first:] += level * beeps(rng, OTHERS[rng.integers(len(OTHERS))], samples - first)
    return Clip(np.clip(sound, -1, 1).astype(np.float32), alarm, sure)


def scenes(rng: np.random.Generator, seconds: float) -> Clip:
    """Make a longer piece of sound, in which one thing follows the other."""
    parts: list[Clip] = []
    windows = int(seconds * RATE_HZ) // WINDOW
    while sum(len(part.alarm) for part in parts) < windows:
        part = clip(rng, rng.uniform(6, 14))
        if parts and parts[-1].alarm[-1]:
            part.sure[: int(RELEASE_S * RATE_HZ / WINDOW) + 1] = False
        parts.append(part)
    sound = np.concatenate([part.sound for part in parts])[: windows * WINDOW]
    alarm = np.concatenate([part.alarm for part in parts])[:windows]
    return Clip(sound, alarm, np.concatenate([part.sure for part in parts])[:windows])


def pieces(count: int, seconds: float, seed: int) -> list[Clip]:
    """Make several such."""
    rng = np.random.default_rng(seed)
    return [scenes(rng, seconds) for _ in range(count)]


def write_wav(path: Path, sound: NDArray[np.float32]) -> None:
    """Write float32[n] as 16 bits, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())


def main() -> None:
    """Write ``evaluation.wav``, and print when smoke alarms sounded in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="folder to write to")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    piece = scenes(np.random.default_rng(7), 180.0)
    write_wav(folder / "evaluation.wav", piece.sound)
    edges = np.flatnonzero(np.diff(np.pad(piece.alarm, 1))) * WINDOW / RATE_HZ
    for begin, end in edges.reshape(-1, 2):
        print(f"smoke alarm from {begin:.1f} s to {end:.1f} s")


if __name__ == "__main__":
    main()
