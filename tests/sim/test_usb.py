"""The USB device at the pins: a host resets, enumerates and opens it, and nnloom's driver runs a network through it.

This module is pytest's and cocotb's at once.
"""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

pytest.importorskip("luna")

import cocotb
from cocotb.task import bridge

from nnloom.arch.isa import MAGIC, HostAddress
from nnloom.arch.usb import MANUFACTURER, PRODUCT, PRODUCT_ID, VENDOR_ID
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.serial import SerialDevice, SerialLink
from nnloom.sim.build import cocotb_environment
from nnloom.sim.cocotb import Accelerator, UsbPort
from nnloom.sim.cocotb.usb import BIT_PS, start_usb_clocks
from nnloom.sim.usb_bench import TOPLEVEL, build_usb_bench
from tests.artifacts import SMALL, make_artifact
from tests.graphs import random_graph


def _link(port: UsbPort) -> SerialLink:
    return SerialLink(lambda: port, baud=port.baud, frame_seconds=0.002, clock=port.clock, sleep=port.sleep)


async def _write_and_read(port: UsbPort, link: SerialLink, rng: np.random.Generator, count: int) -> None:
    """Words to activation memory and back."""
    device = SerialDevice(link)
    addresses = np.arange(HostAddress.ACTIVATIONS, HostAddress.ACTIVATIONS + 4 * count, 4, dtype=np.uint32)
    words = rng.integers(0, 1 << 32, count, np.uint32)
    await bridge(device.write_words)(addresses, words)
    np.testing.assert_array_equal(await bridge(device.read_words)(addresses), words)


@cocotb.test(timeout_time=100, timeout_unit="ms")
async def a_host_enumerates_the_device_and_its_bytes_are_frames(dut):
    await start_usb_clocks(dut)
    port = UsbPort(dut)
    found = await port.start()
    assert (found.vendor, found.product, found.strings) == (VENDOR_ID, PRODUCT_ID, (MANUFACTURER, PRODUCT))
    assert found.bulk(incoming=True)[1] == found.bulk(incoming=False)[1] == 64
    link = _link(port)
    hello = await bridge(link.connect)()
    assert (hello.magic, hello.clock_hz, hello.previous_session) == (MAGIC, 100_000_000, None)
    rng = np.random.default_rng(0)
    await _write_and_read(port, link, rng, 100)
    # What is damaged, or whose acknowledgement is lost, comes again, and counts once.
    port.damage, port.lost = 5, 3
    await _write_and_read(port, link, rng, 100)
    assert not port.damage and not port.lost
    assert port.counts.silences == 5 and port.counts.repeated_in == 3
    assert link.stats.retries == link.stats.crc_errors == link.stats.timeouts == 0
    # Another cable: sequence bits begin anew on both sides, whatever they were.
    await port.start()
    again = await bridge(link.connect)()
    assert again.previous_session is not None
    await _write_and_read(port, link, rng, 30)
    # LUNA's transceiver takes longer than the 7.5 bits that a device has [7.1.18.1]; hosts wait for 16 [7.1.19.1].
    answers = port.counts.answer_bits
    dut._log.warning("answers after %.1f to %.1f bits", min(answers), max(answers))
    assert min(answers) >= 2 and max(answers) < 14.5


def _rate(times: list[tuple[int, int]]) -> float:
    """Bytes a millisecond, from the first packet's end to the last one's."""
    return sum(size for _, size in times[1:]) / (times[-1][0] - times[0][0]) * 1e9


@cocotb.test(timeout_time=200, timeout_unit="ms")
async def a_network_runs_and_the_bus_is_full(dut):
    """With clocks that differ by as much as they may: a quarter of a percent."""
    await start_usb_clocks(dut)
    port = UsbPort(dut, bit_ps=round(BIT_PS * 1.0025))
    await port.start()
    accelerator = Accelerator(dut, host=port)
    await accelerator.load()
    artifact = accelerator.artifact
    golden = InferenceSession(artifact.path, "model")
    rng = np.random.default_rng(1)
    for _ in range(2):
        inputs = {i.name: rng.integers(-128, 128, i.shape, np.int8) for i in artifact.manifest.inputs}
        outputs = await accelerator.run(inputs)
        for name, want in golden.run(inputs).items():
            np.testing.assert_array_equal(outputs[name], want)
    # Full frames: what a host sends in one go, and what comes in one.
    link = _link(port)
    await bridge(link.connect)()
    port.counts.out_times.clear()
    port.counts.in_times.clear()
    await _write_and_read(port, link, rng, artifact.manifest.config.activation_bytes // 4)
    full_out = [time for time in port.counts.out_times if time[1] == 64]
    rates = {"out": _rate(full_out), "in": max(_rate(port.counts.in_times[i : i + 16]) for i in range(40))}
    dut._log.warning("bytes a millisecond: %s; %d NAKs of %d packets", rates, port.counts.naks_out, len(full_out))
    assert rates["out"] > 1000 and rates["in"] > 1000


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "a"
    make_artifact(path, random_graph(np.random.default_rng(7), ["conv", "depthwise", "add"]))
    return path


@pytest.mark.slow
@pytest.mark.verilator
@pytest.mark.parametrize("test", ["a_host_enumerates", "a_network_runs"])
def test_usb(test, artifact, tmp_path):
    from cocotb_tools.check_results import get_results

    program = build_usb_bench(SMALL)
    env = cocotb_environment(__name__, toplevel=TOPLEVEL, folder=tmp_path) | {"COCOTB_TEST_FILTER": test}
    command = [str(program), f"+artifact={artifact}"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=1200)
    print(result.stdout)
    assert get_results(tmp_path / "results.xml") == (1, 0), result.stdout + result.stderr
