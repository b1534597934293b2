"""One network, every way in which nnloom runs it, and LiteRT's answers."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import NnloomError
from nnloom.boards import get
from nnloom.runtime import InferenceSession
from tests.artifacts import SMALL
from tests.engines import compact, without_overlap

from .generate import Built

__all__ = ["CONFIGS", "RTL_CONFIGS", "STRIP_CONFIGS", "Checker", "Judge", "Refused", "Verdict", "test_inputs"]

_SMALL = dict(lanes=8, taps=5, requant_units=2)

CONFIGS = {
    "16x9": AcceleratorConfig(),
    "2x16x9": get("ulx3s-85f").config,
    "16x9 with row triples": AcceleratorConfig(row_triples=True, tables=1),
    "2x16x9 with row triples": AcceleratorConfig(pixels=2, row_triples=True, tables=2),
    "2x16x9 with row triples and product registers": AcceleratorConfig(
        pixels=2, row_triples=True, product_registers=True, field_bits=14, elementwise_mul=True, tables=8
    ),
    "2x32x11": AcceleratorConfig(pixels=2, lanes=32, taps=11, requant_units=8, row_triples=True, elementwise_mul=True),
    "64x9": AcceleratorConfig(lanes=64, taps=9, requant_units=16, activation_bytes=1 << 18),
    "8x5": SMALL,
    "8x5 with larger memories": AcceleratorConfig(**_SMALL, weight_words=8192),
    "8x5 with tiny memories": AcceleratorConfig(**_SMALL, activation_bytes=2048, weight_words=80, program_words=64),
    "2x8x5": AcceleratorConfig(pixels=2, lanes=8, taps=5, requant_units=4, weight_words=8192, tables=8),
    "8x3 without pools and sums": AcceleratorConfig(
        lanes=8, taps=3, requant_units=8, max_pool=False, elementwise_add=False, weight_words=8192
    ),
    "8x3 for convolutions": AcceleratorConfig(
        lanes=8, taps=3, depthwise=False, max_pool=False, elementwise_add=False, requant_units=8, tables=2
    ),
    "4x3 without overlap": without_overlap(weight_words=16384, field_bits=14, elementwise_mul=True, tables=4),
    "compact": compact(weight_words=16384, field_bits=14),
    "iCEBreaker": get("icebreaker").config,
    "Tang Nano 20K": get("tang-nano-20k").config,
}
"""The table of accelerators: each network is compiled for one of them, a few for several."""

STRIP_CONFIGS = {
    "8x5 in strips": AcceleratorConfig(
        **_SMALL, activation_bytes=8192, weight_words=160, program_words=256, elementwise_mul=True, tables=4
    ),
    "2x16x9 in strips": AcceleratorConfig(
        pixels=2, row_triples=True, elementwise_mul=True, tables=8, activation_bytes=16384, weight_words=256
    ),
}
"""With so little memory that networks run in strips, for the board with external memory."""

RTL_CONFIGS = ("8x5", "compact", "2x16x9 with row triples and product registers")
"""Those that are simulated too; other tests simulate the same, so that they are built once."""

_NOT_FOR_USERS = re.compile(
    r"Traceback|R\.Tensor|I\.ir_module|T\.prim_func|tvm\.|TVMError|0x[0-9a-f]{6}|is g\+\+ installed"
)
"""What no message may hold"""


class Refused(Exception):
    """LiteRT does not take the file."""


@dataclass
class Verdict:
    """What became of a network."""

    kind: Literal["equal", "discarded", "refused", "fault"]
    reason: str = ""
    """why it was discarded or refused; what is wrong"""
    values: int = 0
    """outputs compared with LiteRT's"""
    runs: dict[str, int] = field(default_factory=dict)
    """inferences by device"""
    accelerated: int = 0
    """layers on the accelerator"""
    notes: list[str] = field(default_factory=list)
    """ways that were refused although the network was compiled"""


class Judge:
    """LiteRT with its reference kernels.

    Raises
    ------
    Refused
        If it does not take the file.
    """

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        def interpreter(kernels: OpResolverType) -> Interpreter:
            made = Interpreter(
                model_content=data,
                experimental_op_resolver_type=kernels,
                experimental_preserve_all_tensors=True,
                num_threads=1,
            )
            made.allocate_tensors()
            return made

        try:
            try:
                self._interpreter = interpreter(OpResolverType.BUILTIN_REF)
            except ValueError as error:
                if "Didn't find op for builtin opcode" not in str(error):
                    raise
                # A version that only the usual kernels have.
                self._interpreter = interpreter(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        except (RuntimeError, ValueError) as error:
            raise Refused(str(error)) from error
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()

    def run(self, inputs: Sequence[NDArray]) -> list[NDArray]:
        """Its outputs.

        Raises
        ------
        Refused
            If it fails.
        """
        try:
            for detail, value in zip(self.inputs, inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], value)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise Refused(str(error)) from error
        return [np.array(self._interpreter.get_tensor(d["index"])) for d in self.outputs]


def test_inputs(details: Sequence[dict], rng: np.random.Generator, count: int) -> list[list[NDArray]]:
    """Sets of inputs: random, lowest, highest, zero points, further random ones."""

    def one(detail: dict, how: str) -> NDArray:
        shape, dtype = tuple(detail["shape"]), np.dtype(detail["dtype"])
        if dtype.kind == "f":
            reach = np.float32(10.0 ** rng.integers(-3, 4))
            value = {"low": -reach, "high": reach, "zero": np.float32(0)}.get(how)
            return np.full(shape, value) if value is not None else rng.normal(0, reach, shape).astype(np.float32)
        limits = np.iinfo(dtype)
        point = int(detail["quantization"][1])
        value = {"low": limits.min, "high": limits.max, "zero": min(max(point, limits.min), limits.max)}.get(how)
        if value is not None:
            return np.full(shape, value, dtype)
        if how == "near":
            return np.clip(rng.normal(point, 12, shape).round(), limits.min, limits.max).astype(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)

    kinds = ["random", *rng.permutation(["low", "high", "zero", "near"]), *["random"] * count]
    return [[np.asarray(one(detail, str(how))) for detail in details] for how in kinds[:count]]


test_inputs.__test__ = False  # type: ignore[attr-defined]


class _Fault(Exception):
    pass


class Checker:
    """Compiles networks into `folder`, always the same directory, and compares what they answer.

    Parameters
    ----------
    stage
        Called with what comes next, for whoever has to explain the end of the process.
    fresh
        A directory of its own for each network: for compilers that cannot use one again.
    """

    def __init__(
        self, folder: Path, *, stage: Callable[[str], None] = lambda _: None, fresh: bool = False, quiet: bool = True
    ) -> None:
        self._folder = folder
        self._stage = stage
        self._fresh = fresh
        self._quiet = quiet
        self._count = 0
        self._sessions: deque[InferenceSession] = deque(maxlen=2)
        """kept, so that the libraries of networks before are still loaded when the next one takes their folder"""

    def check(
        self,
        built: Built,
        *,
        configs: Sequence[str],
        rtl: bool = False,
        native: bool = True,
        seed: int = 0,
        inputs: int = 3,
    ) -> Verdict:
        """Compare a network's answers.

        Parameters
        ----------
        configs
            Names of `CONFIGS` or `STRIP_CONFIGS`.
        rtl
            Simulate it as well.
        native
            Compile CPU code, which is nearly all of the time; without, only the golden model with the runtime that
            needs no TVM is compared.
        seed
            Of the inputs.
        """
        verdict = Verdict("equal")
        try:
            self._stage("LiteRT")
            judge = Judge(built.reference)
            cases = test_inputs(judge.inputs, np.random.default_rng([seed, 7]), inputs)
            answers = [judge.run(case) for case in cases]
        except Refused as error:
            return Verdict("discarded", _pattern(str(error)[-200:]))
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "network.tflite"
        file.write_bytes(built.data)
        refused: list[str] = []
        for name in configs:
            self._stage(f"compile for {name}")
            self._count += 1
            output = self._folder / (f"artifact{self._count}" if self._fresh else "artifact")
            try:
                with self._silence(f"compile for {name}"):
                    layers = _compile(file, output, name, native)
                    verdict.accelerated = max(verdict.accelerated, layers)
            except NnloomError as error:
                reason = _message(error, file)
                if reason.startswith("!"):
                    return Verdict("fault", f"compile for {name}: {reason[1:]}")
                refused.append(reason)
                continue
            except _Fault as error:
                return Verdict("fault", str(error))
            except Exception:
                return Verdict("fault", f"compile for {name}: {_where()}")
            devices = ["cpu", "model", *(["sim"] if rtl and name in RTL_CONFIGS else [])] if native else []
            try:
                for device in [*devices, "portable"]:
                    self._stage(f"{device}, {name}")
                    with self._silence(f"{device}, {name}"):
                        self._session(output, device, judge, cases, answers, verdict)
            except _Fault as error:
                return Verdict("fault", f"{name}: {error}")
            except Exception:
                return Verdict("fault", f"{name}: {_where()}")
        if len(refused) == len(configs):
            return Verdict("refused", refused[0])
        verdict.notes += refused
        return verdict

    def _session(
        self,
        path: Path,
        device: str,
        judge: Judge,
        cases: list[list[NDArray]],
        answers: list[list[NDArray]],
        verdict: Verdict,
    ) -> None:
        native = device != "portable"
        with InferenceSession(path, device if native else "cpu", native=native) as session:
            self._sessions.append(session)
            infos, results = session.get_inputs(), session.get_outputs()
            for kind, details, given in (("input", judge.inputs, infos), ("output", judge.outputs, results)):
                _compare_interface(f"{device}: {kind}", details, given)
            kept: list[list[NDArray]] = []
            for case in cases:
                given_arrays = [value.copy() for value in case]
                named = {info.name: value for info, value in zip(infos, given_arrays, strict=True)}
                if len(named) < len(case):
                    raise _Fault(f"{device}: inputs share a name: {[info.name for info in infos]}")
                outputs = session.run(named)
                if len(outputs) != len(results):
                    raise _Fault(f"{device}: outputs share a name: {[info.name for info in results]}")
                for value, before in zip(given_arrays, case, strict=True):
                    if value.tobytes() != before.tobytes():
                        raise _Fault(f"{device}: an input array was changed")
                    value.reshape(-1).view(np.uint8)[...] = 0x55  # what the caller does with its arrays changes nothing
                kept.append([outputs[info.name] for info in results])
                _compare(device, len(kept) - 1, kept[-1], answers[len(kept) - 1])
            for i, (values, want) in enumerate(zip(kept, answers, strict=True)):
                _compare(f"{device}, after later calls", i, values, want)
        for i, (values, want) in enumerate(zip(kept, answers, strict=True)):
            _compare(f"{device}, after the session", i, values, want)
            verdict.values += sum(value.size for value in want)
        verdict.runs[device] = verdict.runs.get(device, 0) + len(cases)

    @contextmanager
    def _silence(self, what: str) -> Iterator[None]:
        """Nothing may appear on stderr."""
        if not self._quiet:
            yield
            return
        sys.stderr.flush()
        with tempfile.TemporaryFile() as caught:
            saved = os.dup(2)
            os.dup2(caught.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(saved, 2)
                os.close(saved)
            caught.seek(0)
            text = caught.read().decode(errors="replace").strip()
        if text:
            raise _Fault(f"{what}: on stderr: {text[:300]}")


def _compile(file: Path, output: Path, name: str, native: bool) -> int:
    """Compile, with or without CPU code; returns the number of layers on the accelerator."""
    from nnloom.compiler import compile as compile_model

    board = "ulx3s-85f-sdram" if name in STRIP_CONFIGS else "ulx3s-85f"
    config = {**CONFIGS, **STRIP_CONFIGS}[name]
    with nullcontext() if native else patch("nnloom.compiler.cpu.build_cpu", _no_code):
        report = compile_model(file, output=output, board=board, config=config).report
    return sum(layer.get("target") == "accelerator" for layer in report["layers"])


def _no_code(*arguments: object) -> None:
    next(path for path in arguments if isinstance(path, Path)).write_bytes(b"none")


def _compare_interface(what: str, details: Sequence[dict], infos: Sequence[TensorInfo]) -> None:
    if len(details) != len(infos):
        raise _Fault(f"{what}s: {len(infos)}, in the file {len(details)}")
    for i, (detail, info) in enumerate(zip(details, infos, strict=True)):
        shape, dtype = tuple(int(v) for v in detail["shape"]), np.dtype(detail["dtype"]).name
        if (shape, dtype) != (info.shape, info.dtype):
            raise _Fault(f"{what} {i} is {info.dtype} {list(info.shape)}, in the file {dtype} {list(shape)}")
        scale, point = detail["quantization"]
        if dtype.startswith(("int8", "uint8")) and (np.float32(info.scale), info.zero_point) != (
            np.float32(scale),
            point,
        ):
            raise _Fault(f"{what} {i}: scale {info.scale}, zero point {info.zero_point}; in the file {scale}, {point}")


def _compare(what: str, case: int, got: Sequence[NDArray], want: Sequence[NDArray]) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.dtype != b.dtype or a.shape != b.shape:
            raise _Fault(f"{what}: output {i} is {a.dtype} {list(a.shape)}, LiteRT's {b.dtype} {list(b.shape)}")
        different = a != b
        if a.dtype.kind == "f":
            different &= ~(np.isnan(a) & np.isnan(b))
        if different.any():
            most = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
            raise _Fault(
                f"{what}: output {i} of input {case}: {int(different.sum())} of {a.size} differ, by up to {most:g}"
            )


def _pattern(text: str) -> str:
    """A message without its numbers, and without the list of what stays on the CPU."""
    text = re.sub(r"(nothing can run on the accelerator) \(.*", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "N", text)).strip()[:160]


def _message(error: NnloomError, file: Path) -> str:
    """The pattern of a refusal; with a leading ! if it is none to show to a user."""
    text = str(error)
    if "\n" in text or len(text) > 600 or not text.strip() or _NOT_FOR_USERS.search(text.replace(str(file), "")):
        return f"!{type(error).__name__}: {text[:300]!r}"
    return _pattern(text.replace(str(file), "FILE"))


def _where() -> str:
    """The exception being handled, with the last places of the project that it passed."""
    kind, error, trace = sys.exc_info()
    assert kind is not None
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(trace)][-4:]
    return f"{kind.__name__}: {str(error).strip()[:200]!r} ({' > '.join(places)})"
