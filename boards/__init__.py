"""Boards: one file each; this module finds them by name. Pure data, no Amaranth."""

from __future__ import annotations

import difflib

from nnloom.arch.errors import ConfigError

from .board import Board
from .icebreaker import ICEBREAKER
from .pynq_z2 import PYNQ_Z2
from .tang_nano_20k import TANG_NANO_20K
from .ultra96_v2 import ULTRA96_V2
from .ulx3s import ULX3S_12F, ULX3S_25F, ULX3S_45F, ULX3S_85F

__all__ = ["Board", "all_boards", "get"]

_BOARDS: tuple[Board, ...] = (
    ULX3S_85F,
    ULX3S_45F,
    ULX3S_25F,
    ULX3S_12F,
    TANG_NANO_20K,
    ICEBREAKER,
    PYNQ_Z2,
    ULTRA96_V2,
)


def all_boards() -> tuple[Board, ...]:
    """Every board that nnloom knows."""
    return _BOARDS


def get(name: str) -> Board:
    """A board by its name.

    Raises
    ------
    ConfigError
        If there is none; the message lists the names.
    """
    for board in _BOARDS:
        if board.name == name:
            return board
    names = [board.name for board in _BOARDS]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"unknown board {name!r}{hint} (boards: {', '.join(names)})")
