"""Compilation from model file to artifact directory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import (
    BOARD_FILE,
    CONSTANTS_FILE,
    CPU_FILE,
    MODEL_FILE,
    ONNX_FILE,
    REPORT_FILE,
    STATES_FILE,
    Artifact,
    Manifest,
    file_sha256,
    write_artifact,
)
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.cpu_target import CpuTarget, get_cpu_target, host_cpu_target
from nnloom.arch.errors import ConfigError, NnloomError
from nnloom.arch.extras import require
from nnloom.arch.link import DEFAULT_BAUD
from nnloom.arch.output import check_output, write_output
from nnloom.arch.report import Report, write_report
from nnloom.arch.trust import note_compiled_here

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from nnloom.boards import Board

    from .fit import Fitted
    from .host_plan import PlannedHost
    from .ir import Graph
    from .quantize import QuantizeResult
    from .quantize.calibration import Calibration
    from .quantize.provable import Provability
    from .report import ConfigChoice

__all__ = ["CompileResult", "compile"]

Unproved = Literal["cpu", "accelerator", "scales"]
"""What becomes of layers whose rounding is not ONNX Runtime's in every channel"""
_PRODUCTS = ("BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


@dataclass(frozen=True)
class CompileResult:
    """An artifact directory and its report."""

    path: Path
    report: dict[str, Any]
    quantized: QuantizeResult | None = None
    """how a float model became int8, if `calibrate` was given"""
    is_float: bool = False
    """nothing of the model is quantized"""
    moved: Provability | None = None
    """what moving scales brought (`unproved` "scales")"""

    def _repr_html_(self) -> str:
        return Report.load(Artifact.load(self.path))._repr_html_()


def compile(
    model: str | Path | ExportedProgram,
    *,
    board: str = "ulx3s-85f",
    output: str | Path,
    config: AcceleratorConfig | Literal["auto"] | None = None,
    cpu: str = "host",
    strict: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    unproved: Unproved = "cpu",
    keep: str | Path | None = None,
    calibrate: Calibration | None = None,
    quantization: Mapping[str, Any] = MappingProxyType({}),
    exits: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> CompileResult:
    """Compile a TFLite or ONNX model for a board.

    Parameters
    ----------
    model
        Path of an int8 .tflite, .onnx or .pt2 (`torch.export`) file, or such a program; a float one with `calibrate`.
    board
        Name of a board (`nnloom.boards`), or a YAML or JSON file of one.
    output
        Artifact directory; an existing artifact is replaced, but only on success.
    config
        Accelerator configuration; default: the board's. "auto": the fastest that fits the board (its own
        if none is faster), found with `nnloom.compiler.explore` in new processes (a script needs
        `if __name__ == "__main__":`).
    cpu
        Processor that the CPU code is for: a name of `nnloom.arch.cpu_target`, or "host" for the fastest that this
        computer runs.
    strict
        Refuse a model with operators whose bits may differ from those of the reference kernels: float code, and layers
        that `unproved` has put on the accelerator.
    shapes
        Of inputs, by name, where an ONNX file leaves them open.
    unproved
        Where layers of an ONNX model run for which some channels have no multiplier that rounds as ONNX Runtime does:
        "cpu", exact; "accelerator", with the nearest, and the report names the sums for which an output is one off; or
        "scales": scales of the network are moved by a few units in the last place until all that can be are proved, and
        the artifact's network, with which it is compared, has these.
    keep
        Folder for what each step makes, as text and JSON (`nnloom.compiler.keep`): new, empty, or of an earlier run.
    calibrate
        Inputs with which a float model is quantized first, see `nnloom.compiler.quantize.quantize`.
    quantization
        Further arguments of that function: `keep_float`, `method`, `limit`, `explain`.
    exits
        Names of outputs that a session can compute alone, for a budget of time (`InferenceSession.run`).
    progress
        Called with the name of each phase.
    advance
        Called with how far a phase is, of how much, while "auto" searches and while a model is quantized.

    Raises
    ------
    NnloomError
        `ModelError`, `UnsupportedOperatorError`, `ConfigError`, `CapacityError`, `ArtifactError`,
        `ToolMissingError` or `BuildError`, each with a message of one line.
    """
    from nnloom import boards
    from nnloom.boards.files import board_values

    from .exactness import check_exactness
    from .exits import fit_with_exits, manifest_exits
    from .frontend import read_model
    from .host_plan import plan_host
    from .keep import KeptSteps
    from .larger import find_larger
    from .ops.rounding import take_nearest
    from .quantize.provable import MovingScales
    from .report import make_report
    from .transfers import external_timing

    require("compiler", "tvm")
    say = progress or (lambda _: None)
    target = boards.get(board)
    cpu_target = host_cpu_target() if cpu == "host" else get_cpu_target(cpu)
    output = Path(output)
    check_output(output)
    if calibrate is not None:

        def compile_quantized(file: Path) -> CompileResult:
            return compile(
                file,
                board=board,
                output=output,
                config=config,
                cpu=cpu,
                strict=strict,
                unproved=unproved,
                keep=keep,
                exits=exits,
                progress=progress,
                advance=advance,
            )

        given = {"shapes": shapes, "progress": progress, "advance": advance, **quantization}
        return _quantize_first(model, calibrate, given, output, compile_quantized)
    kept = KeptSteps(None if keep is None else Path(keep))
    say("reading the model")
    moving = MovingScales(advance) if unproved == "scales" else None
    graph = read_model(model, shapes=shapes, watch=kept.graph, change=moving)
    if unproved == "accelerator":
        graph = take_nearest(graph)
    config, choice = _choose(graph, target, config, progress, advance)
    say("partitioning, scheduling and planning memory")
    fitted, leaves = fit_with_exits(graph, config, exits, external_timing(target, config))
    kept.fitted(fitted, config)
    inexact = check_exactness(fitted.partitioned, strict=strict)
    larger = None
    if fitted.is_cut:
        say("looking for what would take more of the network")
        larger = find_larger(graph, fitted, config, target)
    host = plan_host(fitted.partitioned)
    manifest = _manifest(fitted, host, target, config, cpu_target)
    manifest = dataclasses.replace(manifest, exits=manifest_exits(leaves, len(host.constants)))
    report = make_report(fitted, config, target, choice, inexact, larger, leaves)
    constants = [data for planned in (host, *(item.host for item in leaves)) for data in planned.constants]
    with write_output(output) as folder:
        if type(target) is boards.Board and target not in boards.builtin_boards():
            (folder / BOARD_FILE).write_text(json.dumps(board_values(target), indent=1) + "\n")
        say("compiling the CPU code")
        _write(folder, model, fitted, host, constants, manifest, report, cpu_target)
    return CompileResult(output, report, is_float=_is_float(graph), moved=moving.found if moving else None)


def _is_float(graph: Graph) -> bool:
    """Nothing of a network is quantized, and there is something to quantize."""
    return all(v.type.quantization is None for v in graph.values) and any(n.kind in _PRODUCTS for n in graph.nodes)


def _quantize_first(
    model: str | Path | ExportedProgram,
    calibrate: Calibration,
    options: Mapping[str, Any],
    output: Path,
    compile_quantized: Callable[[Path], CompileResult],
) -> CompileResult:
    """Quantize a float model, and compile that; the artifact holds the quantized model."""
    from .frontend.torch import NAME, is_program
    from .quantize import quantize

    name = Path(model) if isinstance(model, str | Path) else Path(NAME)
    with tempfile.TemporaryDirectory(prefix="nnloom-compile-") as folder:
        file = Path(folder, f"{name.stem}.onnx" if is_program(model) else name.name)
        quantized = quantize(model, calibrate, output=file, **options)
        try:
            result = compile_quantized(file)
        except NnloomError as error:
            raise type(error)(str(error).replace(str(file), f"{name}, quantized")) from error
    return dataclasses.replace(result, quantized=dataclasses.replace(quantized, path=output), moved=None)


def _choose(
    graph: Graph,
    board: Board,
    config: AcceleratorConfig | Literal["auto"] | None,
    progress: Callable[[str], None] | None,
    advance: Callable[[int, int], None] | None,
) -> tuple[AcceleratorConfig, ConfigChoice]:
    """The configuration, and why it is used."""
    from .report import ConfigChoice

    found = None
    if config == "auto":
        from .explore import explore_graph

        found = explore_graph(graph, board=board, progress=progress, advance=advance)
    if found:
        resources = found.chosen.resources.to_dict()
        return found.chosen.config, ConfigChoice(source="auto", reason=found.reason(), resources=resources)
    if config is None or config == "auto":
        return board.config, ConfigChoice(source="board", reason=f"the default of {board.name}")
    return config, ConfigChoice(source="given", reason="given by the user")


def _manifest(
    fitted: Fitted, host: PlannedHost, board: Board, config: AcceleratorConfig, cpu_target: CpuTarget
) -> Manifest:
    graph = fitted.partitioned.graph
    return Manifest(
        model=graph.name,
        model_sha256=graph.sha256,
        board=board.name,
        baud=board.baud or DEFAULT_BAUD,
        packs=board.link_packing,
        cpu=cpu_target.name,
        config=config,
        inputs=graph.input_infos(),
        outputs=graph.output_infos(),
        regions=tuple(r.region for r in fitted.emitted.regions),
        host=host.plan,
        states=graph.state_infos(),
    )


def _write(
    folder: Path,
    model: str | Path | ExportedProgram,
    fitted: Fitted,
    host: PlannedHost,
    constants: Sequence[NDArray],
    manifest: Manifest,
    report: dict[str, Any],
    cpu_target: CpuTarget,
) -> None:
    """The files of the artifact."""
    from .cpu import build_cpu

    build_cpu(fitted.partitioned, host, folder / CPU_FILE, cpu_target)
    states = fitted.partitioned.graph.states
    if constants:
        np.savez(folder / CONSTANTS_FILE, **{str(i): data for i, data in enumerate(constants)})  # type: ignore[arg-type]
    if states:
        np.savez(folder / STATES_FILE, **{str(i): state.initial for i, state in enumerate(states)})  # type: ignore[arg-type]
    graph = fitted.partitioned.graph
    if graph.prepared is not None:
        (folder / (ONNX_FILE if graph.format == "onnx" else MODEL_FILE)).write_bytes(graph.prepared)
    else:
        assert isinstance(model, str | Path)
        shutil.copyfile(model, folder / MODEL_FILE)
    write_report(folder / REPORT_FILE, report)
    write_artifact(folder, manifest, fitted.emitted.program, fitted.emitted.weights, fitted.emitted.tables)
    # Without a cache the code counts as a stranger's: sessions tell.
    with contextlib.suppress(ConfigError):
        note_compiled_here(file_sha256(folder / CPU_FILE))
