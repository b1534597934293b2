"""A wake word in a recording, and when it was said: only the device string differs.

The networks and the front end that makes features of sound are those of pymicro-wakeword (pip install pymicro-wakeword;
okay_nabu, hey_jarvis, hey_mycroft, alexa). They look at 30 ms of sound at a time and remember the rest themselves: a
session keeps that from frame to frame. `okay_nabu.wav` beside this file was spoken by eSpeak NG, not by a person.

python examples/wake_word.py examples/okay_nabu.wav
python examples/wake_word.py examples/okay_nabu.wav --device model
python examples/wake_word.py examples/okay_nabu.wav --device sim
python examples/wake_word.py examples/okay_nabu.wav --device serial:/dev/ttyUSB0
python examples/wake_word.py hey.wav --word hey_jarvis
"""

from __future__ import annotations

import argparse
import json
import wave
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.errors import NnloomError
from nnloom.compiler import compile
from nnloom.runtime import InferenceSession

RATE = 16_000
CHUNK = RATE // 100
"""Samples that the front end takes at a time"""


def models() -> Path:
    """The folder of the package's networks: NAME.tflite, and NAME.json with the threshold."""
    package = find_spec("pymicro_wakeword")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pymicro-wakeword is not installed; pip install pymicro-wakeword")
    return Path(package.submodule_search_locations[0]) / "models"


def read_wave(path: str) -> bytes:
    """The samples of a file: mono, 16 bits, 16 kHz."""
    try:
        with wave.open(path, "rb") as file:
            kind = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            samples = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SystemExit(f"{path}: {error}; give a .wav file") from error
    if kind != (1, 16, RATE):
        raise SystemExit(f"{path}: {kind[0]} channels of {kind[1]} bits at {kind[2]} Hz; convert it to 1, 16, {RATE}")
    return samples


def frames(samples: bytes, session: InferenceSession) -> Iterator[tuple[float, NDArray[np.int8]]]:
    """(seconds heard so far, what the network takes): features of 10 ms each, as many as it takes at once."""
    from pymicro_features import MicroFrontend

    (info,) = session.get_inputs()
    frontend, features, position = MicroFrontend(), [], 0
    while position + 2 * CHUNK <= len(samples):
        found = frontend.process_samples(samples[position : position + 2 * CHUNK])
        position += 2 * found.samples_read
        if found.features:
            features.append(found.features)
        if len(features) == info.shape[1]:
            scaled = np.round(np.array(features) / info.scale + info.zero_point)
            yield position / 2 / RATE, np.clip(scaled, -128, 127).astype(np.int8).reshape(info.shape)
            features = []


def probabilities(samples: bytes, session: InferenceSession) -> Iterator[tuple[float, float]]:
    """(seconds heard so far, probability that the word has just been said)."""
    (info,) = session.get_outputs()
    session.reset_state()
    for seconds, frame in frames(samples, session):
        (output,) = session.run(frame).values()
        yield seconds, (int(output.item()) - info.zero_point) * info.scale


def moments(samples: bytes, session: InferenceSession, cutoff: float, window: int) -> Iterator[tuple[float, float]]:
    """(seconds, mean probability) at which the word was said: where the mean of `window` frames passes `cutoff`."""
    latest: deque[float] = deque(maxlen=window)
    for seconds, probability in probabilities(samples, session):
        before = len(latest) == window and sum(latest) / window > cutoff
        latest.append(probability)
        mean = sum(latest) / window
        if not before and len(latest) == window and mean > cutoff:
            yield seconds, mean


def main() -> int:
    """Print the moments; the exit code is 1 if the word is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wav", help="recording: mono, 16 bits, 16 kHz")
    parser.add_argument("--word", default="okay_nabu", help="a network of pymicro-wakeword (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="(default: a board if there is one, else the CPU)")
    parser.add_argument("--artifacts", default="build/wake_words", help="where to compile to (default: %(default)s)")
    arguments = parser.parse_args()
    network, samples = models() / f"{arguments.word}.tflite", read_wave(arguments.wav)
    if not network.is_file():
        known = ", ".join(sorted(path.stem for path in models().glob("*.tflite")))
        raise SystemExit(f"no network for {arguments.word!r} (there are {known})")
    settings = json.loads(network.with_suffix(".json").read_text())
    artifact = Path(arguments.artifacts, arguments.word)
    heard = 0
    try:
        if not artifact.exists():
            compile(network, output=artifact)
        with InferenceSession(artifact, arguments.device, fallback=False) as session:
            micro = settings["micro"]
            for seconds, mean in moments(samples, session, micro["probability_cutoff"], micro["sliding_window_size"]):
                print(f"{seconds:.2f} s: {settings['wake_word']} (probability {mean:.3f}, on {session.device})")
                heard += 1
    except NnloomError as error:
        raise SystemExit(f"error: {error}") from error
    if not heard:
        print(f"{settings['wake_word']} was not said")
    return 0 if heard else 1


if __name__ == "__main__":
    raise SystemExit(main())
