"""A board without a board: the RTL of the complete system, serial pins included, behind a pseudo-terminal.

Verilator makes a program of the system; a bridge in C++ (`BRIDGE`) plays the other end of the serial line bit by bit
and passes the bytes to the terminal. Drivers use it as any serial port.
"""

from __future__ import annotations

import os
import subprocess
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceError

from .build import build_simulator, run_verilator, verilator_root

__all__ = ["VirtualBoard", "build_virtual_board"]

DIVISOR = 8
"""Clock cycles of a bit: the fastest line that the UART makes, for every cycle takes the same time here."""
CLOCK_HZ = 100_000_000
"""What the system believes its clock to be."""
TIMEOUT_SECONDS = 2.0
"""Frame time-out for drivers: a full frame takes 80,000 cycles, a good part of a second in a large system."""

BRIDGE = """\
// The other end of the serial line: pseudo-terminal on descriptor argv[1], commands on standard input
// ("r": press the reset button; end of file: stop).
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>
#include "Vsoc.h"
#include "verilated.h"

static const int DIVISOR = %(divisor)d;
static const int LOOK = 256;           // cycles between looks at the terminal
static const long SLEEP_AFTER = 40000; // idle cycles after which the clock stops until something comes

int main(int argc, char **argv) {
    const int line = atoi(argv[1]);
    fcntl(line, F_SETFL, O_NONBLOCK);
    VerilatedContext context;
    Vsoc top(&context, "soc");
    uint64_t cycles = 0;
    long idle = 0;
    int reset = 4;
    // Towards the board: bits of the byte that is being sent, lowest first, and the bytes that wait.
    unsigned bits = 0;
    int bits_left = 0, bit_cycles = 0;
    unsigned char waiting[4096];
    ssize_t first = 0, last = 0;
    // From the board.
    int sample_in = -1, sampled = 0;
    unsigned received = 0;
    top.rx = 1;
    for (;;) {
        if (cycles %% LOOK == 0) {
            const bool sleeping = idle > SLEEP_AFTER;
            const bool want = first == last;
            pollfd ends[2] = {{0, POLLIN, 0}, {line, (short)(want ? POLLIN : 0), 0}};
            if (poll(ends, 2, sleeping ? -1 : 0) > 0) {
                if (ends[0].revents) {
                    char command;
                    if (read(0, &command, 1) <= 0) break;
                    if (command == 'r') { reset = 4; bits_left = 0; first = last = 0; sample_in = -1; idle = 0; }
                }
                if (ends[1].revents & POLLIN) {
                    last = read(line, waiting, sizeof waiting);
                    if (last < 0) last = 0;
                    first = 0;
                    idle = 0;
                } else if (ends[1].revents) {
                    usleep(10000); // nobody has the terminal open
                }
            }
        }
        if (bit_cycles == 0) {
            if (bits_left == 0 && first < last && !reset) {
                bits = (unsigned)waiting[first++] << 1 | 0x200;
                bits_left = 10;
            }
            if (bits_left) {
                top.rx = bits & 1;
                bits >>= 1;
                bits_left--;
                bit_cycles = DIVISOR;
            } else {
                top.rx = 1;
            }
        }
        if (bit_cycles) bit_cycles--;
        top.rst = reset > 0;
        if (reset) reset--;
        top.clk = 1;
        top.eval();
        top.clk = 0;
        top.eval();
        cycles++;
        if (sample_in < 0) {
            if (!top.tx && !top.rst) { sample_in = DIVISOR + DIVISOR / 2 - 1; sampled = 0; received = 0; }
        } else if (sample_in-- == 0) {
            if (sampled < 8) {
                received |= (unsigned)top.tx << sampled;
                sampled++;
                sample_in = DIVISOR - 1;
            } else {
                unsigned char byte = received;
                // A full terminal loses bytes, as a serial port does.
                if (top.tx && write(line, &byte, 1) != 1) fprintf(stderr, "byte lost\\n");
            }
        }
        idle = bits_left || first < last || sample_in >= 0 || top.busy ? 0 : idle + 1;
    }
    top.final();
    printf("%%llu\\n", (unsigned long long)cycles);
    return 0;
}
"""


def build_virtual_board(config: AcceleratorConfig, *, progress: Callable[[str], None] | None = None) -> Path:
    """Elaborate the system and make a program of it, once: later calls find it in the user's cache.

    Returns the program.

    Raises
    ------
    ToolMissingError, BuildError
        A missing tool; a failed build (the message names the log).
    """
    from nnloom.hw.emit import emit_verilog
    from nnloom.hw.soc import SerialSystem

    verilator_root()
    say = progress or (lambda _: None)

    def build(folder: Path) -> None:
        say("elaborating the system")
        system = SerialSystem(config, clock_hz=CLOCK_HZ, baud=CLOCK_HZ // DIVISOR)
        (folder / "soc.v").write_text(emit_verilog(system, "soc"))
        (folder / "bridge.cpp").write_text(BRIDGE % {"divisor": DIVISOR})
        say("building the virtual board with Verilator (once for each configuration, a minute or two)")
        files = [str(folder / "bridge.cpp"), str(folder / "soc.v")]
        run_verilator(folder, toplevel="soc", prefix="Vsoc", options=["-Wno-lint", *files])

    return build_simulator("virtual", __file__, [str(config.hash)], build) / "soc"


class VirtualBoard:
    """A running virtual board. Use as a context manager.

    Parameters
    ----------
    config
        The accelerator.

    Raises
    ------
    ToolMissingError, BuildError
    """

    def __init__(self, config: AcceleratorConfig, *, progress: Callable[[str], None] | None = None) -> None:
        program = build_virtual_board(config, progress=progress)
        self._cycles = 0
        master, self._slave = os.openpty()
        try:
            # No echo, no line discipline. The terminal stays open here, so that drivers may come and go.
            tty.setraw(self._slave)
            self.port = os.ttyname(self._slave)
            """the terminal"""
            self._process = subprocess.Popen(
                [str(program), str(master)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[master],
                start_new_session=True,  # an interrupt from the keyboard is for this process
            )
        except BaseException:
            os.close(self._slave)
            raise
        finally:
            os.close(master)

    @property
    def device(self) -> str:
        """The device string for `InferenceSession`."""
        return f"serial:{self.port}?baud={CLOCK_HZ // DIVISOR}&timeout={TIMEOUT_SECONDS:g}"

    def press_reset(self) -> None:
        """Reset the board: its control state and the link; the line is quiet for a moment."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"r")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: closed
            raise DeviceError("virtual board has ended") from error

    def wait(self) -> None:
        """Wait until the simulation ends, which it does only by itself if something is wrong (DeviceError)."""
        code = self._process.wait()
        raise DeviceError(f"virtual board has ended with exit code {code}")

    def close(self) -> int:
        """Pull the cable and stop; returns the cycles that were simulated."""
        if self._slave >= 0:
            try:
                output, _ = self._process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                output, _ = self._process.communicate()
            os.close(self._slave)
            self._slave = -1
            self._cycles = int(output or 0)
        return self._cycles

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
