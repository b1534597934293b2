"""What lies where in the SPI flash that a board starts from: the bitstream at 0, a network behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import BuildError, ConfigError
from nnloom.arch.files import write_atomically
from nnloom.arch.flash_image import flash_image

from .board import Board
from .toolchain import Toolchain

__all__ = ["FLASH_PORTS", "NETWORK_FILE", "check_flash", "check_layout", "with_flash_boot", "write_network"]

FLASH_PORTS = ("flash_cs_n", "flash_mosi", "flash_miso", "flash_sck")
"""Pins of a flash that are read through; its others stay high"""
NETWORK_FILE = "network.bin"
"""Of an artifact: what is written to the flash at `Board.network_offset`"""
BLOCK_BYTES = 1 << 16
"""What a flash erases at once, at most"""
MOST_BYTES = 1 << 24
"""What an address of 24 bits reaches"""


def with_flash_boot(board: Board, tools: Toolchain) -> Board:
    """The board with a system that loads the network in the flash after a reset.

    Raises
    ------
    ConfigError
        If nnloom does not know the board's flash, or cannot do it on this board.
    """
    board = replace(board, flash_boot=True)
    check_flash(board, tools)
    return board


def check_flash(board: Board, tools: Toolchain) -> None:
    """Check what a board with `flash_boot` says of its flash.

    Raises
    ------
    ConfigError
    """
    needed = ["flash_cs_n", "flash_mosi", "flash_miso", *(["flash_sck"] if tools.flash_clock_is_pin else [])]
    missing = [port for port in needed if port not in board.flash_pins]
    if missing:
        raise ConfigError(
            f"{board.name}: flash_pins have no {', '.join(missing)}; nnloom cannot read this board's flash"
        )
    if board.external_memory:
        raise ConfigError(f"{board.name}: boards with external memory do not load from their flash yet")
    if not 0 < board.network_offset < board.flash_bytes <= MOST_BYTES or board.network_offset % BLOCK_BYTES:
        raise ConfigError(
            f"{board.name}: network_offset must be a multiple of {BLOCK_BYTES:,} below flash_bytes, and that at most "
            f"{MOST_BYTES:,}"
        )


def check_layout(board: Board, tools: Toolchain, bitstream: Path, network_bytes: int) -> None:
    """Check that a bitstream and a network have room beside each other.

    Raises
    ------
    BuildError
        If the bitstream reaches into the blocks of the network.
    ConfigError
        If the network is too large for the rest of the flash.
    """
    used = -(-tools.bytes_in_flash(bitstream.read_bytes()) // BLOCK_BYTES) * BLOCK_BYTES
    if used > board.network_offset:
        raise BuildError(
            f"{bitstream}: takes {used:,} bytes of the flash, and the network begins at byte {board.network_offset:,}; "
            "use a board file with a higher network_offset, and build again"
        )
    room = board.flash_bytes - board.network_offset
    if network_bytes > room:
        raise ConfigError(f"{board.name}: the network takes {network_bytes:,} bytes, and its flash has {room:,} for it")


def write_network(artifact: Artifact) -> Path:
    """Write what goes to the flash into the artifact (`NETWORK_FILE`).

    Raises
    ------
    ConfigError
        If the network runs in parts.
    """
    path = artifact.path / NETWORK_FILE
    write_atomically(path, flash_image(artifact.image).encode())
    return path
