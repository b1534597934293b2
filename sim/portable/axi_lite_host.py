"""AXI4-Lite in cocotb, by cocotbext-axi's model of the manager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

__all__ = ["AxiLiteHost"]


class AxiLiteHost:
    """Driver of an AXI4-Lite port. One access after the other.

    Parameters
    ----------
    active_low
        Of the reset.

    Attributes
    ----------
    manager : AxiLiteMaster
        cocotbext-axi's, for stalls and accesses of one's own.
    """

    def __init__(
        self, dut: Any, *, prefix: str = "s_axi", clock: str = "clk", reset: str = "rst", active_low: bool = False
    ) -> None:
        bus = AxiLiteBus.from_prefix(dut, prefix)
        self.manager = AxiLiteMaster(bus, getattr(dut, clock), getattr(dut, reset), reset_active_level=not active_low)

    async def write_words(self, addresses: Sequence[int], words: Sequence[int]) -> None:
        """Write 32-bit words, each to its byte address, in order.

        Raises
        ------
        ValueError
            If one is answered with an error.
        """
        for address, word in zip(addresses, words, strict=True):
            answer = await self.manager.write(address, int(word).to_bytes(4, "little"))
            if answer.resp != AxiResp.OKAY:
                raise ValueError(f"write of {address:#x} was answered with {answer.resp.name}")

    async def read_words(self, addresses: Sequence[int]) -> list[int]:
        """Read 32-bit words.

        Raises
        ------
        ValueError
            If one is answered with an error.
        """
        words = []
        for address in addresses:
            answer = await self.manager.read(address, 4)
            if answer.resp != AxiResp.OKAY:
                raise ValueError(f"read of {address:#x} was answered with {answer.resp.name}")
            words.append(int.from_bytes(answer.data, "little"))
        return words
