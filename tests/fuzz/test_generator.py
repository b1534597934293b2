"""The generator itself: the same network for the same seed, LiteRT takes it, faults are found and shrunk."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from nnloom.arch.errors import ModelError
from nnloom.compiler import api

from .__main__ import choose
from .check import Checker, Judge, Refused, Verdict, test_inputs
from .draw import Recipe
from .faults import FAULTS, TABLE, put_back
from .generate import Built, build, generate
from .network import schema
from .operators import STEPS
from .profiles import PROFILES
from .shrink import shrink_file, shrink_recipe, signature
from .states import STATE_STEPS
from .worker import Worker

WANTED = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D", "MAX_POOL_2D", "ADD", "SUB", "MUL", "MEAN"),
    *("SOFTMAX", "QUANTIZE", "DEQUANTIZE", "RELU", "RELU6", "LEAKY_RELU", "LOGISTIC", "TANH", "HARD_SWISH", "PAD"),
    *("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "CONCATENATION", "SPLIT", "SLICE", "STRIDED_SLICE", "TRANSPOSE"),
    *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "PACK", "TRANSPOSE_CONV", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"),
    "ARG_MAX",
)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_recipe_is_the_whole_network(profile):
    for seed in range(20):
        recipe, built = generate(seed, profile)
        assert generate(seed, profile)[1] == built
        assert build(Recipe.from_json(recipe.to_json())) == built


def test_every_operator_and_oddity_is_drawn():
    operators: set[str] = set()
    codes, names, shared, axes = set(), set(), 0, 0
    for seed in range(250):
        _, built = generate(seed, "mixed")
        operators.update(built.operators)
        model = schema.ModelT.InitFromPackedBuf(built.data, 0)
        graph = model.subgraphs[0]
        for code in model.operatorCodes:
            codes.add((code.builtinCode > 0, code.deprecatedBuiltinCode > 0))
        found = [tensor.name for tensor in graph.tensors]
        names.add("none" if None in found else "empty" if b"" in found else len(set(found)) < len(found))
        shared += bool(set(graph.inputs.tolist()) & set(graph.outputs.tolist()))
        axes += any(t.type == 2 and t.quantization.quantizedDimension == 3 for t in graph.tensors if t.quantization)
    assert set(WANTED) <= operators
    assert {(True, True), (True, False), (False, True)} <= codes
    assert names == {"none", "empty", True, False}
    assert shared > 2 and axes > 2


def test_litert_takes_most_networks():
    refused = 0
    for profile in ("mixed", "chains"):
        for seed in range(1000, 1060):
            try:
                Judge(generate(seed, profile)[1].reference)
            except Refused:
                refused += 1
    assert refused < 12


def test_every_step_applies_somewhere():
    steps = {step.kind for seed in range(1000) for step in generate(seed, "wide")[0].steps}
    assert steps == set(STEPS)
    assert {step.kind for seed in range(50) for step in generate(seed, "states")[0].steps} >= set(STATE_STEPS)


@pytest.mark.parametrize("operator", ["MUL", "DEPTHWISE_CONV_2D", "STRIDED_SLICE"])
def test_shrinking_leaves_the_operator_that_fails(operator):
    def check(built):
        return Verdict("fault", "1 of 1 differ, by up to 1") if operator in built.operators else Verdict("equal")

    seed = next(s for s in range(1000) if generate(s, "chains")[1].operators.count(operator) and s > 3)
    recipe, built = generate(seed, "chains")
    small, verdict = shrink_recipe(recipe, check(built), check)
    assert len(small.steps) == 1 and verdict.kind == "fault"
    cut, _ = shrink_file(build(small), verdict, check)
    assert cut.operators == (operator,)
    Judge(cut.reference)


@pytest.mark.parametrize(
    ("what", "kind", "stage"),
    [
        ("Judge.run", "discarded", "LiteRT"),
        ("_compile", "fault", "compile for 16x9"),
        ("InferenceSession", "fault", "cpu, 16x9"),
    ],
)
def test_a_process_that_ends_is_a_fault_of_whoever_worked(monkeypatch, what, kind, stage):
    _, built = generate(5, "chains")
    with Worker(start="fork") as worker:
        with monkeypatch.context() as patch:
            patch.setattr(f"tests.fuzz.check.{what}", lambda *arguments, **options: os._exit(3))
            if what == "InferenceSession":
                patch.setattr("tests.fuzz.check._compile", lambda *arguments: 1)
            verdict = worker.check(built, configs=["16x9"], inputs=1)
        assert (verdict.kind, verdict.reason) == (kind, f"{stage}: the process ended (3)")
        monkeypatch.setattr("tests.fuzz.check._compile", _refuse)
        assert worker.check(built, configs=["16x9"], inputs=1) == Verdict("refused", "no")


def _refuse(*arguments: object) -> None:
    raise ModelError("no")


def test_signatures_tell_kinds_of_faults_apart():
    reasons = (
        "16x9: cpu: output 0 of input 2: 3 of 4 differ, by up to 1",
        "16x9: cpu, after later calls: output 0 of input 0: 3 of 4 differ, by up to 1",
        "16x9: cpu: input 0: scale 1.0, zero point 0; in the file 1.0, 128",
        "compile for 16x9: ValueError: 'shape (1, 2)' (a.py:1)",
    )
    assert len({signature(Verdict("fault", text)) for text in reasons}) == 4
    assert signature(Verdict("fault", reasons[0])) == signature(Verdict("fault", reasons[0].replace("16x9", "8x5")))


def _varied(built: Built) -> bool:
    """Whether every output depends on the input."""
    judge = Judge(built.reference)
    cases = test_inputs(judge.inputs, np.random.default_rng(0), 3)
    return all(len({value.tobytes() for value in values}) == 3 for values in zip(*map(judge.run, cases), strict=True))


def test_the_checker_sees_what_is_wrong(tmp_path, monkeypatch):
    """Of a network that is right: an answer, an earlier answer, an input, text on stderr, a traceback, a dump."""
    from nnloom.runtime import InferenceSession

    checker = Checker(tmp_path)
    networks = (generate(seed, "mixed:steps=conv;edges=INT8;odd=0;extreme=0")[1] for seed in range(100))
    convolutions = (built for built in networks if built.operators == ("CONV_2D",) and _varied(built))
    built = next(b for b in convolutions if checker.check(b, configs=["16x9"]).kind == "equal")
    run = InferenceSession.run

    def off_by_one(self, inputs):
        outputs = run(self, inputs)
        first = next(iter(outputs.values()))
        first.flat[-1] ^= 1
        return outputs

    memory: dict[str, np.ndarray] = {}

    def reusing(self, inputs):
        for name, value in run(self, inputs).items():
            memory.setdefault(name, value)[...] = value
        return dict(memory)

    def changing(self, inputs):
        outputs = run(self, inputs)
        next(iter(inputs.values())).flat[0] ^= 1
        return outputs

    def noisy(self, inputs):
        import os

        os.write(2, b"Warning: something of a library's\n")
        return run(self, inputs)

    def failing(self, inputs):
        raise IndexError("list index out of range")

    for patched, text in (
        (off_by_one, "1 of"),
        (reusing, "after later calls"),
        (changing, "an input array was changed"),
        (noisy, "on stderr: Warning: something"),
        (failing, "IndexError: 'list index out of range'"),
    ):
        monkeypatch.setattr(InferenceSession, "run", patched)
        verdict = checker.check(built, configs=["16x9"])
        assert verdict.kind == "fault" and text in verdict.reason, verdict
    monkeypatch.undo()

    def dump(*arguments, **options):
        raise ModelError("cannot import it\n R.Tensor((1, 2))")

    monkeypatch.setattr(api, "compile", dump)
    verdict = checker.check(built, configs=["16x9"])
    assert verdict.kind == "fault" and "R.Tensor" in verdict.reason


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.native])
def test_faults_of_the_past_are_found(tmp_path, name):
    """By the seed of the table, or, when the compiler has moved that operator to the accelerator, by another one."""
    fault, known = FAULTS[name], json.loads(TABLE.read_text())[name]["seed"]
    with put_back(name):
        for seed in (known, *range(150)):
            _, built = generate(seed, fault.profile)
            how = choose(fault.profile, seed, native_share=0.0)
            if Checker(tmp_path / "with").check(built, **how).kind == "fault":
                break
        else:
            pytest.fail("not found")
    verdict = Checker(tmp_path / "without").check(built, **how)
    assert verdict.kind == "equal", verdict


def test_a_profile_can_be_directed():
    for seed in range(30):
        recipe, built = generate(seed, "mixed:steps=conv,residual;batch=2;edges=INT8;odd=0")
        assert {step.kind for step in recipe.steps} <= {"conv", "residual"}
        assert build(Recipe.from_json(recipe.to_json())) == built
        graph = schema.ModelT.InitFromPackedBuf(built.data, 0).subgraphs[0]
        assert all(graph.tensors[i].shape[0] == 2 and graph.tensors[i].type == 9 for i in graph.inputs)
    for wrong in ("narrow", "mixed:steps=fold", "mixed:colour=red"):
        with pytest.raises(ValueError, match=r"no profile|no step|nothing to change"):
            generate(0, wrong)
