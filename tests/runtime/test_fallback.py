"""Sessions on devices that fail, batches, queues and profiles."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
import warnings

import numpy as np
import pytest

from nnloom.arch.errors import DeviceCause, DeviceError, InputError
from nnloom.cli import main
from nnloom.runtime import DeviceWarning, InferenceSession, LayerWaits
from nnloom.runtime.devices.model import ModelDevice
from nnloom.runtime.devices.rtl import RtlDevice
from nnloom.runtime.devices.serial import open_serial
from nnloom.runtime.devices.verified import VerifiedRtlDevice
from tests.artifacts import SMALL
from tests.board_twin import CLOCK_HZ, CYCLES, Fault, twin_device


def inputs_of(session: InferenceSession, count: int) -> list[np.ndarray]:
    (info,) = session.get_inputs()
    rng = np.random.default_rng(1)
    return [rng.integers(-128, 128, info.shape, np.int8) for _ in range(count)]


def equal(got: dict, want: dict) -> bool:
    return got.keys() == want.keys() and all(np.array_equal(got[name], want[name]) for name in want)


@pytest.fixture
def cpu(network):
    with InferenceSession(network, "cpu") as session:
        yield session


def test_the_same_script_on_every_device(network, cpu):
    (value,) = inputs_of(cpu, 1)
    want = cpu.run(value)
    _, board = twin_device(SMALL)
    for device in ("auto", "model", board):
        with InferenceSession(network, device) as session:
            assert equal(session.run(value), want)
            assert session.stats().requests == 1 and session.stats().fallbacks == 0


def test_a_board_that_is_gone_and_comes_back(network, cpu):
    line, device = twin_device(SMALL)
    values = inputs_of(cpu, 12)
    want = [cpu.run(value) for value in values]
    with InferenceSession(network, device, clock=line.clock) as session:
        assert equal(session.run(values[0]), want[0])
        line.arm(Fault("unplug", True, 100, seconds=10.0))
        with pytest.warns(DeviceWarning, match="serial port: device disconnected; check the cable; the CPU") as caught:
            assert equal(session.run(values[1]), want[1])
        (warning,) = (w.message for w in caught)
        assert warning.device == "SerialDevice" and isinstance(warning.error, DeviceError)
        assert warning.retry_seconds == 1.0
        # Within the second nothing is tried, and nobody is told again.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            line.clock.now += 0.9
            assert equal(session.run(values[2]), want[2])
        waits = []
        for wait in (1.0, 2.0, 4.0):
            line.clock.now += wait
            with pytest.warns(DeviceWarning, match="cannot open the serial port") as caught:
                assert equal(session.run(values[3]), want[3])
            waits.append(caught[0].message.retry_seconds)
        assert waits == [2.0, 4.0, 8.0]
        line.clock.now += 8.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert equal(session.run(values[4]), want[4])
        stats = session.stats()
        assert (stats.requests, stats.on_device, stats.fallbacks, stats.device_failures) == (7, 2, 5, 4)
        assert stats.device.reconnects == 1
        # Once it has answered, the wait is a second again.
        line.arm(Fault("unplug", True, 100, seconds=1.0))
        with pytest.warns(DeviceWarning) as caught:
            session.run(values[5])
        assert caught[0].message.retry_seconds == 1.0


def test_a_board_that_is_not_there_at_first(network, cpu, tmp_path):
    (value,) = inputs_of(cpu, 1)
    line, device = twin_device(SMALL)
    line.arm(Fault("bitstream", True, 0, seconds=5.0, value=3))
    with (
        pytest.warns(DeviceWarning, match="program the artifact's own bitstream"),
        InferenceSession(network, device, clock=line.clock) as session,
    ):
        assert equal(session.run(value), cpu.run(value)) and session.stats().fallbacks == 1
        line.clock.now += 10
        assert equal(session.run(value), cpu.run(value)) and session.stats().on_device == 1
    with pytest.warns(DeviceWarning, match="cannot open the serial port"):
        session = InferenceSession(network, f"serial:{tmp_path}/none")
    assert equal(session.run(value), cpu.run(value))
    session.close()


def test_without_fallback_errors_reach_the_caller(network, cpu):
    (value,) = inputs_of(cpu, 1)
    line, device = twin_device(SMALL)
    with InferenceSession(network, device, fallback=False, clock=line.clock) as session:
        line.arm(Fault("unplug", True, 50, seconds=1.0))
        with pytest.raises(DeviceError, match="check the cable"):
            session.run(value)
        line.clock.now += 1
        assert equal(session.run(value), cpu.run(value))


def test_batches(network, cpu):
    values = inputs_of(cpu, 5)
    want = [cpu.run(value) for value in values]
    _, device = twin_device(SMALL)
    with InferenceSession(network, device) as session:
        (info,) = session.get_inputs()
        got = session.run({info.name: np.concatenate(values)})
        for name, value in got.items():
            np.testing.assert_array_equal(value, np.concatenate([w[name] for w in want]))
        assert session.stats().requests == 5
        floats = (values[0].astype(np.float32) - info.zero_point) * info.scale
        assert equal(session.run(floats), want[0])
        with pytest.raises(InputError, match="must have shape"):
            session.run(np.zeros((3, 2, 2, 1), np.int8))


def test_threads_and_queue(network, cpu):
    values = inputs_of(cpu, 20)
    want = [cpu.run(value) for value in values]
    _, device = twin_device(SMALL)
    wrong = []
    with InferenceSession(network, device) as session:

        def work(first: int) -> None:
            for index in range(first, 20, 4):
                if not equal(session.run(values[index]), want[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        futures = [session.run_async(value) for value in values]
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(equal(future.result(), w) for future, w in zip(futures, want, strict=True))
        with pytest.raises(InputError, match="no input named"):
            session.run_async({"nothing": values[0]}).result()

        async def main() -> dict:
            return await asyncio.wrap_future(session.run_async(values[3]))

        assert equal(asyncio.run(main()), want[3])
        last = session.run_async(values[4])
    assert equal(last.result(), want[4])  # close waits for what is queued
    assert session.stats().requests == 42


def test_what_is_queued_is_what_was_given(network, cpu):
    """The caller may use an array again while the session still works."""
    values = inputs_of(cpu, 6)
    want = [cpu.run(value) for value in values]
    with InferenceSession(network, "model") as session:
        buffer = np.empty_like(values[0])
        futures = []
        for value in values:
            buffer[:] = value
            futures.append(session.run_async(buffer))
        buffer[:] = 0
        assert all(equal(future.result(), w) for future, w in zip(futures, want, strict=True))


@pytest.mark.parametrize("device", ["cpu", "model", "serial"])
def test_a_closed_session_does_not_answer(network, device):
    before = set(threading.enumerate())
    _, board = twin_device(SMALL)
    session = InferenceSession(network, board if device == "serial" else device)
    (value,) = inputs_of(session, 1)
    (info,) = session.get_inputs()
    queued = [session.run_async(value) for _ in range(4)]
    session.close()
    assert all(future.done() and future.result() for future in queued)
    for call in (
        lambda: session.run(value),
        lambda: session.run({info.name: value}),
        lambda: session.run(None, {info.name: value}),
        lambda: session.run_async(value),
    ):
        with pytest.raises(DeviceError, match="the session is closed") as caught:
            call()
        assert caught.value.cause is DeviceCause.CLOSED
    session.close()  # once more does no harm
    assert session.stats().requests == 4 and session.get_inputs() == (info,)
    assert set(threading.enumerate()) == before


def test_a_session_that_is_closed_while_others_use_it(network):
    """Each call answers rightly or says that the session is closed; nothing hangs."""
    with InferenceSession(network, "cpu") as cpu:
        (value,) = inputs_of(cpu, 1)
        want = cpu.run(value)
    for _ in range(10):
        session = InferenceSession(network, "cpu")
        outcomes: list[object] = []

        def work(session: InferenceSession = session, outcomes: list[object] = outcomes) -> None:
            while True:
                try:
                    outcomes.append(equal(session.run(value), want))
                    outcomes.append(equal(session.run_async(value).result(), want))
                except DeviceError as error:
                    outcomes.append(error.cause)
                    return

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        session.run(value)
        session.close()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert set(outcomes) <= {True, DeviceCause.CLOSED} and outcomes.count(DeviceCause.CLOSED) == 4


def test_profile(network, cpu):
    _, device = twin_device(SMALL)
    (value,) = inputs_of(cpu, 1)
    with InferenceSession(network, device) as session:
        with pytest.raises(InputError, match="nothing to profile"):
            session.profile()
        session.run(value)
        profile = session.profile()
        assert [s.device for s in profile.segments] == ["cpu", "SerialDevice", "cpu", "SerialDevice", "cpu"]
        assert [s.name for s in profile.segments if s.name] == [r.name for r in session.artifact.manifest.regions]
        assert all(s.cycles == CYCLES and s.layers for s in profile.segments if s.name)
        assert session.last_cycles == 2 * CYCLES
        assert sum(s.seconds for s in profile.segments) == pytest.approx(profile.seconds)
        assert device.clock_hz == CLOCK_HZ
    with InferenceSession(network, device, profiling=True) as session:
        session.run(value)
        for segment in session.profile().segments[1::2]:
            *first, last = (cycles for _, cycles in segment.layers)
            assert sum(first) + last == CYCLES and first[:2] == [10, 40][: len(first)]
            assert segment.waits == (LayerWaits(start=1, parameters=2, requantization=3),) * len(segment.layers)
    cpu.run(value)
    (segment,) = cpu.profile().segments
    assert segment.device == "cpu" and segment.seconds > 0 and not segment.layers


def test_auto_takes_the_board_that_fits(network, cpu, monkeypatch, tmp_path, capfd):
    """Of four ports one is silent, one another board, one may not be opened, one is the right one."""
    (value,) = inputs_of(cpu, 1)
    silent, silent_device = twin_device(SMALL)
    silent.arm(Fault("silence", True, 0, seconds=1e9))
    other, other_device = twin_device(SMALL)
    other.arm(Fault("bitstream", True, 0, seconds=1e9))
    _, right_device = twin_device(SMALL)
    locked = tmp_path / "locked"
    locked.touch()
    locked_device = open_serial(str(locked))
    monkeypatch.setattr(
        "serial.Serial", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
    )
    devices = {"a": silent_device, "b": other_device, "l": locked_device, "c": right_device}
    monkeypatch.setattr("nnloom.runtime.devices.serial.find_boards", lambda: list(devices))
    monkeypatch.setattr("nnloom.runtime.devices.serial.open_serial", lambda port, *_, **__: devices[port])
    passed_over = [
        ("a", DeviceCause.SILENT, "does not answer"),
        ("b", DeviceCause.OTHER_CONFIGURATION, "program the artifact's own bitstream"),
        ("l", DeviceCause.NO_PERMISSION, "dialout"),
    ]

    def right(found) -> bool:
        return all(
            (got.port, got.cause) == (port, cause) and text in got.reason
            for got, (port, cause, text) in zip(found, passed_over, strict=True)
        )

    with InferenceSession(network) as session:
        assert session.device == "serial:c" and right(session.passed_over)
        assert equal(session.run(value), cpu.run(value)) and session.stats().on_device == 1
    np.save(tmp_path / "x.npy", value)
    arguments = ["run", str(network), "--device", "auto", "--input", str(tmp_path / "x.npy")]
    capfd.readouterr()
    assert main(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    for line, (port, cause, text) in zip(lines, passed_over, strict=False):
        assert line.startswith(f"{port} passed over, {cause}: ") and text in line
    assert lines[3] == "on serial:c"
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["device"] == "serial:c"
    assert [(board["port"], board["cause"]) for board in told["passed_over"]] == [
        ("a", "silent"),
        ("b", "other configuration"),
        ("l", "no permission"),
    ]
    devices.pop("c")
    with InferenceSession(network) as session:
        assert session.device == "cpu" and session.accelerator is None and right(session.passed_over)
        assert equal(session.run(value), cpu.run(value))
    assert main(arguments) == 0
    assert "no board answers with the configuration of the artifact: on the CPU" in capfd.readouterr().out


def test_auto_passes_over_a_port_that_fails_to_close(network, monkeypatch):
    line, device = twin_device(SMALL)
    line.arm(Fault("bitstream", True, 0, seconds=1e9))

    def close() -> None:
        raise DeviceError("serial port: input/output error")

    device.close = close
    monkeypatch.setattr("nnloom.runtime.devices.serial.find_boards", lambda: ["a"])
    monkeypatch.setattr("nnloom.runtime.devices.serial.open_serial", lambda *_, **__: device)
    with InferenceSession(network) as session:
        assert session.device == "cpu"
        assert [board.cause for board in session.passed_over] == [DeviceCause.OTHER_CONFIGURATION]


@pytest.mark.parametrize("given", ["name", "instance"])
def test_a_failure_in_simulation_is_never_answered_by_the_cpu(network, given, monkeypatch):
    """It is a finding, whatever `fallback` says."""

    def fail(self, region, inputs, **options):
        raise DeviceError("the engine wrote something else")

    monkeypatch.setattr(ModelDevice, "run_region", fail)
    with InferenceSession(network, "model" if given == "name" else ModelDevice(), fallback=True) as session:
        with pytest.raises(DeviceError, match="something else"):
            session.run(inputs_of(session, 1)[0])
        assert session.stats().fallbacks == 0

    def start(self, artifact):
        raise DeviceError("the simulation ended")

    monkeypatch.setattr(RtlDevice, "load", start)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeviceError, match="simulation ended"):
            InferenceSession(network, "sim" if given == "name" else VerifiedRtlDevice(), fallback=True)


def test_the_wait_before_a_device_is_tried_again_has_a_limit(network):
    line, device = twin_device(SMALL)
    line.arm(Fault("unplug", True, 0, seconds=1e9))
    waits = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with InferenceSession(network, device, clock=line.clock) as session:
            (value,) = inputs_of(session, 1)
            for _ in range(10):
                line.clock.now += caught[-1].message.retry_seconds
                session.run(value)
        waits = [w.message.retry_seconds for w in caught]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
