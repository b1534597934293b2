"""The node tests that the onnx package ships for backends: each through the compiler, float and quantized.

    python benchmarks/onnx_backend.py                    all of them; half an hour
    python benchmarks/onnx_backend.py --only Conv Pad    of some operators; the others keep what was measured

Float models run on the CPU's references and are compared with ONNX Runtime: every bit where the report says exact, else
within 1e-4. Then they are quantized with the test's own input, compiled, and compared in the golden model: every bit
where the report says exact, else within 3 % of the largest value. Operands that are no float32 are made constants, as
exporters write them. Writes benchmarks/results/onnx_backend.json and the table in docs/onnx-backend.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nnloom.arch.errors import NnloomError
from nnloom.arch.files import write_atomically
from nnloom.compiler.quantize import quantize
from nnloom.runtime import InferenceSession
from nnloom.sim.onnx_runtime import OnnxRuntimeReference
from tests.onnx_models import compile_onnx

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "onnx_backend.json"
DOCUMENT = ROOT / "docs" / "onnx-backend.md"
OTHER_FRAMEWORKS = ("ai.onnx.ml", "ai.onnx.preview.training")


@dataclass(frozen=True)
class Case:
    """A test of the package: its model with operands that are no float32 as constants, and the others."""

    name: str
    operator: str
    model: Any
    inputs: dict[str, NDArray]


def cases() -> Iterator[Case]:
    """Tests of operators with a float32 input that no sequence or map is."""
    import onnx
    from onnx import numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    for test in collect_testcases(None):
        graph = test.model.graph
        operators = [node for node in graph.node if node.domain not in OTHER_FRAMEWORKS]
        if len(operators) != len(graph.node) or not test.data_sets or "_expanded" in test.name:
            continue
        given = dict(zip([i.name for i in graph.input], test.data_sets[0][0], strict=False))
        if not all(isinstance(value, np.ndarray) and 0 not in value.shape for value in given.values()):
            continue
        floats = {name: value for name, value in given.items() if value.dtype == np.float32}
        if not floats or any(value.dtype.name not in _CONSTANT for value in given.values()):
            continue
        model = onnx.ModelProto()
        model.CopyFrom(test.model)
        others = [numpy_helper.from_array(v, n) for n, v in given.items() if n not in floats]
        model.graph.initializer.extend(others)
        kept = [i for i in graph.input if i.name in floats]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        for info in model.graph.input:
            shape = info.type.tensor_type.shape
            del shape.dim[:]
            for size in floats[info.name].shape:
                shape.dim.add().dim_value = size
        yield Case(test.name, operators[0].op_type, model, floats)


_CONSTANT = ("float32", "int64", "int32", "bool", "int8", "uint8")


def reason_of(error: Exception, path: Path) -> str:
    """What a refusal says, without names."""
    text = str(error).replace(f"{path}: ", "").replace(str(path), "").replace(f"{path.stem}: ", "")
    return re.sub(r"'[^']*'", "...", text)


def ran(path: Path, case: Case, folder: Path, device: str, near: float) -> str:
    """Compile a file and compare it with ONNX Runtime: "exact", "near", or what is wrong."""
    report = compile_onnx(path, folder)
    reference = OnnxRuntimeReference(folder / "model.onnx")
    with InferenceSession(folder, device, native=False) as session:
        names = [info.name for info in session.get_inputs()]
        given = [case.inputs[name] for name in names]
        answers = session.run(None, dict(zip(names, given, strict=True)))
        wanted = reference.run(*given)
    for got, want in zip(answers, wanted, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
        if np.array_equal(got, want, equal_nan=got.dtype.kind == "f"):
            continue
        difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
        size = float(np.nanmax(np.abs(want.astype(np.float64)), initial=1.0))
        if report["exact"] or not float(np.nanmax(difference)) <= near * size:
            return f"differs by {float(np.nanmax(difference)):.3g} of {size:.3g}" + (
                ", and is said to be exact" if report["exact"] else ""
            )
    return "exact" if report["exact"] else "near"


def measure(case: Case) -> dict[str, Any]:
    """What becomes of a test, as it is and quantized."""
    row: dict[str, Any] = {"test": case.name, "operator": case.operator}
    with tempfile.TemporaryDirectory(prefix="nnloom-backend-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        path, made = folder / "model.onnx", folder / "quantized.onnx"
        path.write_bytes(case.model.SerializeToString())
        try:
            row["float"] = ran(path, case, folder / "float", "cpu", 1e-4)
        except NnloomError as error:
            return row | {"refused": reason_of(error, path)}
        try:
            data = {name: value[None] for name, value in case.inputs.items()}
            single = {name: v[0] if v.shape[1:2] == (1,) else v for name, v in data.items()}
            quantize(path, single, output=made, method="minmax", explain=False)
            row["quantized"] = ran(made, case, folder / "quantized", "model", 0.03)
        except NnloomError as error:
            row["quantized"] = f"refused: {reason_of(error, made)}"
    return row


def _is_wrong(text: str | None) -> bool:
    return text is not None and not text.startswith(("exact", "near", "refused"))


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    by_operator: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_operator[row["operator"]].append(row)
    run = [row for row in rows if "refused" not in row]
    kinds = Counter(row["float"] if not _is_wrong(row["float"]) else "wrong" for row in run)
    quantized = Counter(
        "wrong" if _is_wrong(row.get("quantized")) else str(row.get("quantized")).partition(":")[0] for row in run
    )
    import onnx
    import onnxruntime

    lines = [
        "<!-- Written by benchmarks/onnx_backend.py; do not edit. -->",
        "",
        "# ONNX backend node tests",
        "",
        f"The {len(rows):,} tests of operators with a float32 operand that onnx {onnx.__version__} ships for backends,",
        f"against ONNX Runtime {onnxruntime.__version__}: as they are on the CPU, and quantized (`nnloom quantize`) in",
        "the golden model. Operands that are no float32 are constants, as exporters write them. \"Near\" are float32",
        "sums and functions, which the report names (`exact: false`).",
        "",
        "| | exact | near, and named | refused | wrong |",
        "|---|---:|---:|---:|---:|",
        f"| float | {kinds['exact']} | {kinds['near']} | {len(rows) - len(run)} | {kinds['wrong']} |",
        f"| quantized | {quantized['exact']} | {quantized['near']} | {quantized['refused'] + len(rows) - len(run)} "
        f"| {quantized['wrong']} |",
        "",
        "| operator | tests | float: exact, near | quantized: exact, near | refused, and why |",
        "|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for operator, found in sorted(by_operator.items()):
        taken = [row for row in found if "refused" not in row]
        why = Counter(row["refused"] for row in found if "refused" in row)
        why.update(
            row["quantized"].removeprefix("refused: ") for row in taken if row["quantized"].startswith("refused")
        )
        cells = [
            operator,
            str(len(found)),
            ", ".join(str(sum(row["float"] == kind for row in taken)) for kind in ("exact", "near")),
            ", ".join(str(sum(row.get("quantized") == kind for row in taken)) for kind in ("exact", "near")),
            "; ".join(f"{count}: {text}" for text, count in why.items()).replace("|", "\\|"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    wrong = [row for row in run if _is_wrong(row["float"]) or _is_wrong(row.get("quantized"))]
    if wrong:
        lines += ["", "Wrong:", ""]
        lines += [f"- {row['test']}: {row['float']}; quantized: {row.get('quantized')}" for row in wrong]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="OPERATOR")
    options = parser.parse_args()
    known = {row["test"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.is_file() else {}
    rows = []
    for case in cases():
        if options.only and case.operator not in options.only:
            rows += [known[case.name]] if case.name in known else []
            continue
        try:
            row = measure(case)
        except Exception as error:  # a fault of ours: it is told, and the others go on
            row = {"test": case.name, "operator": case.operator, "float": f"{type(error).__name__}: {error}"[:200]}
        rows.append(row)
        if options.only or _is_wrong(row.get("float")) or _is_wrong(row.get("quantized")):
            print(json.dumps(row), flush=True)
    write_atomically(RESULTS, (json.dumps(rows, indent=0) + "\n").encode())
    write_atomically(DOCUMENT, page(rows).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
