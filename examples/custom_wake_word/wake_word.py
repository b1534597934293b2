"""A wake word of one's own from three recordings: what the network hears in them is what is listened for.

    python examples/custom_wake_word/wake_word.py enroll build/sounds/artifact one.wav two.wav three.wav -o word.json
    python examples/custom_wake_word/wake_word.py listen build/sounds/artifact word.json recording.wav
    python examples/custom_wake_word/wake_word.py evaluate build/sounds/artifact

The network runs on the accelerator (`--device`), the rest here: of each recording the most likely sequences of sounds
are kept (beam search), and a window is scored by how likely the network finds those ("DONUT: CTC-based Query-by-Example
Keyword Spotting", Lugosch et al., 2018). `evaluate` speaks phrases that the network has never heard, in voices that it
has never heard.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from speech import FRAMES, HOP, Voice, features, read_wav, speak, window

from nnloom.runtime import InferenceSession

__all__ = ["WakeWord", "enroll", "evaluate", "log_likelihood", "main", "most_likely"]

BEAM = 24
KEPT = 6
"""Sequences of sounds of each recording."""
STEP = 10
"""Frames from a window of a recording to the next."""
PHRASES = (
    "hello marvin", "okay saturn", "hey lumen", "computer please", "abracadabra", "silver falcon", "cucumber",
    "wake up jarvis",
)  # fmt: skip
STRANGERS = ("en-us+f3", "en-gb+m4", "en-us+m6", "en-gb+f5", "en-us+linda", "en-us+john")
"""Voices that were not trained with."""


def log_softmax(scores: NDArray) -> NDArray[np.float64]:
    """Logarithms of probabilities [frames, sounds] of a network's scores [sounds, frames]."""
    x = scores.astype(np.float64).T
    x -= x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def log_likelihood(logs: NDArray[np.float64], sequence: tuple[int, ...]) -> float:
    """How likely a sequence of sounds is, given what was heard: the forward algorithm of CTC."""
    extended = [0, *(s for sound in sequence for s in (sound, 0))]
    may_skip = np.array([i >= 2 and s != 0 and s != extended[i - 2] for i, s in enumerate(extended)])
    alpha = np.full(len(extended), -np.inf)
    alpha[:2] = logs[0, extended[:2]]
    for frame in logs[1:]:
        before = np.concatenate([[-np.inf], alpha[:-1]])
        skipped = np.where(may_skip, np.concatenate([[-np.inf, -np.inf], alpha[:-2]]), -np.inf)
        alpha = np.logaddexp(np.logaddexp(alpha, before), skipped) + frame[extended]
    return float(np.logaddexp.reduce(alpha[-2:]))


def most_likely(logs: NDArray[np.float64], count: int) -> list[tuple[int, ...]]:
    """The sequences of sounds that are likeliest: prefix beam search of CTC."""
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    """prefix -> logarithms of the probabilities that it ends in none, and in its last sound"""
    for frame in logs:
        found: dict[tuple[int, ...], list[float]] = {}

        def add(prefix: tuple[int, ...], kind: int, value: float, found: dict = found) -> None:
            entry = found.setdefault(prefix, [-np.inf, -np.inf])
            entry[kind] = np.logaddexp(entry[kind], value)

        likely = np.argsort(frame)[-8:]
        for prefix, (none, last) in beams.items():
            total = np.logaddexp(none, last)
            add(prefix, 0, total + frame[0])
            if prefix:
                add(prefix, 1, last + frame[prefix[-1]])
            for sound in map(int, likely):
                if sound:
                    add((*prefix, sound), 1, (none if prefix and prefix[-1] == sound else total) + frame[sound])
        ranked = sorted(found.items(), key=lambda item: -np.logaddexp(*item[1]))
        beams = {prefix: (v[0], v[1]) for prefix, v in ranked[:BEAM]}
    return [prefix for prefix in beams if prefix][:count]


@dataclass(frozen=True)
class WakeWord:
    """Sequences of sounds that are listened for, and from which score on."""

    sequences: list[tuple[int, ...]]
    threshold: float

    def score(self, logs: NDArray[np.float64]) -> float:
        """How much it sounds like the word: logarithm of the likelihood by sound, of the sequence that fits best."""
        return max(log_likelihood(logs, sequence) / len(sequence) for sequence in self.sequences)


def enroll(heard: list[NDArray[np.float64]]) -> WakeWord:
    """The word that was said in some recordings."""
    sequences = list(dict.fromkeys(s for logs in heard for s in most_likely(logs, KEPT) if len(s) > 2))
    if not sequences:
        raise SystemExit("hardly anything is to be heard in the recordings; speak louder, or a longer word")
    # Each recording by what was heard in the others: as another one will score.
    scores = []
    for logs in heard:
        own = set(most_likely(logs, KEPT))
        others = [s for s in sequences if s not in own] or sequences
        scores.append(WakeWord(others, 0).score(logs))
    return WakeWord(sequences, float(min(scores) - 0.5))


def hear(session: InferenceSession, windows: list[NDArray]) -> list[NDArray[np.float64]]:
    """What the network hears in windows [32, 100]."""
    (name,) = (info.name for info in session.get_inputs())
    (scores,) = session.run(None, {name: np.stack(windows)})
    return [log_softmax(s) for s in scores]


def evaluate(session: InferenceSession, seed: int = 0) -> tuple[float, float]:
    """Area under the ROC curve over all phrases and voices, and the share of right answers at the threshold."""
    rng = np.random.default_rng(seed)

    def say(phrase: str, voice: str) -> NDArray:
        manner = Voice(voice, int(rng.integers(140, 185)), int(rng.integers(35, 65)))
        return window(speak(phrase, manner), rng)

    said = {(p, v, i): say(p, v) for p in PHRASES for v in STRANGERS for i in range(5)}
    heard = dict(zip(said, hear(session, list(said.values())), strict=True))
    areas, right = [], []
    for phrase in PHRASES:
        for voice in STRANGERS:
            word = enroll([heard[phrase, voice, i] for i in range(3)])
            yes = [word.score(heard[phrase, voice, i]) for i in (3, 4)]
            no = [word.score(logs) for (p, v, i), logs in heard.items() if p != phrase and v == voice]
            areas.append(np.mean([y > n for y in yes for n in no]))
            right += [y >= word.threshold for y in yes] + [n < word.threshold for n in no]
    return float(np.mean(areas)), float(np.mean(right))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, model, sim, serial:PORT, auto (default: %(default)s)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    p = verbs.add_parser("enroll", help="learn a word from recordings")
    p.add_argument("artifact")
    p.add_argument("recordings", nargs="+", metavar="WAV")
    p.add_argument("-o", "--output", default="word.json")
    p = verbs.add_parser("listen", help="find the word in a recording")
    p.add_argument("artifact")
    p.add_argument("word")
    p.add_argument("recording", metavar="WAV")
    p = verbs.add_parser("evaluate", help="how well it works with words and voices that were not trained with")
    p.add_argument("artifact")
    options = parser.parse_args(arguments)
    with InferenceSession(options.artifact, options.device) as session:
        if options.verb == "enroll":
            word = enroll(hear(session, [window(read_wav(file)) for file in options.recordings]))
            Path(options.output).write_text(json.dumps({"sequences": word.sequences, "threshold": word.threshold}))
            print(f"{options.output}: {len(word.sequences)} sequences of sounds, threshold {word.threshold:.2f}")
        elif options.verb == "listen":
            found = json.loads(Path(options.word).read_text())
            word = WakeWord([tuple(s) for s in found["sequences"]], found["threshold"])
            frames = features(np.pad(read_wav(options.recording), FRAMES * HOP // 2))
            starts = range(0, max(frames.shape[1] - FRAMES, 0) + 1, STEP)
            scores = [word.score(logs) for logs in hear(session, [frames[:, i : i + FRAMES] for i in starts])]
            best = int(np.argmax(scores))
            verdict = "heard" if scores[best] >= word.threshold else "not heard"
            print(f"{verdict}: best at {starts[best] * HOP / 16_000:.2f} s, score {scores[best]:.2f}")
        else:
            area, right = evaluate(session)
            print(f"area under the ROC curve {area:.3f}, {right:.1%} right at the threshold")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
