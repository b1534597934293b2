"""Plots of an exploration."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from nnloom.arch.errors import InputError, ToolMissingError
from nnloom.arch.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnloom.compiler.explore import Candidate, Exploration

__all__ = ["check_plot", "draw_exploration", "plot_exploration"]

_AXES = {"LUT4": "LUT4", "MULT18X18D": "DSP blocks (MULT18X18D)", "DP16KD": "block RAM (DP16KD)"}


def check_plot(path: Path) -> None:
    """Find out before a long search whether it can be plotted.

    Raises
    ------
    InputError, ToolMissingError
        An ending that is neither .svg nor .png; Matplotlib is not installed.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise InputError(f"{path}: a plot is .svg or .png; choose another --plot")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ToolMissingError("Matplotlib is not installed; pip install 'nnloom[explore]'") from error


def draw_exploration(found: Exploration, smallest: Candidate | None = None) -> Figure:
    """Latency against LUT4, DSP blocks and block RAM: every candidate, the front, and what `--config auto` takes.

    smallest: the one that meets a latency, marked, too.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for panel, (name, label) in zip(panels, _AXES.items(), strict=True):
        for group, style in (
            (found.candidates, dict(s=10, color="0.75", label="fits")),
            (found.front, dict(s=16, color="tab:blue", label="Pareto front")),
            ((found.chosen,), dict(s=90, color="tab:red", marker="*", label="used by --config auto")),
            (
                (smallest,) if smallest else (),
                dict(s=70, color="tab:green", marker="D", label="smallest for --latency"),
            ),
        ):
            if not group:
                continue
            panel.scatter([c.resources.to_dict()[name] for c in group], [c.latency_us for c in group], **style)
        panel.set_xlabel(label)
        panel.set_xlim(left=0)
        panel.set_yscale("log")
        panel.grid(True, which="both", alpha=0.3)
    panels[0].set_ylabel(f"latency, us at {found.board.clock_hz / 1e6:g} MHz")
    panels[-1].legend(loc="upper right")
    figure.suptitle(f"{found.model} on {found.board.name}")
    return figure


def plot_exploration(found: Exploration, path: Path, smallest: Candidate | None = None) -> None:
    """Write `draw_exploration` to `path`, an .svg or .png."""
    image = io.BytesIO()
    draw_exploration(found, smallest).savefig(image, format=path.suffix.lower().removeprefix("."))
    write_atomically(path, image.getvalue())
