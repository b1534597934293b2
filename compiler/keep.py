"""What each step of a compilation makes, as text and JSON, for people and tools (`nnloom compile --keep`)."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError
from nnloom.arch.files import write_atomically
from nnloom.arch.operation import TensorType

from .cost import layer_cycles
from .emit import EmittedRegion
from .fit import Fitted
from .graph import Layer
from .ir import Graph, Node
from .partition import Partitioned

__all__ = ["STEPS", "KeptSteps"]

STEPS = ("read", "simplify", "recentre", "partition", "lower")
"""Of a compilation, in order; the files of each are NUMBER-STEP.txt and NUMBER-STEP.json"""


class KeptSteps:
    """Writes what steps make into a folder, or nothing if there is none. A step that fails leaves those before it.

    Raises
    ------
    ConfigError
        If the folder holds other files, or cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is None:
            return
        own = {f"{number}-{step}.{end}" for number, step in enumerate(STEPS, 1) for end in ("txt", "json")}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = {path.name for path in folder.iterdir()}
            if found <= own:
                for name in found:
                    (folder / name).unlink()
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot keep steps there ({error.strerror or error}); choose another --keep"
            ) from error
        if not found <= own:
            raise ConfigError(f"{folder}: holds {min(found - own)!r}, not of --keep; choose an empty or new folder")

    def graph(self, step: str, graph: Graph) -> None:
        """The graph after `step`."""
        if self._folder:
            self._write(step, _graph_text(graph), _graph_values(graph))

    def fitted(self, fitted: Fitted, config: AcceleratorConfig) -> None:
        """Which part runs where, and the programs of the regions."""
        if self._folder is None:
            return
        partitioned, regions = fitted.partitioned, fitted.emitted.regions
        self.graph("recentre", partitioned.recentred)
        self._write("partition", _partition_text(partitioned), _partition_values(partitioned))
        self._write(
            "lower",
            (line for region in regions for line in _region_text(region, config)),
            {"config": config.to_dict(), "regions": [_region_values(region, config) for region in regions]},
        )

    def _write(self, step: str, lines: Iterator[str], values: dict[str, Any]) -> None:
        assert self._folder is not None
        stem = f"{STEPS.index(step) + 1}-{step}"
        text = json.dumps({"step": step, **values}, indent=1, default=_plain) + "\n"
        try:
            write_atomically(self._folder / f"{stem}.txt", ("\n".join(lines) + "\n").encode())
            write_atomically(self._folder / f"{stem}.json", text.encode())
        except OSError as error:
            raise ConfigError(
                f"{self._folder}: cannot keep steps there ({error.strerror or error}); choose another --keep"
            ) from error


def _plain(value: Any) -> Any:
    """What JSON has for other values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def _type_text(value: TensorType) -> str:
    text = f"{value.dtype}[{','.join(map(str, value.shape))}]"
    q = value.quantization
    if q is None:
        return text
    if q.is_per_tensor:
        return f"{text} scale {q.scale:.6g} zero point {q.zero_point}"
    return f"{text} {len(q.scales)} scales on axis {q.axis}"


def _node_text(graph: Graph, node: Node) -> str:
    """%7 name: type = KIND(%3, %4 constant int8[8]) {options}"""

    def operand(index: int | None) -> str:
        if index is None:
            return "-"
        value = graph.values[index]
        return f"%{index}" if value.data is None else f"%{index} constant {_type_text(value.type)}"

    made = ", ".join(f"%{i} {graph.values[i].name}: {_type_text(graph.values[i].type)}" for i in node.outputs)
    options = ", ".join(f"{key}={value}" for key, value in sorted(node.operation.options.items()))
    return f"{made} = {node.kind}({', '.join(map(operand, node.inputs))})" + (f" {{{options}}}" if options else "")


def _graph_text(graph: Graph) -> Iterator[str]:
    yield f"network {graph.name}"
    for index in graph.inputs:
        yield f"input %{index} {graph.values[index].name}: {_type_text(graph.values[index].type)}"
    for state in graph.states:
        held = _type_text(graph.values[state.read].type)
        yield f"state %{state.read} {state.name}: {held}, at the end %{state.written}"
    for node in graph.nodes:
        yield _node_text(graph, node)
    yield f"output {', '.join(f'%{i}' for i in graph.outputs)}"


def _graph_values(graph: Graph) -> dict[str, Any]:
    used = {*graph.inputs, *graph.outputs} | {i for s in graph.states for i in (s.read, s.written)}
    used |= {i for node in graph.nodes for i in (*node.inputs, *node.outputs) if i is not None}
    return {
        "network": graph.name,
        "sha256": graph.sha256,
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "states": [{"name": s.name, "read": s.read, "written": s.written} for s in graph.states],
        "values": {
            i: {
                "name": graph.values[i].name,
                "type": dataclasses.asdict(graph.values[i].type),
                "constant": graph.values[i].data is not None,
            }
            for i in sorted(used)
        },
        "nodes": [_node_values(node) for node in graph.nodes],
    }


def _node_values(node: Node) -> dict[str, Any]:
    options = dict(sorted(node.operation.options.items()))
    return {"name": node.name, "kind": node.kind, "inputs": node.inputs, "outputs": node.outputs, "options": options}


def _layer_text(layer: Layer) -> str:
    def tensor(t: Any) -> str:
        return f"{t.name}[{t.rows}x{t.columns}x{t.channels}]"

    return f"{type(layer).__name__}({', '.join(map(tensor, layer.inputs))}) -> {tensor(layer.output)}"


def _partition_text(partitioned: Partitioned) -> Iterator[str]:
    reasons = {operator.name: operator.reason for operator in partitioned.cpu_operators}
    for number, stage in enumerate(partitioned.stages):
        for node in stage.nodes:
            why = reasons.get(node.name)
            yield f"stage {number} cpu: {_node_text(partitioned.graph, node)}" + (f" # {why}" if why else "")
        if stage.region:
            for layer in stage.region.layers.layers:
                yield f"stage {number} {stage.region.layers.name}: {_layer_text(layer)}"


def _partition_values(partitioned: Partitioned) -> dict[str, Any]:
    reasons = {operator.name: operator.reason for operator in partitioned.cpu_operators}
    return {
        "stages": [
            {
                "cpu": [_node_values(node) | {"reason": reasons.get(node.name)} for node in stage.nodes],
                "region": stage.region
                and {
                    "name": stage.region.layers.name,
                    "inputs": stage.region.inputs,
                    "outputs": stage.region.outputs,
                    "layers": [_layer_values(layer) for layer in stage.region.layers.layers],
                },
            }
            for stage in partitioned.stages
        ]
    }


def _layer_values(layer: Layer) -> dict[str, Any]:
    tensors = [{"name": t.name, "size": [t.rows, t.columns, t.channels]} for t in (*layer.inputs, layer.output)]
    return {"name": layer.name, "kind": type(layer).__name__, "inputs": tensors[:-1], "output": tensors[-1]}


def _region_text(region: EmittedRegion, config: AcceleratorConfig) -> Iterator[str]:
    for life in region.plan.lifetimes:
        base = region.plan.locations[life.name].base
        yield (
            f"{region.region.name} tensor {life.name}: granules {base} to {base + life.granules - 1} of each bank, "
            f"layers {life.first} to {life.last}"
        )
    for values in _region_values(region, config)["layers"]:
        fields = ", ".join(f"{key}={value}" for key, value in values["descriptor"].items() if value)
        yield (
            f"{region.region.name} layer {values['name']}: {values['cycles']:,} cycles, "
            f"{values['weight_bytes']:,} bytes of weights, {fields}"
        )


def _region_values(region: EmittedRegion, config: AcceleratorConfig) -> dict[str, Any]:
    cycles = layer_cycles(config, region.descriptors)
    return {
        "name": region.region.name,
        "tensors": [
            {
                "name": life.name,
                "granule": region.plan.locations[life.name].base,
                "granules": life.granules,
                "layers": [life.first, life.last],
            }
            for life in region.plan.lifetimes
        ],
        "layers": [
            {
                "name": lowered.layer.name,
                "kind": type(lowered.layer).__name__,
                "cycles": count,
                "weight_bytes": int(lowered.weights.size),
                "descriptor": _fields(lowered.descriptor),
            }
            for lowered, count in zip(region.layers, cycles, strict=True)
        ],
    }


def _fields(descriptor: Any) -> Mapping[str, Any]:
    values = {field.name: getattr(descriptor, field.name) for field in dataclasses.fields(descriptor)}
    return {name: value.name if isinstance(value, enum.Enum) else value for name, value in values.items()}
