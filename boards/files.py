"""Boards as files: YAML or JSON that a user writes, and the copy that an artifact keeps of such a board."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnloom.arch.artifact import BOARD_FILE, Artifact
from nnloom.arch.errors import ConfigError
from nnloom.arch.schema import SchemaError, check_value
from nnloom.arch.settings import Settings, config_of, read_settings
from nnloom.hw.sdram_timing import SDRAM_CHIPS

from .board import Board
from .flash import check_flash

__all__ = ["board_of", "board_values", "is_board_file", "read_board"]

SUFFIXES = (".yaml", ".yml", ".json")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./\[\]-]*")
"""What goes into command lines and constraints as it is"""


def is_board_file(name: str) -> bool:
    """Whether what was given as a board is a file, not a name."""
    return name.lower().endswith(SUFFIXES)


def read_board(path: str | Path) -> Board:
    """A board of the open tools from a YAML or JSON file: the fields of `Board`, see `docs/board.schema.json`.

    Raises
    ------
    ConfigError
        With the line of what is wrong.
    ToolMissingError
        If it is YAML and PyYAML is not installed.
    """
    settings = read_settings(path, "a board")
    fields = {field.name: field for field in dataclasses.fields(Board)}
    settings.check_keys(fields)
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in settings.values:
            raise settings.error(f"{name} is missing")
    values = dict(settings.values)
    values["config"] = config_of(settings, "config")
    for name, field in fields.items():
        if name in values and name != "config":
            values[name] = _value(settings, name, field.type, values[name])
    board = Board(**values)
    _check(settings, board)
    return board


def _value(settings: Settings, name: str, kind: Any, value: Any) -> Any:
    """A value as the field has it: 25e6 is a text in YAML, and a tuple a list."""
    if kind == "float" and isinstance(value, str):
        try:
            value = float(value)
        except ValueError as error:
            raise settings.error(f"{name} must be a number, not {value!r}", name) from error
    if kind == "tuple[str, ...]" and isinstance(value, list):
        value = tuple(value)
    kinds = {
        "str": str,
        "float": float,
        "int": int,
        "bool": bool,
        "tuple[str, ...]": tuple[str, ...],
        "Mapping[str, str]": dict[str, str],
        "Mapping[str, int]": dict[str, int],
    }
    try:
        check_value(value, kinds[kind], name)
    except SchemaError as error:
        raise settings.error(str(error), name) from error
    return float(value) if kind == "float" else value


def _check(settings: Settings, board: Board) -> None:
    """What the tools would only find out after a while."""
    from . import builtin_boards
    from .flow import LINKS, OPEN_TOOLCHAINS, no_usb

    def need(condition: bool, text: str, *keys: str) -> None:
        if not condition:
            raise settings.error(text, *keys)

    need(bool(re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", board.name)), "name must be of a-z, 0-9, - and _", "name")
    need(board.name not in [b.name for b in builtin_boards()], f"{board.name} is the name of a board of nnloom", "name")
    tools = ", ".join(OPEN_TOOLCHAINS)
    need(board.toolchain in OPEN_TOOLCHAINS, f"toolchain must be one of {tools}, not {board.toolchain!r}", "toolchain")
    texts = {"device": board.device, "package": board.package, "speed": board.speed, "loader": board.loader}
    for name, text in texts.items():
        need(not text or bool(WORD.fullmatch(text)), f"{name} must be a word of the tools, not {text!r}", name)
    for group in ("pins", "reserved_pins", "usb_pins", "flash_pins"):
        for port, pin in getattr(board, group).items():
            need(bool(WORD.fullmatch(port) and WORD.fullmatch(pin)), f"{port!r}: {pin!r} is no pin", group, port)
    for name in ("crystal_hz", "clock_hz", "baud"):
        need(getattr(board, name) > 0, f"{name} must be above 0", name)
    for port in (board.clock_port, "uart_rx", "uart_tx", *board.high_ports):
        need(port in board.pins, f"pins: no pin for {port}", "pins")
    chips = ", ".join(SDRAM_CHIPS)
    known_chip = not board.external_memory or board.external_memory in SDRAM_CHIPS
    need(known_chip, f"external_memory must be one of {chips}, not {board.external_memory!r}", "external_memory")
    links = ", ".join(LINKS)
    need(board.link in LINKS, f"link must be one of {links}, not {board.link!r}", "link")
    reason = no_usb(board)
    need(not reason, reason, "link")
    if board.flash_boot:
        try:
            check_flash(board, OPEN_TOOLCHAINS[board.toolchain])
        except ConfigError as error:
            raise settings.error(str(error), "flash_boot") from error
    need(board.dsp_blocks >= 0, "dsp_blocks must be at least 0", "dsp_blocks")
    known = set(OPEN_TOOLCHAINS[board.toolchain].primitives.values())
    settings.check_keys(known, "primitives")
    missing = sorted(known - set(board.primitives))
    need(not missing, f"primitives: {', '.join(missing)} missing", "primitives")


def board_values(board: Board) -> dict[str, Any]:
    """JSON values of a board, as `read_board` takes them."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(Board):
        value = getattr(board, field.name)
        if field.name == "config":
            value = board.config.to_dict()
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[field.name] = value
    return result


def board_of(artifact: Artifact) -> Board:
    """The board of an artifact: its own copy, where the board came from outside of nnloom.

    Raises
    ------
    ConfigError
        If nnloom does not know a board of that name.
    """
    from . import get

    own = BOARD_FILE in artifact.manifest.files
    board = read_board(artifact.path / BOARD_FILE) if own else get(artifact.manifest.board)
    # The driver takes these from the artifact, so the bitstream does.
    manifest = artifact.manifest
    return dataclasses.replace(board, baud=manifest.baud, link_packing=manifest.packs) if board.baud else board
