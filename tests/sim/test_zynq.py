"""AXI of the Zynq system against cocotbext-axi's models: random stalls, errors, aborts, resets.

The models assert what the standard asks of the other side: no burst across 4 KiB, WLAST on the last beat. DDR answers
accesses outside of the buffers with an error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import (
    AT_ONCE,
    DMA_BASE,
    DMA_MAGIC,
    PROGRAM_QUEUE,
    DmaCause,
    DmaCommand,
    DmaControl,
    DmaDescriptor,
    DmaRegister,
    DmaStatus,
    encode_list,
    port_width,
)
from nnloom.arch.isa import MAGIC, Descriptor, ErrorCause, HostAddress, Kind, Register, Status, encode_program
from nnloom.sim.pynq import CONTROL_BASE, PAGE_BYTES, SimulatedPynq
from tests.artifacts import SMALL

pytestmark = pytest.mark.verilator
WORDS = SMALL.activation_bytes // 4
SLVERR = 2
WIDE = AcceleratorConfig(
    lanes=32,
    taps=4,
    requant_units=4,
    activation_bytes=SMALL.activation_bytes,
    weight_words=256,
    depthwise=False,
    max_pool=False,
    elementwise_add=False,
)
"""Whose memories consist of beats of 128 bits."""

LONG = Descriptor(
    kind=Kind.DENSE,
    last=1,
    interval=16,
    in_base=0,
    in_rows=1,
    in_row_bytes=1,
    in_row_stride=0,
    out_row_stride=0,
    out_base=0,
    n_oy=1000,
    n_ox=1000,
    n_g=1,
    n_ky=1,
    n_kx=1,
)
"""A program that takes some seconds of a simulation's time, if it is not ended."""
RUN = DmaDescriptor(command=DmaCommand.RUN)


class Bench:
    """Registers and lists of a system."""

    def __init__(self, library: SimulatedPynq, config: AcceleratorConfig, data_width: int) -> None:
        self.library = library
        self.config = config
        self.unit = port_width(config, data_width) // 32
        """words that are moved at once"""
        self.mmio = library.MMIO(CONTROL_BASE, 0x2000)
        self.list = library.allocate(1024)
        self.data = library.allocate(2 * WORDS)

    def read(self, register: DmaRegister) -> int:
        return self.mmio.read(DMA_BASE + register)

    def write(self, register: DmaRegister, value: int) -> None:
        self.mmio.write(DMA_BASE + register, value)

    def start(self, descriptors, *, address=None) -> None:
        words = encode_list(descriptors)
        self.list[: len(words)] = words
        self.list.flush()
        self.write(DmaRegister.LIST, self.list.physical_address if address is None else address)
        self.write(DmaRegister.CONTROL, DmaControl.START)

    def wait(self) -> tuple[DmaStatus, DmaCause]:
        for _ in range(20_000):
            status = self.read(DmaRegister.STATUS)
            if not status & DmaStatus.BUSY:
                return DmaStatus(status & 0xF), DmaCause(status >> 8 & 0xF)
        raise AssertionError("the list does not end")

    def run(self, descriptors, **options) -> tuple[DmaStatus, DmaCause]:
        self.start(descriptors, **options)
        return self.wait()

    def load_program(self, layer: Descriptor) -> DmaDescriptor:
        """A descriptor that moves a program of one layer into program memory."""
        words = encode_program([layer])
        self.data[: len(words)] = words
        self.data.flush()
        return self.load(len(words), host_address=HostAddress.PROGRAM)

    def load(self, words, **options) -> DmaDescriptor:
        """A descriptor that moves the first words of the data buffer into activation memory."""
        return DmaDescriptor(
            **{
                "command": DmaCommand.LOAD,
                "ddr_address": self.data.physical_address,
                "host_address": HostAddress.ACTIVATIONS,
                "words": words,
            }
            | options
        )

    def usable(self) -> None:
        """The system still moves data."""
        rng = np.random.default_rng(1)
        count = 77 // self.unit * self.unit
        values = rng.integers(0, 1 << 32, count, dtype=np.uint32)
        self.data[:] = 0
        self.data[:count] = values
        self.data.flush()
        back = self.data.physical_address + 4 * 1024
        descriptors = [self.load(count), self.load(count, command=DmaCommand.STORE, ddr_address=back)]
        assert self.run(descriptors) == (DmaStatus.DONE, DmaCause.NONE)
        assert self.read(DmaRegister.COMPLETED) == 2
        self.data.invalidate()
        np.testing.assert_array_equal(self.data[1024 : 1024 + count], values)
        assert self.data[1024 + count] == 0


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((SMALL, 32), marks=pytest.mark.slow),
        (SMALL, 64),
        pytest.param((SMALL, 128), marks=pytest.mark.slow),
        (WIDE, 128),
    ],
    ids=["32", "64", "128", "wide"],
)
def bench(request):
    config, data_width = request.param
    with SimulatedPynq(config, data_width=data_width) as library:
        yield Bench(library, config, data_width)


def test_what_is_wide():
    assert [port_width(SMALL, width) for width in (32, 64, 128)] == [32, 32, 32]
    assert [port_width(WIDE, width) for width in (32, 64, 128)] == [32, 64, 128]
    # Words of 144 bytes in granules of 8.
    assert [port_width(AcceleratorConfig(), width) for width in (64, 128)] == [64, 32]


@pytest.fixture(autouse=True)
def calm(bench):
    """Stalls and faults do not outlive a test."""
    yield
    bench.library.set_stalls(0)
    bench.library.set_faults([])


@pytest.mark.parametrize("stalls", [0, 0.3, 0.8])
def test_registers(bench, stalls):
    library, rng = bench.library, np.random.default_rng(int(10 * stalls))
    library.set_stalls(stalls, seed=1)
    registers = {
        Register.PROGRAM_START: 0xFFFF,
        DMA_BASE + DmaRegister.LIST: 0xFFFF_FFFF,
        DMA_BASE + DmaRegister.INTERRUPT_ENABLE: 1,
    }
    fixed = {
        Register.MAGIC: MAGIC,
        Register.CONFIG_HASH: bench.config.hash,
        DMA_BASE + DmaRegister.ID: DMA_MAGIC,
        0x80: 0,
    }
    for _ in range(10):
        # Many at once: writes and reads are independent channels, each in order.
        written = [(int(r), int(rng.integers(0, 1 << 32))) for r in rng.choice(list(registers), 12)]
        others = [(int(r), None) for r in rng.choice(list(fixed), 12)]
        accesses = [a for pair in zip(written, others, strict=True) for a in pair]
        answers = library.call("together", accesses)
        assert answers == [fixed[r] if v is None else None for r, v in accesses]
        expected = {r: v & registers[r] for r, v in written}
        answers = library.call("together", [(r, None) for r in expected])
        assert answers == list(expected.values())
    bench.write(DmaRegister.INTERRUPT_ENABLE, 0)


def test_writes_of_parts_of_a_word_are_refused(bench):
    library = bench.library
    bench.write(DmaRegister.LIST, 0x12345678)
    for first, data in ((0, b"\xaa"), (1, b"\xaa\xaa"), (3, b"\xaa"), (1, b"\xaa\xaa\xaa")):
        assert library.call("write", DMA_BASE + DmaRegister.LIST + first, data) == SLVERR
    assert bench.read(DmaRegister.LIST) == 0x12345678


@pytest.mark.parametrize("stalls", [0, 0.3, 0.7])
def test_random_transfers(bench, stalls):
    """Loads into activation memory and stores from it, in rows and not, over bursts and pages."""
    rng = np.random.default_rng(int(10 * stalls))
    bench.library.set_stalls(stalls, seed=2)
    memory = np.zeros(WORDS, np.uint32)
    assert bench.run([bench.load(WORDS)])[0] == DmaStatus.DONE  # zeros, or what was there
    bench.data.invalidate()
    memory[:] = bench.data[:WORDS]
    for _ in range(12):
        ddr = rng.integers(0, 1 << 32, bench.data.size, dtype=np.uint32)
        bench.data[:] = ddr
        bench.data.flush()
        descriptors = []
        for _ in range(int(rng.integers(1, 6))):
            words = int(rng.choice([1, 2, 3, 5, rng.integers(1, 100), rng.integers(100, 600)]))
            row = int(rng.integers(1, words + 1)) if rng.random() < 0.5 else 0
            words, row = words * bench.unit, row * bench.unit
            step = row + int(rng.integers(0, 4)) * bench.unit
            index = np.arange(words)
            if row:
                index = index // row * step + index % row
            span = int(index[-1]) + 1
            # A granule of SMALL is one word; longer ones would commit with their last word only.
            start = int(rng.integers(0, (WORDS - span) // bench.unit + 1)) * bench.unit if span <= WORDS else None
            if start is None:
                continue
            place = int(rng.integers(0, (len(ddr) - words) // 4)) * 4
            store = rng.random() < 0.5
            descriptors.append(
                DmaDescriptor(
                    command=DmaCommand.STORE if store else DmaCommand.LOAD,
                    ddr_address=bench.data.physical_address + 4 * place,
                    host_address=HostAddress.ACTIVATIONS + 4 * start,
                    words=words,
                    row_words=row,
                    row_step=step if row else 0,
                )
            )
            if store:
                ddr[place : place + words] = memory[start + index]
            else:
                memory[start + index] = ddr[place : place + words]
        if descriptors:
            assert bench.run(descriptors) == (DmaStatus.DONE, DmaCause.NONE)
            assert bench.read(DmaRegister.COMPLETED) == len(descriptors)
            bench.data.invalidate()
            np.testing.assert_array_equal(bench.data, ddr)


@pytest.mark.parametrize("stalls", [0, 0.5])
def test_error_responses(bench, stalls):
    """Wherever DDR answers with an error: the list ends there, says why and where, and the next one runs."""
    rng = np.random.default_rng(3)
    bench.library.set_stalls(stalls, seed=3)
    data = bench.data.physical_address
    back = data + 4 * 1024
    descriptors = [bench.load(500), bench.load(300, command=DmaCommand.STORE, ddr_address=back)]
    for trial in range(8):
        byte = int(rng.integers(0, 1200))
        for command, cause, address, completed in (
            (DmaCommand.LOAD, DmaCause.READ, data + byte, 0),
            (DmaCommand.STORE, DmaCause.WRITE, back + byte, 1),
        ):
            bench.data[:] = np.arange(bench.data.size)
            bench.data.flush()
            bench.library.set_faults([(address, address + 1)])
            assert bench.run(descriptors) == (DmaStatus.DONE | DmaStatus.ERROR, cause), (trial, command)
            # Through a wide port a store is done when all is sent.
            late = int(bench.unit > 1 and command == DmaCommand.STORE)
            assert completed <= bench.read(DmaRegister.COMPLETED) <= completed + late
            where = bench.read(DmaRegister.ERROR_ADDRESS)
            # The beat of a read, the burst of a write.
            assert where <= address < where + (16 if cause == DmaCause.READ else 16 * 16)
            bench.library.set_faults([])
            bench.usable()
    address = bench.list.physical_address + 16
    bench.library.set_faults([(address, address + 4)])
    assert bench.run(descriptors) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.FETCH)
    assert bench.read(DmaRegister.COMPLETED) == 1
    assert bench.read(DmaRegister.ERROR_ADDRESS) == address
    bench.library.set_faults([])
    bench.usable()


def test_reads_beyond_a_buffer_are_errors_of_the_bench(bench):
    """The guard of the stand-in works: a list that runs past its page is answered with an error."""
    end = bench.list.physical_address + PAGE_BYTES
    assert bench.run([bench.load(8, ddr_address=end - 16)]) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.READ)
    assert bench.read(DmaRegister.ERROR_ADDRESS) == end


def test_descriptors_are_checked(bench):
    data = bench.data.physical_address
    uneven = (
        bench.load(6),
        bench.load(8, host_address=HostAddress.ACTIVATIONS + 4),
        bench.load(8, row_words=2, row_step=4),
        bench.load(8, row_words=4, row_step=6),
    )
    for wrong in (
        *(uneven if bench.unit > 1 else ()),
        bench.load(0),
        bench.load(4, ddr_address=data + 4),
        bench.load(4, ddr_address=data + 8),
        bench.load(4, host_address=HostAddress.ACTIVATIONS + 2),
        bench.load(4, command=4),
    ):
        assert bench.run([bench.load(20), wrong]) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.DESCRIPTOR)
        assert bench.read(DmaRegister.COMPLETED) == 1
        assert bench.read(DmaRegister.ERROR_ADDRESS) == bench.list.physical_address + 16
    misplaced = bench.list.physical_address + 8
    assert bench.run([bench.load(20)], address=misplaced) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.DESCRIPTOR)
    bench.usable()


def test_abort_at_any_time(bench):
    rng = np.random.default_rng(4)
    data = bench.data.physical_address
    back = data + 4 * WORDS
    seen = set()
    for trial in range(40):
        bench.library.set_stalls(float(rng.choice([0, 0.4])), seed=trial)
        bench.start([bench.load(200), bench.load(120, command=DmaCommand.STORE, ddr_address=back), bench.load(100)] * 3)
        bench.library.interrupt(int(rng.integers(1, 4000)))
        bench.write(DmaRegister.CONTROL, DmaControl.ABORT)
        status, cause = bench.wait()
        seen.add(status)
        assert cause == DmaCause.NONE
        if status & DmaStatus.ABORTED:
            assert bench.read(DmaRegister.COMPLETED) < 9
        bench.usable()
    assert DmaStatus.DONE | DmaStatus.ABORTED in seen


def test_abort_of_a_run_resets_the_accelerator(bench):
    """A program of long loops keeps the engine busy; nothing waits for ever."""
    program = bench.load_program(LONG)
    bench.start([program, DmaDescriptor(command=DmaCommand.RUN)])
    bench.library.interrupt(2000)
    assert bench.read(DmaRegister.STATUS) & DmaStatus.BUSY
    assert bench.mmio.read(Register.STATUS) & Status.BUSY
    bench.write(DmaRegister.CONTROL, DmaControl.ABORT)
    assert bench.wait() == (DmaStatus.DONE | DmaStatus.ABORTED, DmaCause.NONE)
    assert bench.mmio.read(Register.STATUS) == 0
    bench.usable()
    # Without the DMA waiting: started by register, ended by RESET.
    bench.mmio.write(Register.CONTROL, 1)
    assert bench.mmio.read(Register.STATUS) & Status.BUSY
    bench.write(DmaRegister.CONTROL, DmaControl.RESET)
    assert bench.mmio.read(Register.STATUS) == 0
    bench.usable()


def test_an_access_while_the_engine_runs_is_reported(bench):
    assert bench.run([bench.load_program(LONG)])[0] == DmaStatus.DONE
    bench.mmio.write(Register.CONTROL, 1)
    bench.run([bench.load(8, command=DmaCommand.STORE, ddr_address=bench.data.physical_address + 4 * WORDS)])
    status = bench.mmio.read(Register.STATUS)
    assert Status(status & 7) == Status.BUSY | Status.ERROR
    assert ErrorCause.of(status) == ErrorCause.ACCESS
    bench.write(DmaRegister.CONTROL, DmaControl.RESET)
    bench.usable()


def test_an_illegal_program_ends_the_list(bench):
    program = bench.load_program(replace(LONG, kind=3))
    run = DmaDescriptor(command=DmaCommand.RUN)
    assert bench.run([program, run, bench.load(8)]) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.ENGINE)
    assert ErrorCause.of(bench.mmio.read(Register.STATUS)) == ErrorCause.PROGRAM
    bench.usable()


def test_memories_are_loaded_beside_a_program(bench):
    """One that never ends meanwhile: activations that it does not use, program and weights. The loads are done, the
    program goes on, and the words are there."""
    rng = np.random.default_rng(7)
    data = bench.data.physical_address
    words = rng.integers(0, 1 << 32, 200, dtype=np.uint32)
    for stalls in (0, 0.4):
        # A result in every cycle in which a requantization unit is free, and in few.
        for interval in (2 * bench.config.requant_slots, 200):
            program = bench.load_program(replace(LONG, interval=interval))
            bench.data[512 : 512 + len(words)] = words
            bench.data.flush()
            bench.library.set_stalls(stalls, seed=3)
            place = HostAddress.ACTIVATIONS + 64 * bench.config.granule
            loads = [
                bench.load(len(words), ddr_address=data + 2048, host_address=address, under_way=1)
                for address in (place, HostAddress.WEIGHTS, HostAddress.PROGRAM + 4 * 32)
            ]
            bench.start([program, RUN, *loads])
            while bench.read(DmaRegister.STATUS) & DmaStatus.BUSY and bench.read(DmaRegister.COMPLETED) < 5:
                pass
            assert bench.read(DmaRegister.STATUS) & 0xF == DmaStatus.BUSY and bench.read(DmaRegister.COMPLETED) == 5
            assert Status(bench.mmio.read(Register.STATUS) & 7) == Status.BUSY
            bench.write(DmaRegister.CONTROL, DmaControl.ABORT)
            assert bench.wait()[0] == DmaStatus.DONE | DmaStatus.ABORTED
            back = bench.load(len(words), command=DmaCommand.STORE, ddr_address=data + 4096, host_address=place)
            assert bench.run([back]) == (DmaStatus.DONE, DmaCause.NONE)
            bench.data.invalidate()
            np.testing.assert_array_equal(bench.data[1024 : 1024 + len(words)], words)
            bench.usable()


def test_programs_wait_in_a_queue(bench):
    """Four at a time; a descriptor waits until few enough are under way, the list until none is."""
    program = bench.load_program(replace(LONG, n_oy=1))
    begun = replace(RUN, under_way=AT_ONCE)
    for descriptors, before in (
        ([*9 * [begun]], PROGRAM_QUEUE),
        ([begun, begun, begun, bench.load(8, under_way=2)], 3),
        ([begun, begun, RUN, bench.load(8, under_way=AT_ONCE)], 2),
    ):
        bench.start([program, *descriptors])
        bench.library.interrupt(8000)  # half of the first one; each takes 16,000 cycles
        assert bench.read(DmaRegister.COMPLETED) == 1 + before
        assert bench.wait() == (DmaStatus.DONE, DmaCause.NONE)
        assert bench.read(DmaRegister.COMPLETED) == 1 + len(descriptors)
        assert Status(bench.mmio.read(Register.STATUS) & 7) == Status.DONE
    bench.usable()


def test_a_program_that_fails_ends_those_that_wait(bench):
    """Wherever the DMA is meanwhile."""
    data = bench.data.physical_address
    words = np.concatenate([encode_program([replace(LONG, n_oy=1, n_ox=200)]), encode_program([replace(LONG, kind=3)])])
    bench.data[: len(words)] = words
    bench.data.flush()
    programs = bench.load(len(words), host_address=HostAddress.PROGRAM)
    good, wrong = (DmaDescriptor(command=DmaCommand.RUN, host_address=16 * i, under_way=AT_ONCE) for i in range(2))
    load = bench.load(60, ddr_address=data, under_way=AT_ONCE)
    for behind in ([good, good], 12 * [load], [replace(load, under_way=0)], []):
        failed = bench.run([programs, good, wrong, *behind])
        assert failed == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.ENGINE)
        assert ErrorCause.of(bench.mmio.read(Register.STATUS)) == ErrorCause.PROGRAM
    # An error of the DMA's own: the program that runs ends by itself, those that wait do not start.
    bench.library.set_faults([(data + 2048, data + 2052)])
    bad = bench.load(60, ddr_address=data + 2048, under_way=AT_ONCE)
    assert bench.run([programs, good, wrong, bad]) == (DmaStatus.DONE | DmaStatus.ERROR, DmaCause.READ)
    assert Status(bench.mmio.read(Register.STATUS) & 7) == Status.DONE
    bench.library.set_faults([])
    bench.usable()


def test_abort_drops_the_programs_that_wait(bench):
    rng = np.random.default_rng(8)
    begun = replace(RUN, under_way=AT_ONCE)
    for trial in range(12):
        bench.start([bench.load_program(LONG), begun, begun, begun, *6 * [bench.load(100, under_way=AT_ONCE)]])
        bench.library.interrupt(int(rng.integers(1, 400 if trial % 2 else 60)))
        bench.write(DmaRegister.CONTROL, DmaControl.ABORT)
        assert bench.wait() == (DmaStatus.DONE | DmaStatus.ABORTED, DmaCause.NONE)
        bench.library.interrupt(50)
        assert bench.mmio.read(Register.STATUS) == 0
        bench.usable()


def test_interrupt(bench):
    library = bench.library
    bench.write(DmaRegister.INTERRUPT_ENABLE, 1)
    bench.write(DmaRegister.STATUS, 0)
    assert not library.interrupt()
    bench.run([bench.load(20)])
    assert library.interrupt()
    bench.write(DmaRegister.STATUS, 0)
    assert not library.interrupt()
    assert bench.read(DmaRegister.STATUS) == 0
    bench.run([bench.load(5)])
    bench.write(DmaRegister.INTERRUPT_ENABLE, 0)
    assert not library.interrupt()


def test_reset_in_the_middle(bench):
    rng = np.random.default_rng(6)
    for trial in range(10):
        bench.library.set_stalls(float(rng.choice([0, 0.4])), seed=trial)
        back = bench.data.physical_address + 4 * WORDS
        bench.start([bench.load(200), bench.load(120, command=DmaCommand.STORE, ddr_address=back)])
        bench.library.interrupt(int(rng.integers(1, 1500)))
        bench.library.Overlay("again.bit")
        assert bench.read(DmaRegister.STATUS) == 0
        bench.usable()
