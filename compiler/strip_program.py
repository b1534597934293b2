"""A plan of strips (`compiler.strips`) as parts: what each loads, runs and stores.

Weights stay in the weight memory until others need their place. A part brings the weights that are not there, its
program, and the rows of external tensors that its layers read; all of that may come while the part before it runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Rows, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, check_descriptor, granule_columns, weight_word_columns
from nnloom.arch.legality import register_faults
from nnloom.arch.overlap_check import touched_granules
from nnloom.arch.steps import Step

from .channel_slices import channel_slice, slice_name
from .cost import layer_cycles
from .graph import Add, Layer, Mul, Tensor
from .lower import LoweredLayer, add_operands, finished_program, located, lower_layer
from .parts import PlacedTables, group_too_large, in_pieces, needs_other_tables
from .strip_layers import Held, leaves_out_nothing, strip_layer
from .strips import Stage, Strip, StripPlan, buffer_name, copy_name, kept_words, source_of
from .transfers import MemoryTiming, fetch_cycles, load_cycles, store_cycles

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
    alone: bool = True
    """whether it is all of its stage"""
    free_after: int | None = None
    """layers after which nobody reads the rows that it loads, if those of the next run may take their place"""
    late: Mapping[int, tuple[Rows, ...]] = field(default_factory=dict)
    """rows that come before some layer"""


def strip_parts(config: AcceleratorConfig, plan: StripPlan, tables: PlacedTables) -> list[StripPart]:
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
        if last is not None and not last.stores and not run.loads and not run.late and last.alone and run.alone:
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
            for part in _slices(entire.channels, stage.sliced.get(name)):
                # They take turns in one buffer, from its beginning on: the last one may be narrower.
                count = len(part)
                pixel = -(-count // self._config.granule) * self._config.granule
                shape = (1, end - begin, entire.columns, count)
                tensor = dataclasses.replace(
                    entire, name=slice_name(buffer, part), rows=end - begin, channels=count, shape=shape
                )
                held[slice_name(name, part)] = Held(tensor, begin)
                stride = locations[buffer].row_stride
                if count < stage.sliced[name]:
                    stride = entire.columns * pixel // self._config.granule
                locations[tensor.name] = dataclasses.replace(
                    locations[buffer],
                    name=tensor.name,
                    pixel_stride=pixel,
                    row_stride=stride,
                    channels=count,
                    shape=shape,
                )
        layers: list[LoweredLayer] = []
        written: list[TensorLocation] = []
        for layer, index, (first, end), channels in self._in_turn(stage, strip):
            again = leaves_out_nothing(layer)
            inputs = [
                (again and held.get(copy_name(t.name))) or held.get(t.name) or Held(t.entire) for t in layer.inputs
            ]
            output = held.get(layer.output.name) or Held(layer.output.entire)
            piece = strip_layer(self._config, layer, first, end, inputs, output)
            lowered = self._lowered(index, piece, channels, locations)
            if (first, end) != (0, self._plan.graph.layers[index].output.rows):
                lowered = dataclasses.replace(lowered, rows=range(first, end))
            pieces = in_pieces(self._config, lowered)
            layers += pieces
            location = locations[piece.output.name]
            if layer.output.name in self._numbers:
                location = dataclasses.replace(location, name=layer.output.name, layer=layer.name)
            elif layer.output.name in held:
                begin, stop = strip.tensors[self._plan.graph.layers[index].output.name]
                location = dataclasses.replace(location, name=f"{layer.output.name} rows {begin}:{stop}")
            written += [location] * len(pieces)
        stored = [name for name in strip.tensors if name == layer.output.name and name in self._numbers]
        return _Run(
            loads=tuple(
                self._rows(stage, n, rows, number)
                for n, rows in strip.tensors.items()
                if source_of(n) in stage.loaded and n not in stage.late
            ),
            layers=layers,
            locations=written,
            stores=tuple(self._rows(stage, n, strip.tensors[n], number) for n in stored),
            again=number < len(stage.strips) - 1,
            alone=len(stage.strips) == 1,
            free_after=self._free_after(stage, layers) if stage.buffers == 1 else None,
            late=self._late(stage, strip, number, layers),
        )

    def _late(
        self, stage: Stage, strip: Strip, number: int, layers: Sequence[LoweredLayer]
    ) -> dict[int, tuple[Rows, ...]]:
        """Rows that come before each layer that is the first to read them."""
        result: dict[int, tuple[Rows, ...]] = {}
        for name in strip.tensors:
            if name in stage.late:
                buffer = _buffer(stage, name, number)
                first = next(i for i, x in enumerate(layers) if any(t.name == buffer for t in x.layer.inputs))
                result[first] = (*result.get(first, ()), self._rows(stage, name, strip.tensors[name], number))
        return result

    def _free_after(self, stage: Stage, layers: Sequence[LoweredLayer]) -> int:
        """Layers of a strip up to the last one that reads what it loads at first."""
        names = {name for tensor in stage.loaded for name in (tensor, copy_name(tensor))} - stage.late
        buffers = {buffer_name(stage.first, name) for name in names}
        readers = (i for i, x in enumerate(layers) if any(t.name in buffers for t in x.layer.inputs))
        return 1 + max(readers, default=-1)

    def _in_turn(self, stage: Stage, strip: Strip) -> Iterator[tuple[Layer, int, tuple[int, int], range | None]]:
        """The layers of a strip in the order in which they run: layer, or some channels of it; its number, rows of its
        output, which channels."""
        layers = list(zip(self._plan.graph.layers[stage.first : stage.end], strip.layers, strict=True))
        index = 0
        while index < len(layers):
            maker = layers[index][0]
            name = maker.output.name
            turns = [index, index + 1] if name in stage.sliced else [index]
            slices: Sequence[range | None] = _slices(maker.output.channels, stage.sliced.get(name)) or (None,)
            for channels in slices:
                for turn in turns:
                    layer, rows = layers[turn]
                    if channels is not None:
                        layer = channel_slice(layer, channels, name, made=turn == index)
                    yield layer, stage.first + turn, rows, channels
            index += len(turns)

    def _rows(self, stage: Stage, name: str, rows: tuple[int, int], number: int) -> Rows:
        base = self._plan.memory.locations[_buffer(stage, name, number)].base
        return Rows(tensor=self._numbers[source_of(name)], first=rows[0], count=rows[1] - rows[0], base=base)

    def _lowered(
        self, index: int, layer: Layer, channels: range | None, locations: Mapping[str, TensorLocation]
    ) -> LoweredLayer:
        config = self._config
        sources = [located(config, locations, t) for t in layer.inputs]
        out = located(config, locations, layer.output)
        key = (
            index,
            channels,
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


def _slices(channels: int, width: int | None) -> list[range]:
    """Channels in slices of so many; none without a width."""
    return [range(first, min(first + width, channels)) for first in range(0, channels, width)] if width else []


def _buffer(stage: Stage, name: str, number: int) -> str:
    """Name of the buffer that a strip has for a tensor, by the strip's number."""
    return buffer_name(
        stage.first,
        name,
        second=stage.buffers == 2 and source_of(name) in stage.loaded and name not in stage.late and bool(number % 2),
    )


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
    tables: PlacedTables
    _resident: dict[tuple[int, int], tuple[int, range]] = field(default_factory=dict)
    """groups and place of what is in the weight memory: by array, first group"""
    _next: int = 0
    """weight memory word behind what was placed last"""
    _kept: list[NDArray[np.uint8]] = field(default_factory=list)
    """arrays, so that none gets the identity of another"""
    _programs: dict[tuple, list[Descriptor]] = field(default_factory=dict)

    def parts(self, runs: Iterable[_Run]) -> Iterator[StripPart]:
        """Of all runs."""
        share = _FIRST_SHARE
        for group in _groups(runs):
            ring = self._ring(group)
            for run in group:
                pieces = list(self._pieces(run, ring, share))
                share = _WEIGHTS_SHARE
                for index, (items, loads) in enumerate(pieces):
                    loaded = [item.weights.start for item in items if len(item.layer.weights)]
                    yield StripPart(
                        layers=tuple(self._finished([item.layer for item in items])),
                        locations=tuple(item.location for item in items),
                        weights_base=min(loaded, default=0),
                        loads=loads,
                        stores=run.stores if index == len(pieces) - 1 else (),
                        weights=tuple(item.weights for item in items),
                    )

    def _finished(self, layers: list[LoweredLayer]) -> list[LoweredLayer]:
        """`finished_program`, once for equal programs."""
        held = self.tables.held(layers)
        key = tuple((item.descriptor, held.index(x.entries) if (x := item.layer.table) else -1) for item in layers)
        if key not in self._programs:
            program = finished_program(self.config, layers, held)
            self._programs[key] = [item.descriptor for item in program]
        descriptors = self._programs[key]
        return [dataclasses.replace(item, descriptor=d) for item, d in zip(layers, descriptors, strict=True)]

    def _ring(self, group: Sequence[_Run]) -> _Ring:
        """Where the weights of a group of runs go."""
        config, layers = self.config, group[0].layers
        whole = range(config.weight_words)
        words = sum(len(layer.weights) for layer in layers)
        if len(group) == 1:
            return _Ring(whole)
        if words <= config.weight_words:
            missing = sum(len(x.weights) for x in layers if (id(x.weights), 0) not in self._resident)
            largest = max((len(x.weights) // x.groups for x in layers), default=0)
            if missing and self._next + missing > config.weight_words and missing + largest > config.weight_words:
                # Side by side from the beginning on: there is no room for a gap where the memory ends.
                self._next = 0
                self._resident.clear()
            return _Ring(whole)
        # What does not fit comes again for each run, through what is left of the memory; the rest stays.
        largest = max(len(layer.weights) // layer.groups for layer in layers)
        kept = kept_words(config, largest)
        self._next = kept
        self._resident.clear()
        return _Ring(range(kept, config.weight_words), kept=kept, share=kept / words)

    def _pieces(self, run: _Run, ring: _Ring, share: int) -> Iterator[tuple[list[_Item], tuple[Rows, ...]]]:
        """The layers of each part of a run, and the rows that it loads.

        share: a part loads this fraction of the weight memory at most.
        """
        config = self.config
        items: list[_Item] = []
        loads = run.loads
        most_items = max(1, config.program_words // _SHARE // DESCRIPTOR_WORDS)
        for index, (layer, location) in enumerate(zip(run.layers, run.locations, strict=True)):
            if items and (
                index == run.free_after
                or index in run.late
                or needs_other_tables(config, (item.layer for item in items), layer)
            ):
                yield items, loads
                items, loads = [], ()
            loads += run.late.get(index, ())
            reason = group_too_large(config, layer)
            if reason:
                raise CapacityError(f"{layer.layer.name}: {reason}; run this layer on the CPU")
            size = len(layer.weights) // layer.groups
            most = max(1, config.weight_words // share // size)
            first = 0
            while first < layer.groups:
                key = id(layer.weights), first
                if key in self._resident:
                    (count, place), weights = self._resident[key], layer.weights[:0]
                else:
                    count, place = self._place(ring, size, min(layer.groups - first, most))
                    weights = layer.weights[first * size : (first + count) * size]
                if len(items) == most_items or not _joins(items, place, len(weights), config.weight_words // share):
                    yield items, loads
                    items, loads = [], ()
                if len(weights):
                    self._resident = {k: old for k, old in self._resident.items() if not _overlap(place, old[1])}
                    self._resident[key] = count, place
                    self._kept.append(layer.weights)
                taken = layer.take_groups(config, first, count)
                descriptor = dataclasses.replace(taken.descriptor, weight_base=place.start)
                items.append(_Item(dataclasses.replace(taken, descriptor=descriptor, weights=weights), location, place))
                first += count
        yield items, loads

    def _place(self, ring: _Ring, size: int, most: int) -> tuple[int, range]:
        """Groups, `most` or fewer, and a place for them."""
        if ring.keeps(size):
            first = ring.filled
            ring.filled += size
            return 1, range(first, first + size)
        if self._next + size > ring.place.stop or self._next < ring.place.start:
            self._next = ring.place.start
        count = min(most, (ring.place.stop - self._next) // size) if not ring.kept else 1
        first = self._next
        self._next = first + count * size
        return count, range(first, self._next)


_SHARE = 3
"""A part takes this fraction of the program memory at most, so that the next one can come beside it."""
_WEIGHTS_SHARE = 6
"""And of the weight memory what it loads: it waits for all of it."""
_FIRST_SHARE = 32
"""In the first run: nothing else runs while its weights are loaded."""


@dataclass
class _Ring:
    """Words of weight memory that weights are placed in, one behind the other and from the beginning again; others,
    of which a share stays, lie before them."""

    place: range
    kept: int = 0
    """words before, for what stays"""
    share: float = 0
    """of all words that come, the ones that stay"""
    filled: int = 0
    _passed: float = 0

    def keeps(self, size: int) -> bool:
        """Whether the next group is one of those that stay: they are spread over the run."""
        self._passed += size * self.share
        return self.filled + size <= min(self.kept, self._passed)


def _groups(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """Runs that use the same weights."""
    group: list[_Run] = []
    for run in runs:
        group.append(run)
        if not run.again:
            yield group
            group = []
    if group:
        yield group


def _joins(items: Sequence[_Item], place: range, loads: int, most: int) -> bool:
    """Whether a layer can be in a part with others: what a part loads lies in one piece, and what it uses stays."""
    if not items:
        return True
    loaded = [item for item in items if len(item.layer.weights)]
    words = sum(len(item.layer.weights) for item in loaded)
    if loads and loaded and (loaded[-1].weights.stop != place.start or words + loads > most):
        return False
    return not loads or not any(_overlap(place, item.weights) for item in items)


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def strip_steps(
    config: AcceleratorConfig, plan: StripPlan, parts: Sequence[StripPart], timing: MemoryTiming
) -> tuple[Step, ...]:
    """The steps of a region's list: weights and programs come as early as they have a place and there is time, rows
    while the part before runs, where nothing is in the way."""
    return tuple(_Arrangement(config, plan, parts, timing).steps())


@dataclass(frozen=True)
class _Program:
    """Where the program of a part lies."""

    part: int
    words: range


class _Arrangement:
    """Times are estimates: they choose the order, whatever is chosen is right."""

    def __init__(
        self, config: AcceleratorConfig, plan: StripPlan, parts: Sequence[StripPart], timing: MemoryTiming
    ) -> None:
        self._config = config
        self._plan = plan
        self._parts = parts
        self._timing = timing
        self._now = 0.0
        """when the DMA is done with all steps so far"""
        self._end = 0.0
        """when the accelerator is"""
        self._programs: list[_Program] = []
        """those that were loaded and perhaps have not run"""
        self._loaded = 0
        """parts whose programs have been loaded"""
        self._brought = 0
        """parts whose rows have been brought"""
        self._part = 0
        """whose weights come next"""
        self._word = 0
        """the first of them that has not"""
        self._touched: dict[tuple[Descriptor, ...], NDArray[np.bool_]] = {}

    def steps(self) -> Iterator[Step]:
        """In order."""
        for index, part in enumerate(self._parts):
            yield from self._prepared(index)
            self._now = max(self._now, self._end)
            yield Step(kind="run", part=index)
            self._now += fetch_cycles(self._timing)
            self._end = self._now + sum(layer_cycles(self._config, [item.descriptor for item in part.layers]))
            if not self._config.compact:
                yield from self._beside(index)
            self._now = max(self._now, self._end) + self._results
            if part.stores:
                yield Step(kind="store", part=index)
                self._now += self._moved_cycles(part.stores, store_cycles)

    @property
    def _results(self) -> float:
        return store_cycles(self._timing, 3)

    def _prepared(self, index: int) -> Iterator[Step]:
        """What a part needs and has not come while another one ran."""
        for step in (self._program(index, index), self._weights(index, math.inf), self._rows(index, None)):
            if step is not None:
                yield step
        assert self._part > index or not self._missing(index)

    def _beside(self, running: int) -> Iterator[Step]:
        """Steps beside a part that runs: what the next one needs, then what there is time for."""
        following = running + 1
        if following == len(self._parts):
            return
        for step in (self._program(following, running), self._weights(running, math.inf, following)):
            if step is not None:
                yield step
        step = self._rows(following, running)
        if step is not None:
            yield step
        for ahead in range(following, min(following + _ROWS_AHEAD, len(self._parts))):
            if self._parts[ahead].loads and ahead >= self._brought:
                if self._now + self._moved_cycles(self._parts[ahead].loads, self._load_beside) <= self._end:
                    step = self._rows(ahead, running)
                    if step is not None:
                        yield step
                break
        for ahead in range(following + 1, min(following + _PROGRAMS_AHEAD, len(self._parts))):
            if self._now + self._program_cycles(ahead) > self._end:
                break
            step = self._program(ahead, running)
            if step is not None:
                yield step
        while (step := self._weights(running, self._end - self._now)) is not None:
            yield step

    def _program(self, index: int, running: int) -> Step | None:
        """Load a part's program beside those from `running` on; None if it has been, or has no place there."""
        if index != self._loaded:
            return None
        size = len(self._parts[index].layers) * DESCRIPTOR_WORDS
        in_use = [program.words for program in self._programs if program.part >= running]
        for first in (in_use[-1].stop if in_use else 0, 0):
            place = range(first, first + size)
            if place.stop <= self._config.program_words and not any(_overlap(place, used) for used in in_use):
                self._programs = [p for p in self._programs if p.part >= running] + [_Program(index, place)]
                self._loaded += 1
                self._now += self._program_cycles(index)
                return Step(kind="program", part=index, under_way=int(index > running), program_base=first)
        return None

    def _missing(self, part: int) -> int:
        """Weight words of a part that have not come, if those before it have."""
        return len(_loaded_weights(self._parts[part])) - (self._word if part == self._part else 0)

    def _weights(self, running: int, time: float, last: int | None = None) -> Step | None:
        """Load the next weights beside the parts from `running` on, in so many cycles; None if there is no place, or
        no time.

        last: none beyond those of this part, which defaults to `running` if all of its weights have to come.
        """
        while self._part < len(self._parts) and not self._missing(self._part):
            self._part, self._word = self._part + 1, 0
        index = self._part
        if math.isinf(time) and last is None:
            last = running
        if index == len(self._parts) or (last is not None and index > last):
            return None
        start = self._parts[index].weights_base + self._word
        place = range(start, start + self._missing(index))
        for other in self._parts[running:index]:
            for used in other.weights:
                if _overlap(place, used):
                    place = range(start, max(start, used.start))
        count = len(place)
        if not math.isinf(time):
            each = load_cycles(self._timing, weight_word_columns(self._config)) - load_cycles(self._timing, 0)
            count = min(count, int((time - load_cycles(self._timing, 0)) / each))
        if count < self._missing(index):
            count = count // _LEAST_WORDS * _LEAST_WORDS
        if count <= 0:
            return None
        step = Step(kind="weights", part=index, under_way=int(index > running), first_word=self._word, words=count)
        self._word += count
        self._now += load_cycles(self._timing, count * weight_word_columns(self._config))
        return step

    def _rows(self, index: int, running: int | None) -> Step | None:
        """Bring the rows of a part, beside one before it that runs; None if it has none, or they cannot come yet."""
        part = self._parts[index]
        if not part.loads or index < self._brought:
            return None
        if running is not None and not all(self._may_be_brought(p, part) for p in self._parts[running:index]):
            return None
        self._brought = index + 1
        self._now += self._moved_cycles(part.loads, load_cycles if running is None else self._load_beside)
        return Step(kind="bring", part=index, under_way=0 if running is None else 1)

    def _may_be_brought(self, before: StripPart, part: StripPart) -> bool:
        """Whether rows can come before a part before has run and stored: to where it has nothing, and they are not what
        it makes."""
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

    def _program_cycles(self, index: int) -> float:
        return load_cycles(self._timing, len(self._parts[index].layers) * DESCRIPTOR_WORDS)

    def _load_beside(self, timing: MemoryTiming, words: float) -> float:
        """As `load_cycles`, of activations while a program writes its results first: a granule's last word takes four
        cycles."""
        slowest = words * (1 + 3 / granule_columns(self._config)) if timing.port_words == 1 else 0
        return max(load_cycles(timing, words), load_cycles(timing, 0) + slowest)

    def _moved_cycles(self, moved: Sequence[Rows], cycles: Callable[[MemoryTiming, float], float]) -> float:
        total = 0.0
        for rows in moved:
            pieces = min(rows.count, self._config.row_banks)
            row = self._plan.layouts[self._plan.external[rows.tensor]].row_stride * self._config.granule // 4
            total += pieces * cycles(self._timing, row * rows.count / pieces)
        return total


_ROWS_AHEAD = 8
"""Parts of which the first one with rows gets them beside a part, if there is time"""
_PROGRAMS_AHEAD = 3
"""Parts whose programs come beside a part, if there is time"""
_LEAST_WORDS = 16
"""Weight words that are loaded ahead at once, at least: a descriptor takes its time, too. So many begin at a multiple
of what the DMA's memory asks for."""


def _loaded_weights(part: StripPart) -> range:
    size = sum(len(item.weights) for item in part.layers)
    return range(part.weights_base, part.weights_base + size)
