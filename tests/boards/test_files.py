"""Boards and configurations as files: what they say, and in which line they are wrong."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import jsonschema
import pytest
import yaml

import nnloom.boards
from nnloom.arch.artifact import BOARD_FILE, Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ConfigError, ToolMissingError
from nnloom.arch.settings import read_config
from nnloom.boards import all_boards, builtin_boards, get
from nnloom.boards.files import board_of, board_values, read_board
from nnloom.boards.zynq import ZynqBoard
from nnloom.cli import main

ROOT = Path(__file__).resolve().parents[2]
BOARDS = sorted((ROOT / "examples" / "boards").glob("*.yaml"))
CONFIGS = sorted((ROOT / "examples" / "configs").glob("*.yaml"))
TEXT = BOARDS[0].read_text()


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((ROOT / "docs" / name).read_text()))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_examples_of_boards_can_be_built(path):
    from nnloom.boards.flow import system_clock_hz, toolchain

    board = get(str(path))
    values = yaml.safe_load(path.read_text())
    numbers = {name: float(values[name]) for name in ("crystal_hz", "clock_hz")}
    schema("board.schema.json").validate(values | numbers)
    assert values["pins"].items() <= board.pins.items() and board.config == AcceleratorConfig(**values["config"])
    assert system_clock_hz(board) == pytest.approx(board.clock_hz, rel=0.05)
    assert f'LOCATE COMP "uart_rx" SITE "{board.pins["uart_rx"]}"' in toolchain(board).constraints(board)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_examples_of_configurations(path):
    values = yaml.safe_load(path.read_text())
    schema("config.schema.json").validate(values)
    assert read_config(path) == AcceleratorConfig(**values)


@pytest.mark.parametrize("board", [b for b in builtin_boards() if not isinstance(b, ZynqBoard)], ids=lambda b: b.name)
def test_every_board_comes_back_from_its_file(board, tmp_path):
    """Under another name, since that of a board of nnloom is taken."""
    values = board_values(board) | {"name": "mine"}
    schema("board.schema.json").validate(values)
    for name, text in (("b.json", json.dumps(values)), ("b.yaml", yaml.safe_dump(values))):
        (tmp_path / name).write_text(text)
        assert board_values(read_board(tmp_path / name)) == values
    (tmp_path / "b.json").write_text(json.dumps(board_values(board)))
    with pytest.raises(ConfigError, match="is the name of a board of nnloom"):
        read_board(tmp_path / "b.json")


WRONG = {
    "toolchain: ecp5 ": ("toolchain: vivado ", "toolchain must be one of ecp5, gowin, ice40"),
    "loader: ": ("lodaer: ", "unknown key 'lodaer'"),
    'speed: "6"': ("speed: 6", "speed must be str, not 6"),
    "crystal_hz: 25.0e+6": ("crystal_hz: fast", "crystal_hz must be a number"),
    "baud: 1_000_000": ("baud: 0", "baud must be above 0"),
    "  uart_rx: H18\n": ("", "pins: no pin for uart_rx"),
    "  led_0: L2": ("  led_0: L2;SITE", "'led_0': 'L2;SITE' is no pin"),
    "device: 45k": ("device: --run", "device must be a word"),
    "  DP16KD: 108": ("  BRAM: 108", "unknown key 'BRAM'"),
    "  MULT18X18D: 72\n": ("", "primitives: MULT18X18D missing"),
    "  lanes: 16": ("  lanes: 17", "lanes must be a power of two"),
    "  taps: 6": ("  tabs: 6", "unknown key 'tabs'"),
    "  weight_words: 1024": ("  weight_words: 1024\n  lanes: 8", "'lanes' stands there twice"),
    "leds_active_low: true": ("leds_active_low: [", "not YAML"),
    "name: colorlight-i9": ("name: ../x", "name must be of a-z"),
    "description: ": ("description: *other # ", "aliases"),
}


@pytest.mark.parametrize("good", WRONG)
def test_what_is_wrong_is_named_with_its_line(good, tmp_path, capsys):
    bad, message = WRONG[good]
    assert TEXT.count(good) == 1
    path = tmp_path / "bad.yaml"
    path.write_text(TEXT.replace(good, bad))
    with pytest.raises(ConfigError) as caught:
        get(str(path))
    assert message in str(caught.value)
    match = re.match(rf"{re.escape(str(path))}:(\d+): ", str(caught.value))
    assert match, str(caught.value)
    # The line, or the first of the mapping in which something is missing; YAML notices an open bracket later.
    at = path.read_text().splitlines()[int(match[1]) - 1]
    assert at.split(":")[0] in bad.split("\n")[-1] or at.split(":")[0] in message or message == "not YAML", at
    assert main(["build", "--board", str(path), "--synth-only"]) == 2
    assert message in capsys.readouterr().err


def test_configurations_that_are_wrong(tmp_path):
    cases = {
        "a.yaml": ("lanes: 16\ntaps: 100\n", r"a.yaml:2: config: taps must be"),
        "b.yaml": ("lanes: 16\ncompact: yes\n", r"b.yaml:2: config: compact needs|b.yaml:1: config"),
        "c.yaml": ("- 1\n", r"c.yaml: not a mapping"),
        "d.yaml": ("lanes: !!python/object/apply:os.system [ls]\n", r"d.yaml:1: not YAML"),
        "e.json": ('{"lanes": 16,\n}', r"e.json:2: not JSON"),
        "f.json": ('{"lanes": "16"}', r"f.json: config: lanes must be int"),
        "g.yaml": ("", r"g.yaml: not a mapping"),
    }
    for name, (text, message) in cases.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_config(tmp_path / name)
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        read_config(tmp_path / "none.yaml")


def test_without_pyyaml_json_is_left(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "c.json").write_text('{"lanes": 8, "taps": 5, "requant_units": 8}')
    assert read_config(tmp_path / "c.json").lanes == 8
    with pytest.raises(ToolMissingError, match=r"yaml is not installed; pip install 'nnloom\[compiler\]'"):
        get(str(BOARDS[0]))


def test_boards_of_other_packages(monkeypatch):
    point = EntryPoint(name="mine", value="tests.boards.test_files:OTHERS", group=nnloom.boards.GROUP)
    monkeypatch.setattr(nnloom.boards, "entry_points", lambda group: [point])
    nnloom.boards._of_packages.cache_clear()
    try:
        assert get("colorlight-i9") is OTHERS[0] and OTHERS[0] in all_boards()
        for value in ("tests.boards.test_files:WRONG", "tests.boards.nothing:X"):
            nnloom.boards._of_packages.cache_clear()
            monkeypatch.setattr(
                nnloom.boards, "entry_points", lambda group, v=value: [EntryPoint(name="m", value=v, group=group)]
            )
            with pytest.raises(ConfigError, match=r"entry point m of nnloom\.boards"):
                all_boards()
            assert get("ulx3s-85f").name == "ulx3s-85f"  # does not ask others
    finally:
        nnloom.boards._of_packages.cache_clear()


OTHERS = [read_board(BOARDS[0])]


@pytest.mark.model
def test_an_artifact_keeps_its_board(model_path, tmp_path, capsys):
    out = tmp_path / "ad"
    command = ["compile", str(model_path("anomaly_detection")), "--board", str(BOARDS[0]), "-o", str(out)]
    assert main(command) == 0
    artifact = Artifact.load(out)
    assert artifact.manifest.board == "colorlight-i9" and BOARD_FILE in artifact.manifest.files
    assert board_of(artifact) == OTHERS[0]
    assert main(["inspect", str(out)]) == 0
    assert main(command) == 0  # replaces it
    assert "colorlight-i9" in capsys.readouterr().out
