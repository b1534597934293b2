"""Functions of one quantized tensor as tables, which ONNX Runtime fills: with its arithmetic, whatever that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.dtypes import UINT8

from .plan import run_options

if TYPE_CHECKING:
    from .reader import Reader

__all__ = ["Chain", "fill"]

VALUES = 256


@dataclass(frozen=True)
class Chain:
    """A dequantized tensor, and operators on it one after the other."""

    source: str
    """the quantized tensor"""
    dtype: str
    """of the file"""
    scale: np.float32
    zero_point: int
    """of the file"""
    nodes: tuple[Any, ...] = ()
    """operators on one operand and constants of one value; the first reads `dequantized`"""
    dequantized: str = ""
    """the name of the tensor that DequantizeLinear makes"""


def fill(reader: Reader, chain: Chain, out: tuple[str, np.float32, int] | None) -> NDArray:
    """The results of a chain for all 256 values, from the least: real, or quantized by (type, scale, zero point).

    Those that are quantized to uint8 are shifted to int8.
    """
    from onnx import helper, numpy_helper

    values = np.arange(VALUES) + (0 if chain.dtype == UINT8 else -128)
    source, last = chain.dequantized, chain.nodes[-1].output[0]
    constants = {name for node in chain.nodes for name in node.input} & reader.v.constants.keys()
    initializers = [numpy_helper.from_array(reader.v.constants[name], name) for name in constants]
    nodes = list(chain.nodes)
    inputs, result = _quantization(nodes, initializers, "chain", chain.dtype, chain.scale, chain.zero_point)
    nodes.insert(0, helper.make_node("DequantizeLinear", ["table_input", *inputs], [source]))
    if out is not None:
        inputs, result = _quantization(nodes, initializers, "result", *out)
        nodes.append(helper.make_node("QuantizeLinear", [last, *inputs], [result]))
        last = result
    answers = _run(reader.plan.planned, nodes, initializers, values.astype(chain.dtype), last)
    if answers.dtype == np.uint8:
        answers = (answers.astype(np.int16) - 128).astype(np.int8)
    return answers.reshape(VALUES)


def _quantization(
    nodes: list[Any], initializers: list[Any], name: str, dtype: str, scale: np.float32, zero_point: int
) -> tuple[list[str], str]:
    """Names of constants for a scale and a zero point, and one for a result."""
    from onnx import numpy_helper

    names = [f"table_{name}_scale", f"table_{name}_zero_point"]
    initializers.append(numpy_helper.from_array(np.array(scale, np.float32), names[0]))
    initializers.append(numpy_helper.from_array(np.array(zero_point, dtype), names[1]))
    return names, f"table_{name}"


def run_nodes(
    model: Any, nodes: list[Any], initializers: list[Any], feeds: dict[str, NDArray], outputs: list[str]
) -> list[NDArray]:
    """Have ONNX Runtime run nodes of a planned network as they are."""
    import onnxruntime as ort
    from onnx import helper

    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(d.dtype), d.shape) for n, d in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        initializers,
    )
    table = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = run_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(table.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, feeds)


def _run(model: Any, nodes: list[Any], initializers: list[Any], values: NDArray, output: str) -> NDArray:
    return run_nodes(model, nodes, initializers, {"table_input": values}, [output])[0]
