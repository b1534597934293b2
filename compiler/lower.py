"""Layers to descriptors and weight words.

Each `_lower_*` function states the loop nest (`nnloom.arch.loopnest`) of one layer kind and lays its weights
out in the order in which that nest reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import CapacityError, UnsupportedOperatorError
from nnloom.arch.isa import TABLE_ENTRIES, Descriptor, Kind, check_descriptor, encode_parameters
from nnloom.arch.legality import LAST_KERNEL_ROW, MOST_ROW_STEP, register_faults
from nnloom.arch.loopnest import ADD_BATCH
from nnloom.arch.numerics import (
    ADD_LEFT_SHIFT,
    IDENTITY_MULTIPLIER,
    average_pool_multiplier,
    dense_multiplier,
    quantize_multiplier,
    requantize,
)

from .carried_steps import carried_steps
from .graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Layer,
    LayerGraph,
    MaxPool2D,
    Mul,
    Tensor,
    WindowSum,
)
from .overlap import start_delays
from .padding_columns import keep_padding_columns

__all__ = [
    "LoweredLayer",
    "accumulator_range",
    "accumulators_fit",
    "add_operands",
    "channel_multipliers",
    "finished_program",
    "is_narrow",
    "located",
    "long_rows",
    "lower",
    "lower_layer",
    "lower_layers",
    "place_program",
    "real_multipliers",
    "table_image",
    "tables_of",
    "tensor_shape",
    "unsupported_reason",
]

NARROW_BITS = 18


@dataclass(frozen=True)
class LoweredLayer:
    """One layer as the engine runs it; `weight_base` and `last` are set when the program is put together."""

    layer: Layer
    descriptor: Descriptor
    weights: NDArray[np.uint8]
    """[words, weight_word_bytes]: of each group its parameters, then its weights"""
    channels: range | None = None
    """output channels, if they are not all of the layer's"""
    rows: range | None = None
    """rows of the network's layer, if `layer` is only some of them"""
    terms: range | None = None
    """steps of the sums, if they are not all of them (`pieces`)"""
    all_terms: int = 0
    """with `terms`: steps of the whole sums"""

    @property
    def name(self) -> str:
        """Of the layer, and which rows and channels of it."""
        rows = "" if self.rows is None else f" rows {self.rows.start}:{self.rows.stop}"
        channels = "" if self.channels is None else f" [{self.channels.start}:{self.channels.stop}]"
        terms = "" if self.terms is None else f" steps {self.terms.start}:{self.terms.stop} of {self.all_terms}"
        return self.layer.name + rows + channels + terms

    @property
    def macs(self) -> int:
        """Multiplications of the layer, or of these channels and steps of it."""
        macs = self.layer.macs
        if self.channels is not None:
            macs = macs * len(self.channels) // self.layer.output.channels
        return macs if self.terms is None else macs * len(self.terms) // self.all_terms

    @property
    def groups(self) -> int:
        """Channel groups with weights of their own: the pieces that `take_groups` can make."""
        return self.descriptor.n_g if self.descriptor.weight_step_g else 1

    def take_groups(self, config: AcceleratorConfig, first: int, count: int) -> LoweredLayer:
        """The same for some of the groups: a layer of its own that writes its channels of the output tensor."""
        d = self.descriptor
        if count == self.groups:
            return self
        last = first + count
        descriptor = dataclasses.replace(
            d,
            n_g=count,
            q_start=d.q_start + first * d.q_step_g,
            out_base=d.out_base + first * d.out_step_g,
            half_last=d.half_last if last == d.n_g else 0,
        )
        words = slice(first * d.weight_step_g, last * d.weight_step_g)
        channels = range(first * config.lanes, min(last * config.lanes, self.layer.output.channels))
        return dataclasses.replace(self, descriptor=descriptor, weights=self.weights[words], channels=channels)

    def has_pieces(self, config: AcceleratorConfig) -> bool:
        """Whether the sums of a channel group can be made in several programs."""
        d = self.descriptor
        return config.partial_sums and d.kind == Kind.DENSE and (d.n_oy, d.n_ox) == (1, 1) and not d.pixel_pair

    def pieces(self, config: AcceleratorConfig, words: int) -> Iterator[LoweredLayer]:
        """Some steps of the sums of a channel group, as few times as possible: each has at most so many words, its
        parameters included, leaves its sums to the next, and the last one writes. For a layer that `has_pieces`."""
        size = config.parameter_words
        for group in range(self.groups):
            whole = self.take_groups(config, group, 1)
            d = whole.descriptor
            steps = d.n_ky * d.n_kx
            rows = (words - size) // d.n_kx
            if rows:
                cuts = [(row, min(rows, d.n_ky - row), 0, d.n_kx) for row in range(0, d.n_ky, rows)]
            else:
                columns = words - size
                cuts = [
                    (row, 1, first, min(columns, d.n_kx - first))
                    for row in range(d.n_ky)
                    for first in range(0, d.n_kx, columns)
                ]
            for row, n_ky, column, n_kx in cuts:
                terms = range(row * d.n_kx + column, (row + n_ky - 1) * d.n_kx + column + n_kx)
                descriptor = dataclasses.replace(
                    d,
                    n_ky=n_ky,
                    n_kx=n_kx,
                    row_start=d.row_start + row * d.row_step_ky,
                    q_start=d.q_start + column * d.q_step_kx,
                    kernel_rows=d.kernel_rows if d.row_triple else d.kernel_rows - row * d.row_step_ky,
                    weight_step_g=size + len(terms),
                    resume=int(terms.start > 0),
                    keep=int(terms.stop < steps),
                )
                weights = [whole.weights[:size], whole.weights[size + terms.start : size + terms.stop]]
                yield dataclasses.replace(
                    whole,
                    descriptor=descriptor,
                    weights=np.concatenate(weights),
                    channels=whole.channels or range(self.layer.output.channels),
                    terms=terms,
                    all_terms=steps,
                )


def real_multipliers(input_scale: float, weight_scales: NDArray[np.float64], output_scale: float) -> list[float]:
    """Real requantization factor of each channel, in the reference kernels' order of operations."""
    return [float(input_scale) * float(scale) / float(output_scale) for scale in weight_scales]


def _folded_bias(weights: NDArray[np.signedinteger], bias: NDArray[np.int32], zero_point: int) -> NDArray[np.int64]:
    """Bias less what the operand's zero point adds to each output; weights [outputs, ...]."""
    return bias.astype(np.int64) - zero_point * weights.reshape(len(weights), -1).sum(1, dtype=np.int64)


def _extremes(weights: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The smallest and the largest sum of products with int8 of each output; weights [outputs, ...].

    Of the largest networks' layers a copy in int64 would be a gigabyte.
    """
    w = weights.reshape(len(weights), -1)
    negative = np.minimum(w, 0).sum(1, dtype=np.int64)
    positive = w.sum(1, dtype=np.int64) - negative
    return 127 * negative - 128 * positive, 127 * positive - 128 * negative


def accumulator_range(
    weights: NDArray[np.signedinteger], bias: NDArray[np.int32], zero_point: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The smallest and largest accumulator that any input makes of each output.

    weights: [outputs, ...]; zero_point: the operand's.
    """
    folded = _folded_bias(weights, bias, zero_point)
    low, high = _extremes(weights)
    return low + folded, high + folded


def accumulators_fit(weights: NDArray[np.signedinteger], bias: NDArray[np.int32], zero_point: int) -> bool:
    """Whether no input makes an accumulator exceed 32 bits, nor its start, the folded bias, does."""
    low, high = accumulator_range(weights, bias, zero_point)
    ends = np.concatenate([low, high, _folded_bias(weights, bias, zero_point)])
    return bool((ends < 1 << 31).all() and (ends >= -(1 << 31)).all())


def channel_multipliers(
    factors: Sequence[float], accumulators: tuple[int, int], limits: tuple[int, int], *, double_rounding: bool
) -> list[tuple[int, int]]:
    """Multiplier and shift of each channel.

    Parameters
    ----------
    factors
        Of each channel.
    accumulators
        The smallest and the largest that there can be in any channel.
    limits
        Of the outputs, without the zero point.
    double_rounding
        As convolutions; without, as fully connected layers.

    Raises
    ------
    ValueError
        If the engine cannot do a factor exactly.
    """
    if double_rounding:
        return [quantize_multiplier(factor) for factor in factors]
    # LiteRT multiplies in float64 here: only accumulators that there can be must come out the same
    low, high = max(accumulators[0], -(1 << 31)), min(accumulators[1], (1 << 31) - 1)
    exact = {f: dense_multiplier(f, *limits, low, high) for f in set(factors)}
    return [exact[factor] for factor in factors]


def add_operands(layer: Add) -> tuple[int, int]:
    """Indices (x, y): operand X has the larger scale and so the factor 1/2 exactly."""
    a, b = layer.inputs
    return (0, 1) if a.scale >= b.scale else (1, 0)


def _add_factors(layer: Add) -> tuple[float, float]:
    """Real factors of operand Y and of the sum."""
    _x, y = add_operands(layer)
    twice = 2 * max(float(t.scale) for t in layer.inputs)
    return layer.inputs[y].scale / twice, twice / ((1 << ADD_LEFT_SHIFT) * float(layer.result.scale))


def _negates(layer: Add) -> bool:
    """Whether the rescaled negative of every value of the second operand is the negative of the rescaled value."""
    if add_operands(layer)[1] == 0:
        return True  # it is operand X, whose factor is 1/2
    values = np.arange(-255, 256) << ADD_LEFT_SHIFT
    rescaled = requantize(values, *quantize_multiplier(_add_factors(layer)[0]), double_rounding=True)
    return np.array_equal(rescaled, -rescaled[::-1])


def _mul_factor(layer: Mul) -> float:
    """Real factor of the product, in the reference kernel's float32."""
    a, b = (np.float32(t.scale) for t in layer.inputs)
    return float(a * b / np.float32(layer.result.scale))


def _kernel_rows(layer: Layer) -> int:
    """Input rows of an output row."""
    match layer:
        case Conv2D():
            return layer.weights.shape[1]
        case DepthwiseConv2D():
            return layer.weights.shape[0]
        case FullyConnected():
            return layer.inputs[0].rows
        case AveragePool2D() | MaxPool2D() | WindowSum():
            return layer.window[0]
    return 1


def unsupported_reason(layer: Layer, config: AcceleratorConfig) -> str | None:
    """Why this configuration cannot run the layer, or None if it can."""
    if not isinstance(layer, Conv2D | FullyConnected) and not config.depthwise:
        return "the configuration has no window operand (depthwise=False)"
    for tensor in layer.inputs:
        if reason := _unreadable(config, tensor):
            return reason
    if reason := _unwritable(config, layer.output):
        return reason
    if layer.table and not config.tables:
        return "the configuration has no tables (tables=0)"
    if _kernel_rows(layer) > LAST_KERNEL_ROW:
        return f"kernel of more than {LAST_KERNEL_ROW} rows"
    match layer:
        case Conv2D() | DepthwiseConv2D() | FullyConnected():
            try:
                _multipliers(layer)
            except ValueError as error:
                return str(error)
            if not accumulators_fit(_by_output(layer), layer.bias, layer.inputs[0].zero_point):
                return "accumulators that may exceed 32 bits"
        case AveragePool2D():
            rows, columns = layer.window
            o, i = layer.output, layer.inputs[0]
            top, left = layer.padding.top, layer.padding.left
            ends = (o.rows - 1) * layer.strides[0] + rows - top, (o.columns - 1) * layer.strides[1] + columns - left
            if max(top, left) > 0 or ends[0] > i.rows or ends[1] > i.columns:
                return "average pool with padding"
            r = layer.result
            if (r.scale, r.zero_point) != (i.scale, i.zero_point):
                return "pooling that changes the quantization"
            try:
                if rows * columns > 1:
                    average_pool_multiplier(rows * columns)
            except ValueError as error:
                return str(error)
        case WindowSum():
            if 255 * 128 * layer.window[0] * layer.window[1] >= 1 << 31:
                return "accumulators that may exceed 32 bits"
        case MaxPool2D():
            if not config.max_pool:
                return "the configuration has no maximum unit (max_pool=False)"
            r, i = layer.result, layer.inputs[0]
            if (r.scale, r.zero_point) != (i.scale, i.zero_point):
                return "pooling that changes the quantization"
        case Add():
            if not config.elementwise_add:
                return "the configuration has no addend queue (elementwise_add=False)"
            a, b = layer.inputs
            if any(not _has_whole_rows(t) for t in (a, b, layer.output)):
                return "addition of parts of tensors"
            if (a.rows, a.columns, a.channels) != (b.rows, b.columns, b.channels):
                return "addition with broadcasting"
            try:
                for factor in _add_factors(layer):
                    quantize_multiplier(factor)
            except ValueError as error:
                return str(error)
            if layer.subtract and not _negates(layer):
                return "a subtraction that rounds halves of the second operand the other way"
        case Mul():
            if not config.elementwise_mul:
                return "the configuration cannot multiply two tensors (elementwise_mul=False)"
            sizes = {(t.rows, t.columns) for t in layer.inputs}
            if any(t.channels != layer.output.channels for t in layer.inputs):
                return "multiplication with broadcasting of channels"
            if layer.pixel is None and sizes != {(layer.output.rows, layer.output.columns)}:
                return "multiplication with broadcasting"
            if layer.pixel is None and any(not _has_whole_rows(t) for t in (*layer.inputs, layer.output)):
                return "multiplication of parts of tensors"
            try:
                if layer.requantization is None:
                    quantize_multiplier(_mul_factor(layer))
            except ValueError as error:
                return str(error)
        case _:
            return f"no lowering for {type(layer).__name__}"
    return None


def tensor_shape(config: AcceleratorConfig, tensor: Tensor, *, packed: bool, name: str = "") -> TensorLocation:
    """Memory layout of a tensor, at base 0: packed (dense reads only) or padded to whole granules."""
    granule = config.granule
    pixel = tensor.channels if packed else -(-tensor.channels // granule) * granule
    return TensorLocation(
        name=tensor.name,
        rows=tensor.rows,
        columns=tensor.columns,
        channels=tensor.channels,
        base=0,
        row_stride=-(-tensor.columns * pixel // granule),
        pixel_stride=pixel,
        shape=tensor.shape or (1, tensor.rows, tensor.columns, tensor.channels),
        scale=float(tensor.scale),
        zero_point=int(tensor.zero_point),
        layer=name,
    )


def located(config: AcceleratorConfig, locations: Mapping[str, TensorLocation], tensor: Tensor) -> TensorLocation:
    """Where a tensor, or a part of one, lies in activation memory: its first row is in bank `origin[0] % row_banks`."""
    location = locations[tensor.name]
    if tensor.whole is None:
        return location
    row, column, channel = tensor.origin
    base = location.base + row // config.row_banks * location.row_stride
    base += (column * location.pixel_stride + channel) // config.granule
    return dataclasses.replace(
        location,
        rows=tensor.rows,
        columns=tensor.columns,
        channels=tensor.channels,
        base=base,
        pixel_stride=location.pixel_stride * tensor.column_step,
        shape=tensor.shape,
    )


def _has_whole_rows(tensor: Tensor) -> bool:
    """Whether rows follow each other in memory as those of a tensor that is no part do."""
    if tensor.whole is None:
        return True
    steps = tensor.row_step, tensor.column_step
    return (tensor.columns, tensor.channels) == tensor.whole[1:] and steps == (1, 1)


def _unreadable(config: AcceleratorConfig, tensor: Tensor) -> str | None:
    """Why no layer reads such a part of a tensor."""
    row, _, channel = tensor.origin
    if row % config.row_banks or tensor.row_step != 1:
        return f"a part from row {row} on; layers read neighbouring rows from multiples of {config.row_banks} on"
    if channel % config.granule:
        return f"a part from channel {channel} on; parts begin at multiples of {config.granule} channels"
    return None


def _unwritable(config: AcceleratorConfig, tensor: Tensor) -> str | None:
    """Why no layer writes such a part of a tensor."""
    channel = tensor.origin[2]
    if tensor.row_step > MOST_ROW_STEP:
        return f"every {tensor.row_step}th row of a tensor; layers write at least every {MOST_ROW_STEP}th"
    if channel % config.granule:
        return f"a part from channel {channel} on; parts begin at multiples of {config.granule} channels"
    return None


def _pad_to(values: NDArray, count: int, axis: int = 0) -> NDArray:
    """Zeros appended along `axis` up to `count`."""
    width = [(0, 0)] * values.ndim
    width[axis] = (0, count - values.shape[axis])
    return np.pad(values, width)


@dataclass(frozen=True)
class _Channels:
    """What is computed for each output channel.

    weights int8 [channels, ...]; bias (folded with the input zero point), multiplier, shift: int64 [channels].
    """

    weights: NDArray[np.signedinteger]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    narrow: bool
    """limiting every final accumulator to `NARROW_BITS` changes no output"""


def _channels(layer: Conv2D | DepthwiseConv2D | FullyConnected, weights: NDArray[np.signedinteger]) -> _Channels:
    """Parameters of a layer's channels; weights [channels, ...].

    Requantization is monotonic, so what the largest and the smallest accumulator that any input can make become tells
    of all between. If they give the same outputs after limiting as before, the channel is narrow. If both give the
    same output, so does every input: such a channel, where it is not narrow (its scale is tiny, its bias beyond all
    bounds), becomes a constant, which is.
    """
    bias, multiplier, shift = _channel_parameters(layer, weights)
    limit = 1 << (NARROW_BITS - 1)
    low, high = _extremes(weights)
    extremes = np.stack([high, low]) + bias
    fits = (extremes < 1 << 31).all(0) & (extremes >= -(1 << 31)).all(0)

    def output(acc: NDArray[np.int64]) -> NDArray[np.int64]:
        y = requantize(acc, multiplier, shift, double_rounding=layer.double_rounding) + layer.result.zero_point
        return np.clip(y, layer.act_min, layer.act_max)

    most, least = outputs = output(extremes)
    narrow = fits & (outputs == output(np.clip(extremes, -limit, limit - 1))).all(0)
    constant = fits & ~narrow & (most == least)
    if constant.any():
        weights = np.where(constant.reshape(-1, *[1] * (weights.ndim - 1)), np.int8(0), weights)
        bias = np.where(constant, most - layer.result.zero_point, bias)
        multiplier = np.where(constant, IDENTITY_MULTIPLIER, multiplier)
        shift = np.where(constant, 0, shift)
    return _Channels(weights, bias, multiplier, shift, narrow=bool((narrow | constant).all()))


def is_narrow(layer: DepthwiseConv2D) -> bool:
    """Whether the engine can make a result of the layer in one turn of the requantization units, instead of two."""
    return _channels(layer, layer.weights.transpose(2, 1, 0)).narrow


def _channel_parameters(layer: Conv2D | DepthwiseConv2D | FullyConnected, weights: NDArray[np.signedinteger]):
    """(bias folded with the input zero point, multipliers, shifts), int64 per channel; weights [channels, ...]."""
    bias = _folded_bias(weights, layer.bias, layer.inputs[0].zero_point)
    pairs = np.array(_multipliers(layer), np.int64).reshape(-1, 2)
    return bias, pairs[:, 0], pairs[:, 1]


def _multipliers(layer: Conv2D | DepthwiseConv2D | FullyConnected) -> list[tuple[int, int]]:
    """Multiplier and shift of each channel; ValueError for a factor that the engine cannot do exactly."""
    if layer.requantization is not None:
        return list(layer.requantization)
    factors = real_multipliers(layer.inputs[0].scale, layer.weight_scales, layer.result.scale)
    limits = layer.act_min - layer.result.zero_point, layer.act_max - layer.result.zero_point
    low, high = accumulator_range(_by_output(layer), layer.bias, layer.inputs[0].zero_point)
    ends = int(low.min(initial=0)), int(high.max(initial=0))
    return channel_multipliers(factors, ends, limits, double_rounding=layer.double_rounding)


def _by_output(layer: Conv2D | DepthwiseConv2D | FullyConnected) -> NDArray[np.signedinteger]:
    """Weights [outputs, ...]."""
    return layer.weights.transpose(2, 0, 1) if isinstance(layer, DepthwiseConv2D) else layer.weights


def _group_words(config: AcceleratorConfig, parameters: _Channels, steps: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Weight memory of a layer: for each group its parameters, then `steps` [channels, steps, taps]."""
    lanes = config.lanes
    groups = -(-len(steps) // lanes)
    bias, multiplier, shift = (
        _pad_to(v, groups * lanes) for v in (parameters.bias, parameters.multiplier, parameters.shift)
    )
    steps = _pad_to(steps, groups * lanes)
    words = []
    for g in range(groups):
        mine = slice(g * lanes, (g + 1) * lanes)
        words.append(encode_parameters(config, bias[mine], multiplier[mine], shift[mine]))
        words.append(steps[mine].transpose(1, 0, 2).reshape(-1, config.weight_word_bytes).view(np.uint8))
    return np.concatenate(words)


def _output_fields(config: AcceleratorConfig, layer: Layer, out: TensorLocation) -> dict[str, int]:
    """Descriptor fields that every layer with channel groups has in common."""
    groups = -(-out.channels // config.lanes)
    granules = -(-out.channels // config.granule)
    return dict(
        out_base=out.base,
        out_row_stride=out.row_stride,
        out_step_ox=out.pixel_stride // config.granule,
        out_step_g=2,
        out_row_start=layer.output.origin[0] % config.row_banks,
        out_row_step=layer.output.row_step,
        n_oy=out.rows,
        n_g=groups,
        half_last=granules % 2,
        out_zero_point=layer.result.zero_point,
        act_min=layer.act_min,
        act_max=layer.act_max,
    )


def _input_fields(config: AcceleratorConfig, source: TensorLocation) -> dict[str, int]:
    # Of some channels of a tensor, the last pixel ends with them.
    pixel = min(source.pixel_stride, -(-source.channels // config.granule) * config.granule)
    return dict(
        in_base=source.base,
        in_rows=source.rows,
        in_row_bytes=(source.columns - 1) * source.pixel_stride + pixel,
        in_row_stride=source.row_stride,
    )


def _interval(config: AcceleratorConfig, narrow: bool) -> int:
    if config.compact:
        return 1  # it paces itself
    return config.requant_slots * (1 if narrow else 2)


def _dense_shape(
    config: AcceleratorConfig, counts: Mapping[int, int], output: Tensor, stride: int, interval: int
) -> tuple[int, bool]:
    """From how many kernel rows a step takes its bytes, and whether two output rows are computed at once.

    counts: steps of a result where each takes its bytes from so many rows; interval: fewest cycles between the results
    of one pixel.
    """
    out_rows = output.rows
    # The rows of a pair are neighbours, the first of them in an even bank.
    pairs = config.pixels > 1 and output.row_step == 1 and output.origin[0] % 2 == 0

    def cycles(together: int) -> tuple[int, bool]:
        """Of a column and channel group, and whether output rows are paired for it."""
        alone = out_rows * max(counts[together], interval)
        # The second pixel of a row triple has the rows below: a stride of 1.
        if not pairs or stride > (1 if together == 3 else 2):
            return alone, False
        paired = -(-out_rows // 2) * max(counts[together], 2 * interval)
        return min(alone, paired), paired < alone

    best = 2 if counts.get(2, counts[1]) < counts[1] else 1
    if 3 in counts and cycles(3)[0] < cycles(best)[0]:
        best = 3
    return best, cycles(best)[1]


@dataclass(frozen=True)
class _RowSteps:
    """How the bytes of a kernel row are spread over steps."""

    first: int
    """byte of the row at which the first step begins; below 0 before it"""
    step: int
    """bytes from one step to the next: fewer than a step takes, so that some bytes are in several"""
    count: int
    holders: NDArray[np.int64]
    """of each byte the first step that takes it"""

    def weights(self, rows: NDArray[np.signedinteger], taps: int) -> NDArray[np.int8]:
        """Weights [..., bytes] as those of steps [..., count, taps]: what is beyond int8 goes to the next step."""
        result = np.zeros((*rows.shape[:-1], self.count, taps), np.int8)
        rest = rows.astype(np.int64)
        positions = np.arange(rows.shape[-1])
        more = 0
        while rest.any():
            part = np.clip(rest, -128, 127)
            chosen = positions[part.reshape(-1, len(positions)).any(0)]
            steps = self.holders[chosen] + more
            result[..., steps, chosen - self.first - steps * self.step] = part[..., chosen]
            rest -= part
            more += 1
        return result


def _parts_needed(weights: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """In how many int8 weights each one can be split, at least; 0 for zero."""
    if weights.dtype == np.int8:
        return (weights != 0).astype(np.int64)
    w = weights.astype(np.int64)
    return np.maximum(-(-w // 127), -(w // 128)) * (w != 0)


def _row_steps(needed: NDArray[np.int64], taps: int) -> _RowSteps:
    """The fewest steps of `taps` bytes in which each byte of a kernel row is as often as `needed` says."""
    position = np.arange(len(needed))
    best: _RowSteps | None = None
    for step in range(taps, 0, -1):
        for first in range(0, -taps, -1):
            last = (position - first) // step
            holders = np.maximum(-((first + taps - 1 - position) // step), 0)
            if (last - holders + 1 < needed).any():
                continue
            count = int(np.max(holders + needed, where=needed > 0, initial=1))
            if best is None or count < best.count:
                best = _RowSteps(first, step, count, holders)
    # With a step of 1 each byte is in `taps` steps, three at least, and 255 is the sum of three int8 weights.
    assert best
    return best


def _lower_dense(
    config: AcceleratorConfig,
    layer: Conv2D | FullyConnected,
    kernel: NDArray[np.signedinteger],
    strides: tuple[int, int],
    origin: tuple[int, int],
    source: TensorLocation,
    out: TensorLocation,
) -> LoweredLayer:
    """kernel [outputs, kernel rows, kernel columns, input channels]; origin: input row, column of output 0."""
    outputs, kernel_rows, kernel_columns, channels = kernel.shape
    pixel = source.pixel_stride
    row_bytes = (kernel_columns - 1) * pixel + channels
    parameters = _channels(layer, kernel)
    # A kernel row as it lies in memory, with zeros over the padding channels.
    rows = _pad_to(parameters.weights, pixel, axis=3).reshape(outputs, kernel_rows, kernel_columns * pixel)
    rows = rows[:, :, :row_bytes]
    interval = _interval(config, parameters.narrow)
    needed: NDArray[np.int64] = np.any(rows, (0, 1)).astype(np.int64)
    if rows.dtype != np.int8:
        needed = _parts_needed(rows).max((0, 1))
    if needed.max(initial=0) > 1:
        # Weights of nine bits: steps overlap.
        spread = _row_steps(needed, config.taps)
        together, pixel_pair = _dense_shape(config, {1: kernel_rows * spread.count}, layer.output, strides[0], interval)
        share, first, row_steps, chunks = spread.step, spread.first, kernel_rows, spread.count
        steps = spread.weights(rows, config.taps).reshape(outputs, -1, config.taps)
    else:
        counts = {
            together: -(-kernel_rows // together) * -(-row_bytes // (config.taps // together))
            for together in ((1, 2, 3) if config.row_triples else (1, 2))
        }
        together, pixel_pair = _dense_shape(config, counts, layer.output, strides[0], interval)
        # A step takes `share` bytes from each of `together` rows.
        share, first = config.taps // together, 0
        row_steps, chunks = -(-kernel_rows // together), -(-row_bytes // share)
        padded = _pad_to(_pad_to(rows, chunks * share, axis=2), row_steps * together, axis=1)
        grouped = padded.reshape(outputs, row_steps, together, chunks, share).transpose(0, 1, 3, 2, 4)
        steps = _pad_to(grouped.reshape(outputs, -1, together * share), config.taps, axis=2)
    words = _group_words(config, parameters, steps)
    fields = _output_fields(config, layer, out)
    if pixel_pair:
        fields |= dict(n_oy=-(-out.rows // 2), out_row_step=2)
    descriptor = Descriptor(
        kind=Kind.DENSE,
        row_pair=int(together == 2),
        row_triple=int(together == 3),
        pixel_pair=int(pixel_pair),
        odd_rows=int(pixel_pair and out.rows % 2),
        double_rounding=int(layer.double_rounding),
        narrow=int(parameters.narrow),
        interval=interval * (2 if pixel_pair else 1),
        **_input_fields(config, source),
        **fields,
        n_ox=out.columns,
        n_ky=row_steps,
        n_kx=chunks,
        row_start=origin[0],
        q_start=origin[1] * pixel + first,
        row_step_oy=strides[0] * (2 if pixel_pair else 1),
        row_step_ky=together,
        q_step_ox=strides[1] * pixel,
        q_step_kx=share,
        weight_step_g=len(words) // fields["n_g"],
        pad_value=layer.inputs[0].zero_point,
        kernel_rows=255 if together == 3 else min(kernel_rows, 255),
    )
    return LoweredLayer(layer, descriptor, words)


def _lower_conv(config: AcceleratorConfig, layer: Conv2D, sources: list[TensorLocation], out: TensorLocation):
    origin = (-layer.padding.top, -layer.padding.left)
    return _lower_dense(config, layer, layer.weights, layer.strides, origin, sources[0], out)


def _lower_fully_connected(
    config: AcceleratorConfig, layer: FullyConnected, sources: list[TensorLocation], out: TensorLocation
):
    """One output pixel whose kernel is the whole input tensor."""
    source = sources[0]
    kernel = layer.weights.reshape(-1, source.rows, source.columns, source.channels)
    return _lower_dense(config, layer, kernel, (1, 1), (0, 0), source, out)


def _window_geometry(
    source: TensorLocation,
    out: TensorLocation,
    window: tuple[int, int],
    strides: tuple[int, int],
    origin: tuple[int, int],
    rows_per_step: int,
) -> dict[str, int]:
    """Loop fields of a window that is loaded column by column for each result."""
    pixel = source.pixel_stride
    return dict(
        n_ox=out.columns,
        n_ky=-(-window[0] // rows_per_step),
        n_kx=window[1],
        row_start=origin[0],
        q_start=origin[1] * pixel,
        row_step_oy=strides[0],
        row_step_ky=rows_per_step,
        q_step_ox=strides[1] * pixel,
        q_step_kx=pixel,
        kernel_rows=window[0],
    )


def _lower_depthwise(
    config: AcceleratorConfig, layer: DepthwiseConv2D, sources: list[TensorLocation], out: TensorLocation
):
    source = sources[0]
    kernel_rows, kernel_columns, channels = layer.weights.shape
    rows, columns = config.window_rows, config.window_columns
    parameters = _channels(layer, layer.weights.transpose(2, 1, 0))
    kernel = parameters.weights  # [channels, kernel columns, kernel rows]
    origin = (-layer.padding.top, -layer.padding.left)
    # With a stride of 0, each result of a row reads the same columns.
    slide = columns > 1 and kernel_columns <= columns and kernel_rows <= rows and layer.strides[1] > 0
    parts = int(_parts_needed(kernel).max(initial=1))
    slide = slide and parts == 1
    if slide:
        # One word; the kernel sits in the newest columns.
        taps = np.zeros((channels, columns, rows), np.int8)
        taps[:, columns - kernel_columns :, :kernel_rows] = kernel
        steps = _pad_to(taps.reshape(channels, 1, -1), config.taps, axis=2)
        geometry = _window_geometry(source, out, (kernel_rows, 1), layer.strides, origin, rows)
        geometry |= dict(
            slide=1,
            slide_first=kernel_columns - 1,
            slide_step=layer.strides[1],
            n_ox=(out.columns - 1) * layer.strides[1] + kernel_columns,
            q_step_ox=source.pixel_stride,
            weights_advance=0,
        )
    elif layer.carried:
        carried = carried_steps(kernel_rows, layer.strides[0], rows, columns)
        assert carried is not None
        taps = np.zeros((channels, carried.loads, columns, rows), np.int8)
        for k, place in enumerate(carried.taps):
            taps[:, *place] = kernel[:, 0, k]
        steps = _pad_to(taps.reshape(channels, carried.loads, -1), config.taps, axis=2)
        origin = (origin[0] + carried.first, origin[1])
        geometry = _window_geometry(source, out, (carried.loads, 1), layer.strides, origin, 1)
        geometry |= dict(row_step_ky=carried.distance, kernel_rows=255)
    elif parts > columns:
        # Weights of nine bits, and no older columns: steps whose rows overlap.
        spread = _row_steps(_parts_needed(kernel).max((0, 1)), rows)
        taps = np.zeros((channels, spread.count, kernel_columns, columns, rows), np.int8)
        taps[:, :, :, columns - 1] = spread.weights(kernel, rows).transpose(0, 2, 1, 3)
        steps = _pad_to(taps.reshape(channels, spread.count * kernel_columns, -1), config.taps, axis=2)
        origin = (origin[0] + spread.first, origin[1])
        geometry = _window_geometry(source, out, (spread.count, kernel_columns), layer.strides, origin, 1)
        geometry |= dict(row_step_ky=spread.step, kernel_rows=255)
    else:
        # A word for each step: one column of three rows, in the newest column. Of weights of nine bits, what is beyond
        # eight multiplies the column again a step later, when it is an older one.
        turns = -(-kernel_rows // rows)
        split = _pad_to(kernel, turns * rows, axis=2).reshape(channels, kernel_columns, turns, rows)
        needed = np.maximum(_parts_needed(kernel).max((0, 2)), 1)
        loads = int(np.max(np.arange(kernel_columns) + needed))
        taps = np.zeros((channels, turns, loads, columns, rows), np.int8)
        rest = split.transpose(0, 2, 1, 3).astype(np.int64)
        for more in range(parts):
            part = np.clip(rest, -128, 127)[:, :, : loads - more]
            taps[:, :, more : more + kernel_columns, columns - 1 - more] = part
            rest[:, :, : loads - more] -= part
        steps = _pad_to(taps.reshape(channels, turns * loads, -1), config.taps, axis=2)
        geometry = _window_geometry(source, out, (kernel_rows, loads), layer.strides, origin, rows)
    words = _group_words(config, parameters, steps)
    fields = _output_fields(config, layer, out)
    descriptor = Descriptor(
        kind=Kind.WINDOW,
        double_rounding=int(layer.double_rounding),
        narrow=int(parameters.narrow),
        interval=_interval(config, parameters.narrow),
        **_input_fields(config, source),
        **fields,
        **geometry,
        q_step_g=config.lanes,
        weight_step_g=len(words) // fields["n_g"],
        pad_value=layer.inputs[0].zero_point,
    )
    return LoweredLayer(layer, descriptor, words)


def _newest_column(config: AcceleratorConfig, rows: list[int]) -> NDArray[np.int8]:
    """One weight word with the same taps in every lane: `rows` in the newest window column. [1, 1, taps]"""
    taps = np.zeros((config.window_columns, config.window_rows), np.int8)
    taps[-1, : len(rows)] = rows
    return _pad_to(taps.reshape(1, 1, -1), config.taps, axis=2)


def _shared_words(
    config: AcceleratorConfig, sets: list[tuple[int, int]], rows: list[int], *, bias: int = 0
) -> NDArray[np.uint8]:
    """Parameter sets (multiplier, shift) and one weight word, the same for every lane and group."""
    one = np.ones(config.lanes, np.int64)
    parameters = [encode_parameters(config, bias * one, multiplier * one, shift * one) for multiplier, shift in sets]
    return np.concatenate([*parameters, _every_lane(config, rows)])


def _every_lane(config: AcceleratorConfig, rows: list[int]) -> NDArray[np.uint8]:
    """One weight word with the same taps in every lane, as `_newest_column`."""
    taps = np.repeat(_newest_column(config, rows), config.lanes, axis=0)
    return taps.reshape(1, config.weight_word_bytes).view(np.uint8)


def _lower_average_pool(
    config: AcceleratorConfig, layer: AveragePool2D, sources: list[TensorLocation], out: TensorLocation
):
    count = layer.window[0] * layer.window[1]
    multiplier, shift = average_pool_multiplier(count) if count > 1 else (IDENTITY_MULTIPLIER, 0)
    # Half up is half away from zero where nothing is below it: the sum of values that begin at 0.
    offset = 128 if layer.half_up else 0
    narrow = (128 + offset) * count < 1 << (NARROW_BITS - 1)
    descriptor = Descriptor(
        kind=Kind.WINDOW,
        double_rounding=0,
        narrow=int(narrow),
        interval=_interval(config, narrow),
        weights_advance=0,
        **_input_fields(config, sources[0]),
        **{**_output_fields(config, layer, out), "out_zero_point": -offset},
        **_window_geometry(
            sources[0],
            out,
            layer.window,
            layer.strides,
            (-layer.padding.top, -layer.padding.left),
            config.window_rows,
        ),
        q_step_g=config.lanes,
    )
    words = _shared_words(config, [(multiplier, shift)], [1] * config.window_rows, bias=offset * count)
    return LoweredLayer(layer, descriptor, words)


def _lower_window_sum(config: AcceleratorConfig, layer: WindowSum, sources: list[TensorLocation], out: TensorLocation):
    count = layer.window[0] * layer.window[1]
    bias = -layer.inputs[0].zero_point * layer.weight * count
    ends = bias + layer.weight * count * np.array([-128, 127])
    limit = 1 << (NARROW_BITS - 1)

    def output(acc: NDArray[np.int64]) -> NDArray[np.int64]:
        y = requantize(acc, layer.multiplier, layer.shift, double_rounding=layer.double_rounding)
        y = y + layer.result.zero_point
        return np.clip(y, layer.act_min, layer.act_max)

    narrow = np.array_equal(output(ends), output(np.clip(ends, -limit, limit - 1)))
    descriptor = Descriptor(
        kind=Kind.WINDOW,
        double_rounding=int(layer.double_rounding),
        narrow=int(narrow),
        interval=_interval(config, narrow),
        weights_advance=0,
        **_input_fields(config, sources[0]),
        **_output_fields(config, layer, out),
        **_window_geometry(sources[0], out, layer.window, layer.strides, (0, 0), config.window_rows),
        q_step_g=config.lanes,
    )
    rows = [layer.weight] * config.window_rows
    return LoweredLayer(layer, descriptor, _shared_words(config, [(layer.multiplier, layer.shift)], rows, bias=bias))


def _lower_max_pool(config: AcceleratorConfig, layer: MaxPool2D, sources: list[TensorLocation], out: TensorLocation):
    descriptor = Descriptor(
        kind=Kind.WINDOW,
        maximum=1,
        double_rounding=0,
        narrow=1,
        interval=_interval(config, True),
        weights_advance=0,
        **_input_fields(config, sources[0]),
        **{**_output_fields(config, layer, out), "out_zero_point": 0},
        **_window_geometry(
            sources[0],
            out,
            layer.window,
            layer.strides,
            (-layer.padding.top, -layer.padding.left),
            config.window_rows,
        ),
        q_step_g=config.lanes,
        pad_value=-128,
    )
    words = _shared_words(config, [(IDENTITY_MULTIPLIER, 0)], [1] * config.window_rows)
    return LoweredLayer(layer, descriptor, words)


def _long_rows(
    config: AcceleratorConfig, sources: list[TensorLocation], out: TensorLocation, tails: bool, words: int
) -> tuple[int, int]:
    """Rows and bytes of a row with which an elementwise layer takes the fewest batches of so many words.

    The rows of a bank follow each other, so that a tensor can be seen as one long row in each bank. Where a bank has a
    row less, that row's place is worked out as well: its bytes are the tensor's, and nobody reads them. Without `tails`
    it is not known what the operands have there.
    """
    row_bytes = out.columns * out.pixel_stride
    gaps = out.row_stride * config.granule != row_bytes
    uneven = out.rows > config.row_banks and out.rows % config.row_banks and not tails
    if gaps or uneven or any(s.row_stride != out.row_stride for s in sources):
        return out.rows, row_bytes
    return long_rows(config, out.rows, row_bytes, words)


def long_rows(config: AcceleratorConfig, rows: int, row_bytes: int, words: int) -> tuple[int, int]:
    """So many rows, or each bank's as one, whichever takes fewer batches of so many words: (rows, bytes of each)."""
    banks = min(rows, config.row_banks)
    bank_bytes = -(-rows // config.row_banks) * row_bytes

    def batches(rows: int, size: int) -> int:
        return rows * -(-size // (words * config.lanes))

    if bank_bytes < 1 << config.field_bits and batches(banks, bank_bytes) < batches(rows, row_bytes):
        return banks, bank_bytes
    return rows, row_bytes


def _lower_add(
    config: AcceleratorConfig, layer: Add, sources: list[TensorLocation], out: TensorLocation, *, tails: bool = False
):
    x, y = add_operands(layer)
    y_factor, out_factor = _add_factors(layer)
    rows, row_bytes = _long_rows(config, sources, out, tails, ADD_BATCH)
    size = {"in_rows": rows, "in_row_bytes": row_bytes, "n_oy": rows}
    fields = {**_input_fields(config, sources[y]), **_output_fields(config, layer, out), **size}
    descriptor = Descriptor(
        kind=Kind.ADD,
        interval=_interval(config, False),
        weights_advance=0,
        **{**fields, "in2_base": sources[x].base, "n_g": 1, "out_step_ox": 2, "out_step_g": 0, "half_last": 0},
        n_ox=-(-row_bytes // (ADD_BATCH * config.lanes)),
        n_ky=2,
        n_kx=ADD_BATCH,
        row_step_oy=1,
        q_step_kx=config.lanes,
        q_step_ox=ADD_BATCH * config.lanes,
        pad_value=layer.inputs[y].zero_point,
        pad_value2=layer.inputs[x].zero_point,
        kernel_rows=1,
    )
    # Row 1 of the window reads as padding, the zero point: value minus zero point in one step.
    sets = list(layer.requantization or (quantize_multiplier(y_factor), quantize_multiplier(out_factor)))
    if not layer.subtract:
        return LoweredLayer(layer, descriptor, _shared_words(config, sets, [1, -1]))
    # A weight for each word of a batch: those of operand Y, then those of X.
    signs = [-1 if operand == 1 else 1 for operand in (y, x)]
    parameters = _shared_words(config, sets, [])[: len(sets) * config.parameter_words]
    words = [_every_lane(config, [sign, -sign]) for sign in signs for _ in range(ADD_BATCH)]
    descriptor = dataclasses.replace(descriptor, weights_advance=1)
    return LoweredLayer(layer, descriptor, np.concatenate([parameters, *words]))


def _lower_mul(
    config: AcceleratorConfig, layer: Mul, sources: list[TensorLocation], out: TensorLocation, *, tails: bool = False
):
    y = layer.pixel or 0
    x = 1 - y
    source = sources[x]
    fields = {**_input_fields(config, source), **_output_fields(config, layer, out), "in_base": sources[y].base}
    if layer.pixel is None:
        rows, row_bytes = _long_rows(config, sources, out, tails, 1)
        fields |= dict(in_rows=rows, in_row_bytes=row_bytes, n_oy=rows, n_g=1, half_last=0, out_step_ox=2, out_step_g=0)
        fields |= dict(n_ox=-(-row_bytes // config.lanes), q_step_ox=config.lanes)
    else:
        fields |= dict(broadcast=1, n_ox=out.columns, q_step_ox=source.pixel_stride, q_step_g=config.lanes)
    # The product and the products that come with it (`nnloom.arch.loopnest.Step`).
    points = [layer.inputs[i].zero_point for i in (x, y)]
    bias = points[0] * points[1] + sum(points)
    descriptor = Descriptor(
        kind=Kind.WINDOW,
        product=1,
        double_rounding=int(layer.double_rounding),
        narrow=1,
        interval=_interval(config, True),
        weights_advance=0,
        **fields,
        in2_base=source.base,
        n_ky=2,
        n_kx=1,
        row_step_oy=1,
        row_step_ky=0,
        pad_value=points[0],
        pad_value2=points[1],
        kernel_rows=1,
    )
    sets = list(layer.requantization or (quantize_multiplier(_mul_factor(layer)),))
    words = _shared_words(config, sets, [], bias=bias)
    return LoweredLayer(layer, descriptor, words)


_LOWERINGS: dict[type[Layer], Callable] = {
    Conv2D: _lower_conv,
    DepthwiseConv2D: _lower_depthwise,
    FullyConnected: _lower_fully_connected,
    AveragePool2D: _lower_average_pool,
    MaxPool2D: _lower_max_pool,
    WindowSum: _lower_window_sum,
}


def lower_layer(
    config: AcceleratorConfig,
    layer: Layer,
    sources: list[TensorLocation],
    out: TensorLocation,
    *,
    tails: bool = False,
) -> LoweredLayer:
    """Lower one layer whose tensors have been placed.

    tails: whether something is written, in each inference, to the places of rows that some banks of its operands lack.

    Raises
    ------
    UnsupportedOperatorError
        If the configuration cannot run the layer (`unsupported_reason`).
    CapacityError
        If a dimension exceeds its descriptor field.
    """
    reason = unsupported_reason(layer, config)
    if reason:
        raise UnsupportedOperatorError(f"{layer.name}: {reason}; run this layer on the CPU")
    try:
        if isinstance(layer, Add):
            return _lower_add(config, layer, sources, out, tails=tails)
        if isinstance(layer, Mul):
            return _lower_mul(config, layer, sources, out, tails=tails)
        return _LOWERINGS[type(layer)](config, layer, sources, out)
    except ValueError as error:
        raise CapacityError(f"{layer.name}: too large for the engine ({error})") from error


def _bank_granules(config: AcceleratorConfig, location: TensorLocation) -> int:
    """Granules of the longest bank, without what makes them whole words of the host bus."""
    return -(-location.rows // config.row_banks) * location.row_stride


def _note_written(config: AcceleratorConfig, written: NDArray[np.bool_], location: TensorLocation) -> None:
    for bank in range(config.row_banks):
        rows = len(range(bank, location.rows, config.row_banks))
        written[bank, location.base : location.base + rows * location.row_stride] = True


def _is_written(config: AcceleratorConfig, written: NDArray[np.bool_], location: TensorLocation) -> bool:
    """The tensor and the places of rows that some banks lack."""
    return bool(written[:, location.base : location.base + _bank_granules(config, location)].all())


def lower_layers(
    config: AcceleratorConfig, graph: LayerGraph, locations: dict[str, TensorLocation]
) -> list[LoweredLayer]:
    """Lower a region whose tensors are placed at `locations` (by name); for `place_program`."""
    result: list[LoweredLayer] = []
    written = np.zeros((config.row_banks, config.bank_granules), bool)
    """in each inference so far: what an inference writes does not depend on what came before it"""
    for tensor in graph.inputs:
        _note_written(config, written, located(config, locations, tensor))
    for layer in graph.layers:
        sources = [located(config, locations, tensor) for tensor in layer.inputs]
        out = located(config, locations, layer.output)
        lowered = lower_layer(config, layer, sources, out, tails=all(_is_written(config, written, s) for s in sources))
        if _has_whole_rows(layer.output) and layer.output.origin[0] % config.row_banks == 0:
            _note_written(config, written, out)
            if isinstance(layer, Add | Mul) and lowered.descriptor.n_oy < out.rows:
                written[:, out.base : out.base + _bank_granules(config, out)] = True
        try:
            # Without `weight_base`: what fits the weight memory has an address that fits the field.
            check_descriptor(config, lowered.descriptor)
        except ValueError as error:
            raise CapacityError(f"{layer.name}: too large for the engine ({error})") from error
        for fault in register_faults(config, lowered.descriptor):
            raise CapacityError(f"{layer.name}: too large for the engine ({fault})")
        result.append(lowered)
    return result


def tables_of(layers: Iterable[Layer]) -> list[bytes]:
    """The tables that layers need, each once."""
    return list(dict.fromkeys(layer.table.entries for layer in layers if layer.table))


def table_image(tables: Sequence[bytes]) -> NDArray[np.uint8]:
    """Tables as the engine takes them, uint8 [tables, 256]."""
    return np.frombuffer(b"".join(tables), np.uint8).reshape(-1, TABLE_ENTRIES)


def place_program(
    config: AcceleratorConfig,
    layers: Sequence[LoweredLayer],
    *,
    weight_base: int = 0,
    tables: Sequence[bytes] = (),
    placed: dict[bytes, int] | None = None,
) -> list[LoweredLayer]:
    """Make a program of lowered layers: weights from word `weight_base` on, `last`, padding columns, start delays, the
    numbers of their tables in `tables`, what the engine's tables hold.

    Layers with identical weight words share them, also with those of other programs that are in `placed`: weights and
    where they begin, to which this program's are added.
    """
    result: list[LoweredLayer] = []
    placed = {} if placed is None else placed
    for item in layers:
        key = item.weights.tobytes()
        base = placed.setdefault(key, weight_base)
        weights = item.weights
        if base == weight_base:
            weight_base += len(weights)
        else:
            weights = weights[:0]
        if base > 0xFFFF:
            raise CapacityError(
                f"{item.layer.name}: weights beyond word 65535; the network is too large for the engine"
            )
        descriptor = dataclasses.replace(item.descriptor, weight_base=base)
        result.append(dataclasses.replace(item, descriptor=descriptor, weights=weights))
    return finished_program(config, result, tables)


def finished_program(
    config: AcceleratorConfig, layers: Sequence[LoweredLayer], tables: Sequence[bytes] = ()
) -> list[LoweredLayer]:
    """As `place_program`, for layers whose weights have their place: what depends on the others of the program."""
    result: list[LoweredLayer] = []
    for index, item in enumerate(layers):
        table = 1 + tables.index(item.layer.table.entries) if item.layer.table else 0
        descriptor = dataclasses.replace(item.descriptor, last=int(index == len(layers) - 1), table=table)
        result.append(dataclasses.replace(item, descriptor=descriptor))
    descriptors = keep_padding_columns([item.descriptor for item in result])
    delays = start_delays(config, descriptors)
    return [
        dataclasses.replace(item, descriptor=dataclasses.replace(descriptor, start_delay=delay))
        for item, descriptor, delay in zip(result, descriptors, delays, strict=True)
    ]


def lower(
    config: AcceleratorConfig,
    graph: LayerGraph,
    locations: dict[str, TensorLocation],
    *,
    weight_base: int = 0,
) -> list[LoweredLayer]:
    """Lower a region whose tensors are placed at `locations` (by name) to one program; see `place_program`."""
    lowered = lower_layers(config, graph, locations)
    return place_program(config, lowered, weight_base=weight_base, tables=tables_of(graph.layers))
