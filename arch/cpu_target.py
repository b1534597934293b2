"""Processors that CPU code is compiled for: the compiler picks one, the runtime checks it before it runs the code."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

__all__ = ["CPU_TARGETS", "CpuTarget", "get_cpu_target", "host_cpu_target", "missing_features"]


@dataclass(frozen=True)
class CpuTarget:
    """A processor family and what kernels use of it."""

    name: str
    machine: str
    """as `platform.machine` says it"""
    cpu: str
    """LLVM's name of the processor"""
    features: tuple[str, ...]
    """LLVM's names of further features"""
    flags: frozenset[str]
    """what /proc/cpuinfo must list"""
    lanes: int
    """32-bit elements of a vector"""
    registers: int
    """vector registers"""
    dot_product: str | None = None
    """LLVM's intrinsic that adds four products of uint8 and int8 to each of 16 int32"""


_V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_WIDE = "-prefer-256-bit"
"""The kernels are cut for vectors of 512 bits; LLVM would halve them."""

CPU_TARGETS = (
    CpuTarget(
        "x86-64-v4-vnni",
        "x86_64",
        "x86-64-v4",
        ("+avx512vnni", _WIDE),
        _V4 | {"avx512_vnni"},
        16,
        32,
        "llvm.x86.avx512.vpdpbusd.512",
    ),
    CpuTarget("x86-64-v4", "x86_64", "x86-64-v4", (_WIDE,), _V4, 16, 32),
    CpuTarget("x86-64-v3", "x86_64", "x86-64-v3", (), _V3, 8, 16),
    CpuTarget("x86-64", "x86_64", "x86-64", (), frozenset(), 4, 16),
    CpuTarget("aarch64", "aarch64", "generic", ("+neon",), frozenset(), 4, 32),
)
"""Fastest first, of each machine."""


def get_cpu_target(name: str) -> CpuTarget:
    """The target of this name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for target in CPU_TARGETS:
        if target.name == name:
            return target
    raise ConfigError(f"no CPU target {name!r}; there are {', '.join(t.name for t in CPU_TARGETS)}")


def _host_flags(cpuinfo: Path) -> frozenset[str] | None:
    """Features of this processor; None where the system does not say."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    lines = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].split()) if lines else None


def missing_features(target: CpuTarget, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What this computer lacks to run code for `target`; empty if nothing, or if it cannot be known."""
    if platform.machine() != target.machine:
        return [f"a {target.machine} processor"]
    flags = _host_flags(cpuinfo)
    return [] if flags is None else sorted(target.flags - flags)


def host_cpu_target(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> CpuTarget:
    """The fastest target that this computer runs for certain.

    Raises
    ------
    ConfigError
        If there is no target for this kind of processor.
    """
    known = _host_flags(cpuinfo) is not None
    for target in CPU_TARGETS:
        if not missing_features(target, cpuinfo=cpuinfo) and (known or not target.flags):
            return target
    raise ConfigError(f"no CPU target for {platform.machine()}; there are {', '.join(t.name for t in CPU_TARGETS)}")
