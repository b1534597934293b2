"""What a region's list does between its inputs and its outputs: loads, runs, stores, and what each waits for.

The compiler writes the steps into the artifact, `arch.lists` makes descriptors of them (`arch.dma`). They are in the
order in which the DMA engine begins them; it begins the next when one is done, and a run is done when the program waits
for its turn: the accelerator runs programs one after the other, beside the loads and stores that follow. What must not
happen yet waits: `under_way`. A load of the next part beside the program that runs, then the part itself:

    load part 0, run part 0, load part 1 (under_way=1), run part 1

By default (0) a step waits until every program before it has ended. `arch.overlap_check` proves that a list waits
enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .schema import Count

if TYPE_CHECKING:
    from .artifact import Region

__all__ = ["Step", "region_steps"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, of one part."""

    kind: Literal["load", "program", "weights", "bring", "run", "store"]
    """its program and the weights that it loads; one of these alone; the rows that it loads; its program is started;
    the rows that it stores"""
    part: Count
    """index among the region's parts"""
    under_way: Count = 0
    """it begins when at most so many of the programs started before have not ended; `dma.AT_ONCE`: at once"""
    program_base: Count = 0
    """`load`, `program`: first program memory word"""
    weights_base: Count = 0
    """`load`: weight memory words by which the weights are moved from `Part.weights_base`, and its descriptors with
    them"""
    first_word: Count = 0
    """`load`, `weights`: first of the part's weight words that are loaded; with `load` the program comes with the
    first of all"""
    words: Count | None = None
    """`load`, `weights`: so many weight words; all that are left by default"""


def region_steps(region: Region) -> tuple[Step, ...]:
    """The steps of a region in parts: its own, or else each part is loaded and run, and nothing overlaps."""
    return region.steps or tuple(_in_turn(region))


def _in_turn(region: Region) -> Iterator[Step]:
    for index, part in enumerate(region.parts):
        if part.loads:
            yield Step(kind="bring", part=index)
        yield Step(kind="load", part=index)
        yield Step(kind="run", part=index)
        if part.stores:
            yield Step(kind="store", part=index)
