"""Row-banked activation memory with its read address generation and write port."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig

from .technology import MULTIPLIER_LATENCY, RAM_LATENCY, Technology

__all__ = ["ROW_FETCH_LATENCY", "ActivationMemory", "RowRequest", "WritePort", "rows_layout"]

ROW_FETCH_LATENCY = MULTIPLIER_LATENCY + 1 + 1 + RAM_LATENCY + 2
"""Cycles from `request` to `rows`: row product, base sum, bank addresses, memory, granule swap, row rotation."""

WRITE_LATENCY = 1
"""Cycles from `write` to the memory's own write port."""

RowRequest = data.StructLayout(
    {
        "row": signed(17),
        "q": signed(18),
        "base": 16,
        "row_stride": 16,
    }
)
"""Read `lanes` bytes of each of `window_rows` rows from `row` on, from the granule that holds byte `q`."""


def rows_layout(config: AcceleratorConfig) -> data.ArrayLayout:
    """`window_rows` rows of `lanes` bytes."""
    return data.ArrayLayout(data.ArrayLayout(8, config.lanes), config.window_rows)


def WritePort(config: AcceleratorConfig) -> data.StructLayout:
    """Write of up to two neighbouring granules; also what the simulation traces."""
    return data.StructLayout(
        {
            "valid": 1,
            "bank": 2,
            "granule": 16,
            "enable": 2,
            "data": 8 * config.lanes,
        }
    )


class ActivationMemory(wiring.Component):
    """`row_banks` banks, each of two interleaved granule memories.

    A bank delivers any two neighbouring granules in one cycle: granule g is word g // 2 of memory g mod 2.
    Row y of a tensor is in bank y mod `row_banks`, so the rows of a window never meet in one bank.

    Members
    -------
    request : In; sampled every cycle
    rows : Out; `ROW_FETCH_LATENCY` cycles after the request; bytes outside the tensor are arbitrary
    write : In; the word is readable by requests issued `MULTIPLIER_LATENCY` + 1 cycles before or later
    host_bank, host_granule, host_read : In; while `host_read`, the banks read this granule instead
    host_data : Out; `RAM_LATENCY` + 2 cycles after
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "request": In(RowRequest),
                "rows": Out(rows_layout(config)),
                "write": In(WritePort(config)),
                "host_read": In(1),
                "host_bank": In(2),
                "host_granule": In(16),
                "host_data": Out(8 * config.granule),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        banks = config.row_banks
        width = 8 * config.granule
        depth = config.bank_granules // 2
        address_bits = (depth - 1).bit_length()
        granule_bits = (config.granule - 1).bit_length()
        request = self.request

        def delay(value, cycles: int, name: str):
            for i in range(cycles):
                register = Signal.like(value, name=f"{name}_{i + 1}", reset_less=True)
                m.d.sync += register.eq(value)
                value = register
            return value

        # row // banks * row_stride, beside base + q // granule.
        m.submodules.row_product = product = self.technology.multiplier(a_width=16, b_width=17)
        m.d.comb += [product.a.eq(request.row >> 2), product.b.eq(request.row_stride)]
        offset = Signal(17, reset_less=True)
        m.d.sync += offset.eq(request.base + (request.q >> granule_bits))
        offset = delay(offset, MULTIPLIER_LATENCY - 2, "offset")
        stride = delay(request.row_stride, MULTIPLIER_LATENCY - 1, "row_stride")
        offset_same = Signal(17, reset_less=True)
        offset_next = Signal(17, reset_less=True)
        m.d.sync += [offset_same.eq(offset), offset_next.eq(offset + stride)]
        granule_same = Signal(address_bits + 1, reset_less=True)
        granule_next = Signal(address_bits + 1, reset_less=True)
        m.d.sync += [granule_same.eq(product.p + offset_same), granule_next.eq(product.p + offset_next)]
        low = delay(request.row[:2], MULTIPLIER_LATENCY + 1, "row_low")

        # Bank addresses: banks before the first row's hold rows of the next stride.
        swap = []
        read_data = []
        write = Signal.like(self.write, reset_less=True)
        m.d.sync += write.eq(self.write)
        for bank in range(banks):
            granule = Signal(address_bits + 1, name=f"granule_{bank}")
            m.d.comb += granule.eq(Mux(bank < low, granule_next, granule_same))
            with m.If(self.host_read):
                m.d.comb += granule.eq(self.host_granule)
            odd = Signal(name=f"odd_{bank}", reset_less=True)
            m.d.sync += odd.eq(granule[0])
            pair = []
            for parity in range(2):
                ram = self.technology.ram(width=width, depth=depth)
                m.submodules[f"bank_{bank}_{'odd' if parity else 'even'}"] = ram
                address = Signal(address_bits, name=f"address_{bank}_{parity}", reset_less=True)
                # Of granules g, g + 1 the even one is word (g + 1) // 2, the odd one word g // 2.
                m.d.sync += address.eq((granule + 1) >> 1 if parity == 0 else granule >> 1)
                m.d.comb += ram.r_addr.eq(address)
                pair.append(ram.r_data)
                # The lower granule of a write goes to the memory of its parity, the upper to the other.
                lower = write.granule[0] == parity
                m.d.comb += [
                    ram.w_en.eq(write.valid & (write.bank == bank) & Mux(lower, write.enable[0], write.enable[1])),
                    ram.w_addr.eq((write.granule + 1) >> 1 if parity == 0 else write.granule >> 1),
                    ram.w_data.eq(Mux(lower, write.data[:width], write.data[width:])),
                ]
            swapped = Signal(8 * config.lanes, name=f"swapped_{bank}", reset_less=True)
            odd = delay(odd, RAM_LATENCY, f"odd_{bank}")
            m.d.sync += swapped.eq(Mux(odd, Cat(pair[1], pair[0]), Cat(pair[0], pair[1])))
            read_data.append(swapped)
            swap.append(odd)

        # Window row r comes from bank (row + r) mod banks.
        select = delay(low, 1 + RAM_LATENCY + 1, "row_select")
        for r in range(config.window_rows):
            rotated = Signal(8 * config.lanes, name=f"rotated_{r}", reset_less=True)
            choices = Array(read_data[(i + r) % banks] for i in range(banks))
            m.d.sync += rotated.eq(choices[select])
            m.d.comb += self.rows[r].as_value().eq(rotated)

        host_bank = delay(self.host_bank, 1 + RAM_LATENCY + 1, "host_bank")
        m.d.comb += self.host_data.eq(Array(read_data)[host_bank][:width])
        return m
