"""Golden model, RTL simulation and their comparison; `nnloom.sim.cocotb` is for tests of one's own."""

from .verification import SimulationResult, VerificationResult, simulate, verify

__all__ = ["SimulationResult", "VerificationResult", "simulate", "verify"]
