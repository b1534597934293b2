"""Ctrl-C is never lost."""

import signal
import sys
import time

import pytest

from nnloom.arch.interrupts import interrupts_arrive


class Dying:
    """Its destructor is interrupted, and Python ignores what a destructor raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __del__(self) -> None:
        if self.error:
            raise self.error
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)


def test_an_interrupt_that_falls_into_a_destructor_arrives_a_little_later():
    with interrupts_arrive(), pytest.raises(KeyboardInterrupt):
        dying = Dying()
        del dying
        for _ in range(500):
            time.sleep(0.01)


def test_other_errors_of_destructors_are_left_to_python(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: seen.append(dropped.exc_type))
    with interrupts_arrive():
        dying = Dying(ValueError("x"))
        del dying
    assert seen == [ValueError]
