"""Keyword spotting from model file to bitstream, and two spoken words through the RTL, beside LiteRT's answers.

Run by `make demo`. Every step is a command that can be typed; only the comparison with LiteRT is done here. The
accelerator is a small one (`small.json`), which places and routes in minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

FOLDER = Path("build/demo")
SMALL = Path(__file__).with_name("small.json")
"""80 multipliers and memories for keyword spotting."""
WORDS = ("yes", "no", "unknown", "silence")


def nnloom(*arguments: str) -> Any:
    """Run a command with its progress on stderr; returns its JSON result."""
    print(f"\n$ nnloom {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from nnloom.cli import main; raise SystemExit(main())", *arguments, "--json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode:
        raise SystemExit(result.returncode)
    return json.loads(result.stdout)


def reference(model: Path, value: NDArray) -> NDArray:
    """LiteRT's answer, with its reference kernels."""
    interpreter = Interpreter(str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def compare(model: Path, values: list[NDArray], outputs: Path) -> list[NDArray]:
    """Print outputs of the simulation beside the reference's; they must be equal."""
    results = list(np.load(outputs))
    for value, result in zip(values, results, strict=True):
        want = reference(model, value)[0]
        print(f"  RTL    {np.array2string(result, precision=4, max_line_width=110)}")
        print(f"  LiteRT {np.array2string(want, precision=4, max_line_width=110)}")
        if not np.array_equal(result, want):
            raise SystemExit("the RTL's output differs from LiteRT's")
    return results


def main() -> None:
    """The demonstration."""
    started = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)

    kws, speech = FOLDER / "keyword_spotting.tflite", FOLDER / "tflite_micro_speech.tflite"
    nnloom("zoo", "fetch", "keyword_spotting", "-o", str(kws))
    nnloom("zoo", "fetch", "tflite_micro_speech", "-o", str(speech))
    nnloom("zoo", "fetch", "recordings", "-o", str(FOLDER))

    report = nnloom("compile", str(kws), "--board", "ulx3s-85f", "--config", str(SMALL), "-o", str(FOLDER / "kws"))
    scale = 0.88  # the model's input step: features spread over its range
    values = [np.random.default_rng(7).normal(0, 50 * scale, (1, 50, 10, 1)).astype(np.float32)]
    np.save(FOLDER / "x.npy", values[0])
    files = ["--input", str(FOLDER / "x.npy"), "--output", str(FOLDER / "y.npy")]
    nnloom("simulate", str(FOLDER / "kws"), *files)
    compare(kws, values, FOLDER / "y.npy")

    nnloom("compile", str(speech), "--board", "ulx3s-85f", "--config", str(SMALL), "-o", str(FOLDER / "speech"))
    for word in ("yes", "no"):
        source, target = FOLDER / f"{word}.npy", FOLDER / f"{word}-output.npy"
        nnloom("simulate", str(FOLDER / "speech"), "--input", str(source), "--output", str(target))
        (result,) = compare(speech, [np.load(source)], target)
        print(f'  the recording "{word}" is heard as "{WORDS[int(result.argmax())]}"')

    # A clock that most placement seeds reach: the board's own 120 MHz may take several tries.
    report = nnloom("build", str(FOLDER / "kws"), "--clock", "100")
    print(f"\nkeyword spotting on {report['board']}")
    print(f"  bitstream    {FOLDER / 'kws' / report['bitstream']}")
    print(f"  cycles       {report['cycles']:,} (measured in RTL; estimated {report['cycles_estimated']:,})")
    print(f"  utilisation  {100 * report['utilisation']:.1f} % of {report['mac_units']} multipliers")
    print(f"  clock        {report['clock_mhz']:g} MHz (place and route reached {report['fmax_mhz']} MHz)")
    print(f"  latency      {report['latency_us']:,} us")
    for name, use in report["resources"].items():
        print(f"  {name:<12} {use['used']:,} of {use['available']:,}")
    print(f"\ndone in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
