"""Commands of README and docs: all of them are legal, and README's session prints what README says."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nnloom.cli import main
from nnloom.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = ("nnloom build", "nnloom program")
"""Of the session: place and route takes half an hour, and no board is attached."""


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page that hold commands."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if not kind]


def commands(page: Path) -> list[list[str]]:
    """The words of each `nnloom` command in the blocks of a page."""
    found = []
    for line in (line.removeprefix("$ ") for block in blocks(page.read_text()) for line in block.splitlines()):
        words = shlex.split(line, comments=True) if line.startswith("nnloom ") else []
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[1:end])
            words = words[end + 1 :]
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=[page.name for page in PAGES if commands(page)]
)
def test_commands_are_legal(page):
    for words in commands(page):
        build_parser().parse_args(words)  # exits if they are not


@pytest.mark.model
@pytest.mark.verilator
def test_the_session_of_the_readme(tmp_path, monkeypatch, capfd):
    """In its order, each command as written; what it prints is what README says."""
    text = (ROOT / "README.md").read_text()
    (session,) = blocks(text[text.index("## A session") :])[:1]
    monkeypatch.chdir(tmp_path)
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(steps) > 4
    for command, printed in steps:
        if command.startswith(NOT_RUN):
            continue
        words = shlex.split(command, comments=True)
        if words[0] == "nnloom":
            assert main(words[1:]) == 0
        else:
            assert words[0] == "python"
            subprocess.run([sys.executable, *words[1:]], check=True)
        assert capfd.readouterr().out == printed, command
