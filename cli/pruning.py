"""`nnloom prune`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnloom.arch.errors import ConfigError

from .console import Console

if TYPE_CHECKING:
    from nnloom.compiler import PruneResult

__all__ = ["prune"]


def prune(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom prune"""
    from nnloom.compiler import prune as prune_model

    from .commands import check_writable, shapes_of

    if (options.mask is None) == (options.target is None):
        raise ConfigError("give --mask FILE or --target SHARE")
    model = Path(options.model)
    output = Path(options.output or f"{model.stem}_pruned.onnx")
    for path, option in ((str(output), "-o"), (options.masked, "--masked"), (options.save_mask, "--save-mask")):
        check_writable(path, option)
    result = prune_model(
        model,
        mask=options.mask,
        target=options.target,
        measure=options.of,
        multiple=options.multiple,
        keep=options.keep,
        output=output,
        masked=options.masked,
        save_mask=options.save_mask,
        shapes=shapes_of(options.shape),
        progress=console.phase,
    )
    _show(result, console)
    return result.to_dict()


def _show(result: PruneResult, console: Console) -> None:
    """What is left, for people."""
    gone = 1 - result.macs / result.macs_before if result.macs_before else 0.0
    console.say(
        f"{result.path}: {result.macs:,} of {result.macs_before:,} multiplications left, {100 * gone:.1f} % gone; "
        f"{result.parameters:,} of {result.parameters_before:,} parameters"
    )
    changed = [layer for layer in result.layers if layer.left < layer.channels or layer.masked]
    if changed:
        titles = ["layer", "operator", "channels", "left", "of them zero"]
        console.table(titles, [[v.name, v.op, v.channels, v.left, v.masked] for v in changed])
    for stayed in result.stayed:
        console.say(f"  zero instead of gone: {stayed.channels} of {stayed.layer} ({stayed.reason})")
    console.say(
        f"with a random input its outputs differ from the masked network's by at most {result.largest_difference:.2g} "
        f"(largest output: {result.largest_output:.3g})"
    )
