"""Small artifacts without TVM: one region of random layers whose tensors are the network's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnloom.arch.artifact import REPORT_FILE, HostPlan, HostStep, Manifest, TensorInfo, write_artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.report import write_report
from nnloom.compiler.cost import layer_cycles
from nnloom.compiler.emit import Emitted, emit
from nnloom.compiler.graph import LayerGraph, Tensor
from nnloom.compiler.transfers import MemoryTiming

SMALL = AcceleratorConfig(
    lanes=8, taps=5, requant_units=2, activation_bytes=8192, weight_words=256, elementwise_mul=True, tables=1
)
"""Of most tests that need some engine: its simulators are built once"""


def tensor_info(tensor: Tensor) -> TensorInfo:
    shape = (1, tensor.rows, tensor.columns, tensor.channels)
    return TensorInfo(name=tensor.name, shape=shape, dtype="int8", scale=tensor.scale, zero_point=tensor.zero_point)


def make_artifact(
    path: Path,
    graph: LayerGraph,
    config: AcceleratorConfig = SMALL,
    *,
    memory: MemoryTiming | None = None,
) -> Emitted:
    """Write an artifact of `graph` into `path` (created); memory: see `emit`."""
    emitted = emit(config, [graph], memory=memory)
    (item,) = emitted.regions
    manifest = Manifest(
        model="random",
        model_sha256="0" * 64,
        board="ulx3s-85f",
        cpu="x86-64",
        config=config,
        inputs=tuple(tensor_info(t) for t in graph.inputs),
        outputs=tuple(tensor_info(t) for t in graph.outputs),
        regions=(item.region,),
        host=HostPlan(
            steps=(HostStep(inputs=tuple(range(len(graph.inputs))), region=0),),
            outputs=tuple(range(len(graph.inputs), len(graph.inputs) + len(graph.outputs))),
        ),
    )
    path.mkdir(parents=True, exist_ok=True)
    estimate = layer_cycles(config, item.descriptors)
    layers = [
        {
            "name": layer.name,
            "op": type(layer.layer).__name__,
            "target": "accelerator",
            "region": item.region.name,
            "macs": layer.macs,
            "cycles_estimated": cycles,
            "cycles_measured": None,
        }
        for layer, cycles in zip(item.layers, estimate, strict=True)
    ]
    report = {
        "model": manifest.model,
        "model_sha256": manifest.model_sha256,
        "board": manifest.board,
        "config": config.to_dict(),
        "config_hash": f"{config.hash:#010x}",
        "config_source": "given",
        "config_reason": "a test's",
        "resources_estimated": None,
        "states": [],
        "layers": layers,
        "macs": graph.macs,
        "mac_units": config.multipliers,
        "cycles": sum(estimate),
        "cycles_estimated": sum(estimate),
        "cycles_measured": None,
        "utilisation": 0.5,
        "memory": {
            "weights_bytes": int(emitted.weights.size),
            "weights_available": config.weight_words * config.weight_word_bytes,
            "program_bytes": 4 * len(emitted.program),
            "program_available": 4 * config.program_words,
            "parts": emitted.parts,
            "bytes_loaded_per_inference": 0,
            "activations_peak_bytes": 0,
            "activations_available": config.activation_bytes,
            "planner": [],
            "tensors": [],
        },
    }
    write_report(path / REPORT_FILE, report)
    write_artifact(path, manifest, emitted.program, emitted.weights, emitted.tables)
    return emitted


def random_network_inputs(rng: np.random.Generator, graph: LayerGraph) -> dict[str, np.ndarray]:
    return {t.name: rng.integers(-128, 128, (1, t.rows, t.columns, t.channels), np.int8) for t in graph.inputs}
