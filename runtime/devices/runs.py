"""Scripts of the host link on their way: which frames were sent, and what is known of them.

Frames of inputs are not answered; the board tells when one is missing. The answer of a script comes with that to its
last frame of inputs, and with those to further MORE frames where it does not fit one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nnloom.arch.errors import DeviceError
from nnloom.arch.link import SEQUENCES, Opcode, Request

__all__ = ["AnswerLost", "Flight", "Frame", "ProgramLate", "Run"]

QUIET_FRAMES = 32
"""Frames of inputs after which the board is asked how far it has come."""


class AnswerLost(DeviceError):
    """The answer of a script was lost, and the board has gone on: the script has to run again."""


class ProgramLate(DeviceError):
    """The board says for too long that a program runs."""


@dataclass(eq=False)
class Frame:
    """A frame of a `Run`."""

    request: Request
    size: int | None = None
    """bytes of its answer; None: it is not answered"""
    waits: bool = False
    """its answer comes after a program"""
    last: bool = False
    """the answer of the run ends with its answer"""
    octets: bytes = b""
    """on the line, once it has a sequence number"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A script that the board keeps, with the bytes that it takes."""

    word: int
    """where it begins, as RUN says it"""
    data: bytes
    """of the inputs"""
    answers: tuple[int, ...]
    """bytes of each frame of the answer"""

    def frames(self, max_words: int) -> Iterator[Frame]:
        """The requests, without sequence numbers, for frames of so many words."""
        words = np.frombuffer(self.data + bytes(-len(self.data) % 4), "<u4").astype(np.uint32)
        words = np.concatenate([np.array([self.word], np.uint32), words])
        most = max_words + 2  # the header is shorter than that of a burst
        count = -(-len(words) // most)
        for index in range(count):
            opcode, final = Opcode.MORE if index else Opcode.RUN, index == count - 1
            request = Request(opcode=opcode, sequence=0, session=0, words=words[most * index :][:most])
            size = self.answers[0] if final else None
            yield Frame(request, size, waits=final, last=final and len(self.answers) == 1)
            if index % QUIET_FRAMES == QUIET_FRAMES - 1 and not final:
                yield Frame(Request(opcode=Opcode.SYNC, sequence=0, session=0), 0)
        for size in self.answers[1:-1]:
            yield Frame(Request(opcode=Opcode.MORE, sequence=0, session=0), size, waits=True)
        for size in self.answers[1:][-1:]:
            yield Frame(Request(opcode=Opcode.MORE, sequence=0, session=0), size, waits=True, last=True)


@dataclass(eq=False)
class Flight:
    """Frames on their way, in order."""

    sent: deque[Frame] = field(default_factory=deque)
    """not known to be executed, or not answered"""
    todo: deque[Frame] = field(default_factory=deque)
    """to be sent behind them"""
    answer: bytes = b""
    """of the run that is answered next, as far as it is here"""

    @property
    def ahead(self) -> int:
        """Frames behind the first one whose answer comes after a program; -1 if there is none."""
        waiting = next((i for i, frame in enumerate(self.sent) if frame.waits), None)
        return -1 if waiting is None else len(self.sent) - 1 - waiting

    @property
    def line_bytes(self) -> int:
        """On their way, either way."""
        return sum(len(frame.octets) + (frame.size or 0) for frame in self.sent)

    def index(self, sequence: int) -> int:
        """Of the frame with a sequence number; -1 is the one before the first."""
        return (sequence - self.sent[0].request.sequence + SEQUENCES // 2) % SEQUENCES - SEQUENCES // 2

    def executed(self, index: int) -> bool:
        """The board has executed the frame of this index, and those before; -1: that before the first.

        Returns whether that frame is now the first on its way: its answer comes later.

        Raises
        ------
        AnswerLost
            If one before it should have been answered.
        """
        before = list(self.sent)[:index] if index > 0 else []
        if any(frame.waits for frame in before):
            raise AnswerLost("an answer of the device was lost")
        for _ in before:
            self.sent.popleft()
        if index >= 0 and not self.sent[0].waits:
            self.sent.popleft()
            return False
        return index >= 0

    def answered(self, index: int, data: bytes) -> bytes | None:
        """The board has answered the frame of this index; returns the answer of a run that is complete with it.

        Raises
        ------
        AnswerLost
            As `executed`.
        DeviceError
            If the answer is not as long as it should be.
        """
        frame = self.sent[index]
        if len(data) != frame.size:
            raise DeviceError("device answered with another number of bytes; build and program it again")
        self.executed(index)
        if not frame.waits:
            return None
        self.sent.popleft()
        self.answer += data
        if not frame.last:
            return None
        answer, self.answer = self.answer, b""
        return answer

    def query(self) -> Frame:
        """What to send again to learn how far the board has come."""
        return next((frame for frame in self.sent if frame.waits), self.sent[-1])

    def go_back(self, first: int) -> int:
        """Have what is on its way from this index on sent again; returns how many frames."""
        count = len(self.sent) - first
        for _ in range(count):
            self.todo.appendleft(self.sent.pop())
        return count
