"""The C driver: compiled without a warning, on a board in Python over a line that damages, and on the virtual board."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import tty
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.cli import main
from nnloom.runtime.c_driver import SOURCES
from nnloom.sim.parts import RegionModels
from nnloom.sim.virtual_board import VirtualBoard
from tests.artifacts import SMALL, make_artifact
from tests.board_twin import TwinBoard
from tests.graphs import random_graph

STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wno-sign-conversion"]
INFERENCES = 3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("c") / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv", "depthwise", "conv", "add"]))
    return Artifact.load(path)


def built(artifact: Artifact, folder: Path) -> Path:
    """The example program for an artifact."""
    assert main(["driver", str(artifact.path), "-o", str(folder)]) == 0
    command = ["gcc", *STRICT, "-O2", "-o", "example", "example.c", "nnloom.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "example"


def inferences(artifact: Artifact, count: int = INFERENCES) -> tuple[bytes, bytes]:
    """Random inputs as the example reads them, and the outputs that it is to write."""
    (region,) = artifact.manifest.regions
    rng = np.random.default_rng(3)
    model = RegionModels(artifact.image)
    given, wanted = [], []
    for _ in range(count):
        for location in region.inputs:
            given.append(rng.integers(-128, 128, location.shape, np.int8))
            model.write_tensor(location, given[-1])
        for golden, start in model.programs(region):
            golden.run(start)
        wanted += [model.read_tensor(location) for location in region.outputs]
    return b"".join(x.tobytes() for x in given), b"".join(x.tobytes() for x in wanted)


class Terminal:
    """A board in Python behind a pseudo-terminal. `damage(byte, to_board)` returns what becomes of a byte."""

    def __init__(self, board: TwinBoard, damage=lambda byte, to_board: bytes([byte])) -> None:
        self.board, self.damage = board, damage
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._ended.is_set():
            if select.select([self._master], [], [], 0.02)[0]:
                data = b"".join(self.damage(byte, True) for byte in os.read(self._master, 4096))
                for answer in self.board.feed(data):
                    os.write(self._master, self.damage(answer, False))

    def __enter__(self) -> Terminal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._master)
        os.close(self._slave)


def run(program: Path, port: str, given: bytes, baud: int = 1_000_000) -> tuple[int, bytes, str]:
    result = subprocess.run([program, port, str(baud)], input=given, capture_output=True, timeout=120, check=False)
    return result.returncode, result.stdout, result.stderr.decode()


@pytest.fixture(scope="module")
def example(artifact, tmp_path_factory) -> Path:
    return built(artifact, tmp_path_factory.mktemp("driver"))


def test_the_driver_is_small_and_allocates_nothing(example):
    source = (SOURCES / "nnloom.c").read_text()
    assert len([line for line in source.splitlines() if line.strip()]) < 200
    assert not {"malloc", "calloc", "printf", "stdio"} & set(source.replace("(", " ").replace(".", " ").split())


def test_outputs_are_the_golden_models(artifact, example):
    given, wanted = inferences(artifact)
    board = TwinBoard(SMALL)
    with Terminal(board) as terminal:
        code, got, said = run(example, terminal.port, given)
    assert (code, got) == (0, wanted), said
    assert board.starts == INFERENCES and said.splitlines()[-1].endswith(" 0 retries")


@pytest.mark.parametrize("seed", range(8))
def test_damage_on_the_line_costs_no_answer(artifact, example, seed):
    rng = np.random.default_rng(seed)
    given, wanted = inferences(artifact)

    def damage(byte: int, to_board: bool) -> bytes:
        if rng.random() > 1 / 1000:
            return bytes([byte])
        return [b"", bytes([byte, byte]), bytes([byte ^ 1 << int(rng.integers(8))]), b"\0"][int(rng.integers(4))]

    with Terminal(TwinBoard(SMALL), damage) as terminal:
        code, got, said = run(example, terminal.port, given)
    assert (code, got) == (0, wanted), said


def test_a_reset_of_the_board_costs_no_answer(artifact, example):
    given, wanted = inferences(artifact)
    board = TwinBoard(SMALL)
    seen = 0

    def damage(byte: int, to_board: bool) -> bytes:
        nonlocal seen
        seen += to_board
        if to_board and seen in (1_000, 4_500):
            board.reset()
        return bytes([byte])

    with Terminal(board, damage) as terminal:
        code, got, said = run(example, terminal.port, given)
    assert (code, got) == (0, wanted) and seen > 4_500, (seen, said)


def test_another_bitstream_is_refused(artifact, example):
    other = AcceleratorConfig(lanes=8, taps=5, requant_units=4, activation_bytes=8192, weight_words=256)
    with Terminal(TwinBoard(other)) as terminal:
        code, got, said = run(example, terminal.port, inferences(artifact)[0])
    assert (code, got) == (1, b"") and "result -3" in said


@pytest.mark.slow
def test_a_program_that_does_not_end_and_a_line_without_a_board(artifact, example):
    given, _ = inferences(artifact)
    board = TwinBoard(SMALL)
    board.hang = True
    with Terminal(board) as terminal:
        code, _, said = run(example, terminal.port, given)
    assert code == 1 and "result -6" in said and board.resets == 2  # one as it opens, one at the end
    with Terminal(board, lambda byte, to_board: b"" if to_board else bytes([byte])) as terminal:
        code, _, said = run(example, terminal.port, given)
    assert code == 1 and "result -2" in said


def test_parts_are_loaded_before_they_run(tmp_path):
    config = AcceleratorConfig(lanes=8, taps=5, requant_units=2, activation_bytes=8192, weight_words=64)
    emitted = make_artifact(
        tmp_path / "parts", random_graph(np.random.default_rng(12), ["conv", "depthwise", "conv", "conv"]), config
    )
    assert emitted.parts == 2
    artifact = Artifact.load(tmp_path / "parts")
    given, wanted = inferences(artifact)
    with Terminal(TwinBoard(config)) as terminal:
        code, got, said = run(built(artifact, tmp_path / "driver"), terminal.port, given)
    assert (code, got) == (0, wanted), said


@pytest.mark.verilator
def test_on_the_virtual_board(artifact, example):
    """The RTL of the complete system behind a terminal."""
    given, wanted = inferences(artifact)
    with VirtualBoard(SMALL) as board:
        code, got, said = run(example, board.port, given)
    assert (code, got) == (0, wanted), said


def test_errors_and_what_is_written(artifact, tmp_path, capsys):
    assert main(["driver", str(artifact.path), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "example.c",
        "model.h",
        "nnloom.c",
        "nnloom.h",
        "nnloom_map.h",
    ]
    (tmp_path / "file").write_text("mine")
    assert main(["driver", str(artifact.path), "-o", str(tmp_path / "file")]) == 2
    assert main(["driver", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and (tmp_path / "file").read_text() == "mine"
