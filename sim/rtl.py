"""RTL simulation of the accelerator in cocotb, on Verilator or Icarus, as a process that stays up.

The test bench (`TESTBENCH`) plays files of host writes and logs every write of the engine to activation
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
from collections.abc import Callable
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
    "RtlSimulator",
    "RtlWrites",
    "build_simulation",
]

SIMULATORS = ("verilator", "icarus")
TOPLEVEL = "nnloom_tb"
START_SECONDS = 300
"""Longest wait for a simulator to be ready."""
PUBLIC = (
    *("clk", "rst", "play", "playing", "busy", "req_valid", "req_ready", "req_write", "req_address", "req_data"),
    *("rsp_valid", "rsp_ready", "rsp_data"),
)
"""Ports of the test bench."""

TESTBENCH = """\
// Test bench of the accelerator: host bus for cocotb, a player of write files, a log of engine writes.
`timescale 1ns / 1ps
module nnloom_tb (
    input clk, input rst,
    input play, output reg playing,
    input req_valid, output req_ready, input req_write, input [31:0] req_address, input [31:0] req_data,
    output rsp_valid, input rsp_ready, output [31:0] rsp_data,
    output busy
);
  reg [8*1024-1:0] writes_path, log_path;
  integer writes_file, log_file;
  reg player_valid;
  reg [31:0] player_address, player_data, next_address, next_data;
  reg [63:0] cycle;
  reg started;
  wire accepted;
  wire [{trace_top}:0] trace;
  wire [64:0] request = player_valid ? {{player_data, player_address, 1'b1}} : {{req_data, req_address, req_write}};
  assign req_ready = accepted & ~player_valid;

  initial begin
    playing = 0; player_valid = 0; started = 0; cycle = 0; log_file = 0; writes_path = 0;
    if ($value$plusargs("writes=%s", writes_path)) begin end
    if ($value$plusargs("log=%s", log_path)) log_file = $fopen(log_path, "w");
{waves}
  end

  always @(posedge clk) begin
    cycle <= cycle + 1;
    if (!play) started <= 0;
    if (play && !started) begin
      writes_file = $fopen(writes_path, "r");
      playing <= 1; started <= 1;
    end else if (playing && (!player_valid || accepted)) begin
      if ($fscanf(writes_file, "%h %h", next_address, next_data) == 2) begin
        player_valid <= 1; player_address <= next_address; player_data <= next_data;
      end else begin
        player_valid <= 0; playing <= 0;
        $fclose(writes_file);
      end
    end
    if (trace[0] && log_file != 0)
      $fwrite(log_file, "%h %h %h %h %h\\n", cycle, trace[2:1], trace[18:3], trace[20:19], trace[{trace_top}:21]);
    if (!busy && log_file != 0 && cycle[3:0] == 0) $fflush(log_file);
  end

  accelerator dut (
      .clk(clk), .rst(rst),
      .host__request__payload(request),
      .host__request__valid(player_valid | req_valid),
      .host__request__ready(accepted),
      .host__response__payload(rsp_data),
      .host__response__valid(rsp_valid),
      .host__response__ready(rsp_ready),
      .trace(trace), .busy(busy)
  );
endmodule
"""


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


def _build_icarus(folder: Path) -> None:
    command = ["iverilog", "-g2012", "-s", TOPLEVEL, "-o", str(folder / "sim.vvp"), f"{TOPLEVEL}.v", "accelerator.v"]
    run_tool(command, folder=folder, log=folder / "build.log")


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
    from nnloom.hw.emit import emit_verilog

    if simulator not in SIMULATORS:
        raise ConfigError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator!r}")
    if simulator == "icarus" and not shutil.which("iverilog"):
        raise ToolMissingError("Icarus Verilog is not installed; apt-get install iverilog, or use Verilator")
    if simulator == "verilator":
        verilator_root()
    say = progress or (lambda _: None)

    def build(folder: Path) -> None:
        from nnloom.hw.accelerator import make_accelerator

        say("elaborating the accelerator")
        (folder / "accelerator.v").write_text(
            emit_verilog(make_accelerator(config), "accelerator", flatten=simulator == "icarus")
        )
        dump = (
            '    if ($value$plusargs("waves=%s", log_path)) begin $dumpfile(log_path); $dumpvars(0, nnloom_tb); end'
            if waves and simulator == "icarus"
            else ""
        )
        (folder / f"{TOPLEVEL}.v").write_text(TESTBENCH.format(trace_top=20 + 8 * config.lanes, waves=dump))
        once = "once for each configuration, a minute or two" if simulator == "verilator" else "once"
        say(f"building the simulator with {simulator.capitalize()} ({once})")
        if simulator == "verilator":
            build_verilator(
                folder, toplevel=TOPLEVEL, sources=[f"{TOPLEVEL}.v", "accelerator.v"], public=PUBLIC, waves=waves
            )
        else:
            _build_icarus(folder)

    return build_simulator("sim", __file__, [str(config.hash), simulator, str(waves)], build)


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
        import cocotb_tools.config

        listener = socket.socket(socket.AF_UNIX)
        address = str(self._temporary / "socket")
        listener.bind(address)
        listener.listen(1)
        plusargs = [f"+writes={self._temporary / 'writes'}", f"+log={self._temporary / 'log'}"]
        libs = cocotb_tools.config.libs_dir
        env = cocotb_environment("nnloom.sim.benches.server", toplevel=TOPLEVEL, folder=self._temporary)
        env["NNLOOM_SERVER_SOCKET"] = address
        if self._simulator == "verilator":
            trace = ["--trace", "--trace-file", str(self._waves)] if self._waves else []
            command = [str(self._folder / TOPLEVEL), *trace, *plusargs]
        else:
            if self._waves:
                plusargs.append(f"+waves={self._waves}")
            command = ["vvp", "-m", str(libs / "libcocotbvpi_icarus.so"), str(self._folder / "sim.vvp")]
            command += [*(["-fst"] if self._waves else []), *plusargs]
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
