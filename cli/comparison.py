"""`nnloom compare`"""

from __future__ import annotations

import argparse
from typing import Any

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ConfigError

from .console import Console

__all__ = ["compare"]

SHOWN = 20
"""Tensors that are shown without --all"""


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom compare"""
    from nnloom.sim.compare import With, as_dict
    from nnloom.sim.compare import compare as compare_tensors

    from .input_files import read_inputs

    against: With = options.against or ("float" if options.float else "reference")
    if options.float and against != "float":
        raise ConfigError(f"--float is for --with float, not {against}")
    found = compare_tensors(
        options.artifact,
        read_inputs(options.input, Artifact.load(options.artifact).manifest.inputs),
        against=against,
        floating=options.float,
        device=options.device,
        progress=console.phase,
    )
    first = found.first
    if against == "float":
        worst = sorted(found.tensors, key=lambda t: t.sqnr_db or 0.0)
        console.say(f"{len(found.tensors)} tensors beside those of {found.against}")
        shown = found.tensors if options.all else worst[:SHOWN]
    elif first is None:
        console.say(f"{len(found.tensors)} tensors, each equal to that of {found.against} in every bit")
        shown = found.tensors if options.all else ()
    else:
        where = f"in {first.region}" if first.region else "on the CPU"
        console.say(f"first difference: {first.name} ({where}), {first.differ:,} values; {first.first}")
        shown = found.tensors if options.all else [t for t in found.tensors if t.differ][:SHOWN]
    if shown:
        titles = ["tensor", "made in", "shape", "differ", "largest", *(["SQNR dB"] if against == "float" else [])]
        rows = [
            [
                t.name,
                t.region or "CPU",
                "x".join(map(str, t.shape)),
                t.differ,
                f"{t.largest:.4g}",
                *([f"{t.sqnr_db:.1f}"] if t.sqnr_db is not None else []),
            ]
            for t in shown
        ]
        console.table(titles, rows)
        if len(shown) < len(found.tensors) and not options.all:
            console.say(f"({len(shown)} of {len(found.tensors)}; --all shows all)")
    if found.unmatched:
        console.say(f"{len(found.unmatched)} without a counterpart: {', '.join(found.unmatched[:SHOWN])}")
    return as_dict(found)
