"""Random programs, most of them wrong somewhere: the engine and the golden model answer alike, or refuse alike."""

import dataclasses

import numpy as np
import pytest

from nnloom.arch.artifact import EngineImage
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import IllegalProgramError
from nnloom.arch.isa import (
    DESCRIPTOR_WORDS,
    FIELDS,
    Descriptor,
    ErrorCause,
    HostAddress,
    Kind,
    Register,
    Status,
    encode_program,
    field_width,
)
from nnloom.arch.legality import add_fields, least_interval, unseen_bits
from nnloom.arch.loopnest import LEAST_START_DELAY, ParameterLoad, drain_cycles, steps
from nnloom.compiler.overlap import _reads
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.sim.golden import GoldenModel
from tests.engines import compact, without_overlap
from tests.sim.test_rtl_random import check_writes

CONFIGS = {
    "2x16x9 with row triples": AcceleratorConfig(
        pixels=2,
        row_triples=True,
        requant_units=8,
        activation_bytes=8192,
        weight_words=200,
        program_words=120,
        field_bits=12,
        elementwise_mul=True,
        tables=8,
    ),
    "4x3 without overlap": without_overlap(
        requant_units=2,
        activation_bytes=4096,
        weight_words=300,
        program_words=128,
        field_bits=10,
        elementwise_mul=True,
        tables=4,
    ),
    "compact": compact(activation_bytes=4096, weight_words=256, program_words=80, field_bits=10),
}
PROGRAMS = 170
MOST_STEPS = 20_000


class Generator:
    """Programs of some layers: right ones, then with one or a few things changed."""

    def __init__(self, config: AcceleratorConfig, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)

    def below(self, limit: int) -> int:
        return int(self.rng.integers(limit))

    def layer(self) -> Descriptor:
        """A layer that reads the lower half of the memory and writes to the upper one."""
        config, below = self.config, self.below
        half = config.bank_granules // 2
        kinds = ["dense", "window", "slide", *(["maximum"] * config.max_pool), *(["add"] * config.elementwise_add)]
        kinds += ["product"] * config.elementwise_mul
        kind = str(self.rng.choice(kinds))
        act = sorted(below(256) - 128 for _ in range(2))
        fields = dict(
            kind=Kind.DENSE if kind == "dense" else Kind.ADD if kind == "add" else Kind.WINDOW,
            in_base=below(half // 2),
            in2_base=below(half // 2),
            in_rows=1 + below(7),
            in_row_bytes=1 + below(8 * config.granule),
            in_row_stride=below(half // 16),
            out_row_stride=below(half // 16),
            out_base=half + below(half // 2),
            n_oy=1 + below(5),
            n_ox=1 + below(5),
            n_g=1 + below(3),
            n_ky=1 + below(3),
            n_kx=1 + below(3),
            row_start=below(5) - 3,
            q_start=(below(9) - 4) * (1 if kind == "dense" else config.granule),
            row_step_oy=1 + below(3),
            row_step_ky=1 + below(3),
            q_step_ox=below(9) * config.granule,
            q_step_kx=below(5) * (1 if kind == "dense" else config.granule),
            q_step_g=below(3) * config.lanes,
            weight_base=below(config.weight_words // 2),
            weight_step_g=below(20),
            out_step_ox=below(4),
            out_step_g=below(4),
            pad_value=below(256) - 128,
            pad_value2=below(256) - 128,
            out_zero_point=below(256) - 128,
            kernel_rows=1 + below(5),
            double_rounding=below(2),
            narrow=below(2),
            half_last=below(2),
            weights_advance=below(2),
            row_pair=below(2) * (kind == "dense"),
            out_row_start=below(4),
            out_row_step=1 + below(4),
            act_min=act[0],
            act_max=act[1],
            table=below(config.tables + 1) if config.tables and below(2) else 0,
            start_delay=max(0, drain_cycles(config)),
        )
        if kind == "slide":
            fields |= dict(slide=1, n_ky=1, n_kx=1, slide_first=below(3), slide_step=1 + below(3), n_ox=1 + below(9))
        if kind == "maximum":
            fields |= dict(maximum=1)
        if kind == "add":
            fields |= dict(add_fields(config), n_ox=1 + below(2), weights_advance=below(2), kernel_rows=1)
        if kind == "product":
            fields |= dict(product=1, broadcast=below(2), n_ky=2, n_kx=1)
            fields |= dict(row_step_ky=below(2), kernel_rows=1 + below(3))
        if kind == "dense" and config.row_triples and below(2):
            fields |= dict(row_triple=1, row_pair=0, kernel_rows=255)
        if kind == "dense" and config.pixels > 1 and below(2):
            fields |= dict(
                pixel_pair=1, odd_rows=below(2), row_step_oy=2 if fields.get("row_triple") else 2 + 2 * below(2)
            )
            fields |= dict(out_row_start=2 * below(2), out_row_step=2)
        d = Descriptor(**fields)
        return dataclasses.replace(d, interval=max(1, least_interval(config, d)) + below(2))

    def changed(self, d: Descriptor) -> Descriptor:
        """The layer with one field changed: to an end of its range, a step beside what it was, or anything."""
        config, rng = self.config, self.rng
        field = FIELDS[self.below(len(FIELDS))]
        if field.name == "last":
            return d
        if field.name == "start_delay":
            # Results may not be read too soon, which nobody checks.
            return dataclasses.replace(d, start_delay=int(rng.choice([0, LEAST_START_DELAY - 1, 60])))
        width = field_width(config, field) or 1
        low = -(1 << width - 1) if field.signed else 0
        high = low + (1 << width) - 1
        old = getattr(d, field.name)
        near = [0, 1, low, high, config.bank_granules - 1, config.weight_words - 1, old - 1, old + 1, 2 * old]
        value = int(rng.choice([*near, int(rng.integers(low, high + 1))]))
        return dataclasses.replace(d, **{field.name: min(max(value, field.minimum), field.maximum)})

    def program(self) -> tuple[np.ndarray, int]:
        """(program memory, first word). The first layer fills the window, so that what was there does not matter."""
        config, below = self.config, self.below
        fill = dataclasses.replace(
            Descriptor(
                kind=Kind.WINDOW,
                in_base=0,
                in_rows=1,
                in_row_bytes=64,
                in_row_stride=0,
                out_row_stride=0,
                out_base=config.bank_granules // 2,
                n_oy=1,
                n_ox=3,
                n_g=1,
                n_ky=1,
                n_kx=1,
            ),
            slide=1,
            slide_first=2,
            narrow=1,
            interval=config.requant_slots,
            q_step_ox=config.lanes,
            kernel_rows=3,
        )
        layers = [fill, *(self.layer() for _ in range(1 + below(3)))]
        for _ in range(int(self.rng.choice([0, 0, 1, 1, 1, 2, 4]))):
            index = 1 + below(len(layers) - 1)
            layers[index] = self.changed(layers[index])
        if below(12):
            layers[-1] = dataclasses.replace(layers[-1], last=1)
        memory = np.zeros(config.program_words, np.uint32)
        words = encode_program(layers)
        start = min(4 * below(3), len(memory) - len(words))
        memory[start : start + len(words)] = words
        if not below(12):
            unseen = unseen_bits(config)
            word = below(len(words))
            memory[start + word] |= np.uint32(unseen[word % DESCRIPTOR_WORDS] & (1 << below(32)))
        if not below(15):
            start = int(self.rng.choice([start + 1, config.program_words - 4, config.program_words, 0xFFFC]))
        return memory, start


def keeps_its_promise(config: AcceleratorConfig, layers: list[Descriptor]) -> bool:
    """No layer writes to what it reads itself, in any order: that answer depends on the time."""
    for d in layers:
        read, written = set(), set()
        for step in steps(config, d):
            if isinstance(step, ParameterLoad):
                continue
            if d.kind == Kind.DENSE:
                read.update(_reads(config, d, step))
            else:
                whole = dataclasses.replace(d, in_row_bytes=d.in_row_bytes + config.lanes)
                read.update(_reads(config, whole, step))
            for part in range(2):
                if step.out_enable >> part & 1:
                    written.add((step.out_bank, step.out_granule + part))
                    if step.pair:
                        written.add((step.out_bank + 1, step.out_granule + part))
        if read & written:
            return False
    return True


def size(layers: list[Descriptor]) -> int:
    return sum(d.n_g * d.n_oy * d.n_ox * d.n_ky * d.n_kx for d in layers)


@pytest.mark.verilator
@pytest.mark.parametrize(
    "config",
    [pytest.param(c, id=n, marks=[pytest.mark.slow] if n.startswith("4x3") else []) for n, c in CONFIGS.items()],
)
def test_random_programs_are_answered_alike_or_refused_alike(config):
    rng = np.random.default_rng(1)
    generator = Generator(config, 2)
    weights = rng.integers(0, 256, (config.weight_words, config.weight_word_bytes), np.uint8)
    tables = rng.integers(0, 256, (config.tables, 256), np.uint8)
    legal = refused = compared = 0
    device = RtlDevice()
    try:
        idle = encode_program([dataclasses.replace(generator.layer(), last=1)])
        device.load_image(EngineImage(config, idle, weights, tables))
        while legal + refused < PROGRAMS:
            program, start = generator.program()
            golden = GoldenModel(config, program, weights, tables)
            memory = rng.integers(0, 256, golden.activations.shape, np.uint8)
            golden.activations[:] = memory
            message = ""
            try:
                layers = golden.descriptors(start)
                if size(layers) > MOST_STEPS:
                    continue
            except IllegalProgramError as error:
                layers, message = [], str(error)
                if "beyond" in message or " end" in message:
                    # Found where it happens: not after millions of steps.
                    words = program[start & ~3 :]
                    count = len(words) // DESCRIPTOR_WORDS
                    parts = [Descriptor.decode(words[16 * i : 16 * i + 16]) for i in range(count)]
                    if size(parts) > 10 * MOST_STEPS:
                        continue
            program_addresses = HostAddress.PROGRAM + 4 * np.arange(len(program), dtype=np.uint32)
            device.write_words(program_addresses, program)
            words = HostAddress.ACTIVATIONS + 4 * np.arange(memory.size // 4, dtype=np.uint32)
            device.write_words(words, memory.reshape(-1).view("<u4"))
            device.simulation.writes()
            device._write_register(Register.PROGRAM_START, start)
            device._write_register(Register.CONTROL, 1)
            device.simulation.wait_idle(2_000_000)
            status = device._read_register(Register.STATUS)
            assert Status(status) & Status.DONE and not Status(status) & Status.BUSY
            writes = device.simulation.writes()
            assert ErrorCause.of(status) == (ErrorCause.PROGRAM if message else ErrorCause.NONE), (message, layers)
            assert bool(Status(status) & Status.ERROR) == bool(message)
            if message:
                refused += 1
                continue
            legal += 1
            traces = golden.run(start)
            if keeps_its_promise(config, layers):
                compared += 1
                check_writes(config, writes, traces, repr(layers))
    finally:
        device.close()
    assert legal > 30 and refused > 50 and compared > 0.8 * legal, (legal, refused, compared)
