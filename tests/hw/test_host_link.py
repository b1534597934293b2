"""UART and host link: frames in, bus accesses out, each exactly once, whatever arrives on the line."""

import cobs.cobs
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from hypothesis import given
from hypothesis import strategies as st

from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.link import (
    BURST,
    DONE_REGISTERS,
    HEAD,
    HEAD_BYTES,
    HEADER_BYTES,
    HELLO_REGISTERS,
    LARGEST_WORDS,
    LINK_VERSION,
    Answer,
    FrameSplitter,
    Hello,
    Opcode,
    Request,
    Response,
    Step,
    StepKind,
    cobs_decode,
    cobs_encode,
    script_word,
)
from nnloom.arch.scripts import Exchange, answer_sizes, packed_steps
from nnloom.hw.frames import FrameReceiver
from nnloom.hw.host_link import HostLink
from nnloom.hw.technology import RAM_LATENCY, GenericTechnology
from nnloom.hw.uart import UartReceiver, UartTransmitter, baud_divisor
from tests.artifacts import SMALL
from tests.board_twin import CLOCK_HZ, TwinBoard
from tests.hw.benches import simulate

DIVISOR = 6
SESSION = 0x1234
CLOCK = 100_000_000


class LinkHarness:
    """A host link with a memory behind its bus; streams and bus pause at random."""

    def __init__(self, seed: int, pause: float, byte_cycles: int = 1) -> None:
        self.dut = HostLink(clock_hz=CLOCK)
        self.rng = np.random.default_rng(seed)
        self.pause = pause
        self.byte_cycles = byte_cycles
        """fewest cycles from one byte of the line to the next, either way"""
        self.memory: dict[int, int] = {}
        self.accesses: list[tuple[bool, int, int]] = []
        """(write, address, data) of each access"""
        self.splitter = FrameSplitter()
        self.frames: list[bytes] = []
        self.responses: list[Response] = []
        self.received_bytes = 0

    def stalled(self) -> bool:
        return bool(self.rng.random() < self.pause)

    async def responder(self, ctx):
        host = self.dut.host
        while True:
            while self.stalled():
                await ctx.tick()
            ctx.set(host.request.ready, 1)
            while not ctx.get(host.request.valid):
                await ctx.tick()
            payload = ctx.get(host.request.payload)
            await ctx.tick()
            ctx.set(host.request.ready, 0)
            self.accesses.append((bool(payload.write), payload.address, payload.data))
            if payload.write:
                self.memory[payload.address] = payload.data
                continue
            while self.stalled():
                await ctx.tick()
            ctx.set(host.response.payload.data, self.memory.get(payload.address, 0))
            ctx.set(host.response.valid, 1)
            while not ctx.get(host.response.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(host.response.valid, 0)

    async def listener(self, ctx):
        tx = self.dut.transmit
        while True:
            for _ in range(self.byte_cycles):
                await ctx.tick()
            while self.stalled():
                await ctx.tick()
            ctx.set(tx.ready, 1)
            while not ctx.get(tx.valid):
                await ctx.tick()
            byte = bytes([ctx.get(tx.payload)])
            self.received_bytes += 1
            frames = self.splitter.feed(byte)
            self.frames += frames
            self.responses += [Response.decode(frame) for frame in frames]
            await ctx.tick()
            ctx.set(tx.ready, 0)

    async def send(self, ctx, data: bytes) -> None:
        rx = self.dut.receive
        for byte in data:
            while self.stalled():
                await ctx.tick()
            ctx.set(rx.payload, byte)
            ctx.set(rx.valid, 1)
            assert self.byte_cycles == 1 or ctx.get(rx.ready), "a UART cannot wait"
            while not ctx.get(rx.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(rx.valid, 0)
            if self.byte_cycles > 1:
                await ctx.tick().repeat(self.byte_cycles - 1)

    async def answer(self, ctx) -> Response:
        for _ in range(60_000):
            if self.responses:
                return self.responses.pop(0)
            await ctx.tick()
        raise AssertionError("no answer")

    async def ask(self, ctx, opcode: Opcode, sequence: int, session: int = SESSION, **fields) -> Response:
        request = Request(opcode=opcode, sequence=sequence % 256, session=session, **fields)
        await self.send(ctx, request.encode())
        return await self.answer(ctx)

    async def open(self, ctx, sequence: int = 0, session: int = SESSION) -> Response:
        response = await self.ask(ctx, Opcode.HELLO, sequence, session)
        assert (response.answer, response.session) == (Answer.OK, session)
        return response

    async def silence(self, ctx) -> None:
        await ctx.tick().repeat(500)
        assert not self.responses

    def run(self, bench) -> None:
        simulate(self.dut, bench, background=(self.responder, self.listener))


def burst(rng: np.random.Generator) -> dict[str, int]:
    run = int(rng.integers(1, 9))
    return {"address": int(rng.integers(0, 2**24)) * 4, "run": run, "jump": int(rng.integers(1, 300))}


@pytest.mark.parametrize("pause", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_bursts_arrive_and_come_back(pause):
    harness = LinkHarness(1, pause)
    rng = np.random.default_rng(2)

    async def bench(ctx):
        await harness.open(ctx)
        sequence = 0
        for size in (1, 5, 29, 0, 40, LARGEST_WORDS):
            words = rng.integers(0, 2**32, size, np.uint32)
            # Blocks without a zero byte that are longer than a COBS block, and long rows of zeros.
            words[: size // 2] |= 0x01010101
            words[3 * size // 4 :] = 0
            place = burst(rng)
            harness.accesses.clear()
            response = await harness.ask(ctx, Opcode.WRITE, sequence := sequence + 1, words=words, **place)
            assert (response.answer, response.sequence) == (Answer.OK, sequence)
            addresses = list(Request(opcode=Opcode.READ, sequence=0, session=0, **place).addresses(size))
            assert harness.accesses == [(True, a, int(w)) for a, w in zip(addresses, words, strict=True)]
            response = await harness.ask(ctx, Opcode.READ, sequence := sequence + 1, count=size, **place)
            assert (response.answer, response.sequence) == (Answer.OK, sequence)
            np.testing.assert_array_equal(response.words, [harness.memory[a] for a in addresses])

    harness.run(bench)


def test_a_frame_whose_last_cobs_block_is_full():
    """The block ends with the CRC and is as long as a block can be: an empty one follows it."""
    harness = LinkHarness(4, 0.0)
    words = np.random.default_rng(0).integers(1, 256, (70, 4)).astype(np.uint8)
    # A zero, then as many bytes as a block has, the CRC's among them.
    words.reshape(-1)[-(254 - 4) - 1] = 0
    words = words.view("<u4")[:, 0]

    async def bench(ctx):
        await harness.open(ctx)
        assert (await harness.ask(ctx, Opcode.WRITE, 1, words=words, address=0, run=1, jump=1)).answer == Answer.OK
        response = await harness.ask(ctx, Opcode.READ, 2, count=len(words), address=0, run=1, jump=1)
        np.testing.assert_array_equal(response.words, words)
        # The code of the full block, its bytes, the code of the empty one.
        assert (harness.frames[-1][-256], harness.frames[-1][-1]) == (255, 1)

    harness.run(bench)


def test_hello_tells_what_the_board_is():
    harness = LinkHarness(2, 0.1)
    harness.memory = {0: 7, 4: 8, 8: 9}

    async def bench(ctx):
        for sequence, previous in ((250, None), (3, SESSION), (4, SESSION + 1)):
            session = SESSION + (0 if previous is None else 1 if previous == SESSION else 2)
            response = await harness.open(ctx, sequence, session)
            want = Hello(
                link_version=LINK_VERSION,
                max_words=LARGEST_WORDS,
                packs=True,
                clock_hz=CLOCK,
                previous_session=previous,
                magic=7,
                isa_version=8,
                config_hash=9,
            )
            assert Hello.from_words(response.words) == want
        assert (await harness.ask(ctx, Opcode.READ, 5, SESSION + 2, count=1)).answer == Answer.OK

    harness.run(bench)


def test_each_request_happens_once_and_in_order():
    harness = LinkHarness(3, 0.1)

    async def bench(ctx):
        write = dict(opcode=Opcode.WRITE, address=64, words=np.array([5], np.uint32))
        # Nothing before HELLO.
        response = await harness.ask(ctx, sequence=1, session=0, **write)
        assert (response.answer, response.session) == (Answer.NO_SESSION, 0)
        hello = await harness.open(ctx, 255)
        repeated = await harness.open(ctx, 255)  # as after a lost answer
        np.testing.assert_array_equal(hello.words, repeated.words)
        assert (await harness.ask(ctx, sequence=0, session=77, **write)).answer == Answer.NO_SESSION
        harness.accesses.clear()
        for _ in range(3):
            response = await harness.ask(ctx, sequence=0, **write)
            assert (response.answer, response.sequence) == (Answer.OK, 0)
        assert harness.accesses == [(True, 64, 5)]
        for sequence in (2, 255, 128):
            response = await harness.ask(ctx, sequence=sequence, **write)
            assert (response.answer, response.sequence) == (Answer.BAD_SEQUENCE, 0)
        assert len(harness.accesses) == 1
        # A notice in between does not disturb the response that is kept.
        read = await harness.ask(ctx, Opcode.READ, 1, address=64, count=1)
        await harness.send(ctx, b"\x02\x00")
        response = await harness.answer(ctx)
        assert (response.answer, response.sequence) == (Answer.BAD_FRAME, 1)
        harness.memory[64] = 6
        again = await harness.ask(ctx, Opcode.READ, 1, address=64, count=1)
        assert again.words.tolist() == read.words.tolist() == [5]
        unknown = Request(opcode=Opcode.READ, sequence=2, session=SESSION, count=1).encode()
        frame = bytearray(cobs_decode(unknown[:-1]))
        frame[0] = 99
        await harness.send(ctx, sealed(bytes(frame[:-4])))
        assert (await harness.answer(ctx)).answer == Answer.BAD_REQUEST

    harness.run(bench)


def sealed(data: bytes) -> bytes:
    import zlib

    return cobs_encode(data + zlib.crc32(data).to_bytes(4, "little")) + b"\0"


def test_start_and_the_end_of_the_program():
    harness = LinkHarness(4, 0.1)
    for index, register in enumerate(DONE_REGISTERS):
        harness.memory[HostAddress.REGISTERS + register] = 100 + index

    async def bench(ctx):
        await harness.open(ctx)
        place = dict(address=HostAddress.REGISTERS + Register.PROGRAM_START, run=2)
        words = np.array([48, 1], np.uint32)
        harness.accesses.clear()
        response = await harness.ask(ctx, Opcode.START, 1, words=words, **place)
        assert (response.answer, response.sequence) == (Answer.OK, 1)
        assert harness.accesses == [(True, Register.PROGRAM_START, 48), (True, Register.CONTROL, 1)]
        ctx.set(harness.dut.busy, 1)
        await harness.silence(ctx)
        # A request while the program runs; then its end, with the sequence number of the start.
        assert (await harness.ask(ctx, Opcode.READ, 2, address=0x80, count=1)).sequence == 2
        ctx.set(harness.dut.busy, 0)
        response = await harness.answer(ctx)
        assert (response.answer, response.sequence, response.session) == (Answer.DONE, 1, SESSION)
        assert response.words.tolist() == [100, 101, 102]
        await harness.silence(ctx)
        # The response that is kept is still that of the read.
        assert len((await harness.ask(ctx, Opcode.READ, 2, address=0x80, count=1)).words) == 1

    harness.run(bench)


def test_reset_is_one_pulse():
    harness = LinkHarness(5, 0.0)
    cycles = []

    async def watch(ctx):
        async for _, _, reset in ctx.tick().sample(harness.dut.reset):
            cycles.append(reset)

    async def bench(ctx):
        await harness.open(ctx)
        for _ in range(2):
            # Whatever it says of a burst: it is answered without words.
            response = await harness.ask(ctx, Opcode.RESET, 1, count=3, address=0x40)
            assert (response.answer, len(response.words)) == (Answer.OK, 0)
        assert not harness.accesses[-1][0] and len(harness.accesses) == len(HELLO_REGISTERS)
        assert (await harness.ask(ctx, Opcode.READ, 2, count=1)).answer == Answer.OK

    simulate(harness.dut, bench, background=(harness.responder, harness.listener, watch))
    assert sum(cycles) == 1


def test_no_damage_reaches_the_bus():
    harness = LinkHarness(6, 0.0)
    rng = np.random.default_rng(7)

    async def bench(ctx):
        await harness.open(ctx)
        good = Request(
            opcode=Opcode.WRITE, sequence=1, session=SESSION, address=0x100, words=np.arange(8, dtype=np.uint32)
        ).encode()
        harness.accesses.clear()
        for index in range(len(good) - 1):
            kind = index % 3
            if kind == 0:
                data = good[:index] + bytes([good[index] ^ 1 << int(rng.integers(8))]) + good[index + 1 :]
            elif kind == 1:
                data = good[:index] + good[index + 1 :]
            else:
                data = good[:index] + good[index : index + 1] + good[index:]
            await harness.send(ctx, data)
            response = await harness.answer(ctx)
            assert response.answer == Answer.BAD_FRAME, (kind, index)
            await ctx.tick().repeat(150)
            assert all(r.answer == Answer.BAD_FRAME for r in harness.responses)
            harness.responses.clear()
            assert not harness.accesses
        for junk in (b"\0", b"\0\0\0", b"\x01\0" * 3, bytes(range(1, 256)) * 6 + b"\0"):
            await harness.send(ctx, junk)
            await ctx.tick().repeat(1000)
            harness.responses.clear()
        await harness.send(ctx, b"\0" + good)
        assert (await harness.answer(ctx)).answer == Answer.OK
        assert len(harness.accesses) == 8

    harness.run(bench)


class FrameHarness:
    """A receiver of frames alone; frames wait until they are taken."""

    def __init__(self) -> None:
        self.dut = FrameReceiver(GenericTechnology(), buffer_words=16)
        self.damaged = 0

    async def watch(self, ctx):
        async for _, _, damaged in ctx.tick().sample(self.dut.damaged):
            self.damaged += damaged

    async def send(self, ctx, data: bytes) -> None:
        octets = self.dut.octets
        for byte in data:
            ctx.set(octets.payload, byte)
            ctx.set(octets.valid, 1)
            while not ctx.get(octets.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(octets.valid, 0)
        await ctx.tick().repeat(20)

    async def take(self, ctx) -> list[int]:
        """The words of the frame that waits."""
        assert ctx.get(self.dut.frame)
        ctx.set(self.dut.take, 1)
        await ctx.tick()
        ctx.set(self.dut.take, 0)
        words = []
        for index in range(ctx.get(self.dut.words)):
            ctx.set(self.dut.address, index)
            await ctx.tick().repeat(RAM_LATENCY + 1)
            words.append(ctx.get(self.dut.data))
        return words

    def run(self, bench) -> None:
        simulate(self.dut, bench, background=(self.watch,))


def frame_of(words: list[int]) -> bytes:
    return sealed(np.array(words, "<u4").tobytes())


def test_a_frame_that_waits_stays_as_it_is():
    harness = FrameHarness()
    first, second, third = ([base + i for i in range(6)] for base in (0x11111111, 0x22222222, 0x33333333))

    async def bench(ctx):
        await harness.send(ctx, frame_of(first))
        # Another one comes, which is lost; and it is still the first that waits.
        await harness.send(ctx, frame_of(second))
        assert harness.damaged == 1
        assert await harness.take(ctx) == first
        # One that is taken while the next arrives: of that the beginning is lost, though its CRC is right.
        await harness.send(ctx, frame_of(first))
        for cut in (3, 12, 20):
            data = frame_of(third)
            await harness.send(ctx, data[:cut])
            assert await harness.take(ctx) == first
            before = harness.damaged
            await harness.send(ctx, data[cut:])
            assert not ctx.get(harness.dut.frame) and harness.damaged == before + 1
            await harness.send(ctx, frame_of(first))
            assert ctx.get(harness.dut.frame)
        assert await harness.take(ctx) == first
        await harness.send(ctx, frame_of(third))
        assert await harness.take(ctx) == third

    harness.run(bench)


def test_a_frame_that_ends_within_a_block_is_damaged():
    """Each block's code says one byte more than there is: the bytes are those of a good frame, their CRC is right."""
    harness = FrameHarness()
    words = [0x01020304, 0x05060708, 0x090A0B0C, 0x0D0E0F10]

    async def bench(ctx):
        good = bytearray(frame_of(words))
        code = 0
        while code + good[code] < len(good) - 1:
            code += good[code]
        for more in (1, 2, 200):
            bad = good.copy()
            bad[code] += more
            await harness.send(ctx, bytes(bad))
            assert not ctx.get(harness.dut.frame)
        assert harness.damaged == 3
        await harness.send(ctx, bytes(good))
        assert await harness.take(ctx) == words

    harness.run(bench)


def test_good_frames_of_a_wrong_length_do_no_harm():
    harness = LinkHarness(8, 0.0)
    too_long = Request(opcode=Opcode.WRITE, sequence=1, session=SESSION, words=np.ones(LARGEST_WORDS + 1, np.uint32))

    async def bench(ctx):
        await harness.open(ctx)
        harness.accesses.clear()
        for size in (0, 1, 4, 8, 12, 100):
            await harness.send(ctx, sealed(bytes(size)))
            room_for_a_header = size >= HEAD_BYTES
            assert (await harness.answer(ctx)).answer == (Answer.NO_SESSION if room_for_a_header else Answer.BAD_FRAME)
        await harness.send(ctx, too_long.encode())
        assert (await harness.answer(ctx)).answer == Answer.BAD_FRAME
        assert not harness.accesses

    harness.run(bench)


def test_weights_take_more_than_nine_tenths_of_the_line():
    """Frames without a pause at the fastest line that the UART makes: 8 cycles a bit."""
    harness = LinkHarness(9, 0.0, byte_cycles=80)
    rng = np.random.default_rng(10)
    sizes = 7, 2
    """Weight words of each frame: the second one begins without a pause."""

    async def bench(ctx):
        await harness.open(ctx)
        harness.accesses.clear()
        data = b""
        for index, size in enumerate(sizes):
            # Weight words of 144 bytes at distances of 256, at most seven to a frame.
            words = rng.integers(0, 2**32, size * 36, np.uint32)
            place = dict(address=HostAddress.WEIGHTS + 7 * 256 * index, run=36, jump=(256 - 144) // 4 + 1)
            request = Request(opcode=Opcode.WRITE, sequence=index + 1, session=SESSION, words=words, **place)
            data += request.encode()
            if size == max(sizes):
                share = 4 * size * 36 / len(data)
        print(f"payload is {100 * share:.1f} % of the line, {len(data)} bytes without a pause")
        assert share > 0.97
        await harness.send(ctx, data)
        for index in range(len(sizes)):
            response = await harness.answer(ctx)
            assert (response.answer, response.sequence) == (Answer.OK, index + 1)
        addresses = [address for _, address, _ in harness.accesses]
        want = [HostAddress.WEIGHTS + 256 * word + 4 * c for word in range(sum(sizes)) for c in range(36)]
        assert addresses == want

    harness.run(bench)


def test_the_twin_answers_as_the_hardware():
    """`TwinBoard`, which the campaign of faults runs against, gives the same frames for any sequence of frames."""
    twin = TwinBoard(SMALL)
    harness = LinkHarness(11, 0.0)
    harness.dut.clock_hz = CLOCK_HZ
    for register in (Register.MAGIC, Register.VERSION, Register.CONFIG_HASH):
        harness.memory[register] = twin._fetch(register)
    rng = np.random.default_rng(12)
    kinds = dict.fromkeys(Answer, 0)

    async def bench(ctx):
        sequence, session = 0, 7
        for _ in range(90):
            kind = rng.random()
            opcode = Opcode.HELLO if kind < 0.15 else Opcode.WRITE if kind < 0.5 else Opcode.READ
            if opcode == Opcode.HELLO:
                session = int(rng.integers(1, 4))
            step = int(rng.choice([0, 1, 1, 1, 1, 2]))
            sequence = (sequence + step) % 256
            words = rng.integers(0, 2**32, 1, np.uint32) if opcode == Opcode.WRITE else np.zeros(0, np.uint32)
            request = Request(
                opcode=opcode,
                sequence=sequence,
                session=session if rng.random() < 0.9 else 9,
                address=HostAddress.REGISTERS + Register.PROGRAM_START,
                count=int(opcode == Opcode.READ),
                words=words,
            )
            data = bytearray(request.encode())
            if rng.random() < 0.15:
                data[int(rng.integers(len(data) - 1))] ^= 1 << int(rng.integers(8))
            want = [Response.decode(frame) for frame in FrameSplitter().feed(twin.feed(bytes(data)))]
            await harness.send(ctx, bytes(data))
            for expected in want:
                got = await harness.answer(ctx)
                kinds[got.answer] += 1
                assert got.encode() == expected.encode()
                if got.answer != Answer.BAD_SEQUENCE and got.answer == Answer.OK:
                    sequence = got.sequence
            await harness.silence(ctx)

    harness.run(bench)
    assert min(kinds[a] for a in (Answer.OK, Answer.BAD_FRAME, Answer.BAD_SEQUENCE, Answer.NO_SESSION)) >= 5, kinds


class PlainTwin(TwinBoard):
    """A twin with any memory behind its bus, as `LinkHarness` has it."""

    def __init__(self) -> None:
        self.memory: dict[int, int] = {}
        super().__init__(SMALL)

    def _store_all(self, request: Request) -> None:
        for address, word in zip(request.addresses(len(request.words)), request.words.tolist(), strict=True):
            self.memory[address] = word

    def _fetch(self, address: int) -> int:
        return self.memory.get(address, 0)


CONTROL = HostAddress.REGISTERS + Register.CONTROL
MEMORY = HostAddress.ACTIVATIONS
FIRST = np.array([script_word(0)], np.uint32)


class ScriptHarness(LinkHarness):
    """A write to CONTROL makes the link busy for `cycles`."""

    def __init__(self, seed: int, pause: float, cycles: int = 40) -> None:
        super().__init__(seed, pause)
        self.cycles = cycles
        self.hang = False

    async def engine(self, ctx):
        seen = 0
        while True:
            await ctx.tick()
            starts = [a for a in self.accesses[seen:] if a[:2] == (True, CONTROL)]
            seen = len(self.accesses)
            if starts:
                ctx.set(self.dut.busy, 1)
                left = self.cycles
                while left or self.hang:
                    left -= left > 0
                    await ctx.tick()
                    if ctx.get(self.dut.reset):
                        break
                ctx.set(self.dut.busy, 0)

    async def load(self, ctx, sequence: int, steps: list[Step]) -> None:
        words = np.concatenate([step.words() for step in steps])
        assert (await self.ask(ctx, Opcode.SCRIPT, sequence, words=words)).answer == Answer.OK

    def run(self, bench) -> None:
        simulate(self.dut, bench, background=(self.responder, self.listener, self.engine))


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """Of bytes that go over the line: chunks at a distance, or whatever."""
    chunk, pad = int(rng.integers(1, 24)), int(rng.choice([0, 1, 2, 3, 6, 15, 40]))
    size = 4 * int(rng.integers(1, 25))
    if rng.random() < 0.2:
        return rng.random(size) < 0.7
    return np.arange(size) % (chunk + pad) < chunk


def script_of(rng: np.random.Generator) -> tuple[list[Exchange], list[Exchange], list[Step]]:
    """Inputs, outputs and steps of a script that starts a program."""
    exchanges, address = [], MEMORY
    for kind in [StepKind.WRITE] * int(rng.integers(0, 4)) + [StepKind.READ] * int(rng.integers(0, 4)):
        exchanges.append((kind, Exchange.of(kind, address, random_mask(rng))))
        address += len(exchanges[-1][1].mask) if rng.random() < 0.8 else 0x100
    inputs, outputs = ([e for k, e in exchanges if k == kind] for kind in (StepKind.WRITE, StepKind.READ))
    steps = [step for e in inputs for step in e.steps]
    start = [Step.put(CONTROL - 4, 0x12345678, 0xABCD0001), Step(kind=StepKind.WAIT)]
    return inputs, outputs, [*steps, *start, *(step for e in outputs for step in e.steps), Step(kind=StepKind.END)]


@given(st.integers(0, 2**32 - 1))
def test_steps_say_which_bytes_go_over_the_line(seed):
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    steps, used = packed_steps(StepKind.READ, 0x40, mask)
    assert (used | ~mask).all() and (used.all() or (used == mask).all())
    got, address = [], 0x40
    for step in steps:
        assert step.address == address and 0 < step.count <= 0xFFFF
        got.append(np.arange(4 * step.count) % (step.chunk + step.pad) < step.chunk)
        address += 4 * step.count
    np.testing.assert_array_equal(np.concatenate(got), used)


@pytest.mark.parametrize(("seed", "pause"), [pytest.param(1, 0.0, marks=pytest.mark.slow), (2, 0.4)])
def test_scripts_write_start_and_answer(seed, pause):
    """Inputs and outputs of any chunks, cut into frames anywhere; the twin gives the same frames."""
    harness = ScriptHarness(seed, pause)
    rng = np.random.default_rng(seed)
    twin = PlainTwin()

    async def bench(ctx):
        sequence = 0
        await harness.open(ctx)
        twin.feed(Request(opcode=Opcode.HELLO, sequence=0, session=SESSION).encode())
        for _ in range(4):
            inputs, outputs, steps = script_of(rng)
            script = np.concatenate([step.words() for step in steps])
            # Anywhere in the frame.
            before = int(rng.integers(0, LARGEST_WORDS - len(script) + 1))
            first = script_word(before)
            sequence += 1
            words = np.concatenate([rng.integers(0, 2**32, before, np.uint32), script])
            request = Request(opcode=Opcode.SCRIPT, sequence=sequence, session=SESSION, words=words)
            await harness.send(ctx, request.encode())
            assert (await harness.answer(ctx)).encode() == twin.feed(request.encode())
            for address in range(MEMORY, MEMORY + 0x800, 4):
                harness.memory[address] = twin.memory[address] = int(rng.integers(0, 2**32))
            data = rng.integers(0, 256, sum(e.size for e in inputs), np.uint8)
            want = dict(harness.memory)
            position = 0
            for exchange in inputs:
                full = exchange.expand(data[position : position + exchange.size]).view("<u4")
                position += exchange.size
                want |= {exchange.steps[0].address + 4 * i: int(w) for i, w in enumerate(full)}
            given = np.pad(data, (0, -len(data) % 4)).view("<u4").astype(np.uint32)
            cut = sorted(rng.integers(0, max(1, len(given)), int(rng.integers(0, 3))).tolist()) if len(given) else []
            pieces = np.split(given, cut)
            harness.accesses.clear()
            answers = []
            for index, piece in enumerate(pieces):
                sequence += 1
                opcode = Opcode.MORE if index else Opcode.RUN
                piece = piece if index else np.concatenate([np.array([first], np.uint32), piece])
                frame = Request(opcode=opcode, sequence=sequence % 256, session=SESSION, words=piece).encode()
                answered = twin.feed(frame)
                await harness.send(ctx, frame)
                if answered:
                    answers.append(await harness.answer(ctx))
                    assert answers[-1].encode() == answered
                else:
                    await ctx.tick().repeat(3000 if pause else 900)
                    assert not harness.responses
                # Sent again it does nothing, and is answered as before, or with what was executed last.
                accesses = len(harness.accesses)
                await harness.send(ctx, frame)
                again = await harness.answer(ctx)
                assert again.encode() == twin.feed(frame)
                assert again.answer == (Answer.OK if answered else Answer.BAD_SEQUENCE)
                assert again.sequence == sequence % 256 and len(harness.accesses) == accesses
            want |= {CONTROL - 4: 0x12345678, CONTROL: 0xABCD0001}
            assert harness.memory == want
            position = 0
            for exchange in outputs:
                full = np.array(
                    [want.get(exchange.steps[0].address + 4 * i, 0) for i in range(len(exchange.mask) // 4)]
                )
                part = answers[0].data[position : position + exchange.size]
                assert part == full.astype("<u4").view(np.uint8)[exchange.mask].tobytes()
                position += exchange.size
            assert len(answers) == 1
            assert len(answers[0].data) == position

    harness.run(bench)


def test_outputs_of_several_frames():
    """Each MORE is answered with the next frame; a frame that was lost is sent again."""
    harness = ScriptHarness(3, 0.0)
    exchange = Exchange.of(StepKind.READ, MEMORY, np.arange(4 * 700) % 16 < 13)
    steps = [Step.put(CONTROL, 1), Step(kind=StepKind.WAIT)]
    sizes = answer_sizes([exchange], LARGEST_WORDS)
    assert len(sizes) == 3 and sum(sizes) == exchange.size

    async def bench(ctx):
        values = np.random.default_rng(4).integers(0, 2**32, 700, np.uint32)
        for index, word in enumerate(values):
            harness.memory[MEMORY + 4 * index] = int(word)
        await harness.open(ctx)
        await harness.load(ctx, 1, [*steps, *exchange.steps, Step(kind=StepKind.END)])
        got = b""
        for index, size in enumerate(sizes):
            frame = dict(words=FIRST) if not index else {}
            response = await harness.ask(ctx, Opcode.MORE if index else Opcode.RUN, 2 + index, **frame)
            assert (response.answer, len(response.data)) == (Answer.OK, size)
            # A damaged frame in between disturbs nothing.
            await harness.send(ctx, b"\x02\x00")
            assert (await harness.answer(ctx)).answer == Answer.BAD_FRAME
            again = await harness.ask(ctx, Opcode.MORE, 2 + index)
            assert again.data == response.data
            got += response.data
        np.testing.assert_array_equal(
            exchange.expand(np.frombuffer(got, np.uint8))[exchange.mask],
            values.astype("<u4").view(np.uint8)[exchange.mask],
        )
        assert (await harness.ask(ctx, Opcode.MORE, 5)).answer == Answer.BAD_REQUEST

    harness.run(bench)


def test_frames_that_come_while_a_program_runs():
    """Two are kept and executed behind it, a third is lost; a repetition is told that the program runs."""
    harness = ScriptHarness(5, 0.0, cycles=20_000)
    steps = [
        Step(kind=StepKind.WRITE, address=MEMORY, count=1),
        Step.put(CONTROL, 1),
        Step(kind=StepKind.WAIT),
        Step(kind=StepKind.READ, address=MEMORY, count=1),
        Step(kind=StepKind.END),
    ]

    def run(sequence: int, value: int) -> bytes:
        words = np.append(FIRST, np.uint32(value))
        return Request(opcode=Opcode.RUN, sequence=sequence, session=SESSION, words=words).encode()

    async def bench(ctx):
        await harness.open(ctx)
        await harness.load(ctx, 1, steps)
        await harness.send(ctx, run(2, 1002))
        await ctx.tick().repeat(500)
        await harness.send(ctx, run(2, 1002))
        response = await harness.answer(ctx)
        assert (response.answer, response.sequence) == (Answer.RUNNING, 2)
        for sequence in (3, 4, 5):
            await harness.send(ctx, run(sequence, 1000 + sequence))
        response = await harness.answer(ctx)
        assert (response.answer, response.sequence) == (Answer.BAD_FRAME, 2)
        for sequence in (2, 3, 4):
            response = await harness.answer(ctx)
            assert (response.answer, response.sequence, response.words.tolist()) == (
                Answer.OK,
                sequence,
                [1000 + sequence],
            )
        assert (await harness.ask(ctx, Opcode.SYNC, 5)).data == b""
        # What another session asks for is not held.
        harness.hang = True
        await harness.send(ctx, run(6, 6))
        await ctx.tick().repeat(500)
        assert (await harness.ask(ctx, Opcode.READ, 6, 77, count=1)).answer == Answer.NO_SESSION
        # RESET ends it; nothing is answered for it then.
        assert (await harness.ask(ctx, Opcode.RESET, 7)).answer == Answer.OK
        harness.hang = False
        await ctx.tick().repeat(2000)
        harness.responses.clear()
        harness.cycles = 40
        assert (await harness.ask(ctx, Opcode.MORE, 8)).answer == Answer.BAD_REQUEST
        assert (await harness.ask(ctx, Opcode.RUN, 9, words=np.append(FIRST, np.uint32(9)))).words.tolist() == [9]
        # A new session ends it, too.
        harness.hang = True
        await harness.send(ctx, run(10, 6))
        await ctx.tick().repeat(500)
        await harness.open(ctx, 3, SESSION + 1)
        assert (await harness.ask(ctx, Opcode.RESET, 4, SESSION + 1)).answer == Answer.OK

    harness.run(bench)


def test_scripts_that_are_none():
    """RUN that names no step, with a script without an end, or with a step that means nothing."""
    harness = ScriptHarness(6, 0.0)
    endless = np.concatenate([Step.put(MEMORY + 4 * i, i).words() for i in range(62)])
    nothing = Step(kind=StepKind.END).words() | np.array([0, 7 << 8, 0], np.uint32)

    async def bench(ctx):
        await harness.open(ctx)
        assert (await harness.ask(ctx, Opcode.SCRIPT, 2, words=endless)).answer == Answer.BAD_SEQUENCE
        for session, (index, accesses) in enumerate({None: 0, 0: 62, 200: 12, 248: 0}.items(), SESSION + 1):
            await harness.open(ctx, 0, session)
            script = np.concatenate([endless, nothing])
            assert (await harness.ask(ctx, Opcode.SCRIPT, 1, session, words=script)).answer == Answer.OK
            harness.accesses.clear()
            words = np.array([] if index is None else [script_word(index)], np.uint32)
            response = await harness.ask(ctx, Opcode.RUN, 2, session, words=words)
            assert response.answer == (Answer.BAD_REQUEST if index is None else Answer.OK) and not response.data
            assert len(harness.accesses) == accesses
        # One that runs to the end of its memory.
        script = np.concatenate([endless, Step.put(MEMORY, 5).words()])
        assert (await harness.ask(ctx, Opcode.SCRIPT, 3, session, words=script)).answer == Answer.OK
        assert (await harness.ask(ctx, Opcode.RUN, 4, session, words=FIRST)).answer == Answer.OK
        assert (await harness.ask(ctx, Opcode.READ, 5, session, count=1)).answer == Answer.OK

    harness.run(bench)


@given(st.lists(st.one_of(st.binary(max_size=300), st.just(b"\0\0"), st.just(b"\x07" * 254)), max_size=6))
def test_cobs_is_that_of_others(parts):
    data = b"".join(parts)
    encoded = cobs_encode(data)
    assert b"\0" not in encoded and len(encoded) <= len(data) + 1 + len(data) // 254
    assert cobs.cobs.decode(encoded) == data
    assert cobs_decode(cobs.cobs.encode(data)) == cobs_decode(encoded) == data


@pytest.mark.parametrize("bad", [b"\x03a", b"\x00", b"\x02a\x00", b"\x03a\x00", b"\xff" + b"a" * 253])
def test_what_is_not_cobs(bad):
    with pytest.raises(ValueError, match="not a COBS frame"):
        cobs_decode(bad)


def test_frames_are_what_the_declaration_says():
    place = dict(address=0x30000010, run=2, jump=5)
    words = np.array([9], np.uint32)
    request = Request(opcode=Opcode.WRITE, sequence=3, session=0xABCD, words=words, **place)
    data = cobs.cobs.decode(request.encode()[:-1])
    assert data[:-4] == bytes([2, 3, 0xCD, 0xAB, 0x10, 0, 0, 0x30, 2, 0, 5, 0, 9, 0, 0, 0])
    decoded = Request.decode(request.encode()[:-1])
    assert all(getattr(decoded, item.name) == getattr(request, item.name) for item in HEAD + BURST)
    assert HEADER_BYTES == 12 and 4 * LARGEST_WORDS + HEADER_BYTES + 4 == 1024
    with pytest.raises(ValueError, match="CRC"):
        Response.decode(cobs_encode(bytes(8)))
    with pytest.raises(ValueError, match="length"):
        Response.decode(cobs_encode(bytes(7)))
    for data in (b"", bytes(4), bytes(13)):
        with pytest.raises(ValueError, match="length"):
            Request.decode(sealed(bytes([Opcode.WRITE, 0, 0, 0]) + data)[:-1])
    short = Request(opcode=Opcode.RUN, sequence=3, session=0xABCD, words=words).encode()
    assert cobs.cobs.decode(short[:-1])[:-4] == bytes([8, 3, 0xCD, 0xAB, 9, 0, 0, 0])
    response = Response(answer=Answer.OK, sequence=1, session=2, words=words, rest=b"xyz")
    assert Response.decode(response.encode()[:-1]).data == bytes([9, 0, 0, 0]) + b"xyz"
    with pytest.raises(ValueError, match="count must be below 256, not 256"):
        Request(opcode=Opcode.READ, sequence=0, session=1, count=256).encode()
    splitter = FrameSplitter(limit=8)
    assert splitter.feed(b"ab\0\0cd") == [b"ab"] and splitter.feed(b"e\0") == [b"cde"]
    assert splitter.feed(b"x" * 100) == [] and splitter.feed(b"\0") == [b"x" * 8]


class Loop(wiring.Component):
    """Transmitter into receiver."""

    def __init__(self) -> None:
        self.receiver = UartReceiver(divisor=DIVISOR)
        self.transmitter = UartTransmitter(divisor=DIVISOR)
        super().__init__({})

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver, m.submodules.transmitter = self.receiver, self.transmitter
        m.d.comb += self.receiver.rx.eq(self.transmitter.tx)
        return m


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_uart_carries_every_byte(pause):
    dut = Loop()
    rng = np.random.default_rng(6)
    data = [int(b) for b in rng.integers(0, 256, 60)] + [0x00, 0xFF, 0x55, 0xAA]
    seen = []

    async def send(ctx):
        octets = dut.transmitter.octets
        for byte in data:
            while rng.random() < pause:
                await ctx.tick().repeat(5)
            ctx.set(octets.payload, byte)
            ctx.set(octets.valid, 1)
            while not ctx.get(octets.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(octets.valid, 0)

    async def receive(ctx):
        octets = dut.receiver.octets
        while len(seen) < len(data):
            while not ctx.get(octets.valid):
                await ctx.tick()
            # Back-pressure shorter than a byte loses nothing.
            await ctx.tick().repeat(1 + int(rng.integers(6 * DIVISOR)))
            assert ctx.get(octets.valid)
            seen.append(ctx.get(octets.payload))
            ctx.set(octets.ready, 1)
            await ctx.tick()
            ctx.set(octets.ready, 0)

    simulate(dut, send, receive)
    assert seen == data


def test_uart_flags_framing_errors_glitches_and_overflow():
    dut = UartReceiver(divisor=DIVISOR)
    events = {"error": 0, "overflow": 0}

    async def watch(ctx):
        async for _, _, error, overflow in ctx.tick().sample(dut.framing_error, dut.overflow):
            events["error"] += error
            events["overflow"] += overflow

    async def line(ctx, bits):
        for bit in bits:
            ctx.set(dut.rx, bit)
            await ctx.tick().repeat(DIVISOR)

    async def bench(ctx):
        await line(ctx, [1, 1])
        ctx.set(dut.rx, 0)  # a glitch: too short for a start bit
        await ctx.tick()
        await line(ctx, [1] * 12)
        assert not ctx.get(dut.octets.valid)
        await line(ctx, [0, *[1, 0] * 4, 0, 1, 1])  # stop bit low
        assert events["error"] == 1 and not ctx.get(dut.octets.valid)
        await line(ctx, [0, *[1, 0] * 4, 1, 1])
        assert ctx.get(dut.octets.valid) and ctx.get(dut.octets.payload) == 0x55
        await line(ctx, [0, *[0, 1] * 4, 1, 1])  # nobody took the first
        assert events["overflow"] == 1

    simulate(dut, bench, background=(watch,))


def test_baud_rates_that_cannot_be_made_are_refused():
    assert baud_divisor(80e6, 1_000_000) == 80
    with pytest.raises(ValueError, match="within 2 %"):
        baud_divisor(25e6, 3_000_000 * 4)
