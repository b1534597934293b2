"""Train a small network that hears the sounds of English words, and export it for nnloom.

    python examples/custom_wake_word/train.py build/sounds

eSpeak NG speaks the data: common words in many voices. The network says of every 40 ms which sound it hears, or none
(CTC, Graves et al., 2006). Writes `sounds.onnx`, `sounds.json` (their names) and `calibration.npz`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from speech import BANDS, Voice, phonemes, speak, window
from torch import nn
from torch.nn import functional

__all__ = ["Sounds", "main"]

WORDS = Path(__file__).with_name("words.txt")
"""Common words, none of those that `wake_word.py evaluate` says."""
DIALECTS = ("en-us", "en-gb", "en-gb-scotland", "en-us-nyc", "en-029")
VARIANTS = ("f1", "f2", "f4", "m1", "m2", "m3", "m5", "m7", "klatt", "Andy", "Annie", "belinda")
EPOCHS = 24
BATCH = 32
CHANNELS = 64


class Sounds(nn.Module):
    """Scores [n, sounds, 50] of features [n, 32, 100]."""

    def __init__(self, sounds: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(BANDS, CHANNELS, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(CHANNELS), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(CHANNELS, CHANNELS, 9, padding=4, groups=CHANNELS, bias=False),
                nn.BatchNorm1d(CHANNELS),
                nn.ReLU(),
                nn.Conv1d(CHANNELS, CHANNELS, 1, bias=False),
                nn.BatchNorm1d(CHANNELS),
            )
            for _ in range(4)
        )
        self.head = nn.Conv1d(CHANNELS, sounds, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = functional.relu(x + block(x))
        return self.head(x)


def corpus(count: int, seed: int) -> tuple[NDArray[np.float32], list[list[str]]]:
    """Features [count, 32, 100] of one to three words each, and the sounds in them."""
    words = WORDS.read_text().split()
    rng = np.random.default_rng(seed)
    said, sounds = [], []
    for _ in range(count):
        text = " ".join(rng.choice(words, rng.integers(1, 4)))
        voice = f"{rng.choice(DIALECTS)}+{rng.choice(VARIANTS)}"
        samples = speak(text, Voice(voice, int(rng.integers(130, 200)), int(rng.integers(25, 75))))
        said.append(window(samples, rng))
        sounds.append(phonemes(text))
    return np.array(said), sounds


def train(network: nn.Module, said: NDArray, labels: list[list[int]], epochs: int, rate: float = 4e-3) -> None:
    """Train with the CTC loss; label 0 is none."""
    x = torch.from_numpy(said)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            scores = network(x[chosen]).permute(2, 0, 1).log_softmax(-1)
            targets = [labels[i] for i in chosen.tolist()]
            flat = torch.tensor([label for target in targets for label in target])
            lengths = torch.tensor([len(target) for target in targets])
            times = torch.full((len(chosen),), len(scores))
            loss = functional.ctc_loss(scores, flat, times, lengths, zero_infinity=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--utterances", type=int, default=2000, help="to train on (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    said, sounds = corpus(options.utterances, seed=0)
    names = ["", *sorted({sound for line in sounds for sound in line})]
    labels = [[names.index(sound) for sound in line] for line in sounds]
    torch.manual_seed(0)
    network = Sounds(len(names))
    train(network, said, labels, options.epochs)
    program = torch.onnx.export(network, (torch.from_numpy(said[:1]),), dynamo=True, verbose=False, opset_version=18)
    assert program is not None
    program.save(str(folder / "sounds.onnx"))
    (folder / "sounds.json").write_text(json.dumps(names))
    np.savez(folder / "calibration.npz", x=said[:100])
    print(f"{folder / 'sounds.onnx'}: {len(names) - 1} sounds, {len(said)} utterances")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
