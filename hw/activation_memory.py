"""Row-banked activation memory with its read address generation and write port."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from nnloom.arch.config import AcceleratorConfig

from .delay import delay
from .technology import LANES_OF_A_COPY, MULTIPLIER_LATENCY, RAM_LATENCY, Technology

__all__ = [
    "ADDRESS_LATENCY",
    "ROW_FETCH_LATENCY",
    "ActivationMemory",
    "MemoryWrite",
    "RowRequest",
    "WritePort",
    "enabled_banks",
    "rows_layout",
]

ROW_FETCH_LATENCY = MULTIPLIER_LATENCY - 1 + 1 + 1 + RAM_LATENCY + 2
"""Cycles from `request` to `rows`: row product (its operand comes a cycle before), base sum, bank addresses, memory,
granule swap, row rotation."""

ADDRESS_LATENCY = MULTIPLIER_LATENCY + 1
"""Cycles from `row_ahead` to the address of its row."""

WRITE_LATENCY = 1
"""Cycles from `write` to the memory's own write port."""


def RowRequest(config: AcceleratorConfig) -> data.StructLayout:
    """Read `lanes` bytes of some rows, from the granule that holds byte `q`.

    The rows are `row` and `row` + 1, and with `second` (1 or 2) `row` + `second` and, for two pixels, `row` + `second`
    + 1. `row_ahead` and `row_stride` belong to the request of the next cycle.
    """
    bits = config.field_bits
    return data.StructLayout(
        {
            "row_ahead": signed(bits + 1),
            "row_stride": bits,
            "second": 2,
            "q": signed(bits + 2),
            "base": bits,
        }
    )


def rows_layout(config: AcceleratorConfig) -> data.ArrayLayout:
    """The rows of a request, `lanes` bytes of each."""
    return data.ArrayLayout(data.ArrayLayout(8, config.lanes), config.window_rows + config.pixels - 1)


def WritePort(config: AcceleratorConfig) -> data.StructLayout:
    """Write of up to two neighbouring granules, as the simulation traces it."""
    return data.StructLayout(
        {
            "valid": 1,
            "bank": 2,
            "granule": 16,
            "enable": 2,
            "data": 8 * config.lanes,
        }
    )


def MemoryWrite(config: AcceleratorConfig) -> data.StructLayout:
    """Write of up to two neighbouring granules, decoded.

    enable
        Banks of the even memories and of the odd ones: as `enabled_banks`, nothing if there is no write.
    granule, above
        The lower granule, and the next one.
    """
    return data.StructLayout(
        {
            "enable": data.ArrayLayout(config.row_banks, 2),
            "granule": config.field_bits,
            "above": config.field_bits,
            "data": 8 * config.lanes,
        }
    )


def enabled_banks(config: AcceleratorConfig, bank: Value, granule: Value, enable: Value) -> list[Value]:
    """Banks of the even and of the odd memories that a write goes to; `enable`: of the lower granule, of the upper."""
    parities = (Mux(granule[0] == parity, enable[0], enable[1]) for parity in range(2))
    return [Cat((bank == b) & here for b in range(config.row_banks)) for here in parities]


class ActivationMemory(wiring.Component):
    """`row_banks` banks, each of two interleaved granule memories.

    A bank delivers any two neighbouring granules in one cycle: granule g is word g // 2 of memory g mod 2.
    Row y of a tensor is in bank y mod `row_banks`, so the rows of a window never meet in one bank.

    Members
    -------
    request : In; sampled every cycle
    rows : Out; `ROW_FETCH_LATENCY` cycles after `q`; bytes outside the tensor are arbitrary
    write : In(MemoryWrite); the word is readable by requests whose `q` comes two cycles before or later
    host_bank, host_granule, host_read : In; while `host_read`, the banks read this granule instead
    host_data : Out; `RAM_LATENCY` + 3 cycles after: the granule, or the two of a 32-bit word
    beyond : Out; `ADDRESS_LATENCY` cycles after `row_ahead`: byte `q` of `row`, both positive, is beyond the memory
    """

    def __init__(self, config: AcceleratorConfig, technology: Technology) -> None:
        self.config = config
        self.technology = technology
        super().__init__(
            {
                "request": In(RowRequest(config)),
                "rows": Out(rows_layout(config)),
                "write": In(MemoryWrite(config)),
                "host_read": In(1),
                "host_bank": In(2),
                "host_granule": In(config.field_bits),
                "host_data": Out(8 * config.granule * config.host_granules),
                "beyond": Out(1),
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
        bits = config.field_bits

        # row // banks * row_stride, beside base + q // granule.
        m.submodules.row_product = product = self.technology.multiplier(a_width=bits, b_width=bits + 1)
        m.d.comb += [product.a.eq(request.row_ahead >> 2), product.b.eq(request.row_stride)]
        offset = Signal(bits + 1, reset_less=True)
        m.d.sync += offset.eq(request.base + (request.q >> granule_bits))
        offset = delay(m, offset, MULTIPLIER_LATENCY - 3, "offset")
        # A descriptor that stands needs no registers.
        stride = delay(m, request.row_stride, MULTIPLIER_LATENCY - 1 if config.overlap else 0, "row_stride")
        offset_same = Signal(bits + 1, reset_less=True)
        offset_next = Signal(bits + 1, reset_less=True)
        m.d.sync += [offset_same.eq(offset), offset_next.eq(offset + stride)]
        # Of granules g, g + 1 the even one is word (g + 1) // 2 of its memory, the odd one word g // 2.
        same, next_ = [], []
        for candidates, part, name in ((same, offset_same, "same"), (next_, offset_next, "next")):
            for more in range(2):
                # The first one keeps the carry of its sum.
                first = candidates is same and not more
                granule = Signal(address_bits + 1 + first, name=f"granule_{name}_{more}", reset_less=True)
                m.d.sync += granule.eq(product.p + part + more)
                candidates.append(granule)
        too_large = Signal(reset_less=True)
        m.d.sync += too_large.eq(product.p[address_bits + 1 :].any() | offset_same[address_bits + 1 :].any())
        m.d.comb += self.beyond.eq(too_large | same[0][-1])
        low = delay(m, request.row_ahead[:2], MULTIPLIER_LATENCY, "row_low")

        # Writes: of granules g, g + 1 one is in the even memories, the other in the odd ones.
        write = self.write
        w_address, w_data, w_enable = [], [], []
        for parity in range(2):
            lower = write.granule[0] == parity
            address = Signal(address_bits, name=f"w_address_{parity}", reset_less=True)
            value = Signal(width, name=f"w_data_{parity}", reset_less=True)
            enable = Signal(banks, name=f"w_enable_{parity}")
            m.d.sync += [
                address.eq((write.above if parity == 0 else write.granule) >> 1),
                value.eq(Mux(lower, write.data[:width], write.data[width:])),
                enable.eq(write.enable[parity]),
            ]
            w_address.append(address)
            w_data.append(value)
            w_enable.append(enable)

        host_read = Signal()
        host_granules = [Signal(address_bits + 1, name=f"host_granule_{more}", reset_less=True) for more in range(2)]
        m.d.sync += [host_read.eq(self.host_read), *(g.eq(self.host_granule + i) for i, g in enumerate(host_granules))]

        # Bank addresses: banks before the first row's hold rows of the next stride.
        read_data = []
        for bank in range(banks):
            before = Signal(name=f"before_{bank}", reset_less=True)
            m.d.sync += before.eq(bank < low)
            granules = [Mux(before, beyond, here) for beyond, here in zip(next_, same, strict=True)]
            odd = Signal(name=f"odd_{bank}", reset_less=True)
            m.d.sync += odd.eq(Mux(host_read, host_granules[0][0], granules[0][0]))
            pair = []
            for parity in range(2):
                ram = self.technology.ram(width=width, depth=depth)
                m.submodules[f"bank_{bank}_{'odd' if parity else 'even'}"] = ram
                address = Signal(address_bits, name=f"address_{bank}_{parity}", reset_less=True)
                engine = granules[1 - parity]
                m.d.sync += address.eq(Mux(host_read, host_granules[1 - parity], engine) >> 1)
                m.d.comb += ram.r_addr.eq(address)
                pair.append(ram.r_data)
                m.d.comb += [
                    ram.w_en.eq(w_enable[parity][bank]),
                    ram.w_addr.eq(w_address[parity]),
                    ram.w_data.eq(w_data[parity]),
                ]
            swapped = Signal(8 * config.lanes, name=f"swapped_{bank}", reset_less=True)
            odd = delay(m, odd, RAM_LATENCY, f"odd_{bank}")
            m.d.sync += swapped.eq(Mux(odd, Cat(pair[1], pair[0]), Cat(pair[0], pair[1])))
            read_data.append(swapped)

        # Row `row` + n comes from bank (row + n) mod banks.
        select = delay(m, low, RAM_LATENCY + 2, "row_select")
        second = delay(m, request.second, MULTIPLIER_LATENCY + 1 + RAM_LATENCY, "second")
        for r in range(len(self.rows)):
            rotated = Signal(8 * config.lanes, name=f"rotated_{r}", reset_less=True)
            turns = self.technology.fanout(width=2, count=config.lanes // LANES_OF_A_COPY)
            m.submodules[f"rotated_bank_{r}"] = turns
            m.d.comb += turns.value.eq(select + r if r < 2 else select + second + (r - 2))
            for group, bank in enumerate(turns.copies):
                mine = slice(8 * LANES_OF_A_COPY * group, 8 * LANES_OF_A_COPY * (group + 1))
                m.d.sync += rotated[mine].eq(Array(word[mine] for word in read_data)[bank])
            m.d.comb += self.rows[r].as_value().eq(rotated)

        host_bank = delay(m, self.host_bank, 2 + RAM_LATENCY + 1, "host_bank")
        m.d.comb += self.host_data.eq(Array(read_data)[host_bank][: len(self.host_data)])
        return m
