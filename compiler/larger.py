"""What would take more of a network that does not fit: other boards, or the board's engine with more memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError
from nnloom.boards import all_boards
from nnloom.boards.board import Board
from nnloom.boards.resources import estimate, fits, lut_multipliers

from .fit import Fitted, fit
from .ir import Graph
from .transfers import MemoryTiming, external_timing

__all__ = ["Larger", "find_larger", "with_more_memory"]


@dataclass(frozen=True)
class Larger:
    """A board, and a configuration of it, that takes more of a network."""

    board: str
    config: AcceleratorConfig
    fitted: Fitted

    @property
    def is_searched(self) -> bool:
        """Whether it is not the board's own configuration, but one that `--config auto` makes."""
        return all(self.config != board.config for board in all_boards() if board.name == self.board)


def with_more_memory(board: Board) -> Iterator[AcceleratorConfig]:
    """The board's own configuration with a larger activation memory, as far as the resource model knows it to fit."""
    config = board.config
    while True:
        try:
            config = dataclasses.replace(config, activation_bytes=2 * config.activation_bytes)
            config = dataclasses.replace(
                config, field_bits=max(config.field_bits, (config.bank_granules - 1).bit_length())
            )
            if not fits(board, estimate(config, lut_multipliers(board, config))):
                return
        except ConfigError:
            return
        yield config


def find_larger(graph: Graph, fitted: Fitted, config: AcceleratorConfig, board: Board) -> Larger | None:
    """The first that takes all of it, of the board and the others by size; else the one that takes most; or None.

    Each is tried in the form that suits the network here.
    """
    best, most = None, fitted
    for name, other, memory in _candidates(board):
        more_memory = memory is not None and external_timing(board) is None
        if not (more_memory or _has_more(other, config)):
            continue
        found = fit(graph, other, memory=memory, form=fitted.form)
        if found.rank > most.rank:
            best, most = Larger(name, other, found), found
            if not found.is_cut:
                break
    return best


def _candidates(board: Board) -> Iterator[tuple[str, AcceleratorConfig, MemoryTiming | None]]:
    """Board, configuration, and how fast the board's external memory is."""
    memory = external_timing(board)
    yield board.name, board.config, memory
    for config in with_more_memory(board):
        yield board.name, config, memory
    others = [other for other in all_boards() if other.name != board.name]
    # What is the same but for the system on it comes first.
    for other in sorted(
        others, key=lambda b: (b.device != board.device, b.config.activation_bytes, b.config.multipliers)
    ):
        yield other.name, other.config, external_timing(other)


def _has_more(config: AcceleratorConfig, than: AcceleratorConfig) -> bool:
    def memories(c: AcceleratorConfig) -> tuple[int, ...]:
        return c.activation_bytes, c.weight_words * c.taps, 1 << c.field_bits

    return any(a > b for a, b in zip(memories(config), memories(than), strict=True))
