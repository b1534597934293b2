"""Faults of the past, put back one at a time: what the generator of networks must find.

    python -m tests.fuzz.faults                 each fault of the table is found by its seed, and not there without it
    python -m tests.fuzz.faults relu batch      these alone
    python -m tests.fuzz.faults --search 500    look for seeds again, from 0 on, and write the table (faults.json)
    python -m tests.fuzz --fault relu --profile "mixed:steps=conv,relu" --seed 3 --networks 1

A fault takes the place of the code that mended it, in the process that compiles and runs the networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.operation import Operation, TensorType

__all__ = ["FAULTS", "TABLE", "Fault", "put_back"]

TABLE = Path(__file__).with_name("faults.json")


@dataclass(frozen=True)
class Fault:
    """Something that was wrong once."""

    what: str
    profile: str
    """networks in which it shows"""
    put: Callable[[ExitStack], None]
    """makes it wrong again until the stack is left"""
    native: bool = False
    """it is in CPU code, which takes seconds to compile"""


def _real(values: NDArray | None, value_type: TensorType | None) -> NDArray | None:
    """float32 of a quantized operand; others as they are."""
    if values is None or value_type is None or value_type.quantization is None:
        return values
    q = value_type.quantization
    shape = [1] * values.ndim
    if not q.is_per_tensor:
        shape[q.axis] = -1
    scale, point = np.array(q.scales, np.float32).reshape(shape), np.array(q.zero_points).reshape(shape)
    return ((values.astype(np.int64) - point) * scale).astype(np.float32)


def _float_type(value_type: TensorType | None) -> TensorType | None:
    if value_type is None or value_type.quantization is None:
        return value_type
    return TensorType(value_type.shape, "float32")


def _in_float(kind: str) -> Callable[[ExitStack], None]:
    """An operator on int8 in float32, rounded to the nearest even integer at the end, as TVM's importer writes it."""

    def put(stack: ExitStack) -> None:
        from nnloom.arch.reference import REFERENCES

        exact = REFERENCES[kind]

        def reference(op: Operation, inputs: Sequence[NDArray | None]) -> Sequence[NDArray]:
            output = op.outputs[0]
            if output.dtype != "int8" or output.quantization is None or op.inputs[0].dtype != "int8":  # type: ignore[union-attr]
                return exact(op, inputs)
            real = [_real(values, t) for values, t in zip(inputs, op.inputs, strict=True)]
            result = real[0]
            if kind != "QUANTIZE":
                inputs_of_reals = tuple(_float_type(t) for t in op.inputs)
                types = dataclasses.replace(op, inputs=inputs_of_reals, outputs=(TensorType(output.shape, "float32"),))
                (result,) = exact(types, real)
            q = output.quantization
            return [np.clip(np.rint(result / np.float32(q.scale)) + q.zero_point, -128, 127).astype(np.int8)]

        stack.enter_context(patch.dict(REFERENCES, {kind: reference}))

    return put


def _first_of_batch_in_kernels(stack: ExitStack) -> None:
    from tvm import te

    from nnloom.compiler.cpu import emitters

    exact = emitters._padded

    def padded(*arguments: Any) -> Any:
        values = exact(*arguments)
        return te.compute(values.shape, lambda n, *place: values(0, *place), name="first")

    stack.enter_context(patch.object(emitters, "_padded", padded))


def _first_of_batch_in_references(stack: ExitStack) -> None:
    from nnloom.arch.reference import REFERENCES

    def first(exact: Callable) -> Callable:
        def reference(op: Operation, inputs: Sequence[NDArray]) -> Sequence[NDArray]:
            x, *rest = inputs
            return exact(op, [np.broadcast_to(x[:1], x.shape), *rest])

        return reference

    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
    stack.enter_context(patch.dict(REFERENCES, {kind: first(REFERENCES[kind]) for kind in kinds}))


def _batch_on_the_accelerator(stack: ExitStack) -> None:
    from nnloom.compiler.ops import convolution

    stack.enter_context(
        patch.object(convolution, "_image", lambda node, index=0: node.operation.inputs[index].shape)  # unchecked
    )


_PLAIN = "edges=INT8;odd=0;extreme=0"

FAULTS = {
    "batch in CPU code": Fault(
        "4: CPU code of convolutions and pools reads the first image only",
        f"mixed:steps=conv,average_pool,residual;batch=2;{_PLAIN}",
        _first_of_batch_in_kernels,
        native=True,
    ),
    "batch in references": Fault(
        "4: the runtime without TVM reads the first image only",
        f"mixed:steps=conv,average_pool,residual;batch=2;{_PLAIN}",
        _first_of_batch_in_references,
    ),
    "batch on the accelerator": Fault(
        "4: the accelerator takes a convolution of several images",
        f"mixed:steps=conv,dense,flatten,residual;batch=2;{_PLAIN}",
        _batch_on_the_accelerator,
    ),
    "softmax": Fault("5: SOFTMAX in float32", f"mixed:steps=dense,softmax;{_PLAIN}", _in_float("SOFTMAX")),
    "quantize": Fault("8: QUANTIZE of int8 in float32", f"mixed:steps=conv,requantize;{_PLAIN}", _in_float("QUANTIZE")),
    "relu": Fault("8: RELU in float32", f"mixed:steps=conv,relu;{_PLAIN}", _in_float("RELU")),
    "relu6": Fault("8: RELU6 in float32", f"mixed:steps=conv,relu;{_PLAIN}", _in_float("RELU6")),
    "leaky_relu": Fault("8: LEAKY_RELU in float32", f"mixed:steps=conv,leaky_relu;{_PLAIN}", _in_float("LEAKY_RELU")),
    "mean": Fault("8: MEAN in float32", f"mixed:steps=conv,mean;{_PLAIN}", _in_float("MEAN")),
    "mul": Fault("8: MUL in float32", f"mixed:steps=conv,mul;{_PLAIN}", _in_float("MUL")),
    "sub": Fault("8: SUB in float32", f"mixed:steps=conv,sub;{_PLAIN}", _in_float("SUB")),
    "resize_bilinear": Fault(
        "8: RESIZE_BILINEAR in float32", f"mixed:steps=conv,resize_bilinear;{_PLAIN}", _in_float("RESIZE_BILINEAR")
    ),
    "weights from an input": Fault(
        "8: a convolution with weights from an input in float32",
        # No other convolution: the reference does not know where its weights are from.
        f"wide:steps=conv_by_value,reshape,pad;{_PLAIN}",
        _in_float("CONV_2D"),
    ),
}  # fmt: skip


@contextmanager
def put_back(name: str | None) -> Iterator[None]:
    """Have a fault of `FAULTS`; None: none."""
    with ExitStack() as stack:
        if name:
            FAULTS[name].put(stack)
        yield


def find(name: str, seeds: Sequence[int]) -> tuple[int, str] | None:
    """The first of the seeds whose network shows a fault, and how; the network is right without the fault.

    Raises
    ------
    AssertionError
        If the network is wrong without the fault.
    """
    from .__main__ import choose
    from .generate import generate
    from .worker import Worker

    fault = FAULTS[name]
    with Worker(fault=name) as wrong, Worker() as right:
        for seed in seeds:
            _, built = generate(seed, fault.profile)
            how = choose(fault.profile, seed, native_share=float(fault.native))
            verdict = wrong.check(built, **how)
            if verdict.kind == "fault":
                without = right.check(built, **how)
                assert without.kind == "equal", f"{name}, seed {seed}, without the fault: {without.reason}"
                return seed, verdict.reason
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"default: all of {', '.join(FAULTS)}")
    parser.add_argument("--search", type=int, metavar="N", help="look at seeds 0 to N - 1, and write the table")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(FAULTS):
        parser.error(f"no fault {unknown.pop()!r} ({', '.join(FAULTS)})")
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    missed = 0
    for name in options.faults or FAULTS:
        fault = FAULTS[name]
        found = find(name, range(options.search) if options.search else [table[name]["seed"]])
        missed += found is None
        print(f"{name}: {'seed {}: {}'.format(*found) if found else 'not found'}", flush=True)
        if found and options.search:
            table[name] = {"what": fault.what, "profile": fault.profile, "seed": found[0], "found": found[1]}
            ordered = {key: table[key] for key in FAULTS if key in table}
            TABLE.write_text(json.dumps(ordered, indent=1) + "\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
