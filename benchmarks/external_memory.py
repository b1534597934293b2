"""The table of networks on a board with external memory: what each list takes, and where its cycles go.

    python benchmarks/external_memory.py                 the zoo's networks that are larger than the chip
    python benchmarks/external_memory.py --model FILE    another one, printed only

Cycles are those of the cost models (`compiler/cost.py`, `compiler/transfers.py`). Writes
benchmarks/results/external_memory.json and the table in docs/external-memory.md. MLPerf Tiny's larger image
classification is in no package: its topology, ResNet-8 with 40 filters instead of 16, stands for it, with random
weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import write_readme

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
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
from tests.tflite_models import ModelWriter

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
        "programs": sum(sum(layer_cycles(config, item.descriptors)) for item in emitted.regions),
    }
    if emitted.parts:
        lists = region_cycles(board, config, emitted)
        for field in ("programs", "weights", "tensors", "control", "overlapped"):
            row[field] = sum(getattr(cycles, field) for cycles in lists.values())
    return row


def larger_resnet(folder: Path) -> Path:
    """ResNet-8 with 40 filters in its first layers: 76.5 M multiply-accumulates."""
    m, filters = ModelWriter(1), 40
    x = m.conv(m.input((1, 32, 32, 3)), filters)
    x = m.add(x, m.conv(m.conv(x, filters), filters, activation=None), "relu")
    for more in (2, 4):
        y = m.conv(m.conv(x, more * filters, strides=(2, 2)), more * filters, activation=None)
        x = m.add(m.conv(x, more * filters, (1, 1), (2, 2), activation=None), y, "relu")
    x = m.reshape(m.pool(x, "AVERAGE", (8, 8), (8, 8)), (1, 4 * filters))
    file = folder / "resnet.tflite"
    file.write_bytes(m.finish(m.softmax(m.dense(x, 10))))
    return file


def table(rows: list[dict[str, Any]], board: Board) -> str:
    """Markdown."""
    lines = [
        "| network | engine's share | regions, parts | loaded once, bytes | computing, ms | weights, ms | rest, ms "
        "| of these at once, ms | an inference, ms | the same over the line, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
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
    options = parser.parse_args()
    board = get(BOARD)
    if options.activations:
        config = dataclasses.replace(board.config, activation_bytes=options.activations)
        board = dataclasses.replace(board, config=config)
    try:
        if options.model:
            print(table([measure(path.name, path, board) for path in options.model], board))
            return 0
        rows = [measure(name, zoo.fetch(name), board) for name in NETWORKS]
        with tempfile.TemporaryDirectory(prefix="nnloom-") as folder:
            file = larger_resnet(Path(folder))
            rows.append(measure("larger image classification", file, board))
            config = dataclasses.replace(board.config, activation_bytes=131072)
            larger = dataclasses.replace(board, config=config)
            rows.append(measure("the same with 128 KiB of activation memory", file, larger))
    except NnloomError as error:
        parser.exit(1, f"error: {error}\n")
    text = ",\n  ".join(json.dumps(row) for row in rows)
    head = '{\n "command": "python benchmarks/external_memory.py",\n'
    head += f' "board": {json.dumps(board.name)},\n "clock_mhz": {board.clock_hz / 1e6:g},\n "networks": [\n  '
    write_atomically(RESULTS, f"{head}{text}\n ]\n}}\n".encode())
    markdown = table(rows, board)
    write_readme(markdown, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    print(markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
