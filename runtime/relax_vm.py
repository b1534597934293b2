"""Runs the CPU library of an artifact in TVM's Relax VM, with accelerator regions as callbacks.

Of TVM only its runtime library and its foreign function interface (`tvm_ffi`) are loaded: the package `tvm` brings the
compiler, which takes a second and 200 MB.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.cpu_target import get_cpu_target, missing_features
from nnloom.arch.errors import ArtifactError, ToolMissingError
from nnloom.arch.files import Scratch, cache_directory
from nnloom.arch.interrupts import pass_interrupts

__all__ = ["Accelerator", "RelaxProgram"]

Accelerator = Callable[[int, list[NDArray[np.int8]]], list[NDArray[np.int8]]]
"""Runs a region: (index, inputs) -> outputs"""
Step = Callable[[int, list[NDArray]], list[NDArray]]
"""Computes a step of the artifact's `HostPlan` that has no code in the library: (index, operands) -> outputs"""


@dataclass
class _Call:
    """One run of a program: what it calls, and what that raised."""

    accelerator: Accelerator | None
    step: Step | None
    error: BaseException | None = None


_current = threading.local()
"""`call`: the `_Call` that is running in this thread: packed functions are global to the process."""
_registered: set[str] = set()
_lock = threading.Lock()


def _register(kind: Literal["accelerator", "step"], index: int, outputs: int) -> None:
    """Have `nnloom.KIND.INDEX.OUTPUTS` call what the running program has for it; the last arguments are its outputs."""
    import tvm_ffi

    name = f"nnloom.{kind}.{index}.{outputs}"

    def run(*arguments: Any) -> None:
        call = _current.call
        first_output = len(arguments) - outputs
        inputs = [np.array(np.from_dlpack(argument)) for argument in arguments[:first_output]]
        try:
            results = getattr(call, kind)(index, inputs)
        except BaseException as error:
            # Raised by `run`: what passes through TVM must be a plain text.
            call.error = error
            raise RuntimeError("an operator outside of the library failed") from None
        for target, result in zip(arguments[first_output:], results, strict=True):
            np.copyto(np.from_dlpack(target), result, casting="no")

    with _lock:
        if name not in _registered:
            tvm_ffi.register_global_func(name, run, override=True)
            _registered.add(name)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array as TVM wants it: aligned to 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _executable_folder() -> Path | None:
    """A folder for temporary files whose content may be executed; None: the system's own."""
    folder = Path(tempfile.gettempdir())
    if hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        return cache_directory()
    return None


@contextlib.contextmanager
def _private_copy(library: Path, sha256: str | None) -> Iterator[Path]:
    """A copy of a library under a path of its own, while it is loaded.

    The dynamic linker knows a library by its path: from the artifact's own, it would go on with the code that it
    loaded before the artifact was compiled again. What is loaded is what was checked, too.
    """
    data = library.read_bytes()
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ArtifactError(f"{library}: changed while it was loaded; try again")
    # What is mapped stays when the folder goes; only Windows keeps the file.
    with Scratch("nnloom-cpu", _executable_folder()) as scratch:
        copy = scratch.path / library.name
        copy.write_bytes(data)
        yield copy


CPU, POOLED_ALLOCATOR = 1, 2
"""What `vm_initialization` takes: DLPack's number of the CPU, and `tvm.relax.VirtualMachine.POOLED_ALLOCATOR`"""


def _load_runtime() -> Any:
    """The module `tvm_ffi`, with TVM's runtime library in the process (ImportError, OSError or RuntimeError)."""
    spec = find_spec("tvm")
    if spec is None or spec.origin is None:
        raise ImportError("no package tvm")
    import tvm_ffi
    from tvm_ffi.libinfo import load_lib_ctypes

    if "tvm" not in sys.modules:  # it has loaded the library itself
        folder = Path(spec.origin).parent / "lib"
        load_lib_ctypes("tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[folder])
    return tvm_ffi


class RelaxProgram:
    """A loaded library.

    Parameters
    ----------
    library
        `cpu.so` of an artifact.
    region_outputs
        Number of outputs of each region.
    steps
        Number of outputs of each step of the host's plan that the library calls back for, by its index.
    step
        Computes such a step.
    cpu
        Name of the `CpuTarget` of the library.
    sha256
        Hash that the library must have, if given.

    Raises
    ------
    ToolMissingError
        If TVM is not installed.
    ArtifactError
        If the library cannot be loaded, or is for another processor.
    """

    def __init__(
        self,
        library: Path,
        region_outputs: Sequence[int],
        cpu: str,
        *,
        sha256: str | None = None,
        steps: Mapping[int, int] | None = None,
        step: Step | None = None,
    ) -> None:
        try:
            tvm_ffi = _load_runtime()
        except (ImportError, OSError, RuntimeError) as error:
            raise ToolMissingError("TVM is not installed; pip install 'nnloom[compiler]'") from error
        pass_interrupts()
        missing = missing_features(get_cpu_target(cpu))
        if missing:
            raise ArtifactError(
                f"{library}: its code is for {cpu}, which needs {', '.join(missing)}; compile the model on this "
                "computer or with another --cpu"
            )
        self._tvm_ffi = tvm_ffi
        self._library = library
        self._step = step
        self._lock = threading.Lock()
        self._staged: list[tuple[NDArray, Any]] = []
        for index, outputs in enumerate(region_outputs):
            _register("accelerator", index, outputs)
        for index, outputs in (steps or {}).items():
            _register("step", index, outputs)
        try:
            with _private_copy(library, sha256) as copy:
                self._machine = tvm_ffi.load_module(str(copy))["vm_load_executable"]()
            self._machine["vm_initialization"](CPU, 0, POOLED_ALLOCATOR)
            self._whole, self._partitioned = self._machine["main_cpu"], self._machine["main"]
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise ArtifactError(f"{library}: cannot be loaded ({line[0][:200]}); compile the model again") from error

    def _stage(self, inputs: Sequence[NDArray]) -> list[Any]:
        """Copy inputs into tensors that stay: to make one takes longer than a small network."""
        kinds = [(value.shape, value.dtype) for value in inputs]
        if kinds != [(array.shape, array.dtype) for array, _ in self._staged]:
            arrays = [_aligned(shape, dtype) for shape, dtype in kinds]
            self._staged = [(array, self._tvm_ffi.from_dlpack(array)) for array in arrays]
        for (array, _), value in zip(self._staged, inputs, strict=True):
            np.copyto(array, value)
        return [tensor for _, tensor in self._staged]

    def run(self, sources: Sequence[NDArray], accelerator: Accelerator | None = None) -> list[NDArray]:
        """Run the network on its inputs and states: on the CPU alone, or with regions on `accelerator`.

        Returns the outputs and the new states, which are the caller's.
        """
        with self._lock:  # the virtual machine runs one call at a time
            arguments = self._stage(sources)
            call = _current.call = _Call(accelerator, self._step)
            try:
                result = (self._partitioned if accelerator else self._whole)(*arguments)
            except Exception as error:
                # TVM passes errors on by the name of their class, which it only knows for Python's own.
                if call.error is not None:
                    raise call.error from None
                if not isinstance(error, RuntimeError | ValueError | TypeError | IndexError):
                    raise
                lines = str(error).strip().splitlines() or [type(error).__name__]
                raise ArtifactError(
                    f"{self._library}: does not fit its manifest ({lines[-1][:200]}); compile the model again"
                ) from error
            finally:
                del _current.call
            # Copied before the next call: an output that is an input, or a reshape of it, lives in the staged tensor.
            tensors = [result] if hasattr(result, "__dlpack__") else result
            return [np.array(np.from_dlpack(tensor), order="C") for tensor in tensors]
