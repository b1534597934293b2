"""A board behind a serial line: `nnloom.arch.link` frames over any byte stream.

`SerialLink` sends requests until each has happened exactly once; `SerialDevice` loads the board and runs regions, again
from the start if the board was reset meanwhile.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nnloom.arch import usb
from nnloom.arch.artifact import Artifact, EngineImage, Region
from nnloom.arch.errors import ConfigError, DeviceCause, DeviceError
from nnloom.arch.flash_image import BootOutcome
from nnloom.arch.isa import HostAddress, Register, Status
from nnloom.arch.link import (
    DEFAULT_BAUD,
    DONE_REGISTERS,
    FRAMES_AHEAD,
    LARGEST_WORDS,
    LINK_VERSION,
    SEQUENCES,
    Answer,
    FrameSplitter,
    Hello,
    Opcode,
    Request,
    Response,
    script_word,
)
from nnloom.arch.scripts import RegionScript

from .base import DeviceStats, HostBusDevice, Identity, RegionResult
from .content import FlashContent
from .external_memory import ContentLost, ExternalMemory
from .latency import set_low_latency
from .runs import AnswerLost, Flight, ProgramLate, Run

if TYPE_CHECKING:
    from serial.tools.list_ports_common import ListPortInfo

try:
    from termios import error as TerminalError
except ImportError:  # Windows has no termios; pyserial raises OSError there
    TerminalError = OSError  # type: ignore[assignment, misc]

__all__ = ["ByteStream", "SerialDevice", "SerialLink", "SessionLost", "find_boards", "open_serial", "parse_serial"]

T = TypeVar("T")

WINDOW = 16
"""Requests on their way at most: at 3 Mbaud full frames for 50 ms, longer than a USB adapter keeps an answer back."""
ATTEMPTS = 4
"""How often a request is sent without any answer before the board counts as gone."""
FRAME_SECONDS = 0.3
"""Silence after which a request is sent again, besides the time that the bytes take on the line; twice as long the next
time, and so on."""
LIMIT_FRAMES = 60
"""Longest time for a region on the board, loading it again included, in times of the silence above: 18 s, besides the
time on the line."""
RESTARTS = 3
"""How often an inference is begun because the board was reset, or its port failed."""
POLL_SECONDS = 0.02
"""Longest wait of one read from the port."""
FT2232H = 0x6010
USB_BOARDS = frozenset({(0x0403, 0x6015), (0x0403, FT2232H)})
"""USB identities (vendor, product) of the serial adapters on boards: FT231X, FT2232H."""


_FLASH_FAULTS = {
    BootOutcome.DAMAGED: "is damaged; 'nnloom program --flash --with-network' writes it again",
    BootOutcome.OTHER_CONFIGURATION: "was compiled for another configuration of the accelerator; "
    "'nnloom program --flash --with-network' writes this one",
}
"""What a board says of its flash that the user should know of."""


class ByteStream(Protocol):
    """What the driver needs of a serial port; pyserial's `Serial` has it."""

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read without waiting."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer after about `POLL_SECONDS`."""

    def write(self, data: bytes) -> int | None:
        """Send all of `data`."""

    def close(self) -> None:
        """Close the port."""


class SessionLost(DeviceError):
    """The board no longer knows the driver's session: it was reset, and its memories hold nothing that counts."""


class PortLost(DeviceError):
    """The port failed while it was open: the cable was pulled, or the adapter was away for a moment."""


class SerialLink:
    """Requests over a byte stream, each executed exactly once by the board.

    Parameters
    ----------
    open_stream
        Opens the port; called again after a failure.
    baud
        Bit rate of the line, for time-outs.
    frame_seconds
        Silence after which a request is sent again, besides the time of the bytes on the line; `LIMIT_FRAMES` times as
        long may pass from `begin` on, besides the time of the bytes.
    clock
        Seconds, ascending.
    sleep
        Lets seconds of this clock pass.
    """

    def __init__(
        self,
        open_stream: Callable[[], ByteStream],
        *,
        baud: int = DEFAULT_BAUD,
        frame_seconds: float = FRAME_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._open_stream = open_stream
        self._byte_seconds = 10 / baud
        self._frame_seconds = frame_seconds
        self._limit_seconds = LIMIT_FRAMES * frame_seconds
        self.clock = clock
        self._stream: ByteStream | None = None
        self._opened = False
        self._session: int | None = None
        self._sequence = 0
        self._max_words = LARGEST_WORDS
        self._splitter = FrameSplitter()
        self._responses: deque[Response | None] = deque()
        self._done: Response | None = None
        # Of `run`: the silence that is borne, its end, how often it has come to that since something came, whether a
        # complaint has been answered since the last progress, and since when the board says that a program runs.
        self._patience, self._deadline, self._attempts, self._forgiven = frame_seconds, 0.0, 0, False
        self._running_since: float | None = None
        self._program_seconds = 0.0
        self._limit = clock() + self._limit_seconds
        self.stats = DeviceStats()

    @property
    def connected(self) -> bool:
        """A session is open, as far as the driver knows."""
        return self._session is not None

    @property
    def max_words(self) -> int:
        """Most words of a frame."""
        return self._max_words

    def seconds(self, size: int) -> float:
        """Time that so many bytes take on the line."""
        return self._byte_seconds * size

    def begin(self) -> None:
        """Start the time limit anew."""
        self._limit = self.clock() + self._limit_seconds

    def disconnect(self) -> None:
        """Forget the session."""
        self._session = None

    def close(self) -> None:
        """Close the port."""
        self._session = None
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                stream.close()
            except (OSError, TerminalError) as error:
                raise DeviceError(f"serial port: {error}") from error

    def connect(self) -> Hello:
        """Open the port, unless it is open, and a new session.

        Raises
        ------
        DeviceError
            If the port fails, or nothing answers, or with another version of the protocol.
        """
        self._session = None
        self._open()
        session = 1 + secrets.randbelow(0xFFFF)
        self._sequence = secrets.randbelow(SEQUENCES)
        self._done = None
        request = Request(opcode=Opcode.HELLO, sequence=self._sequence, session=session)
        (response,) = self._deliver([request])
        try:
            hello = Hello.from_words(response.words)
        except ValueError as error:
            raise DeviceError(
                f"device speaks another protocol ({error}); build and program it again",
                cause=DeviceCause.OTHER_VERSION,
            ) from error
        if hello.link_version != LINK_VERSION:
            raise DeviceError(
                f"device speaks version {hello.link_version} of the protocol, this software {LINK_VERSION}; "
                "build and program it again",
                cause=DeviceCause.OTHER_VERSION,
            )
        self._session = session
        self._max_words = min(hello.max_words, LARGEST_WORDS)
        return hello

    def _open(self) -> None:
        """Open the port, unless it is open."""
        if self._stream is not None:
            return
        self._stream = self._open_stream()
        if self._opened:
            self.stats = replace(self.stats, reconnects=self.stats.reconnects + 1)
        self._opened = True
        self._splitter = FrameSplitter()
        self._responses.clear()

    def reopen(self) -> bool:
        """Whether a port that failed can be opened again within the silence after which a request is sent again.

        An adapter that a disturbance takes off the bus is back after a moment; a pulled cable is not.
        """
        until = self.clock() + self._frame_seconds
        while True:
            try:
                self._open()
                return True
            except DeviceError:
                if self.clock() >= until:
                    return False
                self._sleep(POLL_SECONDS)

    def exchange(self, requests: Sequence[Request]) -> list[Response]:
        """Have requests executed in order; returns the responses (WRITE may get that of a later request).

        Sequence numbers and session are filled in.

        Raises
        ------
        SessionLost
            If the board was reset; some of the requests may have been executed before.
        DeviceError
            If the port fails, or the board does not answer.
        """
        if self._session is None:
            raise SessionLost("no session with the device is open")
        if any(request.opcode == Opcode.START for request in requests):
            # Sequence numbers come again: that of an earlier program would be taken for this one's.
            self._done = None
        numbered = []
        for request in requests:
            self._sequence = (self._sequence + 1) % SEQUENCES
            numbered.append(replace(request, sequence=self._sequence, session=self._session))
        try:
            return self._deliver(numbered)
        except BaseException:
            # What the board has executed is not known.
            self._session = None
            raise

    def run(
        self,
        runs: Iterable[Run],
        *,
        ahead: Callable[[], int] = lambda: FRAMES_AHEAD,
        program_seconds: float = 0.0,
        limit_seconds: float = 10.0,
    ) -> Generator[bytes]:
        """Have scripts run, one after the other; yields the answer of each.

        What is next is taken from `runs` and sent before the one before is answered, as far as the board can keep it.

        Parameters
        ----------
        ahead
            How many frames may be sent behind one that waits for a program: at most `FRAMES_AHEAD`.
        program_seconds
            What a program takes, as far as it is known.
        limit_seconds
            Longest time for a program.

        Raises
        ------
        AnswerLost
            An answer is missing and cannot be had again: `resume`, and run what was not answered.
        ProgramLate
            A program takes longer.
        SessionLost, DeviceError
            As `exchange`.
        """
        if self._session is None:
            raise SessionLost("no session with the device is open")
        flight, source = Flight(), iter(runs)
        known, self._program_seconds = False, program_seconds
        self._quiet(flight)
        try:
            while True:
                if flight.ahead < ahead():
                    if flight.todo:
                        self._send(flight)
                        continue
                    run = next(source, None)
                    if run is not None:
                        flight.todo.extend(run.frames(self._max_words))
                        continue
                if not flight.sent:
                    known = True
                    return
                answer = self._listen_for(flight, limit_seconds)
                if answer is not None:
                    self.begin()
                    yield answer
        except (AnswerLost, ProgramLate):
            known = True
            raise
        finally:
            if not known:
                # What the board has executed is not known.
                self._session = None

    def resume(self) -> bool:
        """A new session after `AnswerLost`; whether the board was nobody else's meanwhile, and has lost nothing."""
        before = self._session
        return before is not None and self.connect().previous_session == before

    def _quiet(self, flight: Flight) -> None:
        """Something came in, or went out: the silence after which a frame is sent again begins anew."""
        self._attempts, self._patience = 0, self._frame_seconds
        self._wait_longer(flight)

    def _wait_longer(self, flight: Flight) -> None:
        seconds = self._patience + 2 * (flight.line_bytes * self._byte_seconds + self._program_seconds)
        self._deadline = self.clock() + seconds

    def _send(self, flight: Flight) -> None:
        frame = flight.todo.popleft()
        if not frame.octets:
            self._sequence = (self._sequence + 1) % SEQUENCES
            assert self._session is not None
            frame.octets = replace(frame.request, sequence=self._sequence, session=self._session).encode()
            frame.request = replace(frame.request, sequence=self._sequence)
            self._limit += self._byte_seconds * (len(frame.octets) + (frame.size or 0))
        self._write(frame.octets)
        flight.sent.append(frame)
        self._wait_longer(flight)

    def _listen_for(self, flight: Flight, limit_seconds: float) -> bytes | None:
        """Take a frame from the board, or wait for one in vain; returns the answer of a run that is complete."""
        self._check_limit()
        response = self._next_response(self._deadline)
        if response is None:
            self._ask_again(flight, silent=self.clock() >= self._deadline)
            return None
        if response.session != self._session:
            if response.answer == Answer.NO_SESSION:
                raise SessionLost("device was reset, or another driver uses it", cause=DeviceCause.IN_USE)
            return None
        index = flight.index(response.sequence)
        inside = 0 <= index < len(flight.sent)
        if response.answer == Answer.BAD_REQUEST:
            raise DeviceError("device does not know a request; build and program it again")
        if response.answer == Answer.OK and inside and flight.sent[index].size is not None:
            answer = flight.answered(index, response.data)
            self._running_since = None
            self._forgiven = False
            self._quiet(flight)
            return answer
        if response.answer == Answer.RUNNING and inside:
            flight.executed(index)
            if self._running_since is None:
                self._running_since = self.clock()
            if self.clock() - self._running_since > limit_seconds:
                raise ProgramLate(f"program did not end within {limit_seconds:g} s")
            self._quiet(flight)
        elif response.answer in (Answer.BAD_FRAME, Answer.BAD_SEQUENCE):
            if not -1 <= index < len(flight.sent):
                raise SessionLost("device lost count of the requests")
            if response.answer == Answer.BAD_FRAME:
                self.stats = replace(self.stats, crc_errors=self.stats.crc_errors + 1)
            before = len(flight.sent)
            first = int(flight.executed(index))
            if len(flight.sent) < before:
                self._forgiven = False
            if not self._forgiven:
                self._forgiven = True
                self.stats = replace(self.stats, retries=self.stats.retries + flight.go_back(first))
        return None

    def _ask_again(self, flight: Flight, *, silent: bool) -> None:
        """Nothing came, or something damaged: send a frame whose answer tells how far the board has come."""
        if silent:
            self._attempts += 1
            self._patience *= 2
            self.stats = replace(self.stats, timeouts=self.stats.timeouts + 1)
            if self._attempts == ATTEMPTS:
                raise DeviceError(
                    f"device does not answer ({ATTEMPTS} tries); check cable, baud rate and bitstream",
                    cause=DeviceCause.SILENT,
                )
            self._write(b"\0")  # ends what may be left of a frame
        if silent or not self._forgiven:
            self._forgiven = not silent
            self.stats = replace(self.stats, retries=self.stats.retries + 1)
            self._write(flight.query().octets)
            self._wait_longer(flight)

    def wait_done(self, start: Response, poll: Callable[[], bool]) -> NDArray[np.uint32] | None:
        """Wait for the end of a program.

        Parameters
        ----------
        start
            The response to START.
        poll
            Asks the board whether the program has ended; called when the notice does not come.

        Returns
        -------
        The words of DONE, or None if `poll` said so first.
        """
        while True:
            if self._done is not None and self._done.sequence == start.sequence:
                return self._done.words
            self._check_limit()
            response = self._next_response(self.clock() + self._frame_seconds)
            if response is not None and response.answer == Answer.DONE and response.session == self._session:
                self._done = response
            elif response is None and poll():
                return None

    def listen(self, seconds: float) -> None:
        """Wait while nothing is on its way; what comes in nevertheless is no answer."""
        until = self.clock() + seconds
        while self.clock() < until:
            self._next_response(until)

    def _deliver(self, requests: Sequence[Request]) -> list[Response]:
        """Go-back-N: a window of requests is on its way; the board executes them in order."""
        count = len(requests)
        frames = [request.encode() for request in requests]
        session = requests[0].session
        responses: list[Response | None] = [None] * count
        needed = [request.opcode in (Opcode.READ, Opcode.HELLO) for request in requests]
        base = sent = 0  # those before `base` were executed
        attempts = 0
        forgiven = False  # a complaint has been answered since the last progress
        patience = self._frame_seconds
        deadline = self.clock() + patience
        self._limit += self._byte_seconds * sum(len(f) + 4 * r.count for f, r in zip(frames, requests, strict=True))
        while base < count:
            while sent < count and sent - base < WINDOW and not any(needed[base:sent]):
                self._write(frames[sent])
                on_line = zip(frames[base : sent + 1], requests[base : sent + 1], strict=True)
                size = sum(len(frame) + 4 * request.count for frame, request in on_line)
                deadline = self.clock() + patience + 2 * size * self._byte_seconds
                sent += 1
            self._check_limit()
            response = self._next_response(deadline)
            complaint = False
            progress = base
            if response is None:
                if self.clock() < deadline:  # something damaged came in
                    # With more requests on the way a later answer will tell.
                    complaint = sent == count or any(needed[base:sent])
                else:
                    attempts += 1
                    patience *= 2
                    self.stats = replace(self.stats, timeouts=self.stats.timeouts + 1)
                    if attempts == ATTEMPTS:
                        raise DeviceError(
                            f"device does not answer ({ATTEMPTS} tries); check cable, baud rate and bitstream",
                            cause=DeviceCause.SILENT,
                        )
                    self._write(b"\0")  # ends what may be left of a frame
                    complaint, forgiven = True, False
            elif response.session != session:
                # While a session is being opened answers of the one before may still come in.
                if response.answer == Answer.NO_SESSION and requests[0].opcode != Opcode.HELLO:
                    raise SessionLost("device was reset, or another driver uses it", cause=DeviceCause.IN_USE)
            else:
                index = base + (response.sequence - requests[base].sequence + 128) % SEQUENCES - 128
                if response.answer == Answer.BAD_REQUEST:
                    raise DeviceError("device does not know a request; build and program it again")
                if response.answer == Answer.DONE:
                    self._done = response
                    if base <= index < sent and requests[index].opcode == Opcode.START:
                        progress = index + 1  # the answer to START was lost
                        responses[index] = response
                elif response.answer == Answer.OK:
                    if base <= index < sent:
                        responses[index] = response
                        progress = index + 1
                elif response.answer in (Answer.BAD_FRAME, Answer.BAD_SEQUENCE):
                    complaint = True
                    if not base - 1 <= index < sent:
                        raise SessionLost("device lost count of the requests")
                    if response.answer == Answer.BAD_FRAME:
                        self.stats = replace(self.stats, crc_errors=self.stats.crc_errors + 1)
                    # Whose words are needed must be asked again: the board still has the answer.
                    progress = next((i for i in range(base, index + 1) if needed[i]), index + 1)
            if progress > base:
                base, attempts, forgiven = progress, 0, False
                patience = self._frame_seconds
                deadline = max(deadline, self.clock() + patience)
            if complaint and not forgiven and base < count:
                forgiven = True
                self.stats = replace(self.stats, retries=self.stats.retries + sent - base)
                sent = base
        last = Response(answer=Answer.OK, sequence=requests[-1].sequence, session=session)
        return [response or last for response in responses]

    def _check_limit(self) -> None:
        if self.clock() > self._limit:
            raise DeviceError(f"device took longer than {self._limit_seconds:g} s; check cable and bitstream")

    def _next_response(self, deadline: float) -> Response | None:
        """The next frame from the board; None at the deadline, or before it if what came is damaged."""
        while not self._responses:
            if self.clock() >= deadline:
                return None
            for frame in self._splitter.feed(self._read()):
                try:
                    self._responses.append(Response.decode(frame))
                except ValueError:
                    self.stats = replace(self.stats, crc_errors=self.stats.crc_errors + 1)
                    self._responses.append(None)
        return self._responses.popleft()

    def _read(self) -> bytes:
        assert self._stream is not None
        try:
            return self._stream.read(max(1, self._stream.in_waiting))
        except (OSError, TerminalError, TypeError) as error:  # pyserial: TypeError if the port closes meanwhile
            raise self._port_failure(error) from error

    def _write(self, data: bytes) -> None:
        assert self._stream is not None
        try:
            self._stream.write(data)
        except (OSError, TerminalError) as error:
            raise self._port_failure(error) from error

    def _port_failure(self, error: BaseException) -> PortLost:
        stream, self._stream, self._session = self._stream, None, None
        try:
            if stream is not None:
                stream.close()
        except (OSError, TerminalError) as second:
            return PortLost(f"serial port: {error}, then {second}; check the cable")
        return PortLost(f"serial port: {error}; check the cable")


class _Failures:
    """What went wrong with one request so far: what can be mended is tried again."""

    def __init__(self, link: SerialLink) -> None:
        self._link = link
        self.clear()

    def clear(self) -> None:
        """The next request."""
        self._count, self._lost = 0, False

    def check(self, error: DeviceError) -> None:
        """Have the link ready for another try.

        Raises
        ------
        DeviceError
            `error`, if nothing can be done about it, or that it has come too often.
        """
        link = self._link
        self._count += 1
        if isinstance(error, SessionLost):
            link.disconnect()
            link.stats = replace(link.stats, resets=link.stats.resets + 1)
        elif isinstance(error, PortLost):
            if not link.reopen():
                raise error
        elif isinstance(error, AnswerLost):
            if not link.resume():
                link.disconnect()
                link.stats = replace(link.stats, resets=link.stats.resets + 1)
        elif isinstance(error, ContentLost):
            link.disconnect()
            if self._lost:
                raise error
            self._lost = True
        else:
            # The next attempt starts from nothing.
            link.disconnect()
            raise error
        if self._count == RESTARTS:
            raise DeviceError(
                f"device was reset or out of reach {RESTARTS} times during one request; check its supply and the cable"
            )


class SerialDevice(HostBusDevice):
    """Driver of a board. It is loaded when first needed, and again after it was reset or out of reach.

    Where the board has external memory, a network in parts lies there, and stays (`ExternalMemory`).

    Parameters
    ----------
    progress
        Told what takes long.
    """

    overlaps = True

    def __init__(self, link: SerialLink, *, progress: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._link = link
        self._progress = progress or (lambda _: None)
        self._memory: ExternalMemory | None = None
        self._flash: FlashContent | None = None
        self._artifact: Artifact | None = None
        self._hello: Hello | None = None
        self._started: Response | None = None
        self._scripts: dict[str, tuple[int, RegionScript]] = {}
        """of the regions that the board runs at one request: where it begins, and what it does"""
        self._seconds: dict[str, float] = {}
        """what these have taken; those that have not run yet may not end"""

    @property
    def stats(self) -> DeviceStats:
        """Faults of the line so far."""
        return self._link.stats

    @property
    def clock_hz(self) -> int | None:
        """Clock of the board, as far as it has told."""
        return self._hello.clock_hz if self._hello else None

    def close(self) -> None:
        """Close the port."""
        self._link.close()

    def identify(self) -> Identity:
        """What the board said in its answer to HELLO."""
        if self._hello is None:
            self._hello = self._link.connect()
        return Identity(self._hello.magic, self._hello.isa_version, self._hello.config_hash)

    def load(self, artifact: Artifact) -> None:
        """Load program and weights."""
        self._artifact = artifact
        self._seconds.clear()
        self._link.begin()
        self._link.disconnect()
        self._again(self._prepare)

    def run_region(
        self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool = False
    ) -> RegionResult:
        """Run a region; from the start, with the board loaded again, if it was reset meanwhile."""
        (result,) = self.run_batch(region, [inputs], count_layers=count_layers)
        return result

    def run_batch(
        self, region: Region, batch: Iterable[Sequence[NDArray[np.int8]]], *, count_layers: bool = False
    ) -> Generator[RegionResult]:
        """Run a region for each inputs in turn; the next ones are on the line before an answer is here."""
        if self._artifact is None:
            raise DeviceError("no artifact is loaded on the device")
        source, waiting = iter(batch), deque[Sequence[NDArray[np.int8]]]()
        failures = _Failures(self._link)
        self._link.begin()
        while True:
            try:
                self._prepare()
                if region.name in self._scripts and not count_layers:
                    for result in self._run_script(region, source, waiting):
                        failures.clear()
                        yield result
                    return
                while waiting or self._take(source, waiting):
                    result = self._run_one(region, waiting[0], count_layers=count_layers)
                    waiting.popleft()
                    failures.clear()
                    yield result
                    self._link.begin()
                return
            except DeviceError as error:
                failures.check(error)

    @staticmethod
    def _take(source: Iterator[T], waiting: deque[T]) -> bool:
        """Have one more of `source` waiting, if there is one."""
        waiting.extend(islice(source, 1))
        return bool(waiting)

    def _run_script(
        self,
        region: Region,
        source: Iterator[Sequence[NDArray[np.int8]]],
        waiting: deque[Sequence[NDArray[np.int8]]],
    ) -> Iterator[RegionResult]:
        """Run a region for all inputs that wait and come; those that are not answered wait."""
        word, script = self._scripts[region.name]
        answers = script.answer_sizes(self._link.max_words)
        again = list(waiting)

        def runs() -> Iterator[Run]:
            for values in again:
                yield Run(word=word, data=script.pack(values), answers=answers)
            for values in source:
                waiting.append(values)
                yield Run(word=word, data=script.pack(values), answers=answers)

        answered = self._link.run(
            runs(),
            ahead=lambda: FRAMES_AHEAD if region.name in self._seconds else 0,
            program_seconds=self._seconds.get(region.name, 0.0),
            limit_seconds=self.timeout_seconds,
        )
        try:
            for data in answered:
                status, cycles, outputs = script.unpack(data)
                self.check_status(Status(status))
                self._seconds[region.name] = cycles / (self.clock_hz or 1)
                waiting.popleft()
                yield RegionResult(outputs=outputs, cycles=cycles, program_cycles=(cycles,))
        except ProgramLate as error:
            self.reset()
            raise DeviceError(f"{error}; the device was reset") from error
        finally:
            answered.close()

    def _run_one(self, region: Region, inputs: Sequence[NDArray[np.int8]], *, count_layers: bool) -> RegionResult:
        """Run a region for one set of inputs."""
        if region.name in self._scripts:
            (result,) = self._run_script(region, iter(()), deque([inputs]))
            if not count_layers:
                return result
            layers, waits = self._count_layers(result.program_cycles[0])
            return replace(result, layer_cycles=tuple(layers), layer_waits=tuple(waits))
        if self._memory is None or not region.parts:
            return super().run_region(region, inputs, count_layers=count_layers)
        try:
            return self._memory.run(region, inputs, counting=count_layers)
        except ContentLost:
            self._memory.forget()
            raise

    def _again(self, action: Callable[[], T]) -> T:
        """Repeat what a reset of the board interrupts, or a port that is away for a moment; once what fails because the
        board's memory has lost its content."""
        failures = _Failures(self._link)
        while True:
            try:
                return action()
            except DeviceError as error:
                failures.check(error)

    def _prepare(self) -> None:
        """Have a session and a loaded board."""
        if self._link.connected:
            return
        assert self._artifact is not None
        self._hello = None
        super().load(self._artifact)
        self._load_scripts(self._artifact)
        if self._memory is None or not any(region.parts for region in self._artifact.manifest.all_regions):
            return
        if not self._memory.place(self._artifact):
            self._progress(
                f"external memory of {self._memory.size:,} bytes is too small: parts come over the serial line"
            )
            self._memory = None
        elif not self._memory.is_loaded:
            size = self._memory.image_bytes
            self._progress(f"loading {size:,} bytes into external memory ({self._link.seconds(size):.1f} s)")
            self._memory.load()

    def _load_scripts(self, artifact: Artifact) -> None:
        """Have the board keep the scripts of the regions that it can run at one request, as far as there is room."""
        assert self._hello is not None
        self._scripts, words = {}, np.zeros(0, np.uint32)
        for region in artifact.manifest.all_regions:
            if region.parts or region.external:
                continue
            script = RegionScript.of(artifact.manifest.config, region, packed=self._hello.packs)
            more = np.concatenate([step.words() for step in script.steps])
            if len(words) + len(more) <= self._link.max_words:
                self._scripts[region.name] = script_word(len(words)), script
                words = np.concatenate([words, more])
        if self._scripts:
            self._link.exchange([Request(opcode=Opcode.SCRIPT, sequence=0, session=0, words=words)])

    def _come_to_rest(self) -> None:
        """Have accelerator and DMA idle, and know whether there is external memory, or a flash that is loaded from."""
        super()._come_to_rest()
        self._memory = ExternalMemory.find(self)
        self._flash = FlashContent.find(self)

    def _holds(self, image: EngineImage) -> bool:
        if self._flash is None:
            return False
        if self._flash.outcome in _FLASH_FAULTS:
            self._progress(f"the network in the board's flash {_FLASH_FAULTS[self._flash.outcome]}")
        return self._flash.holds(image)

    def _note(self, image: EngineImage) -> None:
        if self._flash is not None:
            self._flash.note(image)

    def launch(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32], start: tuple[int, int]) -> None:
        """Write words, then the word that starts a list to its address."""
        address, word = start
        request = Request(
            opcode=Opcode.START, sequence=0, session=0, address=address, words=np.array([word], np.uint32)
        )
        *_, self._started = self._link.exchange([*self._writes(addresses, words), request])

    def wait_list(self, poll: Callable[[], bool]) -> None:
        """Wait for the notice of the board, or until `poll` says that the list has ended."""
        assert self._started is not None
        self._link.wait_done(self._started, poll)

    def clock(self) -> float:
        """The link's."""
        return self._link.clock()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._link.listen(seconds)

    def reset(self) -> None:
        """Have the board reset the accelerator's control state."""
        self._link.exchange([Request(opcode=Opcode.RESET, sequence=0, session=0)])

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write words in bursts."""
        if requests := self._writes(addresses, words):
            self._link.exchange(requests)

    def write_memory(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write words in bursts and read the status behind them, on the same way."""
        status = Request(
            opcode=Opcode.READ, sequence=0, session=0, address=HostAddress.REGISTERS + Register.STATUS, count=1
        )
        *_, response = self._link.exchange([*self._writes(addresses, words), status])
        self.check_idle(Status(int(_words(status, response)[0])))

    def _writes(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> list[Request]:
        return [
            replace(burst, opcode=Opcode.WRITE, count=0, words=words[first : first + burst.count])
            for first, burst in bursts(addresses, self._link.max_words)
        ]

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Read words in bursts.

        Raises
        ------
        DeviceError
            If an answer is longer or shorter than was asked for.
        """
        requests = [burst for _, burst in bursts(addresses, self._link.max_words)]
        if not requests:
            return np.zeros(0, np.uint32)
        responses = self._link.exchange(requests)
        return np.concatenate([_words(*pair) for pair in zip(requests, responses, strict=True)])

    def start(self, program_start: int) -> None:
        """Start the program at a word of program memory."""
        request = Request(
            opcode=Opcode.START,
            sequence=0,
            session=0,
            address=HostAddress.REGISTERS + Register.PROGRAM_START,
            run=2,
            words=np.array([program_start, 1], np.uint32),
        )
        (self._started,) = self._link.exchange([request])

    def wait_done(self) -> int:
        """Wait for the notice of the board, or ask for its status; returns the cycles of the program.

        Raises
        ------
        DeviceError
            If the program does not end; the board is reset. Or if it reports an error.
        """
        assert self._started is not None
        registers = np.array([HostAddress.REGISTERS + register for register in DONE_REGISTERS], np.uint32)
        deadline = self._link.clock() + self.timeout_seconds
        words = np.zeros(len(registers), np.uint32)

        def poll() -> bool:
            nonlocal words
            words = self.read_words(registers)
            if not Status(int(words[0])) & Status.BUSY:
                return True
            if self._link.clock() > deadline:
                self.reset()
                raise DeviceError(f"program did not end within {self.timeout_seconds:g} s; the device was reset")
            return False

        told = self._link.wait_done(self._started, poll)
        status, cycles, _ = (int(word) for word in (words if told is None else told))
        self.check_status(Status(status))
        return cycles


def _words(request: Request, response: Response) -> NDArray[np.uint32]:
    """What a READ was answered with; DeviceError if that is longer or shorter than was asked for."""
    if len(response.data) != 4 * request.count:
        raise DeviceError("device answered a READ with another number of words; build and program it again")
    return response.words


def bursts(addresses: NDArray[np.uint32], max_words: int) -> Iterator[tuple[int, Request]]:
    """READ requests of at most `max_words` words that cover addresses in order, with the index of their first."""
    if len(addresses) == 0:
        return
    steps = np.diff(addresses.astype(np.int64)) // 4
    starts = np.concatenate([[0], np.flatnonzero(steps != 1) + 1])
    lengths = np.diff(np.concatenate([starts, [len(addresses)]]))
    index = 0
    while index < len(starts):
        first, run = int(starts[index]), int(lengths[index])
        rows, jump = 1, 1
        if run <= max_words and index + 1 < len(starts):
            jump = int(steps[starts[index + 1] - 1])
            if not 1 < jump < 1 << 16:
                jump = 1
            limit = max_words // run if jump > 1 else 1
            while (
                rows < limit
                and index + rows < len(starts)
                and steps[starts[index + rows] - 1] == jump
                and lengths[index + rows] == run
            ):
                rows += 1
        total = rows * run
        for offset in range(0, total, max_words):
            yield (
                first + offset,
                Request(
                    opcode=Opcode.READ,
                    sequence=0,
                    session=0,
                    address=int(addresses[first + offset]),
                    run=min(run, max_words),
                    jump=jump if rows > 1 else 1,
                    count=min(max_words, total - offset),
                ),
            )
        index += rows


def parse_serial(text: str, baud: int = DEFAULT_BAUD) -> tuple[str, int, float]:
    """Port, baud rate (`baud` if none is given) and frame time-out of "PORT?baud=N&timeout=S".

    Raises
    ------
    ConfigError
        If an option is unknown or no positive number.
    """
    port, _, options = text.partition("?")
    if not port:
        raise ConfigError("device 'serial:' names no port; give one, e.g. serial:/dev/ttyUSB0")
    values = {"baud": float(baud), "timeout": FRAME_SECONDS}
    for option in filter(None, options.split("&")):
        key, _, value = option.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if key not in values or not 0 < number < 1e9:
            raise ConfigError(f"device option {option!r} is neither baud=NUMBER nor timeout=SECONDS")
        values[key] = number
    return port, int(values["baud"]), values["timeout"]


def _reason(error: Exception) -> tuple[DeviceCause, str]:
    """Why a port cannot be opened, and what to do."""
    causes = {
        errno.EACCES: DeviceCause.NO_PERMISSION,
        errno.EPERM: DeviceCause.NO_PERMISSION,
        errno.EAGAIN: DeviceCause.IN_USE,
        errno.EBUSY: DeviceCause.IN_USE,
    }
    remedies = {
        errno.EACCES: "permission denied; join the group dialout ('sudo usermod -aG dialout $USER', then log in again) "
        "or add a udev rule, see docs/boards.md",
        errno.ENOENT: "no such port; is the board connected? 'ls /dev/serial/by-id' lists the ports",
        errno.EAGAIN: "another program has it open; close that one",
        errno.EBUSY: "another program has it open; close that one",
        errno.ENOTTY: "not a serial port; give that of the board",
        errno.EISDIR: "not a serial port; give that of the board",
    }
    number = next((value for value in error.args[:1] if isinstance(value, int)), None)
    if number is None and isinstance(error.__context__, Exception):
        number = next((value for value in error.__context__.args[:1] if isinstance(value, int)), None)
    if number is None:
        return DeviceCause.FAULT, str(error)
    return causes.get(number, DeviceCause.FAULT), remedies.get(number, str(error))


def open_serial(
    port: str,
    baud: int = DEFAULT_BAUD,
    *,
    frame_seconds: float = FRAME_SECONDS,
    progress: Callable[[str], None] | None = None,
) -> SerialDevice:
    """A device behind a serial port, which is opened when the device is loaded; see `SerialLink`, `SerialDevice`."""

    def open_stream() -> ByteStream:
        import serial

        try:
            # What a system keeps back of what is written takes its time on the line.
            write_timeout = 5 + 16_384 * 10 / baud
            stream = serial.Serial(port, baud, timeout=POLL_SECONDS, write_timeout=write_timeout, exclusive=True)
        except (serial.SerialException, OSError, ValueError, TerminalError) as error:
            cause, reason = _reason(error)
            raise DeviceError(f"{port}: cannot open the serial port ({reason})", cause=cause) from error
        if (slow := set_low_latency(stream, port)) and progress is not None:
            progress(slow)
        return stream

    return SerialDevice(SerialLink(open_stream, baud=baud, frame_seconds=frame_seconds), progress=progress)


def _is_own(port: ListPortInfo) -> bool:
    """Whether it is what `nnloom.hw.usb_serial` makes: others have that product number, too."""
    return (port.vid, port.pid, port.product) == (usb.VENDOR_ID, usb.PRODUCT_ID, usb.PRODUCT)


def find_boards() -> list[str]:
    """Ports of USB serial adapters of the kind that boards carry, and of boards that are USB devices themselves."""
    from serial.tools import list_ports

    ports = [port for port in list_ports.comports() if (port.vid, port.pid) in USB_BOARDS or _is_own(port)]
    # The first channel of an adapter with two is for programming the board.
    return [port.device for port in ports if port.pid != FT2232H or not (port.location or "").endswith(":1.0")]
