"""A board without a board: the RTL of the complete system, serial pins included, behind a pseudo-terminal.

Verilator makes a program of the system; a bridge in C++ (`BRIDGE`) plays the other end of the serial line bit by bit
and passes the bytes to the terminal. Drivers use it as any serial port. A system with external memory has a model of it
(`benches/axi_memory.h`) behind its AXI4 port.
"""

from __future__ import annotations

import os
import subprocess
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import DeviceError
from nnloom.arch.files import Scratch
from nnloom.hw.sdram_timing import SdramChip

from .build import build_simulator, run_verilator, verilator_root
from .flash_model import FlashCommand, FlashModel
from .rtl import RtlWrites

if TYPE_CHECKING:
    from nnloom.hw.memory_system import MemorySystem
    from nnloom.hw.sdram_system import SdramSystem
    from nnloom.hw.soc import SerialSystem

    from .sdram_model import SdramModel

__all__ = ["SimulatedFlash", "SimulatedMemory", "SimulatedSdram", "VirtualBoard", "build_virtual_board"]

DIVISOR = 8
"""Clock cycles of a bit: the fastest line that the UART makes, for every cycle takes the same time here."""
CLOCK_HZ = 100_000_000
"""What the system believes its clock to be."""
TIMEOUT_SECONDS = 2.0
"""Frame time-out for drivers: a full frame takes 80,000 cycles, a good part of a second in a large system."""

BRIDGE = """\
// The other end of the serial line: pseudo-terminal on descriptor argv[1], commands on standard input
// ("r": press the reset button; end of file: stop). With external memory: argv[2] is the file for the engine's writes,
// argv[3] and argv[4] are the memory's; lines "f START END", "x START END", "s PERCENT", "w" and "l" are its commands
// (l: fill it from the file argv[2] with ".content" behind).
// With streams: "i": read the file argv[5], stream it in, write what comes out until a last byte to the file argv[6].
// With a flash: argv[2] to argv[4] are its file, its log and whether it is powered down; "p": take the file over again.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <string>
#include <unistd.h>
#include "Vsoc.h"
#include "verilated.h"
#if %(memory)d
#include "%(header)s"
#endif
#if %(flash)d
#include "spi_flash.h"
#endif
#if %(streams)d
#include <vector>
#define STREAM_PORT(stream, name) stream##___05F##name // as Verilator writes two underscores
#endif

static const int DIVISOR = %(divisor)d;
static const int LOOK = 256;           // cycles between looks at the terminal
static const long SLEEP_AFTER = 40000; // idle cycles after which the clock stops until something comes

int main(int argc, char **argv) {
    const int line = atoi(argv[1]);
    fcntl(line, F_SETFL, O_NONBLOCK);
    VerilatedContext context;
    Vsoc top(&context, "soc");
    uint64_t cycles = 0;
    // Since the last command "t": start of the first byte to the board, ends of the last ones either way, how many.
    uint64_t first_in = 0, last_in = 0, last_out = 0, bytes_in = 0, bytes_out = 0;
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
#if %(memory)d
    Memory memory(%(memory)du, argv[3], argv[4]);
    FILE *writes = fopen(argv[2], "wb");
#endif
#if %(streams)d
    std::vector<uint8_t> streamed_in, streamed_out;
    size_t streamed = 0;
    bool streaming = false;
    unsigned pauses = 12345;
    top.enable = 1;
#endif
#if %(flash)d
    Flash flash(argv[2], argv[3], atoi(argv[4]));
#endif
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
#if %(streams)d
                    if (command == 'i') {
                        streamed_in.clear(), streamed_out.clear(), streamed = 0, streaming = true;
                        FILE *file = fopen(argv[5], "rb");
                        for (int byte; (byte = fgetc(file)) != EOF;) streamed_in.push_back((uint8_t)byte);
                        fclose(file);
                    }
#endif
#if %(flash)d
                    if (command == 'p') { flash.load(); fputc('\\n', stdout), fflush(stdout); }
#endif
                    if (command == 'r') { reset = 4; bits_left = 0; first = last = 0; sample_in = -1; idle = 0; }
                    if (command == 't') {
                        for (uint64_t *value : {&first_in, &last_in, &last_out, &bytes_in, &bytes_out}) {
                            printf("%%llu ", (unsigned long long)*value);
                            *value = 0;
                        }
                        fputc('\\n', stdout), fflush(stdout);
                    }
#if %(memory)d
                    if (command != 'r' && command != 't') {
                        char line[64];
                        size_t size = 0;
                        while (size < sizeof line - 1 && read(0, line + size, 1) == 1 && line[size] != '\\n') size++;
                        line[size] = 0;
                        unsigned a = 0, b = 0;
                        sscanf(line, "%%u %%u", &a, &b);
                        if (command == 'f') memory.set_faults(a, b);
                        if (command == 'x') memory.damage(a, b);
                        if (command == 's') memory.stall_percent = a;
                        if (command == 'w') fflush(writes), memory.flush();
                        if (command == 'l') {
                            FILE *content = fopen((std::string(argv[2]) + ".content").c_str(), "rb");
                            memory.fill(content);
                            fclose(content);
                        }
                        fputc('\\n', stdout), fflush(stdout);
                    }
#endif
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
                if (!bytes_in++) first_in = cycles;
                last_in = cycles + 10 * DIVISOR;
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
#if %(memory)d
        if (top.rst) memory.reset();
        memory.drive(top);
        top.eval();
        if (!top.rst) memory.clock(top);
        if (top.write_valid) {
            const uint16_t granule = top.write_granule;
            const uint8_t place[2] = {(uint8_t)top.write_bank, (uint8_t)top.write_enable};
            fwrite(&cycles, 8, 1, writes), fwrite(&granule, 2, 1, writes), fwrite(place, 1, 2, writes);
            fwrite(&top.write_data, %(lanes)d, 1, writes);
        }
#endif
#if %(flash)d
        flash.drive(top);
        top.eval();
#endif
#if %(streams)d
        // Both ends pause at random; what is offered stays.
        pauses = pauses * 1664525u + 1013904223u;
        if (!top.STREAM_PORT(i, valid)) top.STREAM_PORT(i, valid) = streamed < streamed_in.size() && pauses >> 31;
        top.STREAM_PORT(i, payload) = streamed < streamed_in.size() ? streamed_in[streamed] : 0;
        top.STREAM_PORT(o, ready) = pauses >> 30 & 1;
        top.eval();
        const bool taken = top.STREAM_PORT(i, valid) && top.STREAM_PORT(i, ready);
        const bool given = top.STREAM_PORT(o, valid) && top.STREAM_PORT(o, ready);
        const unsigned octet = top.STREAM_PORT(o, payload);
#endif
        top.clk = 1;
        top.eval();
#if %(streams)d
        if (taken) streamed++, top.STREAM_PORT(i, valid) = 0;
        if (given) streamed_out.push_back((uint8_t)octet);
        if (given && octet >> 8) {
            FILE *file = fopen(argv[6], "wb");
            fwrite(streamed_out.data(), 1, streamed_out.size(), file);
            fclose(file);
            streaming = false;
            fputc('\\n', stdout), fflush(stdout);
        }
        if (streaming) idle = 0;
#endif
#if %(flash)d
        flash.clock(top, cycles);
        if (!top.FLASH_PIN(cs_n)) idle = 0;
#endif
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
                bytes_out++, last_out = cycles + DIVISOR / 2;
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


@dataclass(frozen=True, kw_only=True)
class SimulatedMemory:
    """External memory of a virtual board."""

    size: int = 1 << 20
    """bytes, a power of two"""
    data_width: int = 64
    """bits of a beat: 32 or 64"""
    latency: int = 12
    """cycles from a burst's address to its first beat"""
    beat_cycles: int = 1
    """cycles of a beat"""


@dataclass(frozen=True, kw_only=True)
class SimulatedSdram:
    """SDRAM of a virtual board, behind its controller and the registers of the pins."""

    chip: SdramChip
    """16 bits wide, with 512 columns"""
    clock_hz: float = CLOCK_HZ
    log: bool = False
    """keep what the pins did, for `VirtualBoard.check_pins`"""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.chip.size


@dataclass(frozen=True, kw_only=True)
class SimulatedFlash:
    """SPI flash of a virtual board, from which it loads a network after a reset."""

    content: bytes
    """of the flash, from byte 0 on"""
    offset: int = 0
    """byte of the network"""
    powered_down: bool = False
    """as an iCE40 leaves it"""


@dataclass(frozen=True)
class LineCycles:
    """What went over the line, in cycles of the board's clock."""

    first_in: int
    """start of the first byte to the board"""
    last_in: int
    """end of the last one"""
    last_out: int
    """end of the last byte from the board"""
    bytes_in: int
    bytes_out: int

    @property
    def cycles(self) -> int:
        """From the first byte of a request to the last one of the answer."""
        return self.last_out - self.first_in


def build_virtual_board(
    config: AcceleratorConfig,
    *,
    memory: SimulatedMemory | SimulatedSdram | None = None,
    flash_offset: int | None = None,
    streams: Region | None = None,
    divisor: int = DIVISOR,
    packing: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Elaborate the system and make a program of it, once: later calls find it in the user's cache.

    Returns the program.

    Raises
    ------
    ToolMissingError, BuildError
        A missing tool; a failed build (the message names the log).
    """
    from nnloom.hw.emit import emit_verilog

    verilator_root()
    say = progress or (lambda _: None)
    header = Path(__file__).parent / "benches" / ("sdram" if isinstance(memory, SimulatedSdram) else "axi")
    header = header.with_name(f"{header.name}_memory.h")
    flash = header.with_name("spi_flash.h")

    def build(folder: Path) -> None:
        say("elaborating the system")
        system = _system(config, memory, flash_offset, streams, divisor=divisor, packing=packing)
        (folder / "soc.v").write_text(emit_verilog(system, "soc"))
        size = memory.size if memory else 0
        values = {"divisor": divisor, "memory": size, "header": header.name, "lanes": config.lanes}
        values |= {"flash": flash_offset is not None, "streams": streams is not None}
        (folder / "bridge.cpp").write_text(BRIDGE % values)
        for file in (header, flash):
            (folder / file.name).write_text(file.read_text())
        say("building the virtual board with Verilator (once for each configuration, a minute or two)")
        files = [str(folder / "bridge.cpp"), str(folder / "soc.v")]
        run_verilator(folder, toplevel="soc", prefix="Vsoc", options=["-Wno-lint", f"-I{folder}", *files])

    identity = [str(config.hash), header.read_text(), str(divisor), str(packing)]
    if isinstance(memory, SimulatedSdram):
        identity += [repr(memory.chip), str(memory.clock_hz)]
    elif memory:
        identity += [str(memory.size), str(memory.data_width)]
    if flash_offset is not None:
        identity += [flash.read_text(), str(flash_offset), repr(streams)]
    return build_simulator("virtual", __file__, identity, build) / "soc"


def _system(
    config: AcceleratorConfig,
    memory: SimulatedMemory | SimulatedSdram | None,
    flash_offset: int | None,
    streams: Region | None,
    *,
    divisor: int,
    packing: bool,
) -> SerialSystem | MemorySystem | SdramSystem:
    from nnloom.hw.memory_system import MemorySystem
    from nnloom.hw.sdram_system import SdramSystem
    from nnloom.hw.soc import SerialSystem

    if isinstance(memory, SimulatedSdram):
        clock_hz = memory.clock_hz
        return SdramSystem(config, memory.chip, clock_hz=clock_hz, baud=round(clock_hz / divisor), observed=True)
    baud = CLOCK_HZ // divisor
    if memory is None:
        return SerialSystem(
            config, clock_hz=CLOCK_HZ, baud=baud, packing=packing, flash_offset=flash_offset, streams=streams
        )
    return MemorySystem(
        config, clock_hz=CLOCK_HZ, baud=baud, size=memory.size, data_width=memory.data_width, observed=True
    )


class VirtualBoard:
    """A running virtual board. Use as a context manager.

    Parameters
    ----------
    config
        The accelerator.
    memory
        External memory, if the board has some.
    divisor
        Clock cycles of a bit of the line.
    packing
        Of the link, see `hw.host_link`; of boards without external memory.
    flash
        Flash that a network is loaded from after a reset; for boards without external memory.
    streams
        With `flash`: this region of its network has streams (`nnloom.hw.stream_ports`).

    Raises
    ------
    ToolMissingError, BuildError
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        memory: SimulatedMemory | SimulatedSdram | None = None,
        flash: SimulatedFlash | None = None,
        streams: Region | None = None,
        divisor: int = DIVISOR,
        packing: bool = True,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if memory and flash:
            raise ValueError("virtual boards have external memory or a flash, not both")
        offset = flash.offset if flash else None
        program = build_virtual_board(
            config,
            memory=memory,
            flash_offset=offset,
            streams=streams,
            divisor=divisor,
            packing=packing,
            progress=progress,
        )
        self._divisor = divisor
        self._config = config
        self.memory = memory
        """its external memory"""
        self._cycles = 0
        self._scratch = Scratch("nnloom-board")
        self._log, self._logged = self._scratch.path / "writes", 0
        self._pin_log, self._checked = self._scratch.path / "pins", 0
        self._model: SdramModel | None = None
        options: list[str] = []
        if isinstance(memory, SimulatedSdram):
            options = [str(self._log), str(self._pin_log) if memory.log else "", ""]
        elif memory:
            options = [str(self._log), str(memory.latency), str(memory.beat_cycles)]
        self._flash = FlashModel(flash.content, powered_down=flash.powered_down) if flash else None
        self._flash_file = self._scratch.path / "flash"
        if flash:
            self._flash_file.write_bytes(flash.content)
            options = [str(self._flash_file), str(self._pin_log), str(int(flash.powered_down))]
            options += [str(self._scratch.path / name) for name in ("in", "out")]
        master, self._slave = os.openpty()
        try:
            # No echo, no line discipline. The terminal stays open here, so that drivers may come and go.
            tty.setraw(self._slave)
            self.port = os.ttyname(self._slave)
            """the terminal"""
            self._process = subprocess.Popen(
                [str(program), str(master), *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[master],
                start_new_session=True,  # an interrupt from the keyboard is for this process
            )
        except BaseException:
            os.close(self._slave)
            self._scratch.close()
            raise
        finally:
            os.close(master)

    @property
    def device(self) -> str:
        """The device string for `InferenceSession`."""
        return f"serial:{self.port}?baud={CLOCK_HZ // self._divisor}&timeout={TIMEOUT_SECONDS:g}"

    def line_cycles(self) -> LineCycles:
        """What went over the line since the last call."""
        return LineCycles(*map(int, self._memory_command("t").split()))

    def press_reset(self) -> None:
        """Reset the board: its control state and the link; the line is quiet for a moment."""
        self._command("r")

    def set_faults(self, start: int, end: int) -> None:
        """Bytes [start, end) of external memory are answered with an error; replaces earlier ones."""
        self._memory_command(f"f{start} {end}\n")

    def damage_memory(self, start: int, end: int) -> None:
        """External memory loses what bytes [start, end) held."""
        self._memory_command(f"x{start} {end}\n")

    def fill_memory(self, words: NDArray[np.uint32]) -> None:
        """Have these words in external memory from address 0 on; over the line it would take minutes."""
        content = self._log.with_name(f"{self._log.name}.content")
        words.astype("<u4").tofile(content)
        self._memory_command("l\n")
        content.unlink()

    def set_stalls(self, percent: int) -> None:
        """Every channel of external memory pauses at random, in so many of a hundred cycles."""
        self._memory_command(f"s{percent}\n")

    def writes(self) -> RtlWrites:
        """The engine's writes since the last call; of boards with external memory."""
        self._memory_command("w\n")
        kinds = [("cycle", "<u8"), ("granule", "<u2"), ("bank", "u1"), ("enable", "u1")]
        record = np.dtype([*kinds, ("data", "u1", self._config.lanes)])
        rows = np.fromfile(self._log, record, offset=self._logged)
        self._logged += rows.nbytes
        cycle, bank, granule, enable = (rows[name].astype(np.int64) for name in ("cycle", "bank", "granule", "enable"))
        return RtlWrites(cycle, bank, granule, enable, rows["data"])

    def stream(self, inputs: bytes) -> bytes:
        """Stream the inputs of an inference in; returns its outputs."""
        (self._scratch.path / "in").write_bytes(inputs)
        self._memory_command("i")
        return (self._scratch.path / "out").read_bytes()

    def write_flash(self, content: bytes) -> None:
        """Have the flash hold something else; a reset of the board lets it see that."""
        self.check_flash()
        self._flash_file.write_bytes(content)
        self._memory_command("p")
        assert self._flash is not None
        self._flash.content = bytearray(content)

    def check_flash(self) -> list[FlashCommand]:
        """Replay what the flash's pins did since the last call on the model of the chip; returns all commands so far.

        Raises
        ------
        FlashViolation
            If the data sheet does not allow it.
        DeviceError
            If the simulated chip has answered something else than the model.
        """
        assert self._flash is not None, "the virtual board has no flash"
        self._memory_command("p")
        entries = np.fromfile(self._pin_log, "<u8", offset=8 * self._checked).tolist()
        self._checked += len(entries)
        for entry in entries:
            time = 1e9 / CLOCK_HZ * (entry >> 4)
            self._flash.step(time, cs_n=entry >> 3 & 1, sck=entry >> 2 & 1, mosi=entry >> 1 & 1)
            driven = self._flash.output(time + self._flash.timing.output)
            if driven is not None and driven != entry & 1:
                raise DeviceError(f"flash: the model answers {driven} at {time:.0f} ns, not {entry & 1}")
        return self._flash.commands

    def check_pins(self) -> int:
        """Replay what the SDRAM's pins did since the last call on the model of the chip; returns the clock edges.

        Raises
        ------
        SdramViolation
            If the data sheet does not allow it.
        DeviceError
            If the simulated chip has answered something else than the model.
        """
        from .sdram_model import SdramModel, SdramPinValues

        assert isinstance(self.memory, SimulatedSdram)
        self._memory_command("w\n")
        if self._model is None:
            # A reset puts off the refreshes of 200 us, and makes up for them.
            self._model = SdramModel(self.memory.chip, self.memory.clock_hz, strict_refresh=False)
        entries = np.fromfile(self._pin_log, "<u8", offset=8 * self._checked).tolist()
        self._checked += len(entries)
        widths = (1, 1, 1, 1, 1, 2, 13, 2, 16, 1)
        for entry in entries:
            fields, rest = [], entry
            for width in widths:
                fields.append(rest & ((1 << width) - 1))
                rest >>= width
            driven = self._model.step(SdramPinValues(*fields))
            if (driven is not None) != rest & 1 or (driven is not None and driven != rest >> 1 & 0xFFFF):
                raise DeviceError(f"SDRAM: the model answers {driven} at edge {self._model.edge}, not {rest:#x}")
        return len(entries)

    def _memory_command(self, text: str) -> str:
        self._command(text)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise DeviceError("virtual board has ended")
        return answer.decode()

    def _command(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
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
            self._scratch.close()
            self._slave = -1
            self._cycles = int(output or 0)
        return self._cycles

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
