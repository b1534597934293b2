"""From a seed to a recipe, and from a recipe to a TFLite file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.tflite_models import as_uint8

from .draw import Draw, Recipe, Step
from .network import Inapplicable, Network, Value, Writing, schema
from .operators import STEPS, draw_scale, draw_zero_point
from .profiles import Profile, get_profile
from .states import STATE_STEPS

__all__ = ["Built", "build", "generate"]

_ATTEMPTS = 40
"""Steps that are tried, for each that is wanted"""
_CORE = {"conv", "depthwise", "dense", "average_pool", "max_pool", "add", "residual", "gate"}
"""What runs on the accelerator; most networks have some of it."""


@dataclass(frozen=True)
class Built:
    """A network as a file."""

    data: bytes
    reference: bytes
    """the same network as LiteRT takes it"""
    operators: tuple[str, ...]
    """names of the operators, in order"""


def generate(seed: int, profile: str = "mixed") -> tuple[Recipe, Built]:
    """The network of a seed: the same for ever, unless the profile or the steps change."""
    p = get_profile(profile)
    rng = np.random.default_rng([seed, *profile.encode()])
    while True:
        made = _generate(rng, p)
        if made:
            made[0].seed = seed
            return made


def _generate(rng: np.random.Generator, p: Profile) -> tuple[Recipe, Built] | None:
    recipe = Recipe(p.name)
    net = Network(p.max_elements)
    head = Draw(rng=rng)
    try:
        _inputs(net, head, p)
    except Inapplicable:
        return None
    recipe.head = head.made
    kinds = list(p.kinds)
    weights = np.array([p.kinds[k] for k in kinds])
    wanted = int(rng.integers(p.steps[0], p.steps[1] + 1))
    core = int(rng.integers(wanted)) if rng.random() < 0.8 else -1
    for _ in range(_ATTEMPTS * wanted):
        if len(recipe.steps) == wanted:
            break
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        if len(recipe.steps) == core and kind not in _CORE and _CORE & set(kinds):
            continue
        draw = Draw(rng=rng)
        if _try(net, kind, draw, p):
            recipe.steps.append(Step(kind, draw.made))
    if not net.operators:
        return None
    tail = Draw(rng=rng)
    files = _finish(net, tail, p)
    recipe.tail = tail.made
    return recipe, Built(*files, tuple(net.operator_names))


def build(recipe: Recipe) -> Built | None:
    """The file of a recipe; steps that do not apply (any more) are left out. None if nothing is left."""
    p = get_profile(recipe.profile)
    net = Network(p.max_elements)
    try:
        _inputs(net, Draw(recipe.head), p)
    except Inapplicable:
        return None
    for step in recipe.steps:
        _try(net, step.kind, Draw(step.numbers), p)
    if not net.operators:
        return None
    files = _finish(net, Draw(recipe.tail), p)
    return Built(*files, tuple(net.operator_names))


def _try(net: Network, kind: str, draw: Draw, p: Profile) -> bool:
    """Add a step; a step that fails leaves nothing behind."""
    state = [len(part) for part in net.parts()]
    used = set(net.used)
    try:
        (STEPS | STATE_STEPS)[kind](net, draw, p)
    except Inapplicable:
        for part, count in zip(net.parts(), state, strict=True):
            del part[count:]
        net.bias_axes = {index: axis for index, axis in net.bias_axes.items() if index < len(net.tensors)}
        net.used = used
        return False
    return True


def _inputs(net: Network, d: Draw, p: Profile) -> None:
    """One to three inputs, perhaps alike, perhaps one that nothing reads."""
    count = d.pick((1, 2, 3), (7, 2, 1))
    first: Value | None = None
    for _ in range(count):
        if first is not None and d.chance(0.6):
            shape = first.shape
        else:
            shape = _input_shape(d, p)
        if first is not None and d.chance(0.3):
            scale, point = first.scale, first.zero_point
        else:
            scale, point = draw_scale(d, p), draw_zero_point(d, p)
        dtype = d.pick(list(p.edges), list(p.edges.values()))
        if dtype == "INT8":
            x = net.value(shape, "INT8", scale, point)
            net.inputs.append(x.index)
        else:
            raw = net.value(shape, dtype, scale, point + 128, keep=d.chance(0.2))
            net.inputs.append(raw.index)
            x = net.value(shape, "INT8", scale if not d.chance(0.2) else scale * 1.7, point)
            net.add_operator("QUANTIZE", [raw], [x], schema.QuantizeOptionsT())
            if d.chance(0.1):
                again = net.value(shape, "INT8", draw_scale(d, p), draw_zero_point(d, p))
                net.add_operator("QUANTIZE", [raw], [again], schema.QuantizeOptionsT())
        first = first or x
    if d.chance(p.odd):
        unused = net.value(_input_shape(d, p), "INT8", 0.1, 3, keep=False)
        net.inputs.append(unused.index)


def _input_shape(d: Draw, p: Profile) -> tuple[int, ...]:
    rank = d.pick(p.ranks)
    batch = d.pick(p.batches)
    if rank == 4:
        return batch, d.pick(p.sides), d.pick(p.sides), d.pick(p.channels)
    return (batch, *(d.pick(p.sides[:5]) for _ in range(rank - 2)), d.pick(p.channels))[:rank]


def _finish(net: Network, d: Draw, p: Profile) -> tuple[bytes, bytes]:
    """Choose outputs, perhaps of another type, and how the file is written."""
    leaves = [v for v in net.values if v.index not in net.used and v.index not in net.inputs]
    if len(leaves) > 1 and d.chance(0.15):
        leaves = leaves[: d.between(1, len(leaves) - 1)]
    if not leaves:
        leaves = [net.values[-1]]
    outputs: list[int] = []
    for leaf in leaves:
        how = "as it is"
        if leaf.dtype == "INT8":
            how = d.pick(("as it is", "UINT8", "FLOAT32"), (6, 1, 1))
        elif leaf.dtype in ("UINT8", "INT16") and d.chance(0.2):
            how = "FLOAT32"
        if how == "UINT8":
            y = net.value(leaf.shape, "UINT8", leaf.scale, leaf.zero_point + 128)
            net.add_operator("QUANTIZE", [leaf], [y], schema.QuantizeOptionsT())
        elif how == "FLOAT32":
            y = net.value(leaf.shape, "FLOAT32")
            net.add_operator("DEQUANTIZE", [leaf], [y], schema.DequantizeOptionsT())
        else:
            y = leaf
        outputs.append(y.index)
    if d.chance(0.15):
        inner = [v.index for v in reversed(net.values) if v.index not in outputs]
        outputs += [d.pick(inner)] if inner else []
    if d.chance(p.odd / 2):
        outputs.append(d.pick(net.inputs))
    if d.chance(p.odd / 4):
        outputs.append(outputs[0])
    if d.chance(0.3):
        outputs.reverse()
    writing = Writing(
        names=d.pick(("numbered", "none", "empty", "same", "doubled", "odd"), (1 - p.odd, *([p.odd / 5] * 5))),
        opcodes=d.pick(("both", "new", "old"), (1 - p.odd, p.odd / 2, p.odd / 2)),
        opcode_for_each=d.chance(p.odd / 2),
        open_batch=d.chance(p.odd / 2),
    )
    files = net.write(outputs, writing)
    if not p.unsigned:
        return files
    seed = d.between(0, 1 << 20)
    data, reference = (as_uint8(file, np.random.default_rng(seed), wide=seed % 4 > 0) for file in files)
    return data, reference
