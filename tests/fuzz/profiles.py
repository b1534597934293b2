"""Distributions of networks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

__all__ = ["PROFILES", "TALL", "Profile", "get_profile"]


@dataclass(frozen=True)
class Profile:
    """What networks are drawn from. The first entry of each tuple is the simplest."""

    name: str
    steps: tuple[int, int]
    """operators, at least and at most"""
    kinds: dict[str, float]
    """steps of `tests.fuzz.operators` with their weights"""
    sides: tuple[int, ...]
    """rows and columns of inputs"""
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    ranks: tuple[int, ...] = (4,)
    """of inputs"""
    batches: tuple[int, ...] = (1,)
    latest: float = 0.7
    """probability that an operand is the latest value that fits"""
    extreme: float = 0.05
    """probability of an extreme scale, weight or bias, each time"""
    odd: float = 0.1
    """probability of an odd way of writing, each time"""
    edges: dict[str, float] = field(default_factory=lambda: {"INT8": 4, "UINT8": 1, "FLOAT32": 1})
    """types of inputs"""
    max_elements: int = 4096
    unsigned: bool = False
    """uint8 throughout, with weights of any zero point"""


_COMMON = {
    "conv": 16,
    "depthwise": 9,
    "dense": 6,
    "average_pool": 3,
    "max_pool": 3,
    "add": 5,
    "sub": 1.5,
    "mul": 2.5,
    "mean": 2,
    "softmax": 1.5,
    "requantize": 2,
    "relu": 2,
    "leaky_relu": 1,
    "logistic": 1,
    "tanh": 1,
    "hard_swish": 1,
    "resize_bilinear": 1,
    "resize_nearest": 1,
    "pad": 1.5,
    "concatenation": 1.5,
    "split": 1,
    "slice": 0.7,
    "strided_slice": 1,
    "transpose": 1,
    "reshape": 4,
    "flatten": 3,
    "squeeze": 0.5,
    "expand_dims": 0.5,
    "pack": 0.5,
    "transpose_conv": 1.5,
    "space_to_batch": 1,
    "batch_to_space": 0.5,
    "same_constants": 1,
    "residual": 2,
    "gate": 0.7,
    "conv_by_value": 0.3,
    "arg_max": 0.4,
}
"""Operators of published networks, about as often as they occur, the rare ones more."""

_BEYOND = {
    "space_to_depth": 5,
    "depth_to_space": 5,
    "gather": 1,
    "maximum": 1,
    "minimum": 1,
    "unpack": 1,
    "split_v": 1,
    "pad_v2": 1,
    "mirror_pad": 1,
    "batch_matmul": 1,
    "prelu": 1,
    "reduce_max": 1,
    "abs": 1,
    "float_between": 1,
}
"""Operators that nnloom need not know: right, or refused well."""

_SIGNED = ("conv_by_value", "dense_by_value", "resize_bilinear", "arg_max", "sub")
"""Steps that LiteRT refuses for uint8, or too often"""

_STATES = {"window": 4, "delay": 3, "running_sum": 2, "svdf": 2}
"""Operators that remember, in steps of `tests.fuzz.states`."""

PROFILES = {
    p.name: p
    for p in (
        Profile(
            name="mixed",
            steps=(1, 8),
            kinds=_COMMON,
            sides=(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13),
            channels=(1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20),
            kernels=(1, 2, 3, 3, 3, 4, 5, 7),
            strides=(1, 1, 1, 2, 2, 3, 4),
            ranks=(4, 4, 4, 4, 2, 2, 3),
            batches=(1,) * 9 + (2, 3),
        ),
        # Everything alike, ranks 1 to 6, extremes as often as not, few operators: the corners of single operators.
        Profile(
            name="wide",
            steps=(1, 4),
            kinds=dict.fromkeys(_COMMON, 1.0)
            | {"conv": 3, "depthwise": 3, "dense": 3}
            | {kind: weight / 4 for kind, weight in _BEYOND.items()},
            sides=(1, 1, 2, 3, 10, 17, 31, 40),
            channels=(1, 1, 2, 6, 8, 15, 31, 33, 64),
            kernels=(1, 2, 3, 5, 6, 9, 11),
            strides=(1, 2, 3, 5, 7),
            ranks=(4, 4, 4, 4, 1, 2, 3, 5, 6),
            batches=(1, 1, 2, 5),
            latest=0.4,
            extreme=0.4,
            odd=0.4,
            edges={"INT8": 1, "UINT8": 1, "FLOAT32": 1},
            max_elements=8192,
        ),
        # Long chains of the usual kinds with usual scales: errors that need a neighbour, and memory plans.
        Profile(
            name="chains",
            steps=(8, 24),
            kinds={
                "conv": 10,
                "depthwise": 8,
                "residual": 4,
                "add": 3,
                "dense": 2,
                "average_pool": 1,
                "max_pool": 1,
                "mul": 1,
                "gate": 1,
                "concatenation": 1.5,
                "split": 1,
                "reshape": 1,
                "flatten": 0.3,
                "relu": 1,
                "hard_swish": 0.5,
                "leaky_relu": 0.5,
                "pad": 1,
                "requantize": 0.7,
                "resize_nearest": 0.3,
                "transpose_conv": 0.4,
                "strided_slice": 0.4,
                "mean": 0.3,
                "softmax": 0.2,
            },
            sides=(4, 5, 8, 10, 12, 16),
            channels=(4, 3, 8, 10, 16, 24, 32),
            kernels=(1, 3, 3, 5),
            strides=(1, 1, 1, 1, 2),
            latest=0.85,
            extreme=0.0,
            odd=0.0,
            max_elements=8192,
        ),
        # As old converters made them: operators that have kernels of uint8.
        Profile(
            name="uint8",
            steps=(1, 8),
            kinds={kind: weight for kind, weight in _COMMON.items() if kind not in _SIGNED},
            sides=(1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13),
            channels=(1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20),
            kernels=(1, 2, 3, 3, 3, 4, 5, 7),
            strides=(1, 1, 1, 2, 2, 3, 4),
            ranks=(4, 4, 4, 4, 2, 2, 3),
            edges={"INT8": 1},
            unsigned=True,
        ),
        # Networks that remember from run to run, and what stands between their states.
        Profile(
            name="states",
            steps=(2, 8),
            kinds=_STATES
            | {
                "conv": 4,
                "depthwise": 3,
                "dense": 3,
                "add": 1,
                "mul": 0.5,
                "relu": 0.5,
                "requantize": 0.5,
                "softmax": 0.5,
                "flatten": 1,
                "reshape": 1,
                "strided_slice": 1,
                "split": 0.5,
                "max_pool": 0.5,
            },
            sides=(1, 2, 3, 5, 8),
            channels=(4, 1, 3, 8, 9, 16),
            kernels=(1, 3, 3, 5),
            strides=(1, 1, 1, 2),
            ranks=(4, 4, 2, 3),
            odd=0.1,
        ),
    )
}


TALL = dataclasses.replace(
    PROFILES["chains"],
    name="tall",
    sides=(16, 20, 24, 32, 40),
    channels=(4, 3, 8, 10, 16, 24),
    kernels=(1, 3, 3, 5, 7),
    max_elements=40_000,
)
"""Chains of large images, for memories that are too small for them."""


def get_profile(name: str) -> Profile:
    """A profile by name, perhaps directed at something.

    "mixed:steps=conv,residual;batch=2;odd=0.9" draws only those steps, with that batch and so much oddity.

    Raises
    ------
    ValueError
        If there is no such profile, step or field.
    """
    base, _, changes = name.partition(":")
    known_profiles = {**PROFILES, TALL.name: TALL}
    if base not in known_profiles:
        raise ValueError(f"no profile {base!r} ({', '.join(known_profiles)})")
    profile = dataclasses.replace(known_profiles[base], name=name)
    for change in filter(None, changes.split(";")):
        what, _, value = change.partition("=")
        match what:
            case "steps":
                known = _COMMON | _BEYOND | _STATES
                unknown = set(value.split(",")) - set(known)
                if unknown:
                    raise ValueError(f"no step {unknown.pop()!r} ({', '.join(known)})")
                profile = dataclasses.replace(profile, kinds=dict.fromkeys(value.split(","), 1.0))
            case "batch":
                profile = dataclasses.replace(profile, batches=(int(value),))
            case "odd" | "extreme" | "latest":
                profile = dataclasses.replace(profile, **{what: float(value)})
            case "edges":
                profile = dataclasses.replace(profile, edges=dict.fromkeys(value.split(","), 1.0))
            case _:
                raise ValueError(f"nothing to change named {what!r} (steps, batch, odd, extreme, latest, edges)")
    return profile
