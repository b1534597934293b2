"""Co-design: the accelerator configuration that suits a network and a board.

Every engine shape whose logic fits the board is a candidate. The network is lowered for each, which gives the exact
cycles of the cost model and how deep the memories must be; the resource model gives what the engine needs.
Partitioning does not depend on the shape and is done once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnloom.arch.config import MOST_TABLES, PRODUCT_REGISTER_TAPS, AcceleratorConfig
from nnloom.arch.errors import (
    CapacityError,
    ConfigError,
    ModelError,
    UnsupportedOperatorError,
)
from nnloom.arch.isa import needed_field_bits
from nnloom.arch.jobs import check_scheduler, run_jobs
from nnloom.boards.board import Board
from nnloom.boards.resources import Resources, estimate, fits, limits, lut_multipliers, ram_shape

from .cost import program_cycles
from .emit import emit
from .fit import fit
from .graph import Add, Conv2D, FullyConnected, LayerGraph, MaxPool2D, Mul
from .ir import Graph
from .larger import with_more_memory
from .lower import tables_of
from .partition import partition
from .transfers import external_timing

__all__ = [
    "Candidate",
    "Evaluation",
    "Exploration",
    "evaluate",
    "explore",
    "explore_graph",
    "explore_graphs",
    "pareto_front",
    "shapes",
]

EVERYTHING = AcceleratorConfig(lanes=32, requant_units=8, elementwise_mul=True, tables=MOST_TABLES)
"""A configuration with every feature, and the largest granules, of which parts of tensors are multiples: what it can
run, some candidate can run."""

_LANES = (8, 16, 32)
"""Not 64: no such system is among the measurements of the resource model."""

_ROOMY = AcceleratorConfig(activation_bytes=1 << 20, weight_words=1 << 16, program_words=1 << 14)
"""The deepest memories there are: the network is lowered with them to see how deep they must be."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What lowering a network for an engine shape tells."""

    cycles: int
    """start command to done flag, over all regions"""
    activation_bytes: int
    weight_words: int
    program_words: int
    field_bits: int
    """of the descriptors; the memories may need more"""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A configuration for a network on a board."""

    config: AcceleratorConfig
    lut_multipliers: int
    """multipliers of the array that are made of LUTs"""
    resources: Resources
    cycles: int
    latency_us: float
    """cycles at the board's clock"""
    engine_share: float = 1.0
    """share of the network's multiply-accumulates that fit it: less than 1 where no configuration holds all"""

    @property
    def costs(self) -> tuple[float, ...]:
        """What the Pareto front minimises: latency, then the primitives by how scarce they are."""
        r = self.resources
        return self.latency_us, r.LUT4, r.MULT18X18D, r.DP16KD

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            "config": self.config.to_dict(),
            "lut_multipliers": self.lut_multipliers,
            "resources": self.resources.to_dict(),
            "cycles": self.cycles,
            "latency_us": self.latency_us,
            "engine_share": round(self.engine_share, 4),
        }


@dataclass(frozen=True)
class Exploration:
    """Result of a search."""

    model: str
    board: Board
    shapes: int
    """engine shapes in the space"""
    candidates: tuple[Candidate, ...]
    """those that fit the board with this network"""
    front: tuple[Candidate, ...]
    """the candidates that no other is at least as good as in latency, LUT4, DSP and block RAM; by latency"""
    default: Candidate | None = None
    """the board's own configuration with this network, if its memories hold it"""
    is_cut: bool = False
    """no configuration holds the whole network: the candidates run it cut or in parts (`nnloom.compiler.fit`), and the
    front is the one that takes most of it"""

    @property
    def best(self) -> Candidate:
        """Least latency; of equals the one with the fewest LUTs, then DSP blocks, then block RAM."""
        return self.front[0]

    @property
    def chosen(self) -> Candidate:
        """What `compile --config auto` uses: the board's own configuration if none is faster, else `best`.

        The board's own is known to meet the clock, and its bitstream serves every network.
        """
        if self.default and self.default.cycles <= self.best.cycles:
            return self.default
        return self.best

    def smallest(self, latency_us: float) -> Candidate:
        """The smallest candidate that is fast enough: the one that leaves most of the board's scarcest primitive.

        Raises
        ------
        ConfigError
            If none is; the message says how fast the fastest is.
        """
        enough = [c for c in self.candidates if c.latency_us <= latency_us]
        if not enough:
            raise ConfigError(
                f"no configuration for {self.board.name} takes {self.model} in {latency_us:,g} us; the fastest takes "
                f"{self.best.latency_us:,} us"
            )
        available = self.board.primitives

        def size(c: Candidate) -> tuple[float, ...]:
            used = c.resources.to_dict()
            shares = sorted((used[name] / available[name] for name in used if name in available), reverse=True)
            return (*shares, c.latency_us)

        return min(enough, key=size)

    def reason(self) -> str:
        """Why `chosen` is chosen, in one line."""
        if self.is_cut:
            return (
                f"none of {self.shapes} configurations holds all of {self.model} on {self.board.name}; of "
                f"{len(self.candidates)} activation memories this one takes the most, "
                f"{100 * self.chosen.engine_share:.1f} % of the MACs"
            )
        if self.chosen is self.default:
            return (
                f"the default of {self.board.name} ({self.default.latency_us:,} us at "
                f"{self.board.clock_hz / 1e6:g} MHz): none of the {len(self.candidates)} configurations (of "
                f"{self.shapes}) that fit it with {self.model} is faster"
            )
        return (
            f"least latency ({self.best.latency_us:,} us at {self.board.clock_hz / 1e6:g} MHz) of the "
            f"{len(self.candidates)} configurations (of {self.shapes}) that fit {self.board.name} with {self.model}"
        )


def _features(graphs: Sequence[LayerGraph]) -> dict[str, Any]:
    """The options of a configuration that the layers use."""
    layers = [layer for graph in graphs for layer in graph.layers]
    tables = len(tables_of(layers))
    return dict(
        tables=min(MOST_TABLES, 1 << (tables - 1).bit_length()) if tables else 0,
        depthwise=any(not isinstance(layer, Conv2D | FullyConnected) for layer in layers),
        max_pool=any(isinstance(layer, MaxPool2D) for layer in layers),
        elementwise_add=any(isinstance(layer, Add) for layer in layers),
        elementwise_mul=any(isinstance(layer, Mul) for layer in layers),
    )


def shapes(graphs: Sequence[LayerGraph], *, product_registers: bool = False) -> Iterator[AcceleratorConfig]:
    """Every engine shape for a network: lanes, taps, pixels, requantization units, row triples; memories as deep as can
    be.

    product_registers: where the shape can have them.
    """
    features = _features(graphs)
    tall = any(isinstance(x, Conv2D) and x.weights.shape[1] >= 3 for graph in graphs for x in graph.layers)
    for lanes in _LANES:
        for taps in range(3, lanes // 2 + 2):
            for pixels in (1, 2):
                units = lanes
                while units:
                    shape = dataclasses.replace(
                        _ROOMY, lanes=lanes, taps=taps, pixels=pixels, requant_units=units, **features
                    )
                    if product_registers and taps in PRODUCT_REGISTER_TAPS:
                        shape = dataclasses.replace(shape, product_registers=True)
                    yield shape
                    if tall and taps >= 9:
                        yield dataclasses.replace(shape, row_triples=True)
                    units //= 2


def evaluate(config: AcceleratorConfig, graphs: Sequence[LayerGraph]) -> Evaluation | None:
    """Lower a network for an engine shape; None if it does not fit any memory of this shape in one part."""
    try:
        emitted = emit(config, graphs)
    except CapacityError:
        return None
    if emitted.parts and not (emitted.resident and len(emitted.program) <= config.program_words):
        return None  # loaded again for each inference: slow, whatever its cycles; tables alone are not
    return Evaluation(
        cycles=sum(program_cycles(config, region.descriptors) for region in emitted.regions),
        activation_bytes=max(region.plan.peak_bytes(config) for region in emitted.regions),
        weight_words=len(emitted.weights),
        program_words=len(emitted.program),
        field_bits=max(needed_field_bits(d) for region in emitted.regions for d in region.descriptors),
    )


def _fitted(config: AcceleratorConfig, need: Evaluation) -> AcceleratorConfig | None:
    """The configuration with memories that just hold the network, rounded up to what block RAM gives for free, and
    with the shortest fields: each bit less makes the sequencer's additions shorter."""
    try:
        fitted = dataclasses.replace(
            config,
            activation_bytes=max(2048, 1 << (need.activation_bytes - 1).bit_length()),
            weight_words=ram_shape(need.weight_words).depth,
            program_words=ram_shape(need.program_words).depth,
        )
        deepest = max(fitted.weight_words, fitted.bank_granules)
        return dataclasses.replace(fitted, field_bits=max(need.field_bits, (deepest - 1).bit_length()))
    except ConfigError:
        return None  # deeper than a block RAM


def _candidate(board: Board, config: AcceleratorConfig, cycles: int) -> Candidate:
    """A configuration that runs the network in so many cycles.

    Raises
    ------
    ConfigError
        If a memory is deeper than a block RAM.
    """
    luts = lut_multipliers(board, config)
    return Candidate(
        config=config,
        lut_multipliers=luts,
        resources=estimate(config, luts),
        cycles=cycles,
        latency_us=round(cycles / board.clock_hz * 1e6, 3),
    )


def _fitted_candidate(board: Board, config: AcceleratorConfig, need: Evaluation) -> Candidate | None:
    """The candidate of an evaluated shape, or None if its memories do not fit the board."""
    fitted = _fitted(config, need)
    if fitted is None:
        return None
    try:
        candidate = _candidate(board, fitted, need.cycles)
    except ConfigError:
        return None  # a bank deeper than a block RAM
    return candidate if fits(board, candidate.resources) else None


def _default(board: Board, graphs: Sequence[LayerGraph]) -> Candidate | None:
    """The board's own configuration as a candidate, or None if it cannot run the network as it is."""
    try:
        need = evaluate(board.config, graphs)
    except UnsupportedOperatorError:
        return None
    return _candidate(board, board.config, need.cycles) if need else None


def _logic_fits(board: Board, config: AcceleratorConfig) -> bool:
    """Whether the shape fits the board with the smallest memories."""
    smallest = dataclasses.replace(config, activation_bytes=2048, weight_words=64, program_words=32)
    return fits(board, estimate(smallest, lut_multipliers(board, smallest)))


def pareto_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that no other dominates, by latency; of candidates with equal costs the first."""
    unique = list({c.costs: c for c in reversed(candidates)}.values())
    costs = np.array([c.costs for c in unique])
    front = [
        c for c, mine in zip(unique, costs, strict=True) if not np.any((costs <= mine).all(1) & (costs < mine).any(1))
    ]
    return tuple(sorted(front, key=lambda c: c.costs))


def explore_graphs(
    graphs: Sequence[LayerGraph],
    *,
    model: str,
    board: Board,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Exploration:
    """As `explore`, from a partitioned network."""
    say = progress or (lambda _: None)
    if scheduler:
        check_scheduler(scheduler)
    say("estimating resources")
    # The board's own configuration says whether its clock needs them.
    space = list(shapes(graphs, product_registers=board.config.product_registers))
    possible = [config for config in space if _logic_fits(board, config)]
    # The longest first, so that the pool's processes end together.
    possible.sort(key=lambda config: config.multipliers)
    say(f"evaluating {len(possible)} configurations" + (f" on {scheduler}" if scheduler else ""))
    results = run_jobs(evaluate, possible, tuple(graphs), scheduler=scheduler, workers=workers)
    needs: dict[AcceleratorConfig, Evaluation | None] = {}
    for config, need in results:
        needs[config] = need
        if advance:
            advance(len(needs), len(possible))
    found = [_fitted_candidate(board, config, need) for config in possible if (need := needs[config])]
    candidates = tuple(c for c in found if c)
    if not candidates:
        room = ", ".join(f"{name} {count:,}" for name, count in limits(board).items())
        raise CapacityError(f"{model}: no configuration fits {board.name} ({room}); use a smaller network")
    return Exploration(model, board, len(space), candidates, pareto_front(candidates), _default(board, graphs))


def explore_graph(
    graph: Graph,
    *,
    board: Board,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Exploration | None:
    """As `explore`, from a network that has been read; None if nothing of it runs on any accelerator."""
    graphs = partition(graph, EVERYTHING).graphs
    if not graphs:
        return None
    try:
        return explore_graphs(
            graphs,
            model=graph.name,
            board=board,
            scheduler=scheduler,
            workers=workers,
            progress=progress,
            advance=advance,
        )
    except CapacityError:
        return _explore_cut(graph, board, len(list(shapes(graphs))))


def _explore_cut(graph: Graph, board: Board, shapes: int) -> Exploration:
    """What to do with a network that no configuration holds: how much activation memory takes the most of it."""
    candidates = []
    ranks = []
    for config in (board.config, *with_more_memory(board)):
        fitted = fit(graph, config, memory=external_timing(board, config))
        cycles = sum(program_cycles(config, region.descriptors) for region in fitted.emitted.regions)
        candidates.append(dataclasses.replace(_candidate(board, config, cycles), engine_share=fitted.engine_share))
        ranks.append((*fitted.rank, -cycles))
    best = candidates[ranks.index(max(ranks))]
    default = candidates[0] if best is candidates[0] else None
    return Exploration(graph.name, board, shapes, tuple(candidates), (best,), default, is_cut=True)


def explore(
    model: str | Path,
    *,
    board: str = "ulx3s-85f",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    unproved: Literal["cpu", "accelerator", "scales"] = "cpu",
    scheduler: str | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Exploration:
    """Search the accelerator configurations of a board for a network.

    Latency is cycles at the board's clock: that every configuration meets it is an assumption, which
    `nnloom build` checks for the one that is built.

    Parameters
    ----------
    model
        Path of an int8 .tflite or .onnx file.
    board
        Name of a board (`nnloom.boards`).
    shapes, unproved
        As for `nnloom.compiler.compile`.
    scheduler
        Address of a Dask scheduler ("tcp://host:port") whose workers evaluate; default: processes of this machine.
        They are started afresh, so that a script needs `if __name__ == "__main__":`.
    workers
        Processes; default: one for each processor.
    progress
        Called with the name of each phase.
    advance
        Called with how many configurations were evaluated, of how many.

    Raises
    ------
    NnloomError
        `ModelError`, `UnsupportedOperatorError`, `ConfigError` or `ToolMissingError`, each with a message of one line.
    """
    from nnloom import boards

    from .frontend import read_model
    from .ops.rounding import take_nearest
    from .quantize.provable import MovingScales

    say = progress or (lambda _: None)
    target = boards.get(board)
    if scheduler:
        check_scheduler(scheduler)
    say("reading the model")
    graph = read_model(model, shapes=shapes, change=MovingScales() if unproved == "scales" else None)
    if unproved == "accelerator":
        graph = take_nearest(graph)
    found = explore_graph(graph, board=target, scheduler=scheduler, workers=workers, progress=progress, advance=advance)
    if found is None:
        raise ModelError(f"{graph.name}: nothing of it runs on the accelerator; nnloom inspect tells why")
    return found
