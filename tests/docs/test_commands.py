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
PAGES = [
    ROOT / "README.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
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
    "page",
    [page for page in PAGES if commands(page)],
    ids=[str(page.relative_to(ROOT)) for page in PAGES if commands(page)],
)
def test_commands_are_legal(page):
    for words in commands(page):
        build_parser().parse_args(words)  # exits if they are not


@pytest.mark.model
@pytest.mark.verilator
@pytest.mark.parametrize(("page", "section"), [("README.md", "## A session"), ("docs/tutorial.md", "## A network")])
def test_a_session_prints_what_the_page_says(page, section, tmp_path, monkeypatch, capfd):
    """In its order, each command as written, from the section on; some pages leave out what a command prints."""
    text = (ROOT / page).read_text()
    text = text[text.index(section) :]
    found = [block for block in blocks(text) if block.startswith("$ nnloom")]
    session = found[0] if page == "README.md" else "".join(found)
    monkeypatch.chdir(tmp_path)
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    assert len(steps) > 4
    for command, printed in steps:
        if command.startswith(NOT_RUN) or "serial:" in command:
            continue
        words = shlex.split(command, comments=True)
        if words[0] == "nnloom":
            assert main(words[1:]) == 0
        else:
            assert words[0] == "python"
            subprocess.run([sys.executable, *words[1:]], check=True)
        assert printed in ("", capfd.readouterr().out), command


@pytest.mark.model
def test_the_tutorials_script_runs_as_written(tmp_path, monkeypatch, capsys):
    """With what the tutorial has made before it; `auto` finds no board here."""
    script = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "fetch", "tflite_micro_speech", "-o", "speech.tflite"]) == 0
    assert main(["zoo", "fetch", "recordings", "-o", "."]) == 0
    assert main(["compile", "speech.tflite", "-o", "build/speech"]) == 0
    capsys.readouterr()
    (session,) = (block for block in script if '"auto"' in block)
    exec(compile(session, "tutorial", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "yes"
