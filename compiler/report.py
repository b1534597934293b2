"""`report.json`: what was compiled, where it runs, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.boards import Board

from .cost import cycle_shares, layer_cycles, operation_macs
from .emit import Emitted
from .exactness import Inexact
from .exits import FittedExit, exit_figures
from .fit import Fitted
from .larger import Larger
from .lower import LoweredLayer
from .onnx_rounding import Proof
from .ops.rounding import proof_of
from .transfers import region_cycles

__all__ = ["ConfigChoice", "make_report"]

_OPS = {
    "Conv2D": "conv2d",
    "DepthwiseConv2D": "depthwise_conv2d",
    "FullyConnected": "fully_connected",
    "AveragePool2D": "average_pool2d",
    "MaxPool2D": "max_pool2d",
    "Add": "add",
    "Mul": "mul",
    "WindowSum": "window_sum",
}


@dataclass(frozen=True, kw_only=True)
class ConfigChoice:
    """Which configuration is used, and why."""

    source: str
    """"board" (its default), "given" (by the user) or "auto" (found by `nnloom.compiler.explore`)"""
    reason: str
    resources: dict[str, int] | None = None
    """primitive -> count that the resource model expects, if the configuration was searched for"""


def make_report(
    fitted: Fitted,
    config: AcceleratorConfig,
    board: Board,
    choice: ConfigChoice,
    inexact: Inexact,
    larger: Larger | None = None,
    exits: Sequence[FittedExit] = (),
) -> dict[str, Any]:
    """The report after compilation; simulation and build add what they measure.

    Cycles are estimates of the cost model until `cycles_measured` is set. `utilisation` is
    macs / cycles / mac_units; macs counts convolutions and matrix products of the accelerator only, `cpu_macs` those of
    the CPU, and `engine_share` is the accelerator's share of both. `would_take_more` names a board and configuration
    with memory for more of a network that had to be cut. `exact` says whether every bit is that
    of the reference kernels; `inexact` names the operators that are float code. `rounding` counts the channels of
    products that round as ONNX Runtime does, and for how many of them the accelerator does, too: that is proved.
    `exits` is there if the network has some, in the order of their depth.
    """
    partitioned, emitted = fitted.partitioned, fitted.emitted
    proofs = {node.name: proof for node in partitioned.graph.nodes if (proof := proof_of(partitioned.graph, node))}
    graph = partitioned.graph
    layers = _engine_layers(fitted, config, inexact, proofs)
    total = sum(layer["cycles_estimated"] for layer in layers)
    macs = sum(layer["macs"] for layer in layers)
    nodes = {node.name: (index, node) for index, stage in enumerate(partitioned.stages) for node in stage.nodes}
    layers += [
        {
            "name": op.name,
            "op": op.op,
            "target": "cpu",
            "reason": op.reason,
            "stage": nodes[op.name][0],
            "inputs": [graph.values[i].name for i in graph.operands(nodes[op.name][1])],
            "output": op.name,
            "macs": operation_macs(nodes[op.name][1].operation),
            **_exactness(op.name, inexact, proofs),
        }
        for op in partitioned.cpu_operators
    ]
    return {
        "model": partitioned.graph.name,
        "model_sha256": partitioned.graph.sha256,
        "board": board.name,
        "system": {"clock_mhz": board.clock_hz / 1e6, "baud": board.baud},
        "exact": not inexact,
        "rounding": _rounding(list(proofs.values())),
        "config": config.to_dict(),
        "config_hash": f"{config.hash:#010x}",
        "config_source": choice.source,
        "config_reason": choice.reason,
        "resources_estimated": choice.resources,
        "states": [
            {"name": info.name, "shape": list(info.shape), "dtype": info.dtype}
            for info in partitioned.graph.state_infos()
        ],
        "layers": layers,
        **_exits(exits, config, board, inexact, proofs),
        "macs": macs,
        "cpu_macs": fitted.cpu_macs,
        "engine_share": round(fitted.engine_share, 4),
        "cut": fitted.is_cut,
        "link_bytes_per_inference": fitted.link_bytes,
        "would_take_more": _larger(larger) if larger else None,
        "mac_units": config.multipliers,
        "cycles": total,
        "cycles_estimated": total,
        "cycles_measured": None,
        "utilisation": round(macs / total / config.multipliers, 4) if total else 0.0,
        "memory": {
            "weights_bytes": int(emitted.weights.size),
            "weights_available": config.weight_words * config.weight_word_bytes,
            "program_bytes": 4 * len(emitted.program),
            "program_available": 4 * config.program_words,
            "parts": emitted.parts,
            "parts_because": list(emitted.overflows),
            "bytes_loaded_per_inference": emitted.loaded_bytes(config),
            "tables": len(emitted.tables),
            "tables_available": config.tables,
            **_lists(board, config, emitted),
            "activations_peak_bytes": max((r.plan.peak_bytes(config) for r in emitted.regions), default=0),
            "activations_available": config.activation_bytes,
            "planner": [r.plan.strategy for r in emitted.regions],
            "tensors": [
                {
                    "region": r.region.name,
                    "name": life.name,
                    "granule": r.plan.locations[life.name].base,
                    "granules_per_bank": life.granules,
                    "first_layer": life.first,
                    "last_layer": life.last,
                }
                for r in emitted.regions
                for life in r.plan.lifetimes
            ],
        },
    }


def _engine_layers(
    fitted: Fitted, config: AcceleratorConfig, inexact: Inexact, proofs: Mapping[str, Proof]
) -> list[dict[str, Any]]:
    """The layers of the regions."""
    partitioned, emitted = fitted.partitioned, fitted.emitted
    layers: list[dict[str, Any]] = []
    stages = [index for index, stage in enumerate(partitioned.stages) if stage.region]
    for stage, emitted_region in zip(stages, emitted.regions, strict=True):
        cycles = layer_cycles(config, emitted_region.descriptors)
        work = [
            (item.macs, item.layer.output.channels if item.channels is None else len(item.channels))
            for item in emitted_region.layers
        ]
        shares = cycle_shares(config, emitted_region.descriptors, work)
        for item, count, share in zip(emitted_region.layers, cycles, shares, strict=True):
            layers.append(
                {
                    "name": item.name,
                    "op": _OPS[type(item.layer).__name__],
                    "target": "accelerator",
                    "region": emitted_region.region.name,
                    "stage": stage,
                    "inputs": [tensor.name for tensor in item.layer.inputs],
                    "output": item.layer.output.name,
                    "output_shape": list(item.layer.output.shape),
                    "macs": item.macs,
                    "cycles_estimated": count,
                    "cycles_measured": None,
                    "utilisation": round(item.macs / count / config.multipliers, 4),
                    "weight_bytes": int(item.weights.size),
                    "cycle_shares": {name: round(value, 2) for name, value in asdict(share).items()},
                    **_table(item, emitted.tables),
                    **_exactness(item.layer.name, inexact, proofs),
                }
            )
    return layers


def _exits(
    exits: Sequence[FittedExit], config: AcceleratorConfig, board: Board, inexact: Inexact, proofs: Mapping[str, Proof]
) -> dict[str, Any]:
    """What each exit costs, and its layers on the accelerator."""
    if not exits:
        return {}
    figures = [
        exit_figures(board, config, item) | {"layers": _engine_layers(item.fitted, config, inexact, proofs)}
        for item in exits
    ]
    return {"exits": figures}


def _table(item: LoweredLayer, tables: NDArray[np.uint8]) -> dict[str, Any]:
    """The table of a layer that has one, by its number among those of the network, from 1 on."""
    table = item.layer.table
    if table is None:
        return {}
    (number,) = np.flatnonzero((tables == np.frombuffer(table.entries, np.uint8)).all(axis=1))
    return {"table": int(number) + 1, "table_operators": [kind.lower() for kind in table.operators]}


def _lists(board: Board, config: AcceleratorConfig, emitted: Emitted) -> dict[str, Any]:
    """What the lists of a network in parts take, on a board with external memory."""
    lists = region_cycles(board, config, emitted) if emitted.parts else {}
    return {"lists": [{"region": name, **asdict(cycles)} for name, cycles in lists.items()]} if lists else {}


def _exactness(name: str, inexact: Inexact, proofs: Mapping[str, Proof]) -> dict[str, Any]:
    """Whether a layer is exact, and what is proved of its rounding, if that is ONNX Runtime's."""
    values: dict[str, Any] = {"exact": name not in inexact, "inexact_reason": inexact.get(name)}
    if name in proofs:
        values["rounding"] = _rounding([proofs[name]]) | {
            "differences": [
                {"channel": d.channel, "sums": d.accumulators, "first": d.first} for d in proofs[name].differences
            ]
        }
    return values


def _rounding(proofs: Sequence[Proof]) -> dict[str, int]:
    """Channels, those for which a multiplier is proved, those of these whose multiplier is not the nearest, and the
    sums for which the nearest multiplier of the others gives another output."""
    return {
        "channels": sum(len(p.pairs) for p in proofs),
        "proved": sum(p.proved for p in proofs),
        "nudged": sum(p.nudged for p in proofs),
        "sums": sum(d.accumulators for p in proofs for d in p.differences),
    }


def _larger(larger: Larger) -> dict[str, Any]:
    return {
        "board": larger.board,
        "config": larger.config.to_dict(),
        "config_source": "auto" if larger.is_searched else "board",
        "engine_share": round(larger.fitted.engine_share, 4),
        "link_bytes_per_inference": larger.fitted.link_bytes,
        "cut": larger.fitted.is_cut,
    }
