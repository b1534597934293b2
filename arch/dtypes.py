"""The types of tensors' values, by name.

Names are those of NumPy, and `INT4` and `INT9`, which NumPy lacks. What the engine computes on is `ACTIVATION` and
`WEIGHT`; code that depends on the width of a type asks here.
"""

from __future__ import annotations

__all__ = [
    "ACTIVATION",
    "EIGHT_BITS",
    "INT4",
    "INT8",
    "INT9",
    "INT16",
    "LIMITS",
    "RECENTRED",
    "UINT8",
    "WEIGHT",
    "held_as",
]

INT4 = "int4"
"""weights only; values are held as int8"""
INT8 = "int8"
INT9 = "int9"
"""weights that were uint8, less their zero point; values are held as int16"""
INT16 = "int16"
UINT8 = "uint8"

ACTIVATION = INT8
"""activations in the engine's memory"""
WEIGHT = INT8
"""weights in the engine's memory"""

EIGHT_BITS = (INT8, UINT8)
"""what one byte of a tensor can be"""

RECENTRED = 128
"""uint8 less this is int8: a uint8 tensor's values and zero point on the engine"""

LIMITS = {INT4: (-8, 7), INT8: (-128, 127), UINT8: (0, 255), INT16: (-32768, 32767)}
"""least and greatest value of quantized tensors"""

_HELD = {INT4: INT8, INT9: INT16}


def held_as(dtype: str) -> str:
    """Name of the NumPy type whose arrays hold values of a type."""
    return _HELD.get(dtype, dtype)
