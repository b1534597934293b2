"""Runtime: sessions and devices."""

from .session import InferenceSession

__all__ = ["InferenceSession"]
