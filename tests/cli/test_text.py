"""Names out of files do not command the terminal."""

from __future__ import annotations

import pytest

from nnloom.cli.console import Console
from nnloom.cli.text import printable


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("conv_1/Relu6;é 中", "conv_1/Relu6;é 中"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x08\x7f\x9b", r"a\rb\x08\x7f\x9b"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202eevil\u2028", r"\u202eevil\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable(text, want):
    assert printable(text) == want and printable(text).isprintable()


def test_whatever_is_shown_is_printable(capfd):
    console, bad = Console(quiet=False), "x\x1b[2J\ud800"
    console.say(f"{bad}\nline")
    console.table([bad], [[bad], ["a\nb"]])
    console.announce({"a": bad}, bad)
    console.note(bad)
    console.note("")
    console.error(f"{bad}\nmore")
    out, err = capfd.readouterr()
    assert "".join((out + err).split("\n")).isprintable()
    assert out.count("\n") == 6 and err.count("\n") == 2
