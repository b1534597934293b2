"""Loads of parts brought forward: beside the program of the part before, where they touch nothing that it uses.

For parts whose places are given (strips, see `compiler.strip_program`): program and weights of the next part, and the
rows that it brings, come while a part runs. What of them has to wait keeps its place in the order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnloom.arch.artifact import Part, TensorLocation
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.isa import Descriptor, Kind
from nnloom.arch.steps import Step

__all__ = ["hoisted_steps"]

_Ranges = tuple[tuple[int, int], ...]
"""(first, end) of words or of granules of every bank"""


@dataclass(frozen=True)
class _Use:
    """What a part uses while it runs."""

    weights: _Ranges
    granules: _Ranges


def hoisted_steps(
    config: AcceleratorConfig,
    parts: Sequence[Part],
    external: Sequence[TensorLocation],
    programs: Sequence[Sequence[Descriptor]],
) -> tuple[Step, ...]:
    """The steps of a region in parts.

    Parameters
    ----------
    external
        The region's tensors in external memory.
    programs
        Descriptors of each part.
    """
    if config.compact:
        return ()
    return tuple(_steps(config, parts, external, [_use(config, program) for program in programs]))


def _steps(
    config: AcceleratorConfig, parts: Sequence[Part], external: Sequence[TensorLocation], uses: Sequence[_Use]
) -> Iterator[Step]:
    base = 0
    is_here = has_rows = False
    for index, part in enumerate(parts):
        if part.loads and not has_rows:
            yield Step(kind="bring", part=index)
        if not is_here:
            base = 0
            yield Step(kind="load", part=index)
        yield Step(kind="run", part=index)
        is_here = has_rows = False
        if index + 1 < len(parts):
            following, use = parts[index + 1], uses[index]
            place = _program_place(config, base, part.program_words, following.program_words)
            words = (following.weights_base, following.weights_base + following.weights_words)
            if place is not None and _is_free(words, use.weights):
                yield Step(kind="load", part=index + 1, under_way=1, program_base=place)
                base, is_here = place, True
            # Rows that are stored after this part may be among those that the next one brings.
            if following.loads and not part.stores and _rows_are_free(config, external, following, use):
                yield Step(kind="bring", part=index + 1, under_way=1)
                has_rows = True
        if part.stores:
            yield Step(kind="store", part=index)


def _program_place(config: AcceleratorConfig, used: int, size: int, wanted: int) -> int | None:
    """Program memory words beside those that are in use."""
    if wanted <= used:
        return 0
    return used + size if used + size + wanted <= config.program_words else None


def _rows_are_free(config: AcceleratorConfig, external: Sequence[TensorLocation], part: Part, use: _Use) -> bool:
    """Whether the rows that a part brings go to granules that are not in use."""
    for rows in part.loads:
        count = -(-rows.count // config.row_banks) * external[rows.tensor].row_stride
        if not _is_free((rows.base, rows.base + count), use.granules):
            return False
    return True


def _is_free(wanted: tuple[int, int], used: _Ranges) -> bool:
    return all(wanted[1] <= first or end <= wanted[0] for first, end in used)


def _use(config: AcceleratorConfig, program: Sequence[Descriptor]) -> _Use:
    weights, granules = [], []
    for d in program:
        two = d.kind == Kind.ADD
        last = d.weight_base + (d.n_g - 1) * d.weight_step_g
        weights.append((d.weight_base, last + config.parameter_words * (2 if two else 1) + d.n_ky * d.n_kx))
        rows = -(-d.in_rows // config.row_banks)
        size = (rows - 1) * d.in_row_stride + -(-d.in_row_bytes // config.granule)
        granules.append((d.in_base, d.in_base + size))
        if two or d.product:
            granules.append((d.in2_base, d.in2_base + size))
        row = d.out_row_start + d.n_oy * max(d.out_row_step, 2 if d.pixel_pair else 1)
        columns = d.n_ox * (d.n_kx if two else 1)
        end = (
            row // config.row_banks * d.out_row_stride + (columns - 1) * d.out_step_ox + (d.n_g - 1) * d.out_step_g + 2
        )
        granules.append((d.out_base, d.out_base + end))
    return _Use(tuple(weights), tuple(granules))
