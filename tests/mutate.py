"""Mutations: one changed place at a time, to see whether the tests of a file notice.

    python -m tests.mutate --seeds 0-99           run seeded mutations, and add the results to tests/mutations.json
    python -m tests.mutate --show 17              what seed 17 changes, without running anything
    python -m tests.mutate --survivors            the mutations of the table that no test noticed

Each runs in a scratch copy of the tree, which is made once for all. A seed always means the same mutation of the same
sources; the table keeps their commit and the text of the line, because lines move. A test that takes far longer than
without the mutation is ended, and has noticed it (`tests.time_limits`).
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("mutations.json")
LONGEST_SECONDS = 600
"""Processor time of a mutation's tests, if one cannot be interrupted when its own time is over (tests.time_limits).
Either way the mutation counts as noticed: it does not end, or it ends far too late."""
MEMORY_BYTES = 16 << 30

COVERED_BY: dict[str, tuple[str, ...]] = {
    # Numerics and coding.
    "arch/numerics.py": ("tests/arch/test_numerics.py", "tests/arch/reference/test_fixed_point.py"),
    "arch/isa.py": ("tests/arch/test_isa.py", "tests/arch/test_loopnest.py"),
    "arch/link.py": ("tests/arch/test_link.py",),
    "arch/loopnest.py": ("tests/arch/test_loopnest.py", "tests/sim/test_golden.py", "tests/hw/test_sequencer.py"),
    # Lowering.
    "compiler/lower.py": (
        "tests/compiler/test_limits.py",
        "tests/compiler/test_lower.py",
        "tests/sim/test_golden.py",
        "tests/compiler/test_partition.py",
    ),
    "compiler/memory.py": ("tests/compiler/test_limits.py", "tests/compiler/test_memory.py"),
    "compiler/padding_columns.py": ("tests/compiler/test_padding_columns.py",),
    "compiler/overlap.py": (
        "tests/compiler/test_overlap.py",
        "tests/sim/test_golden.py",
        "tests/hw/test_accelerator.py",
    ),
    # RTL.
    "hw/requantizer.py": ("tests/hw/test_requantizer.py", "tests/hw/test_accelerator.py"),
    "hw/sequencer.py": ("tests/hw/test_sequencer.py", "tests/hw/test_accelerator.py"),
    "hw/operand.py": ("tests/hw/test_datapath.py", "tests/hw/test_accelerator.py"),
    "hw/mac_array.py": ("tests/hw/test_datapath.py",),
    "hw/activation_memory.py": ("tests/hw/test_datapath.py", "tests/hw/test_accelerator.py"),
    "hw/weight_memory.py": ("tests/hw/test_datapath.py", "tests/hw/test_accelerator.py"),
    "hw/descriptor.py": ("tests/hw/test_sequencer.py", "tests/hw/test_accelerator.py"),
    "hw/accelerator.py": ("tests/hw/test_accelerator.py",),
    "hw/frames.py": ("tests/hw/test_host_link.py",),
    "hw/host_link.py": ("tests/hw/test_host_link.py",),
    "hw/compact.py": ("tests/hw/test_compact.py",),
    "hw/compact_requantizer.py": ("tests/hw/test_compact.py",),
    "hw/compact_sequencer.py": ("tests/hw/test_sequencer.py",),
    # Drivers.
    "runtime/session.py": (
        "tests/runtime/test_device_life.py",
        "tests/runtime/test_session.py",
        "tests/runtime/test_fallback.py",
        "tests/runtime/test_results.py",
        "tests/runtime/test_trust.py",
    ),
    "runtime/devices/base.py": ("tests/runtime/test_fallback.py", "tests/runtime/test_serial.py"),
    "runtime/devices/serial.py": ("tests/runtime/test_serial.py", "tests/runtime/test_fallback.py"),
    "sim/golden.py": ("tests/compiler/test_limits.py", "tests/sim/test_golden.py"),
}
"""The tests of each file, the quick ones first."""

GROUPS: dict[str, tuple[str, ...]] = {
    "RTL": tuple(file for file in COVERED_BY if file.startswith("hw/")),
    "numerics": tuple(file for file in COVERED_BY if file.startswith("arch/")),
    "lowering": tuple(file for file in COVERED_BY if file.startswith(("compiler/", "sim/"))),
    "drivers": tuple(file for file in COVERED_BY if file.startswith("runtime/")),
}

_SWAPS: dict[type, tuple[str, ...]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.BitXor: ("^", "|"),
}
_NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True)
class Mutation:
    """A place of a file and what stands there instead; offsets are in bytes of UTF-8."""

    file: str
    line: int
    start: int
    end: int
    kind: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a mutation."""

    seed: int
    file: str
    line: int
    kind: str
    before: str
    """the line, or the beginning of the statement, as it is"""
    after: str
    outcome: str
    """killed, survived or equivalent"""
    by: str = ""
    """the test that noticed it, or why none can"""
    seconds: float = 0.0
    commit: str = ""
    """of the sources"""


class _Finder:
    """Mutations of one file."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text = file, text
        self.data = text.encode()
        starts = [0]
        for line in self.data.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts
        self.found: list[Mutation] = []

    def offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def source(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.data[start:end].decode()

    def add(self, start: int, end: int, kind: str, after: str) -> None:
        line = self.data.count(b"\n", 0, start) + 1
        self.found.append(Mutation(self.file, line, start, end, kind, self.data[start:end].decode(), after))

    def operator(self, left: ast.AST, right: ast.AST, op: ast.AST) -> None:
        if type(op) not in _SWAPS:
            return
        token, other = _SWAPS[type(op)]
        start, end = self.span(left)[1], self.span(right)[0]
        at = self.data.find(token.encode(), start, end)
        if at >= 0 and b"#" not in self.data[start:end]:
            self.add(at, at + len(token), "operator", other)

    def visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or self.skip(child):
                    continue
                self.mutate(child)
                self.visit(child)

    @staticmethod
    def skip(node: ast.AST) -> bool:
        """What is no behaviour: texts of errors, docstrings, imports, names for export, assertions."""
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            return node.targets[0].id == "__all__"
        return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"

    def mutate(self, node: ast.AST) -> None:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                self.operator(left, right, op)
            case ast.BinOp(left=left, op=op, right=right):
                if not isinstance(left, ast.Constant | ast.JoinedStr) or isinstance(left.value, int):  # type: ignore[union-attr]
                    self.operator(left, right, op)
            case ast.BoolOp(op=op, values=[left, right, *_]):
                start, end = self.span(left)[1], self.span(right)[0]
                token, other = (b"and", "or") if isinstance(op, ast.And) else (b"or", "and")
                at = self.data.find(token, start, end)
                if at >= 0:
                    self.add(at, at + len(token), "operator", other)
            case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub(), operand=operand):
                if not isinstance(operand, ast.Constant):
                    self.add(*self.span(node), "operator", self.source(operand))
            case ast.Constant(value=bool() as value):
                self.add(*self.span(node), "constant", str(not value))
            case ast.Constant(value=int() as value):
                for other in (value + 1, value - 1):
                    self.add(*self.span(node), "constant", str(other) if other >= 0 else f"({other})")
            case ast.Expr(value=ast.Call()) | ast.AugAssign():
                if not self.source(node).startswith("super()"):
                    self.add(*self.span(node), "removed statement", "pass")
            case ast.If(test=test, body=[ast.Raise(), *_]) | ast.While(test=test):
                self.add(*self.span(test), "removed condition", "False")
            case ast.If(test=test) | ast.IfExp(test=test):
                self.add(*self.span(test), "removed condition", "True")
                self.add(*self.span(test), "removed condition", "False")
            case ast.comprehension(ifs=[test]):
                self.add(*self.span(test), "removed condition", "True")
            case ast.Call():
                self.call(node)

    def call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _NAMES:
            end = self.span(node.func)[1]
            self.add(end - len(name), end, "operator", _NAMES[name])
        if name in ("If", "Elif") and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
            self.add(*self.span(node.args[0]), "removed condition", "1")
            self.add(*self.span(node.args[0]), "removed condition", "0")
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        # Of some the order does not matter, of others the mutant never lives.
        if name in ("isinstance", "getattr", "range", "print", "max", "min", "maximum", "minimum") or len(plain) < 2:
            return
        first, second = plain[0], plain[1]
        (start, _), (_, end) = self.span(first), self.span(second)
        between = self.data[self.span(first)[1] : self.span(second)[0]].decode()
        if self.source(first) != self.source(second):
            self.add(start, end, "swapped arguments", self.source(second) + between + self.source(first))


def mutations(file: str, root: Path = ROOT) -> list[Mutation]:
    """Every mutation of a file, in order of its text."""
    text = (root / file).read_text()
    finder = _Finder(file, text)
    finder.visit(ast.parse(text))
    return sorted(finder.found, key=lambda m: (m.start, m.end, m.kind, m.after))


def pick(seed: int, root: Path = ROOT) -> Mutation:
    """The mutation of a seed: groups in turn, then a random file, kind and place."""
    rng = random.Random(seed)
    group = list(GROUPS)[seed % len(GROUPS)]
    files = [file for file in GROUPS[group] if (root / file).exists()]
    candidates = mutations(rng.choice(files), root)
    kind = rng.choice(sorted({m.kind for m in candidates}))
    return rng.choice([m for m in candidates if m.kind == kind])


def apply(mutation: Mutation, data: bytes) -> bytes:
    """The file's bytes with the mutation."""
    return data[: mutation.start] + mutation.after.encode() + data[mutation.end :]


def shown(data: bytes, mutation: Mutation, after: bool) -> str:
    """The line of the mutation, without indentation; of several lines the first and what changed."""
    changed = apply(mutation, data) if after else data
    end = mutation.start + len(mutation.after.encode()) if after else mutation.end
    start = data.rfind(b"\n", 0, mutation.start) + 1
    stop = changed.find(b"\n", end)
    return " ".join(changed[start : stop if stop >= 0 else len(changed)].decode().split())


class Scratch:
    """A copy of the tree in which `nnloom` is the copy's."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], Path] = {}
        """how long each test takes as the tree is"""
        revision = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, check=True, text=True
        )
        self.commit = revision.stdout.strip()
        self.path = Path(tempfile.mkdtemp(prefix="nnloom-mutate-"))
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in names.decode().split("\0"):
            if name and (ROOT / name).is_file():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.path / name)
        package = self.path / "nnloom"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        for name, folder in project["tool"]["setuptools"]["package-dir"].items():
            if name.startswith("nnloom."):
                (package / name.removeprefix("nnloom.")).symlink_to(self.path / folder)
        code = "import nnloom.arch.isa as isa; print(isa.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], cwd=self.path, env=self._environment, capture_output=True, check=True
        )
        assert found.stdout.decode().startswith(str(self.path)), f"nnloom is not the copy's but {found.stdout!r}"

    @property
    def _environment(self) -> dict[str, str]:
        variables = {
            "PYTHONPATH": str(self.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "400",
        }
        return {**os.environ, **variables}

    def check(self, tests: tuple[str, ...]) -> None:
        """End the program if tests fail as the tree is: they would kill every mutation."""
        if tests in self._seconds:
            return
        seconds = self.path / f"seconds-{len(self._seconds)}.json"
        passed, by = self.run(tests, seconds)
        if not passed:
            sys.exit(f"{by} fails without a mutation; mend it first")
        self._seconds[tests] = seconds

    def run(self, tests: tuple[str, ...], seconds: Path | None = None) -> tuple[bool, str]:
        """(whether all pass, the first that does not, or what happened)."""
        present = [t for t in tests if (self.path / t.split("::")[0]).exists()]
        # The wall clock is no measure on a busy machine: the processor time is limited.
        limit = "import resource, sys"
        limit += f"; resource.setrlimit(resource.RLIMIT_CPU, ({LONGEST_SECONDS}, {LONGEST_SECONDS}))"
        # A loop without an end may also fill the memory.
        limit += f"; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))"
        code = f"{limit}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        options = [
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-p",
            "tests.time_limits",
            "--hypothesis-seed=0",
            "-W",
            "ignore",
        ]
        with subprocess.Popen(
            [sys.executable, "-c", code, *options, *present],
            cwd=self.path,
            env={**self._environment, "NNLOOM_TEST_SECONDS": str(seconds or self._seconds[tests])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=10 * LONGEST_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return False, "time"
        if process.returncode == 0:
            return True, ""
        if process.returncode < 0:
            return False, "time"
        for line in output.splitlines():
            if line.startswith(("FAILED ", "ERROR ")):
                test, _, reason = line.split(" ", 1)[1].partition(" - ")
                return False, f"{test} (time)" if "s of the processor" in reason else test
        return False, "collection"

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def read_table() -> list[Result]:
    """The committed results."""
    if not TABLE.exists():
        return []
    return [Result(**entry) for entry in json.loads(TABLE.read_text())["mutations"]]


def write_table(results: list[Result]) -> None:
    """Sorted by seed, one a line."""
    results = sorted(results, key=lambda r: r.seed)
    counts = {o: sum(r.outcome == o for r in results) for o in ("killed", "equivalent", "survived")}
    rows = ",\n".join(json.dumps(dataclasses.asdict(r)) for r in results)
    text = f'{{"counts": {json.dumps(counts)},\n"mutations": [\n{rows}\n]}}\n'
    temporary = TABLE.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(TABLE)


def _seeds(text: str) -> Iterator[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def main() -> int:
    """The command; 1 if a mutation survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=lambda text: list(_seeds(text)), default=[], help="such as 0-99 or 3,7")
    parser.add_argument("--again", action="store_true", help="also those that the table has")
    parser.add_argument("--show", type=int, metavar="SEED")
    parser.add_argument("--survivors", action="store_true")
    options = parser.parse_args()
    results = {result.seed: result for result in read_table()}
    if options.survivors:
        for result in results.values():
            if result.outcome == "survived":
                print(f"{result.seed}: {result.file}:{result.line}\n  - {result.before}\n  + {result.after}")
        return 0
    if options.show is not None:
        mutation = pick(options.show)
        data = (ROOT / mutation.file).read_bytes()
        print(f"{mutation.file}:{mutation.line} {mutation.kind}")
        print(f"- {shown(data, mutation, False)}\n+ {shown(data, mutation, True)}")
        return 0
    scratch, survived = Scratch(), 0
    try:
        for seed in options.seeds:
            if seed in results and not options.again:
                continue
            # Of the copy: the tree may change meanwhile.
            mutation = pick(seed, scratch.path)
            scratch.check(COVERED_BY[mutation.file])
            path = scratch.path / mutation.file
            data, begin = path.read_bytes(), time.monotonic()
            path.write_bytes(apply(mutation, data))
            try:
                passed, by = scratch.run(COVERED_BY[mutation.file])
            finally:
                path.write_bytes(data)
            results[seed] = Result(
                seed=seed, file=mutation.file, line=mutation.line, kind=mutation.kind,
                before=shown(data, mutation, False), after=shown(data, mutation, True),
                outcome="survived" if passed else "killed", by=by, seconds=round(time.monotonic() - begin, 1),
                commit=scratch.commit,
            )  # fmt: skip
            survived += passed
            write_table(list(results.values()))
            print(f"{seed}: {mutation.file}:{mutation.line} {results[seed].outcome} {by}", flush=True)
    finally:
        scratch.close()
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
