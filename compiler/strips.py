"""Regions whose tensors exceed the activation memory, on boards with external memory: strips of rows.

A tensor lies in activation memory for all of its life, or in external memory. Layers run in *stages*, one after the
other: a stage that reads or writes an external tensor runs strip by strip, and each strip brings the rows that it reads
into buffers, runs, and takes the rows that it has made to external memory. A stage of several layers runs all of them
on each strip; what lies between them never leaves the chip, and rows that two strips need are computed twice. Where a
layer is read by one that keeps channels apart, as a depthwise convolution does, some channels of it are made and read
at a time: they take little memory, and strips are higher.

Which tensors are external, where stages end, and how high their strips are, is what costs the fewest cycles by the cost
model and fits the memory: dynamic programming over the sequence of layers for the stages, single changes for the
tensors, in turns.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import BUFFER_ALIGNMENT
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import Descriptor, weight_word_columns
from nnloom.arch.loopnest import descriptor_cycles, issue_cycles

from .channel_slices import keeps_channels_apart, with_channel_slices
from .graph import Add, Conv2D, Layer, LayerGraph
from .lower import located, lower_layer
from .memory import Lifetime, MemoryPlan, check_plan, lifetimes, place_tensors
from .strip_layers import leaves_out_nothing, reads_in_order, rows_read, rows_written
from .transfers import MemoryTiming, load_cycles, run_cycles, store_cycles

__all__ = [
    "Stage",
    "Strip",
    "StripPlan",
    "balanced",
    "buffer_name",
    "copy_name",
    "kept_words",
    "misfits",
    "plan_strips",
    "sliced",
    "source_of",
]

_ATTEMPTS = 8
"""Plans that are made until one fits although tensors leave gaps."""
_MOST_LAYERS = 10
"""Of a stage."""
_HEIGHTS = 4
"""Heights of strips that are compared, from the highest that fits on."""
_WIDTHS = (0, 4, 1)
"""Channel groups of a slice that are compared; 0: no slices."""
_HIDDEN = 0.05
"""Share of its cycles that what runs beside something longer costs."""
_SLICE_CYCLES = 40
"""About what a further slice costs each of its two layers: a descriptor, and that one waits for the other's results."""


Rows = tuple[int, int]
"""First row, end"""


@dataclass(frozen=True)
class Strip:
    """What a stage does at a time."""

    layers: tuple[Rows, ...]
    """rows of each layer's output"""
    tensors: Mapping[str, Rows]
    """rows of each tensor that the stage has in a buffer, or of a second copy of it (`copy_name`)"""


@dataclass(frozen=True)
class Stage:
    """Layers `first` to `end` - 1, and what of them runs at a time, in order."""

    first: int
    end: int
    strips: tuple[Strip, ...]
    loaded: frozenset[str]
    """external tensors of which a strip brings rows"""
    buffers: int
    """of each of these: 0, memory that others use when it has been read; 1, or 2 in turns: rows of the next strip come
    while this one runs, with 1 as soon as it has read its own"""
    late: frozenset[str] = frozenset()
    """of the names of `Strip.tensors`, those of which rows come just before a layer reads them, into one buffer"""
    sliced: Mapping[str, int] = field(default_factory=dict)
    """tensors between two of its layers of which so many channels are made and read at a time"""


@dataclass(frozen=True)
class StripPlan:
    """What runs in strips, and where everything lies."""

    graph: LayerGraph
    stages: tuple[Stage, ...]
    external: tuple[str, ...]
    """tensors in external memory, in the order in which they are made"""
    memory: MemoryPlan
    """of the tensors on the chip, and of the buffers of each stage (`buffer_name`); time goes by layers"""
    layouts: Mapping[str, TensorLocation]
    """of all tensors of the region, at base 0"""
    cycles: float
    """by the cost model"""


def buffer_name(stage: int, tensor: str, second: bool = False) -> str:
    """Name of the buffer in which the stage whose first layer is `stage` has rows of a tensor, or of its second one."""
    copy = ", again" if tensor != source_of(tensor) else ""
    return f"{source_of(tensor)} @ {stage}{copy}" + ("'" if second else "")


_COPY = "\0"


def copy_name(tensor: str) -> str:
    """What stands for rows of a tensor that a strip has a second time."""
    return tensor + _COPY


def source_of(name: str) -> str:
    """The tensor, of its name or that of a copy."""
    return name.removesuffix(_COPY)


def plan_strips(config: AcceleratorConfig, graph: LayerGraph, timing: MemoryTiming) -> StripPlan:
    """The best plan of a region that is found.

    Raises
    ------
    CapacityError
        If a layer does not fit the activation memory even row by row.
    """
    search = _Search(config, graph, timing)
    for name, size in search.misfits().items():
        raise CapacityError(
            f"{name}: a row of its tensors needs {size:,} bytes of activation memory, the configuration has "
            f"{config.activation_bytes:,}"
        )
    available = config.bank_granules
    for _ in range(_ATTEMPTS):
        plan = search.plan(available)
        if plan.memory.granules <= config.bank_granules:
            check_plan(plan.memory.locations, plan.memory.lifetimes, config)
            return plan
        available -= plan.memory.granules - config.bank_granules
    raise CapacityError(
        f"{graph.name}: no plan of strips fits {config.activation_bytes} bytes of activation memory; use a "
        "configuration with more"
    )


def misfits(config: AcceleratorConfig, graph: LayerGraph) -> dict[str, int]:
    """Layers that do not fit even a few rows at a time with all their tensors in external memory, and the bytes of
    activation memory that they need."""
    return _Search(config, graph, None).misfits()


def sliced(config: AcceleratorConfig, graph: LayerGraph) -> LayerGraph:
    """The region with slices of channels where layers do not fit otherwise."""
    return with_channel_slices(config, graph, lambda form: misfits(config, form))


def _aligned(config: AcceleratorConfig, location: TensorLocation) -> TensorLocation:
    """The layout with rows that begin at multiples of what the DMA's memory asks for."""
    unit = math.lcm(BUFFER_ALIGNMENT, config.granule) // config.granule
    return dataclasses.replace(location, row_stride=-(-location.row_stride // unit) * unit)


def kept_words(config: AcceleratorConfig, group: int) -> int:
    """Weight words that stay where those of a stage exceed the memory; the others come for each strip, through the rest
    of it. group: the largest channel group."""
    return max(0, config.weight_words - max(2 * group, config.weight_words // 3))


def balanced(rows: int, height: int, step: int) -> tuple[Rows, ...]:
    """As few strips of at most `height` rows as possible, of equal heights if these can be multiples of `step`."""
    count = -(-rows // height)
    even = -(-rows // count)
    even = min(height, -(-even // step) * step)
    return tuple((first, min(first + even, rows)) for first in range(0, rows, even))


@dataclass
class _Costs:
    """Cycles of rows of each layer, from one lowering of each."""

    config: AcceleratorConfig
    layouts: Mapping[str, TensorLocation]
    _descriptors: dict[int, Descriptor] = field(default_factory=dict)
    _words: dict[int, int] = field(default_factory=dict)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def _descriptor(self, index: int, layer: Layer) -> Descriptor:
        if index not in self._descriptors:
            sources = [located(self.config, self.layouts, t) for t in layer.inputs]
            lowered = lower_layer(self.config, layer, sources, located(self.config, self.layouts, layer.output))
            self._descriptors[index], self._words[index] = lowered.descriptor, len(lowered.weights)
        return self._descriptors[index]

    def weight_words(self, index: int, layer: Layer) -> int:
        """Of all its channel groups."""
        self._descriptor(index, layer)
        return self._words[index]

    def cycles(self, index: int, layer: Layer, rows: int) -> int:
        """Of so many output rows."""
        key = index, rows
        if key not in self._known:
            d = self._descriptor(index, layer)
            share = 1.0
            if d.pixel_pair:
                d = dataclasses.replace(d, n_oy=-(-rows // 2), odd_rows=rows % 2)
            elif d.n_oy == layer.output.rows:
                d = dataclasses.replace(d, n_oy=rows)
            else:  # one long row of each bank
                share = rows / layer.output.rows
            cycles = math.ceil(share * (issue_cycles(self.config, d) + descriptor_cycles(self.config)))
            self._known[key] = cycles
        return self._known[key]


_Span = tuple[int, int]
"""First layer of a stage, end"""


@dataclass(frozen=True, order=True)
class _Choice:
    """How a stage runs."""

    cycles: float = math.inf
    """infinite if it does not fit"""
    height: int = 0
    buffers: int = 0
    """see `Stage`"""
    width: int = 0
    """channel groups of slices"""


class _Search:
    """What is external, where stages end, and the heights of strips."""

    def __init__(self, config: AcceleratorConfig, graph: LayerGraph, timing: MemoryTiming | None) -> None:
        self.config = config
        self.graph = graph
        self.timing = timing
        self.layers = graph.layers
        places, lives = lifetimes(config, graph)
        self.layouts = {name: _aligned(config, place) for name, place in places.items()}
        self.lives = {life.name: (max(life.first, 0), min(life.last, len(graph.layers) - 1)) for life in lives}
        """first and last layer of each tensor's life"""
        self.granules = {name: place.granules(config) for name, place in self.layouts.items()}
        self._given = {t.name for t in graph.inputs}
        self._wanted = {t.name for t in graph.outputs}
        self._costs = _Costs(config, self.layouts)
        self._cycles: dict[tuple[_Span, frozenset[str], int], _Choice] = {}
        self._made: dict[tuple[_Span, frozenset[str], int], tuple[Strip, ...]] = {}
        self._writers: dict[str, list[int]] = {}
        self._readers: dict[str, list[int]] = {}
        for index, layer in enumerate(graph.layers):
            self._writers.setdefault(layer.output.name, []).append(index)
            for tensor in layer.inputs:
                self._readers.setdefault(tensor.name, []).append(index)
        self._touched: dict[_Span, frozenset[str]] = {}
        self._within: dict[_Span, frozenset[str]] = {}
        self._slices: dict[tuple[_Span, int], dict[str, int]] = {}
        self._late: dict[tuple[_Span, frozenset[str], int], frozenset[str]] = {}
        self._turns: dict[tuple[_Span, int], list[_Span]] = {}
        self._sums = [i for i, x in enumerate(graph.layers) if isinstance(x, Add) and x.output.whole is None]
        """additions that make a whole tensor"""

    # Stages

    def touched(self, span: _Span) -> frozenset[str]:
        """Tensors that the layers of a stage read or write."""
        if span not in self._touched:
            layers = self.layers[slice(*span)]
            self._touched[span] = frozenset(t.name for layer in layers for t in (*layer.inputs, layer.output))
        return self._touched[span]

    def within(self, span: _Span) -> frozenset[str]:
        """Tensors that lie between the layers of a stage."""
        if span not in self._within:
            self._within[span] = frozenset(layer.output.name for layer in self.layers[span[0] : span[1] - 1])
        return self._within[span]

    def can_be(self, span: _Span) -> bool:
        """Whether layers can be a stage: what all but the last one make is read in it alone, row by row."""
        first, end = span
        for index in range(first, end - 1):
            output = self.layers[index].output
            alone = self._writers[output.name] == [index] and output.whole is None and output.name not in self._wanted
            if not alone or any(reader >= end for reader in self._readers.get(output.name, ())):
                return False
        inner = self.within(span)
        return all(
            reads_in_order(layer, operand) and tensor.whole is None
            for layer in self.layers[first:end]
            for operand, tensor in enumerate(layer.inputs)
            if tensor.name in inner
        )

    def slices(self, span: _Span, width: int) -> dict[str, int]:
        """Tensors of a stage that are made and read some channels at a time, by `width` groups, and their channels."""
        if (span, width) not in self._slices:
            found: dict[str, int] = {}
            index = span[0]
            while width and index < span[1] - 1:
                tensor = self.layers[index].output
                channels = width * self.config.lanes
                if channels < tensor.channels and self._can_be_sliced(index):
                    found[tensor.name] = channels
                    index += 1
                index += 1
            self._slices[span, width] = found
        return self._slices[span, width]

    def _can_be_sliced(self, index: int) -> bool:
        """Whether what a layer makes is read by the next one alone, channel by channel."""
        maker, reader = self.layers[index : index + 2]
        return (
            (isinstance(maker, Conv2D) or keeps_channels_apart(maker))
            and keeps_channels_apart(reader)
            and reader.inputs[0] == maker.output
            and maker.output.channels == reader.output.channels
            and self._readers[maker.output.name] == [index + 1]
            and reads_in_order(reader, 0)
        )

    def _beside(self, span: _Span, width: int) -> list[_Span]:
        """Of each layer of a stage, the first and the last of those that it runs in turns with."""
        if (span, width) not in self._turns:
            sliced = self.slices(span, width)
            result: list[_Span] = []
            for index in range(*span):
                before = index > span[0] and self.layers[index - 1].output.name in sliced
                result.append((index - before, index + (self.layers[index].output.name in sliced)))
            self._turns[span, width] = result
        return self._turns[span, width]

    def is_partial(self, index: int) -> bool:
        """Whether a layer leaves out elements of the rows that it writes."""
        t = self.layers[index].output
        return t.whole is not None and (t.columns, t.channels, t.row_step) != (*t.whole[1:], 1)

    def loaded(self, span: _Span, external: frozenset[str]) -> frozenset[str]:
        """External tensors of which strips bring rows: operands, and what others have written to before."""
        last = span[1] - 1
        read = {t.name for layer in self.layers[slice(*span)] for t in layer.inputs}
        output = self.layers[last].output.name
        if self.is_partial(last) and (self._writers[output][0] != last or output in self._given):
            read.add(output)
        return frozenset(read & external)

    # Strips

    def _roles(self, span: _Span, external: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
        """Tensors whose rows a strip has from multiples of `row_banks` on, and those that it brings twice.

        Layers that leave out no rows read from the first row of a buffer on, or from one in the same bank. If others
        read more of an external tensor, they get rows of their own.
        """
        inner = self.within(span)
        strict = [index for index in range(*span) if leaves_out_nothing(self.layers[index])]
        banked: set[str] = set()
        twice: set[str] = set()
        before = None
        while before != len(banked):
            before = len(banked)
            for index in strict:
                layer = self.layers[index]
                for name in {t.name for i, t in enumerate(layer.inputs) if reads_in_order(layer, i)}:
                    others = [x for x in self._readers[name] if span[0] <= x < span[1] and x != index]
                    on_chip = name not in inner and name not in external
                    if on_chip or (others and (name in inner or set(others) & set(strict))):
                        banked.add(name)
                    elif others:
                        twice.add(name)
                    if name in banked:
                        banked.add(layer.output.name)
        return frozenset(banked), frozenset(twice - banked)

    def heights(self, span: _Span, external: frozenset[str]) -> list[int]:
        """Heights of strips to try, falling."""
        rows = self.layers[span[1] - 1].output.rows
        if span[1] - span[0] == 1 and not external & self.touched(span):
            return [rows]
        step = self._step(span, external)
        found = [rows, *range((rows - 1) // step * step, 0, -step)]
        return found if step == self.config.row_banks or rows == 1 else [*found, 1]

    def _step(self, span: _Span, external: frozenset[str]) -> int:
        """Strips begin at multiples of so many rows: of two, which convolutions make at once, or of all banks."""
        banked, _ = self._roles(span, external)
        return self.config.row_banks if self.layers[span[1] - 1].output.name in banked else 2

    def strips(self, span: _Span, external: frozenset[str], height: int) -> tuple[Strip, ...]:
        """The strips of a stage whose last layer makes so many rows at a time."""
        key = span, external & self.touched(span), height
        if key not in self._made:
            roles = self._roles(span, external)
            rows = self.layers[span[1] - 1].output.rows
            bounds = balanced(rows, height, min(self._step(span, external), height))
            self._made[key] = tuple(self._strip(span, external, roles, *bound) for bound in bounds)
        return self._made[key]

    def _strip(
        self,
        span: _Span,
        external: frozenset[str],
        roles: tuple[frozenset[str], frozenset[str]],
        first: int,
        end: int,
    ) -> Strip:
        """One strip: from the last layer back, what each layer has to make for those behind it."""
        needed: dict[str, Rows] = {}
        made: list[Rows] = []
        banks = self.config.row_banks
        banked, twice = roles
        for index in range(span[1] - 1, span[0] - 1, -1):
            layer = self.layers[index]
            rows = (first, end) if index == span[1] - 1 else needed[layer.output.name]
            made.append(rows)
            if index == span[1] - 1:
                needed[layer.output.name] = rows_written(layer, *rows)
            for operand, tensor in enumerate(layer.inputs):
                begin, stop = rows_read(layer, operand, *rows)
                name = copy_name(tensor.name) if tensor.name in twice and leaves_out_nothing(layer) else tensor.name
                known = needed.get(name, (begin, stop))
                begin, stop = min(begin, known[0]), max(stop, known[1])
                if name in banked:
                    begin = begin // banks * banks
                needed[name] = begin, stop
        buffered = self.within(span) | external
        return Strip(tuple(made[::-1]), {name: rows for name, rows in needed.items() if source_of(name) in buffered})

    # Memory

    def buffer_rows(self, strips: Sequence[Strip]) -> dict[str, int]:
        """Rows of the buffer of each tensor."""
        found: dict[str, int] = {}
        for strip in strips:
            for name, (begin, stop) in strip.tensors.items():
                found[name] = max(found.get(name, 0), stop - begin)
        return found

    def buffer_life(self, span: _Span, loaded: frozenset[str], name: str, width: int = 0) -> _Span:
        """First and last layer of a buffer's life: strips bring all rows first and store the results in the end."""
        first, end = span
        beside = self._beside(span, width)
        name = source_of(name)
        readers = [index for index in self._readers.get(name, ()) if first <= index < end]
        if name == self.layers[end - 1].output.name:
            return (first if name in loaded else beside[-1][0]), end - 1
        begin = first if name in loaded else beside[self._writers[name][0] - first][0]
        return begin, beside[max(readers) - first][1]

    def last_reader(self, span: _Span, loaded: frozenset[str], width: int) -> int:
        """The last layer of a stage that needs the rows that a strip brings at first."""
        names = loaded - self.late(span, loaded, width) or loaded
        return max(self.buffer_life(span, loaded, name, width)[1] for name in names)

    def first_reader(self, span: _Span, name: str, width: int) -> int:
        """The first layer of a stage that needs rows that a strip brings."""
        readers = self._readers_within(span, source_of(name))
        if name != source_of(name):
            readers = [index for index in readers if leaves_out_nothing(self.layers[index])]
        return min(self._beside(span, width)[index - span[0]][0] for index in readers)

    def late(self, span: _Span, loaded: frozenset[str], width: int) -> frozenset[str]:
        """Names of tensors, or of their copies, of which strips bring rows that the first layers do not read."""
        key = span, loaded, width
        if key not in self._late:
            first_turn = self._beside(span, width)[0][1]
            output = self.layers[span[1] - 1].output.name
            self._late[key] = frozenset(
                name
                for tensor in loaded - {output}
                for name in (tensor, copy_name(tensor))
                if (
                    name == tensor
                    or any(leaves_out_nothing(self.layers[x]) for x in self._readers_within(span, tensor))
                )
                and self.first_reader(span, name, width) > first_turn
            )
        return self._late[key]

    def _readers_within(self, span: _Span, tensor: str) -> list[int]:
        return [index for index in self._readers.get(tensor, ()) if span[0] <= index < span[1]]

    def buffer_layout(self, name: str, sliced: Mapping[str, int]) -> TensorLocation:
        """How rows of a tensor lie in its buffer."""
        location = self.layouts[source_of(name)]
        channels = sliced.get(name)
        if channels is None:
            return location
        shape = (1, location.rows, location.columns, channels)
        stride = -(-location.columns * channels // self.config.granule)
        changed = dataclasses.replace(
            location, channels=channels, pixel_stride=channels, row_stride=stride, shape=shape
        )
        return _aligned(self.config, changed)

    def in_place(self, span: _Span, strips: Sequence[Strip], width: int) -> dict[str, str]:
        """Sums that go to the place of an operand: each output, and the tensor whose buffer it has.

        The engine reads a word of both operands before it writes that of the sum, and reads none twice.
        """
        found: dict[str, str] = {}
        for index in self._sums[bisect.bisect_left(self._sums, span[0]) : bisect.bisect_left(self._sums, span[1])]:
            layer = self.layers[index]
            output = layer.output.name
            for tensor in layer.inputs:
                name = tensor.name
                if (
                    name in self.within(span)
                    and name not in self.slices(span, width)
                    and tensor.whole is None
                    and max(self._readers[name]) == index
                    and self.layouts[name].row_stride == self.layouts[output].row_stride
                    and all(output in s.tensors and s.tensors[name] == s.tensors[output] for s in strips)
                ):
                    found[output] = found.get(name, name)
                    break
        return found

    def buffer_granules(
        self, span: _Span, external: frozenset[str], height: int, buffers: int = 0, width: int = 0
    ) -> int:
        """Granules of a bank that a stage's buffers take at once."""
        loaded = self.loaded(span, external)
        sliced = self.slices(span, width)
        strips = self.strips(span, external, height)
        shared = self.in_place(span, strips, width)
        late = self.late(span, loaded, width) if buffers else frozenset()
        total = [0] * (span[1] - span[0])
        for name, rows in self.buffer_rows(strips).items():
            size = -(-rows // self.config.row_banks) * self.buffer_layout(name, sliced).row_stride
            if buffers and source_of(name) in loaded:
                total = [before + (1 if name in late else buffers) * size for before in total]
                continue
            begin, end = self.buffer_life(span, loaded, name, width)
            if name in shared:
                begin += 1  # until then it is the operand's
            for index in range(begin, end + 1):
                total[index - span[0]] += size
        return max(total)

    def misfits(self) -> dict[str, int]:
        """See the function."""
        everything = frozenset(self.layouts)
        found: dict[str, int] = {}
        for index, layer in enumerate(self.layers):
            span = index, index + 1
            least = min(self.buffer_granules(span, everything, h) for h in self.heights(span, everything)[-4:])
            if least > self.config.bank_granules:
                size = least * self.config.granule * self.config.row_banks
                found[layer.name] = max(size, found.get(layer.name, 0))
        return found

    def free(self, span: _Span, external: frozenset[str], available: int) -> int:
        """Granules that tensors on the chip leave for a stage's buffers."""
        first, end = span
        inner = self.within(span)
        return available - sum(
            self.granules[name]
            for name, (begin, last) in self.lives.items()
            if begin < end and last >= first and name not in external and name not in inner
        )

    # Costs

    def stage_cost(self, span: _Span, external: frozenset[str], available: int) -> _Choice:
        """The best way to run a stage."""
        mine = (external - self.within(span)) & self.touched(span)
        free = self.free(span, external, available)
        key = span, mine, free if mine or len(self.within(span)) else min(free, 0)
        if key not in self._cycles:
            best = _Choice()
            if free >= 0:
                for width in _WIDTHS:
                    if not width or self.slices(span, width):
                        best = min(best, self._best_height(span, mine, free, width))
            self._cycles[key] = best
        return self._cycles[key]

    def _best_height(self, span: _Span, external: frozenset[str], free: int, width: int) -> _Choice:
        """The best of a stage with slices of so many channel groups, in so many granules."""
        best = _Choice()
        heights = self.heights(span, external)
        loaded = self.loaded(span, external)
        choices = [0]
        if loaded:
            choices = [0, 1, 2] if self.last_reader(span, loaded, width) < span[1] - 1 else [0, 2]
        for buffers in choices:

            def fits(height: int, buffers: int = buffers) -> bool:
                return self.buffer_granules(span, external, height, buffers, width) <= free

            # The higher, the more they take.
            highest = bisect.bisect_left(heights, True, key=fits)
            for height in heights[highest : highest + _HEIGHTS]:
                # Lower ones bring and make more rows twice.
                if fits(height):
                    cycles = self._strips_cost(span, external, height, buffers, width)
                    best = min(best, _Choice(cycles, height, buffers, width))
        return best

    def _strips_cost(self, span: _Span, external: frozenset[str], height: int, buffers: int, width: int) -> float:
        """Cycles of a stage in strips of so many rows. Weights come while the accelerator runs, and rows if they come
        ahead; nothing is stored meanwhile."""
        assert self.timing is not None
        timing = self.timing
        strips = self.strips(span, external, height)
        loaded = self.loaded(span, external)
        output = self.layers[span[1] - 1].output.name
        slices = {name: -(-self.layouts[name].channels // c) - 1 for name, c in self.slices(span, width).items()}
        last = self.last_reader(span, loaded, width) if buffers == 1 else span[1]
        late = self.late(span, loaded, width) if buffers else frozenset()
        late_reader = min((self.first_reader(span, name, width) for name in late), default=span[0])
        computing = loads = stores = hidden = 0.0
        words = largest = 0
        behind = 0.0
        """cycles that the strip before takes when it has read its rows"""
        for index in range(*span):
            group = self._costs.weight_words(index, self.layers[index])
            words += group
            largest = max(largest, group // max(1, -(-self.layers[index].output.channels // self.config.lanes)))
        for strip in strips:
            brought = brought_late = before = 0.0
            for name, (begin, end) in strip.tensors.items():
                pieces = min(end - begin, self.config.row_banks)
                size = self.layouts[source_of(name)].row_stride * self.config.granule // 4 * (end - begin) / pieces
                if name in late:
                    brought_late += pieces * load_cycles(timing, size)
                elif source_of(name) in loaded:
                    brought += pieces * load_cycles(timing, size)
                if name == output and name in external:
                    stores += pieces * store_cycles(timing, size)
            hidden += min(brought, behind)
            loads += brought + brought_late
            behind = 0.0
            for index in range(*span):
                layer = self.layers[index]
                begin, end = strip.layers[index - span[0]]
                cycles = self._costs.cycles(index, layer, end - begin)
                cycles += 2 * _SLICE_CYCLES * slices.get(layer.output.name, 0)
                computing += cycles
                # Of two buffers one is free all the time.
                behind += cycles if buffers == 2 or index > last else 0
                before += cycles if index < late_reader else 0
            hidden += min(brought_late, before)
        # What exceeds the memory comes again for each strip, but for what stays: see `strip_program`.
        excess = words - kept_words(self.config, largest) if words > self.config.weight_words else 0
        weights = load_cycles(timing, (words + (len(strips) - 1) * excess) * weight_word_columns(self.config))
        if external or len(strips) > 1:
            computing += len(strips) * run_cycles(timing)
        engine, memory = computing + loads - hidden, weights + loads
        # What is hidden here could have hidden something of the stages beside.
        return stores + max(engine, memory) + _HIDDEN * min(engine, memory)

    def cost(self, spans: Sequence[_Span], external: frozenset[str], available: int) -> tuple[int, float]:
        """(stages that do not fit, cycles of the others)."""
        missing, total = 0, 0.0
        for name in (self._given | self._wanted) - external:
            total += self._exchange_cost(name)
        for span in spans:
            cycles = self.stage_cost(span, external, available).cycles
            if math.isinf(cycles):
                missing += 1
            else:
                total += cycles
        return missing, total

    def _words(self, name: str) -> int:
        return self.granules[name] * self.config.row_banks * self.config.granule // 4

    def _exchange_cost(self, name: str) -> float:
        """Of a region's input or output on the chip."""
        assert self.timing is not None
        move = store_cycles if name in self._wanted else load_cycles
        return self.config.row_banks * move(self.timing, self._words(name) / self.config.row_banks)

    # Choice

    def plan(self, available: int) -> StripPlan:
        """The plan that is found for so many granules of each bank; its memory may be larger for gaps."""
        spans: list[_Span] = [(index, index + 1) for index in range(len(self.layers))]
        external = self._fitting(spans, available)
        best = self.cost(spans, external, available), spans, external
        while True:
            external = self._improved(spans, external, available)
            found = self.cost(spans, external, available), spans, external
            spans = self._stages(external, available)
            found = min(found, (self.cost(spans, external, available), spans, external), key=lambda f: f[0])
            if found[0] >= best[0]:
                return self._made_plan(best[1], best[2], available)
            best = found

    def _fitting(self, spans: Sequence[_Span], available: int) -> frozenset[str]:
        """Tensors for external memory so that every stage fits."""
        chosen: frozenset[str] = frozenset()
        while True:
            tight = [span for span in spans if math.isinf(self.stage_cost(span, chosen, available).cycles)]
            if not tight:
                return chosen
            live = {
                name: [span for span in tight if begin < span[1] and last >= span[0]]
                for name, (begin, last) in self.lives.items()
                if name not in chosen
            }
            merits = {name: self._merit(name, found) for name, found in live.items() if found}
            if not merits:
                raise CapacityError(
                    f"{self.graph.name}: no plan of strips fits {self.config.activation_bytes} bytes of activation "
                    "memory; use a configuration with more"
                )
            chosen |= {max(sorted(merits), key=merits.__getitem__)}

    def _merit(self, name: str, tight: Sequence[_Span]) -> float:
        """Granules that stages gain if a tensor is external, for the words that are moved."""
        relief = 0
        for span in tight:
            gain = self.granules[name]
            if name in self.touched(span):
                gain = max(0, gain - 2 * self.layouts[name].row_stride)
            relief += gain
        moved = 2 * len(self._readers.get(name, ())) + 10 * len(self._writers.get(name, ()))
        return relief / (self._words(name) * moved)

    def _improved(self, spans: Sequence[_Span], external: frozenset[str], available: int) -> frozenset[str]:
        """After single changes, as long as one of them saves cycles."""
        inner = {name for span in spans for name in self.within(span)}
        names = sorted(set(self.lives) - inner, key=lambda name: (-self._words(name), name))
        cost = self.cost(spans, external, available)
        changed = True
        while changed:
            changed = False
            for name in names:
                other = external ^ {name}
                found = self.cost(spans, other, available)
                if found < cost:
                    external, cost, changed = other, found, True
            if not changed:
                for changes in self._exchanges(spans, names, external):
                    found = self.cost(spans, external ^ changes, available)
                    if found < cost:
                        external, cost, changed = external ^ changes, found, True
                        break
        return external

    def _exchanges(
        self, spans: Sequence[_Span], names: Sequence[str], external: frozenset[str]
    ) -> Iterator[frozenset[str]]:
        """A tensor in external memory and one on the chip, or all of them, that stages have with it."""
        for name in names:
            if name in external:
                first, last = self.lives[name]
                mine = [span for span in spans if first < span[1] and last >= span[0]]
                others = [
                    other
                    for other in names
                    if other not in external
                    and any(self.lives[other][0] < end and self.lives[other][1] >= begin for begin, end in mine)
                ]
                if len(others) > 1:
                    yield frozenset({name, *others})
                yield from (frozenset({name, other}) for other in others)

    def _stages(self, external: frozenset[str], available: int) -> list[_Span]:
        """The stages that take the fewest cycles with these tensors in external memory, unless they lie in a stage."""
        best: list[tuple[tuple[int, float], int]] = [((0, 0.0), 0)]
        for end in range(1, len(self.layers) + 1):
            options = []
            for first in range(end - 1, max(-1, end - 1 - _MOST_LAYERS), -1):
                span = first, end
                if not self.can_be(span):
                    continue
                if end - first > 1 and not external & self.touched(span) and not self.slices(span, 1):
                    continue  # nothing is gained
                cycles = self.stage_cost(span, external, available).cycles
                before = best[first][0]
                if math.isinf(cycles):
                    options.append(((before[0] + 1, before[1]), first))
                else:
                    options.append(((before[0], before[1] + cycles), first))
            best.append(min(options))
        spans: list[_Span] = []
        end = len(self.layers)
        while end:
            spans.append((best[end][1], end))
            end = best[end][1]
        return spans[::-1]

    def _made_plan(self, spans: Sequence[_Span], external: frozenset[str], available: int) -> StripPlan:
        external -= {name for span in spans for name in self.within(span)}
        stages: list[Stage] = []
        lives: list[Lifetime] = []
        places: dict[str, TensorLocation] = {}
        places_of: dict[str, str] = {}
        """buffers that have the place of another one"""
        whole = {name: life for name, life in self.lives.items() if name not in external}
        for span in spans:
            choice = self.stage_cost(span, external, available)
            strips = self.strips(span, external, choice.height)
            loaded = self.loaded(span, external)
            buffers = choice.buffers if len(strips) > 1 else 0
            sliced = self.slices(span, choice.width)
            late = self.late(span, loaded, choice.width) if buffers else frozenset()
            stages.append(Stage(*span, strips, loaded, buffers, late & strips[0].tensors.keys(), sliced))
            for name in self.within(span):
                del whole[name]
            for name in whole.keys() & self.touched(span):
                # As long as there are strips to come.
                whole[name] = min(whole[name][0], span[0]), max(whole[name][1], span[1] - 1)
            shared = self.in_place(span, strips, choice.width)
            for name, rows in self.buffer_rows(strips).items():
                buffer = buffer_name(span[0], name)
                places[buffer] = _with_rows(self.buffer_layout(name, sliced), rows, buffer)
                life = self.buffer_life(span, loaded, name, choice.width)
                if name in shared:
                    places_of[buffer] = buffer_name(span[0], shared[name])
                    continue
                for output in (output for output, operand in shared.items() if operand == name):
                    life = life[0], max(life[1], self.buffer_life(span, loaded, output, choice.width)[1])
                if buffers and source_of(name) in loaded:
                    life = span[0], span[1] - 1
                if buffers == 2 and source_of(name) in loaded and name not in late:
                    second = buffer_name(span[0], name, second=True)
                    places[second] = _with_rows(self.layouts[source_of(name)], rows, second)
                    lives.append(Lifetime(second, places[second].granules(self.config), *life))
                lives.append(Lifetime(buffer, places[buffer].granules(self.config), *life))
        for name, (first, last) in whole.items():
            end = len(self.layers) if name in self._wanted else last
            lives.append(Lifetime(name, self.granules[name], -1 if name in self._given else first, end))
            places[name] = self.layouts[name]
        placement = place_tensors(lives)
        memory = MemoryPlan(
            {
                name: dataclasses.replace(place, base=placement.offsets[places_of.get(name, name)])
                for name, place in places.items()
            },
            tuple(lives),
            placement.granules,
            placement.strategy,
        )
        order = tuple(name for name in self.lives if name in external)
        cycles = self.cost(spans, external, available)[1]
        return StripPlan(self.graph, tuple(stages), order, memory, self.layouts, cycles)


def _with_rows(location: TensorLocation, rows: int, name: str) -> TensorLocation:
    shape = (1, rows, location.columns, location.channels)
    return dataclasses.replace(location, rows=rows, name=name, shape=shape)
