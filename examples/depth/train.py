"""Train a network that tells depth from one picture, and export it for nnloom.

    python examples/depth/train.py build/depth

The scenes are made here: a floor, a wall and some balls in random colours and light, and cameras at random heights.
An encoder of depthwise separable convolutions, and a decoder that repeats pixels ("FastDepth: Fast Monocular Depth
Estimation on Embedded Systems", Wofk et al., 2019). Writes `depth.onnx`, `calibration.npz` and `test.npz`, and prints
the error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

__all__ = ["Depth", "error", "export", "main", "scenes", "train"]

SIZE = 64
NEAR = 1.0
"""Distance whose inverse is 1."""
EPOCHS = 24
BATCH = 32


def scenes(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pictures [count, 3, 64, 64] from -1 to 1, and inverse distances [count, 1, 64, 64] from 0 to 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE / 2) - 1 + 1 / SIZE
    rays = np.stack([x, -y, np.full_like(x, 1.3)])
    rays /= np.linalg.norm(rays, axis=0)
    pictures, inverses = [], []
    for _ in range(count):
        light = rng.normal((0, 2, -1))
        light /= np.linalg.norm(light)
        distance, normal, colour = _room(rng, rays)
        for _ in range(rng.integers(1, 5)):
            radius = rng.uniform(0.3, 1.0)
            centre = np.array([rng.uniform(-2.5, 2.5), rng.uniform(-1, 0.5), rng.uniform(2.5, 6.5)])
            along = np.tensordot(centre, rays, 1)
            inside = radius**2 - (centre @ centre - along**2)
            hit = np.where(inside > 0, along - np.sqrt(np.maximum(inside, 0)), np.inf)
            nearer = (hit > 0) & (hit < distance)
            distance = np.where(nearer, hit, distance)
            normal = np.where(nearer, (rays * np.where(nearer, hit, 0) - centre[:, None, None]) / radius, normal)
            colour = np.where(nearer, rng.uniform(0.2, 1, (3, 1, 1)), colour)
        shade = 0.35 + 0.65 * np.maximum(np.tensordot(light, normal, 1), 0)
        picture = colour * shade * rng.uniform(0.8, 1.1) + rng.normal(0, 0.02, colour.shape)
        pictures.append(2 * np.clip(picture, 0, 1) - 1)
        inverses.append(np.clip(NEAR / distance, 0, 1)[None])
    return np.array(pictures, np.float32), np.array(inverses, np.float32)


def _room(rng: np.random.Generator, rays: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Distance, normal and colour of a floor with tiles and a wall behind it."""
    height, behind = rng.uniform(0.8, 1.6), rng.uniform(6, 9)
    with np.errstate(divide="ignore"):
        floor = np.where(rays[1] < 0, -height / np.minimum(rays[1], -1e-9), np.inf)
    wall = behind / rays[2]
    on_floor = floor < wall
    distance = np.where(on_floor, floor, wall)
    tiles = (np.floor(rays[0] * distance) + np.floor(rays[2] * distance)) % 2
    tiled = rng.uniform(0.2, 0.9, (3, 1, 1)) * (0.7 + 0.3 * tiles)
    colour = np.where(on_floor, tiled, rng.uniform(0.2, 0.9, (3, 1, 1)))
    up, front = np.array([0, 1, 0])[:, None, None], np.array([0, 0, -1])[:, None, None]
    return distance, np.where(on_floor, up, front), colour


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise separable convolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Depth(nn.Module):
    """Inverse distance [n, 1, 64, 64] of pictures [n, 3, 64, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.quarter = separable(16, 32, 2)
        self.eighth = nn.Sequential(separable(32, 64, 2), separable(64, 64), separable(64, 64))
        self.up_quarter, self.up_half, self.up = separable(64, 32), separable(32, 16), separable(16, 16)
        self.head = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        half = self.stem(pictures)
        quarter = self.quarter(half)
        x = functional.interpolate(self.up_quarter(self.eighth(quarter)), scale_factor=2) + quarter
        x = functional.interpolate(self.up_half(x), scale_factor=2) + half
        # At half the size, as the memory of the accelerator has it; then every pixel four times.
        return functional.interpolate(functional.relu(self.head(self.up(x))), scale_factor=2)


def train(network: nn.Module, epochs: int = EPOCHS, count: int = 1200, rate: float = 6e-3) -> None:
    """Train on scenes that nobody sees again."""
    pictures, inverses = (torch.from_numpy(a) for a in scenes(count, seed=1))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    steps = epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(count, generator=generator).split(BATCH):
            loss = functional.l1_loss(network(pictures[chosen]), inverses[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def error(answers: NDArray, inverses: NDArray) -> tuple[float, float]:
    """Mean absolute error of the inverse distance, and the share of pixels whose distance is right within a quarter."""
    ratio = np.maximum(answers, 1e-3) / np.maximum(inverses, 1e-3)
    return float(np.abs(answers - inverses).mean()), float((np.maximum(ratio, 1 / ratio) < 1.25).mean())


def export(network: nn.Module, folder: Path) -> None:
    """Write `depth.onnx`, `calibration.npz` and `test.npz` into `folder`."""
    pictures, _ = scenes(100, seed=2)
    tests, inverses = scenes(100, seed=3)
    program = torch.onnx.export(network, (torch.from_numpy(tests[:1]),), dynamo=True, verbose=False, opset_version=18)
    assert program is not None
    program.save(str(folder / "depth.onnx"))
    np.savez(folder / "calibration.npz", pictures=pictures)
    np.savez(folder / "test.npz", inputs=tests, labels=inverses)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = Depth()
    train(network)
    export(network, folder)
    tests, inverses = scenes(100, seed=3)
    with torch.no_grad():
        mean, right = error(network(torch.from_numpy(tests)).numpy(), inverses)
    print(
        f"{folder / 'depth.onnx'}: mean error {mean:.4f}, {right:.1%} of the pixels within a quarter of their distance"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
