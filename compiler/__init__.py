"""Compiler: model file -> Relax -> regions -> layers -> program, weights and CPU library."""

from __future__ import annotations

from typing import Any

__all__ = ["CompileResult", "PruneResult", "compile", "prune"]


def __getattr__(name: str) -> Any:
    # Late, so that importing the package does not import TVM.
    if name in __all__:
        if name in ("PruneResult", "prune"):
            from . import pruning

            return getattr(pruning, name)
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
