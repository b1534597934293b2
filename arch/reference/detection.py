"""TFLite_Detection_PostProcess, the custom operator at the end of SSD networks: boxes from anchors, and their best.

After LiteRT's `detection_postprocess.cc`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..dtypes import UINT8
from ..operation import Operation
from .support import operand, parameters, refuse, require_types

__all__ = ["DETECTION_POSTPROCESS", "detection_postprocess", "output_shapes"]

DETECTION_POSTPROCESS = "TFLite_Detection_PostProcess"


def output_shapes(options: dict) -> tuple[tuple[int, ...], ...]:
    """Shapes of boxes, classes, scores and their number; files leave them open."""
    count = int(options["max_detections"]) * int(options["max_classes_per_detection"])
    return (1, count, 4), (1, count), (1, count), (1,)


def detection_postprocess(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
    """Boxes [1, n, 4] (top, left, bottom, right), classes [1, n], scores [1, n], and how many there are [1].

    Operands: encodings of boxes [1, boxes, 4 or more], scores [1, boxes, classes], anchors [boxes, 4] (y, x, h, w).
    Places without a detection are zeros; LiteRT leaves what was there.
    """
    if op.inputs[0] is None or op.inputs[2] is None or op.inputs[0].dtype != op.inputs[2].dtype:
        refuse(op, "anchors of another type than the encodings")
    encodings, scores, anchors = (_real(op, inputs, i) for i in range(3))
    if encodings.shape[0] != 1:
        refuse(op, f"{encodings.shape[0]} images")
    boxes = _boxes(op, encodings[0, :, :4], anchors)
    classes = int(op.options["num_classes"])
    scores = scores[0, :, scores.shape[2] - classes :]
    if op.options.get("use_regular_nms"):
        found = _by_class(op, boxes, scores)
    else:
        found = _by_box(op, boxes, scores)
    results = [np.zeros(shape, np.float32) for shape in output_shapes(op.options)]
    for place, (box, kind, score) in enumerate(found):
        results[0][0, place], results[1][0, place], results[2][0, place] = boxes[box], kind, score
    per_box = 1 if op.options.get("use_regular_nms") else _classes_of_a_box(op)
    results[3][0] = len(found) // per_box
    return results


def _real(op: Operation, inputs: Sequence[NDArray | None], index: int) -> NDArray[np.float32]:
    x = operand(op, inputs, index)
    if require_types(op, index, "float32", UINT8) == "float32":
        return x
    q = parameters(op, op.inputs[index])
    return (np.float32(q.scale) * (x.astype(np.float32) - np.float32(q.zero_point))).astype(np.float32)


def _boxes(op: Operation, encodings: NDArray[np.float32], anchors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[boxes, 4]: top, left, bottom, right."""
    scales = np.array([op.options[f"{axis}_scale"] for axis in "yxhw"], np.float32).astype(np.float64)
    relative = encodings.astype(np.float64) / scales
    anchor = anchors.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        centre = (relative[:, :2] * anchor[:, 2:] + anchor[:, :2]).astype(np.float32)
        half = (0.5 * np.exp(relative[:, 2:]) * anchor[:, 2:]).astype(np.float32)
        return np.concatenate([centre - half, centre + half], axis=1)


def _classes_of_a_box(op: Operation) -> int:
    return min(int(op.options["max_classes_per_detection"]), int(op.options["num_classes"]))


Detection = tuple[int, int, np.float32]
"""box, class, score"""


def _by_box(op: Operation, boxes: NDArray, scores: NDArray) -> list[Detection]:
    """Boxes by their best class; each with as many classes as asked for ("fast")."""
    count = _classes_of_a_box(op)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    chosen = _suppress(op, boxes, scores[np.arange(len(scores)), order[:, 0]], int(op.options["max_detections"]))
    return [(box, int(kind), scores[box, kind]) for box in chosen for kind in order[box]]


def _by_class(op: Operation, boxes: NDArray, scores: NDArray) -> list[Detection]:
    """The best of each class, then the best of those ("regular")."""
    limit = int(op.options["max_detections"])
    found: list[Detection] = []
    for kind in range(scores.shape[1]):
        chosen = _suppress(op, boxes, scores[:, kind], int(op.options.get("detections_per_class", 100)))
        found += [(box, kind, scores[box, kind]) for box in chosen]
        found = sorted(found, key=lambda item: -item[2])[:limit]
    return found


def _suppress(op: Operation, boxes: NDArray, scores: NDArray, limit: int) -> list[int]:
    """The best boxes in order, without those that cover much of a better one."""
    kept = np.flatnonzero(scores >= np.float32(op.options["nms_score_threshold"]))
    waiting = kept[np.argsort(-scores[kept], kind="stable")]
    threshold = np.float32(op.options["nms_iou_threshold"])
    chosen: list[int] = []
    while len(waiting) and len(chosen) < limit:
        best, waiting = int(waiting[0]), waiting[1:]
        chosen.append(best)
        waiting = waiting[_overlap(boxes[best], boxes[waiting]) <= threshold]
    return chosen


def _overlap(box: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union with each of the others; 0 for empty boxes."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(high - low, np.float32(0))
    common = sides[:, 0] * sides[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = common / (area + areas - common)
    return np.where((area <= 0) | (areas <= 0), np.float32(0), share)
