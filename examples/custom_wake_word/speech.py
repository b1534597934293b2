"""Spoken words: what eSpeak NG says, WAV files, and the features that the network takes."""

from __future__ import annotations

import functools
import io
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANDS", "FRAMES", "RATE", "Voice", "features", "phonemes", "read_wav", "speak", "window"]

RATE = 16_000
"""Samples a second."""
BANDS = 32
FRAMES = 100
"""Frames of an inference: two seconds."""
HOP = RATE // 50
WIDTH = RATE // 40
"""Samples from a frame to the next, and of a frame."""
LEVEL, SPREAD = -7.0, 4.0
"""Of the logarithms of speech; features are about -2 to 2."""


@dataclass(frozen=True)
class Voice:
    """One of eSpeak NG's speakers, and how he or she says it."""

    name: str
    """for example en-us+f3"""
    speed: int = 160
    """words a minute"""
    pitch: int = 50
    """0 to 99"""


def speak(text: str, voice: Voice) -> NDArray[np.float32]:
    """What the voice says, samples from -1 to 1."""
    command = ["espeak-ng", "-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), "--stdout", text]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        raise SystemExit("eSpeak NG is not installed; apt-get install espeak-ng") from None
    return _samples(io.BytesIO(done.stdout))


def phonemes(text: str) -> list[str]:
    """How eSpeak NG says it in American English: names of sounds, without stress."""
    command = ["espeak-ng", "-q", "-x", "--sep=_", "-v", "en-us", text]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    sounds = (sound.strip("',%=|") for word in said.split() for sound in word.split("_"))
    return [sound for sound in sounds if sound and not sound.startswith("(")]


def read_wav(path: str | Path) -> NDArray[np.float32]:
    """A recording, 16 bits, one channel, of any rate."""
    return _samples(io.BytesIO(Path(path).read_bytes()))


def _samples(file: io.BytesIO) -> NDArray[np.float32]:
    with wave.open(file) as recording:
        rate, width, channels = recording.getframerate(), recording.getsampwidth(), recording.getnchannels()
        if (width, channels) != (2, 1):
            raise SystemExit(f"a recording has {channels} channels of {8 * width} bits; make it one of 16 bits")
        # A stream does not know its length beforehand.
        data = np.frombuffer(recording.readframes(1 << 26), "<i2")
    at = np.arange(0, len(data) - 1, rate / RATE)
    return (np.interp(at, np.arange(len(data)), data) / 32768).astype(np.float32)


@functools.cache
def _bank() -> NDArray[np.float64]:
    """Triangles on the mel scale [bands, frequencies] (O'Shaughnessy, 1987), 60 Hz to 7.6 kHz."""
    low, high = (1127 * np.log1p(f / 700) for f in (60, 7600))
    edges = 700 * np.expm1(np.linspace(low, high, BANDS + 2) / 1127)
    frequencies = np.fft.rfftfreq(512, 1 / RATE)
    up = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    down = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(np.minimum(up, down), 0)


def features(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Energies of bands [BANDS, frames], logarithmic."""
    count = max(1, 1 + (len(samples) - WIDTH) // HOP)
    padded = np.pad(samples, (0, max(0, WIDTH - len(samples))))
    frames = np.stack([padded[i * HOP : i * HOP + WIDTH] for i in range(count)]) * np.hanning(WIDTH)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    return ((np.log(power @ _bank().T + 1e-5) - LEVEL) / SPREAD).T.astype(np.float32)


def window(samples: NDArray[np.float32], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
    """Features [BANDS, FRAMES] of an utterance in the middle of two seconds; with `rng` anywhere, and with noise."""
    length = FRAMES * HOP + WIDTH - HOP
    room = length - len(samples)
    before = max(room, 0) // 2 if rng is None else int(rng.integers(max(room, 0) + 1))
    placed = np.pad(samples[:length], (before, max(room - before, 0)))
    if rng is not None:
        placed = placed * rng.uniform(0.5, 1.2) + rng.normal(0, 10 ** rng.uniform(-4, -2.3), length)
    return features(placed.astype(np.float32))[:, :FRAMES]
