"""Networks on boards with external memory beside what multipliers and memory allow: a table and a roofline plot.

    python benchmarks/roofline.py                    all rows
    python benchmarks/roofline.py --only VGG16-224   some of them; the others keep what was measured before

Cycles are those of the cost models (`compiler/cost.py`, `compiler/transfers.py`). The compute bound counts the
multiply-accumulates at one for each multiplier and cycle, the memory bound every weight and the network's inputs and
outputs once at the memory's rate. Writes benchmarks/results/roofline.json, the table in docs/external-memory.md and
docs/roofline.svg.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from run import write_readme

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.arch.lists import Lists, Move
from nnloom.boards import Board, get
from nnloom.compiler import zoo
from nnloom.compiler.cost import layer_cycles
from nnloom.compiler.fit import fit
from nnloom.compiler.frontend import read_model
from nnloom.compiler.ir import Graph
from nnloom.compiler.transfers import MemoryTiming, external_timing, region_cycles
from tests.topologies import LARGE_TOPOLOGIES, TOPOLOGIES, write_topology

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "external-memory.md"
PLOT = ROOT / "docs" / "roofline.svg"
RESULTS = ROOT / "benchmarks" / "results" / "roofline.json"
BEGIN, END = "<!-- bounds: written by benchmarks/roofline.py -->", "<!-- end of bounds -->"
SDRAM, ULTRA96 = "ulx3s-85f-sdram", "ultra96-v2"
ROWS: dict[tuple[str, str], float | None] = {
    ("keyword_spotting_on_off_v3", SDRAM): None,
    ("keyword_spotting_pacman_v3", SDRAM): None,
    ("rock_paper_scissors", SDRAM): None,
    ("larger image classification", SDRAM): 3.2,
    ("MobileNetV2-0.35-160", SDRAM): None,
    ("MobileNetV2-1.0-224", SDRAM): 25.0,
    ("ResNet-18-224", SDRAM): 80.0,
    ("MobileNetV2-1.0-224", ULTRA96): None,
    ("ResNet-18-224", ULTRA96): None,
    ("ResNet-50-224", ULTRA96): 45.0,
    ("VGG16-224", ULTRA96): 320.0,
}
"""Network and board: milliseconds that an inference may take, where an aim was set."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network on a board."""

    network: str
    board: str
    weights: str
    """"real", or "random" where only the topology is the network's"""
    macs: int
    engine_share: float
    weight_bytes: int
    moved_bytes: int
    """that the DMA moves in an inference"""
    parts: int
    cycles: int
    ms: float
    compute_ms: float
    memory_ms: float
    aim_ms: float | None
    compile_seconds: float
    """of the processor: reading, partition, schedule, programs, proofs"""

    @property
    def bound_ms(self) -> float:
        """The larger of both bounds."""
        return max(self.compute_ms, self.memory_ms)


def bytes_per_second(board: Board, timing: MemoryTiming) -> float:
    """That the memory's data lines carry at most."""
    return board.clock_hz * timing.data_width / 8 / round(timing.beat_cycles)


def weight_bytes(graph: Graph) -> int:
    """Bytes of the constants of a network."""
    return sum(v.data.nbytes for v in graph.values if v.data is not None)


def measure(network: str, board: Board, file: Path, aim: float | None) -> Row:
    """Compile a network and count.

    Raises
    ------
    NnloomError
        If it cannot be compiled.
    """
    config, timing = board.config, external_timing(board)
    assert timing is not None
    began = time.process_time()
    graph = read_model(file)
    fitted = fit(graph, config, memory=timing)
    seconds = time.process_time() - began
    emitted = fitted.emitted
    cycles = sum(sum(layer_cycles(config, item.descriptors)) for item in emitted.regions)
    lists = Lists.make(config, [item.region for item in emitted.regions], emitted.program, emitted.weights)
    if emitted.parts:
        cycles = sum(counted.total for counted in region_cycles(board, config, emitted).values())
    steps = [step for made in lists.regions.values() for step in made.steps]
    moved = sum(4 * step.transfer.words for step in steps if isinstance(step, Move)) + 16 * len(steps)
    exchanged = sum(t.elements for made in fitted.partitioned.graphs for t in (*made.inputs, *made.outputs))
    weights = weight_bytes(graph)
    return Row(
        network=network,
        board=board.name,
        weights="random" if network in TOPOLOGIES | LARGE_TOPOLOGIES else "real",
        macs=fitted.engine_macs,
        engine_share=round(fitted.engine_share, 4),
        weight_bytes=weights,
        moved_bytes=moved,
        parts=emitted.parts,
        cycles=cycles,
        ms=round(1e3 * cycles / board.clock_hz, 3),
        compute_ms=round(1e3 * fitted.engine_macs / config.multipliers / board.clock_hz, 3),
        memory_ms=round(1e3 * (weights + exchanged) / bytes_per_second(board, timing), 3),
        aim_ms=aim,
        compile_seconds=round(seconds, 1),
    )


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| network | weights | board | MACs, million | parts | an inference, cycles | ms | aim, ms | compute bound, ms "
        "| memory bound, ms | above the larger | compiled in, s |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row.network,
            f"{row.weights}, {row.weight_bytes / 1e6:.1f} MB",
            f"`{row.board}`",
            f"{row.macs / 1e6:,.0f}",
            str(row.parts or "-"),
            f"{row.cycles:,}",
            f"{row.ms:.2f}",
            "-" if row.aim_ms is None else f"{row.aim_ms:g}",
            f"{row.compute_ms:.2f}",
            f"{row.memory_ms:.2f}",
            f"{100 * (row.ms / row.bound_ms - 1):.0f} %",
            f"{row.compile_seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """The roofline plot."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "nnloom"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    intensity = [row.macs / row.moved_bytes for row in rows]
    low, high = min(intensity) / 2, max(intensity) * 2
    for name, colour in ((SDRAM, "tab:blue"), (ULTRA96, "tab:orange")):
        board = get(name)
        timing = external_timing(board)
        assert timing is not None
        rate, peak = bytes_per_second(board, timing), board.config.multipliers * board.clock_hz
        knee = peak / rate
        axes.plot([low, knee, high], [v / 1e9 for v in (low * rate, peak, peak)], color=colour, label=name)
        for row in (row for row in rows if row.board == name):
            x, y = row.macs / row.moved_bytes, row.macs / row.ms / 1e6
            axes.plot([x], [y], "o", color=colour)
            axes.annotate(row.network, (x, y), xytext=(5, -9), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="multiply-accumulates for each byte that the DMA moves")
    axes.set_ylabel("billion multiply-accumulates a second")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NETWORK", help="default: every row")
    options = parser.parse_args()
    known: dict[tuple[str, str], Row] = {}
    if RESULTS.exists():
        known = {(row["network"], row["board"]): Row(**row) for row in json.loads(RESULTS.read_text())["rows"]}
    try:
        with tempfile.TemporaryDirectory(prefix="nnloom-") as folder:
            for (network, name), aim in ROWS.items():
                if options.only and network not in options.only:
                    continue
                print(f"== {network} on {name}", file=sys.stderr, flush=True)
                random = network in TOPOLOGIES | LARGE_TOPOLOGIES
                file = write_topology(network, Path(folder)) if random else zoo.fetch(network)
                known[network, name] = measure(network, get(name), file, aim)
                print(f"   {known[network, name].ms} ms", file=sys.stderr, flush=True)
    except NnloomError as error:
        parser.exit(1, f"error: {error}\n")
    rows = [known[key] for key in ROWS if key in known]
    text = ",\n  ".join(json.dumps(asdict(row)) for row in rows)
    head = '{\n "command": "python benchmarks/roofline.py",\n "rows": [\n  '
    write_atomically(RESULTS, f"{head}{text}\n ]\n}}\n".encode())
    markdown = table(rows)
    write_readme(markdown, DOCUMENT, begin_mark=BEGIN, end_mark=END)
    draw(rows, PLOT)
    print(markdown)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"at most {memory:.1f} GB of memory", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
