"""What the engine refuses to run: the one definition, for the driver, the golden model and the RTL.

`hw/legality.py` and the address checks beside the sequencer find the same faults in hardware: the engine then ends the
program with `Status.ERROR` and `ErrorCause.PROGRAM`. What nobody checks is that results are read after they were
written: a program promises that by `start_delay`, and by never writing to the tensors that the same layer reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .errors import IllegalProgramError
from .isa import (
    DESCRIPTOR_WORDS,
    FIELDS,
    PROGRAM_COLUMNS,
    WATCHDOG_BITS,
    Descriptor,
    Kind,
    check_descriptor,
    field_width,
    last_addresses,
)
from .loopnest import ADD_BATCH, LEAST_START_DELAY, least_start_delay

__all__ = [
    "MOST_ROW_STEP",
    "RULES",
    "add_fields",
    "address_faults",
    "check_image",
    "check_program",
    "descriptor_faults",
    "form_faults",
    "least_interval",
    "legal_kinds",
    "program_memory_words",
    "register_faults",
    "sign_bits",
    "unseen_bits",
]

SIZES = ("in_rows", "in_row_bytes", "n_oy", "n_ox", "n_g", "n_ky", "n_kx")
"""Fields that are not zero."""

LAST_KERNEL_ROW = 255
"""Largest `kernel_row`; with `row_triple`, whose rows all count as the kernel's, `LAST_TRIPLE_KERNEL_ROW`."""
LAST_TRIPLE_KERNEL_ROW = 252

MOST_ROW_STEP = 4
"""Largest `out_row_step`: rows of the output tensor from one that a layer writes to the next."""


RULES = (
    "a descriptor lies beyond the program memory before one is marked `last`, or PROGRAM_START is not a multiple of "
    f"{PROGRAM_COLUMNS} words;",
    "a bit is set that the engine gives no meaning: reserved, of an option that it lacks, or beyond `field_bits`;",
    "its `kind` is unknown, or the configuration has no such layers;",
    "one of " + ", ".join(f"`{name}`" for name in SIZES) + " is 0;",
    "`slide` without WINDOW, with `n_ky` or `n_kx` other than 1, or with `slide_step` 0;",
    "`maximum` without WINDOW, with `slide`, or without `max_pool`;",
    "`product` without WINDOW, with `maximum`, or without `n_ky` 2 and `n_kx` 1; `broadcast` without `product`;",
    "`pixel_pair` without DENSE, without `pixels=2`, or with a `row_step_oy` other than 2 or 4 (`row_triple`: 2);",
    f"`out_row_step` is none of 1 to {MOST_ROW_STEP}; with `pixel_pair` not 2, or `out_row_start` odd;",
    "`row_triple` without DENSE, with `row_pair`, or with `kernel_rows` other than 255;",
    "`resume` or `keep` without DENSE, with `pixel_pair`, or with `n_g`, `n_oy` or `n_ox` other than 1;",
    "an ADD does not have `n_g` 1, `n_ky` 2, `n_kx` 16, `q_step_kx` lanes, `q_step_ox` 16 * lanes, `out_step_ox` 2;",
    "`interval` is less than the requantization units need (not on the compact engine);",
    f"`start_delay` is less than {LEAST_START_DELAY} after another layer (with `overlap`); after one with a table, "
    "less than `loopnest.least_start_delay` says;",
    "`table` is larger than the number of tables;",
    "the input tensor (of an ADD or `product`, one of both; with `broadcast`, X), a result or a weight word lies "
    "beyond its memory;",
    "a row is 2 ** `field_bits` or beyond, a byte of a row 2 ** (`field_bits` + 1), or a kernel row "
    f"{LAST_KERNEL_ROW + 1} (`row_triple`: {LAST_TRIPLE_KERNEL_ROW + 1});",
    f"it takes 2 ** {WATCHDOG_BITS} cycles or more.",
)
"""For people: what makes a program illegal."""


def program_memory_words(config: AcceleratorConfig) -> int:
    """32-bit words of the program memory: `program_words`, in whole words of its own."""
    return -(-config.program_words // PROGRAM_COLUMNS) * PROGRAM_COLUMNS


def unseen_bits(config: AcceleratorConfig) -> NDArray[np.uint32]:
    """Bits of each descriptor word that have no meaning for the engine: it refuses descriptors where one is set."""
    unseen = np.full(DESCRIPTOR_WORDS, 0xFFFFFFFF, np.uint32)
    for field in FIELDS:
        width = field.width if field.signed else field_width(config, field)
        unseen[field.word] &= ~np.uint32(((1 << width) - 1) << field.offset)
    return unseen


def sign_bits(config: AcceleratorConfig) -> dict[tuple[int, int], range]:
    """(word, bit) of each sign that the engine looks at, and the bits above, which it refuses if they are not equal."""
    signed = [field for field in FIELDS if field.signed and field_width(config, field) < field.width]
    return {
        (f.word, top): range(top + 1, f.offset + f.width)
        for f in signed
        for top in [f.offset + field_width(config, f) - 1]
    }


def legal_kinds(config: AcceleratorConfig) -> tuple[Kind, ...]:
    """Kinds of layers that the engine has."""
    return (Kind.DENSE, *([Kind.WINDOW] * config.depthwise), *([Kind.ADD] * config.elementwise_add))


def add_fields(config: AcceleratorConfig) -> dict[str, int]:
    """Fields that have one value in every ADD: a batch is `ADD_BATCH` words side by side, twice."""
    return {
        "n_g": 1,
        "n_ky": 2,
        "n_kx": ADD_BATCH,
        "q_step_kx": config.lanes,
        "q_step_ox": ADD_BATCH * config.lanes,
        "out_step_ox": 2,
    }


def least_interval(config: AcceleratorConfig, d: Descriptor) -> int:
    """Smallest legal `interval`; the compact engine paces itself."""
    if config.compact:
        return 0
    one_pass = d.narrow and d.kind != Kind.ADD
    return config.requant_slots * (1 if one_pass else 2) * (2 if d.pixel_pair else 1)


def descriptor_faults(config: AcceleratorConfig, d: Descriptor, *, before: Descriptor | None) -> Iterator[str]:
    """What is wrong with a descriptor, beside bits that the engine does not look at.

    before: the one before it in the program, None if it is the first.
    """
    yield from form_faults(config, d, before=before)
    yield from register_faults(config, d)
    yield from address_faults(config, d)


def form_faults(config: AcceleratorConfig, d: Descriptor, *, before: Descriptor | None) -> Iterator[str]:
    """Fields that the engine cannot run at all: it looks at these before the layer begins.

    before: the descriptor before it in the program, None if it is the first.
    """
    if d.kind not in legal_kinds(config):
        yield f"kind {d.kind} is unknown to this engine"
    for name in SIZES:
        if not getattr(d, name):
            yield f"{name} is 0"
    if d.slide and (d.kind != Kind.WINDOW or d.n_ky != 1 or d.n_kx != 1 or not d.slide_step):
        yield "slide needs kind WINDOW, n_ky and n_kx 1, and a slide_step"
    if d.maximum and (d.kind != Kind.WINDOW or d.slide or not config.max_pool):
        yield "maximum needs kind WINDOW without slide, on an engine with max_pool"
    if d.product and (d.kind != Kind.WINDOW or d.maximum or d.n_ky != 2 or d.n_kx != 1):
        yield "product needs kind WINDOW without maximum, n_ky 2 and n_kx 1"
    if d.broadcast and not d.product:
        yield "broadcast needs product"
    if d.pixel_pair:
        strides = (2,) if d.row_triple else (2, 4)
        if d.kind != Kind.DENSE or config.pixels < 2 or d.row_step_oy not in strides:
            yield "pixel_pair needs kind DENSE, an engine with two pixels, and two rows of stride 1 (or 2) a step"
    if not 1 <= d.out_row_step <= MOST_ROW_STEP:
        yield f"out_row_step must be 1 to {MOST_ROW_STEP}, not {d.out_row_step}"
    if d.pixel_pair and (d.out_row_step != 2 or d.out_row_start % 2):
        yield "pixel_pair needs out_row_step 2 and an even out_row_start"
    if d.row_triple and (d.kind != Kind.DENSE or d.row_pair or d.kernel_rows != 255):
        yield "row_triple needs kind DENSE without row_pair, and kernel_rows 255"
    if (d.resume or d.keep) and (d.kind != Kind.DENSE or d.pixel_pair or (d.n_g, d.n_oy, d.n_ox) != (1, 1, 1)):
        yield "resume and keep need kind DENSE without pixel_pair, and n_g, n_oy and n_ox 1"
    if d.kind == Kind.ADD:
        for name, value in add_fields(config).items():
            if getattr(d, name) != value:
                yield f"kind ADD needs {name} {value}, not {getattr(d, name)}"
    if d.interval < (least := least_interval(config, d)):
        yield f"interval must be at least {least}, not {d.interval}"
    if d.table > config.tables:
        yield f"table {d.table} of {config.tables}"
    if config.overlap and before is not None and d.start_delay < (least := least_start_delay(config, before)):
        yield f"start_delay must be at least {least} after the layer before, not {d.start_delay}"


def address_faults(config: AcceleratorConfig, d: Descriptor) -> Iterator[str]:
    """Addresses beyond the memories, which the engine meets while it runs."""
    add = d.kind == Kind.ADD
    granules = config.bank_granules
    extent = (d.in_rows - 1) // config.row_banks * d.in_row_stride + (d.in_row_bytes - 1) // config.granule
    operands = [(d.in2_base, "second operand")] if add or d.product else []
    if not d.broadcast:
        operands.insert(0, (d.in_base, "input"))
    for base, name in operands:
        if base + extent >= granules:
            yield f"the {name} ends at granule {base + extent} of {granules}"
    steps = d.n_ky * d.n_kx
    weight = d.weight_base + (d.n_g - 1) * d.weight_step_g + config.parameter_words * (2 if add else 1)
    weight += steps - 1 if d.weights_advance else 0
    if weight >= config.weight_words:
        yield f"weights end at word {weight} of {config.weight_words}"
    yield from _output_faults(config, d)


def register_faults(config: AcceleratorConfig, d: Descriptor) -> Iterator[str]:
    """Rows and bytes that the engine's registers do not count."""
    row, kernel_row, byte = last_addresses(d)
    if byte >= 1 << config.field_bits + 1:
        yield f"byte {byte} of a row is beyond the address registers"
    if kernel_row > (LAST_TRIPLE_KERNEL_ROW if d.row_triple else LAST_KERNEL_ROW):
        yield f"kernel row {kernel_row} is beyond the address registers"
    if row >= 1 << config.field_bits:
        yield f"row {row} is beyond the address registers"


def _output_faults(config: AcceleratorConfig, d: Descriptor) -> Iterator[str]:
    """Results beyond the activation memory: the last one of a group has the highest address."""
    columns, both = d.n_ox, True
    row = d.out_row_start + (d.n_oy - 1) * d.out_row_step
    base = d.out_base + row // config.row_banks * d.out_row_stride
    if d.product and not d.broadcast:
        if (last := base + _last_word(config, d)) >= config.bank_granules:
            yield f"the output ends at granule {last} of {config.bank_granules}"
        return
    if d.kind == Kind.ADD:
        # The last batch may end beyond the row, where nothing is written.
        left = max(0, d.in_row_bytes - d.q_start)
        columns = min(d.n_ox * ADD_BATCH, -(-left // config.lanes))
        both = left - (columns - 1) * config.lanes > config.granule
    elif d.slide:
        columns = len(range(d.slide_first, d.n_ox, d.slide_step))
    if not columns:
        return
    granule = base + (columns - 1) * d.out_step_ox
    halved = d.half_last and d.kind != Kind.ADD
    last = granule + (d.n_g - 1) * d.out_step_g + (both and not halved)
    if halved and d.n_g > 1:
        last = max(last, granule + (d.n_g - 2) * d.out_step_g + 1)
    if last >= config.bank_granules:
        yield f"the output ends at granule {last} of {config.bank_granules}"


def _last_word(config: AcceleratorConfig, d: Descriptor) -> int:
    """The last granule, of a row of a product, that is written; below 0 if none is."""
    group = np.arange(d.n_g)
    left = d.in_row_bytes - (d.q_start + group * d.q_step_g)
    # Steps are not negative: of each group the first results are written.
    columns = np.minimum(d.n_ox, -(-left // d.q_step_ox)) if d.q_step_ox else np.where(left > 0, d.n_ox, 0)
    last = columns - 1
    upper = np.where(left - last * d.q_step_ox > config.granule, last, last - 1)
    granule = np.maximum(last * d.out_step_ox, np.where(upper >= 0, upper * d.out_step_ox + 1, 0))
    return int(np.where(left > 0, granule + group * d.out_step_g, -(1 << 20)).max())


def check_program(config: AcceleratorConfig, program: NDArray[np.uint32], start: int = 0) -> list[Descriptor]:
    """The descriptors of a program, from word `start` to the one marked `last`, if the engine runs them.

    Raises
    ------
    IllegalProgramError
        At the first thing that it refuses: the message names descriptor and reason.
    """
    words = program[: program_memory_words(config)]
    unseen = unseen_bits(config)
    result: list[Descriptor] = []
    cycles = 0

    def refuse(reason: str) -> IllegalProgramError:
        return IllegalProgramError(f"program at word {start}: descriptor {len(result)}: {reason}; compile it again")

    if start % PROGRAM_COLUMNS:
        raise refuse(f"a program starts at a multiple of {PROGRAM_COLUMNS} words")
    for first in range(start, len(words) - DESCRIPTOR_WORDS + 1, DESCRIPTOR_WORDS):
        raw = words[first : first + DESCRIPTOR_WORDS].astype(np.uint32)
        if (raw & unseen).any():
            raise refuse(f"word {int(np.flatnonzero(raw & unseen)[0])} has bits that this engine does not know")
        d = Descriptor.decode(raw)
        try:
            check_descriptor(config, d)
        except ValueError as error:
            raise refuse(str(error)) from error
        for fault in descriptor_faults(config, d, before=result[-1] if result else None):
            raise refuse(fault)
        cycles += d.n_g * d.n_oy * d.n_ox * d.n_ky * d.n_kx
        if cycles >> WATCHDOG_BITS:
            raise refuse(f"it runs for more than {1 << WATCHDOG_BITS} cycles")
        result.append(d)
        if d.last:
            return result
    raise refuse("the program memory ends without one marked 'last'")


def check_image(config: AcceleratorConfig, program: NDArray[np.uint32]) -> None:
    """Check all programs of an image of the program memory, one after the other; raises as `check_program`."""
    start = 0
    while start < len(program):
        start += DESCRIPTOR_WORDS * len(check_program(config, program, start))
