"""Programs that the engine refuses: the driver refuses them first, and says what a board reports."""

from dataclasses import replace

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.errors import DeviceError, IllegalProgramError
from nnloom.arch.isa import ERROR_CAUSE_BIT, Descriptor, ErrorCause, Status, decode_program, encode_program
from nnloom.runtime.devices.base import HostBusDevice
from nnloom.runtime.devices.model import ModelDevice
from tests.artifacts import SMALL, make_artifact
from tests.board_twin import twin_device
from tests.graphs import random_graph


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Artifact:
    path = tmp_path_factory.mktemp("illegal") / "artifact"
    make_artifact(path, random_graph(np.random.default_rng(8), ["conv", "depthwise", "conv"]))
    return Artifact.load(path)


def inputs_of(artifact: Artifact) -> list[np.ndarray]:
    return [np.zeros(location.shape, np.int8) for location in artifact.manifest.regions[0].inputs]


def with_program(artifact: Artifact, descriptors: list[Descriptor]) -> Artifact:
    return replace(artifact, program=encode_program(descriptors))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": 3}, "kind 3 is unknown"),
        ({"n_g": 0}, "n_g is 0"),
        ({"weight_base": 5000}, "weights end at word"),
        ({"out_base": 60000}, "the output ends at granule"),
        ({"in_base": 60000}, "the input ends at granule"),
        ({"last": 0}, "without one marked 'last'"),
    ],
)
def test_the_driver_refuses_a_program_before_it_loads_it(artifact, change, reason):
    descriptors = decode_program(artifact.program)
    wrong = with_program(artifact, [*descriptors[:-1], replace(descriptors[-1], **change)])
    line, device = twin_device(SMALL)
    before = line.board.program.copy()
    with pytest.raises(IllegalProgramError, match=f"descriptor [23]: .*{reason}") as error:
        device.load(wrong)
    assert "\n" not in str(error.value) and "compile it again" in str(error.value)
    assert np.array_equal(line.board.program, before) and line.board.starts == 0
    model = ModelDevice()
    model.load(wrong)
    with pytest.raises(IllegalProgramError, match=reason):
        model.run_region(wrong.manifest.regions[0], inputs_of(artifact))


def test_a_board_whose_memories_hold_something_else_is_named(artifact):
    (region,) = artifact.manifest.regions
    line, device = twin_device(SMALL)
    device.load(artifact)
    line.board.program[:] = 0xA5A5A5A5
    with pytest.raises(DeviceError, match=r"reports a program that it cannot run: .*load the artifact again"):
        device.run_region(region, inputs_of(artifact))
    device.load(artifact)
    device.run_region(region, inputs_of(artifact))


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (ErrorCause.ACCESS, "an access to its memories while it was running; reset it"),
        (ErrorCause.PROGRAM, "a program that it cannot run"),
        (ErrorCause.WATCHDOG, r"a program that did not end within 2\*\*30 cycles"),
    ],
)
def test_each_cause_has_words(cause, text):
    HostBusDevice.check_status(Status(Status.DONE))
    with pytest.raises(DeviceError, match=f"^device reports {text}"):
        HostBusDevice.check_status(Status(Status.DONE | Status.ERROR | cause << ERROR_CAUSE_BIT))
