"""Compilation from model file to artifact directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnloom.arch.artifact import CPU_FILE, REPORT_FILE, Manifest, file_sha256, write_artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.cpu_target import get_cpu_target, host_cpu_target
from nnloom.arch.errors import ConfigError
from nnloom.arch.output import check_output, write_output
from nnloom.arch.trust import note_compiled_here

__all__ = ["CompileResult", "compile"]


@dataclass(frozen=True)
class CompileResult:
    """An artifact directory and its report."""

    path: Path
    report: dict[str, Any]


def compile(
    model: str | Path,
    *,
    board: str = "ulx3s-85f",
    output: str | Path,
    config: AcceleratorConfig | Literal["auto"] | None = None,
    cpu: str = "host",
    progress: Callable[[str], None] | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> CompileResult:
    """Compile a TFLite model for a board.

    Parameters
    ----------
    model
        Path of an int8 .tflite file.
    board
        Name of a board (`nnloom.boards`).
    output
        Artifact directory; an existing artifact is replaced, but only on success.
    config
        Accelerator configuration; default: the board's. "auto": the fastest that fits the board (its own
        if none is faster), found with `nnloom.compiler.explore` in new processes (a script needs
        `if __name__ == "__main__":`).
    cpu
        Processor that the CPU code is for: a name of `nnloom.arch.cpu_target`, or "host" for the fastest that this
        computer runs.
    progress
        Called with the name of each phase.
    advance
        Called with how many configurations were evaluated, of how many, while "auto" searches.

    Raises
    ------
    NnloomError
        `ModelError`, `UnsupportedOperatorError`, `ConfigError`, `CapacityError`, `ArtifactError`,
        `ToolMissingError` or `BuildError`, each with a message of one line.
    """
    from nnloom import boards

    from .cpu import build_cpu
    from .emit import emit
    from .frontend.tflite import import_tflite
    from .host_plan import plan_host
    from .partition import partition
    from .report import ConfigChoice, make_report

    say = progress or (lambda _: None)
    target = boards.get(board)
    cpu_target = host_cpu_target() if cpu == "host" else get_cpu_target(cpu)
    output = Path(output)
    check_output(output)
    say("importing the model")
    imported = import_tflite(model)
    say("partitioning")
    if config == "auto":
        from .explore import EVERYTHING, explore_graphs

        partitioned = partition(imported, EVERYTHING)
        found = explore_graphs(
            partitioned.graphs, model=imported.name, board=target, progress=progress, advance=advance
        )
        config = found.chosen.config
        resources = found.chosen.resources.to_dict()
        choice = ConfigChoice(source="auto", reason=found.reason(), resources=resources)
    else:
        if config is None:
            choice = ConfigChoice(source="board", reason=f"the default of {target.name}")
            config = target.config
        else:
            choice = ConfigChoice(source="given", reason="given by the user")
        partitioned = partition(imported, config)
    say("scheduling and planning memory")
    emitted = emit(config, partitioned.graphs)
    report = make_report(partitioned, emitted, config, target.name, choice)
    manifest = Manifest(
        model=imported.name,
        model_sha256=imported.sha256,
        board=target.name,
        cpu=cpu_target.name,
        config=config,
        inputs=imported.inputs,
        outputs=imported.outputs,
        regions=tuple(r.region for r in emitted.regions),
        host=plan_host(partitioned),
    )
    with write_output(output) as folder:
        say("compiling the CPU code")
        build_cpu(partitioned, folder / CPU_FILE, cpu_target)
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n")
        write_artifact(folder, manifest, emitted.program, emitted.weights)
        # Without a cache the code counts as a stranger's: sessions tell.
        with contextlib.suppress(ConfigError):
            note_compiled_here(file_sha256(folder / CPU_FILE))
    return CompileResult(output, report)
