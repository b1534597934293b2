"""A board in Python that answers as the RTL does, and a line to it that damages what it carries; in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.dma import DMA_BASE, DmaCause, DmaCommand, DmaControl, DmaRegister, DmaStatus
from nnloom.arch.errors import IllegalProgramError
from nnloom.arch.isa import (
    ERROR_CAUSE_BIT,
    ISA_VERSION,
    MAGIC,
    TABLE_ENTRIES,
    Counter,
    ErrorCause,
    HostAddress,
    Register,
    Status,
    weight_stride,
)
from nnloom.arch.link import (
    DONE_REGISTERS,
    HEADER_BYTES,
    HELLO_REGISTERS,
    LARGEST_WORDS,
    LINK_VERSION,
    SEQUENCES,
    SHORT_OPCODES,
    STEP_WORDS,
    Answer,
    FrameSplitter,
    Hello,
    Opcode,
    Request,
    Response,
    StepKind,
)
from nnloom.arch.memory_system import CONTENT_WORDS, MEMORY_MAGIC, MemoryRegister, SystemAddress, checksum
from nnloom.runtime.devices.serial import SerialDevice, SerialLink
from nnloom.sim.golden import GoldenModel

CLOCK_HZ = 120_000_000
CYCLES = 1234
SCRIPT_WORDS = 256
"""of the part of the buffer with the frame that is kept"""


class TwinBoard:
    """Bytes in, bytes out; the golden model computes. A program ends at once unless `hang`.

    As the RTL does, it ignores accesses to its memories while busy, refuses programs that the engine cannot run, and
    notes both in ERROR until the next start.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.config_hash = config.hash
        self.starts = 0
        self.hang = False
        self.packs = True
        self.resets = self.ignored = self.start_sequence = self.looks = 0
        self.program = np.zeros(config.program_words, np.uint32)
        self.weights = np.zeros(config.weight_words * weight_stride(config), np.uint8)
        self.activations = np.zeros(config.activation_bytes, np.uint8)
        self.tables = np.zeros(4 * TABLE_ENTRIES * config.tables, np.uint8)
        self._models: dict[bytes, GoldenModel] = {}
        self.reset()

    def reset(self) -> None:
        """As by its button; the memories are lost."""
        for memory in (self.program, self.weights, self.activations, self.tables):
            memory.view(np.uint8)[:] = 0xA5
        self.session, self.opened, self.last, self.kept, self.answered = 0, False, 0, b"", False
        self.previous: int | None = None
        self.program_start, self.status, self.layers, self.polls = 0, Status(0), 0, 0
        self._splitter = FrameSplitter()
        self.script = np.full(SCRIPT_WORDS, 0xA5A5A5A5, np.uint32)
        """the frame that is kept"""
        self._held: list[bytes] = []
        self._run: _Script | None = None
        self._pending = False

    def run_for(self, polls: int) -> None:
        """A program runs until STATUS has been read so many times."""
        self.status, self.polls = Status.BUSY, polls

    def feed(self, data: bytes) -> bytes:
        """The answer to some bytes of the line."""
        return b"".join(self._take(frame) for frame in self._splitter.feed(data))

    def _take(self, frame: bytes) -> bytes:
        """A frame that cannot be executed yet is held, and one more waits behind it; others are lost."""
        if self._held:
            self._look()
            if len(self._held) == 2:
                return self._notice(Answer.BAD_FRAME) + self._go_on()
            self._held.append(frame)
            return self._go_on()
        return self._answer(frame) + self._go_on()

    def _go_on(self) -> bytes:
        """What ends with a program: the script that waits for it, then the frames that were held."""
        out = b""
        if self._pending and not self.status & Status.BUSY and not self._list_runs():
            self._pending = False
            out += self._finish_script()
        held, self._held = self._held, []
        while held:
            out += self._answer(held.pop(0))
            if self._held:  # again
                self._held += held
                break
            out += self._go_on() if self._pending else b""
        return out

    def _list_runs(self) -> bool:
        return False

    def _look(self) -> None:
        """A program that runs for so many looks at STATUS: a frame that comes is one, too."""
        if self.polls:
            self._fetch(Register.STATUS)

    def _script_answer(self, request: Request) -> bytes:
        """RUN and MORE."""
        data = request.words.astype("<u4").tobytes()
        if request.opcode == Opcode.RUN:
            if not data:
                self._run = None
                return self._keep(Answer.BAD_REQUEST, request.sequence)
            self._run = _Script(self, int(request.words[0]) % SCRIPT_WORDS)
            data = data[4:]
        if self._run is None:
            return self._keep(Answer.BAD_REQUEST, request.sequence)
        if self._run.answering:
            return self._finish_script()
        state = self._run.give(data)
        if state == StepKind.WAIT:
            self._pending = True
        elif state == StepKind.END:
            self._run = None
            return self._keep(Answer.OK, request.sequence)
        return b""

    def _finish_script(self) -> bytes:
        assert self._run is not None
        data, ended = self._run.take(4 * LARGEST_WORDS)
        if ended:
            self._run = None
        return self._keep(Answer.OK, self.last, data)

    def _keep(self, answer: Answer, sequence: int, data: bytes = b"") -> bytes:
        whole = len(data) // 4 * 4
        words = np.frombuffer(data[:whole], "<u4").astype(np.uint32)
        self.kept = Response(
            answer=answer, sequence=sequence, session=self.session, words=words, rest=data[whole:]
        ).encode()
        self.answered = True
        return self.kept

    def _notice(self, answer: Answer, sequence: int | None = None, words=()) -> bytes:
        sequence = self.last if sequence is None else sequence
        return Response(
            answer=answer, sequence=sequence, session=self.session, words=np.array(words, np.uint32)
        ).encode()

    def _answer(self, frame: bytes) -> bytes:
        try:
            request = Request.decode(frame)
        except ValueError:
            return self._notice(Answer.BAD_FRAME)
        ours = self.opened and request.session == self.session
        if ours and request.sequence == self.last:
            if self._pending:
                return self._notice(Answer.RUNNING)
            return self.kept if self.answered else self._notice(Answer.BAD_SEQUENCE)
        if not ours and request.opcode != Opcode.HELLO:
            return self._notice(Answer.NO_SESSION)
        if ours and request.sequence != (self.last + 1) % SEQUENCES:
            return self._notice(Answer.BAD_SEQUENCE)
        busy = bool(self.status & Status.BUSY) or self._list_runs()
        short = request.opcode in SHORT_OPCODES
        if ours and ((self._pending and request.opcode not in (Opcode.HELLO, Opcode.RESET)) or (short and busy)):
            self._held.append(frame)
            return b""
        if not ours:
            self.previous = self.session if self.opened else None
        self.session, self.opened, self.last = request.session, True, request.sequence
        self.answered, self._pending = False, False
        if not short:
            self._run = None
        elif request.opcode != Opcode.SYNC:
            return self._script_answer(request)
        words: np.ndarray = np.zeros(0, np.uint32)
        after = b""
        if request.opcode == Opcode.HELLO:
            magic, version, config_hash = (self._fetch(register) for register in HELLO_REGISTERS)
            words = Hello(
                link_version=LINK_VERSION,
                max_words=LARGEST_WORDS,
                packs=self.packs,
                clock_hz=CLOCK_HZ,
                previous_session=self.previous,
                magic=magic,
                isa_version=version,
                config_hash=config_hash,
            ).words()
        elif request.opcode == Opcode.READ:
            words = np.array([self._fetch(a) for a in request.addresses(request.count)], np.uint32)
        elif request.opcode == Opcode.RESET:
            self.status, self.program_start, self.polls = Status(0), 0, 0
            self.resets += 1
        elif request.opcode == Opcode.SCRIPT:
            kept = np.concatenate([np.zeros(HEADER_BYTES // 4, np.uint32), request.words])
            self.script[: len(kept)] = kept
        elif request.opcode != Opcode.SYNC:
            if request.opcode == Opcode.START:
                self.start_sequence = request.sequence
            self._store_all(request)
            if self.status & Status.DONE and request.opcode == Opcode.START:
                after = self._notice(Answer.DONE, request.sequence, [self._fetch(r) for r in DONE_REGISTERS])
        return self._keep(Answer.OK, request.sequence, words.astype("<u4").tobytes()) + after

    def _memory(self, address: int) -> np.ndarray | None:
        memories = {
            HostAddress.PROGRAM: self.program.view(np.uint8),
            HostAddress.WEIGHTS: self.weights,
            HostAddress.ACTIVATIONS: self.activations,
            HostAddress.TABLES: self.tables,
        }
        return memories.get(HostAddress(address & 0xF000_0000))

    def _store_all(self, request: Request) -> None:
        memory = self._memory(request.address)
        if memory is not None and self.status & Status.BUSY:
            self._fail(ErrorCause.ACCESS)
            self.ignored += 1
            return
        for address, word in zip(request.addresses(len(request.words)), request.words.tolist(), strict=True):
            if memory is not None:
                memory[address & 0x0FFF_FFFC :][:4] = np.frombuffer(word.to_bytes(4, "little"), np.uint8)
            elif address == Register.PROGRAM_START:
                self.program_start = word
            elif address == Register.CONTROL and word & 1 and not self.status & Status.BUSY:
                self._start()

    def _start(self) -> None:
        self.starts += 1
        if self.hang:
            self.status = Status.BUSY
            return
        stride, size = weight_stride(self.config), self.config.weight_word_bytes
        key = self.program.tobytes() + self.weights.tobytes() + self.tables.tobytes()
        if key not in self._models:
            weights = np.ascontiguousarray(self.weights.reshape(-1, stride)[:, :size])
            tables = self.tables[::4].reshape(-1, TABLE_ENTRIES)
            self._models = {key: GoldenModel(self.config, self.program.copy(), weights, tables)}
        model = self._models[key]
        model.activations[:] = self.activations.reshape(model.activations.shape)
        self.status, self.layers = Status.DONE, 0
        try:
            model.run(self.program_start)
        except IllegalProgramError:
            self._fail(ErrorCause.PROGRAM)
            return
        self.layers = len(model.descriptors(self.program_start))
        self.activations[:] = model.activations.reshape(-1)

    def _fail(self, cause: ErrorCause) -> None:
        """Note an error, unless there was one since the start."""
        if not self.status & Status.ERROR:
            self.status = Status(self.status | Status.ERROR | cause << ERROR_CAUSE_BIT)

    def _fetch(self, address: int) -> int:
        if address >> 28 == HostAddress.COUNTERS >> 28:
            layer, counter = divmod((address & 0xFFF) // 4, len(Counter))
            return 40 * layer + 10 if counter == Counter.CYCLES else counter * (layer + 1)
        if address >= max(HostAddress) + (1 << 28):
            return 0
        if address >> 28:
            memory = self._memory(address)
            assert memory is not None
            return int.from_bytes(memory[address & 0x0FFF_FFFC :][:4].tobytes(), "little")
        self.looks += address == Register.STATUS
        if address == Register.STATUS and self.polls:
            self.polls -= 1
            if not self.polls:
                self.status = Status(int(self.status) & ~int(Status.BUSY) | Status.DONE)
        return {
            Register.MAGIC: MAGIC,
            Register.VERSION: ISA_VERSION,
            Register.CONFIG_HASH: self.config_hash,
            Register.STATUS: int(self.status),
            Register.PROGRAM_START: self.program_start,
            Register.CYCLES: CYCLES,
            Register.LAYERS: self.layers,
        }.get(Register(address), 0)


class _Script:
    """A script that runs: the bytes given are cut into the words of its steps."""

    def __init__(self, board: TwinBoard, pointer: int) -> None:
        self._board = board
        self._pointer = pointer
        self.answering = False
        self._next()

    def _next(self) -> None:
        if self._pointer + STEP_WORDS > SCRIPT_WORDS:
            self.kind, self.count = StepKind.END, 0
            return
        address, form, count = (int(w) for w in self._board.script[self._pointer :][:STEP_WORDS])
        self._pointer += STEP_WORDS
        kind = form >> 8 & 7
        self.kind = StepKind(kind) if kind in list(StepKind) else StepKind.END
        self.address, self.chunk, self.pad = address, form >> 16, form & 0xFF
        self.count = count & 0xFFFF
        self._position, self._word = 0, b""
        assert self._board.packs or not self.pad, "the board does not pack"

    def _is_padding(self) -> bool:
        return self._position % (self.chunk + self.pad) >= self.chunk

    def give(self, data: bytes) -> StepKind:
        """Returns WRITE if more is needed, WAIT, or END."""
        while True:
            if self.kind == StepKind.PUT:
                self._store(int(self._board.script[self._pointer]))
                self._pointer += 1
                self.address, self.count = self.address + 4, self.count - 1
                if not self.count:
                    self._next()
            elif self.kind == StepKind.WRITE:
                if self._is_padding():
                    self._word += b"\0"
                elif data:
                    self._word, data = self._word + data[:1], data[1:]
                else:
                    return StepKind.WRITE
                self._position += 1
                if len(self._word) == 4:
                    self._store(int.from_bytes(self._word, "little"))
                    self._word, self.address, self.count = b"", self.address + 4, self.count - 1
                    if not self.count:
                        self._next()
            elif self.kind == StepKind.WAIT:
                self.answering = True
                self._next()
                return StepKind.WAIT
            else:
                return StepKind.END

    def _store(self, word: int) -> None:
        words = np.array([word], np.uint32)
        self._board._store_all(
            Request(opcode=Opcode.WRITE, sequence=0, session=0, address=self.address & ~3, words=words)
        )

    def take(self, room: int) -> tuple[bytes, bool]:
        """Bytes of the answer, as many as a frame has room for, and whether they are the last."""
        out = b""
        while self.kind == StepKind.READ:
            if room - len(out) < 4:
                return out, False
            for byte in self._board._fetch(self.address & ~3).to_bytes(4, "little"):
                out += b"" if self._is_padding() else bytes([byte])
                self._position += 1
            self.address, self.count = self.address + 4, self.count - 1
            if not self.count:
                self._next()
        return out, True


class MemoryBoard(TwinBoard):
    """As `hw.memory_system`: external memory, and a DMA engine that executes a list at once unless `hang`.

    Attributes
    ----------
    memory : uint32; lost with a reset
    stuck : word of the memory that keeps its value, if not None
    unready : reads of STATUS until the memory is ready
    busy_for : reads of the DMA's STATUS until the list of another driver has ended
    lists : lists started
    """

    def __init__(self, config: AcceleratorConfig, *, size: int = 1 << 16) -> None:
        self.memory = np.zeros(size // 4, np.uint32)
        self.stuck: int | None = None
        self.unready = self.busy_for = self.lists = self.written = 0
        super().__init__(config)

    def reset(self) -> None:
        super().reset()
        self.memory[:] = 0xA5A5A5A5
        self.content = [0] * CONTENT_WORDS
        self.dma_status, self.list_address, self.checksum, self.error_address = 0, 0, 0, 0
        self.fault = False

    def _store_all(self, request: Request) -> None:
        if request.address < SystemAddress.MEMORY:
            super()._store_all(request)
            return
        for address, word in zip(request.addresses(len(request.words)), request.words.tolist(), strict=True):
            register = address - SystemAddress.REGISTERS
            if register < 0:
                self.written += 1
                index = (address - SystemAddress.MEMORY) // 4
                if index >= len(self.memory):
                    self.fault = True
                elif index != self.stuck:
                    self.memory[index] = word
            elif register == MemoryRegister.STATUS:
                self.fault = False
            elif 0 <= (index := (register - MemoryRegister.CONTENT_0) // 4) < CONTENT_WORDS:
                self.content[index] = word
            elif register == DMA_BASE + DmaRegister.LIST:
                self.list_address = word
            elif register == DMA_BASE + DmaRegister.CONTROL and word & DmaControl.START:
                self._run_list()

    def _list_runs(self) -> bool:
        return bool(self.dma_status & DmaStatus.BUSY)

    def _run_list(self) -> None:
        self.lists += 1
        if self.hang:
            self.dma_status = int(DmaStatus.BUSY)
            return
        self.dma_status, self.error_address = int(DmaStatus.DONE), 0
        place, read = self.list_address // 4, []
        while True:
            words = self.memory[place : place + 4]
            read.append(words.copy())
            ddr, host, control, rows = (int(word) for word in words)
            count, command, row, step = control & 0xFFFFFF, control >> 24 & 0xF, rows & 0xFFFF, rows >> 16
            row = row or count
            here = slice(ddr // 4, ddr // 4 + count)
            burst = Request(
                opcode=Opcode.WRITE, sequence=0, session=0, address=host, run=max(1, row), jump=max(1, step - row + 1)
            )
            if command > DmaCommand.RELOAD or (command != DmaCommand.RUN and (not count or ddr % 16)):
                self._fail_list(DmaCause.DESCRIPTOR, 4 * place)
                break
            if command in (DmaCommand.LOAD, DmaCommand.RELOAD):
                data = self.memory[here]
                if command == DmaCommand.LOAD:
                    read.append(np.pad(data, (0, -len(data) % 2)))
                super()._store_all(replace(burst, words=data))
            elif command == DmaCommand.STORE:
                self.memory[here] = [self._fetch(address) for address in burst.addresses(count)]
            else:
                self.program_start = host
                self._start()
                if self.status & Status.ERROR:
                    self._fail_list(DmaCause.ENGINE, 0)
                    break
            if control >> 31:
                break
            place += 4
        self.checksum = checksum(np.concatenate(read), 2)
        self.status = Status(self.status | Status.DONE)

    def _fail_list(self, cause: DmaCause, address: int) -> None:
        self.dma_status, self.error_address = int(DmaStatus.DONE | DmaStatus.ERROR) | cause << 8, address

    def _answer(self, frame: bytes) -> bytes:
        resets = self.resets
        answer = super()._answer(frame)
        if self.resets != resets and self.dma_status & DmaStatus.BUSY:
            self.dma_status, self.busy_for = int(DmaStatus.DONE | DmaStatus.ABORTED), 0
        return answer

    def _fetch(self, address: int) -> int:
        if address < SystemAddress.MEMORY:
            return super()._fetch(address)
        register = address - SystemAddress.REGISTERS
        if register < 0:
            index = (address - SystemAddress.MEMORY) // 4
            return int(self.memory[index]) if index < len(self.memory) else 0
        if register == MemoryRegister.STATUS:
            self.unready = max(0, self.unready - 1)
        if register == DMA_BASE + DmaRegister.STATUS and self.busy_for:
            self.busy_for -= 1
            self.dma_status = int(DmaStatus.BUSY if self.busy_for else DmaStatus.DONE)
        return {
            MemoryRegister.ID: MEMORY_MAGIC,
            MemoryRegister.SIZE: 4 * len(self.memory),
            MemoryRegister.STATUS: (not self.unready) | self.fault << 1 | 8 << 8,
            MemoryRegister.CYCLES: 3 * CYCLES,
            MemoryRegister.CHECKSUM: self.checksum,
            MemoryRegister.CONTENT_0: self.content[0],
            MemoryRegister.CONTENT_1: self.content[1],
            DMA_BASE + DmaRegister.STATUS: self.dma_status,
            DMA_BASE + DmaRegister.ERROR_ADDRESS: self.error_address,
        }.get(register, 0)


@dataclass
class VirtualTime:
    """A clock that only moves when someone waits."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Fault:
    """What happens when the `at`-th byte of a direction passes.

    Kinds: flip, drop, double, noise (bytes are put in), cut (the rest of the transfer is lost), silence (the line is
    dead for `seconds`), reset (of the board), bitstream (the board becomes another one for `seconds`), unplug (the port
    fails, and cannot be opened for `seconds`).
    """

    kind: str
    to_board: bool
    at: int
    seconds: float = 0.0
    value: int = 1


KINDS = ("flip", "drop", "double", "noise", "cut", "silence", "reset", "bitstream", "unplug")


@dataclass
class Line:
    """Byte stream to a board (as pyserial's port), with the faults of `faults`.

    `count` counts the bytes of each direction since `arm`.
    """

    board: TwinBoard
    clock: VirtualTime
    poll_seconds: float = 0.02
    faults: list[Fault] = field(default_factory=list)
    hit: list[str] = field(default_factory=list)
    count: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def __post_init__(self) -> None:
        self._answers = bytearray()
        self._unplugged_until = self._silent_until = self._other_until = -1.0
        self._generation = 0

    def arm(self, *faults: Fault) -> None:
        self.faults, self.hit, self.count = list(faults), [], {True: 0, False: 0}

    def open(self) -> Port:
        """What the driver calls to open the port."""
        from nnloom.arch.errors import DeviceError

        if self.clock() < self._unplugged_until:
            raise DeviceError("virtual port: cannot open the serial port")
        self._answers.clear()
        self._generation += 1
        return Port(self, self._generation)

    def share(self) -> Port:
        """As `open`, for a second driver beside the first."""
        return Port(self, self._generation)

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise OSError("device disconnected")
        other = self.clock() < self._other_until
        if not other and self.board.config_hash != self.board.config.hash:
            self.board.config_hash = self.board.config.hash
            self.board.reset()

    def _carry(self, data: bytes, to_board: bool) -> bytes:
        """What arrives of `data`."""
        begin = self.count[to_board]
        self.count[to_board] += len(data)
        due = [f for f in self.faults if f.to_board == to_board and begin <= f.at < begin + len(data)]
        if self.clock() < self._silent_until:
            data = b""
        for fault in sorted(due, key=lambda f: -f.at):
            self.faults.remove(fault)
            self.hit.append(fault.kind)
            at = min(fault.at - begin, len(data))
            head, tail = data[:at], data[at:]
            if fault.kind == "flip":
                data = head + bytes([tail[0] ^ 1 << fault.value % 8]) + tail[1:] if tail else head
            elif fault.kind == "drop":
                data = head + tail[fault.value :]
            elif fault.kind == "double":
                data = head + tail[: fault.value] + tail
            elif fault.kind == "noise":
                data = head + bytes((fault.value * (7 + i)) % 256 for i in range(fault.value)) + tail
            elif fault.kind == "cut":
                data = head
            elif fault.kind == "silence":
                self._silent_until = self.clock() + fault.seconds
                data = head
            elif fault.kind in ("reset", "bitstream"):
                if to_board:
                    self._answers += self.board.feed(head)
                    data = tail
                if fault.kind == "bitstream":
                    self.board.config_hash ^= fault.value
                    self._other_until = self.clock() + fault.seconds
                self.board.reset()
            elif fault.kind == "unplug":
                self._unplugged_until = self.clock() + fault.seconds
                self._generation += 1
                raise OSError("device disconnected")
        return data


@dataclass
class Port:
    """One opening of the line."""

    line: Line
    generation: int

    @property
    def in_waiting(self) -> int:
        return len(self.line._answers)

    def read(self, size: int) -> bytes:
        self.line._check(self.generation)
        data = bytes(self.line._answers[:size])
        del self.line._answers[:size]
        if not data:
            self.line.clock.now += self.line.poll_seconds
        return data

    def write(self, data: bytes) -> int:
        self.line._check(self.generation)
        arrived = self.line._carry(data, True)
        answer = self.line.board.feed(arrived)
        self.line._answers += self.line._carry(answer, False)
        return len(data)

    def close(self) -> None:
        pass


def twin_device(
    config: AcceleratorConfig, board: TwinBoard | None = None, progress: Callable[[str], None] | None = None
) -> tuple[Line, SerialDevice]:
    """A driver with a board behind a line."""
    clock = VirtualTime()
    line = Line(board or TwinBoard(config), clock)
    return line, SerialDevice(SerialLink(line.open, clock=clock, sleep=clock.sleep), progress=progress)
