"""AXI4 and AXI4-Lite as signatures, seen from the manager."""

from __future__ import annotations

import enum

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["AxiLiteSignature", "AxiResponse", "AxiSignature"]


class AxiResponse(enum.IntEnum):
    """RRESP and BRESP."""

    OKAY = 0
    EXOKAY = 1
    SLVERR = 2
    DECERR = 3


def _channel(letters: str, payload: dict[str, int], flow: type[Out] | type[In]) -> dict[str, wiring.Member]:
    back = In if flow is Out else Out
    members = {f"{letters}{name}": flow(width) for name, width in payload.items()}
    return members | {f"{letters}valid": flow(1), f"{letters}ready": back(1)}


class AxiLiteSignature(wiring.Signature):
    """AXI4-Lite with 32-bit data; the members are the standard's signals in lower case.

    Parameters
    ----------
    address_width
        Bits of byte addresses.
    """

    def __init__(self, *, address_width: int) -> None:
        self.address_width = address_width
        address = {"addr": address_width, "prot": 3}
        super().__init__(
            _channel("aw", address, Out)
            | _channel("w", {"data": 32, "strb": 4}, Out)
            | _channel("b", {"resp": 2}, In)
            | _channel("ar", address, Out)
            | _channel("r", {"data": 32, "resp": 2}, In)
        )


class AxiSignature(wiring.Signature):
    """AXI4 with one-bit IDs; the members are the standard's signals in lower case.

    Parameters
    ----------
    address_width
        Bits of byte addresses.
    data_width
        Bits of a beat: 32, 64 or 128.
    """

    def __init__(self, *, address_width: int, data_width: int) -> None:
        self.address_width = address_width
        self.data_width = data_width
        address = {"id": 1, "addr": address_width, "len": 8, "size": 3, "burst": 2, "lock": 1, "cache": 4, "prot": 3}
        super().__init__(
            _channel("aw", address, Out)
            | _channel("w", {"data": data_width, "strb": data_width // 8, "last": 1}, Out)
            | _channel("b", {"id": 1, "resp": 2}, In)
            | _channel("ar", address, Out)
            | _channel("r", {"id": 1, "data": data_width, "resp": 2, "last": 1}, In)
        )
