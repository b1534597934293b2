"""Checks of a manifest's values beyond their types: what would break, or lie, later on.

A manifest's seal finds damage, not intent: anybody can renew it. So everything that is read from an artifact is checked
before it is used; each function raises `SchemaError` with a message of one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .config import AcceleratorConfig
from .isa import DESCRIPTOR_WORDS, check_descriptor, decode_program
from .schema import SchemaError

if TYPE_CHECKING:
    from .artifact import HostPlan, HostStep, Manifest, Part, Region, TensorInfo, TensorLocation

__all__ = ["check_files", "check_host_plan", "check_images", "check_interface", "check_regions"]

LARGEST_TENSOR = 1 << 28
"""Elements of a tensor at most."""
DTYPES = frozenset({"bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32"})
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
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
    for kind, infos in (("input", manifest.inputs), ("output", manifest.outputs)):
        names = [info.name for info in infos]
        _expect(len(set(names)) == len(names), f"{kind}s: several share a name")
        for info in infos:
            _check_info(f"{kind} {info.name[:60]!r}", info)
    _expect(bool(manifest.outputs), "outputs: there are none")


def _check_info(what: str, info: TensorInfo) -> None:
    _check_shape(what, info.shape)
    _expect(info.dtype in DTYPES, f"{what}: unknown dtype {info.dtype[:20]!r}")
    _check_quantization(what, info.scale, info.zero_point, info.dtype)


def _check_shape(what: str, shape: Sequence[int]) -> None:
    _expect(len(shape) <= 32 and all(n >= 1 for n in shape), f"{what}: shape {list(shape)[:33]} is none")
    _expect(math.prod(shape) <= LARGEST_TENSOR, f"{what}: shape {list(shape)} is too large")


def _check_quantization(what: str, scale: float, zero_point: int, dtype: str) -> None:
    _expect(0 <= scale <= float(np.finfo(np.float32).max), f"{what}: scale {scale:g} is none")
    # A float input or output has the quantization behind it.
    limits = np.iinfo(dtype if dtype in ("int8", "uint8", "int16") else "int32")
    _expect(int(limits.min) <= zero_point <= int(limits.max), f"{what}: zero point {zero_point} is none of {dtype}")


def check_regions(config: AcceleratorConfig, regions: Sequence[Region]) -> None:
    """Regions: names, and tensors that lie within the activation memory."""
    names = [region.name for region in regions]
    _expect(len(set(names)) == len(names) and "" not in names, "regions: names must differ")
    for region in regions:
        what = f"region {region.name[:60]!r}"
        _expect(bool(region.outputs), f"{what}: no outputs")
        for location in (*region.inputs, *region.outputs, *region.tensors):
            _check_location(f"{what}, tensor {location.name[:60]!r}", config, location)


def _check_location(what: str, config: AcceleratorConfig, location: TensorLocation) -> None:
    sizes = (location.rows, location.columns, location.channels, location.row_stride, location.pixel_stride)
    _expect(all(1 <= n < 1 << 20 for n in sizes), f"{what}: sizes and strides must be 1 to 2**20, not {list(sizes)}")
    _expect(location.pixel_stride >= location.channels, f"{what}: pixels overlap")
    _expect(location.columns * location.pixel_stride <= location.row_stride * config.granule, f"{what}: rows overlap")
    end = location.base + location.granules(config)
    _expect(location.base >= 0 and end <= config.bank_granules, f"{what}: lies beyond the activation memory")
    _check_shape(what, location.shape)
    elements = location.rows * location.columns * location.channels
    _expect(math.prod(location.shape) == elements, f"{what}: shape {list(location.shape)} has not {elements} elements")
    _check_quantization(what, location.scale, location.zero_point, "int8")


def check_images(
    config: AcceleratorConfig, regions: Sequence[Region], program: NDArray[np.uint32], weights: NDArray[np.uint8]
) -> None:
    """Programs and weights of the regions and their parts lie within the images, and the images in the memories."""
    for region in regions:
        what = f"region {region.name[:60]!r}"
        if not region.parts:
            _expect(len(program) <= config.program_words, f"{what}: the program exceeds the program memory")
            _expect(len(weights) <= config.weight_words, f"{what}: the weights exceed the weight memory")
            _check_program(what, config, program, region.program_start, region.program_words)
        for part in region.parts:
            _check_part(what, config, part, program, weights)


def _check_part(
    what: str, config: AcceleratorConfig, part: Part, program: NDArray[np.uint32], weights: NDArray[np.uint8]
) -> None:
    _expect(part.program_words <= config.program_words, f"{what}: a part's program exceeds the program memory")
    _expect(0 <= part.weights_words <= config.weight_words, f"{what}: a part's weights exceed the weight memory")
    _expect(
        0 <= part.weights_start <= len(weights) - part.weights_words,
        f"{what}: a part's weights lie beyond the weight image",
    )
    _check_program(what, config, program, part.program_start, part.program_words)


def _check_program(what: str, config: AcceleratorConfig, program: NDArray[np.uint32], start: int, words: int) -> None:
    """One program, to its last descriptor."""
    _expect(start >= 0 and words > 0 and start + words <= len(program), f"{what}: its program is not in the image")
    try:
        descriptors = decode_program(program[: start + words], start)
        for descriptor in descriptors:
            check_descriptor(config, descriptor)
    except ValueError as error:
        raise SchemaError(f"{what}: {error}") from error
    _expect(len(descriptors) * DESCRIPTOR_WORDS == words, f"{what}: its program has not {words} words")


_STEPS = frozenset({"region", "quantize", "dequantize", "softmax", "reshape"})


def check_host_plan(manifest: Manifest) -> None:
    """Steps of the portable runtime: each operand is there before, of the right shape and dtype."""
    plan: HostPlan = manifest.host
    if not plan.steps and plan.reason:
        return
    values = [(info.shape, info.dtype) for info in manifest.inputs]
    for index, step in enumerate(plan.steps):
        what = f"host step {index}"
        _expect(-1 <= step.region < len(manifest.regions), f"{what}: there is no region {step.region}")
        _expect(step.kind in _STEPS, f"{what}: unknown kind {step.kind[:20]!r}")
        _expect(all(0 <= i < len(values) for i in step.inputs), f"{what}: an operand that is not made before")
        _check_quantization(what, step.in_scale, step.in_zero_point, "int8")
        _check_quantization(what, step.out_scale, step.out_zero_point, "int8")
        _expect(-128 <= step.minimum <= step.maximum <= 127, f"{what}: limits {step.minimum} to {step.maximum}")
        operands = [values[i] for i in step.inputs]
        values += (
            _check_call(what, manifest, step, operands)
            if step.kind == "region"
            else [_check_step(what, step, operands)]
        )
    _expect(all(0 <= i < len(values) for i in plan.outputs), "host plan: an output that is not made")
    made = [values[i] for i in plan.outputs]
    wanted = [(info.shape, info.dtype) for info in manifest.outputs]
    _expect(made == wanted, "host plan: its outputs are not those of the network")


def _check_call(
    what: str, manifest: Manifest, step: HostStep, operands: Sequence[tuple[tuple[int, ...], str]]
) -> list[tuple[tuple[int, ...], str]]:
    _expect(0 <= step.region < len(manifest.regions), f"{what}: there is no region {step.region}")
    region = manifest.regions[step.region]
    wanted = [math.prod(location.shape) for location in region.inputs]
    given = [math.prod(shape) for shape, dtype in operands if dtype == "int8"]
    _expect(given == wanted and len(operands) == len(wanted), f"{what}: operands that are not those of the region")
    return [(location.shape, "int8") for location in region.outputs]


def _check_step(
    what: str, step: HostStep, operands: Sequence[tuple[tuple[int, ...], str]]
) -> tuple[tuple[int, ...], str]:
    _expect(len(operands) == 1, f"{what}: {step.kind} takes one operand")
    ((shape, dtype),) = operands
    _check_shape(what, step.shape)
    if step.kind == "reshape":
        _expect(math.prod(shape) == math.prod(step.shape), f"{what}: a reshape to another number of elements")
        return step.shape, dtype
    _expect(dtype == ("float32" if step.kind == "quantize" else "int8"), f"{what}: {step.kind} of {dtype}")
    _expect(step.kind == "dequantize" or step.out_scale > 0, f"{what}: {step.kind} needs a scale")
    _expect(step.kind == "quantize" or step.in_scale > 0, f"{what}: {step.kind} needs the scale of its operand")
    _expect(step.kind != "softmax" or bool(shape), f"{what}: softmax of a single value")
    return shape, "float32" if step.kind == "dequantize" else "int8"
