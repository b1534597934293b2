"""Train a small network on handwritten digits in PyTorch, and export it for nnloom.

    python examples/digits/train.py build/digits

The pictures are the 1,797 of 8 x 8 pixels that scikit-learn ships; every tenth is kept back for the test. Writes
`digits.pt2` (a program of torch.export), `calibration.npz` and `test.npz`, and prints the float accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

__all__ = ["Digits", "accuracy", "data", "export", "main", "shifted", "train"]

EPOCHS = 30
BATCH = 64


class Digits(nn.Module):
    """Scores [n, 10] of pictures [n, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 1, bias=False),
            nn.BatchNorm2d(24),
        )
        self.down = nn.Sequential(nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.head = nn.Linear(48, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.stem(pictures)
        x = self.down(functional.relu(x + self.block(x)))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def data() -> tuple[tuple[NDArray, NDArray], tuple[NDArray, NDArray]]:
    """Pictures float32 [n, 1, 8, 8] from -1 to 1 and labels [n], to train with and to test with."""
    digits = load_digits()
    pictures = (digits.images[:, None] / 8 - 1).astype(np.float32)
    test = np.arange(len(pictures)) % 10 == 0
    return (pictures[~test], digits.target[~test]), (pictures[test], digits.target[test])


def shifted(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture moved by up to a pixel."""
    padded = functional.pad(pictures, (1, 1, 1, 1), value=-1.0)
    y, x = torch.randint(3, (2, len(pictures)), generator=generator)
    return torch.stack([p[:, i : i + 8, j : j + 8] for p, i, j in zip(padded, y.tolist(), x.tolist(), strict=True)])


def train(network: nn.Module, epochs: int = EPOCHS, rate: float = 4e-3, seed: int = 0) -> None:
    """Train with the pictures that are not for the test."""
    (pictures, labels), _ = data()
    x, y = torch.from_numpy(pictures), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    batches = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = functional.cross_entropy(network(shifted(x[chosen], generator)), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def accuracy(network: nn.Module) -> float:
    """Share of the test pictures whose largest score is that of the right digit."""
    _, (pictures, labels) = data()
    with torch.no_grad():
        return float((network(torch.from_numpy(pictures)).argmax(1).numpy() == labels).mean())


def export(network: nn.Module, folder: Path) -> None:
    """Write `digits.pt2`, `calibration.npz` and `test.npz` into `folder`."""
    (pictures, _), (test, labels) = data()
    program = torch.export.export(network, (torch.from_numpy(pictures[:1]),))
    torch.export.save(program, folder / "digits.pt2")
    np.savez(folder / "calibration.npz", pictures=pictures[::8])
    np.savez(folder / "test.npz", inputs=test, labels=labels)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is too small for more
    network = Digits()
    train(network)
    export(network, folder)
    print(f"{folder / 'digits.pt2'}: float accuracy {accuracy(network):.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
