"""A plan of strips (`compiler.strips`) as parts: what each loads, runs and stores.

Weights stay in the weight memory until it is full; then it is filled again from its beginning. A part brings the
weights that are not there, its program, and the rows of external tensors that its layers read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Rows, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError
from nnloom.arch.isa import DESCRIPTOR_WORDS, Descriptor, check_descriptor
from nnloom.arch.legality import register_faults

from .graph import Add, Layer, Mul, Tensor
from .lower import LoweredLayer, add_operands, finished_program, located, lower_layer
from .parts import group_too_large
from .strip_layers import Held, strip_layer
from .strips import Stage, Strip, StripPlan, buffer_name

__all__ = ["StripPart", "strip_parts"]


@dataclass(frozen=True)
class StripPart:
    """A program with what it loads and stores. Weights of `layers` are only those that it loads."""

    layers: tuple[LoweredLayer, ...]
    locations: tuple[TensorLocation, ...]
    """what each layer writes: an external tensor's rows under the tensor's name"""
    weights_base: int
    loads: tuple[Rows, ...]
    stores: tuple[Rows, ...]


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
            for strip in stage.strips:
                yield self._strip(stage, strip, again=strip is not stage.strips[-1])

    def _strip(self, stage: Stage, strip: Strip, *, again: bool) -> _Run:
        places = self._plan.memory.locations
        locations: dict[str, TensorLocation] = dict(places)
        held: dict[str, Held] = {}
        for name, (begin, end) in strip.tensors.items():
            buffer, entire = buffer_name(stage.first, name), self._entire[name]
            shape = (1, end - begin, entire.columns, entire.channels)
            held[name] = Held(dataclasses.replace(entire, name=buffer, rows=end - begin, shape=shape), begin)
            locations[buffer] = dataclasses.replace(places[buffer], rows=end - begin, shape=shape)
        layers: list[LoweredLayer] = []
        written: list[TensorLocation] = []
        for index, (first, end) in zip(range(stage.first, stage.end), strip.layers, strict=True):
            layer = self._plan.graph.layers[index]
            inputs = [held.get(t.name) or Held(t.entire) for t in layer.inputs]
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
            loads=tuple(self._rows(stage, n, rows) for n, rows in strip.tensors.items() if n in stage.loaded),
            layers=layers,
            locations=written,
            stores=tuple(self._rows(stage, n, strip.tensors[n]) for n in stored),
            again=again,
        )

    def _rows(self, stage: Stage, name: str, rows: tuple[int, int]) -> Rows:
        base = self._plan.memory.locations[buffer_name(stage.first, name)].base
        return Rows(tensor=self._numbers[name], first=rows[0], count=rows[1] - rows[0], base=base)

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


@dataclass
class _Packer:
    """Cuts runs into parts, and gives weights their places."""

    config: AcceleratorConfig
    tables: Sequence[bytes]
    _resident: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """place of what is in the weight memory: by array, first group, groups"""
    _used: int = 0
    _kept: list[NDArray[np.uint8]] = field(default_factory=list)
    """arrays, so that none gets the identity of another"""
    _programs: dict[tuple, list[Descriptor]] = field(default_factory=dict)

    def parts(self, runs: Iterator[_Run]) -> Iterator[StripPart]:
        """Of all runs."""
        for run in runs:
            pieces = list(self._pieces(run))
            for index, (base, items) in enumerate(pieces):
                program = self._finished([item for item, _ in items])
                yield StripPart(
                    tuple(program),
                    tuple(location for _, location in items),
                    base,
                    run.loads if index == 0 else (),
                    run.stores if index == len(pieces) - 1 else (),
                )

    def _finished(self, layers: list[LoweredLayer]) -> list[LoweredLayer]:
        """`finished_program`, once for equal programs."""
        key = tuple((item.descriptor, item.layer.table) for item in layers)
        if key not in self._programs:
            program = finished_program(self.config, layers, self.tables)
            self._programs[key] = [item.descriptor for item in program]
        descriptors = self._programs[key]
        return [dataclasses.replace(item, descriptor=d) for item, d in zip(layers, descriptors, strict=True)]

    def _pieces(self, run: _Run) -> Iterator[tuple[int, list[tuple[LoweredLayer, TensorLocation]]]]:
        """(first weight memory word that is loaded, layers with the weights to load) of each part of a run."""
        config = self.config
        missing = sum(len(x.weights) for x in run.layers if (id(x.weights), 0, x.groups) not in self._resident)
        if run.again and self._used + missing > config.weight_words >= sum(len(x.weights) for x in run.layers):
            # Once more room, and then they stay for all strips.
            self._flush()
        base, items = self._used, list[tuple[LoweredLayer, TensorLocation]]()
        for layer, location in zip(run.layers, run.locations, strict=True):
            reason = group_too_large(config, layer)
            if reason:
                raise CapacityError(f"{layer.layer.name}: {reason}; run this layer on the CPU")
            first, size = 0, len(layer.weights) // layer.groups
            while first < layer.groups:
                key = id(layer.weights), first, layer.groups - first
                if key in self._resident:
                    count, place, weights = layer.groups - first, self._resident[key], layer.weights[:0]
                else:
                    count = min(layer.groups - first, (config.weight_words - self._used) // size)
                    if count:
                        place, self._used = self._used, self._used + count * size
                        weights = layer.weights[first * size : (first + count) * size]
                        self._resident[key[0], first, count] = place
                        self._kept.append(layer.weights)
                if not count or len(items) == config.program_words // DESCRIPTOR_WORDS:
                    if count and len(weights):
                        self._used -= count * size
                        del self._resident[key[0], first, count]
                    if items:
                        yield base, items
                    if not count:
                        self._flush()
                    base, items = self._used, []
                    continue
                taken = layer.take_groups(config, first, count)
                descriptor = dataclasses.replace(taken.descriptor, weight_base=place)
                items.append((dataclasses.replace(taken, descriptor=descriptor, weights=weights), location))
                first += count
        yield base, items

    def _flush(self) -> None:
        """Nothing that is in the weight memory is needed any more."""
        self._used = 0
        self._resident.clear()
