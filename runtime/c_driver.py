"""The C driver of an artifact: `nnloom.c` as it is, and what it needs to know of protocol, board and network.

The sources lie in `runtime/c`; `nnloom_map.h` is made from `nnloom.arch.isa` and `nnloom.arch.link`, `model.h` from an
artifact, with the frames that load it cut as the driver sends them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dtypes import UINT8
from nnloom.arch.errors import ConfigError
from nnloom.arch.isa import ISA_VERSION, MAGIC, HostAddress, Register, Status
from nnloom.arch.link import (
    CRC_BYTES,
    HEADER_BYTES,
    HELLO_WORDS,
    LARGEST_WORDS,
    LINK_VERSION,
    RESPONSE_BYTES,
    Answer,
    Opcode,
    Step,
    script_word,
)
from nnloom.arch.scripts import Exchange, RegionScript

from .devices.recorder import BusRecorder
from .devices.serial import bursts

__all__ = ["driver_files", "map_header", "model_header"]

SOURCES = Path(__file__).parent / "c"
FRAME_WORDS = 64
"""Words of a frame, if nothing needs more: with buffers of a quarter of the protocol's largest the driver suits a
microcontroller."""
MOST_FRAMES = 250
"""Frames of an inference's inputs: their sequence numbers have to tell them apart."""


def map_header(frame_words: int = FRAME_WORDS) -> str:
    """`nnloom_map.h`: the numbers of protocol and registers, for frames of so many words."""
    largest = HEADER_BYTES + 4 * frame_words + CRC_BYTES
    numbers: dict[str, int] = {
        "LINK_VERSION": LINK_VERSION,
        "ISA_VERSION": ISA_VERSION,
        "MAGIC": MAGIC,
        "FRAME_WORDS": frame_words,
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


def _bursts(name: str, accesses: Sequence[tuple[int, int]], frame_words: int) -> tuple[str, int]:
    """C tables of frames that write words, and their number; C has no empty ones."""
    if not accesses:
        return "", 0
    addresses, words = np.array(accesses, np.uint32).T
    found = list(bursts(addresses, frame_words))
    text = _table("uint32_t", f"{name}_words", _lines(words))
    text += _table(
        "nnl_burst",
        name,
        (f"{{0x{b.address:08x}, {b.jump}, {b.run}, {b.count}, {name}_words + {first}}}" for first, b in found),
    )
    return text, len(found)


def _tensor(config: AcceleratorConfig, t: TensorLocation, exchanges: Sequence[Exchange]) -> str:
    """A tensor as it is on the line."""
    whole = sum(exchange.size for exchange in exchanges) == t.rows * t.columns * t.channels
    row_bytes = t.columns * t.channels if whole else t.row_stride * config.granule
    pixel_bytes = t.channels if whole else t.pixel_stride
    banks = ", ".join(str(exchange.size) for exchange in exchanges)
    return f"{{{t.rows}, {t.columns}, {t.channels}, {row_bytes}, {pixel_bytes}, {{{banks}}}}}"


def _about(direction: str, index: int, t: TensorLocation) -> str:
    name = t.name.encode("ascii", "backslashreplace").decode().replace("*/", "* /")
    shape = " x ".join(map(str, t.shape))
    less = ", uint8 in the network: here 128 less" if t.dtype == UINT8 else ""
    return (
        f"/* {direction} {index}: {name!r}, {shape}, scale {t.scale!r}, zero point {t.zero_point}{less} */\n"
        f"#define NNL_{direction.upper()}_{index}_BYTES {t.rows * t.columns * t.channels}\n"
    )


def _calls(script: RegionScript) -> list[list[Step]]:
    """What the board does for each program of a region."""
    parts = script.region.parts
    if not parts:
        return [script.steps]
    return [script.program(0, takes=i == 0, gives=i == len(parts) - 1) for i in range(len(parts))]


def _words(steps: Iterable[Step]) -> NDArray[np.uint32]:
    return np.concatenate([step.words() for step in steps])


def _region(
    artifact: Artifact, recorder: BusRecorder, number: int, script: RegionScript, word: int, frame_words: int
) -> str:
    """C tables of a region, whose scripts begin at a word, `nnl_region_NUMBER_calls` the last of them."""
    config, region = artifact.manifest.config, script.region
    text, entries = "", []
    inputs = sum(e.size for tensor in script.inputs for e in tensor)
    for index, steps in enumerate(_calls(script)):
        table, count = "", 0
        name = f"nnl_region_{number}_part_{index}"
        if region.parts:
            recorder.load_part(region.parts[index])
            table, count = _bursts(name, recorder.take_accesses(), frame_words)
        text += table
        takes, gives = index == 0, index == max(1, len(region.parts)) - 1
        frames = -(-(4 + takes * inputs) // (4 * frame_words + 8))
        entries.append(
            f"{{{count}, {name if table else 0}, {script_word(word)}, {frames}, {int(takes)}, {int(gives)}}}"
        )
        word += len(_words(steps))
    for direction, tensors in (("inputs", script.inputs), ("outputs", script.outputs)):
        locations = getattr(region, direction)
        rows = [_tensor(config, t, exchanges) for t, exchanges in zip(locations, tensors, strict=True)]
        text += _table("nnl_tensor", f"nnl_region_{number}_{direction}", rows)
    return text + _table("nnl_call", f"nnl_region_{number}_calls", entries)


def _needed_words(scripts: Sequence[RegionScript], script_words: int) -> int:
    """Words of a frame: the scripts go in one, an answer too, and the inputs in not too many."""
    answers = [sum(e.size for tensor in s.outputs for e in tensor) + 8 for s in scripts]
    inputs = [sum(e.size for tensor in s.inputs for e in tensor) + 4 for s in scripts]
    needed = max(FRAME_WORDS, script_words, -(-max(answers) // 4), -(-max(inputs) // (4 * MOST_FRAMES)))
    if script_words > LARGEST_WORDS or needed > LARGEST_WORDS < -(-max(inputs) // (4 * MOST_FRAMES)):
        raise ConfigError("the C driver has no room for so many regions and parts, or inputs of this size")
    return min(needed, LARGEST_WORDS)


def _scripts(artifact: Artifact) -> tuple[list[RegionScript], NDArray[np.uint32], int]:
    """The regions' scripts, the words that the board keeps of all of them, and the words of a frame."""
    manifest = artifact.manifest
    if not manifest.regions:
        raise ConfigError(
            f"{artifact.path}: nothing of {manifest.model} runs on the accelerator, so there is no driver"
        )
    scripts = [RegionScript.of(manifest.config, region, packed=manifest.packs) for region in manifest.regions]
    kept = np.concatenate([_words(steps) for script in scripts for steps in _calls(script)])
    return scripts, kept, _needed_words(scripts, len(kept))


def _lines(words: NDArray[np.uint32]) -> list[str]:
    return [", ".join(f"0x{int(word):08x}" for word in words[i : i + 8]) for i in range(0, len(words), 8)]


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
    scripts, kept, frame_words = _scripts(artifact)
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
    images, count = _bursts("nnl_images", recorder.take_accesses(), frame_words)
    text.append(images)
    word = 0
    for number, script in enumerate(scripts):
        text.append(_region(artifact, recorder, number, script, word, frame_words))
        word += sum(len(_words(steps)) for steps in _calls(script))
    entries = []
    for number, script in enumerate(scripts):
        name, counts = f"nnl_region_{number}", (len(script.inputs), len(script.outputs), len(_calls(script)))
        entries.append(f"{{{name}_inputs, {name}_outputs, {name}_calls, {', '.join(map(str, counts))}}}")
    text.append(_table("nnl_region", "nnl_regions", entries))
    text.append(_table("uint32_t", "nnl_script", _lines(kept)))
    loads = f"{count}, nnl_images" if count else "0, 0"
    fields = (
        f"0x{config.hash:08x}, {loads}, nnl_regions, nnl_script, {len(scripts)}, {len(kept)}, {int(manifest.packs)}"
    )
    text.append(f"static const nnl_model_t nnl_model = {{{fields}}};\n#endif")
    return "\n".join(text) + "\n"


def driver_files(artifact: Artifact) -> dict[str, str]:
    """Name -> text of the files of an artifact's driver.

    Raises
    ------
    ConfigError
        As `model_header`.
    """
    sources = {path.name: path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".c", ".h")}
    *_, frame_words = _scripts(artifact)
    return {**sources, "nnloom_map.h": map_header(frame_words), "model.h": model_header(artifact)}
