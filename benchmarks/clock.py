"""Clock rates after place and route: the multiplier array alone, and the complete system over placement seeds.

    python benchmarks/clock.py array           multipliers, adder trees and accumulators alone, between registers
    python benchmarks/clock.py memories        the same with the weights in block RAM
    python benchmarks/clock.py system 1 2 3    the ULX3S-85F system with these seeds (a quarter of an hour each)

Results go to benchmarks/results/clock.json; what was measured before is kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from nnloom import boards
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import BuildError
from nnloom.arch.files import write_atomically
from nnloom.boards import flow
from nnloom.hw.ecp5 import DspMultiplier, Ecp5Technology
from nnloom.hw.emit import emit_rtlil
from nnloom.hw.mac_array import MacArray
from nnloom.hw.technology import Technology

DSP_ROWS = (10, 34, 58)
DSP_COLUMNS = (4, 13, 22, 31, 40, 49, 58, 69, 78, 87, 96, 105, 114)
"""Where the LFE5U-85F has DSP blocks of four multipliers, as nextpnr counts."""
RESULTS = Path(__file__).parent / "results" / "clock.json"


class ArrayAlone(wiring.Component):
    """The array between operand registers, weights, and a register tree that folds the accumulators.

    The weights are registers of a shift register; with `memories` block RAM, which is only read.

    Members
    -------
    data : In; shifted into the operands; folded : Out
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology, *, memories: bool) -> None:
        self.config = config
        self.technology = technology
        self.memories = memories
        super().__init__({"clk25": In(1), "data": In(1), "folded": Out(1)})

    def elaborate(self, platform: object) -> Module:
        from amaranth.hdl import ClockDomain, ClockSignal

        m = Module()
        config = self.config
        m.domains.sync = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("sync").eq(self.clk25)
        m.submodules.mac = mac = MacArray(config, self.technology)
        word = Signal(8, reset_less=True)
        vector = Signal(8 * config.taps, reset_less=True)
        m.submodules.vectors = vectors = self.technology.fanout(width=len(vector), count=config.lanes)
        m.d.sync += [
            word.eq(Cat(word[1:], self.data)),
            vector.eq(Cat(vector[8:], word)),
            mac.multiply.eq(word[0]),
            mac.first.eq(word[1]),
        ]
        m.d.comb += vectors.value.eq(vector)
        for lane, weights in enumerate(self._from_memories(m) if self.memories else self._from_registers(m, word)):
            m.d.comb += [
                mac.weights[lane].as_value().eq(weights),
                mac.operands[lane].as_value().eq(vectors.copies[lane]),
            ]
        values = [lane for pixel in mac.accumulators for lane in pixel]
        values = [value.as_unsigned() for value in values] + [Cat(mac.maxima)]
        while len(values) > 1 or len(values[0]) > 1:
            if len(values) == 1:
                values = [values[0][::2], values[0][1::2]]
            registers = []
            for pair in zip(values[::2], [*values[1::2], values[0]], strict=False):
                register = Signal(max(map(len, pair)), reset_less=True)
                m.d.sync += register.eq(pair[0] ^ pair[1])
                registers.append(register)
            values = registers
        m.d.comb += self.folded.eq(values[0])
        return m

    def _from_registers(self, m: Module, word: Signal) -> Iterator[Value]:
        """The weights of each lane; a byte more is shifted in with each step."""
        for lane in range(self.config.lanes):
            weights = Signal(8 * self.config.taps, name=f"weights_{lane}", reset_less=True)
            m.d.sync += weights.eq(Cat(weights[8:], word))
            word = weights[:8]
            yield weights

    def _from_memories(self, m: Module) -> Iterator[Value]:
        """The weights of each lane: one word after the other."""
        config = self.config
        address = Signal(range(config.weight_words), reset_less=True)
        m.d.sync += address.eq(address + 1)
        m.submodules.addresses = addresses = self.technology.fanout(width=len(address), count=config.lanes)
        m.d.comb += addresses.value.eq(address)
        for lane in range(config.lanes):
            ram = self.technology.ram(width=8 * config.taps, depth=config.weight_words)
            m.submodules[f"weights_{lane}"] = ram
            m.d.comb += ram.r_addr.eq(addresses.copies[lane])
            yield ram.r_data


class PlacedTechnology(Ecp5Technology):
    """DSP blocks of the LFE5U-85F side by side, in the order in which the array makes them: those of a lane together.

    Left to itself, nextpnr's placer spreads a lane's products over the device. In the complete system such a placement
    stretches the requantization units instead, so its blocks are free.
    """

    def __init__(self) -> None:
        super().__init__()
        rows = [[(x + z, y, z) for x in DSP_COLUMNS for z in (0, 1, 4, 5)] for y in DSP_ROWS]
        snake = [*rows[0], *reversed(rows[1]), *rows[2]]
        self._sites = iter(f"X{x}/Y{y}/MULT18_{z}" for x, y, z in snake[6:])

    def multiplier(self, *, a_width: int, b_width: int) -> DspMultiplier:
        return DspMultiplier(a_width=a_width, b_width=b_width, site=next(self._sites))


def measure_array(target_mhz: float, seed: int, *, memories: bool) -> dict[str, object]:
    """Place and route the array alone. Returns fmax, target and resources."""
    board = boards.get("ulx3s-85f")
    board = replace(
        board, crystal_hz=target_mhz * 1e6, pins={"clk25": board.pins["clk25"], "data": "M1", "folded": "L4"}
    )
    config = replace(board.config, pixels=1, product_registers=False)
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        flow.synthesize(board, emit_rtlil(ArrayAlone(config, PlacedTechnology(), memories=memories), "top"), folder)
        result = flow.route(board, folder, clock_hz=target_mhz * 1e6, seed=seed)
    return {"fmax_mhz": round(result[0], 2), "target_mhz": target_mhz, "seed": seed, "resources": result[1]}


def measure_system(seed: int) -> dict[str, object]:
    """Place and route the complete system of the board. Returns fmax, clock and resources."""
    board = boards.get("ulx3s-85f")
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        rtlil = flow.system_rtlil(board, board.config, flow.lut_multipliers(board, board.config))
        flow.synthesize(board, rtlil, folder)
        clock_hz = flow.system_clock_hz(board)
        fmax, resources = flow.route(board, folder, clock_hz=clock_hz, seed=seed)
    return {"fmax_mhz": round(fmax, 2), "clock_mhz": clock_hz / 1e6, "seed": seed, "resources": resources}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["array", "memories", "system"])
    parser.add_argument("seeds", nargs="*", type=int, help="placement seeds (default: the board's)")
    parser.add_argument("--target", type=float, default=150, help="MHz asked for the array (default: 150)")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in arguments.seeds or [boards.get("ulx3s-85f").seed]:
        try:
            if arguments.what == "system":
                row = measure_system(seed)
            else:
                row = measure_array(arguments.target, seed, memories=arguments.what == "memories")
        except BuildError as error:
            parser.exit(1, f"error: {error}\n")
        rows = [r for r in results.get(arguments.what, []) if r["seed"] != seed]
        results[arguments.what] = sorted([*rows, row], key=lambda r: r["seed"])
        write_atomically(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
        print(f"{arguments.what}, seed {seed}: {row['fmax_mhz']} MHz")


if __name__ == "__main__":
    main()
