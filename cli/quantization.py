"""`nnloom quantize`, and what `nnloom compile --calibrate` shows of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnloom.arch.errors import ConfigError

from .console import Console

if TYPE_CHECKING:
    from nnloom.compiler.quantize import QuantizeResult

__all__ = ["quantization_options", "quantize", "show_quantization"]

SHOWN = 10
"""Layers that are shown, from the worst on"""


def quantization_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `nnloom.compiler.quantize.quantize` that two commands have.

    Raises
    ------
    ConfigError
        If options are given that mean nothing without data.
    """
    if options.calibrate is None:
        for name in ("keep_float", "method"):
            if getattr(options, name):
                raise ConfigError(f"--{name.replace('_', '-')} is for a float model that is quantized: add --calibrate")
        return {}
    return {"keep_float": options.keep_float or (), "method": options.method or "auto"}


def quantize(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom quantize"""
    from nnloom.compiler.quantize import quantize as quantize_model

    from .commands import check_writable, shapes_of

    model = Path(options.model)
    output = Path(options.output or f"{model.stem}_int8{'.tflite' if model.suffix == '.tflite' else '.onnx'}")
    check_writable(str(output), "-o")
    result = quantize_model(
        model,
        options.calibrate,
        output=output,
        **quantization_options(options),
        activations=options.activations,
        shapes=shapes_of(options.shape),
        limit=options.limit,
        progress=console.phase,
        advance=console.advance,
    )
    show_quantization(result, console)
    return result.to_dict()


def show_quantization(result: QuantizeResult, console: Console) -> None:
    """What came out, for people."""
    others = ", ".join(f"{name} {value:.1f}" for name, value in result.tried.items() if name != result.method)
    data = f"{result.calibrated} inferences for the ranges, {result.compared} others to compare on"
    if not result.held_out:
        data = "on the one inference that the ranges are from: give more"
    console.say(
        f"{result.path}: outputs have {result.sqnr_db:.1f} dB of signal to quantization noise "
        f"({result.method}{'; ' + others if others else ''}; {data})"
    )
    ranked = sorted((v for v in result.layers if v.own_sqnr_db is not None), key=lambda v: v.worst_db)
    if ranked:
        console.say("layers that lose most, of themselves:")
        console.table(
            ["layer", "operator", "output dB", "with all before", "weights dB", "clipped"],
            [
                [
                    v.name,
                    v.op,
                    f"{v.own_sqnr_db:.1f}",
                    f"{v.sqnr_db:.1f}",
                    "" if v.weights_sqnr_db is None else f"{v.weights_sqnr_db:.1f}",
                    f"{100 * v.clipped:.2f} %",
                ]
                for v in ranked[:SHOWN]
            ],
        )
    for gain in result.gains:
        console.say(f"  --keep-float {gain.layer}: {gain.sqnr_db:.1f} dB ({gain.gain_db:+.1f})")
    p = result.provability
    if p is not None and p.channels + p.others:
        before = f"before {p.scales_moved:,} scales were moved: {p.proved_before:,} and {p.others_proved_before:,}"
        console.say(
            f"proved to be rounded as ONNX Runtime does: {p.proved:,} of {p.channels:,} channels, "
            f"{p.others_proved:,} of {p.others:,} sums, products and means ({before})"
        )
