"""The steps of an artifact's `HostPlan` in NumPy: operators that stay outside of the accelerator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.array_files import ArrayFileError, read_arrays
from nnloom.arch.artifact import CONSTANTS_FILE, Artifact, Exit, HostPlan
from nnloom.arch.dtypes import held_as
from nnloom.arch.errors import ArtifactError

__all__ = ["HostSteps"]


class HostSteps:
    """A plan with its constants.

    Parameters
    ----------
    plan
        The steps.
    sources
        How many values a run begins with: the network's inputs and states.
    constants
        Arrays in the order of their numbers.
    """

    def __init__(self, plan: HostPlan, sources: int, constants: Sequence[NDArray]) -> None:
        self.plan = plan
        self.constants = list(constants)
        self._first_constant = sources
        self._all = (*plan.steps, *plan.inside)

    @classmethod
    def load(cls, artifact: Artifact, leave: Exit | None = None) -> HostSteps:
        """Those of an artifact, or of one of its exits.

        Raises
        ------
        ArtifactError
            If the constants cannot be read, or are not as many as the plan says.
        """
        plan, first = (artifact.manifest.host, 0) if leave is None else (leave.host, leave.first_constant)
        sources = len(artifact.manifest.inputs) + len(artifact.manifest.states)
        constants: list[NDArray] = []
        if plan.constants:
            path = artifact.path / CONSTANTS_FILE
            try:
                arrays = read_arrays(path)
                if isinstance(arrays, np.ndarray):
                    raise ValueError("a single array")
                constants = [arrays[str(first + i)] for i in range(plan.constants)]
                _check_constants(plan, sources, constants)
            except ArrayFileError as error:
                raise ArtifactError(f"{error}; compile the model again") from error
            except (KeyError, ValueError) as error:
                raise ArtifactError(
                    f"{path}: not the constants of the plan ({error}); compile the model again"
                ) from error
        return cls(plan, sources, constants)

    @property
    def outputs(self) -> dict[int, int]:
        """Number of outputs of each step that is an operator, by its index; those within regions come last."""
        return {i: len(s.operation.outputs) for i, s in enumerate(self._all) if s.operation}

    def evaluate(self, index: int, operands: Sequence[NDArray]) -> list[NDArray]:
        """Compute a step.

        Parameters
        ----------
        index
            Its number in the plan, those within regions behind the others; not that of a region.
        operands
            Its operands without constants, in order.
        """
        # A hundred operators, which a network whose code is in its library needs none of.
        from nnloom.arch.reference import evaluate

        step = self._all[index]
        assert step.operation is not None
        given = iter(operands)
        values = [
            None if i is None else constant if (constant := self._constant(i)) is not None else next(given)
            for i in step.inputs
        ]
        try:
            return list(evaluate(step.operation, values))
        except (ArithmeticError, LookupError, AttributeError, MemoryError, TypeError, ValueError) as error:
            # Operators that the compiler has tried: only an edited artifact has others.
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise ArtifactError(
                f"manifest: {step.operation.kind} cannot be computed ({text}); compile the model again"
            ) from error

    def _constant(self, number: int) -> NDArray | None:
        index = number - self._first_constant
        return self.constants[index] if 0 <= index < len(self.constants) else None

    def operands(self, index: int, values: Sequence[NDArray]) -> list[NDArray]:
        """Those of a step that are not constants, from all values by number."""
        return [values[i] for i in self.plan.steps[index].inputs if i is not None and self._constant(i) is None]


def _check_constants(plan: HostPlan, first: int, constants: Sequence[NDArray]) -> None:
    """Constants have the shapes and dtypes that the steps state; ValueError if not."""
    for step in (*plan.steps, *plan.inside):
        for number, stated in zip(step.inputs, step.operation.inputs if step.operation else (), strict=False):
            index = -1 if number is None else number - first
            if stated is None or not 0 <= index < len(constants):
                continue
            dtype = held_as(stated.dtype)
            found = constants[index]
            if found.shape != stated.shape or found.dtype != dtype:
                raise ValueError(
                    f"constant {index} is {found.dtype}{list(found.shape)}, not {dtype}{list(stated.shape)}"
                )
