"""The golden model: executes an emitted program from its memory images, bit exact, in NumPy.

It knows descriptors and memory words only, never the network. `GoldenModel` vectorises the loop nest of
`nnloom.arch.loopnest` over a whole descriptor; `execute_literally` walks the steps one by one, as the
hardware does, and exists to prove the former. What depends on program and weights alone (where operands lie,
weights as matrices) is worked out when a descriptor first runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import IllegalProgramError
from nnloom.arch.isa import TABLE_ENTRIES, Descriptor, Kind, decode_parameters
from nnloom.arch.legality import check_program
from nnloom.arch.loopnest import ParameterLoad, Step, by_word, maximum_taps, steps
from nnloom.arch.numerics import ADD_LEFT_SHIFT, requantize, wrap_int32

__all__ = ["GoldenModel", "WriteTrace", "execute_literally"]


@dataclass(frozen=True)
class WriteTrace:
    """Writes of one descriptor to activation memory, in the order of the hardware.

    bank, granule, enable: int64 [n]; data: uint8 [n, lanes].
    """

    bank: NDArray[np.int64]
    granule: NDArray[np.int64]
    enable: NDArray[np.int64]
    data: NDArray[np.uint8]


@dataclass(frozen=True)
class _Gather:
    """Where operands lie in activation memory, and what stands for those that are not valid."""

    index: NDArray[np.intp]
    invalid: NDArray[np.intp]
    """positions in the flattened operands"""
    pad: NDArray
    """value of each of these"""

    def read(self, cells: NDArray) -> NDArray:
        """Operands in the shape of `index` from the cells of the memory."""
        values = cells.take(self.index)
        values.reshape(-1)[self.invalid] = self.pad
        return values


@dataclass(frozen=True)
class _Targets:
    """Where the results of a descriptor go. bank, granule, enable: as in `WriteTrace`, read only."""

    bank: NDArray[np.int64]
    granule: NDArray[np.int64]
    enable: NDArray[np.int64]
    index: NDArray[np.intp]
    """granules of the whole memory in the order of the writes"""
    chosen: NDArray[np.intp] | slice
    """halves of results that are written, of [2 * n]"""


@dataclass(frozen=True)
class _Parameters:
    """Requantization of a descriptor: int64, broadcast to results [groups, results, lanes]."""

    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]


@dataclass(frozen=True)
class _Dense:
    """What of a DENSE descriptor does not depend on activations."""

    operands: _Gather
    weights: NDArray[np.floating]
    """[groups, 1, steps * taps, lanes], of a type in which every sum is exact"""
    parameters: _Parameters
    targets: _Targets


@dataclass(frozen=True)
class _Window:
    """What of a WINDOW or ADD descriptor does not depend on activations."""

    loads: _Gather
    """granules [groups, loads, window rows, 2]"""
    weights: dict[int, NDArray[np.float32]]
    """of each tap that is not zero everywhere, of those that a maximum is of: [groups, lanes, 1, weight_steps]"""
    weight_steps: int
    """after how many steps the weights begin again"""
    parameters: tuple[_Parameters, ...]
    """one set; two for ADD: operand Y, sum"""
    targets: _Targets


class GoldenModel:
    """One engine: memories and the functional effect of a start command.

    Parameters
    ----------
    config
        The accelerator.
    program
        uint32 words of program memory.
    weights
        uint8 [words, weight_word_bytes]; the words of the memory beyond are zero.
    tables
        uint8 [tables, 256]; those of the engine beyond are zero. Default: none.
    activations
        Activation memory of another model to work on, uint8 [bank, byte]; default: one of its own, of zeros.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        program: NDArray[np.uint32],
        weights: NDArray[np.uint8],
        tables: NDArray[np.uint8] | None = None,
        activations: NDArray[np.uint8] | None = None,
    ) -> None:
        self.config = config
        self.program = program
        missing = max(0, config.weight_words - len(weights))
        weights = np.concatenate([weights, np.zeros((missing, config.weight_word_bytes), np.uint8)])
        self.weights = weights.view(np.int8).reshape(-1, config.lanes, config.taps)
        self.tables = np.zeros((config.tables, TABLE_ENTRIES), np.uint8)
        if tables is not None:
            self.load_tables(tables)
        shape = (config.row_banks, config.bank_granules * config.granule)
        self.activations = np.zeros(shape, np.uint8) if activations is None else activations
        """uint8 [bank, byte]"""
        self.window = np.zeros((config.window_rows, config.lanes, config.window_columns - 1), np.int8)
        """[row, lane, column]: the columns loaded last, oldest first, which the next load leaves in the window"""
        self.sums = np.zeros(config.lanes, np.int64)
        """what a descriptor with `keep` has left"""
        # Temporaries come and go; glibc keeps as much freed memory as was once freed in one piece, and returns the
        # rest to the kernel every time.
        np.empty(8 << 20, np.uint8)
        # As long as weights stay, so does what depends on them and a descriptor alone.
        self._programs: dict[int, list[Descriptor]] = {}
        self._dense_layers: dict[Descriptor, _Dense] = {}
        self._window_layers: dict[Descriptor, _Window] = {}

    def load_program(self, program: NDArray[np.uint32]) -> None:
        """Have another program in program memory, from word 0 on."""
        self.program = program
        self._programs.clear()

    def load_weights(self, base: int, weights: NDArray[np.uint8]) -> None:
        """Write weight memory words [words, weight_word_bytes] from word `base` on."""
        config = self.config
        self.weights[base : base + len(weights)] = weights.view(np.int8).reshape(-1, config.lanes, config.taps)
        self._dense_layers.clear()
        self._window_layers.clear()

    def load_tables(self, tables: NDArray[np.uint8]) -> None:
        """Write tables [tables, 256], from the engine's first on."""
        self.tables[: len(tables)] = tables

    def write_tensor(self, location: TensorLocation, values: NDArray[np.int8]) -> None:
        """Place a tensor in activation memory."""
        start = location.base * self.config.granule
        for bank, data in enumerate(location.pack(self.config, values)):
            self.activations[bank, start : start + len(data)] = data

    def read_tensor(self, location: TensorLocation) -> NDArray[np.int8]:
        """Read a tensor from activation memory, int8 of the location's `shape`."""
        start = location.base * self.config.granule
        return location.unpack(
            self.config,
            [
                self.activations[bank, start : start + location.bank_bytes(self.config, bank)]
                for bank in range(self.config.row_banks)
            ],
        )

    def run(self, program_start: int = 0) -> list[WriteTrace]:
        """Run from a program word to the descriptor marked last; returns the writes of each descriptor.

        Raises
        ------
        IllegalProgramError
            If the engine would refuse the program.
        """
        try:
            return [self.execute(d) for d in self.descriptors(program_start)]
        except MemoryError as error:
            raise IllegalProgramError("the program takes too many steps for the golden model's memory") from error

    def descriptors(self, program_start: int = 0) -> list[Descriptor]:
        """The program that starts at a word; raises IllegalProgramError as `run` does."""
        if program_start not in self._programs:
            self._programs[program_start] = check_program(self.config, self.program, program_start)
        return self._programs[program_start]

    def execute(self, d: Descriptor) -> WriteTrace:
        """Run one descriptor."""
        data, targets = self._dense(d) if d.kind == Kind.DENSE else self._window(d)
        data = np.ascontiguousarray(data).reshape(-1, self.config.lanes)
        _store(self.config, self.activations, data, targets)
        return WriteTrace(targets.bank, targets.granule, targets.enable, data)

    def _fetch(
        self,
        d: Descriptor,
        base: NDArray | np.int64,
        pad: NDArray | np.int64,
        row: NDArray,
        q: NDArray,
        kernel_row: NDArray,
    ) -> _Gather:
        """Bytes (row, q) of the input, padding where they are not valid; arguments broadcast."""
        granule = self.config.granule
        banks = self.config.row_banks
        address = (base + (row // banks) * d.in_row_stride) * granule + q
        index = row % banks * self.activations.shape[1] + address % self.activations.shape[1]
        valid = (row >= 0) & (row < d.in_rows) & (q >= 0) & (q < d.in_row_bytes) & (kernel_row < d.kernel_rows)
        return _gather(index, valid, pad)

    def _parameters(self, word: int) -> tuple[NDArray, NDArray, NDArray]:
        words = self.weights[word : word + self.config.parameter_words]
        return decode_parameters(self.config, words.view(np.uint8))

    def _all_parameters(self, d: Descriptor, offset: int = 0) -> _Parameters:
        """Of every group, `offset` words after its first."""
        sets = [self._parameters(d.weight_base + g * d.weight_step_g + offset) for g in range(d.n_g)]
        return _Parameters(*(np.stack(values)[:, None, :] for values in zip(*sets, strict=True)))

    def _finish(self, d: Descriptor, total: NDArray, multiplier: NDArray, shift: NDArray) -> NDArray[np.uint8]:
        """Requantize int32 totals [..., lanes] to bytes."""
        if d.narrow:
            total = np.clip(total, -(1 << 17), (1 << 17) - 1)
        y = requantize(total, multiplier, shift, double_rounding=bool(d.double_rounding)) + d.out_zero_point
        # The lower clamp is looked at first, which matters if it is above the upper one.
        clamped = np.where(y < d.act_min, d.act_min, np.minimum(y, d.act_max)) if d.act_min > d.act_max else None
        clamped = np.clip(y, d.act_min, d.act_max) if clamped is None else clamped
        data = clamped.astype(np.int8).view(np.uint8)
        return self.tables[d.table - 1][data] if d.table else data

    def _targets(self, d: Descriptor, columns: int) -> tuple[NDArray, NDArray]:
        """(bank, granule) of the results, in order [n_g, n_oy, columns, pixels]."""
        y, column = _result_pixels(d, columns)
        g = np.arange(d.n_g)[:, None]
        y = _output_rows(d, y)
        banks = self.config.row_banks
        granule = d.out_base + y // banks * d.out_row_stride + column * d.out_step_ox + g * d.out_step_g
        return np.broadcast_to(y % banks, granule.shape).reshape(-1), granule.reshape(-1)

    def _group_targets(self, d: Descriptor, columns: int) -> _Targets:
        bank, granule = self._targets(d, columns)
        enable = np.full((d.n_g, len(bank) // d.n_g), 3)
        if d.half_last:
            enable[-1] = 1
        return _make_targets(self.config, bank, granule, enable.reshape(-1))

    def _dense(self, d: Descriptor) -> tuple[NDArray[np.uint8], _Targets]:
        layer = self._dense_layers.get(d)
        if layer is None:
            layer = self._dense_layers[d] = self._prepare_dense(d)
        x = layer.operands.read(self.activations.reshape(-1)).view(np.int8).astype(layer.weights.dtype)
        p = layer.parameters
        # One product for each output row: small ones that BLAS does not hand to threads, which would cost more.
        product = (x @ layer.weights).reshape(d.n_g, -1, self.config.lanes).astype(np.int64)
        if d.resume:
            product += self.sums
        if d.keep:
            self.sums = wrap_int32(product).reshape(-1)
            return np.zeros((0, self.config.lanes), np.uint8), _NOTHING
        total = wrap_int32(product + p.bias)
        return self._finish(d, total, p.multiplier, p.shift), layer.targets

    def _prepare_dense(self, d: Descriptor) -> _Dense:
        config = self.config
        taps, half, third = config.taps, config.taps // 2, config.taps // 3
        y, ox = (v[:, None, None, None] for v in _result_pixels(d, d.n_ox))
        ky, kx, tap = np.ogrid[: d.n_ky, : d.n_kx, :taps]
        row_step = d.row_step_oy // 2 if d.pixel_pair else d.row_step_oy
        row = d.row_start + y * row_step + ky * d.row_step_ky
        kernel_row = ky * d.row_step_ky
        byte = tap
        if d.row_pair:
            second = (tap >= half) & (tap < 2 * half)
            row, kernel_row, byte = row + second, kernel_row + second, np.where(second, tap - half, tap)
        if d.row_triple:
            below = np.where(tap < 3 * third, tap // third, 0)
            row, kernel_row, byte = row + below, kernel_row + below, tap - below * third
        q = d.q_start + ox * d.q_step_ox + kx * d.q_step_kx + byte
        groups: tuple[int, ...] = ()
        if d.q_step_g:
            # The groups do not read the same.
            groups = (d.n_g,)
            q = q + np.arange(d.n_g)[:, None, None, None, None] * d.q_step_g
        x = self._fetch(d, np.int64(d.in_base), np.int64(d.pad_value), row, q, kernel_row)
        count = d.n_ky * d.n_kx
        step = np.arange(count) if d.weights_advance else np.zeros(count, int)
        group = d.weight_base + np.arange(d.n_g)[:, None] * d.weight_step_g
        w = self.weights[group + config.parameter_words + step]
        w = w.transpose(0, 1, 3, 2).reshape(d.n_g, 1, count * taps, config.lanes)
        return _Dense(
            dataclasses.replace(x, index=x.index.reshape(*groups, -1, d.n_ox, count * taps)),
            w.astype(_exact_type(w)),
            self._all_parameters(d),
            self._group_targets(d, d.n_ox),
        )

    def _loads(self, d: Descriptor) -> _Gather:
        """The column loads in order: granules [n_g, loads, window_rows, 2]."""
        config = self.config
        add = d.kind == Kind.ADD
        shape = (d.n_g, d.n_oy, d.n_ox, d.n_ky, d.n_kx, config.window_rows, 2)
        g, oy, ox, ky, kx, r, part = np.ogrid[tuple(slice(n) for n in shape)]
        step_ky = 0 if add else d.row_step_ky
        row = d.row_start + oy * d.row_step_oy + ky * step_ky + r
        q = d.q_start + g * d.q_step_g + ox * d.q_step_ox + kx * d.q_step_kx
        if d.broadcast:
            row, q = np.where(ky == 0, r, row), np.where(ky == 0, d.q_start + g * d.q_step_g, q)
        x_phase = (add or d.product) & (ky == 1)
        base = np.where(x_phase, d.in2_base, d.in_base)
        pad = np.where(x_phase, d.pad_value2, d.pad_value)
        # Validity is that of the first byte: pixels are whole granules.
        banks = config.row_banks
        address = base + (row // banks) * d.in_row_stride + q // config.granule + part
        index = row % banks * config.bank_granules + address % config.bank_granules
        valid = (row >= 0) & (row < d.in_rows) & (q >= 0) & (q < d.in_row_bytes)
        valid = valid & (ky * step_ky + r < d.kernel_rows)
        gather = _gather(index, valid, pad)
        # A cell is a granule: that many equal bytes.
        cells = np.repeat(gather.pad[:, None], config.granule, axis=1)
        index = gather.index.reshape(d.n_g, -1, config.window_rows, 2)
        return _Gather(index, gather.invalid, _granules(config, cells).reshape(-1))

    def _window(self, d: Descriptor) -> tuple[NDArray[np.uint8], _Targets]:
        layer = self._window_layers.get(d)
        if layer is None:
            layer = self._window_layers[d] = self._prepare_window(d)
        config = self.config
        columns, rows, lanes = config.window_columns, config.window_rows, config.lanes
        granules = layer.loads.read(_granules(config, self.activations).reshape(-1))
        count = granules.shape[1]
        # Column c of the window at load t is load t - (columns - 1 - c); a group's first loads follow those before it.
        history = np.empty((rows, d.n_g, lanes, columns - 1 + count), np.float32)
        history[..., columns - 1 :] = granules.view(np.int8).reshape(d.n_g, count, rows, lanes).transpose(2, 0, 3, 1)
        history[:, 0, :, : columns - 1] = self.window
        for g in range(1, d.n_g):
            history[:, g, :, : columns - 1] = history[:, g - 1, :, count:]
        self.window = history[:, -1, :, count:].astype(np.int8)
        shape = (d.n_g, lanes, -1, layer.weight_steps)
        total, product = (np.zeros((d.n_g, lanes, count), np.float32).reshape(shape) for _ in range(2))
        if d.maximum:
            total[...] = -128
        for tap, weights in layer.weights.items():
            column, r = divmod(tap, rows)
            # At most `taps` products of int8: exact in float32.
            np.multiply(history[r, ..., column : column + count].reshape(shape), weights, out=product)
            if d.maximum:
                np.maximum(total, product.astype(np.int16).astype(np.int8), out=total)
            else:
                total += product
        if d.product:
            # Loads come in pairs, operand Y and operand X.
            newest, below = (history[r, ..., columns - 1 :].reshape(d.n_g, lanes, -1, 2) for r in range(2))
            total += below * (-1 - newest)
            total[..., 1] += newest[..., 0] * newest[..., 1]
        if d.kind == Kind.ADD:
            return self._add(d, layer, total), layer.targets
        if d.slide:
            total = total.reshape(d.n_g, lanes, d.n_oy, d.n_ox)[..., d.slide_first :: d.slide_step]
        else:
            total = total.reshape(d.n_g, lanes, -1, d.n_ky * d.n_kx)
            total = total.max(axis=3) if d.maximum else total.sum(axis=3, dtype=np.int64)
        (p,) = layer.parameters
        results = total.reshape(d.n_g, lanes, -1).transpose(0, 2, 1).astype(np.int64)
        return self._finish(d, wrap_int32(results + p.bias), p.multiplier, p.shift), layer.targets

    def _prepare_window(self, d: Descriptor) -> _Window:
        config = self.config
        add = d.kind == Kind.ADD
        sets = 2 if add else 1
        per_pixel = d.n_ky * d.n_kx
        step = np.arange(per_pixel) if d.weights_advance else np.zeros(2 if d.product else 1, int)
        group = d.weight_base + np.arange(d.n_g)[:, None] * d.weight_step_g
        weights = self.weights[group + sets * config.parameter_words + step].transpose(3, 0, 2, 1)
        if d.product:
            weights[config.newest_tap, ..., 1] = weights[config.newest_tap + 1] = 0
        used: Iterable[int] = maximum_taps(config)
        if not d.maximum:
            taps = range(config.window_columns * config.window_rows)
            used = [tap for tap in taps if weights[tap].any()]
        if add:
            targets = self._add_targets(d)
        elif by_word(d):
            targets = self._product_targets(d)
        else:
            columns = len(range(d.n_ox)[d.slide_first :: d.slide_step]) if d.slide else d.n_ox
            targets = self._group_targets(d, columns)
        return _Window(
            self._loads(d),
            {tap: weights[tap][:, :, None].astype(np.float32) for tap in used},
            len(step),
            tuple(self._all_parameters(d, i * config.parameter_words) for i in range(sets)),
            targets,
        )

    def _add_targets(self, d: Descriptor) -> _Targets:
        bank, granule = self._targets(d, d.n_ox * d.n_kx)
        _, _, ox, kx = np.mgrid[: d.n_g, : d.n_oy, : d.n_ox, : d.n_kx]
        q = (d.q_start + ox * d.q_step_ox + kx * d.q_step_kx).reshape(-1)
        enable = np.where(q >= d.in_row_bytes, 0, np.where(q + self.config.granule < d.in_row_bytes, 3, 1))
        return _make_targets(self.config, bank, granule, enable)

    def _product_targets(self, d: Descriptor) -> _Targets:
        bank, granule = self._targets(d, d.n_ox)
        g, _, ox = np.mgrid[: d.n_g, : d.n_oy, : d.n_ox]
        q = (d.q_start + g * d.q_step_g + ox * d.q_step_ox).reshape(-1)
        enable = np.where(q >= d.in_row_bytes, 0, np.where(q + self.config.granule < d.in_row_bytes, 3, 1))
        return _make_targets(self.config, bank, granule, enable)

    def _add(self, d: Descriptor, layer: _Window, total: NDArray) -> NDArray[np.uint8]:
        """total [groups, lanes, batches, 2 * n_kx]: per batch the words of operand Y, then those of X."""
        lanes = self.config.lanes
        words = total.astype(np.int64).reshape(d.n_g, lanes, -1, 2, d.n_kx)
        y, x = (words[:, :, :, i].reshape(d.n_g, lanes, -1).transpose(0, 2, 1) for i in range(2))
        first, second = layer.parameters
        y, x = _addend_value(y), _addend_value(x)
        y = _upper_part(wrap_int32((y << ADD_LEFT_SHIFT) + first.bias))
        addend = requantize(y, first.multiplier, first.shift, double_rounding=bool(d.double_rounding))
        x = wrap_int32((x << (ADD_LEFT_SHIFT - 1)) + addend)
        return self._finish(d, x, second.multiplier, second.shift)


def _addend_value(value: NDArray[np.int64]) -> NDArray[np.int64]:
    """Operands of an ADD have ten bits (signed): a byte and its sign would do."""
    return (value + 512 & 1023) - 512


def _upper_part(value: NDArray[np.int64]) -> NDArray[np.int64]:
    """Operand Y is requantized without its low 17 bits, which are zero if those of its bias are."""
    return value >> 17 << 17


def _result_pixels(d: Descriptor, columns: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Output row and column of each result of a group, in the order of the hardware."""
    pixels = 2 if d.pixel_pair else 1
    rows = d.n_oy * pixels - (d.odd_rows if d.pixel_pair else 0)
    oy, column, pixel = np.ogrid[: d.n_oy, :columns, :pixels]
    y, column = np.broadcast_arrays(oy * pixels + pixel, column)
    # The last pair may have one row only.
    return y[y < rows], column[y < rows]


def _output_rows(d: Descriptor, y: NDArray[np.intp]) -> NDArray[np.intp]:
    """Where result rows lie: rows of the output tensor, counted from the one in bank 0 at `out_base`."""
    pixel, oy = (y % 2, y // 2) if d.pixel_pair else (0, y)
    return d.out_row_start + oy * d.out_row_step + pixel


def _exact_type(weights: NDArray[np.int8]) -> type[np.floating]:
    """float32 if every partial sum of int8 values times weights [..., sum, lanes] is exact in it."""
    largest = 128 * int(np.abs(weights.astype(np.int64)).sum(-2).max(initial=0))
    # The same holds for float64 below 2**53, beyond any weight memory.
    return np.float32 if largest <= 1 << 24 else np.float64


_NONE = np.zeros(0, np.int64)
_NOTHING = _Targets(_NONE, _NONE, _NONE, np.zeros(0, np.intp), slice(None))
"""of a descriptor that writes nothing"""


def _gather(index: NDArray, valid: NDArray, pad: NDArray | np.int64) -> _Gather:
    invalid = np.flatnonzero(~np.broadcast_to(valid, index.shape))
    return _Gather(
        index.astype(np.intp), invalid, np.broadcast_to(pad, index.shape).reshape(-1)[invalid].astype(np.int8)
    )


def _granules(config: AcceleratorConfig, data: NDArray) -> NDArray:
    """Bytes [..., n * granule] as granules [..., n], without a copy."""
    return data.view(np.dtype((np.void, config.granule)))


def _make_targets(config: AcceleratorConfig, bank: NDArray, granule: NDArray, enable: NDArray) -> _Targets:
    index = bank[:, None] * config.bank_granules + (granule[:, None] + np.arange(2)) % config.bank_granules
    chosen = np.flatnonzero(enable[:, None] >> np.arange(2) & 1)
    for values in (bank, granule, enable):
        values.flags.writeable = False
    return _Targets(
        bank, granule, enable, index.reshape(-1)[chosen], chosen if len(chosen) < index.size else slice(None)
    )


def _store(
    config: AcceleratorConfig, activations: NDArray[np.uint8], data: NDArray[np.uint8], targets: _Targets
) -> None:
    cells = _granules(config, activations).reshape(-1)
    cells[targets.index] = _granules(config, data).reshape(-1)[targets.chosen]


def execute_literally(model: GoldenModel, d: Descriptor) -> WriteTrace:
    """Run one descriptor step by step, as `nnloom.arch.loopnest.steps` lists them. Slow."""
    config = model.config
    rows, columns, lanes, taps = config.window_rows, config.window_columns, config.lanes, config.taps
    half, third = taps // 2, taps // 3
    window = np.zeros((columns, rows, lanes), np.int8)
    window[1:] = model.window.transpose(2, 0, 1)
    accumulator = np.stack([model.sums, np.zeros(lanes, np.int64)])
    maximum = np.zeros(lanes, np.int64)
    sets: list[int] = []
    addends: list[NDArray] = []
    written = []

    def byte(step: Step, r: int, offset: int, test: int, first_row: int | None = None) -> int:
        row = (step.row if first_row is None else first_row) + r
        valid = 0 <= row < d.in_rows and 0 <= step.q + test < d.in_row_bytes and step.kernel_row + r < d.kernel_rows
        if not valid:
            return step.pad
        address = (step.base + row // config.row_banks * d.in_row_stride) * config.granule
        return int(
            model.activations[row % config.row_banks, (address + offset) % model.activations.shape[1]].view(np.int8)
        )

    for step in steps(config, d):
        if isinstance(step, ParameterLoad):
            sets = [*sets[-config.parameter_words + 1 :], step.weight] if config.parameter_words > 1 else [step.weight]
            continue
        if d.kind == Kind.DENSE:
            vectors = np.zeros((2, taps), np.int64)
            for pixel, row in enumerate((step.row,) if step.second_row is None else (step.row, step.second_row)):
                for t in range(taps):
                    r, i = (1, t - half) if d.row_pair and half <= t < 2 * half else (0, t)
                    if d.row_triple and t < 3 * third:
                        r, i = divmod(t, third)
                    vectors[pixel, t] = byte(step, r, step.q + i, i, row)
            operands = np.broadcast_to(vectors[:, None], (2, lanes, taps))
        else:
            first = step.q // config.granule * config.granule
            column = [[byte(step, r, first + lane, 0) for lane in range(lanes)] for r in range(rows)]
            before = window[-1, 0]
            window = np.concatenate([window[1:], np.array(column, np.int8)[None]])
            operands = np.zeros((2, lanes, taps), np.int64)
            operands[0, :, : columns * rows] = window.reshape(columns * rows, lanes).T
        if not step.multiply:
            continue
        weights = model.weights[step.weight].astype(np.int64)
        if d.product:
            weights[:, config.newest_tap + 1] = ~window[-1, 0]
            if not step.first:
                weights[:, config.newest_tap] = before
        total = (operands * weights).sum(2)
        accumulator = total if step.first else accumulator + total
        products = operands[0] * weights
        value = products[:, maximum_taps(config)].astype(np.int8).max(1).astype(np.int64)
        maximum = value if step.first else np.maximum(maximum, value)
        if not step.result:
            continue
        bias, multiplier, shift = model._parameters(sets[0])
        if step.pair:
            first_pixel = model._finish(d, wrap_int32(accumulator[0] + bias), multiplier, shift)
            second_pixel = model._finish(d, wrap_int32(accumulator[1] + bias), multiplier, shift)
            written.append((step.out_bank, step.out_granule, step.out_enable, first_pixel))
            written.append((step.out_bank + 1, step.out_granule, step.out_enable, second_pixel))
            continue
        result = maximum if d.maximum else accumulator[0]
        if d.kind == Kind.ADD:
            result = _addend_value(result)
        if step.to_addend:
            y = _upper_part(wrap_int32((result << ADD_LEFT_SHIFT) + bias))
            addends.append(requantize(y, multiplier, shift, double_rounding=bool(d.double_rounding)))
            continue
        if d.kind == Kind.ADD:
            result = (result << (ADD_LEFT_SHIFT - 1)) + addends.pop(0)
        else:
            result = result + bias
        data = model._finish(d, wrap_int32(result), multiplier, shift)
        written.append((step.out_bank, step.out_granule, step.out_enable, data))
    if d.keep:
        model.sums = wrap_int32(accumulator[0])
    bank, granule, enable = (np.array([w[i] for w in written], np.int64) for i in range(3))
    data = np.array([w[3] for w in written], np.uint8).reshape(-1, lanes)
    _store(config, model.activations, data, _make_targets(config, bank, granule, enable))
    model.window = window[1:].transpose(1, 2, 0)
    return WriteTrace(bank, granule, enable, data)
