"""Names out of files do not command the terminal."""

from __future__ import annotations

import sys

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


@pytest.mark.parametrize("width", [44, 200])
def test_tables_wrap_on_a_narrow_terminal_only(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [["model/block_1/[bold]expand[/bold]_convolution/Relu6", "conv2d", 12800], ["short", "add", 1]]
    Console(quiet=False).table(["layer", "operator", "macs"], rows)
    plain = capsys.readouterr().out
    assert plain.count("\n") == 3  # a script reads it: a line is a row
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Console(quiet=False).table(["layer", "operator", "macs"], rows)
    shown = capsys.readouterr().out
    if width == 200:
        assert shown == plain
        return
    lines = shown.splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= width
    assert "".join(line[:20].split()[0] for line in lines[1:-1]).startswith("model/block_1/[bold]")
    monkeypatch.setitem(sys.modules, "rich.table", None)
    Console(quiet=False).table(["layer", "operator", "macs"], rows)
    assert capsys.readouterr().out == plain
