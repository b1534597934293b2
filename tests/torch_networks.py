"""Small PyTorch networks of many kinds, as their users write them. Needs torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["NETWORKS"]


def conv(i: int, o: int, size: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A convolution with batch normalization and a function."""
    layers = [nn.Conv2d(i, o, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(o), act()]
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x):
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class Mobile(nn.Module):
    """Depthwise separable convolutions, squeeze and excitation, hard swish, a residual sum (MobileNetV3)."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish
        self.first, self.expand = conv(3, 8, stride=2, act=act), conv(8, 16, 1, act=act)
        self.each, self.gate = conv(16, 16, 5, groups=16, act=act), SqueezeExcite(16)
        self.project, self.head = conv(16, 8, 1, act=nn.Identity), nn.Linear(8, 10)

    def forward(self, x):
        x = self.first(x)
        x = x + self.project(self.gate(self.each(self.expand(x))))
        return self.head(F.dropout(x.mean((2, 3)), 0.2, self.training))


class Decoder(nn.Module):
    """Encoder and decoder with transposed convolutions, upsampling and concatenations (UNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 16)
        self.up, self.out = nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.Conv2d(8, 2, 1)
        self.d, self.e = conv(32, 8), conv(16, 8)

    def forward(self, x):
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        x = self.d(torch.cat([self.up(self.c(F.avg_pool2d(b, 2))), b], 1))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return torch.sigmoid(self.out(self.e(torch.cat([x, a], 1))))


class Next(nn.Module):
    """Layer normalization over channels that lie last, GELU, a factor for each channel (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.each, self.norm = (
            nn.Conv2d(3, 16, 4, 4),
            nn.Conv2d(16, 16, 7, padding=3, groups=16),
            nn.LayerNorm(16),
        )
        self.wide, self.narrow, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)
        self.gamma = nn.Parameter(torch.full((16,), 0.5))

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.each(x).permute(0, 2, 3, 1))
        y = self.gamma * self.narrow(F.gelu(self.wide(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))


class Attention(nn.Module):
    """Patches, a token of its own, positions, attention of several heads (ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.norm, self.of_three, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        q, k, v = self.of_three(self.norm(x)).view(1, 17, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 17, 16)
        return self.head((x + self.project(y))[:, 0])


class Recurrent(nn.Module):
    """Convolutions, then a GRU in both directions (CRNN), and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru = conv(3, 8, stride=2), nn.GRU(8 * 6, 8, bidirectional=True, batch_first=True)
        self.lstm, self.head = nn.LSTM(16, 8, 2, batch_first=True), nn.Linear(8, 7)

    def forward(self, x):
        x = self.conv(x)
        x, _ = self.gru(x.permute(0, 2, 1, 3).flatten(2))
        x, (hidden, _) = self.lstm(x)
        return F.log_softmax(self.head(x), -1), hidden[-1]


class Sequence(nn.Module):
    """Dilated causal convolutions in one dimension, gates, padding modes of sequences (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 16, 3, padding=1, padding_mode="replicate")
        self.filter, self.gate = (nn.Conv1d(16, 16, 3, dilation=2) for _ in "ab")
        self.norm, self.last = nn.BatchNorm1d(16), nn.Conv1d(16, 8, 3, stride=2)

    def forward(self, x):
        x = self.first(x)
        y = F.pad(self.norm(x), (4, 0))
        y = x + torch.tanh(self.filter(y)) * torch.sigmoid(self.gate(y))
        return F.avg_pool1d(F.glu(self.last(y), 1), 2)


class TwoInputs(nn.Module):
    """Two inputs and three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = conv(3, 8, stride=2), nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, x, v):
        v = F.relu(self.vector(v))
        x = self.image(x) * torch.sigmoid(v)[:, :, None, None]
        y = torch.cat([x.amax((2, 3)), v], 1)
        return self.head(y), x, self.head(y).argmax(1)


class Shuffle(nn.Module):
    """Channels in another order, pixels as channels and channels as pixels, parts of channels (ShuffleNet, ESPCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = conv(12, 16), conv(8, 8, groups=8), nn.Conv2d(16, 12, 1)

    def forward(self, x):
        a, b = self.first(F.pixel_unshuffle(x, 2)).chunk(2, 1)
        x = torch.cat([a, self.each(b)], 1)
        n, c, rows, columns = x.shape
        x = x.view(n, 2, c // 2, rows, columns).transpose(1, 2).reshape(n, c, rows, columns)
        return F.pixel_shuffle(self.last(x), 2)


class Odds(nn.Module):
    """Paddings, pools to a size, functions that ONNX makes of parts, bilinear resizing, choices."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.b, self.prelu = nn.Conv2d(8, 8, 3, padding=2, padding_mode="circular"), nn.PReLU(8)
        self.norm, self.c = nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.prelu(self.b(F.softplus(self.a(x))))
        x = torch.where(x > 0, x, 0.1 * x**2)
        y = F.interpolate(self.c(F.mish(self.norm(x))), scale_factor=2, mode="bilinear")
        return y, F.adaptive_avg_pool2d(x, (3, 2)), F.adaptive_max_pool2d(y, 2), x.std((2, 3))


NETWORKS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...], bool]] = {
    "mobile": (Mobile, ((1, 3, 32, 32),), True),
    "decoder": (Decoder, ((1, 3, 16, 16),), True),
    "next": (Next, ((1, 3, 24, 24),), False),
    "attention": (Attention, ((1, 3, 32, 32),), False),
    "recurrent": (Recurrent, ((1, 3, 14, 12),), False),
    "sequence": (Sequence, ((1, 4, 40),), True),
    "two inputs": (TwoInputs, ((1, 3, 12, 12), (1, 6)), True),
    "shuffle": (Shuffle, ((1, 3, 12, 12),), True),
    "odds": (Odds, ((1, 3, 11, 10),), False),
}
"""Classes, shapes of inputs, and whether nothing of them is left in float32 sums or functions"""
