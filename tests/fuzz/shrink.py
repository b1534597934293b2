"""Makes failing networks smaller: first the choices of which they were made, then the file itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator

import numpy as np

from .check import Verdict
from .draw import Recipe
from .generate import Built, build
from .network import pack, schema

__all__ = ["shrink_file", "shrink_recipe", "signature"]

Check = Callable[[Built], Verdict]


def signature(verdict: Verdict) -> str:
    """What kind of fault it is: a smaller network must have the same."""
    text = verdict.reason
    for kind in ("after later calls", "after the session", "differ, by up to", "in the file", "on stderr"):
        if kind in text:
            return kind
    if "the process ended" in text or "does not end" in text:
        return text
    return re.sub(r"'.*'", "", text).split(": ", 1)[-1]


def shrink_recipe(recipe: Recipe, verdict: Verdict, check: Check, *, attempts: int = 400) -> tuple[Recipe, Verdict]:
    """A recipe with fewer steps and simpler choices that fails in the same way.

    Parameters
    ----------
    check
        Builds nothing itself: gets the file of a recipe.
    attempts
        How many networks are tried at most.
    """
    wanted = signature(verdict)
    seen = {build_key(recipe)}
    while attempts > 0:
        for candidate in _simpler(recipe):
            built = build(candidate)
            if built is None or built.data in seen or candidate.size >= recipe.size:
                continue
            seen.add(built.data)
            attempts -= 1
            found = check(built)
            if found.kind == "fault" and signature(found) == wanted:
                recipe, verdict = candidate, found
                break
            if attempts <= 0:
                return recipe, verdict
        else:
            return recipe, verdict
    return recipe, verdict


def build_key(recipe: Recipe) -> bytes:
    built = build(recipe)
    return built.data if built else b""


def _simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Candidates, the boldest first."""

    def changed() -> Recipe:
        made = copy.deepcopy(recipe)
        made.seed = None
        return made

    count = len(recipe.steps)
    for size in (s for s in (count // 2, count // 4, 1) if s):
        for start in range(count - size, -1, -1):
            made = changed()
            del made.steps[start : start + size]
            yield made
    places = [("tail", -1), ("head", -1), *(("steps", i) for i in range(count))]

    def numbers(of: Recipe, place: tuple[str, int]) -> list[int]:
        return of.steps[place[1]].numbers if place[0] == "steps" else getattr(of, place[0])

    for place in places:
        if any(numbers(recipe, place)):
            made = changed()
            numbers(made, place).clear()
            yield made
    for place in places:
        values = numbers(recipe, place)
        for i in range(len(values) // 2, len(values), max(len(values) // 4, 1)):
            made = changed()
            del numbers(made, place)[i:]
            yield made
    for place in places:
        for i, value in enumerate(numbers(recipe, place)):
            for simpler in dict.fromkeys((0, value // 2, value - 1)):
                if 0 <= simpler < value:
                    made = changed()
                    numbers(made, place)[i] = simpler
                    yield made


def shrink_file(built: Built, verdict: Verdict, check: Check, *, attempts: int = 100) -> tuple[Built, Verdict]:
    """A file with fewer operators, inputs and outputs that fails in the same way."""
    wanted = signature(verdict)
    while attempts > 0:
        for candidate in _cut(built):
            attempts -= 1
            found = check(candidate)
            if found.kind == "fault" and signature(found) == wanted:
                built, verdict = candidate, found
                break
            if attempts <= 0:
                return built, verdict
        else:
            break
    return built, verdict


def _cut(built: Built) -> Iterator[Built]:
    """Files with an operator, an output or an input less. What a removed operator made becomes an input."""

    def edited(change: Callable[[schema.SubGraphT], bool]) -> Iterator[Built]:
        files = []
        for data in (built.data, built.reference):
            model = schema.ModelT.InitFromPackedBuf(data, 0)
            if not change(model.subgraphs[0]):
                return
            files.append(pack(model))
        graph = model.subgraphs[0]
        names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
        yield Built(files[0], files[1], tuple(names[codes[op.opcodeIndex]] for op in graph.operators))

    def without_operator(i: int) -> Callable[[schema.SubGraphT], bool]:
        def change(graph: schema.SubGraphT) -> bool:
            operator = graph.operators.pop(i)
            made = {int(v) for v in operator.outputs}
            read = {int(v) for op in graph.operators for v in op.inputs}
            graph.outputs = np.array([v for v in graph.outputs if int(v) not in made], np.int32)
            graph.inputs = np.array([*graph.inputs, *sorted(made & read)], np.int32)
            return bool(graph.operators) and len(graph.outputs) > 0

        return change

    def without_output(i: int) -> Callable[[schema.SubGraphT], bool]:
        def change(graph: schema.SubGraphT) -> bool:
            graph.outputs = np.delete(graph.outputs, i)
            return len(graph.outputs) > 0

        return change

    def without_input(i: int) -> Callable[[schema.SubGraphT], bool]:
        def change(graph: schema.SubGraphT) -> bool:
            gone = int(graph.inputs[i])
            graph.inputs = np.delete(graph.inputs, i)
            read = {int(v) for op in graph.operators for v in op.inputs} | {int(v) for v in graph.outputs}
            return gone not in read and len(graph.inputs) > 0

        return change

    graph = schema.ModelT.InitFromPackedBuf(built.data, 0).subgraphs[0]
    for i in range(len(graph.outputs)):
        yield from edited(without_output(i))
    for i in range(len(graph.operators)):
        yield from edited(without_operator(i))
    for i in range(len(graph.inputs)):
        yield from edited(without_input(i))
