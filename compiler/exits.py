"""Exits of a network: outputs at several depths, of which a run computes one and what that needs.

Each exit is a network of its own, cut from the whole one: its regions are programs beside those of the whole network,
and use the same weights in weight memory. So an exit takes no cycle for what lies behind it, nor for other exits before
it, and nothing is loaded to change from one to another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnloom.arch.artifact import Exit
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError
from nnloom.boards import Board

from .cost import layer_cycles
from .emit import Emitted, emit
from .fit import Fitted, fit
from .host_plan import PlannedHost, plan_host
from .ir import Graph
from .simplify import needed_nodes
from .transfers import MemoryTiming, region_cycles

__all__ = ["FittedExit", "exit_figures", "fit_with_exits", "manifest_exits"]


@dataclass(frozen=True)
class FittedExit:
    """What leads to an output, with the programs of its regions."""

    name: str
    fitted: Fitted
    host: PlannedHost


def fit_with_exits(
    graph: Graph, config: AcceleratorConfig, names: Sequence[str], memory: MemoryTiming | None
) -> tuple[Fitted, tuple[FittedExit, ...]]:
    """The whole network and its exits, in one set of memory images; exits in the order of their depth.

    Raises
    ------
    ConfigError
        If a name is no output, or the network has state.
    CapacityError
        As of `emit`.
    """
    names = list(dict.fromkeys(names))
    outputs = {info.name: value for info, value in zip(graph.output_infos(), graph.outputs, strict=True)}
    for name in names:
        if name not in outputs:
            raise ConfigError(f"{graph.name}: no output named {name!r} to leave at (outputs: {', '.join(outputs)})")
    if names and graph.states:
        raise ConfigError(f"{graph.name}: a network with state has no exits, since each run advances all of the state")
    main = fit(graph, config, memory=memory, turn=not names)
    if not names:
        return main, ()
    networks = [main, *(fit(_up_to(graph, outputs[name]), config, memory=memory, turn=False) for name in names)]
    emitted = emit(
        config,
        [item for fitted in networks for item in fitted.partitioned.graphs],
        memory=memory,
        in_strips=any(r.region.external for fitted in networks for r in fitted.emitted.regions),
        shared=True,
    )
    left = list(emitted.regions)
    split = []
    for fitted in networks:
        count = len(fitted.partitioned.graphs)
        split.append(dataclasses.replace(fitted, emitted=dataclasses.replace(emitted, regions=tuple(left[:count]))))
        del left[:count]
    exits = [FittedExit(n, fitted, plan_host(fitted.partitioned)) for n, fitted in zip(names, split[1:], strict=True)]
    return split[0], tuple(sorted(exits, key=_depth))


def _up_to(graph: Graph, output: int) -> Graph:
    """The network with one output, and nothing that it does not need; its inputs are the same."""
    return dataclasses.replace(graph, outputs=(output,), nodes=tuple(needed_nodes((output,), list(graph.nodes))))


def _depth(item: FittedExit) -> int:
    """Multiply-accumulates up to an exit."""
    return item.fitted.engine_macs + item.fitted.cpu_macs


def _cycles(config: AcceleratorConfig, emitted: Emitted) -> int:
    return sum(sum(layer_cycles(config, region.descriptors)) for region in emitted.regions)


def manifest_exits(exits: Sequence[FittedExit], constants: int) -> tuple[Exit, ...]:
    """What the manifest says of exits, whose constants follow the `constants` of the whole network."""
    result = []
    for item in exits:
        regions = tuple(region.region for region in item.fitted.emitted.regions)
        result.append(Exit(name=item.name, regions=regions, host=item.host.plan, first_constant=constants))
        constants += len(item.host.constants)
    return tuple(result)


def exit_figures(board: Board, config: AcceleratorConfig, item: FittedExit) -> dict[str, Any]:
    """What an exit costs: `cycles` of the engine, with those of the transfers where parts come from external memory,
    and `link_bytes` that cross the host link, with those of parts that come over it."""
    emitted = item.fitted.emitted
    lists = region_cycles(board, config, emitted) if emitted.parts else {}
    cycles = sum(made.total for made in lists.values()) if lists else _cycles(config, emitted)
    loaded = 0
    if not lists:
        loaded = emitted.loaded_bytes(config)
    return {"name": item.name, "cycles": cycles, "link_bytes": item.fitted.link_bytes + loaded}
