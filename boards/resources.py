"""What a configuration needs of a device: memory and DSP blocks by rule, LUTs and flip-flops by a fitted model.

The rules repeat how `nnloom.hw.ecp5` makes its primitives. The model is linear in counts of the engine's parts
(`parts`); `benchmarks/resources.py` fits its coefficients to synthesized systems.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError, ToolMissingError
from nnloom.arch.isa import DESCRIPTOR_WORDS, PROGRAM_COLUMNS, TABLE_ENTRIES, Counter
from nnloom.arch.link import LARGEST_WORDS

from .board import Board

if TYPE_CHECKING:
    from nnloom.hw.device import BlockShape

__all__ = [
    "COEFFICIENTS_FILE",
    "FITTED",
    "HEADROOM",
    "Resources",
    "block_rams",
    "dsp_blocks",
    "estimate",
    "fits",
    "limits",
    "lut_multipliers",
    "parts",
    "ram_shape",
    "read_coefficients",
]

COEFFICIENTS_FILE = Path(__file__).with_name("resources.json")

FITTED = ("LUT4", "TRELLIS_FF")
"""Primitives whose counts come from the fitted model; the others are exact."""

PRODUCT_BITS = 16
"""Flip-flops of a product register: none of them is more than one bit of a product."""

FACTOR_GATES = 16
"""LUTs of a lane with products: two of its taps choose between weight and window, bit by bit."""

TABLE_LUTS = 8
TABLE_REGISTERS = 8
"""Of each requantization unit, for what is looked up in tables and what comes from them."""

HEADROOM = {"LUT4": 0.63, "TRELLIS_FF": 0.62, "DP16KD": 0.95}
"""Share of the device that a configuration may take: what the model says of the default of the ULX3S-85F. With 64 % of
the LUTs after packing it met its clock, with its floorplan; fuller systems were not placed yet."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Primitives of the complete system, named as nextpnr and `Board.primitives` do."""

    LUT4: int
    TRELLIS_FF: int
    DP16KD: int
    MULT18X18D: int

    def to_dict(self) -> dict[str, int]:
        """Primitive -> count."""
        return asdict(self)


def ram_shape(words: int) -> BlockShape:
    """The shallowest block RAM shape of at least so many words.

    Raises
    ------
    ConfigError
        If no block RAM is as deep.
    """
    try:
        from nnloom.hw.device import block_shape
    except ImportError as error:
        raise ToolMissingError("Amaranth is not installed; pip install 'nnloom[explore]'") from error
    try:
        return block_shape(words)
    except ValueError as error:
        raise ConfigError(f"config: a memory of {words} words is deeper than a block RAM") from error


def block_rams(config: AcceleratorConfig) -> int:
    """DP16KD blocks of weight, activation and program memory, the tables, the cycle counters and the link's buffers.

    Raises
    ------
    ConfigError
        If a memory is deeper than a block RAM.
    """
    from nnloom.hw.host_link import FRAME_OVERHEAD_WORDS

    frame_words = LARGEST_WORDS + FRAME_OVERHEAD_WORDS
    memories = (
        (
            config.lanes // config.weight_memory_lanes,
            8 * config.taps * config.weight_memory_lanes,
            config.weight_words,
        ),
        (2 * config.row_banks, 8 * config.granule, config.bank_granules // 2),
        (1, 32 * PROGRAM_COLUMNS, -(-config.program_words // PROGRAM_COLUMNS)),
        (config.requant_units if config.tables else 0, 8, TABLE_ENTRIES * max(1, config.tables)),
        (int(config.layer_counters), 32 * len(Counter), max(2, config.program_words // DESCRIPTOR_WORDS)),
        (1, 32, 4 * frame_words),
        (1, 8, 8 * frame_words),
    )
    return sum(count * -(-width // ram_shape(depth).width) for count, width, depth in memories)


def _multipliers(config: AcceleratorConfig) -> int:
    """Multipliers of the engine: the array, two for each requantization unit, one for row addresses."""
    return config.multipliers + 2 * config.requant_units + 1


def lut_multipliers(board: Board, config: AcceleratorConfig) -> int:
    """Multipliers of the array made of LUTs: what exceeds the board's `dsp_blocks`."""
    return min(config.multipliers, max(0, _multipliers(config) - board.dsp_blocks))


def dsp_blocks(config: AcceleratorConfig, lut_multipliers: int) -> int:
    """MULT18X18D blocks when so many multipliers of the array are made of LUTs."""
    return _multipliers(config) - lut_multipliers


def parts(config: AcceleratorConfig, lut_multipliers: int) -> dict[str, dict[str, float]]:
    """Terms of the model: fitted primitive -> part -> how often the engine has it."""
    lanes, taps = config.lanes, config.taps
    window = lanes * config.window_rows * config.window_columns if config.depthwise else 0
    common = {
        "system": 1.0,
        "LUT multiplier": lut_multipliers,
        "addition of products": config.pixels * lanes * (taps - 1),
        "lane": lanes,
        "lane of a second pixel": lanes * (config.pixels - 1),
        "lane with maximum": lanes if config.max_pool else 0,
        "lane with addend": lanes if config.elementwise_add else 0,
        "requantization unit": config.requant_units,
        "lane that shares a unit": lanes - config.requant_units,
        "window byte": window,
    }
    return {
        "LUT4": common
        | {
            "way of byte alignment": config.pixels * (taps + taps // 2) * config.granule,
            "operand": lanes * taps if config.depthwise else 0,
        },
        "TRELLIS_FF": common | {"parameter byte": lanes * taps * config.parameter_words},
    }


@cache
def read_coefficients(path: Path = COEFFICIENTS_FILE) -> dict[str, dict[str, float]]:
    """Coefficients as `benchmarks/resources.py` wrote them: fitted primitive -> part -> primitives of each.

    Raises
    ------
    ConfigError
        If the file does not have a coefficient for each of `parts`.
    """
    coefficients = json.loads(path.read_text())["coefficients"]
    for name, terms in parts(AcceleratorConfig(), 0).items():
        if set(coefficients.get(name, ())) != set(terms):
            raise ConfigError(f"{path.name}: not the terms of the model for {name}; run benchmarks/resources.py")
    return coefficients


def estimate(
    config: AcceleratorConfig, lut_multipliers: int, coefficients: dict[str, dict[str, float]] | None = None
) -> Resources:
    """Primitives of the complete system with this engine, from the fitted coefficients (default: the package's).

    Raises
    ------
    ConfigError
        If a memory is deeper than a block RAM.
    """
    coefficients = coefficients or read_coefficients()
    fitted = {
        name: round(sum(coefficients[name][part] * count for part, count in terms.items()))
        for name, terms in parts(config, lut_multipliers).items()
    }
    if config.product_registers:
        fitted["TRELLIS_FF"] += PRODUCT_BITS * config.multipliers
    if config.elementwise_mul:
        fitted["LUT4"] += FACTOR_GATES * config.lanes
        # The byte before, where the window has one column.
        fitted["TRELLIS_FF"] += 8 * config.lanes if config.window_columns == 1 else 0
    if config.tables:
        fitted["LUT4"] += TABLE_LUTS * config.requant_units
        fitted["TRELLIS_FF"] += TABLE_REGISTERS * config.requant_units
    return Resources(
        LUT4=fitted["LUT4"],
        TRELLIS_FF=fitted["TRELLIS_FF"],
        DP16KD=block_rams(config),
        MULT18X18D=dsp_blocks(config, lut_multipliers),
    )


def limits(board: Board) -> dict[str, int]:
    """What a configuration may take of each primitive of the board.

    Raises
    ------
    ConfigError
        If the model was not fitted to the board's device family.
    """
    if not set(HEADROOM) <= set(board.primitives):
        raise ConfigError(f"{board.name}: there is no resource model of its device family; explore for an ECP5 board")
    shares = {name: int(board.primitives[name] * share) for name, share in HEADROOM.items()}
    return shares | {"MULT18X18D": board.dsp_blocks}


def fits(board: Board, resources: Resources) -> bool:
    """Whether the resources are within `limits`."""
    return all(resources.to_dict()[name] <= limit for name, limit in limits(board).items())
