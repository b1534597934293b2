"""The golden model: executes an emitted program from its memory images, bit exact, in NumPy.

It knows descriptors and memory words only, never the network. `GoldenModel` vectorises the loop nest of
`nnloom.arch.loopnest` over a whole descriptor; `execute_literally` walks the steps one by one, as the
hardware does, and exists to prove the former.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, Kind, decode_parameters, decode_program
from nnloom.arch.loopnest import ParameterLoad, Step, steps
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


class GoldenModel:
    """One engine: memories and the functional effect of a start command.

    Parameters
    ----------
    config
        The accelerator.
    program
        uint32 words of program memory.
    weights
        uint8 [words, weight_word_bytes].
    """

    def __init__(self, config: AcceleratorConfig, program: NDArray[np.uint32], weights: NDArray[np.uint8]) -> None:
        self.config = config
        self.program = program
        self.weights = weights.view(np.int8).reshape(-1, config.lanes, config.taps)
        self.activations = np.zeros((config.row_banks, config.bank_granules * config.granule), np.uint8)
        """uint8 [bank, byte]"""

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
        ValueError
            If the program does not end.
        """
        return [self.execute(d) for d in decode_program(self.program, program_start)]

    def execute(self, d: Descriptor) -> WriteTrace:
        """Run one descriptor."""
        trace = self._dense(d) if d.kind == Kind.DENSE else self._window(d)
        _store(self.config, self.activations, trace)
        return trace

    def _fetch(
        self,
        d: Descriptor,
        base: NDArray | np.int64,
        pad: NDArray | np.int64,
        row: NDArray,
        q: NDArray,
        kernel_row: NDArray,
    ) -> NDArray[np.int8]:
        """Bytes (row, q) of the input, padding where they are not valid; arguments broadcast."""
        granule = self.config.granule
        banks = self.config.row_banks
        address = (base + (row // banks) * d.in_row_stride) * granule + q
        values = self.activations[row % banks, address % self.activations.shape[1]].view(np.int8)
        valid = (row >= 0) & (row < d.in_rows) & (q >= 0) & (q < d.in_row_bytes) & (kernel_row < d.kernel_rows)
        return np.where(valid, values, pad).astype(np.int8)

    def _parameters(self, word: int) -> tuple[NDArray, NDArray, NDArray]:
        words = self.weights[word : word + self.config.parameter_words]
        return decode_parameters(self.config, words.view(np.uint8))

    def _finish(self, d: Descriptor, total: NDArray, multiplier: NDArray, shift: NDArray) -> NDArray[np.uint8]:
        """Requantize int32 totals [n, lanes] to bytes."""
        if d.narrow:
            total = np.clip(total, -(1 << 17), (1 << 17) - 1)
        y = requantize(total, multiplier, shift, double_rounding=bool(d.double_rounding)) + d.out_zero_point
        return np.clip(y, d.act_min, d.act_max).astype(np.int8).view(np.uint8)

    def _targets(self, d: Descriptor, g: int, columns: int) -> tuple[NDArray, NDArray]:
        """(bank, granule) of the results of group g, in order [n_oy * columns]."""
        pixels = 2 if d.pixel_pair else 1
        oy, column, pixel = np.meshgrid(np.arange(d.n_oy), np.arange(columns), np.arange(pixels), indexing="ij")
        y = (oy * pixels + pixel).reshape(-1)
        banks = self.config.row_banks
        granule = d.out_base + y // banks * d.out_row_stride + column.reshape(-1) * d.out_step_ox + g * d.out_step_g
        keep = _existing_pixels(d, columns)
        return (y % banks)[keep], granule[keep]

    def _dense(self, d: Descriptor) -> WriteTrace:
        config = self.config
        taps, half = config.taps, config.taps // 2
        pixels = 2 if d.pixel_pair else 1
        oy, ox, pixel, ky, kx, tap = np.ogrid[: d.n_oy, : d.n_ox, :pixels, : d.n_ky, : d.n_kx, :taps]
        row = d.row_start + oy * d.row_step_oy + pixel * (d.row_step_oy // 2) + ky * d.row_step_ky
        kernel_row = ky * d.row_step_ky
        byte = tap
        if d.row_pair:
            second = (tap >= half) & (tap < 2 * half)
            row, kernel_row, byte = row + second, kernel_row + second, np.where(second, tap - half, tap)
        q = d.q_start + ox * d.q_step_ox + kx * d.q_step_kx + byte
        x = self._fetch(d, np.int64(d.in_base), np.int64(d.pad_value), row, q, kernel_row)
        x = x.reshape(d.n_oy * d.n_ox * pixels, -1)[_existing_pixels(d, d.n_ox)].astype(np.float64)
        parts = []
        for g in range(d.n_g):
            start = d.weight_base + g * d.weight_step_g
            bias, multiplier, shift = self._parameters(start)
            first = start + config.parameter_words
            index = first + (np.arange(d.n_ky * d.n_kx) if d.weights_advance else np.zeros(d.n_ky * d.n_kx, int))
            w = self.weights[index].transpose(0, 2, 1).reshape(-1, config.lanes).astype(np.float64)
            # Sums of int8 products stay far below 2**53: the float matrix product is exact.
            total = wrap_int32((x @ w).astype(np.int64) + bias)
            parts.append(self._trace(d, g, d.n_ox, self._finish(d, total, multiplier, shift)))
        return _concatenate(parts)

    def _trace(self, d: Descriptor, g: int, columns: int, data: NDArray[np.uint8]) -> WriteTrace:
        bank, granule = self._targets(d, g, columns)
        enable = np.full(len(bank), 1 if d.half_last and g == d.n_g - 1 else 3)
        return WriteTrace(bank, granule, enable, data)

    def _loads(self, d: Descriptor, g: int) -> NDArray[np.int8]:
        """The column loads of a group in order: int8 [loads, window_rows, lanes]."""
        config = self.config
        add = d.kind == Kind.ADD
        shape = (d.n_oy, d.n_ox, d.n_ky, d.n_kx, config.window_rows, config.lanes)
        oy, ox, ky, kx, r, byte = np.ogrid[tuple(slice(n) for n in shape)]
        step_ky = 0 if add else d.row_step_ky
        row = d.row_start + oy * d.row_step_oy + ky * step_ky + r
        q = d.q_start + g * d.q_step_g + ox * d.q_step_ox + kx * d.q_step_kx
        x_phase = add & (ky == 1)
        base = np.where(x_phase, d.in2_base, d.in_base)
        pad = np.where(x_phase, d.pad_value2, d.pad_value)
        # Validity is that of the first byte: pixels are whole granules.
        granule = config.granule
        banks = config.row_banks
        address = (base + (row // banks) * d.in_row_stride) * granule + q // granule * granule + byte
        values = self.activations[row % banks, address % self.activations.shape[1]].view(np.int8)
        valid = (row >= 0) & (row < d.in_rows) & (q >= 0) & (q < d.in_row_bytes)
        valid = valid & (ky * step_ky + r < d.kernel_rows)
        return np.where(valid, values, pad).astype(np.int8).reshape(-1, config.window_rows, config.lanes)

    def _window(self, d: Descriptor) -> WriteTrace:
        config = self.config
        columns = config.window_columns
        add = d.kind == Kind.ADD
        parts = []
        for g in range(d.n_g):
            parameters = d.weight_base + g * d.weight_step_g
            first = parameters + config.parameter_words * (2 if add else 1)
            loads = self._loads(d, g)
            count = len(loads)
            # Column c of the window at load t is load t - (columns - 1 - c); before the first, unknown: zero.
            history = np.concatenate([np.zeros((columns - 1, *loads.shape[1:]), np.int8), loads])
            per_pixel = d.n_ky * d.n_kx
            index = np.tile(np.arange(per_pixel) if d.weights_advance else np.zeros(per_pixel, int), d.n_oy * d.n_ox)
            weights = self.weights[first + index]
            total: NDArray = np.zeros((count, config.lanes), np.int64)
            for tap in range(columns * config.window_rows):
                column, r = divmod(tap, config.window_rows)
                total += history[column : column + count, r].astype(np.int64) * weights[:, :, tap]
            if add:
                parts.append(self._add(d, parameters, total))
                continue
            if d.slide:
                ox = np.arange(d.n_ox)
                fires = (ox >= d.slide_first) & ((ox - d.slide_first) % d.slide_step == 0)
                total = total.reshape(d.n_oy, d.n_ox, -1)[:, fires]
                width = int(fires.sum())
                total = total.reshape(d.n_oy * width, -1)
            else:
                total = total.reshape(d.n_oy * d.n_ox, per_pixel, -1)
                if d.maximum:
                    total = total.astype(np.int8).max(axis=1).astype(np.int64)
                else:
                    total = total.sum(axis=1)
                width = d.n_ox
            bias, multiplier, shift = self._parameters(parameters)
            total = wrap_int32(total + bias)
            parts.append(self._trace(d, g, width, self._finish(d, total, multiplier, shift)))
        return _concatenate(parts)

    def _add(self, d: Descriptor, parameters: int, total: NDArray) -> WriteTrace:
        """total [loads, lanes]: per batch the words of operand Y, then those of X."""
        config = self.config
        total = total.reshape(d.n_oy, d.n_ox, 2, d.n_kx, config.lanes)
        bias_y, multiplier_y, shift_y = self._parameters(parameters)
        _, multiplier, shift = self._parameters(parameters + config.parameter_words)
        y = wrap_int32((total[:, :, 0] << ADD_LEFT_SHIFT) + bias_y)
        addend = requantize(y, multiplier_y, shift_y, double_rounding=bool(d.double_rounding))
        x = wrap_int32((total[:, :, 1] << (ADD_LEFT_SHIFT - 1)) + addend)
        data = self._finish(d, x.reshape(-1, config.lanes), multiplier, shift)
        bank, granule = self._targets(d, 0, d.n_ox * d.n_kx)
        _, ox, kx = np.meshgrid(np.arange(d.n_oy), np.arange(d.n_ox), np.arange(d.n_kx), indexing="ij")
        q = (d.q_start + ox * d.q_step_ox + kx * d.q_step_kx).reshape(-1)
        enable = np.where(q >= d.in_row_bytes, 0, np.where(q + config.granule < d.in_row_bytes, 3, 1))
        return WriteTrace(bank, granule, enable, data)


def _existing_pixels(d: Descriptor, columns: int) -> NDArray[np.intp] | slice:
    """Indices of the results that exist among [n_oy, columns, pixels]: the last pair may have one row only."""
    if not d.odd_rows:
        return slice(None)
    index = np.arange(d.n_oy * columns * 2).reshape(d.n_oy, columns * 2)
    return np.concatenate([index[:-1].reshape(-1), index[-1, ::2]])


def _concatenate(parts: list[WriteTrace]) -> WriteTrace:
    return WriteTrace(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("bank", "granule", "enable", "data"))
    )


def _store(config: AcceleratorConfig, activations: NDArray[np.uint8], trace: WriteTrace) -> None:
    size = config.granule
    image = activations.reshape(config.row_banks, -1, size)
    for part in range(2):
        chosen = (trace.enable >> part & 1).astype(bool)
        granule = (trace.granule[chosen] + part) % image.shape[1]
        image[trace.bank[chosen], granule] = trace.data[chosen, part * size : (part + 1) * size]


def execute_literally(model: GoldenModel, d: Descriptor) -> WriteTrace:
    """Run one descriptor step by step, as `nnloom.arch.loopnest.steps` lists them. Slow."""
    config = model.config
    rows, columns, lanes, taps = config.window_rows, config.window_columns, config.lanes, config.taps
    half = taps // 2
    window = np.zeros((columns, rows, lanes), np.int8)
    accumulator = np.zeros((2, lanes), np.int64)
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
                    vectors[pixel, t] = byte(step, r, step.q + i, i, row)
            operands = np.broadcast_to(vectors[:, None], (2, lanes, taps))
        else:
            first = step.q // config.granule * config.granule
            column = [[byte(step, r, first + lane, 0) for lane in range(lanes)] for r in range(rows)]
            window = np.concatenate([window[1:], np.array(column, np.int8)[None]])
            operands = np.zeros((2, lanes, taps), np.int64)
            operands[0, :, : columns * rows] = window.reshape(columns * rows, lanes).T
        if not step.multiply:
            continue
        total = (operands * model.weights[step.weight].astype(np.int64)).sum(2)
        accumulator = total if step.first else accumulator + total
        value = total[0].astype(np.int8).astype(np.int64)
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
        if step.to_addend:
            y = wrap_int32((result << ADD_LEFT_SHIFT) + bias)
            addends.append(requantize(y, multiplier, shift, double_rounding=bool(d.double_rounding)))
            continue
        if d.kind == Kind.ADD:
            result = (result << (ADD_LEFT_SHIFT - 1)) + addends.pop(0)
        else:
            result = result + bias
        data = model._finish(d, wrap_int32(result), multiplier, shift)
        written.append((step.out_bank, step.out_granule, step.out_enable, data))
    trace = WriteTrace(
        np.array([w[0] for w in written]),
        np.array([w[1] for w in written]),
        np.array([w[2] for w in written]),
        np.array([w[3] for w in written]),
    )
    _store(config, model.activations, trace)
    return trace
