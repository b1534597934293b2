"""An AXI4 manager with random stalls, and the SDRAM model at a controller's pins, for Amaranth's simulator."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from nnloom.hw.sdram import SdramController
from nnloom.hw.sdram_timing import SdramChip

from .sdram_model import SdramModel, SdramPinValues

__all__ = ["Burst", "Manager", "Reference", "Run", "quick"]

PIN_NAMES = ("cke", "cs_n", "ras_n", "cas_n", "we_n", "ba", "a", "dqm", "dq_o", "dq_oe")
ANSWERS = ("awready", "wready", "arready", "bvalid", "bid", "bresp", "rvalid", "rid", "rdata", "rresp", "rlast")


@dataclass
class Burst:
    """A read or a write burst, and what came back."""

    write: bool
    address: int
    beats: int
    id: int = 0
    size: int | None = None
    kind: int = 1
    data: list[int] = field(default_factory=list)
    strobes: list[int] = field(default_factory=list)
    responses: list[int] = field(default_factory=list)

    def span(self, beat_bytes: int) -> tuple[int, int]:
        """First byte, and the first behind it."""
        first = self.address // beat_bytes * beat_bytes
        return first, first + self.beats * beat_bytes


def quick(chip: SdramChip, **changes: Any) -> SdramChip:
    """A chip that is soon ready after power-up."""
    return dataclasses.replace(chip, power_up_us=1, **changes)


class Manager:
    """Sends bursts; stalls each channel in a share of the cycles.

    Parameters
    ----------
    stall
        Share of the cycles, by channel, in which no handshake begins.
    reads_under_way, writes_under_way
        Bursts whose answers have not come.
    """

    def __init__(
        self,
        data_width: int,
        *,
        rng: random.Random | None = None,
        stall: dict[str, float] | None = None,
        reads_under_way: int = 4,
        writes_under_way: int = 4,
    ) -> None:
        self.beat_bytes = data_width // 8
        self.rng = rng or random.Random(0)
        self.stall = stall or {}
        self.most = {"aw": writes_under_way, "ar": reads_under_way}
        self.queues: dict[str, deque[Burst]] = {"aw": deque(), "ar": deque()}
        self.under_way: dict[str, deque[Burst]] = {"aw": deque(), "ar": deque()}
        self.beats: deque[tuple[Burst, int]] = deque()
        """Of writes, not yet taken."""
        self.driven = dict.fromkeys(("awvalid", "wvalid", "bready", "arvalid", "rready"), 0)
        self.started: Callable[[Burst], None] = lambda burst: None
        self.finished: Callable[[Burst], None] = lambda burst: None
        self.may_start: Callable[[Burst], bool] = lambda burst: True

    def add(self, *bursts: Burst) -> None:
        """Queue bursts; writes are sent in this order, and so are reads."""
        for burst in bursts:
            self.queues["aw" if burst.write else "ar"].append(burst)

    @property
    def idle(self) -> bool:
        """Everything is answered."""
        return not any(self.queues.values()) and not any(self.under_way.values())

    def _runs(self, channel: str) -> bool:
        return channel not in self.stall or self.rng.random() >= self.stall[channel]

    def step(self, seen: dict[str, int]) -> dict[str, int]:
        """After an edge: `seen` is what the subordinate drove before it; gives what to drive from now on."""
        drive = self.driven
        if drive["bready"] and seen["bvalid"]:
            self._answered(seen)
        if drive["rready"] and seen["rvalid"]:
            self._read(seen)
        for channel in ("aw", "ar"):
            if drive[f"{channel}valid"] and seen[f"{channel}ready"]:
                drive[f"{channel}valid"] = 0
            if not drive[f"{channel}valid"] and self._runs(channel):
                self._start(channel)
        if drive["wvalid"] and seen["wready"]:
            drive["wvalid"] = 0
            self.beats.popleft()
        if not drive["wvalid"] and self.beats and self._runs("w"):
            burst, index = self.beats[0]
            data, strobe = burst.data[index], burst.strobes[index]
            drive |= {"wvalid": 1, "wdata": data, "wstrb": strobe, "wlast": int(index == burst.beats - 1)}
        drive["bready"] = int(self._runs("b"))
        drive["rready"] = int(self._runs("r"))
        return drive

    def _start(self, channel: str) -> None:
        queue, under_way = self.queues[channel], self.under_way[channel]
        if not queue or len(under_way) >= self.most[channel] or not self.may_start(queue[0]):
            return
        burst = queue.popleft()
        under_way.append(burst)
        self.started(burst)
        size = (self.beat_bytes - 1).bit_length() if burst.size is None else burst.size
        values = {"valid": 1, "addr": burst.address, "len": burst.beats - 1, "id": burst.id}
        values |= {"size": size, "burst": burst.kind}
        self.driven |= {f"{channel}{name}": value for name, value in values.items()}
        if burst.write:
            self.beats.extend((burst, index) for index in range(burst.beats))

    def _answered(self, seen: dict[str, int]) -> None:
        burst = self.under_way["aw"].popleft()
        assert seen["bid"] == burst.id, "bid"
        assert all(waiting is not burst for waiting, _ in self.beats), "answered before its data was taken"
        burst.responses.append(seen["bresp"])
        self.finished(burst)

    def _read(self, seen: dict[str, int]) -> None:
        burst = self.under_way["ar"][0]
        assert seen["rid"] == burst.id, "rid"
        burst.data.append(seen["rdata"])
        burst.responses.append(seen["rresp"])
        last = len(burst.data) == burst.beats
        assert seen["rlast"] == last, "rlast"
        if last:
            self.under_way["ar"].popleft()
            self.finished(burst)


class Reference:
    """What the memory holds: checks every read of a manager that keeps away from what is under way."""

    def __init__(self, manager: Manager, size: int) -> None:
        self.contents = bytearray(size)
        self.beat_bytes = manager.beat_bytes
        self.under_way: list[Burst] = []
        self.checked = 0
        manager.may_start = self.may_start
        manager.started = lambda burst: self.under_way.append(burst)
        manager.finished = self.finished

    def may_start(self, burst: Burst) -> bool:
        """A read never meets a write that is under way, so that each has one right answer; writes keep their order."""
        first, end = burst.span(self.beat_bytes)
        for other in self.under_way:
            begin, finish = other.span(self.beat_bytes)
            if first < finish and begin < end and burst.write != other.write:
                return False
        return True

    def finished(self, burst: Burst) -> None:
        self.under_way = [other for other in self.under_way if other is not burst]
        first, end = burst.span(self.beat_bytes)
        refused = first >= len(self.contents)
        assert all(bool(response) == refused for response in burst.responses), burst.responses
        if refused:
            return
        self.checked += 1
        if not burst.write:
            expected = self.contents[first:end]
            found = b"".join(beat.to_bytes(self.beat_bytes, "little") for beat in burst.data)
            wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
            assert not wrong, f"read {first:#x}, {burst.beats} beats: wrong from byte {wrong[0]} to {wrong[-1]}"
            return
        for index, (beat, strobe) in enumerate(zip(burst.data, burst.strobes, strict=True)):
            for byte in range(self.beat_bytes):
                if strobe >> byte & 1:
                    self.contents[first + index * self.beat_bytes + byte] = beat >> 8 * byte & 255


@dataclass
class Run:
    """A controller with its chip and manager, clock by clock."""

    dut: SdramController
    model: SdramModel
    manager: Manager
    events: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What is done at a cycle, as replacing the manager."""
    resets: set[int] = field(default_factory=set)
    """Cycles in which the controller, not the chip, is reset."""
    outward: int = 0
    """Registers between the controller's pins and the chip's; and back:"""
    inward: int = 0
    cycle: int = 0
    ready_at: int | None = None
    """Cycle in which the chip was initialised."""

    def until(self, condition: Callable[[], bool], *, most: int = 200_000, drain: int = 300) -> int:
        """Simulate from power-up until a condition holds, and `drain` cycles more for what is being written.

        Returns
        -------
        The cycle in which the condition held first.

        Raises
        ------
        SdramViolation
            If the controller violates the chip's data sheet.
        TimeoutError
            After `most` cycles.
        """
        dut, pins, axi = self.dut, self.dut.pins, self.dut.axi
        reset = Signal()
        sampled = [getattr(pins, name) for name in PIN_NAMES] + [getattr(axi, name) for name in ANSWERS]
        noise = random.Random(1)
        idle = SdramPinValues(cke=1, cs_n=1, ras_n=1, cas_n=1, we_n=1, ba=0, a=0, dqm=0, dq=0, dq_oe=0)
        leaving, coming = deque([idle] * self.outward), deque([0] * self.inward)

        async def bench(ctx: Any) -> None:
            before: dict[str, int] = {}
            left, end = drain, 0
            while left:
                if condition():
                    end = end or self.cycle
                    left -= 1
                if self.cycle >= most:
                    raise TimeoutError(f"the bursts are not done in {most} cycles")
                _, _, ready, *values = await ctx.tick().sample(dut.ready, *sampled)
                self.cycle += 1
                if ready and self.ready_at is None:
                    self.ready_at = self.cycle
                leaving.append(SdramPinValues(*values[: len(PIN_NAMES)]))
                word = self.model.step(leaving.popleft())
                # Nobody drives the bus: anything may be read.
                coming.append(noise.getrandbits(len(pins.dq_i)) if word is None else word)
                ctx.set(pins.dq_i, coming.popleft())
                self.events.get(self.cycle, lambda: None)()
                ctx.set(reset, self.cycle in self.resets)
                driven = self.manager.step(dict(zip(ANSWERS, values[len(PIN_NAMES) :], strict=True)))
                for name, value in driven.items():
                    if before.get(name) != value:
                        ctx.set(getattr(axi, name), value)
                before = dict(driven)
            self.cycle = end

        simulator = Simulator(ResetInserter(reset)(dut))
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()
        return self.cycle
