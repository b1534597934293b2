"""The table of networks on a board with external memory: what each list takes, and where its cycles go.

    python benchmarks/external_memory.py                 the zoo's networks that are larger than the chip
    python benchmarks/external_memory.py --model FILE    another one, printed only
    python benchmarks/external_memory.py --rtl           the last one in RTL with the SDRAM

Cycles are those of the cost models (`compiler/cost.py`, `compiler/transfers.py`). Writes
benchmarks/results/external_memory.json and the table in docs/external-memory.md. MLPerf Tiny's larger image
classification, MobileNetV2 and ResNet-18 are in no package that we use: their topologies stand for them, with random
weights (`tests/topologies.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from run import write_readme

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nnloom.arch.artifact import Artifact, HostPlan, Manifest
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.boards import Board, get
from nnloom.compiler import zoo
from nnloom.compiler.cost import layer_cycles
from nnloom.compiler.emit import Emitted
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.transfers import memory_timing, region_cycles
from nnloom.hw.sdram_timing import SDRAM_CHIPS
from nnloom.runtime.devices.external_memory import ExternalMemory
from nnloom.runtime.devices.serial import open_serial, parse_serial
from nnloom.sim.scoreboard import GoldenScoreboard
from nnloom.sim.virtual_board import SimulatedSdram, VirtualBoard
from tests.topologies import TOPOLOGIES, write_topology

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "external-memory.md"
RESULTS = ROOT / "benchmarks" / "results" / "external_memory.json"
BEGIN, END = "<!-- networks: written by benchmarks/external_memory.py -->", "<!-- end of networks -->"
BOARD = "ulx3s-85f-sdram"
NETWORKS = (
    "image_classification",
    "visual_wake_words",
    "anomaly_detection",
    "keyword_spotting_on_off_v3",
    "keyword_spotting_pacman_v3",
    "rock_paper_scissors",
    "image_example1",
    "fingerprint_signature_generator",
)


def measure(name: str, file: Path, board: Board) -> dict[str, Any]:
    """A network on a board: engine's share, parts, cycles of its lists."""
    fitted = fit(read_model(file), board.config, memory=memory_timing(board))
    emitted: Emitted = fitted.emitted
    config: AcceleratorConfig = board.config
    row: dict[str, Any] = {
        "network": name,
        "engine_share": round(fitted.engine_share, 4),
        "regions": len(emitted.regions),
        "parts": emitted.parts,
        "bytes": int(emitted.weights.size) + 4 * len(emitted.program),
        **moved_bytes(config, emitted),
        "programs": sum(sum(layer_cycles(config, item.descriptors)) for item in emitted.regions),
    }
    if emitted.parts:
        lists = region_cycles(board, config, emitted)
        for field in ("programs", "weights", "tensors", "control", "overlapped"):
            row[field] = sum(getattr(cycles, field) for cycles in lists.values())
    return row


def moved_bytes(config: AcceleratorConfig, emitted: Emitted) -> dict[str, int]:
    """Bytes of rows of tensors that an inference brings from external memory and takes there."""
    total = {"rows_in": 0, "rows_out": 0}
    for item in emitted.regions:
        strides = [location.row_stride * config.granule for location in item.region.external]
        for part in item.region.parts:
            total["rows_in"] += sum(rows.count * strides[rows.tensor] for rows in part.loads)
            total["rows_out"] += sum(rows.count * strides[rows.tensor] for rows in part.stores)
    return total


def run_in_rtl(file: Path, board: Board) -> dict[str, Any]:
    """A network of one region in the RTL of the whole system, SDRAM controller and chip included, every write of the
    engine compared with the golden model's: cycles of its list, and those predicted."""
    emitted = fit(read_model(file), board.config, memory=memory_timing(board)).emitted
    (item,) = emitted.regions
    region = item.region
    manifest = Manifest(
        model=file.stem,
        model_sha256="",
        board=board.name,
        cpu="",
        config=board.config,
        inputs=(),
        outputs=(),
        regions=(region,),
        host=HostPlan(),
    )
    artifact = Artifact(file, manifest, emitted.program, emitted.weights, emitted.tables)
    memory = SimulatedSdram(chip=SDRAM_CHIPS[board.external_memory], clock_hz=board.clock_hz)
    with VirtualBoard(board.config, memory=memory, progress=print) as virtual:
        port, baud, seconds = parse_serial(virtual.device.removeprefix("serial:"))
        with open_serial(port, baud, frame_seconds=seconds) as device:

            def fill(external: ExternalMemory) -> None:
                virtual.fill_memory(external.image)
                external.note_content()

            with patch.object(ExternalMemory, "load", fill):
                device.timeout_seconds = 600.0
                device.load(artifact)
            rng = np.random.default_rng(1)
            inputs = [rng.integers(-128, 128, location.shape, np.int8) for location in region.inputs]
            result = device.run_region(region, inputs)
            GoldenScoreboard(artifact.image).check(region, inputs, virtual.writes(), result.program_cycles)
    (predicted,) = region_cycles(board, board.config, emitted).values()
    assert result.list_cycles is not None
    return {"cycles": result.list_cycles, "predicted": predicted.total, "parts": emitted.parts}


def table(rows: list[dict[str, Any]], board: Board) -> str:
    """Markdown."""
    lines = [
        "| network | engine's share | regions, parts | loaded once, bytes | rows in, out, bytes | computing, ms "
        "| weights, ms | rest, ms | of these at once, ms | an inference, ms | parts over the line, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:

        def ms(*names: str, less: str = "", row: dict[str, Any] = row) -> str:
            cycles = sum(row.get(name, 0) for name in names) - row.get(less, 0)
            return f"{1e3 * cycles / board.clock_hz:.2f}"

        cells = [
            row["network"],
            f"{100 * row['engine_share']:.0f} %",
            f"{row['regions']}, {row['parts'] or '-'}",
            f"{row['bytes']:,}",
            f"{row['rows_in']:,}, {row['rows_out']:,}" if row["rows_in"] else "-",
            ms("programs"),
            ms("weights"),
            ms("tensors", "control"),
            ms("overlapped"),
            ms("programs", "weights", "tensors", "control", less="overlapped"),
            f"{10 * row['bytes'] / board.baud:.1f}" if row["parts"] else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--activations", type=int, metavar="BYTES", help="with --model: activation memory")
    parser.add_argument("--weights", type=int, metavar="WORDS", help="with --model: weight memory")
    parser.add_argument("--rtl", action="store_true", help="run the last network in RTL (half an hour, or less)")
    options = parser.parse_args()
    board = get(BOARD)
    sizes = {"activation_bytes": options.activations, "weight_words": options.weights}
    config = dataclasses.replace(board.config, **{name: size for name, size in sizes.items() if size})
    board = dataclasses.replace(board, config=config)
    try:
        if options.model:
            print(table([measure(path.name, path, board) for path in options.model], board))
            return 0
        rows = [measure(name, zoo.fetch(name), board) for name in NETWORKS]
        with tempfile.TemporaryDirectory(prefix="nnloom-") as folder:
            files = {name: write_topology(name, Path(folder)) for name in TOPOLOGIES}
            rows += [measure(f"{name} (random weights)", file, board) for name, file in files.items()]
            config = dataclasses.replace(board.config, weight_words=2048)
            larger = dataclasses.replace(board, config=config)
            name = "larger image classification"
            rows.append(measure(f"{name} with 2,048 words of weights", files[name], larger))
            rtl = run_in_rtl(files[name], larger) if options.rtl else json.loads(RESULTS.read_text()).get("rtl")
    except NnloomError as error:
        parser.exit(1, f"error: {error}\n")
    text = ",\n  ".join(json.dumps(row) for row in rows)
    head = '{\n "command": "python benchmarks/external_memory.py",\n'
    head += f' "board": {json.dumps(board.name)},\n "clock_mhz": {board.clock_hz / 1e6:g},\n'
    head += f' "rtl": {json.dumps(rtl)},\n "networks": [\n  '
    write_atomically(RESULTS, f"{head}{text}\n ]\n}}\n".encode())
    markdown = table(rows, board)
    write_readme(markdown, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
