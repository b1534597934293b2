"""A plan of strips (`compiler.strips`) as parts: what each loads, runs and stores.

Weights stay in the weight memory until others need their place. A part brings the weights that are not there, its
program, and the rows of external tensors that its layers read; all of that may come while the part before it runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Rows, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, check_descriptor, weight_word_columns
from nnloom.arch.legality import register_faults
from nnloom.arch.overlap_check import touched_granules
from nnloom.arch.steps import Step

from .cost import layer_cycles
from .graph import Add, Layer, Mul, Tensor
from .lower import LoweredLayer, add_operands, finished_program, located, lower_layer
from .parts import group_too_large
from .strip_layers import Held, leaves_out_nothing, strip_layer
from .strips import Stage, Strip, StripPlan, buffer_name, copy_name, source_of
from .transfers import MemoryTiming, load_cycles, store_cycles

__all__ = ["StripPart", "strip_parts", "strip_steps"]


@dataclass(frozen=True)
class StripPart:
    """A program with what it loads and stores. Weights of `layers` are only those that it loads."""

    layers: tuple[LoweredLayer, ...]
    locations: tuple[TensorLocation, ...]
    """what each layer writes: an external tensor's rows under the tensor's name"""
    weights_base: int
    loads: tuple[Rows, ...]
    stores: tuple[Rows, ...]
    weights: tuple[range, ...] = ()
    """weight memory words that its program reads"""


@dataclass
class _Run:
    """Layers that run without a move between them."""

    loads: tuple[Rows, ...]
    layers: list[LoweredLayer]
    locations: list[TensorLocation]
    stores: tuple[Rows, ...] = ()
    again: bool = False
    """whether its weights are used again by the strips to come"""


def strip_parts(config: AcceleratorConfig, plan: StripPlan, tables: Sequence[bytes]) -> list[StripPart]:
    """The parts of a plan, in order.

    Raises
    ------
    CapacityError
        If the weights of a channel group exceed the weight memory, or a dimension its descriptor field.
    """
    return list(_Packer(config, tables).parts(_merged(_Lowering(config, plan).runs())))


def _merged(runs: Iterator[_Run]) -> Iterator[_Run]:
    """Runs without a move between them as one."""
    last: _Run | None = None
    for run in runs:
        if last is not None and not last.stores and not run.loads and not run.again:
            last.layers += run.layers
            last.locations += run.locations
            last.stores = run.stores
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


class _Lowering:
    """Strips as lowered layers. Strips of one shape differ in where their tensors lie, nothing else."""

    def __init__(self, config: AcceleratorConfig, plan: StripPlan) -> None:
        self._config = config
        self._plan = plan
        self._numbers = {name: index for index, name in enumerate(plan.external)}
        self._known: dict[tuple, LoweredLayer] = {}
        self._weights: dict[tuple[int, bytes], NDArray[np.uint8]] = {}
        self._entire = {t.name: t.entire for layer in plan.graph.layers for t in (*layer.inputs, layer.output)}

    def runs(self) -> Iterator[_Run]:
        """Of each strip."""
        for stage in self._plan.stages:
            for number, strip in enumerate(stage.strips):
                yield self._strip(stage, strip, number)

    def _strip(self, stage: Stage, strip: Strip, number: int) -> _Run:
        places = self._plan.memory.locations
        locations: dict[str, TensorLocation] = dict(places)
        held: dict[str, Held] = {}
        for name, (begin, end) in strip.tensors.items():
            buffer, entire = _buffer(stage, name, number), self._entire[source_of(name)]
            shape = (1, end - begin, entire.columns, entire.channels)
            held[name] = Held(dataclasses.replace(entire, name=buffer, rows=end - begin, shape=shape), begin)
            locations[buffer] = dataclasses.replace(places[buffer], rows=end - begin, shape=shape)
        layers: list[LoweredLayer] = []
        written: list[TensorLocation] = []
        for index, (first, end) in zip(range(stage.first, stage.end), strip.layers, strict=True):
            layer = self._plan.graph.layers[index]
            again = leaves_out_nothing(layer)
            inputs = [
                (again and held.get(copy_name(t.name))) or held.get(t.name) or Held(t.entire) for t in layer.inputs
            ]
            output = held.get(layer.output.name) or Held(layer.output.entire)
            piece = strip_layer(self._config, layer, first, end, inputs, output)
            lowered = self._lowered(index, piece, locations)
            if (first, end) != (0, layer.output.rows):
                lowered = dataclasses.replace(lowered, rows=range(first, end))
            layers.append(lowered)
            location = locations[piece.output.name]
            if layer.output.name in self._numbers:
                location = dataclasses.replace(location, name=layer.output.name, layer=layer.name)
            elif layer.output.name in held:
                begin, stop = strip.tensors[layer.output.name]
                location = dataclasses.replace(location, name=f"{layer.output.name} rows {begin}:{stop}")
            written.append(location)
        stored = [name for name in strip.tensors if name == layer.output.name and name in self._numbers]
        return _Run(
            loads=tuple(
                self._rows(stage, n, rows, number) for n, rows in strip.tensors.items() if source_of(n) in stage.loaded
            ),
            layers=layers,
            locations=written,
            stores=tuple(self._rows(stage, n, strip.tensors[n], number) for n in stored),
            again=number < len(stage.strips) - 1,
        )

    def _rows(self, stage: Stage, name: str, rows: tuple[int, int], number: int) -> Rows:
        base = self._plan.memory.locations[_buffer(stage, name, number)].base
        return Rows(tensor=self._numbers[source_of(name)], first=rows[0], count=rows[1] - rows[0], base=base)

    def _lowered(self, index: int, layer: Layer, locations: Mapping[str, TensorLocation]) -> LoweredLayer:
        config = self._config
        sources = [located(config, locations, t) for t in layer.inputs]
        out = located(config, locations, layer.output)
        key = (
            index,
            getattr(layer, "padding", None),
            tuple(_shape(config, t, s) for t, s in zip((*layer.inputs, layer.output), (*sources, out), strict=True)),
        )
        lowered = self._known.get(key)
        if lowered is None:
            lowered = lower_layer(config, layer, sources, out)
            try:
                check_descriptor(config, lowered.descriptor)
            except ValueError as error:
                raise CapacityError(f"{layer.name}: too large for the engine ({error})") from error
            for fault in register_faults(config, lowered.descriptor):
                raise CapacityError(f"{layer.name}: too large for the engine ({fault})")
            weights = self._weights.setdefault((index, lowered.weights.tobytes()), lowered.weights)
            self._known[key] = lowered = dataclasses.replace(lowered, weights=weights)
        return dataclasses.replace(lowered, layer=layer, descriptor=_placed(lowered.descriptor, layer, sources, out))


def _buffer(stage: Stage, name: str, number: int) -> str:
    """Name of the buffer that a strip has for a tensor, by the strip's number."""
    return buffer_name(stage.first, name, second=stage.double and source_of(name) in stage.loaded and bool(number % 2))


def _shape(config: AcceleratorConfig, tensor: Tensor, location: TensorLocation) -> tuple:
    """What the lowering of a layer sees of a tensor, but for where it lies."""
    row = tensor.origin[0] % config.row_banks, tensor.row_step
    return (row, location.rows, location.columns, location.row_stride, location.pixel_stride, tensor.whole is None)


def _placed(d: Descriptor, layer: Layer, sources: Sequence[TensorLocation], out: TensorLocation) -> Descriptor:
    """The descriptor with its tensors at other places."""
    first, second = 0, None
    if isinstance(layer, Add):
        second, first = add_operands(layer)
    elif isinstance(layer, Mul):
        first = layer.pixel or 0
        second = 1 - first
    other = d.in2_base if second is None else sources[second].base
    return dataclasses.replace(d, in_base=sources[first].base, in2_base=other, out_base=out.base)


@dataclass(frozen=True)
class _Item:
    """A layer, or some channel groups of it, in a part."""

    layer: LoweredLayer
    """its weights are those that the part loads"""
    location: TensorLocation
    weights: range
    """where its weights lie"""


@dataclass
class _Packer:
    """Cuts runs into parts, and gives weights their places: round the weight memory, over what was there longest."""

    config: AcceleratorConfig
    tables: Sequence[bytes]
    _resident: dict[tuple[int, int, int], range] = field(default_factory=dict)
    """place of what is in the weight memory: by array, first group, groups"""
    _next: int = 0
    """weight memory word behind what was placed last"""
    _kept: list[NDArray[np.uint8]] = field(default_factory=list)
    """arrays, so that none gets the identity of another"""
    _programs: dict[tuple, list[Descriptor]] = field(default_factory=dict)

    def parts(self, runs: Iterator[_Run]) -> Iterator[StripPart]:
        """Of all runs."""
        for run in runs:
            pieces = list(self._pieces(run))
            for index, items in enumerate(pieces):
                loaded = [item.weights.start for item in items if len(item.layer.weights)]
                yield StripPart(
                    layers=tuple(self._finished([item.layer for item in items])),
                    locations=tuple(item.location for item in items),
                    weights_base=min(loaded, default=0),
                    loads=run.loads if index == 0 else (),
                    stores=run.stores if index == len(pieces) - 1 else (),
                    weights=tuple(item.weights for item in items),
                )

    def _finished(self, layers: list[LoweredLayer]) -> list[LoweredLayer]:
        """`finished_program`, once for equal programs."""
        key = tuple((item.descriptor, item.layer.table) for item in layers)
        if key not in self._programs:
            program = finished_program(self.config, layers, self.tables)
            self._programs[key] = [item.descriptor for item in program]
        descriptors = self._programs[key]
        return [dataclasses.replace(item, descriptor=d) for item, d in zip(layers, descriptors, strict=True)]

    def _pieces(self, run: _Run) -> Iterator[list[_Item]]:
        """The layers of each part of a run."""
        config = self.config
        whole = sum(len(layer.weights) for layer in run.layers)
        missing = sum(len(x.weights) for x in run.layers if (id(x.weights), 0, x.groups) not in self._resident)
        keeps = whole <= config.weight_words and run.again
        if keeps and missing and self._next + missing > config.weight_words:
            # Side by side from the beginning on, where they stay for all strips.
            self._next = 0
            self._resident.clear()
        items: list[_Item] = []
        for layer, location in zip(run.layers, run.locations, strict=True):
            reason = group_too_large(config, layer)
            if reason:
                raise CapacityError(f"{layer.layer.name}: {reason}; run this layer on the CPU")
            size = len(layer.weights) // layer.groups
            # The next piece comes while this one runs.
            most = layer.groups if keeps else max(1, config.weight_words // _SHARE // size)
            first = 0
            while first < layer.groups:
                key = id(layer.weights), first, layer.groups - first
                if len(items) == config.program_words // _SHARE // DESCRIPTOR_WORDS:
                    yield items
                    items = []
                if key in self._resident:
                    count, place, weights = layer.groups - first, self._resident[key], layer.weights[:0]
                else:
                    count = min(layer.groups - first, most)
                    found = self._place(items, count * size)
                    if found is None:
                        yield items
                        items = []
                        continue
                    place, weights = found, layer.weights[first * size : (first + count) * size]
                    self._resident[key[0], first, count] = place
                    self._kept.append(layer.weights)
                taken = layer.take_groups(config, first, count)
                descriptor = dataclasses.replace(taken.descriptor, weight_base=place.start)
                items.append(_Item(dataclasses.replace(taken, descriptor=descriptor, weights=weights), location, place))
                first += count
        yield items

    def _place(self, items: Sequence[_Item], size: int) -> range | None:
        """A place for so many words that a part loads; None if it has to begin anew for that: what it loads lies in
        one piece, and what it uses stays."""
        first = self._next
        if first + size > self.config.weight_words:
            if any(len(item.layer.weights) for item in items):
                return None
            first = 0
        place = range(first, first + size)
        if any(_overlap(place, item.weights) for item in items):
            return None
        self._resident = {key: other for key, other in self._resident.items() if not _overlap(place, other)}
        self._next = place.stop
        return place


_SHARE = 3
"""A part takes this fraction of weight and program memory at most, so that the next one can come beside it."""


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def strip_steps(
    config: AcceleratorConfig, plan: StripPlan, parts: Sequence[StripPart], timing: MemoryTiming
) -> tuple[Step, ...]:
    """The steps of a region's list: programs and weights come as early as they have a place and there is time, rows
    while the part before runs, where nothing is in the way."""
    return tuple(_Arrangement(config, plan, parts, timing).steps())


class _Arrangement:
    """Times are estimates: they choose the order, whatever is chosen is right."""

    def __init__(
        self, config: AcceleratorConfig, plan: StripPlan, parts: Sequence[StripPart], timing: MemoryTiming
    ) -> None:
        self._config = config
        self._plan = plan
        self._parts = parts
        self._timing = timing
        self._programs: list[range] = []
        """where the program of each part that was loaded lies"""
        self._touched: dict[tuple[Descriptor, ...], NDArray[np.bool_]] = {}

    def steps(self) -> Iterator[Step]:
        """In order."""
        parts = self._parts
        now = end = 0.0
        brought = False
        for index, part in enumerate(parts):
            if index == len(self._programs):
                step = self._load(index, index)
                assert step is not None
                yield step
                now = max(now, end) + self._load_cycles(part)
            if part.loads and not brought:
                yield Step(kind="bring", part=index)
                now = max(now, end) + self._bring_cycles(part)
            yield Step(kind="run", part=index)
            end = max(now, end) + sum(layer_cycles(self._config, [item.descriptor for item in part.layers]))
            following = parts[index + 1] if index + 1 < len(parts) else None
            brought = False
            if not self._config.compact:
                for ahead in range(len(self._programs), len(parts)):
                    # The next part has to come; those behind it only while there is time.
                    cycles = self._load_cycles(parts[ahead])
                    if ahead > index + 1 and now + cycles > end:
                        break
                    step = self._load(ahead, index)
                    if step is None:
                        break
                    yield step
                    now += cycles
                    if ahead == index + 1 and (brought := self._may_be_brought(part, following)):
                        yield Step(kind="bring", part=ahead, under_way=1)
                        now += self._bring_cycles(parts[ahead])
                if not brought and following and (brought := self._may_be_brought(part, following)):
                    yield Step(kind="bring", part=index + 1, under_way=1)
                    now += self._bring_cycles(following)
            if part.stores:
                yield Step(kind="store", part=index)
                now = max(now, end) + self._moved_cycles(part.stores, store_cycles)

    def _load(self, index: int, running: int) -> Step | None:
        """Load a part beside those from `running` on that are needed; None if it has no place there."""
        config, part = self._config, self._parts[index]
        weights = _loaded_weights(part)
        if any(_overlap(weights, used) for other in self._parts[running:index] for used in other.weights):
            return None
        size = len(part.layers) * DESCRIPTOR_WORDS
        in_use = self._programs[running:index]
        for first in (in_use[-1].stop if in_use else 0, 0):
            place = range(first, first + size)
            if place.stop <= config.program_words and not any(_overlap(place, used) for used in in_use):
                self._programs.append(place)
                return Step(kind="load", part=index, under_way=int(index > running), program_base=first)
        return None

    def _may_be_brought(self, before: StripPart, part: StripPart | None) -> bool:
        """Whether rows can come before the part before has run and stored: to where it has nothing, and they are not
        what it makes."""
        if part is None or not part.loads:
            return False
        for rows in part.loads:
            stride = self._plan.layouts[self._plan.external[rows.tensor]].row_stride
            place = slice(rows.base, rows.base - (-rows.count // self._config.row_banks) * stride)
            if self._granules(before)[:, place].any():
                return False
            mine = range(rows.first, rows.first + rows.count)
            for stored in before.stores:
                if stored.tensor == rows.tensor and _overlap(mine, range(stored.first, stored.first + stored.count)):
                    return False
        return True

    def _granules(self, part: StripPart) -> NDArray[np.bool_]:
        """What its program may read or write, bool [bank, granule]."""
        program = tuple(item.descriptor for item in part.layers)
        if program not in self._touched:
            self._touched[program] = touched_granules(self._config, program)
        return self._touched[program]

    def _load_cycles(self, part: StripPart) -> float:
        cycles = load_cycles(self._timing, len(part.layers) * DESCRIPTOR_WORDS)
        words = len(_loaded_weights(part)) * weight_word_columns(self._config)
        return cycles + (load_cycles(self._timing, words) if words else 0)

    def _bring_cycles(self, part: StripPart) -> float:
        return self._moved_cycles(part.loads, load_cycles)

    def _moved_cycles(self, moved: Sequence[Rows], cycles: Callable[[MemoryTiming, float], float]) -> float:
        total = 0.0
        for rows in moved:
            pieces = min(rows.count, self._config.row_banks)
            row = self._plan.layouts[self._plan.external[rows.tensor]].row_stride * self._config.granule // 4
            total += pieces * cycles(self._timing, row * rows.count / pieces)
        return total


def _loaded_weights(part: StripPart) -> range:
    size = sum(len(item.weights) for item in part.layers)
    return range(part.weights_base, part.weights_base + size)
