"""Boards: one file each; this module finds them by name, and those of other packages and of users' files, too.

Pure data, no Amaranth. A package offers boards by an entry point of the group `nnloom.boards`: a `Board`, or several in
a list or tuple.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nnloom.arch.errors import ConfigError

from .board import Board
from .icebreaker import ICEBREAKER
from .pynq_z2 import PYNQ_Z2
from .tang_nano_20k import TANG_NANO_20K
from .ultra96_v2 import ULTRA96_V2
from .ulx3s import ULX3S_12F, ULX3S_25F, ULX3S_45F, ULX3S_85F, ULX3S_85F_SDRAM

__all__ = ["GROUP", "Board", "all_boards", "builtin_boards", "get"]

GROUP = "nnloom.boards"
"""of entry points"""

_BOARDS: tuple[Board, ...] = (
    ULX3S_85F,
    ULX3S_45F,
    ULX3S_25F,
    ULX3S_12F,
    TANG_NANO_20K,
    ICEBREAKER,
    PYNQ_Z2,
    ULTRA96_V2,
    ULX3S_85F_SDRAM,
)


def builtin_boards() -> tuple[Board, ...]:
    """The boards that nnloom brings."""
    return _BOARDS


def all_boards() -> tuple[Board, ...]:
    """Every board that nnloom knows: its own, and those of other packages.

    Raises
    ------
    ConfigError
        If a package offers something else.
    """
    return (*_BOARDS, *_of_packages())


@functools.cache
def _of_packages() -> tuple[Board, ...]:
    names = {board.name for board in _BOARDS}
    found: list[Board] = []
    for point in entry_points(group=GROUP):
        for board in _load(point):
            if board.name in names:
                raise ConfigError(f"{_origin(point)}: there already is a board {board.name!r}; uninstall one")
            names.add(board.name)
            found.append(board)
    return tuple(found)


def _load(point: EntryPoint) -> Iterator[Board]:
    try:
        value: Any = point.load()
    except Exception as error:  # another package's code, which may raise anything
        raise ConfigError(f"{_origin(point)}: cannot be loaded ({type(error).__name__}: {error})") from error
    for board in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(board, Board):
            raise ConfigError(f"{_origin(point)}: a {type(board).__name__}, not a nnloom.boards.Board")
        yield board


def _origin(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "a package"
    return f"{package}, entry point {point.name} of {GROUP}"


def get(name: str) -> Board:
    """A board by its name, or from a YAML or JSON file.

    Raises
    ------
    ConfigError
        If there is none, the message lists the names; or if the file is wrong.
    """
    from .files import is_board_file, read_board

    if is_board_file(name):
        return read_board(name)
    for board in _BOARDS:
        if board.name == name:
            return board
    for board in all_boards():
        if board.name == name:
            return board
    names = [board.name for board in all_boards()]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"unknown board {name!r}{hint} (boards: {', '.join(names)}; or a file, BOARD.yaml)")
