"""The table of latencies over the serial line: what a user waits for, beside what the engine takes.

    python benchmarks/latency.py           every board with a serial line, from bytes on the line and the cost model
    python benchmarks/latency.py --rtl     first the default board's networks in RTL of its complete system, the board's
                                           driver on the other end of the line: latency of one inference, and of a batch

Latency is from the start of the first byte of a request to the end of the last one of the answer; the time that a host
takes, and its USB adapter, comes on top. The line's limit is that of the tensors alone: the longer of inputs and
outputs, 10 bits a byte. Writes benchmarks/results/latency.json and the tables in README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from run import NETWORKS, random_inputs, write_readme

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.files import write_atomically
from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.link import DONE_REGISTERS, LARGEST_WORDS, Answer, Opcode, Request, Response, script_word
from nnloom.arch.scripts import RegionScript
from nnloom.boards import Board, all_boards, get
from nnloom.boards.flow import system_clock_hz
from nnloom.boards.zynq import ZynqBoard
from nnloom.compiler import zoo
from nnloom.compiler.api import compile
from nnloom.compiler.cost import layer_cycles
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.hw.uart import baud_divisor
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.base import HostBusDevice
from nnloom.runtime.devices.recorder import BusRecorder
from nnloom.runtime.devices.runs import Run
from nnloom.runtime.devices.serial import bursts
from nnloom.sim.virtual_board import VirtualBoard

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency.json"
BEGIN, END = "<!-- latency: written by benchmarks/latency.py -->", "<!-- end of latency -->"
DEFAULT = "ulx3s-85f"
BATCHES = {"keyword_spotting": 8, "image_classification": 4, "visual_wake_words": 1, "anomaly_detection": 8}
"""Further inferences of the batch that is measured in RTL."""
MOST_WEIGHTS = 50_000
"""Bytes that are loaded over the simulated line."""


def up(requests: Iterator[Request] | Sequence[Request]) -> int:
    """Bytes of frames to the board."""
    return sum(len(request.encode()) for request in requests)


def answer(size: int, answer: Answer = Answer.OK) -> int:
    """Bytes of a frame from the board whose content has no zero byte."""
    words = np.full(size // 4, 0x01010101, np.uint32)
    return len(Response(answer=answer, sequence=1, session=0x101, words=words, rest=b"\1" * (size % 4)).encode())


def scripted(config: AcceleratorConfig, region: Region, *, packed: bool) -> tuple[int, int]:
    """Bytes to the board and back of a region that is one request."""
    script = RegionScript.of(config, region, packed=packed)
    ones = [np.ones((t.rows, t.columns, t.channels), t.dtype) for t in region.inputs]
    run = Run(word=script_word(0), data=script.pack(ones), answers=script.answer_sizes(LARGEST_WORDS))
    return up([frame.request for frame in run.frames(LARGEST_WORDS)]), sum(answer(size) for size in run.answers)


def in_parts(artifact: Artifact, region: Region) -> tuple[int, int]:
    """Bytes of a region whose parts are loaded for each inference, a request for each step."""
    recorder, sent, back = BusRecorder(), 0, 0
    recorder.load(artifact)
    recorder.take_accesses()
    status = Request(opcode=Opcode.READ, sequence=0, session=0, address=Register.STATUS, count=1)

    def write() -> None:
        nonlocal sent, back
        addresses, words = np.array(recorder.take_accesses(), np.uint32).T
        for first, burst in bursts(addresses, LARGEST_WORDS):
            part = words[first : first + burst.count]
            sent += up([Request(**{**vars(burst), "opcode": Opcode.WRITE, "count": 0, "words": part})])
        sent += up([status])
        back += answer(4)  # those of the writes are on the line beside what follows them

    recorder.write_tensors(region.inputs, [np.ones((t.rows, t.columns, t.channels), t.dtype) for t in region.inputs])
    write()
    for part in region.parts:
        recorder.load_part(part)
        write()
        start = np.array([0, 1], np.uint32)
        sent += up([Request(opcode=Opcode.START, sequence=0, session=0, address=Register.PROGRAM_START, words=start)])
        back += answer(0) + answer(4 * len(DONE_REGISTERS), Answer.DONE)
    for location in region.outputs:
        for bank in range(artifact.manifest.config.row_banks):
            count = location.bank_bytes(artifact.manifest.config, bank) // 4
            addresses = (HostAddress.ACTIVATIONS + 4 * np.arange(count)).astype(np.uint32)
            reads = [burst for _, burst in bursts(addresses, LARGEST_WORDS)]
            sent += up(reads)
            back += sum(answer(4 * read.count) for read in reads)
    return sent, back


def predict(name: str, board: Board, folder: Path) -> dict[str, Any]:
    """A network on a board: bytes on the line, cycles of the engine, and the sum of both."""
    fitted = fit(read_model(zoo.fetch(name)), board.config)
    clock_hz = system_clock_hz(board)
    divisor = baud_divisor(clock_hz, board.baud)
    sent = back = inputs = outputs = 0
    artifact: Artifact | None = None
    for item in fitted.emitted.regions:
        region = item.region
        if region.parts and artifact is None:
            path = folder / f"{board.name}-{name}"
            compile(zoo.fetch(name), board=board.name, output=path)
            artifact = Artifact.load(path)
        if region.parts:
            more = in_parts(artifact, region)
        else:
            more = scripted(board.config, region, packed=board.link_packing)
        sent, back = sent + more[0], back + more[1]
        inputs += sum(t.rows * t.columns * t.channels for t in region.inputs)
        outputs += sum(t.rows * t.columns * t.channels for t in region.outputs)
    cycles = sum(sum(layer_cycles(board.config, item.descriptors)) for item in fitted.emitted.regions)
    byte_cycles = 10 * divisor
    return {
        "board": board.name,
        "network": name,
        "clock_mhz": clock_hz / 1e6,
        "baud": board.baud,
        "engine_share": round(fitted.engine_share, 4),
        "parts": fitted.emitted.parts,
        "tensor_bytes": [inputs, outputs],
        "line_bytes": [sent, back],
        "engine_ms": round(1e3 * cycles / clock_hz, 4),
        "line_ms": round(1e3 * byte_cycles * (sent + back) / clock_hz, 4),
        "latency_ms": round(1e3 * (cycles + byte_cycles * (sent + back)) / clock_hz, 4),
    }


_write_images = HostBusDevice._write_images


def _write_program(device: HostBusDevice, program: NDArray[np.uint32], weights: NDArray[np.uint8]) -> None:
    _write_images(device, program, weights[:0])


def measure(name: str, board: Board, folder: Path) -> dict[str, Any]:
    """A network in RTL of the board's complete system, by its driver; outputs compared with the CPU's.

    Many weights would take the simulated line hours: those stay out, and then outputs are not compared. Cycles do not
    depend on weights.
    """
    path, clock_hz = folder / name, system_clock_hz(board)
    compile(zoo.fetch(name), board=board.name, output=path)
    divisor = baud_divisor(clock_hz, board.baud)
    values = random_inputs(path)[: 2 + BATCHES[name]]
    whole = Artifact.load(path).weights.nbytes < MOST_WEIGHTS
    with VirtualBoard(board.config, divisor=divisor, packing=board.link_packing, progress=print) as virtual:
        # The simulation is slow: the driver has patience.
        device = f"serial:{virtual.port}?baud=1000&timeout=600"
        with (
            patch.object(HostBusDevice, "_write_images", _write_images if whole else _write_program),
            InferenceSession(path, "cpu") as cpu,
            InferenceSession(path, device, fallback=False) as session,
        ):

            def run(inputs: NDArray) -> Any:
                virtual.line_cycles()
                got, want = session.run(inputs), cpu.run(inputs)
                for key, value in want.items() if whole else ():
                    np.testing.assert_array_equal(got[key], value)
                return virtual.line_cycles()

            one, all_of_them = run(values[:1]), run(values[1:])
            stats, cycles = session.stats(), session.last_cycles
            (region,) = session.artifact.manifest.regions
    assert stats.device == type(stats.device)(), stats
    sizes = [sum(t.rows * t.columns * t.channels for t in tensors) for tensors in (region.inputs, region.outputs)]
    interval = (all_of_them.cycles - one.cycles) / BATCHES[name]
    return {
        "engine_cycles": cycles,
        "outputs_compared": whole,
        "line_bytes": [one.bytes_in, one.bytes_out],
        "cycles": one.cycles,
        "latency_ms": round(1e3 * one.cycles / clock_hz, 4),
        "batch": 1 + BATCHES[name],
        "interval_ms": round(1e3 * interval / clock_hz, 4),
        "limit_ms": round(1e3 * 10 * divisor * max(sizes) / clock_hz, 4),
        "of_limit": round(10 * divisor * max(sizes) / interval, 4),
    }


def title(name: str) -> str:
    """Of a column."""
    return name.replace("_", " ")


def table(rows: Sequence[dict[str, Any]], rtl: dict[str, dict[str, Any]]) -> str:
    """Markdown for the README: the default board in RTL, then all boards."""
    text = [
        "| ULX3S-85F, complete system in RTL | " + " | ".join(title(name) for name in NETWORKS) + " |",
        "|---" + "|---:" * len(NETWORKS) + "|",
    ]
    lines = {
        "engine alone, ms": lambda r: f"{1e3 * r['engine_cycles'] / 120e6:.3f}",
        "inference at 3 Mbaud, ms": lambda r: f"**{r['latency_ms']:.2f}**",
        "bytes to the board / back": lambda r: f"{r['line_bytes'][0]:,} / {r['line_bytes'][1]:,}",
        "one of a batch, ms": lambda r: f"{r['interval_ms']:.2f}",
        "of the line's limit": lambda r: f"{100 * r['of_limit']:.1f} %",
    }
    for label, cell in lines.items():
        text.append(f"| {label} | " + " | ".join(cell(rtl[name]) if name in rtl else "" for name in NETWORKS) + " |")
    text += [
        "",
        "| engine / inference over the line, ms | " + " | ".join(title(name) for name in NETWORKS) + " |",
        "|---" + "|---:" * len(NETWORKS) + "|",
    ]
    for board in dict.fromkeys(row["board"] for row in rows):
        mine = {row["network"]: row for row in rows if row["board"] == board}
        first = mine[NETWORKS[0]]
        cells = [_cell(mine[name]) for name in NETWORKS]
        text.append(f"| {board}, {first['clock_mhz']:g} MHz, {first['baud'] / 1e6:g} Mbaud | {' | '.join(cells)} |")
    text += [
        "",
        "First table: in RTL, the driver at the other end, from the first byte of the request to the last one of the",
        "answer. Second: bytes of the frames and predicted cycles. The host's and the USB adapter's time come on top.",
        "A network in parts is loaded over the line for each inference.",
    ]
    return "\n".join(text) + "\n"


def _cell(row: dict[str, Any]) -> str:
    note = f" ({row['parts']} parts)" if row["parts"] else ""
    return f"{_short(row['engine_ms'])} / {_short(row['latency_ms'])}{note}"


def _short(value: float) -> str:
    """Three digits."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def main() -> None:
    """Measure, and write results and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtl", action="store_true", help="first the default board in RTL: ten minutes or more")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="with --rtl: only these")
    options = parser.parse_args()
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rtl = before.get("rtl", {})
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        for name in (options.network or NETWORKS) if options.rtl else ():
            rtl[name] = measure(name, get(DEFAULT), folder)
            print(name, rtl[name], flush=True)
        write_atomically(RESULTS, (json.dumps({**before, "rtl": rtl}, indent=1) + "\n").encode())
        boards = [b for b in all_boards() if not isinstance(b, ZynqBoard) and not b.external_memory]
        rows = [predict(name, board, folder) for board in boards for name in NETWORKS]
    for row in rows:
        print(row)
    write_atomically(RESULTS, (json.dumps({"rtl": rtl, "boards": rows}, indent=1) + "\n").encode())
    if rtl:
        write_readme(table(rows, rtl), begin_mark=BEGIN, end_mark=END)


if __name__ == "__main__":
    main()
