"""RTL simulation of the accelerator in cocotb, on Verilator or Icarus, as a process that stays up.

The test bench (`benches/nnloom_tb.v`) plays files of host writes and logs every write of the engine to activation
memory by itself, so that Python is not involved in every cycle; the cocotb test (`benches/server.py`)
receives commands over a socket and drives it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError, DeviceError, ToolMissingError
from nnloom.arch.files import Scratch

from .build import build_simulator, build_verilator, cocotb_environment, run_tool, verilator_root
from .process import last_words, wait_for_connection

__all__ = [
    "SIMULATORS",
    "TOPLEVEL",
    "RtlSimulator",
    "RtlWrites",
    "build_simulation",
    "simulation_command",
]

SIMULATORS = ("verilator", "icarus")
TOPLEVEL = "nnloom_tb"
TESTBENCH = Path(__file__).parent / "benches" / "nnloom_tb.v"
START_SECONDS = 300
"""Longest wait for a simulator to be ready."""
PUBLIC = (
    *("clk", "rst", "play", "playing", "busy", "req_valid", "req_ready", "req_write", "req_address", "req_data"),
    *("rsp_valid", "rsp_ready", "rsp_data"),
    *("write_valid", "write_bank", "write_granule", "write_enable", "write_data"),
)
"""Ports of the test bench."""


@dataclass(frozen=True)
class RtlWrites:
    """Writes of the engine to activation memory. cycle, bank, granule, enable: int64 [n]; data: uint8 [n, lanes]."""

    cycle: NDArray[np.int64]
    bank: NDArray[np.int64]
    granule: NDArray[np.int64]
    enable: NDArray[np.int64]
    data: NDArray[np.uint8]

    def __getitem__(self, chosen: slice) -> RtlWrites:
        """Some of the writes."""
        return RtlWrites(*(getattr(self, field.name)[chosen] for field in dataclasses.fields(self)))


def _build_icarus(folder: Path, sources: Sequence[str], data_bits: int) -> None:
    command = ["iverilog", "-g2012", "-s", TOPLEVEL, f"-P{TOPLEVEL}.DATA_BITS={data_bits}"]
    run_tool([*command, "-o", str(folder / "sim.vvp"), *sources], folder=folder, log=folder / "build.log")


def build_simulation(
    config: AcceleratorConfig,
    *,
    simulator: str = "verilator",
    waves: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Elaborate the accelerator and build its simulation, once: later calls find it in the user's cache.

    Returns the folder of the build.

    Raises
    ------
    ConfigError, ToolMissingError, BuildError
        Unknown simulator; a missing tool; a failed build (the message names the log).
    """
    if simulator not in SIMULATORS:
        raise ConfigError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if simulator == "icarus" and not shutil.which("iverilog"):
        raise ToolMissingError("Icarus Verilog is not installed; apt-get install iverilog, or use Verilator")
    if simulator == "verilator":
        verilator_root()
    say = progress or (lambda _: None)

    def build(folder: Path) -> None:
        from nnloom.hw import emit
        from nnloom.hw.engine_top import ENGINE, EngineTop

        say("elaborating the accelerator")
        engine = EngineTop(config)
        # For waves: names of the source.
        verilog = (
            emit.emit_portable_verilog(engine, ENGINE)
            if waves
            else emit.emit_verilog(engine, ENGINE, flatten=simulator == "icarus")
        )
        sources = [f"{TOPLEVEL}.v", f"{ENGINE}.v"]
        (folder / sources[1]).write_text(verilog)
        (folder / sources[0]).write_text(TESTBENCH.read_text())
        once = "once for each configuration, a minute or two" if simulator == "verilator" else "once"
        say(f"building the simulator with {simulator.capitalize()} ({once})")
        data_bits = 8 * config.lanes
        if simulator == "verilator":
            parameters = {"DATA_BITS": data_bits}
            build_verilator(
                folder, toplevel=TOPLEVEL, sources=sources, public=PUBLIC, waves=waves, parameters=parameters
            )
        else:
            _build_icarus(folder, sources, data_bits)

    identity = [str(config.hash), simulator, str(waves), TESTBENCH.read_text()]
    return build_simulator("sim", __file__, identity, build)


def simulation_command(folder: Path, *, simulator: str, waves: Path | None, plusargs: Sequence[str]) -> list[str]:
    """The command that runs what `build_simulation` made in `folder`."""
    import cocotb_tools.config

    if simulator == "verilator":
        trace = ["--trace", "--trace-file", str(waves)] if waves else []
        return [str(folder / TOPLEVEL), *trace, *plusargs]
    module = cocotb_tools.config.libs_dir / "libcocotbvpi_icarus.so"
    options = ["-fst", f"+waves={waves}"] if waves else []
    return ["vvp", "-m", str(module), str(folder / "sim.vvp"), *options, *plusargs]


class RtlSimulator:
    """A running simulation of the accelerator. Use as a context manager.

    Parameters
    ----------
    config
        The accelerator.
    simulator
        "verilator" or "icarus".
    waves
        File for a waveform of the whole run (FST), or None.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        simulator: str = "verilator",
        waves: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self._folder = build_simulation(config, simulator=simulator, waves=waves is not None, progress=progress)
        self._scratch = Scratch("nnloom-sim")
        self._temporary = self._scratch.path
        self._stdout = self._temporary / "stdout"
        self._simulator = simulator
        self._log_offset = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._waves = waves
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        address = str(self._temporary / "socket")
        listener.bind(address)
        listener.listen(1)
        plusargs = [f"+writes={self._temporary / 'writes'}", f"+log={self._temporary / 'log'}"]
        env = cocotb_environment("nnloom.sim.benches.server", toplevel=TOPLEVEL, folder=self._temporary)
        env["NNLOOM_SERVER_SOCKET"] = address
        command = simulation_command(self._folder, simulator=self._simulator, waves=self._waves, plusargs=plusargs)
        with listener, self._stdout.open("wb") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self._temporary)
            connection, _ = wait_for_connection(
                listener, listener.accept, process=self._process, log=self._stdout, seconds=START_SECONDS
            )
        connection.settimeout(None)
        self._stream = connection.makefile("rwb")
        self._connection = connection

    def _call(self, **command: Any) -> Any:
        try:
            self._stream.write(json.dumps(command).encode() + b"\n")
            self._stream.flush()
            line = self._stream.readline()
        except OSError as error:
            raise DeviceError(f"simulation ended: {last_words(self._stdout)}") from error
        if not line:
            raise DeviceError(f"simulation ended: {last_words(self._stdout)}")
        answer = json.loads(line)
        if "error" in answer:
            raise DeviceError(answer["error"])
        return answer["result"]

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write words over the host bus, one a cycle."""
        text = io.StringIO()
        for address, word in zip(addresses.tolist(), words.tolist(), strict=True):
            text.write(f"{address:x} {word:x}\n")
        (self._temporary / "writes").write_text(text.getvalue())
        self._call(op="play")

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read words over the host bus."""
        return np.array(self._call(op="read", addresses=addresses.tolist()), np.uint32)

    def wait_idle(self, cycles: int = 50_000_000) -> None:
        """Wait for the engine, at most so many cycles (DeviceError)."""
        self._call(op="wait", cycles=cycles)

    def interrupt(self, address: int, word: int, *, cycles: int) -> None:
        """Write a word over the host bus, and reset the engine for one cycle that many cycles after."""
        self._call(op="interrupt", address=address, word=word, cycles=cycles)

    def writes(self) -> RtlWrites:
        """The engine's writes since the last call."""
        self._call(op="idle", cycles=32)
        with (self._temporary / "log").open() as log:
            log.seek(self._log_offset)
            rows = [line.split() for line in log]
            self._log_offset = log.tell()
        cycle, bank, granule, enable = (np.array([int(row[i], 16) for row in rows], np.int64) for i in range(4))
        lanes = self.config.lanes
        # Bytes that are not written may be unknown.
        data = b"".join(bytes.fromhex(row[4].replace("x", "0"))[::-1] for row in rows)
        return RtlWrites(cycle, bank, granule, enable, np.frombuffer(data, np.uint8).reshape(-1, lanes))

    def close(self) -> None:
        """End the simulation."""
        if self._process and self._process.poll() is None:
            with contextlib.suppress(DeviceError, AttributeError, OSError):
                self._call(op="quit")
            with contextlib.suppress(AttributeError, OSError):
                self._stream.close()
                self._connection.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
