"""Train the digits with quantization in the loop (Brevitas), and export a quantized ONNX network.

    pip install brevitas
    python examples/digits/train_quantized.py build/digits
    python examples/digits/train_quantized.py build/digits --weight-bits 4

Weights of 4 bits run as int8: each is one of 15 values. Writes `digits_w8.onnx` or `digits_w4.onnx` (QDQ, which
`nnloom compile` takes as it is) and `test.npz`, and prints the accuracy with quantization in PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.export import export_onnx_qcdq
from brevitas.quant import Int8WeightPerChannelFloat, Int32Bias, ShiftedUint8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import nn
from train import accuracy, data, train

__all__ = ["QuantizedDigits", "main"]

EPOCHS = 30


class QuantizedDigits(nn.Module):
    """Scores [n, 10] of pictures [n, 1, 8, 8]; a chain of convolutions, every tensor between them in 8 bits."""

    def __init__(self, weight_bits: int) -> None:
        super().__init__()
        # Biases in the units of the sums, as integer hardware adds them.
        weights = dict(
            weight_quant=Int8WeightPerChannelFloat, weight_bit_width=weight_bits, bias_quant=Int32Bias, bias=True
        )

        def convolution(inputs: int, outputs: int, **options: int) -> list[nn.Module]:
            layer = qnn.QuantConv2d(inputs, outputs, 3, padding=1, **weights, **options)
            # Unsigned: the rectification is the lower end of the range, and ONNX Runtime computes in integers.
            relu = qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, return_quant_tensor=True)
            return [layer, nn.BatchNorm2d(outputs), relu]

        self.features = nn.Sequential(
            qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, return_quant_tensor=True),
            *convolution(1, 24),
            *convolution(24, 24, groups=24),
            *convolution(24, 48, stride=2),
            *convolution(48, 48),
        )
        self.head = qnn.QuantConv2d(48, 10, 4, **weights)
        self.scores = qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.scores(self.head(self.features(pictures))), 1)


def fold_norms(network: QuantizedDigits) -> None:
    """Make each batch normalization part of the convolution before it, so that its weights are quantized with it."""
    layers = list(network.features)
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            convolution = layers[index - 1]
            assert isinstance(convolution, qnn.QuantConv2d)
            convolution.merge_bn_in(layer)
            network.features[index] = nn.Identity()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--weight-bits", type=int, choices=(4, 8), default=8)
    options = parser.parse_args(arguments)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is too small for more
    network = QuantizedDigits(options.weight_bits)
    train(network, EPOCHS // 2)
    # Without normalization the quantizers see the final weights; the rest of the training gets used to that.
    fold_norms(network)
    train(network, EPOCHS // 2, rate=5e-4)
    _, (test, labels) = data()
    file = folder / f"digits_w{options.weight_bits}.onnx"
    export_onnx_qcdq(network, args=torch.from_numpy(test[:1]), export_path=str(file), dynamo=False)
    np.savez(folder / "test.npz", inputs=test, labels=labels)
    print(f"{file}: accuracy with quantization {accuracy(network):.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
