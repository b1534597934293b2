"""LiteRT with its reference kernels: the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class LiteRtReference:
    """An interpreter with BUILTIN_REF kernels that keeps every tensor."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._interpreter = Interpreter(
            model_path=str(path),
            experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
            experimental_preserve_all_tensors=True,
            num_threads=1,
        )
        self._interpreter.allocate_tensors()
        self._details = self._interpreter.get_tensor_details()

    def run(self, *inputs: NDArray) -> list[NDArray]:
        """Outputs of the network."""
        for detail, value in zip(self._interpreter.get_input_details(), inputs, strict=True):
            self._interpreter.set_tensor(detail["index"], value)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(d["index"]).copy() for d in self._interpreter.get_output_details()]

    def candidates(self, elements: int, scale: float, zero_point: int) -> list[NDArray[np.int8]]:
        """Tensors of the last run with this size and quantization (usually one)."""
        found = []
        for detail in self._details:
            if detail["dtype"] is not np.int8 or int(np.prod(detail["shape"])) != elements:
                continue
            if detail["quantization"] == (np.float32(scale), zero_point):
                found.append(self._interpreter.get_tensor(detail["index"]).copy())
        return found
