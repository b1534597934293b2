"""Depthwise rows that begin with the padding that the row before them ended with.

The sliding window of a depthwise convolution ends a row in the padding on the right and begins the next in that on the
left. Both read as the zero point, and the window keeps its columns until others push them out: between rows, channel
groups and layers. So the columns on the left need not be loaded once more, which saves a step in each row: one in eight
where a row has six pixels. Only the first row of a program has nothing before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nnloom.arch.isa import Descriptor, Kind

__all__ = ["keep_padding_columns"]


def _padding_on_the_left(d: Descriptor) -> int:
    """Column loads of a row before its first pixel."""
    return max(0, -(d.q_start // d.q_step_ox)) if d.q_step_ox else 0


def _padding_on_the_right(d: Descriptor) -> int:
    """Column loads of a row after its last pixel."""
    if not d.q_step_ox:
        return 0
    pixels = -(-(d.in_row_bytes - d.q_start) // d.q_step_ox)
    return max(0, min(d.n_ox, d.n_ox - pixels))


def keep_padding_columns(descriptors: Sequence[Descriptor]) -> list[Descriptor]:
    """The descriptors of one program without the loads of padding that is in the window already.

    Nothing is assumed of the window at the start of the program.
    """
    result = []
    known, value = 0, 0
    """newest columns of the window that are padding, and what they read as"""
    for d in descriptors:
        if d.kind != Kind.DENSE:
            right = _padding_on_the_right(d) if d.slide else 0
            if d.slide and known and value == d.pad_value:
                # Of every row, so the rows of this layer must end with as many.
                kept = min(known, right, _padding_on_the_left(d), d.slide_first)
                d = dataclasses.replace(
                    d, n_ox=d.n_ox - kept, q_start=d.q_start + kept * d.q_step_ox, slide_first=d.slide_first - kept
                )
            known, value = right, d.pad_value
        result.append(d)
    return result
