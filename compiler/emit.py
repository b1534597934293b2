"""Program and memory images of a partitioned network."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Part, Region, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, encode_program
from nnloom.arch.lists import Lists
from nnloom.arch.overlap_check import check_lists
from nnloom.arch.steps import Step
from nnloom.arch.table_places import loaded_bytes

from .carried import with_carried_rows, with_spare_rows
from .copies import without_copies
from .cost import layer_cycles
from .graph import LayerGraph
from .lower import LoweredLayer, lower_layers, place_program, table_image, tables_of
from .memory import MemoryPlan, fits_memory, plan_memory, region_bytes
from .parts import PartSize, PlacedTables, arrangements, cut, cuts, programs
from .split_sums import with_split_sums
from .strip_program import StripPart, strip_parts, strip_steps
from .strips import StripPlan, plan_strips, sliced
from .transfers import MemoryTiming, list_cycles
from .unread import without_unread

__all__ = ["Emitted", "EmittedRegion", "emit", "prepared"]


@dataclass(frozen=True)
class EmittedRegion:
    """One region with its plan and lowered layers."""

    graph: LayerGraph
    plan: MemoryPlan
    layers: tuple[LoweredLayer, ...]
    """in order, of all parts"""
    region: Region

    @property
    def descriptors(self) -> list[Descriptor]:
        """Descriptors in order; the last one of each program has `last`."""
        return [layer.descriptor for layer in self.layers]


@dataclass(frozen=True)
class Emitted:
    """Memory images of all regions."""

    regions: tuple[EmittedRegion, ...]
    program: NDArray[np.uint32]
    weights: NDArray[np.uint8]
    tables: NDArray[np.uint8]
    """[tables, 256], of all regions"""
    overflows: tuple[str, ...] = ()
    """the memories that make parts necessary, with what is needed and available"""
    resident: bool = False
    """the weights of all parts are loaded once, and stay"""

    def lists(self, config: AcceleratorConfig) -> Lists:
        """The regions' lists."""
        return Lists.make(config, [item.region for item in self.regions], self.program, self.weights, self.tables)

    def loaded_bytes(self, config: AcceleratorConfig) -> int:
        """Bytes of parts that are loaded for an inference that follows another."""
        return sum(loaded_bytes(config, [part for item in self.regions for part in item.region.parts]))

    @property
    def parts(self) -> int:
        """In how many parts the regions are run; 0 if everything fits the memories."""
        return sum(len(item.region.parts) for item in self.regions)


def _outputs(graph: LayerGraph, places: Mapping[str, TensorLocation]) -> tuple[TensorLocation, ...]:
    """Locations of the outputs with the shapes, types and scales that the network gives them."""
    return tuple(
        dataclasses.replace(places[t.name], shape=t.shape, dtype=t.dtype, scale=t.scale, zero_point=t.zero_point)
        for t in graph.outputs
    )


def _tables(config: AcceleratorConfig, graphs: Sequence[LayerGraph]) -> PlacedTables:
    """The tables of all regions."""
    tables = tables_of(layer for graph in graphs for layer in graph.layers)
    if tables and not config.tables:
        raise CapacityError(f"{len(tables)} functions as tables, the configuration has none")
    return PlacedTables(config, tables)


def emit(
    config: AcceleratorConfig,
    graphs: Sequence[LayerGraph],
    *,
    memory: MemoryTiming | None = None,
    in_strips: bool = True,
    shared: bool = False,
) -> Emitted:
    """Plan, lower and lay out every region.

    They follow each other in program and weight memory; if these are too small for all of them, or there are more
    functions than tables, every region is cut into parts. Weights that all fit stay where they are, unless they come
    from external memory, beside programs.

    Parameters
    ----------
    memory
        How fast the board's external memory is, if it has one: parts are loaded while others run, where that pays.
    in_strips
        With external memory: regions that exceed the activation memory run in strips (`compiler.strips`).
    shared
        Regions share equal weights, too, not only the layers of each.

    Raises
    ------
    CapacityError
        If activations, or the weights of one channel group, exceed the configuration's memories.
    """
    if memory is not None and in_strips:
        strips = [_planned_in_strips(config, graph, memory) for graph in graphs]
        if any(strips):
            return _emit_strips(config, graphs, strips, memory)
    plain = [_planned(config, graph) for graph in graphs]
    spare = [_with_spare_rows(config, *item) for item in plain]
    fast, carried = ([(_faster(config, graph), plan) for graph, plan in form] for form in (spare, plain))
    # Faster, but with more layers and weights: not where that makes parts necessary.
    for form in (fast, carried, plain):
        forms, plans = [graph for graph, _ in form], [plan for _, plan in form]
        lowered = [lower_layers(config, graph, plan.locations) for graph, plan in form]
        overflows = _overflows(config, lowered, shared=shared)
        if not overflows:
            break
    resident = memory is None and "weight" not in overflows
    overflows |= _table_overflow(config, graphs)
    loading = _Loading.WHOLE if not overflows else _Loading.RESIDENT if resident else _Loading.PARTS
    emitted = _emit(config, forms, plans, lowered, loading, memory=memory, shared=shared)
    return dataclasses.replace(emitted, overflows=tuple(overflows.values()))


class _Loading(enum.Enum):
    """How programs and weights come to the engine."""

    WHOLE = enum.auto()
    """all of them once"""
    RESIDENT = enum.auto()
    """in parts, with weights that are loaded once"""
    PARTS = enum.auto()
    """in parts"""


def _planned_in_strips(config: AcceleratorConfig, graph: LayerGraph, timing: MemoryTiming) -> StripPlan | None:
    """None if a region fits the activation memory."""
    forms: Sequence[LayerGraph] = prepared(config, graph)
    if any(fits_memory(config, form) for form in forms):
        return None
    if len(forms[0].layers) == len(forms[1].layers):
        forms = forms[:1]  # there are no copies
    return min((plan_strips(config, sliced(config, form), timing) for form in forms), key=lambda p: p.cycles)


def _planned(config: AcceleratorConfig, graph: LayerGraph) -> tuple[LayerGraph, MemoryPlan]:
    first, second = prepared(config, graph)
    try:
        return first, plan_memory(config, first)
    except CapacityError:
        return second, plan_memory(config, second)


def _faster(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    return with_split_sums(config, with_carried_rows(config, graph))


def _with_spare_rows(config: AcceleratorConfig, graph: LayerGraph, plan: MemoryPlan) -> tuple[LayerGraph, MemoryPlan]:
    """The region with spare rows above some tensors, if there is memory for them."""
    larger = with_spare_rows(config, graph)
    if larger is graph:
        return graph, plan
    try:
        return larger, plan_memory(config, larger)
    except CapacityError:
        return graph, plan


def prepared(config: AcceleratorConfig, graph: LayerGraph) -> tuple[LayerGraph, LayerGraph]:
    """A region without what nobody reads: without copies and, if that does not fit the memory, with them: tensors that
    are parts of others live longer."""
    return without_unread(without_copies(config, graph)), without_unread(graph)


def _emit_strips(
    config: AcceleratorConfig, graphs: Sequence[LayerGraph], plans: Sequence[StripPlan | None], timing: MemoryTiming
) -> Emitted:
    """Every region in parts, those with a plan of strips in strips."""
    tables = _tables(config, graphs)
    images = _Images(config)
    regions = []
    for index, (graph, plan) in enumerate(zip(graphs, plans, strict=True)):
        if plan is None:
            form, memory = _planned(config, graph)
            places = memory.locations
            layers = lower_layers(config, form, places)
            pieces, steps = _pieces(config, form, memory, layers, tables.again(), timing)
            made = [
                StripPart(tuple(program), tuple(places[item.layer.output.name] for item in program), 0, (), ())
                for program in pieces
            ]
        else:
            form, memory = plan.graph, plan.memory
            places = {**memory.locations, **{name: plan.layouts[name] for name in plan.external}}
            made = strip_parts(config, plan, tables.again())
            steps = strip_steps(config, plan, made, timing)
        first = images.programmed
        parts = tuple(images.part(part, tables.of_part(part.layers)) for part in made)
        external = tuple(plan.layouts[name] for name in plan.external) if plan else ()
        region = Region(
            name=f"region{index}",
            program_start=first,
            program_words=images.programmed - first,
            inputs=tuple(dataclasses.replace(places[t.name], dtype=t.dtype) for t in form.inputs),
            outputs=_outputs(form, places),
            tensors=tuple(location for part in made for location in part.locations),
            parts=parts,
            external=external,
            steps=steps,
        )
        regions.append(EmittedRegion(form, memory, tuple(item for part in made for item in part.layers), region))
    overflows = tuple(
        f"activation memory: {plan.graph.name} needs {region_bytes(config, plan.graph):,} bytes, "
        f"{config.activation_bytes:,} available"
        for plan in plans
        if plan
    )
    overflows += tuple(_table_overflow(config, graphs).values())
    emitted = Emitted(tuple(regions), images.program, images.weights, table_image(tables.tables), overflows)
    check_lists(config, emitted.lists(config))
    return emitted


class _Images:
    """Programs and weights of parts, each once."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._programs: list[NDArray[np.uint32]] = []
        self._weights: list[NDArray[np.uint8]] = []
        self._placed: dict[bytes, int] = {}
        self.programmed = 0
        self._used = 0

    @property
    def program(self) -> NDArray[np.uint32]:
        """All programs."""
        return np.concatenate(self._programs) if self._programs else np.zeros(0, np.uint32)

    @property
    def weights(self) -> NDArray[np.uint8]:
        """[words, weight_word_bytes]: those of all parts."""
        return np.concatenate([np.zeros((0, self._config.weight_word_bytes), np.uint8), *self._weights])

    def part(self, made: StripPart, tables: tuple[int, ...]) -> Part:
        """Put a part's program and weights into the images; `tables`: see `Part`."""
        program = encode_program(item.descriptor for item in made.layers)
        start = self._placed.setdefault(program.tobytes(), self.programmed)
        if start == self.programmed:
            self._programs.append(program)
            self.programmed += len(program)
        words = [item.weights for item in made.layers if len(item.weights)]
        size = sum(map(len, words))
        place = self._used
        if words:
            key = hashlib.sha256(b"".join(map(bytes, map(np.ascontiguousarray, words)))).digest()
            place = self._placed.setdefault(key, self._used)
            if place == self._used:
                self._weights += words
                self._used += size
        return Part(
            program_start=start,
            program_words=len(program),
            weights_start=place,
            weights_words=size,
            weights_base=made.weights_base,
            loads=made.loads,
            stores=made.stores,
            tables=tables,
        )


def _overflows(config: AcceleratorConfig, lowered: Sequence[Sequence[LoweredLayer]], *, shared: bool) -> dict[str, str]:
    """The memories that do not hold all regions at once, and what is needed."""
    # Layers of a region share equal weights: see `place_program`.
    distinct = [{layer.weights.tobytes(): len(layer.weights) for layer in layers} for layers in lowered]
    if shared:
        distinct = [{key: size for sizes in distinct for key, size in sizes.items()}]
    weights = sum(sum(sizes.values()) for sizes in distinct)
    layers = sum(map(len, lowered))
    result = {}
    if weights > config.weight_words:
        size = config.weight_word_bytes
        result["weight"] = f"weight memory: {weights * size:,} bytes needed, {config.weight_words * size:,} available"
    if layers * DESCRIPTOR_WORDS > config.program_words:
        result["program"] = (
            f"program memory: {4 * DESCRIPTOR_WORDS * layers:,} bytes needed for {layers} layers, "
            f"{4 * config.program_words:,} available"
        )
    return result


def _table_overflow(config: AcceleratorConfig, graphs: Sequence[LayerGraph]) -> dict[str, str]:
    """As `_overflows`, of the tables."""
    count = len(tables_of(layer for graph in graphs for layer in graph.layers))
    return {"tables": f"tables: {count} functions, {config.tables} available"} if count > config.tables else {}


def _emit(
    config: AcceleratorConfig,
    graphs: Sequence[LayerGraph],
    plans: Sequence[MemoryPlan],
    lowered: Sequence[Sequence[LoweredLayer]],
    loading: _Loading,
    *,
    memory: MemoryTiming | None,
    shared: bool,
) -> Emitted:
    in_place: dict[bytes, int] | None = {} if shared else None
    regions: list[EmittedRegion] = []
    words: list[NDArray[np.uint8]] = []
    tables = _tables(config, graphs)
    used = programmed = 0
    for index, (graph, plan, layers) in enumerate(zip(graphs, plans, lowered, strict=True)):
        steps: tuple[Step, ...] = ()
        if loading == _Loading.PARTS:
            # From external memory a list brings all that it needs.
            mine = tables.again() if memory else tables
            pieces, steps = _pieces(config, graph, plan, layers, mine, memory)
        else:
            known = {} if in_place is None else in_place
            whole = [layers] if loading == _Loading.WHOLE else programs(config, layers)
            pieces = _placed_together(config, whole, used, tables, known)
        placed = [item for piece in pieces for item in piece]
        made = _parts(pieces, programmed, used, tables)
        words += [item.weights for item in placed]
        region = Region(
            name=f"region{index}",
            program_start=programmed,
            program_words=len(placed) * DESCRIPTOR_WORDS,
            inputs=tuple(dataclasses.replace(plan.locations[t.name], dtype=t.dtype) for t in graph.inputs),
            outputs=_outputs(graph, plan.locations),
            tensors=tuple(plan.locations[item.layer.output.name] for item in placed),
            parts=made if loading != _Loading.WHOLE else (),
            steps=steps,
        )
        regions.append(EmittedRegion(graph, plan, tuple(placed), region))
        used = made[-1].weights_start + made[-1].weights_words
        programmed += region.program_words
    program_image = encode_program(d for r in regions for d in r.descriptors)
    weights = np.concatenate(words) if words else np.zeros((0, config.weight_word_bytes), np.uint8)
    if loading == _Loading.RESIDENT:
        regions = [_with_all_weights(item, len(weights)) for item in regions]
    resident = loading == _Loading.RESIDENT
    emitted = Emitted(tuple(regions), program_image, weights, table_image(tables.tables), resident=resident)
    if loading == _Loading.PARTS and memory:
        check_lists(config, emitted.lists(config))
    return emitted


def _placed_together(
    config: AcceleratorConfig,
    pieces: Sequence[Sequence[LoweredLayer]],
    weight_base: int,
    tables: PlacedTables,
    known: dict[bytes, int],
) -> list[list[LoweredLayer]]:
    """Programs whose weights all lie in the memory, from a word on; `known`: see `place_program`."""
    result = []
    for piece in pieces:
        placed = place_program(config, piece, weight_base=weight_base, tables=tables.held(piece), placed=known)
        weight_base += sum(len(item.weights) for item in placed)
        result.append(placed)
    return result


def _with_all_weights(region: EmittedRegion, words: int) -> EmittedRegion:
    """With parts that share all weights."""
    parts = tuple(dataclasses.replace(p, weights_start=0, weights_words=words) for p in region.region.parts)
    return dataclasses.replace(region, region=dataclasses.replace(region.region, parts=parts))


def _parts(
    pieces: Sequence[Sequence[LoweredLayer]], program_start: int, weights_start: int, tables: PlacedTables
) -> tuple[Part, ...]:
    """Where the programs lie in the images, one behind the other from these words on."""
    result = []
    for piece in pieces:
        program, weights = len(piece) * DESCRIPTOR_WORDS, sum(len(item.weights) for item in piece)
        result.append(
            Part(
                program_start=program_start,
                program_words=program,
                weights_start=weights_start,
                weights_words=weights,
                tables=tables.of_part(piece),
            )
        )
        program_start += program
        weights_start += weights
    return tuple(result)


def _pieces(
    config: AcceleratorConfig,
    graph: LayerGraph,
    plan: MemoryPlan,
    layers: Sequence[LoweredLayer],
    tables: PlacedTables,
    memory: MemoryTiming | None,
) -> tuple[list[list[LoweredLayer]], tuple[Step, ...]]:
    """The parts of a region, placed from word 0 on, and the steps of its list: what takes the fewest cycles, on a board
    with external memory."""

    def placed(parts: Sequence[Sequence[LoweredLayer]]) -> list[list[LoweredLayer]]:
        mine = tables if memory is None else tables.again()
        return [place_program(config, part, tables=mine.held(part)) for part in parts]

    plain = placed(cut(config, layers))
    if memory is None or config.compact:
        return plain, ()
    inputs = tuple(plan.locations[t.name] for t in graph.inputs)
    outputs = _outputs(graph, plan.locations)

    def total(pieces: Sequence[Sequence[LoweredLayer]], cycles: Sequence[int], steps: tuple[Step, ...]) -> int:
        region = Region(
            name="",
            program_start=0,
            program_words=0,
            inputs=inputs,
            outputs=outputs,
            parts=_parts(pieces, 0, 0, tables),
        )
        (made,) = Lists.make(config, [dataclasses.replace(region, steps=steps)]).regions.values()
        return list_cycles(made, memory, cycles, config=config).total

    def cycles_of(pieces: Sequence[Sequence[LoweredLayer]]) -> list[int]:
        return [sum(layer_cycles(config, [item.descriptor for item in piece])) for piece in pieces]

    best: tuple[list[list[LoweredLayer]], tuple[Step, ...]] = (plain, ())
    least = total(plain, cycles_of(plain), ())
    for parts in cuts(config, layers):
        pieces = placed(parts)
        cycles = cycles_of(pieces)
        sizes = [
            PartSize(program_words=p.program_words, weights_words=p.weights_words, cycles=c)
            for p, c in zip(_parts(pieces, 0, 0, tables), cycles, strict=True)
        ]
        for steps in arrangements(config, sizes, memory):
            found = total(pieces, cycles, steps)
            if found < least:
                best, least = (pieces, steps), found
    return best
