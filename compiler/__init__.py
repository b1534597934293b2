"""Compiler: model file -> Relax -> regions -> layers -> program, weights and CPU library."""

from __future__ import annotations

from typing import Any

__all__ = ["CompileResult", "compile"]


def __getattr__(name: str) -> Any:
    # Late, so that importing the package does not import TVM.
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
