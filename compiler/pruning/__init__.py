"""Structured pruning: channels that a mask or a target names are taken out of an ONNX network."""

from __future__ import annotations

from .api import PrunedLayer, PruneResult, Stayed, prune

__all__ = ["PruneResult", "PrunedLayer", "Stayed", "prune"]
