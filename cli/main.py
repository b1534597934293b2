"""Argument parsing, errors and exit codes of the `nnloom` command.

Exit codes: 0 success; 1 a device or a build failed; 2 a mistake in what was asked for; 3 a tool is missing;
130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import json
import os
import sys
from typing import Any

from nnloom.arch.cpu_target import CPU_TARGETS
from nnloom.arch.errors import NnloomError, ToolMissingError
from nnloom.arch.extras import missing_package
from nnloom.arch.interrupts import interrupts_arrive
from nnloom.arch.serving import ServerLimits

from .console import Console

__all__ = ["build_parser", "main"]

BOARD_HELP = "board name, see 'nnloom boards', or a file of one, BOARD.yaml (default: %(default)s)"


def _subparser(verbs: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    return parser


def _megahertz(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no frequency in MHz")
    return value


def _microseconds(text: str) -> float:
    """Microseconds of a time such as 1ms, 250us or 0.5s."""
    number, unit = text.rstrip("smuµ"), text[len(text.rstrip("smuµ")) :]
    scale = {"s": 1e6, "ms": 1e3, "us": 1.0, "µs": 1.0}.get(unit)
    try:
        value = float(number) * (scale or 0.0)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is no time, such as 1ms or 250us")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10_000:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 to 9999")
    return int(text)


def _seeds(text: str) -> list[int]:
    """Seeds of a list such as 1-4,9."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text} is no list of seeds, such as 1-8 or 1,3,7")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(seeds) > 1000:
        raise argparse.ArgumentTypeError(f"{text}: 1 to 1000 seeds, please")
    return list(dict.fromkeys(seeds))


def _add_native(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--native",
        action=argparse.BooleanOptionalAction,
        help="load the artifact's native code, which may do all that you may; without, a slower runtime gives the same "
        "bits (default: only if it was compiled on this computer, see SECURITY.md)",
    )


def _add_measured(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--measured",
        metavar="DEVICE",
        nargs="?",
        const="sim",
        help=f"run the accelerator's part once, on zeros, and show what its {what}: "
        "serial:PORT[?baud=N&timeout=S], pynq or sim (default of the option: %(const)s)",
    )


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from nnloom import __version__

        print(f"nnloom {__version__}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"nnloom: error: {message} (see {self.prog} --help)\n")


def _add_onnx_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--shape",
        action="append",
        metavar="INPUT=SIZES",
        help="shape of an input that an ONNX file leaves open, e.g. input=1,3,224,224; may be repeated",
    )
    p.add_argument(
        "--unproved",
        choices=("cpu", "accelerator", "scales"),
        default="cpu",
        help="where layers of an ONNX model run whose rounding the accelerator does not reproduce in every channel: "
        "cpu, exact; accelerator, with the report naming the sums that it rounds otherwise; or scales: on the "
        "accelerator, exact, by moving scales of the model by some 1e-6 (default: %(default)s)",
    )


def _add_quantization_options(p: argparse.ArgumentParser, *, required: bool) -> None:
    p.add_argument(
        "--calibrate",
        metavar="DATA",
        required=required,
        help=("" if required else "quantize a float model first, with ") + "inputs as the float model takes them: an "
        ".npz or .npy file, or a folder of them",
    )
    p.add_argument(
        "--keep-float",
        action="append",
        metavar="LAYER",
        help="leave a layer float: its name, or a part that no other has; may be repeated",
    )
    p.add_argument(
        "--method",
        choices=("auto", "minmax", "percentile", "entropy", "average"),
        help="how ranges are taken from the data (default: auto, the one with the least noise)",
    )


def build_parser() -> argparse.ArgumentParser:
    """The parsers of every command; `docs/cli.md` is made from them."""
    parser = _Parser(
        prog="nnloom",
        description="Weave a quantized neural network into FPGA fabric.",
        epilog=(
            "example:\n  nnloom zoo fetch keyword_spotting\n"
            "  nnloom compile keyword_spotting.tflite --board ulx3s-85f -o build/kws --bitstream"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)

    p = _subparser(
        verbs, "compile", "compile a model for a board", "nnloom compile kws.tflite -o build/kws --keep steps"
    )
    p.add_argument("model", help="int8 .tflite, .onnx or .pt2 (torch.export) file; float: with --calibrate")
    p.add_argument("--board", default="ulx3s-85f", help=BOARD_HELP)
    p.add_argument("-o", "--output", metavar="DIR", help="artifact directory (default: build/MODEL)")
    p.add_argument(
        "--config",
        metavar="FILE",
        help="configuration (YAML or JSON), or 'auto': the fastest that fits the board (default: the board's)",
    )
    p.add_argument(
        "--cpu",
        default="host",
        metavar="NAME",
        help=f"processor of the CPU code: {', '.join(t.name for t in CPU_TARGETS)} (default: the best this one runs)",
    )
    p.add_argument("--bitstream", action="store_true", help="build the bitstream too")
    p.add_argument(
        "--strict", action="store_true", help="refuse operators whose bits may differ from the reference kernels'"
    )
    _add_onnx_options(p)
    _add_quantization_options(p, required=False)
    p.add_argument(
        "--keep", metavar="DIR", help="write what each step makes there, as text and JSON (read, simplify, ...)"
    )
    p.add_argument("--html", metavar="FILE", help="write the report as an HTML page, too: see 'nnloom report'")
    p.add_argument(
        "--exits",
        action="append",
        metavar="NAMES",
        help="outputs, with commas between, that can be computed alone for a budget of time: run --budget-ms",
    )
    p.set_defaults(run="compile_model")

    p = _subparser(
        verbs,
        "quantize",
        "quantize a float model to int8",
        "nnloom quantize net.onnx --calibrate samples.npz -o net_int8.onnx",
    )
    p.add_argument("model", help="float .onnx, .tflite or .pt2 (torch.export) file")
    _add_quantization_options(p, required=True)
    p.add_argument(
        "--activations",
        choices=("int8", "int16"),
        default="int8",
        help="of TFLite models: int16 for 16 bits, on the CPU (default: %(default)s)",
    )
    p.add_argument(
        "-o", "--output", metavar="FILE", help="model file to write (default: MODEL_int8.onnx or .tflite, here)"
    )
    p.add_argument("--limit", type=_positive, metavar="N", help="the first N inferences of the data only")
    p.add_argument(
        "--shape",
        action="append",
        metavar="INPUT=SIZES",
        help="shape of an input that the file leaves open (default: that of the data)",
    )
    p.set_defaults(run="quantize")

    p = _subparser(
        verbs,
        "prune",
        "take channels out of an ONNX model, by a mask or the weakest first",
        "nnloom prune net.onnx --target 0.5 -o net_small.onnx",
    )
    p.add_argument("model", help="float or quantized .onnx file, or .pt2 (torch.export)")
    p.add_argument(
        "--mask",
        metavar="FILE",
        help=".json or .npz with a list for each layer: 1 for each output channel that stays, 0 for one that goes",
    )
    p.add_argument(
        "--target",
        type=float,
        metavar="SHARE",
        help="instead: the share of the multiplications that goes, 0 to 1; the filters with the smallest weights go, "
        "the same share everywhere",
    )
    p.add_argument(
        "--of",
        choices=("macs", "channels"),
        default="macs",
        help="what --target is a share of: multiplications or the layers' channels (default: %(default)s)",
    )
    p.add_argument(
        "--multiple",
        type=_positive,
        default=1,
        metavar="N",
        help="with --target: numbers of channels that are left are multiples of N; the engine computes as many at once "
        "as it has lanes (default: %(default)s)",
    )
    p.add_argument(
        "--keep", action="append", default=[], metavar="LAYER", help="with --target: layer of which no channel goes"
    )
    p.add_argument("-o", "--output", metavar="FILE", help="model file to write (default: MODEL_pruned.onnx, here)")
    p.add_argument("--masked", metavar="FILE", help="write the network with zeros instead, as large as before, too")
    p.add_argument("--save-mask", metavar="FILE", help="write the mask, to train the network on with it (.json)")
    p.add_argument(
        "--shape", action="append", metavar="INPUT=SIZES", help="shape of an input that the file leaves open"
    )
    p.set_defaults(run="prune")

    p = _subparser(
        verbs,
        "explore",
        "search the accelerator configurations of a board for a model",
        "nnloom explore kws.tflite --board ulx3s-85f --plot front.svg",
    )
    p.add_argument("model", help="int8 .tflite, .onnx or .pt2 file")
    p.add_argument("--board", default="ulx3s-85f", help=BOARD_HELP)
    _add_onnx_options(p)
    p.add_argument("--plot", metavar="FILE", help="plot the Pareto front (.svg or .png)")
    p.add_argument(
        "--scheduler", metavar="ADDRESS", help="evaluate on a Dask scheduler, tcp://HOST:PORT (default: this machine)"
    )
    p.add_argument(
        "--latency", type=_microseconds, metavar="TIME", help="find the smallest that takes at most so long: 1ms"
    )
    p.add_argument("--save", metavar="FILE", help="write the configuration, for compile --config FILE")
    p.set_defaults(run="explore")

    p = _subparser(verbs, "build", "build the bitstream of an artifact", "nnloom build build/kws")
    p.add_argument("artifact", nargs="?", help="artifact directory")
    p.add_argument(
        "--board", help="instead of an artifact: build the default system of this board (name or BOARD.yaml)"
    )
    p.add_argument("-o", "--output", metavar="FILE", help="with --board: where to (default: nnloom.bit, .fs, .bin)")
    p.add_argument(
        "--clock",
        type=_megahertz,
        metavar="MHZ",
        help="system clock (default: the board's)",
    )
    p.add_argument(
        "--link",
        choices=("uart", "usb"),
        help="what leads to the host: the board's serial port, or on a ULX3S its second USB socket (docs/usb.md)",
    )
    p.add_argument(
        "--seed",
        type=int,
        help="placement seed (default: the one known to work for the board, then the next ones if the clock is missed)",
    )
    p.add_argument(
        "--seeds",
        type=_seeds,
        metavar="LIST",
        help="instead: place with all of these, as 1-8 or 1,3,7, side by side, and take the fastest",
    )
    p.add_argument("--jobs", type=_positive, metavar="N", help="with --seeds: so many at once (default: processors)")
    p.add_argument(
        "--scheduler", metavar="ADDRESS", help="with --seeds: on a Dask scheduler's workers, tcp://HOST:PORT"
    )
    p.add_argument(
        "--flash-boot",
        action="store_true",
        help="a system that loads a network from the board's flash at power-up (program --flash --with-network)",
    )
    p.add_argument("--no-cache", action="store_true", help="build even if an identical bitstream is cached")
    p.add_argument(
        "--synth-only", action="store_true", help="only synthesize, and show how much of the device the system takes"
    )
    p.set_defaults(run="build")

    p = _subparser(
        verbs,
        "evaluate",
        "measure how good a network is on labelled data",
        "nnloom evaluate build/kws --data test.npz --device model",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help=".npz with 'labels' and the inputs, by name or (if one) as 'inputs'",
    )
    p.add_argument(
        "--metric",
        choices=("top1", "mae", "auc"),
        default="top1",
        help="top1: right classes; mae: mean absolute error; auc: area under the ROC curve (default: %(default)s)",
    )
    p.add_argument("--device", default="cpu", help="as of run (default: %(default)s)")
    p.add_argument(
        "--float", metavar="MODEL", help="beside it, the float model that it was made from (.onnx, .tflite, .pt2)"
    )
    p.add_argument("--limit", type=_positive, metavar="N", help="the first N inferences only")
    _add_native(p)
    p.set_defaults(run="evaluate")

    p = _subparser(
        verbs,
        "compare",
        "compare every tensor of an inference with the reference's, or with the float model's",
        "nnloom compare build/net --input x.npy --float net.onnx",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument("--input", metavar="FILE", required=True, help="inputs of one inference, as of 'nnloom run'")
    p.add_argument(
        "--with",
        dest="against",
        choices=("onnx", "tflite", "float"),
        help="ONNX Runtime or LiteRT with the artifact's model, to the bit, or the float model (default: float with "
        "--float, else the one for the artifact's model)",
    )
    p.add_argument("--float", metavar="MODEL", help="the float model that it was made from (.onnx, .tflite, .pt2)")
    p.add_argument("--all", action="store_true", help="show every tensor (default: the 20 first or worst that differ)")
    p.add_argument(
        "--device",
        default="model",
        help="as of run; of cpu and model every layer is seen, of others what regions answer (default: %(default)s)",
    )
    p.set_defaults(run="compare")

    p = _subparser(
        verbs,
        "export",
        "write the RTL of an artifact for other tools, with documents and a cocotb test bench",
        "nnloom export build/kws -o kws_rtl",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="folder to write to; an earlier export goes (default: ARTIFACT-rtl)",
    )
    p.add_argument(
        "--system",
        action="store_true",
        help="the whole system with its serial line",
    )
    p.add_argument(
        "--input",
        metavar="FILE",
        help="inputs of the recorded inferences, as those of 'nnloom simulate' (default: two random ones)",
    )
    p.add_argument("--clock", type=_megahertz, metavar="MHZ", help="with --system: its clock (default: the board's)")
    p.add_argument(
        "--baud",
        type=int,
        help="with --system: bit rate of the serial line (default: an eighth of the clock, the fastest one)",
    )
    p.set_defaults(run="export")

    p = _subparser(
        verbs,
        "driver",
        "write a C driver of an artifact, for microcontrollers",
        "nnloom driver build/kws -o kws_driver",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="driver",
        help="folder to write to; others' files stay (default: driver)",
    )
    p.set_defaults(run="driver")

    p = _subparser(verbs, "program", "load the bitstream into the board (openFPGALoader)", "nnloom program build/kws")
    p.add_argument("artifact", help="artifact directory")
    p.add_argument(
        "--flash",
        action="store_true",
        help="write the board's flash, to start with this bitstream from then on (default: the FPGA's configuration "
        "memory, which forgets when the power goes)",
    )
    p.add_argument(
        "--with-network",
        action="store_true",
        help="with --flash: write the network, too; a bitstream of build --flash-boot loads it at power-up",
    )
    p.add_argument("--cable", help="openFPGALoader's name of the cable (default: the board's own)")
    p.set_defaults(run="program")

    for name, summary, example in (
        ("run", "run a network", "nnloom run build/kws --input x.npy --output y.npy --device cpu"),
        ("simulate", "run a network in RTL simulation", "nnloom simulate build/kws --input x.npy --output y.npy"),
    ):
        p = _subparser(verbs, name, summary, example)
        p.add_argument("artifact", help="artifact directory")
        p.add_argument(
            "--input",
            metavar="FILE",
            help="input as .npy (several stacked along the first axis: consecutive frames, if the network has state); "
            "of several tensors, .npz with their names",
        )
        p.add_argument("--output", metavar="FILE", help="where to write the output (.npy, or .npz for several)")
        _add_native(p)
        if name == "run":
            p.add_argument(
                "--device",
                default="cpu",
                help="auto, cpu, model, sim, serial:PORT[?baud=N&timeout=S] or pynq[:BITSTREAM] (default: %(default)s)",
            )
            p.add_argument(
                "--budget-ms",
                type=float,
                metavar="MS",
                help="compute only the deepest exit (compile --exits) that takes no longer, by the cost model",
            )
        else:
            p.add_argument("--simulator", choices=("verilator", "icarus"), default="verilator")
            p.add_argument("--waves", metavar="FILE", help="write a waveform (.fst)")
            p.add_argument(
                "--serve",
                action="store_true",
                help="instead: run the complete system as a board on a pseudo-terminal until interrupted",
            )
        p.set_defaults(run="run" if name == "run" else "simulate")

    p = _subparser(
        verbs,
        "serve",
        "serve a network over HTTP (Open Inference Protocol v2)",
        "nnloom serve build/kws --device auto --port 8000",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, model, sim or serial:PORT[?baud=N&timeout=S] (default: %(default)s)",
    )
    p.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this computer only)"
    )
    p.add_argument("--port", type=int, default=8000, help="port; 0: any free one (default: %(default)s)")
    p.add_argument("--name", help="model name in the addresses (default: that of the artifact)")
    _add_native(p)
    for field in dataclasses.fields(ServerLimits):
        text = "16 MiB" if field.name == "body_bytes" else f"{field.default:g}"
        p.add_argument(
            field.metadata["option"],
            dest=field.name,
            type=type(field.default),
            default=field.default,
            metavar="N" if isinstance(field.default, int) else "S",
            help=f"{field.metadata['doc']} (default: {text})",
        )
    p.set_defaults(run="serve")

    p = _subparser(
        verbs,
        "inspect",
        "show layers, cycles and memory of an artifact",
        "nnloom inspect build/kws --measured serial:/dev/ttyUSB0",
    )
    p.add_argument("artifact", help="artifact directory")
    _add_measured(p, "counters say beside the estimates")
    p.set_defaults(run="inspect")

    p = _subparser(
        verbs,
        "report",
        "write an HTML page about an artifact: layers, timeline, memory, roofline",
        "nnloom report build/kws -o kws.html --trace kws.json",
    )
    p.add_argument("artifact", help="artifact directory")
    p.add_argument("-o", "--output", metavar="FILE", help="page to write (default: report.html in the artifact)")
    p.add_argument("--trace", metavar="FILE", help="write the timeline as a trace for Perfetto or Chrome, too (JSON)")
    _add_measured(p, "counters say, and how long the CPU takes")
    p.set_defaults(run="report")

    p = _subparser(verbs, "doctor", "what is installed, and what missing things would enable", "nnloom doctor")
    p.set_defaults(run="doctor")

    p = _subparser(verbs, "boards", "list the boards", "nnloom boards")
    p.set_defaults(run="boards")

    cache = verbs.add_parser(
        "cache",
        help="what is in the cache: simulators, bitstreams, models",
        description="What is in the cache: simulators, bitstreams, models. XDG_CACHE_HOME says where it lies.",
    )
    cache_verbs = cache.add_subparsers(dest="cache_verb", metavar="COMMAND", parser_class=_Parser)
    cache.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    cache.set_defaults(run="cache", folders=())
    _subparser(cache_verbs, "clean", "remove what interrupted builds left a day ago or longer", "nnloom cache clean")
    p = _subparser(cache_verbs, "clear", "empty the cache", "nnloom cache clear sim")
    p.add_argument(
        "folders",
        nargs="*",
        metavar="FOLDER",
        help="only these, see 'nnloom cache' (default: all but compiled-here, which tells your own artifacts apart)",
    )

    zoo = verbs.add_parser(
        "zoo", help="real models to start with", description="Real models that packages on PyPI ship."
    )
    zoo_verbs = zoo.add_subparsers(dest="zoo_verb", metavar="COMMAND", parser_class=_Parser)
    zoo.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    zoo.set_defaults(run="zoo_list", words=(), kind=None, package=None)
    p = _subparser(zoo_verbs, "list", "list the models", "nnloom zoo list --kind int8 keyword")
    p.add_argument("words", nargs="*", metavar="WORD", help="only models with these words in name or description")
    p.add_argument("--kind", help="only models of this kind: int8, streaming int8, float16 or float")
    p.add_argument("--package", metavar="NAME", help="only models of this package")
    p.set_defaults(run="zoo_list")
    p = _subparser(zoo_verbs, "fetch", "fetch a model into the current folder", "nnloom zoo fetch keyword_spotting")
    p.add_argument("name", help="model name, or 'recordings' for the spoken words yes.npy and no.npy")
    p.add_argument(
        "-o", "--output", metavar="PATH", help="file to write (default: NAME.tflite); a folder for recordings"
    )
    p.set_defaults(run="zoo_fetch")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown with escapes.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    console = Console(quiet=options.json)
    try:
        from . import commands  # with NumPy and the artifact's reader, which --help does without

        with interrupts_arrive():
            result = getattr(commands, options.run)(options, console)
        if options.json:
            print(json.dumps(result, indent=1))
        return 0
    except NnloomError as error:
        console.error(str(error))
        return error.exit_code
    except ModuleNotFoundError as error:
        if (error.name or "nnloom").partition(".")[0] == "nnloom":
            raise
        console.error(str(missing_package(error.name or "")))
        return ToolMissingError.exit_code
    except KeyboardInterrupt:
        console.error("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        hint = "; make room there, or write elsewhere" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        console.error(f"{name}{error.strerror or error}{hint}")
        return 2
    finally:
        console.close()
