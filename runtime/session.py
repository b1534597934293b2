"""Inference sessions: one interface, any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import CPU_FILE, Artifact, TensorInfo
from nnloom.arch.errors import ArtifactError, ConfigError, InputError
from nnloom.arch.numerics import quantize

from .devices.base import Device
from .relax_vm import RelaxProgram

__all__ = ["DEVICES", "InferenceSession"]

DEVICES = ("cpu", "model", "sim", "serial:PORT[?baud=N]")


def _open_device(
    name: str, simulator: str, waves: Path | None, progress: Callable[[str], None] | None
) -> Device | None:
    if name == "cpu":
        return None
    if name == "model":
        from .devices.model import ModelDevice

        return ModelDevice()
    if name == "sim":
        from .devices.rtl import RtlDevice

        return RtlDevice(simulator=simulator, waves=waves, progress=progress)
    if name.startswith("serial:"):
        from .devices.serial import open_serial

        port, _, options = name.removeprefix("serial:").partition("?")
        key, _, value = options.partition("=")
        if options and (key != "baud" or not value.isdigit()):
            raise ConfigError(f"device option {options!r} is not baud=NUMBER")
        return open_serial(port, int(value) if options else 1_000_000)
    raise ConfigError(f"unknown device {name!r} (devices: {', '.join(DEVICES)})")


class InferenceSession:
    """A network ready to run.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`.
    device
        "cpu": the whole network in TVM code. "model": accelerator regions in the golden model. "sim": in RTL
        simulation. "serial:PORT": on a board. All give the same bits. Also an unloaded `Device`; the session
        loads and closes it.
    simulator, waves, progress
        For device "sim": the simulator, a waveform file, and a callback for the phases of its build.

    Raises
    ------
    ArtifactError, ConfigError, DeviceError, ToolMissingError
    """

    def __init__(
        self,
        artifact: str | Path,
        device: str | Device = "cpu",
        *,
        simulator: str = "verilator",
        waves: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._artifact = Artifact.load(artifact)
        self.device = device if isinstance(device, str) else type(device).__name__
        self.last_cycles: int | None = None
        """Accelerator cycles of the last run, None if the device does not count."""
        manifest = self._artifact.manifest
        library = self._artifact.path / CPU_FILE
        if CPU_FILE not in manifest.files:
            raise ArtifactError(f"{artifact}: holds no CPU code; compile the model again")
        self._program = RelaxProgram(library, [len(region.outputs) for region in manifest.regions])
        self._device = _open_device(device, simulator, waves, progress) if isinstance(device, str) else device
        if self._device is not None:
            try:
                self._device.load(self._artifact)
            except BaseException:
                self.close()
                raise

    @property
    def artifact(self) -> Artifact:
        """The loaded artifact."""
        return self._artifact

    @property
    def accelerator(self) -> Device | None:
        """The device that runs the regions, None for the CPU."""
        return self._device

    def get_inputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape, dtype and quantization of each input."""
        return self._artifact.manifest.inputs

    def get_outputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape, dtype and quantization of each output."""
        return self._artifact.manifest.outputs

    def run(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> dict[str, NDArray]:
        """Run the network once.

        Parameters
        ----------
        inputs
            An array for each input, by name, of the input's shape and dtype; or one array if there is one
            input. A leading dimension of 1 may be left out. An int8 input also takes floating point values,
            which are quantized as the model says.

        Raises
        ------
        InputError
            If a name, shape or dtype is wrong, or a value is not finite.
        DeviceError
            If the device fails.
        """
        values = check_inputs(self.get_inputs(), inputs)
        cycles = 0

        def accelerate(index: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
            nonlocal cycles
            assert self._device is not None
            outputs, spent = self._device.run_region(self._artifact.manifest.regions[index], operands)
            cycles += spent
            return outputs

        results = self._program.run(values, None if self._device is None else accelerate)
        self.last_cycles = cycles or None
        return {info.name: value for info, value in zip(self.get_outputs(), results, strict=True)}

    def close(self) -> None:
        """Release the device."""
        if self._device is not None:
            self._device.close()
            self._device = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_inputs(infos: Sequence[TensorInfo], inputs: Mapping[str, ArrayLike] | ArrayLike) -> list[NDArray]:
    """The inputs in the network's order, as it takes them; see `InferenceSession.run`."""
    names = ", ".join(info.name for info in infos)
    if not isinstance(inputs, Mapping):
        if len(infos) != 1:
            raise InputError(f"the network has {len(infos)} inputs; give a dict ({names})")
        inputs = {infos[0].name: inputs}
    unknown = sorted(set(inputs) - {info.name for info in infos})
    if unknown:
        raise InputError(f"no input named {unknown[0]!r} (inputs: {names})")
    missing = [info.name for info in infos if info.name not in inputs]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing (inputs: {names})")
    return [check_input(info, np.asarray(inputs[info.name])) for info in infos]


def check_input(info: TensorInfo, value: NDArray) -> NDArray:
    """The array as the network takes it; see `InferenceSession.run`."""
    if value.shape != info.shape and (1, *value.shape) != info.shape:
        raise InputError(f"input {info.name!r} must have shape {list(info.shape)}, not {list(value.shape)}")
    value = value.reshape(info.shape)
    if np.issubdtype(value.dtype, np.floating):
        if not np.all(np.isfinite(value)):
            raise InputError(f"input {info.name!r} holds NaN or infinity; give finite values")
        if np.any(np.abs(value) > np.finfo(np.float32).max):
            raise InputError(f"input {info.name!r} holds values beyond float32; give smaller values")
        if info.dtype == "int8":
            return quantize(value, info.scale, info.zero_point)
    if str(value.dtype) == info.dtype:
        return value
    if info.dtype == "float32" and value.dtype == np.float64:
        return value.astype(np.float32)
    raise InputError(f"input {info.name!r} must be {info.dtype}, not {value.dtype}; convert it with astype")
