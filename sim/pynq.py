"""A stand-in of the PYNQ library on RTL simulation: `Overlay`, `MMIO` and `allocate` of a Zynq system in Verilator.

Accesses go through cocotbext-axi's bus models. Buffers behave as memory behind a cache that is not coherent: what
the driver writes is in DDR after `flush`, what the fabric wrote is seen after `invalidate`.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import APERTURE_BYTES, IP_NAME
from nnloom.arch.errors import DeviceError, ToolMissingError
from nnloom.arch.files import Scratch

from .build import build_simulator, build_verilator, cocotb_environment, verilator_root
from .process import last_words, wait_for_connection
from .rtl import RtlWrites

__all__ = ["SimulatedPynq", "build_zynq_simulation"]

TOPLEVEL = "zynq"
CONTROL_BASE = 0x4000_0000
"""Physical address of the AXI4-Lite aperture."""
DDR_BASE = 0x1000_0000
PAGE_BYTES = 4096
START_SECONDS = 120.0


def build_zynq_simulation(
    config: AcceleratorConfig, *, data_width: int, progress: Callable[[str], None] | None = None
) -> Path:
    """Elaborate a Zynq system and build its simulation, once: later calls find it in the user's cache.

    Returns the folder of the build.

    Raises
    ------
    ToolMissingError, BuildError
    """
    from nnloom.hw.emit import emit_verilog
    from nnloom.hw.technology import GenericTechnology
    from nnloom.hw.zynq import ZynqSystem, ZynqTop

    verilator_root()
    say = progress or (lambda _: None)

    def build(folder: Path) -> None:
        say("elaborating the system")
        technology = GenericTechnology(pairs=True)  # as a Xilinx device has them
        top = ZynqTop(ZynqSystem(config, data_width=data_width, technology=technology, observed=True))
        (folder / f"{TOPLEVEL}.v").write_text(emit_verilog(top, TOPLEVEL))
        say("building the simulation with verilator")
        build_verilator(folder, toplevel=TOPLEVEL, sources=[f"{TOPLEVEL}.v"], public=list(top.signature.members))

    return build_simulator("zynq", __file__, [str(config.hash), str(data_width)], build)


class SimulatedPynq:
    """In the place of the module `pynq`: give it to `PynqDevice`, or put it into `sys.modules`. A context manager.

    Parameters
    ----------
    config
        The accelerator.
    data_width
        Bits of the AXI4 port.

    Raises
    ------
    ToolMissingError, BuildError, DeviceError
        A missing tool; a failed build; a simulation that does not start.
    """

    def __init__(
        self, config: AcceleratorConfig, *, data_width: int = 64, progress: Callable[[str], None] | None = None
    ) -> None:
        try:
            import cocotbext.axi  # noqa: F401
        except ImportError as error:
            raise ToolMissingError("cocotbext-axi is not installed; pip install 'nnloom[sim]'") from error
        folder = build_zynq_simulation(config, data_width=data_width, progress=progress)
        self._scratch = Scratch("nnloom-zynq")
        self._temporary = self._scratch.path
        self._stdout = self._temporary / "stdout"
        self._next_address = DDR_BASE
        self._lanes = config.lanes
        self._buffers: dict[int, int] = {}
        self._connection: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._connection = self._start(folder)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path) -> Connection:
        address = str(self._temporary / "socket")
        env = cocotb_environment("nnloom.sim.benches.zynq", toplevel=TOPLEVEL, folder=self._temporary)
        env["NNLOOM_SERVER_SOCKET"] = address
        with Listener(address, "AF_UNIX") as listener, self._stdout.open("wb") as log:
            self._process = subprocess.Popen(
                [str(folder / TOPLEVEL)], env=env, stdout=log, stderr=log, cwd=self._temporary
            )
            # Listener has no time-out of its own.
            waiting: socket.socket = listener._listener._socket  # type: ignore[attr-defined]
            return wait_for_connection(
                waiting, listener.accept, process=self._process, log=self._stdout, seconds=START_SECONDS
            )

    def call(self, name: str, *arguments: Any) -> Any:
        """Run a command of `nnloom.sim.benches.zynq`; DeviceError if it fails there."""
        if self._connection is None:
            raise DeviceError("the simulation is closed")
        try:
            self._connection.send((name, *arguments))
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise DeviceError(f"simulation ended: {last_words(self._stdout)}") from error
        if kind == "error":
            raise DeviceError(value)
        return value

    def set_stalls(self, probability: float, seed: int = 0) -> None:
        """Every AXI channel pauses at random from now on, with this probability in each cycle."""
        self.call("stalls", seed, probability)

    def set_faults(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Physical addresses [start, stop) whose accesses are answered with SLVERR; replaces earlier ones."""
        self.call("faults", list(ranges))

    def watch(self) -> None:
        """Take down the engine's writes from now on; until then the simulation is faster."""
        self.call("watch")

    def writes(self) -> RtlWrites:
        """Those since the last call."""
        found = self.call("writes")
        values = np.array([write[:-1] for write in found], np.int64).reshape(-1, 4)
        data = np.frombuffer(b"".join(write[-1] for write in found), np.uint8).reshape(len(found), self._lanes)
        cycle, bank, granule, enable = values.T
        return RtlWrites(cycle, bank, granule, enable, data)

    def interrupt(self, cycles: int = 1) -> bool:
        """Let some cycles pass, then look at the interrupt line."""
        return bool(self.call("idle", cycles))

    # What follows has the names of the PYNQ library.
    def Overlay(self, bitfile_name: str, download: bool = True) -> _Overlay:
        """Reset the fabric, as loading its bitstream does. The file itself is not looked at."""
        if download:
            self.call("reset")
        return _Overlay(bitfile_name)

    def MMIO(self, base_addr: int, length: int = 4) -> _Mmio:
        """Registers at a physical address."""
        return _Mmio(self, base_addr, length)

    def allocate(self, shape: int | tuple[int, ...], dtype: DTypeLike = "u4") -> _Buffer:
        """A contiguous buffer on pages of its own; the fabric gets an error for accesses outside of all of them."""
        buffer = np.zeros(shape, dtype).view(_Buffer)
        pages = max(1, -(-buffer.nbytes // PAGE_BYTES))
        buffer.pynq, buffer.physical_address = self, self._next_address
        # A page is left out, so that running past an end is noticed.
        self._next_address += (pages + 1) * PAGE_BYTES
        self._buffers[buffer.physical_address] = pages * PAGE_BYTES
        self._allow()
        return buffer

    def release(self, address: int) -> None:
        """Take a buffer back."""
        del self._buffers[address]
        self._allow()

    def _allow(self) -> None:
        self.call("allow", [(start, start + size) for start, size in self._buffers.items()])

    def close(self) -> None:
        """End the simulation."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Overlay:
    """`pynq.Overlay`: what is in the bitstream."""

    def __init__(self, bitfile_name: str) -> None:
        self.bitfile_name = bitfile_name
        self.ip_dict = {IP_NAME: {"phys_addr": CONTROL_BASE, "addr_range": APERTURE_BYTES}}

    def free(self) -> None:
        """Nothing to release."""


class _Mmio:
    """`pynq.MMIO`: 32-bit registers."""

    def __init__(self, pynq: SimulatedPynq, base_addr: int, length: int) -> None:
        if base_addr < CONTROL_BASE or base_addr + length > CONTROL_BASE + APERTURE_BYTES:
            raise DeviceError(f"bus error: nothing at {base_addr:#x} + {length:#x}")
        self._pynq = pynq
        self._offset = base_addr - CONTROL_BASE
        self._length = length

    def _check(self, offset: int) -> int:
        if offset % 4 or not 0 <= offset <= self._length - 4:
            raise ValueError(f"MMIO offset {offset:#x} is unaligned or outside of {self._length:#x} bytes")
        return self._offset + offset

    def read(self, offset: int = 0) -> int:
        """A word."""
        return self._pynq.call("read", self._check(offset))

    def write(self, offset: int, data: int) -> None:
        """Write a word; an error response is a bus error, as on the processor."""
        response = self._pynq.call("write", self._check(offset), int(data).to_bytes(4, "little"))
        if response:
            raise DeviceError(f"bus error: write to {offset:#x} was answered with {response}")


class _Buffer(np.ndarray):
    """`pynq.buffer.PynqBuffer`."""

    pynq: SimulatedPynq
    physical_address: int

    def flush(self) -> None:
        """Write the cache back to DDR."""
        self.pynq.call("ddr_write", self.physical_address, self.tobytes())

    def invalidate(self) -> None:
        """Forget the cache, so that DDR is read."""
        data = self.pynq.call("ddr_read", self.physical_address, self.nbytes)
        values: NDArray = np.frombuffer(data, self.dtype).reshape(self.shape)
        self[...] = values

    def freebuffer(self) -> None:
        """Release the memory."""
        self.pynq.release(self.physical_address)
