"""A board that loads its network from its flash: the complete system's RTL, the board's driver on the other end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.content import engine_content
from nnloom.arch.flash_image import BOOT_BASE, BootOutcome, BootRegister, FlashImage, flash_image
from nnloom.arch.isa import HostAddress
from nnloom.boards import get
from nnloom.runtime.devices.serial import SerialDevice, open_serial, parse_serial
from nnloom.sim.flash_model import FlashCommand
from nnloom.sim.golden import GoldenModel
from nnloom.sim.virtual_board import SimulatedFlash, VirtualBoard
from tests.artifacts import SMALL, make_artifact
from tests.graphs import random_graph
from tests.sim.test_virtual_board import check

pytestmark = [pytest.mark.verilator, pytest.mark.slow]

OFFSET = 0x2_0000
BITSTREAM = b"\x5a" * OFFSET
"""What lies before the network"""
LOADED = {HostAddress.PROGRAM, HostAddress.WEIGHTS, HostAddress.TABLES}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> list[Artifact]:
    """Two networks."""
    folder = tmp_path_factory.mktemp("flash")
    kinds = (["conv", "depthwise", "conv", "conv"], ["conv"])
    for index, layers in enumerate(kinds):
        make_artifact(folder / str(index), random_graph(np.random.default_rng(8), layers))
    return [Artifact.load(folder / str(index)) for index in range(len(kinds))]


@pytest.fixture(scope="module")
def board(artifacts) -> Iterator[VirtualBoard]:
    with VirtualBoard(SMALL, flash=SimulatedFlash(content=with_network(artifacts[0]), offset=OFFSET)) as running:
        yield running


def with_network(artifact: Artifact) -> bytes:
    return BITSTREAM + flash_image(artifact.image).encode()


class Watched:
    """A driver whose writes to the memories of the network are noted, and what it says."""

    def __init__(self, board: VirtualBoard) -> None:
        port, baud, seconds = parse_serial(board.device.removeprefix("serial:"))
        self.said: list[str] = []
        self.device: SerialDevice = open_serial(port, baud, frame_seconds=seconds, progress=self.said.append)
        self.windows: set[int] = set()
        write = self.device.write_memory

        def noted(addresses, words):
            self.windows |= set((addresses & 0xF000_0000).tolist())
            write(addresses, words)

        self.device.write_memory = noted

    @property
    def loads(self) -> set[int]:
        return self.windows & LOADED

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_) -> None:
        self.device.close()

    def registers(self) -> list[int]:
        return self.device.read_words(np.array([BOOT_BASE + r for r in BootRegister], np.uint32)).tolist()


def test_the_network_of_the_flash_answers_to_its_inputs_alone(board, artifacts):
    """From power-up: nobody has written a program or weights to this board."""
    with Watched(board) as driver:
        driver.device.load(artifacts[0])
        check(driver.device, artifacts[0], 0)
        check(driver.device, artifacts[0], 1)
        assert not driver.loads and not driver.said
        assert driver.registers()[1:] == [BootOutcome.LOADED, *engine_content(artifacts[0].image)]
    assert board.check_flash() == [FlashCommand.RELEASE_POWER_DOWN, FlashCommand.FAST_READ, FlashCommand.FAST_READ]


def test_another_network_is_loaded_over_the_line_and_stays(board, artifacts):
    with Watched(board) as driver:
        driver.device.load(artifacts[1])
        check(driver.device, artifacts[1], 2)
        assert driver.loads == {HostAddress.PROGRAM, HostAddress.WEIGHTS}
    with Watched(board) as driver:
        driver.device.load(artifacts[1])
        check(driver.device, artifacts[1], 3)
        assert not driver.loads


def test_resets_bring_the_network_of_the_flash(board, artifacts):
    """Twice, the second time in the middle of reading; the driver does not wait for the end of it."""
    board.write_flash(with_network(artifacts[1]))
    board.press_reset()
    time.sleep(0.02)
    board.press_reset()
    with Watched(board) as driver:
        driver.device.load(artifacts[1])
        check(driver.device, artifacts[1], 4)
        # A session that a reset interrupts needs nothing loaded either.
        board.press_reset()
        check(driver.device, artifacts[1], 5)
        assert not driver.loads and driver.device.stats.resets == 1
    board.check_flash()


def damaged(artifact: Artifact) -> bytes:
    data = bytearray(with_network(artifact))
    data[-9] ^= 4
    return bytes(data)


def without_an_end(artifact: Artifact) -> bytes:
    """Of a length that no image has."""
    data = bytearray(with_network(artifact))
    data[OFFSET + 8 : OFFSET + 12] = bytes(4)
    return bytes(data)


def of_other_configuration(artifact: Artifact) -> bytes:
    image = FlashImage.decode(with_network(artifact)[OFFSET:])
    return BITSTREAM + dataclasses.replace(image, config_hash=get("icebreaker").config.hash).encode()


@pytest.mark.parametrize(
    ("make", "outcome", "says"),
    [
        (damaged, BootOutcome.DAMAGED, "the network in the board's flash is damaged; 'nnloom program"),
        (without_an_end, BootOutcome.DAMAGED, "the network in the board's flash is damaged"),
        (of_other_configuration, BootOutcome.OTHER_CONFIGURATION, "was compiled for another configuration"),
        (lambda artifact: BITSTREAM, BootOutcome.EMPTY, ""),
    ],
)
def test_without_a_good_image_the_line_loads(board, artifacts, make, outcome, says):
    board.write_flash(make(artifacts[0]))
    board.press_reset()
    with Watched(board) as driver:
        driver.device.identify()
        assert driver.registers()[1:] == [outcome, 0, 0]
        driver.device.load(artifacts[0])
        check(driver.device, artifacts[0], 6)
        assert driver.loads == {HostAddress.PROGRAM, HostAddress.WEIGHTS}
        assert says in " ".join(driver.said) and bool(says) == bool(driver.said)
    board.check_flash()


def test_streams_are_answered_from_power_up_without_a_host(artifacts):
    """Nobody has spoken to this board over the link; later somebody does."""
    artifact = artifacts[0]
    (region,) = artifact.manifest.regions
    flash = SimulatedFlash(content=with_network(artifact), offset=OFFSET)
    rng = np.random.default_rng(7)
    with VirtualBoard(SMALL, flash=flash, streams=region) as board:
        for turn in range(4):
            inputs = [rng.integers(-128, 128, place.shape, np.int8) for place in region.inputs]
            model = GoldenModel(SMALL, artifact.program, artifact.weights, artifact.tables)
            for place, value in zip(region.inputs, inputs, strict=True):
                model.write_tensor(place, value)
            model.run(region.program_start)
            want = b"".join(model.read_tensor(place).tobytes() for place in region.outputs)
            assert board.stream(b"".join(value.tobytes() for value in inputs)) == want
            if turn == 1:
                # The streams' programs are none of the link's.
                with Watched(board) as driver:
                    driver.device.load(artifact)
                    assert not driver.loads and driver.device.stats == type(driver.device.stats)()
            if turn == 2:
                board.press_reset()
        board.check_flash()


def test_the_compact_engine_wakes_its_flash_up(tmp_path):
    """An iCE40 leaves the flash in the power-down state."""
    config = get("icebreaker").config
    layers = ["conv", "depthwise", "average"]
    make_artifact(tmp_path / "compact", random_graph(np.random.default_rng(8), layers), config)
    artifact = Artifact.load(tmp_path / "compact")
    flash = SimulatedFlash(content=with_network(artifact), offset=OFFSET, powered_down=True)
    with VirtualBoard(config, flash=flash) as board, Watched(board) as driver:
        driver.device.load(artifact)
        check(driver.device, artifact, 0)
        assert not driver.loads
        assert board.check_flash()[0] is FlashCommand.RELEASE_POWER_DOWN
