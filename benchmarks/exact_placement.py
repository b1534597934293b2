"""The least memory that tensors need, by the CP-SAT solver of OR-Tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from nnloom.compiler.memory import Lifetime

__all__ = ["Optimum", "solve"]


@dataclass(frozen=True)
class Optimum:
    """What the solver found within its time; granules of every bank."""

    offsets: dict[str, int]
    granules: int
    bound: int
    """no plan is shorter"""
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether no plan is shorter than the one found."""
        return self.granules == self.bound


def solve(lives: Sequence[Lifetime], *, seconds: float) -> Optimum:
    """Place rectangles of fixed time in the plane of time and memory without overlap, as low as possible.

    The solver gets nothing from the planner: neither a first plan nor a bound.

    Raises
    ------
    TimeoutError
        If no plan at all was found in `seconds`.
    """
    model = cp_model.CpModel()
    limit = sum(life.granules for life in lives)
    peak = model.new_int_var(0, limit, "peak")
    offsets, times, places = {}, [], []
    for life in lives:
        offset = offsets[life.name] = model.new_int_var(0, limit - life.granules, life.name)
        model.add(offset + life.granules <= peak)
        times.append(model.new_fixed_size_interval_var(life.first, life.last - life.first + 1, life.name))
        places.append(model.new_fixed_size_interval_var(offset, life.granules, life.name))
    model.add_no_overlap_2d(times, places)
    model.add_cumulative(times, [life.granules for life in lives], peak)
    model.minimize(peak)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise TimeoutError(f"CP-SAT: no plan in {seconds:g} s ({solver.status_name(status)})")
    return Optimum(
        {name: solver.value(offset) for name, offset in offsets.items()},
        round(solver.objective_value),
        round(solver.best_objective_bound),
        solver.wall_time,
    )
