"""How good a network is on labelled data: what comes out of it, against what should."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import InputError

__all__ = ["LABELS", "METRICS", "Evaluation", "LabelledData", "evaluate", "real_values"]

METRICS = ("top1", "mae", "auc")
"""Share of right classes; mean absolute error; area under the receiver operating characteristic"""
LABELS = ("labels", "label", "y")
"""Names that the labels may have in a file"""
INPUTS = ("inputs", "input", "x")
"""Names that the inputs of a network with one may have in a file, beside its own"""


@dataclass(frozen=True)
class LabelledData:
    """Inferences [n] with their labels, [n] or [n, ...]."""

    inferences: list[dict[str, NDArray]]
    labels: NDArray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], infos: Sequence[TensorInfo]) -> LabelledData:
        """From the arrays of a file: labels under one of `LABELS`, inputs under their names, or one of `INPUTS`.

        Raises
        ------
        InputError
            If one is missing, or they hold different numbers of inferences.
        """
        found = [name for name in LABELS if name in arrays]
        if not found:
            raise InputError(f"no labels in the data; name them {LABELS[0]!r} (there are: {', '.join(arrays)})")
        labels = arrays[found[0]]
        inputs = {}
        for info in infos:
            names = [name for name in (info.name, *(INPUTS if len(infos) == 1 else ())) if name in arrays]
            if not names:
                raise InputError(f"no input {info.name!r} in the data (there are: {', '.join(arrays)})")
            inputs[info.name] = arrays[names[0]]
            if labels.ndim == 0 or inputs[info.name].ndim == 0 or len(inputs[info.name]) != len(labels):
                raise InputError(
                    f"input {info.name!r} has shape {list(inputs[info.name].shape)}, the labels {list(labels.shape)}: "
                    "the first dimension of both is the number of inferences"
                )
        if not len(labels):
            raise InputError("the data hold no inferences")
        return cls([{name: value[i] for name, value in inputs.items()} for i in range(len(labels))], labels)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out."""

    what: str
    """the model and where it ran"""
    metric: str
    value: float
    count: int
    """inferences"""
    seconds: float
    """for all of them, one after the other"""
    confusion: NDArray[np.int64] | None = None
    """top1: [label, predicted class]"""
    predictions: NDArray
    """top1: classes; else what the metric is made of, [n] or [n, values]"""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the predictions."""
        return {
            "what": self.what,
            "metric": self.metric,
            "value": self.value,
            "count": self.count,
            "inferences_per_second": round(self.count / self.seconds, 2) if self.seconds else None,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }


def real_values(info: TensorInfo, value: NDArray) -> NDArray[np.float64]:
    """What the integers of a quantized tensor stand for; of others, the values."""
    if value.dtype.kind in "iu" and info.scale:
        return (value.astype(np.float64) - info.zero_point) * info.scale
    return value.astype(np.float64)


def evaluate(
    what: str,
    run: Callable[[dict[str, NDArray]], NDArray],
    data: LabelledData,
    metric: str,
    *,
    advance: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a network on labelled data.

    Parameters
    ----------
    run
        Real values of the network's first output for the inputs of an inference.
    metric
        One of `METRICS`. "auc": labels 0 and 1; the score is the last value of the output or, where the output has as
        many values as the input (an autoencoder), the mean squared difference of the two.

    Raises
    ------
    InputError
        If labels do not suit metric or output.
    """
    outputs = []
    start = time.perf_counter()
    for index, inputs in enumerate(data.inferences):
        outputs.append(np.asarray(run(inputs), np.float64).reshape(-1))
        if advance:
            advance(index + 1, len(data.inferences))
    seconds = time.perf_counter() - start
    values = np.stack(outputs)
    confusion = None
    predictions: NDArray = values
    if metric == "top1":
        value, confusion, predictions = _top1(values, data.labels)
    elif metric == "mae":
        value = _mae(values, data.labels)
    else:
        scores = predictions = _scores(values, data.inferences)
        value = _auc(scores, data.labels)
    return Evaluation(
        what=what,
        metric=metric,
        value=value,
        count=len(values),
        seconds=seconds,
        confusion=confusion,
        predictions=predictions,
    )


def _top1(values: NDArray, labels: NDArray) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    classes = values.shape[1]
    if labels.ndim == 2 and labels.shape[1] == classes > 1:
        labels = labels.argmax(axis=1)  # one hot
    labels = labels.reshape(len(labels), -1)
    if labels.dtype.kind == "f" and np.array_equal(labels, np.rint(np.clip(labels, -1, classes))):
        labels = labels.astype(np.int64)  # whole numbers, as NumPy's readers of text make them
    if labels.shape[1] != 1 or labels.dtype.kind not in "iub" or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"top1 needs a class from 0 to {classes - 1} as label of each inference, or one-hot rows")
    labels = labels[:, 0].astype(np.int64)
    predicted = values.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    return float((labels == predicted).mean()), confusion, predicted


def _mae(values: NDArray, labels: NDArray) -> float:
    labels = labels.reshape(len(labels), -1)
    if labels.shape != values.shape:
        raise InputError(f"mae needs {values.shape[1]} values as label of each inference, not {labels.shape[1]}")
    return float(np.abs(values - labels).mean())


def _scores(values: NDArray, inferences: Sequence[dict[str, NDArray]]) -> NDArray[np.float64]:
    first = [next(iter(inputs.values())) for inputs in inferences]
    if all(x.size == values.shape[1] > 1 for x in first):
        inputs = np.stack([x.astype(np.float64).reshape(-1) for x in first])
        return ((inputs - values) ** 2).mean(axis=1)
    return values[:, -1]


def _auc(scores: NDArray[np.float64], labels: NDArray) -> float:
    """The probability that a positive has a higher score than a negative (Mann and Whitney, 1947); ties count half."""
    labels = labels.reshape(-1)
    if len(labels) != len(scores) or not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) != 2:
        raise InputError("auc needs a label of each inference, 0 or 1, and both of them")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int((labels == 1).sum())
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))
