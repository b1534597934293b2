"""Resize: which elements of the operand each element of the output comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import TensorType

from .order import channels_last
from .support import attributes
from .values import image_shape

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["resize"]


def resize(r: Reader, node: Any) -> None:
    """Resize of rows and columns: nearest, or linear on real numbers."""
    from .reader import Refusal

    x, out = node.input[0], node.output[0]
    r.force(x)
    a = attributes(node)
    source, target = r.shape(x), r.shape(out)
    if len(source) != 4 or source[:2] != target[:2]:
        raise Refusal(f"{list(source)} to {list(target)}; rows and columns of images are supported")
    mode = a.get("mode", b"nearest").decode()
    index = r.v.image(x)
    held = r.v.type(index)
    if mode not in ("nearest", "linear") or (mode == "linear" and held.dtype != "float32"):
        raise Refusal(f"mode {mode} of {held.dtype}; nearest, or linear of real numbers, is supported")
    scales = _scales(r, node, source, target)
    positions = [_positions(a, n, m, s) for n, m, s in zip(source[2:], target[2:], scales, strict=True)]
    t = TensorType(image_shape(target), held.dtype, held.quantization)
    if mode == "nearest":
        rows, columns = (_nearest(a, p, n) for p, n in zip(positions, source[2:], strict=True))
        kind, operands, options, rounding = _nearest_operator(r, index, source, target, rows, columns)
    else:
        kind, operands, rounding = "RESIZE", [index], "onnx"
        options = {"linear": True, "in_float": "float32 sums in another order than ONNX Runtime's"}
        for name, p, n in zip(("row", "column"), positions, source[2:], strict=True):
            options |= _linear(name, p, n)
    value = r.emit(node, out, kind, operands, t, None, options, rounding)
    r.v.hold(out, value, channels_last(4))


def _scales(r: Reader, node: Any, source: tuple[int, ...], target: tuple[int, ...]) -> list[np.float32]:
    """Output over input, as the node states it or as its sizes are."""
    name = node.input[2] if len(node.input) > 2 else ""
    if name and r.constant(name, "its scales").size == 4:
        return [np.float32(v) for v in r.constant(name, "its scales")[2:]]
    return [np.float32(m) / np.float32(n) for n, m in zip(source[2:], target[2:], strict=True)]


def _positions(a: dict[str, Any], size: int, out: int, scale: np.float32) -> NDArray[np.float32]:
    """Where each output lies in the operand, in float32 as ONNX Runtime computes it."""
    from .reader import Refusal

    kind = a.get("coordinate_transformation_mode", b"half_pixel").decode()
    at = np.arange(out).astype(np.float32)
    half, one = np.float32(0.5), np.float32(1)
    rules: dict[str, Callable[[], NDArray[np.float32]]] = {
        "asymmetric": lambda: at / scale,
        "half_pixel": lambda: (at + half) / scale - half,
        "pytorch_half_pixel": lambda: (at + half) / scale - half if out > 1 else at * 0,
        "align_corners": lambda: at * np.float32(size - 1) / np.float32(out - 1) if out > 1 else at * 0,
        "half_pixel_symmetric": lambda: _symmetric(at, size, out, scale),
        "tf_half_pixel_for_nn": lambda: (at + half) / scale,
    }
    if kind not in rules:
        raise Refusal(f"coordinate transformation {kind}; {', '.join(rules)} are supported")
    return np.where(scale == one, at, rules[kind]()).astype(np.float32)


def _symmetric(at: NDArray[np.float32], size: int, out: int, scale: np.float32) -> NDArray[np.float32]:
    adjustment = np.float32(out) / (scale * np.float32(size))
    centre = np.float32(size) / np.float32(2)
    offset = centre * (np.float32(1) - adjustment)
    return offset + (at + np.float32(0.5)) / scale - np.float32(0.5)


def _nearest(a: dict[str, Any], at: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    kind = a.get("nearest_mode", b"round_prefer_floor").decode()
    half = np.float32(0.5)
    whole = {
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
        "round_prefer_floor": lambda: np.where(at == np.floor(at) + half, np.floor(at), np.floor(at + half)),
        "round_prefer_ceil": lambda: np.floor(at + half),
    }[kind]()
    return np.clip(whole, 0, size - 1).astype(np.int64)


def _nearest_operator(
    r: Reader, index: int, source: tuple[int, ...], target: tuple[int, ...], rows: NDArray, columns: NDArray
) -> tuple[str, list[int], dict[str, Any], str]:
    """TFLite's operator where it chooses the same rows and columns, else one by indices."""
    usual = all(
        np.array_equal(chosen, np.arange(m) * n // m)
        for chosen, n, m in zip((rows, columns), source[2:], target[2:], strict=True)
    )
    if usual:
        size = r.v.constant(np.array(target[2:], np.int32), name="size")
        options = {"align_corners": False, "half_pixel_centers": False}
        return "RESIZE_NEAREST_NEIGHBOR", [index, size], options, "tflite"
    by_index = {"row_index": tuple(rows.tolist()), "column_index": tuple(columns.tolist())}
    return "RESIZE", [index], by_index, "onnx"


def _linear(name: str, at: NDArray[np.float32], size: int) -> dict[str, Any]:
    at = np.clip(at, 0, size - 1)
    below = np.floor(at).astype(np.int64)
    above = np.minimum(below + 1, size - 1)
    return {
        f"{name}_index": (*below.tolist(), *above.tolist()),
        f"{name}_weight": tuple(float(v) for v in at - below),
    }
