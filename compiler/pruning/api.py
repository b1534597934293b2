"""Pruning from model file to model file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.errors import ConfigError, ModelError
from nnloom.arch.extras import require
from nnloom.arch.files import write_atomically

from ..frontend.onnx.plan import is_onnx
from ..frontend.torch import check_other_formats, exported, is_program
from . import rules
from .channels import Channels, Flags
from .network import Network
from .rewrite import masked_model, pruned_model
from .select import Kept, Measure, by_mask, by_target, masked_filters, read_mask

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

__all__ = ["PruneResult", "PrunedLayer", "Stayed", "prune"]


@dataclass(frozen=True, kw_only=True)
class PrunedLayer:
    """A layer before and after."""

    name: str
    op: str
    channels: int
    left: int
    masked: int
    """of those that are left: zero, since something else needs their place"""


@dataclass(frozen=True, kw_only=True)
class Stayed:
    """Masked channels that are zero instead of gone."""

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """A pruned model file, and how much smaller it is."""

    path: Path
    macs_before: int
    macs: int
    parameters_before: int
    parameters: int
    """values of the constants"""
    layers: tuple[PrunedLayer, ...]
    stayed: tuple[Stayed, ...]
    mask: Mapping[str, tuple[int, ...]]
    """by layer: 1 for each channel that was to stay"""
    largest_difference: float
    """between the outputs of the masked and the pruned network, as measured with ONNX Runtime on one random input"""
    largest_output: float
    """the largest absolute value there"""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {
            **values,
            "path": str(self.path),
            "layers": list(values["layers"]),
            "stayed": list(values["stayed"]),
            "mask": {name: list(flags) for name, flags in self.mask.items()},
        }


def prune(
    model: str | Path | ExportedProgram,
    *,
    mask: str | Path | Mapping[str, ArrayLike] | None = None,
    target: float | None = None,
    measure: Measure = "macs",
    multiple: int = 1,
    keep: Sequence[str] = (),
    output: str | Path,
    masked: str | Path | None = None,
    save_mask: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> PruneResult:
    """Take channels out of a float or quantized ONNX network.

    What is left computes what the network with these channels set to zero computes: in integers to the bit, in float32
    but for the order of sums.

    Parameters
    ----------
    model
        Path of an .onnx or .pt2 (`torch.export`) file, or such a program.
    mask
        By layer (the name of its node, output or weights), a value for each output channel: 1 stays, 0 goes; a .json or
        .npz file, or arrays. Masks of whole weights, as `torch.nn.utils.prune` makes them, keep what has a 1.
    target
        Instead: share of the multiplications that goes, 0 to 1, from the filters with the smallest sums of absolute
        weights, the same share everywhere.
    measure
        "channels": `target` is a share of the layers' channels.
    multiple
        With `target`: numbers of channels that are left are multiples of it.
    keep
        With `target`: names of layers of which nothing goes.
    output
        File to write; an earlier one is replaced on success.
    masked
        File to write the masked network to: as large as before, with zeros.
    save_mask
        .json file to write the mask to, to train the network on with it.
    shapes
        Of inputs, by name, where the file leaves them open.
    progress
        Called with the name of each phase.

    Raises
    ------
    NnloomError
        `ModelError`, `InputError`, `ConfigError` or `ToolMissingError`, each with a message of one line.
    """
    if (mask is None) == (target is None):
        raise ConfigError("give a mask, or a target: a share of the multiplications, 0 to 1")
    if target is not None and not 0 <= target < 1:
        raise ConfigError(f"a target of {target:g} is no share from 0 to below 1")
    if multiple < 1:
        raise ConfigError(f"a multiple of {multiple}: give 1 or more")
    say = progress or (lambda _: None)
    say("reading the model")
    with contextlib.ExitStack() as stack:
        if is_program(model):
            path = stack.enter_context(exported(model))
        else:
            assert isinstance(model, str | Path)
            path = Path(model)
            check_other_formats(path)
            _check_format(path)
        require("onnx", "onnx", "onnxruntime")
        channels = Channels(Network(path, shapes or {}))
        say("finding which channels belong together")
        rules.tie(channels)
        if not channels.layers:
            raise ModelError(f"{path}: no layers with constant weights; there is nothing to prune")
        if target is not None:
            kept, flags = by_target(channels, target, measure, multiple, keep)
        else:
            assert mask is not None
            flags = masked_filters(channels, read_mask(mask))
            kept = by_mask(channels, flags)
        say("comparing with the masked network")
        zeroed, smaller = masked_model(kept), pruned_model(kept)
        difference, largest = _compare(path, zeroed, smaller)
        result = _result(Path(output), kept, flags, smaller, difference, largest)
    write_atomically(Path(output), smaller.SerializeToString())
    if masked is not None:
        write_atomically(Path(masked), zeroed.SerializeToString())
    if save_mask is not None:
        text = json.dumps({name: list(values) for name, values in result.mask.items()})
        write_atomically(Path(save_mask), (text + "\n").encode())
    return result


def _check_format(path: Path) -> None:
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError:
        return  # who reads it says why
    if data[4:8] == b"TFL3" and not is_onnx(data):
        raise ModelError(f"{path}: a TFLite model, which nnloom cannot write again; prune the network as ONNX")


def _compare(path: Path, zeroed: onnx.ModelProto, smaller: onnx.ModelProto) -> tuple[float, float]:
    """(largest difference, largest value) of the outputs of two networks for a random input."""
    import onnx

    from ..frontend.onnx.plan import first_line
    from ..quantize.onnx_file import model_inputs, run_model

    rng = np.random.default_rng(0)
    feed: dict[str, NDArray] = {}
    for item in model_inputs(zeroed):
        dtype = np.dtype(item.dtype)
        if dtype.kind == "f":
            feed[item.name] = rng.uniform(-1, 1, item.shape).astype(dtype)
        elif dtype.itemsize == 1 and dtype.kind in "iu":
            info = np.iinfo(dtype)
            feed[item.name] = rng.integers(info.min, info.max, item.shape, dtype, endpoint=True)
        else:
            feed[item.name] = np.zeros(item.shape, dtype)  # numbers of words, lengths, switches
    try:
        onnx.checker.check_model(smaller)
        (before,), (after,) = list(run_model(zeroed, [feed])), list(run_model(smaller, [feed]))
    except Exception as error:  # of ONNX Runtime's many kinds
        raise ModelError(f"{path}: ONNX Runtime refuses the pruned network ({first_line(error)})") from error
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(before, after, strict=True)]
    difference = max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0)
    return difference, max((float(np.abs(a).max(initial=0)) for a, _ in pairs), default=0.0)


def _result(
    output: Path, kept: Kept, flags: Mapping[str, Flags], smaller: onnx.ModelProto, difference: float, largest: float
) -> PruneResult:
    channels, network = kept.channels, kept.channels.network
    layers, stayed = [], []
    for name, layer in channels.layers.items():
        left = kept.of(*layer.output)
        masked = flags.get(name, np.zeros(len(left), np.bool_))
        layers.append(
            PrunedLayer(
                name=name,
                op=layer.node.op_type,
                channels=len(left),
                left=int(left.sum()),
                masked=int((left & masked).sum()),
            )
        )
        reasons: dict[str, int] = {}
        for index in np.flatnonzero(left & masked):
            why = _reason(kept, layer.output, int(index))
            reasons[why] = reasons.get(why, 0) + 1
        stayed += [Stayed(layer=name, channels=count, reason=why) for why, count in reasons.items()]
    whole = dataclasses.replace(kept, removed=frozenset())
    return PruneResult(
        path=output,
        macs_before=whole.macs(),
        macs=kept.macs(),
        parameters_before=_parameters(network.model),
        parameters=_parameters(smaller),
        layers=tuple(layers),
        stayed=tuple(stayed),
        mask={name: tuple((~value).astype(int).tolist()) for name, value in flags.items()},
        largest_difference=difference,
        largest_output=largest,
    )


def _reason(kept: Kept, output: tuple[str, int], index: int) -> str:
    row = kept.channels.of(output[0])[output[1]]
    otherwise = "its axis stays"
    return otherwise if row is None else kept.reasons.get(int(kept.groups[row[index]]), otherwise)


def _parameters(model: onnx.ModelProto) -> int:
    return sum(int(np.prod(i.dims)) for i in model.graph.initializer)
