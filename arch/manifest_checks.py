"""Checks of a manifest's values beyond their types: what would break, or lie, later on.

A manifest's seal finds damage, not intent: anybody can renew it. So everything that is read from an artifact is checked
before it is used; each function raises `SchemaError` with a message of one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .dma import AT_ONCE, BUFFER_ALIGNMENT
from .dtypes import EIGHT_BITS, INT4, INT8, UINT8
from .isa import DESCRIPTOR_WORDS, PROGRAM_COLUMNS, check_descriptor, decode_program, weight_word_columns
from .schema import SchemaError

if TYPE_CHECKING:
    from .artifact import HostPlan, HostStep, Manifest, Part, Region, TensorInfo, TensorLocation
    from .operation import Operation, TensorType

__all__ = ["check_exits", "check_files", "check_host_plan", "check_images", "check_interface", "check_regions"]

LARGEST_TENSOR = 1 << 28
"""Elements of a tensor at most."""
_LAYOUT = ("rows", "columns", "channels", "row_stride", "pixel_stride")
DTYPES = frozenset({"bool", INT8, UINT8, "int16", "int32", "int64", "float16", "float32"})
LARGEST_OPTION = float(1 << 32)
"""Magnitude of a number among an operator's options at most."""
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_KIND = re.compile(r"[A-Za-z0-9_]{1,60}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise SchemaError(message)


def check_files(files: Mapping[str, str], needed: Sequence[str]) -> None:
    """Names are names of files in the folder, and hashes are hashes."""
    for name, digest in files.items():
        _expect(_FILE_NAME.fullmatch(name) is not None, f"files: {name[:100]!r} is no name of a file in the artifact")
        _expect(_SHA256.fullmatch(digest) is not None, f"files: the hash of {name} is no SHA-256")
    for name in needed:
        _expect(name in files, f"files: {name} is missing")


def check_interface(manifest: Manifest) -> None:
    """Inputs and outputs: shapes, dtypes, quantization, names."""
    for kind, infos in (("input", manifest.inputs), ("output", manifest.outputs), ("state", manifest.states)):
        names = [info.name for info in infos]
        _expect(len(set(names)) == len(names), f"{kind}s: several share a name")
        for info in infos:
            _check_info(f"{kind} {info.name[:60]!r}", info)
    _expect(bool(manifest.outputs), "outputs: there are none")
    _expect(0 < manifest.baud < 1 << 31, f"baud: {manifest.baud} is no bit rate")


def _check_info(what: str, info: TensorInfo) -> None:
    _check_shape(what, info.shape)
    _expect(info.dtype in DTYPES, f"{what}: unknown dtype {info.dtype[:20]!r}")
    axes = info.permutation
    _expect(not axes or sorted(axes) == list(range(len(info.shape))), f"{what}: {list(axes)[:33]} is no permutation")
    _check_quantization(what, info.scale, info.zero_point, info.dtype)


def _check_shape(what: str, shape: Sequence[int]) -> None:
    _expect(len(shape) <= 32 and all(n >= 1 for n in shape), f"{what}: shape {list(shape)[:33]} is none")
    _expect(math.prod(shape) <= LARGEST_TENSOR, f"{what}: shape {list(shape)} is too large")


def _check_quantization(what: str, scale: float, zero_point: int, dtype: str) -> None:
    _expect(0 <= scale <= float(np.finfo(np.float32).max), f"{what}: scale {scale:g} is none")
    # A float input or output has the quantization behind it.
    limits = np.iinfo(dtype if dtype in (INT8, UINT8, "int16") else "int32")
    _expect(int(limits.min) <= zero_point <= int(limits.max), f"{what}: zero point {zero_point} is none of {dtype}")


def check_regions(config: AcceleratorConfig, regions: Sequence[Region]) -> None:
    """Regions: names, and tensors that lie within the activation memory."""
    names = [region.name for region in regions]
    _expect(len(set(names)) == len(names) and "" not in names, "regions: names must differ")
    for region in regions:
        what = f"region {region.name[:60]!r}"
        _expect(bool(region.outputs), f"{what}: no outputs")
        for location in (*region.inputs, *region.outputs, *region.tensors):
            on_chip = region.external_number(location) is None or location in region.tensors
            _check_location(f"{what}, tensor {location.name[:60]!r}", config, location, on_chip=on_chip)
        _check_external(what, config, region)


def _check_external(what: str, config: AcceleratorConfig, region: Region) -> None:
    """Tensors in external memory, and the rows of them that parts move."""
    names = [location.name for location in region.external]
    _expect(len(set(names)) == len(names), f"{what}: external tensors share a name")
    _expect(not names or bool(region.parts), f"{what}: external tensors without parts")
    for location in region.external:
        mine = f"{what}, external tensor {location.name[:60]!r}"
        _check_location(mine, config, location, on_chip=False)
        stride = location.row_stride * config.granule
        _expect(stride % BUFFER_ALIGNMENT == 0, f"{mine}: rows are no multiple of {BUFFER_ALIGNMENT} bytes")
    for tensor in (*region.inputs, *region.outputs):
        number = region.external_number(tensor)
        if number is not None:
            there = region.external[number]
            same = all(getattr(tensor, n) == getattr(there, n) for n in _LAYOUT)
            _expect(same, f"{what}: {tensor.name[:60]!r} has another layout in external memory")
    for part in region.parts:
        for rows in (*part.loads, *part.stores):
            _expect(0 <= rows.tensor < len(names), f"{what}: there is no external tensor {rows.tensor}")
            location = region.external[rows.tensor]
            inside = 0 <= rows.first < rows.first + rows.count <= location.rows
            _expect(inside, f"{what}: rows beyond {location.name[:60]!r}")
            end = rows.base + -(-rows.count // config.row_banks) * location.row_stride
            _expect(rows.base >= 0 and end <= config.bank_granules, f"{what}: rows beyond the activation memory")


def _check_location(what: str, config: AcceleratorConfig, location: TensorLocation, *, on_chip: bool) -> None:
    sizes = (location.rows, location.columns, location.channels, location.row_stride, location.pixel_stride)
    _expect(all(1 <= n < 1 << 20 for n in sizes), f"{what}: sizes and strides must be 1 to 2**20, not {list(sizes)}")
    _expect(location.pixel_stride >= location.channels, f"{what}: pixels overlap")
    _expect(location.columns * location.pixel_stride <= location.row_stride * config.granule, f"{what}: rows overlap")
    end = location.base + location.granules(config)
    inside = location.base >= 0 and (end <= config.bank_granules or not on_chip)
    _expect(inside, f"{what}: lies beyond the activation memory")
    _check_shape(what, location.shape)
    elements = location.rows * location.columns * location.channels
    _expect(math.prod(location.shape) == elements, f"{what}: shape {list(location.shape)} has not {elements} elements")
    _expect(location.dtype in EIGHT_BITS, f"{what}: unknown dtype {location.dtype[:20]!r}")
    _check_quantization(what, location.scale, location.zero_point, INT8)


def check_images(
    config: AcceleratorConfig,
    regions: Sequence[Region],
    program: NDArray[np.uint32],
    weights: NDArray[np.uint8],
    tables: NDArray[np.uint8],
) -> None:
    """Programs and weights of the regions and their parts lie within the images, and the images in the memories; there
    are the tables that programs use."""
    for region in regions:
        what = f"region {region.name[:60]!r}"
        if not region.parts:
            _expect(len(program) <= config.program_words, f"{what}: the program exceeds the program memory")
            _expect(len(weights) <= config.weight_words, f"{what}: the weights exceed the weight memory")
            _expect(
                len(tables) <= config.tables, f"{what}: {len(tables)} tables, the configuration has {config.tables}"
            )
            _check_program(what, config, program, region.program_start, region.program_words, range(len(tables)))
        for part in region.parts:
            _check_part(what, config, part, program, weights, len(tables))
        _check_steps(what, config, region)


def _check_steps(what: str, config: AcceleratorConfig, region: Region) -> None:
    """Every part is loaded before it runs, all run in turn, and everything lies within the memories."""
    _expect(bool(region.parts) or not region.steps, f"{what}: steps without parts")
    loaded: dict[int, int] = {}
    programs: set[int] = set()
    columns = weight_word_columns(config)
    for index, step in enumerate(region.steps):
        here = f"{what}, step {index}"
        _expect(step.under_way <= AT_ONCE, f"{here}: under_way must be 0 to {AT_ONCE}")
        _expect(step.part < len(region.parts), f"{here}: there is no part {step.part}")
        part = region.parts[step.part]
        if step.kind == "run":
            whole = loaded.get(step.part, 0) == part.weights_words and step.part in programs
            _expect(whole, f"{here}: part {step.part} is not loaded")
        if step.kind == "program" or (step.kind == "load" and not step.first_word):
            programs.add(step.part)
        if step.kind in ("load", "weights"):
            _expect(step.first_word == loaded.get(step.part, 0), f"{here}: weights out of turn")
            _expect(4 * step.first_word * columns % BUFFER_ALIGNMENT == 0, f"{here}: not aligned in external memory")
            count = part.weights_words - step.first_word if step.words is None else step.words
            _expect(step.first_word + count <= part.weights_words, f"{here}: more weights than the part has")
            loaded[step.part] = step.first_word + count
        if step.kind in ("load", "program", "weights"):
            _expect(
                step.program_base % PROGRAM_COLUMNS == 0
                and step.program_base + part.program_words <= config.program_words
                and part.weights_base + step.weights_base + part.weights_words <= config.weight_words,
                f"{here}: the part lies beyond the memories",
            )
    runs = [step.part for step in region.steps if step.kind == "run"]
    _expect(not region.steps or runs == list(range(len(region.parts))), f"{what}: steps do not run every part in turn")
    for kind, moved in (("bring", "loads"), ("store", "stores")):
        wanted = [i for i, part in enumerate(region.parts) if getattr(part, moved)]
        moves = [step.part for step in region.steps if step.kind == kind]
        _expect(not region.steps or sorted(moves) == wanted, f"{what}: steps do not move the rows of every part once")


def _check_part(
    what: str,
    config: AcceleratorConfig,
    part: Part,
    program: NDArray[np.uint32],
    weights: NDArray[np.uint8],
    tables: int,
) -> None:
    _expect(part.program_words <= config.program_words, f"{what}: a part's program exceeds the program memory")
    end = part.weights_base + part.weights_words
    fits = 0 <= part.weights_words <= config.weight_words and part.weights_base >= 0 and end <= config.weight_words
    _expect(fits, f"{what}: a part's weights exceed the weight memory")
    _expect(
        0 <= part.weights_start <= len(weights) - part.weights_words,
        f"{what}: a part's weights lie beyond the weight image",
    )
    held: Container[int] = range(min(tables, config.tables))
    if part.tables or tables > config.tables:
        _expect(len(part.tables) <= config.tables, f"{what}: a part has more tables than the configuration")
        _expect(all(-1 <= n < tables for n in part.tables), f"{what}: a part has tables that are not in the image")
        held = [place for place, number in enumerate(part.tables) if number >= 0]
    _check_program(what, config, program, part.program_start, part.program_words, held)


def _check_program(
    what: str, config: AcceleratorConfig, program: NDArray[np.uint32], start: int, words: int, tables: Container[int]
) -> None:
    """One program, to its last descriptor; `tables`: those of the engine that are loaded, from 0 on."""
    _expect(start >= 0 and words > 0 and start + words <= len(program), f"{what}: its program is not in the image")
    try:
        descriptors = decode_program(program[: start + words], start)
        for descriptor in descriptors:
            check_descriptor(config, descriptor)
    except ValueError as error:
        raise SchemaError(f"{what}: {error}") from error
    _expect(len(descriptors) * DESCRIPTOR_WORDS == words, f"{what}: its program has not {words} words")
    for descriptor in descriptors:
        loaded = not descriptor.table or descriptor.table - 1 in tables
        _expect(loaded, f"{what}: its program uses table {descriptor.table}, which is not loaded")


_Held = tuple[tuple[int, ...], str]
"""Shape and dtype of a value."""


def check_host_plan(manifest: Manifest) -> None:
    """Steps around the regions: each operand is there before, of the shape and dtype that the step states."""
    _check_plan("host", manifest.host, manifest.regions, manifest, manifest.outputs)


def check_exits(manifest: Manifest) -> None:
    """Exits are outputs, each with a plan of its own; a network with state has none."""
    outputs = {info.name: info for info in manifest.outputs}
    names = [leave.name for leave in manifest.exits]
    _expect(len(set(names)) == len(names), "exits: several share a name")
    _expect(not names or not manifest.states, "exits: of a network with state")
    for leave in manifest.exits:
        what = f"exit {leave.name[:60]!r}"
        _expect(leave.name in outputs, f"{what}: there is no such output")
        _expect(0 <= leave.first_constant <= 1 << 20, f"{what}: there is no constant {leave.first_constant}")
        _check_plan(f"{what}, host", leave.host, leave.regions, manifest, [outputs[leave.name]])


def _check_plan(
    whose: str, plan: HostPlan, regions: Sequence[Region], manifest: Manifest, outputs: Sequence[TensorInfo]
) -> None:
    """A plan whose steps call `regions`, on the manifest's inputs and states."""
    _expect(0 <= plan.constants <= 1 << 20, f"{whose} plan: {plan.constants} constants")
    sources = (*manifest.inputs, *manifest.states)
    values: list[_Held | None] = [(info.held_shape, info.dtype) for info in sources]
    values += [None] * plan.constants
    for index, step in enumerate(plan.steps):
        what = f"{whose} step {index}"
        _expect(-1 <= step.region < len(regions), f"{what}: there is no region {step.region}")
        present = [i for i in step.inputs if i is not None]
        _expect(all(0 <= i < len(values) for i in present), f"{what}: an operand that is not made before")
        if step.operation is None:
            _expect(len(present) == len(step.inputs), f"{what}: a region's operand is left out")
            values += _check_call(what, regions, step, [values[i] for i in present])
        else:
            operands = [None if i is None else (values[i] or ((), "constant")) for i in step.inputs]
            values += _check_operation(what, step.operation, operands)
    for index, step in enumerate(plan.inside):
        _check_inside(f"{whose} step {index} within a region", step, len(sources), plan.constants)
    for kind, numbers, infos in (("output", plan.outputs, outputs), ("state", plan.states, manifest.states)):
        _expect(all(0 <= i < len(values) for i in numbers), f"{whose} plan: {kind}s that are not made")
        made = [values[i] for i in numbers]
        wanted = [(info.held_shape, info.dtype) for info in infos]
        matches = len(made) == len(wanted) and all(m is None or m == w for m, w in zip(made, wanted, strict=True))
        _expect(matches, f"{whose} plan: its {kind}s are not those of the network")


def _check_inside(what: str, step: HostStep, first: int, constants: int) -> None:
    """An operator that a region runs: operands are given, or constants, of which the first has the number `first`."""
    op = step.operation
    if op is None or step.region != -1 or len(op.inputs) != len(step.inputs):
        raise SchemaError(f"{what}: it must be an operator with {0 if op is None else len(op.inputs)} operands")
    known = [i for i in step.inputs if i not in (None, -1)]
    _expect(all(first <= i < first + constants for i in known), f"{what}: an operand that is no constant")
    given = [None if t is None else (t.shape, t.dtype) for t in op.inputs]
    _check_operation(what, op, [None if i is None else g for i, g in zip(step.inputs, given, strict=True)])


def _check_call(what: str, regions: Sequence[Region], step: HostStep, operands: Sequence[_Held | None]) -> list[_Held]:
    _expect(0 <= step.region < len(regions), f"{what}: there is no region {step.region}")
    region = regions[step.region]
    wanted = [(math.prod(location.shape), location.dtype) for location in region.inputs]
    given = [(math.prod(held[0]), held[1]) for held in operands if held]
    _expect(given == wanted and len(operands) == len(wanted), f"{what}: operands that are not those of the region")
    return [(location.shape, location.dtype) for location in region.outputs]


def _check_operation(what: str, op: Operation, operands: Sequence[_Held | None]) -> list[_Held]:
    """operands: what is given; constants have no shape here, None is left out."""
    _expect(_KIND.fullmatch(op.kind) is not None, f"{what}: {op.kind[:40]!r} is no operator")
    what = f"{what} ({op.kind})"
    _expect(len(operands) == len(op.inputs), f"{what}: {len(operands)} operands instead of {len(op.inputs)}")
    _expect(bool(op.outputs), f"{what}: no outputs")
    _expect(op.rounding in ("tflite", "onnx"), f"{what}: unknown rounding {op.rounding[:20]!r}")
    for held, stated in zip(operands, op.inputs, strict=True):
        _expect((held is None) == (stated is None), f"{what}: an operand that is left out in one place only")
        if held is not None and stated is not None and held[1] != "constant":
            _expect(held == (stated.shape, stated.dtype), f"{what}: an operand of another shape or dtype")
    for tensor in (*op.inputs, *op.outputs):
        if tensor is not None:
            _check_shape(what, tensor.shape)
            _expect(tensor.dtype in DTYPES | {INT4}, f"{what}: unknown dtype {tensor.dtype[:20]!r}")
            _check_scales(what, tensor)
    for key, value in op.options.items():
        _check_option(f"{what}: {key[:40]}", value)
    return [(tensor.shape, tensor.dtype) for tensor in op.outputs]


def _check_option(what: str, value: Any, depth: int = 2) -> None:
    """JSON values of an operator's options: numbers of a size that options have, texts, sequences of these."""
    if isinstance(value, tuple) and depth:
        for item in value:
            _check_option(what, item, depth - 1)
        return
    _expect(isinstance(value, bool | int | float | str), f"{what}: {str(value)[:40]!r} is no option")
    if isinstance(value, int | float):
        # A NaN compares as false.
        _expect(abs(value) <= LARGEST_OPTION, f"{what}: {value:g} is beyond all bounds")


def _check_scales(what: str, tensor: TensorType) -> None:
    q = tensor.quantization
    if q is None:
        return
    _expect(0 < len(q.scales) == len(q.zero_points), f"{what}: {len(q.scales)} scales")
    _expect(0 <= q.axis < 32, f"{what}: axis {q.axis}")
    axis_fits = len(q.scales) == 1 or (0 <= q.axis < len(tensor.shape) and tensor.shape[q.axis] == len(q.scales))
    _expect(axis_fits, f"{what}: {len(q.scales)} scales for axis {q.axis} of {list(tensor.shape)}")
    for scale, zero_point in zip(q.scales, q.zero_points, strict=True):
        _check_quantization(what, scale, zero_point, tensor.dtype)
