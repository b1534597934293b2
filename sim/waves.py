"""A save file for GTKWave (Surfer reads it, too): the engine's signals, with the names of the layers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnloom.arch.artifact import Artifact

__all__ = ["layer_names", "write_save_file"]

_PLAIN, _BINARY, _TRANSLATED, _SEPARATOR = "@22", "@28", "@2022", "@200"
"""GTKWave's flags: hexadecimal; binary; hexadecimal through a file of names; a comment."""

_SIGNALS: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    ("host bus", (("req_valid", 1), ("req_ready", 1), ("req_write", 1), ("req_address", 32), ("req_data", 32))),
    ("answers", (("rsp_valid", 1), ("rsp_ready", 1), ("rsp_data", 32))),
    ("engine", (("busy", 1),)),
)
COMPLETED_BITS = 16


def layer_names(artifact: Artifact) -> list[str]:
    """Of each number of completed layers of a program, the layer that runs; several programs: their names by " | "."""
    programs = [[tensor.layer or tensor.name for tensor in region.tensors] for region in artifact.manifest.regions]
    longest = max((len(names) for names in programs), default=0)
    return [" | ".join(names[i] for names in programs if i < len(names)) for i in range(longest)]


def write_save_file(
    path: Path, *, dump: str, engine: str, names: Sequence[str], lanes: int, clock: str = "clk"
) -> None:
    """Write a save file, and beside it the file with the names of the layers.

    Parameters
    ----------
    path
        The save file (.gtkw); the names go to the same name with .layers.txt.
    dump
        The waveform, from the folder of the save file.
    engine
        Path of the engine's module in the waves, e.g. "nnloom_tb.dut".
    names
        As `layer_names`.
    lanes
        Of the configuration.
    """
    digits = COMPLETED_BITS // 4
    layers = path.with_suffix(".layers.txt")
    # GTKWave splits at the first space: the value, then the text.
    rows = [f"{index:0{digits}x} {' '.join(name.split())}" for index, name in enumerate(names)]
    layers.write_text("\n".join(rows) + "\n")
    lines = [f'[dumpfile] "{dump}"', f'[savefile] "{path.name}"', "[timestart] 0", "*-20 0"]

    def add(flag: str, signal: str, width: int = 1) -> None:
        lines.extend([flag, f"{engine}.{signal}" + (f"[{width - 1}:0]" if width > 1 else "")])

    add(_BINARY, clock)
    add(_BINARY, "rst")
    for title, signals in _SIGNALS:
        lines += [_SEPARATOR, f"-{title}"]
        for signal, width in signals:
            add(_BINARY if width == 1 else _PLAIN, signal, width)
    lines += [_SEPARATOR, "-layer that runs (completed layers of the program)"]
    completed = f"{engine}.accelerator.sequencer.completed[{COMPLETED_BITS - 1}:0]"
    lines += [_TRANSLATED, f"^1 {layers.name}", completed, _PLAIN, completed]
    lines += [_SEPARATOR, "-writes to activation memory"]
    for signal, width in (("valid", 1), ("bank", 2), ("granule", 16), ("enable", 2), ("data", 8 * lanes)):
        add(_BINARY if width == 1 else _PLAIN, f"write_{signal}", width)
    path.write_text("\n".join(lines) + "\n")
