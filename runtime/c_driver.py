"""The C driver of an artifact: `nnloom.c` as it is, and what it needs to know of protocol, board and network.

The sources lie in `runtime/c`; `nnloom_map.h` is made from `nnloom.arch.isa` and `nnloom.arch.link`, `model.h` from an
artifact, with the frames that load it cut as the driver sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nnloom.arch.artifact import Artifact, Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dtypes import UINT8
from nnloom.arch.errors import ConfigError
from nnloom.arch.isa import ISA_VERSION, MAGIC, HostAddress, Register, Status
from nnloom.arch.link import (
    CRC_BYTES,
    HEADER_BYTES,
    HELLO_WORDS,
    LINK_VERSION,
    RESPONSE_BYTES,
    Answer,
    Opcode,
)

from .devices.recorder import BusRecorder
from .devices.serial import bursts

__all__ = ["driver_files", "map_header", "model_header"]

SOURCES = Path(__file__).parent / "c"
FRAME_WORDS = 64
"""Most words of a frame: with buffers of a quarter of the protocol's largest the driver suits a microcontroller."""


def map_header() -> str:
    """`nnloom_map.h`: the numbers of protocol and registers."""
    largest = HEADER_BYTES + 4 * FRAME_WORDS + CRC_BYTES
    numbers: dict[str, int] = {
        "LINK_VERSION": LINK_VERSION,
        "ISA_VERSION": ISA_VERSION,
        "MAGIC": MAGIC,
        "FRAME_WORDS": FRAME_WORDS,
        "REQUEST_BYTES": HEADER_BYTES,
        "RESPONSE_BYTES": RESPONSE_BYTES,
        "HELLO_WORDS": len(HELLO_WORDS),
        "FRAME_BYTES": largest,
        "LINE_BYTES": largest + largest // 254 + 2,
        **{f"OPCODE_{o.name}": o for o in Opcode},
        **{f"ANSWER_{a.name}": a for a in Answer},
        **{f"ADDRESS_{a.name}": a for a in HostAddress},
        **{f"REGISTER_{r.name}": r for r in Register},
        **{f"STATUS_{s.name}": int(s) for s in Status},
    }
    lines = ["/* Made by nnloom: the numbers of docs/protocol.md and docs/isa.md. */"]
    lines += ["#ifndef NNLOOM_MAP_H", "#define NNLOOM_MAP_H"]
    lines += [
        f"#define NNL_{name} {int(value):#x}u" if value > 9 else f"#define NNL_{name} {int(value)}"
        for name, value in numbers.items()
    ]
    return "\n".join([*lines, "#endif"]) + "\n"


def _table(kind: str, name: str, items: Iterable[str]) -> str:
    return f"static const {kind} {name}[] = {{\n" + ",\n".join(f"    {item}" for item in items) + "\n};\n"


def _bursts(name: str, accesses: Sequence[tuple[int, int]]) -> tuple[str, int]:
    """C tables of frames that write words, and their number; C has no empty ones."""
    if not accesses:
        return "", 0
    addresses, words = np.array(accesses, np.uint32).T
    found = list(bursts(addresses, FRAME_WORDS))
    lines = [", ".join(f"0x{int(word):08x}" for word in words[i : i + 8]) for i in range(0, len(words), 8)]
    text = _table("uint32_t", f"{name}_words", lines)
    text += _table(
        "nnl_burst",
        name,
        (f"{{0x{b.address:08x}, {b.jump}, {b.run}, {b.count}, {name}_words + {first}}}" for first, b in found),
    )
    return text, len(found)


def _tensor(config: AcceleratorConfig, t: TensorLocation) -> str:
    banks = range(config.row_banks)
    address = ", ".join(
        f"0x{HostAddress.ACTIVATIONS + (bank * config.bank_granules + t.base) * config.granule:08x}" for bank in banks
    )
    words = ", ".join(str(t.bank_bytes(config, bank) // 4) for bank in banks)
    row_bytes = t.row_stride * config.granule
    return f"{{{t.rows}, {t.columns}, {t.channels}, {row_bytes}, {t.pixel_stride}, {{{address}}}, {{{words}}}}}"


def _about(direction: str, index: int, t: TensorLocation) -> str:
    name = t.name.encode("ascii", "backslashreplace").decode().replace("*/", "* /")
    shape = " x ".join(map(str, t.shape))
    less = ", uint8 in the network: here 128 less" if t.dtype == UINT8 else ""
    return (
        f"/* {direction} {index}: {name!r}, {shape}, scale {t.scale!r}, zero point {t.zero_point}{less} */\n"
        f"#define NNL_{direction.upper()}_{index}_BYTES {t.rows * t.columns * t.channels}\n"
    )


def _region(artifact: Artifact, recorder: BusRecorder, number: int, region: Region) -> tuple[str, str]:
    """C tables of a region, and its entry."""
    config = artifact.manifest.config
    text, entries = "", []
    for index, part in enumerate(region.parts):
        recorder.load_part(part)
        table, count = _bursts(f"nnl_region_{number}_part_{index}", recorder.take_accesses())
        text += table
        entries.append(f"{{0, {count}, nnl_region_{number}_part_{index}}}")
    text += _table("nnl_part", f"nnl_region_{number}_parts", entries or [f"{{{region.program_start}, 0, 0}}"])
    for direction, tensors in (("inputs", region.inputs), ("outputs", region.outputs)):
        text += _table("nnl_tensor", f"nnl_region_{number}_{direction}", [_tensor(config, t) for t in tensors])
    name = f"nnl_region_{number}"
    counts = f"{len(region.inputs)}, {len(region.outputs)}, {len(entries) or 1}"
    return text, f"{{{name}_inputs, {name}_outputs, {name}_parts, {counts}}}"


def model_header(artifact: Artifact) -> str:
    """`model.h`: `nnl_model`, and of each tensor the size, scale and zero point.

    Raises
    ------
    ConfigError
        If nothing of the network runs on the accelerator, or tensors of it lie in external memory.
    """
    manifest = artifact.manifest
    if any(region.external for region in manifest.regions):
        raise ConfigError(
            f"{artifact.path}: tensors of {manifest.model} lie in external memory, which the C driver does not use; "
            "compile it for a board without, or for one with more activation memory"
        )
    if not manifest.regions:
        raise ConfigError(
            f"{artifact.path}: nothing of {manifest.model} runs on the accelerator, so there is no driver"
        )
    recorder = BusRecorder()
    config = manifest.config
    text = [
        f"/* Made by `nnloom driver` for {manifest.board}, configuration 0x{config.hash:08x}. */",
        "#ifndef NNL_MODEL_H",
        "#define NNL_MODEL_H",
        '#include "nnloom.h"',
    ]
    several = len(manifest.regions) > 1
    for number, region in enumerate(manifest.regions):
        tensors: Sequence[tuple[str, int, TensorLocation]] = [
            *(("input", i, t) for i, t in enumerate(region.inputs)),
            *(("output", i, t) for i, t in enumerate(region.outputs)),
        ]
        prefix = f"region_{number}_" if several else ""
        text += [_about(f"{prefix}{direction}", index, t) for direction, index, t in tensors]
    recorder.load(artifact)
    images, count = _bursts("nnl_images", recorder.take_accesses())
    text.append(images)
    regions = [_region(artifact, recorder, number, region) for number, region in enumerate(manifest.regions)]
    text += [table for table, _ in regions]
    text.append(_table("nnl_region", "nnl_regions", [entry for _, entry in regions]))
    loads = f"{count}, nnl_images" if count else "0, 0"
    text.append(
        f"static const nnl_model_t nnl_model = {{0x{config.hash:08x}, {loads}, nnl_regions, {len(regions)}}};\n#endif"
    )
    return "\n".join(text) + "\n"


def driver_files(artifact: Artifact) -> dict[str, str]:
    """Name -> text of the files of an artifact's driver.

    Raises
    ------
    ConfigError
        As `model_header`.
    """
    sources = {path.name: path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".c", ".h")}
    return {**sources, "nnloom_map.h": map_header(), "model.h": model_header(artifact)}
