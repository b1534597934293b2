"""Resize: which elements of the operand each element of the output comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import TensorType

from .movement import keeps_values
from .order import channels_last
from .support import Refusal, attributes
from .values import image_shape

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["resize"]


def resize(r: Reader, node: Any) -> None:
    """Resize: nearest moves values."""
    nearest = attributes(node).get("mode", b"nearest") == b"nearest"
    (keeps_values(_resize) if nearest else _resize)(r, node)


def _resize(r: Reader, node: Any) -> None:
    """Resize: rows and columns of images, or columns of sequences; nearest of integers, too."""
    x, out = node.input[0], node.output[0]
    r.force(x)
    a = attributes(node)
    source, target = r.shape(x), r.shape(out)
    if len(source) not in (3, 4) or source[:2] != target[:2]:
        raise Refusal(f"{list(source)} to {list(target)}; rows and columns of images are supported")
    mode = a.get("mode", b"nearest").decode()
    index = r.v.image(x)
    held = r.v.type(index)
    if mode != "nearest" and held.dtype != "float32":
        raise Refusal(f"mode {mode} of {held.dtype}; nearest, or linear and cubic of real numbers, are supported")
    if a.get("antialias") or a.get("exclude_outside"):
        raise Refusal("antialias or exclude_outside; use 0")
    scales = _scales(r, node, source, target)
    before, after = image_shape(source)[1:3], image_shape(target)[1:3]
    if len(source) == 3:
        scales = [np.float32(1), *scales]
    positions = [_positions(a, n, m, s) for n, m, s in zip(before, after, scales, strict=True)]
    t = TensorType(image_shape(target), held.dtype, held.quantization)
    if mode == "nearest":
        rows, columns = (_nearest(a, p, n) for p, n in zip(positions, before, strict=True))
        kind, operands, options, rounding = _nearest_operator(r, index, before, after, rows, columns)
    else:
        kind, operands, rounding = "RESIZE", [index], "onnx"
        inexact = mode == "cubic" or len(source) == 3
        options = {"in_float": "float32 sums in another order than ONNX Runtime's"} if inexact else {}
        for name, p, n, s in zip(("row", "column"), positions, before, scales, strict=True):
            cubic = mode == "cubic" and s != 1
            options |= _cubic(name, p, n, float(a.get("cubic_coeff_a", -0.75))) if cubic else _linear(name, p, n)
    value = r.emit(node, out, kind, operands, t, None, options, rounding)
    r.v.hold(out, value, channels_last(len(source)))


def _scales(r: Reader, node: Any, source: tuple[int, ...], target: tuple[int, ...]) -> list[np.float32]:
    """Output over input of what lies behind the channels, as the node states it or as its sizes are."""
    a, rank = attributes(node), len(source)
    over = [int(v) % rank for v in a.get("axes", range(rank))]
    name = node.input[2] if len(node.input) > 2 else ""
    stated = r.constant(name, "its scales").reshape(-1) if name else np.zeros(0)
    if stated.size:
        known = {axis: np.float32(v) for axis, v in zip(over, stated, strict=True)}
        return [known.get(axis, np.float32(1)) for axis in range(2, rank)]
    if a.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise Refusal("a size that keeps the aspect ratio; state the scales")
    return [np.float32(m) / np.float32(n) for n, m in zip(source[2:], target[2:], strict=True)]


def _positions(a: dict[str, Any], size: int, out: int, scale: np.float32) -> NDArray[np.float32]:
    """Where each output lies in the operand, in float32 as ONNX Runtime computes it."""
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
    r: Reader, index: int, before: tuple[int, ...], after: tuple[int, ...], rows: NDArray, columns: NDArray
) -> tuple[str, list[int], dict[str, Any], str]:
    """TFLite's operator where it chooses the same rows and columns, else one by indices."""
    usual = all(
        np.array_equal(chosen, np.arange(m) * n // m)
        for chosen, n, m in zip((rows, columns), before, after, strict=True)
    )
    if usual:
        size = r.v.constant(np.array(after, np.int32), name="size")
        options = {"align_corners": False, "half_pixel_centers": False}
        return "RESIZE_NEAREST_NEIGHBOR", [index, size], options, "tflite"
    by_index = {"row_index": tuple(rows.tolist()), "column_index": tuple(columns.tolist())}
    return "RESIZE", [index], by_index, "onnx"


def _linear(name: str, at: NDArray[np.float32], size: int) -> dict[str, Any]:
    """Two neighbours, with the float32 distances that ONNX Runtime has; halves where they are the same one."""
    at = np.clip(at, 0, size - 1).astype(np.float32)
    below = np.minimum(at.astype(np.int64), size - 1)
    above = np.minimum(below + 1, size - 1)
    far, near = np.abs(at - below.astype(np.float32)), np.abs(at - above.astype(np.float32))
    same, half = below == above, np.float32(0.5)
    return _taps(name, [below, above], [np.where(same, half, near), np.where(same, half, far)])


def _cubic(name: str, at: NDArray[np.float32], size: int, a: float) -> dict[str, Any]:
    """Four neighbours; beyond the edge lies what is at the edge."""
    below = np.floor(at).astype(np.int64)
    part = (at - below).astype(np.float64)
    far, near = 1 + part, part
    weights = [
        ((a * far - 5 * a) * far + 8 * a) * far - 4 * a,
        ((a + 2) * near - (a + 3)) * near * near + 1,
        ((a + 2) * (1 - near) - (a + 3)) * (1 - near) ** 2 + 1,
        ((a * (2 - near) - 5 * a) * (2 - near) + 8 * a) * (2 - near) - 4 * a,
    ]
    return _taps(name, [np.clip(below + i, 0, size - 1) for i in (-1, 0, 1, 2)], weights)


def _taps(name: str, indices: list[NDArray[np.int64]], weights: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Which elements each output is a sum of, and their weights, tap by tap."""
    return {
        f"{name}_index": tuple(v for index in indices for v in index.tolist()),
        f"{name}_weight": tuple(v for weight in weights for v in weight.tolist()),
    }
