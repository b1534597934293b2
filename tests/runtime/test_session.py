"""Sessions: what they accept and refuse, and that devices and sessions do not interfere."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import ArtifactError, ConfigError, DeviceError, InputError
from nnloom.runtime import InferenceSession
from nnloom.runtime.devices.base import Device
from nnloom.runtime.inputs import as_arrays, check_input, check_inputs, join_batch, split_batch

FLOAT = TensorInfo(name="x", shape=(1, 2, 3), dtype="float32", scale=0.5, zero_point=1)
INT8 = TensorInfo(name="x", shape=(1, 2, 3), dtype="int8", scale=0.5, zero_point=1)
UINT8 = TensorInfo(name="x", shape=(1, 2, 3), dtype="uint8", scale=0.5, zero_point=129)
PLAIN = TensorInfo(name="x", shape=(1, 2, 3), dtype="uint8")
"""not quantized: class numbers, say"""


@pytest.mark.parametrize(
    ("info", "dtype", "want"),
    [
        (FLOAT, "float32", "float32"),
        (FLOAT, "float64", "float32"),
        (FLOAT, "int8", None),
        (FLOAT, "uint8", None),
        (FLOAT, "bool", None),
        (FLOAT, "object", None),
        (INT8, "int8", "int8"),
        (INT8, "float32", "int8"),
        (INT8, "float64", "int8"),
        (INT8, "uint8", None),
        (INT8, "int16", None),
        (UINT8, "uint8", "uint8"),
        (UINT8, "float32", "uint8"),
        (UINT8, "float64", "uint8"),
        (UINT8, "int8", None),
        (PLAIN, "uint8", "uint8"),
        (PLAIN, "float32", None),
    ],
)
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3)])
def test_dtypes(info, dtype, want, shape):
    value = np.ones(shape, dtype)
    if want is None:
        with pytest.raises(InputError, match=f"must be {info.dtype}, not {dtype}"):
            check_input(info, value)
    else:
        result = check_input(info, value)
        assert result.dtype == want and result.shape == info.shape


def test_floats_are_quantized_half_away_from_zero_and_clamped():
    value = np.array([[[0.25, -0.25, 0.24], [0.75, 1e30, -1e30]]])
    assert check_input(INT8, value).tolist() == [[[2, 0, 1], [3, 127, -128]]]
    assert check_input(UINT8, value).tolist() == [[[130, 128, 129], [131, 255, 0]]]


@pytest.mark.parametrize("shape", [(), (3,), (6,), (3, 2), (2, 2, 3), (1, 1, 2, 3), (1, 2, 0)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(InputError, match="must have shape"):
        check_input(FLOAT, np.zeros(shape, np.float32))


@pytest.mark.parametrize("info", [FLOAT, INT8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_no_float32(info, bad):
    value = np.zeros(info.shape)
    value[0, 1, 1] = bad
    with pytest.raises(InputError):
        check_input(info, value)


TWO = (TensorInfo(name="a", shape=(1, 2, 3), dtype="int8"), TensorInfo(name="b", shape=(1, 4), dtype="int8"))
FIXED = TensorInfo(name="f", shape=(2, 3), dtype="int8")


def batch(a: int, b: int) -> dict[str, np.ndarray]:
    return {"a": np.zeros((a, 2, 3), np.int8), "b": np.zeros((b, 4), np.int8)}


def test_a_batch_is_one_of_every_input():
    assert [case["b"].shape for case in split_batch(TWO, batch(3, 3))] == [(1, 4)] * 3
    assert len(split_batch(TWO, batch(1, 1))) == 1
    for arrays, message in (
        (batch(3, 1), r"input 'a' holds 3 inferences, so input 'b' must have shape \[3, 4\], not \[1, 4\]"),
        (batch(1, 2), r"input 'b' holds 2 inferences, so input 'a' must have shape \[2, 2, 3\], not \[1, 2, 3\]"),
        (batch(3, 2), r"input 'a' holds 3 inferences, so input 'b' must have shape \[3, 4\], not \[2, 4\]"),
        (batch(3, 3) | {"b": np.zeros(4, np.int8)}, r"input 'b' must have shape \[3, 4\], not \[4\]"),
    ):
        with pytest.raises(InputError, match=message):
            split_batch(TWO, arrays)
    with pytest.raises(InputError, match="so input 'f' must have one inference at a time, not"):
        split_batch((TWO[0], FIXED), {"a": np.zeros((3, 2, 3)), "f": np.zeros((2, 3))})


def test_outputs_of_a_batch():
    assert join_batch([np.zeros((1, 5)), np.ones((1, 5))]).shape == (2, 5)
    assert join_batch([np.zeros((4, 5)), np.ones((4, 5))]).shape == (2, 4, 5)
    assert join_batch([np.zeros(()), np.ones(())]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "has 2 inputs; give a dict"),
        ([1, 2], "has 2 inputs; give a dict"),
        ({}, "input 'a' is missing"),
        ({"a": [[1, 2], [3]], "b": [1]}, "input 'a' is not an array"),
        ({"a": [1], "b": [1], 7: [1]}, "no input named 7"),
        ({"a": [1], "b": [1], None: [1]}, "no input named None"),
    ],
)
def test_what_is_not_an_array_by_name(inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        as_arrays(TWO, inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "text", b"bytes", object(), 1j, np.datetime64("2020"), [None], 10**400, {}])
def test_objects_are_no_input(value):
    with pytest.raises(InputError):
        check_inputs([FLOAT], as_arrays([FLOAT], value))


def test_bytes_of_another_order():
    for dtype in (">f4", ">f8", "<f4"):
        value = np.arange(6).reshape(1, 2, 3).astype(dtype)
        (got,) = check_inputs([FLOAT], as_arrays([FLOAT], value))
        assert got.dtype == np.float32 and got.dtype.isnative and np.array_equal(got, value)


def test_missing_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="nnloom compile"):
        InferenceSession(tmp_path)


@pytest.mark.model
class TestOnARealNetwork:
    NAME = "keyword_spotting"

    def test_array_dict_and_missing_dimension_are_the_same(self, artifacts, network_inputs):
        with InferenceSession(artifacts(self.NAME)) as session:
            (info,) = session.get_inputs()
            (output,) = session.get_outputs()
            value = network_inputs(self.NAME, info)[0]
            results = [session.run(v)[output.name] for v in ({info.name: value}, value, value[0], value.tolist())]
        assert results[0].shape == output.shape and results[0].dtype == output.dtype
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])

    def test_the_call_of_onnx_runtime(self, artifacts, network_inputs):
        with InferenceSession(artifacts(self.NAME), "cpu") as session:
            (info,) = session.get_inputs()
            (output,) = session.get_outputs()
            value = network_inputs(self.NAME, info)[0]
            want = session.run(value)[output.name]
            feed = {info.name: value}
            for results in (
                session.run(None, feed),
                session.run([output.name], feed),
                session.run(None, input_feed=feed),
                session.run(output_names=[output.name], input_feed=feed),
                session.run(output_names=None, input_feed=feed),
                session.run([], feed),
            ):
                assert isinstance(results, list)
                np.testing.assert_array_equal(results[0], want)
            with pytest.raises(InputError, match="no output named 'y'"):
                session.run(["y"], feed)
            with pytest.raises(InputError, match="a list of names"):
                session.run(output.name, feed)
            with pytest.raises(InputError, match="needs the inputs, too"):
                session.run(output_names=[output.name])
            with pytest.raises(InputError, match="must have shape"):
                session.run(None)

    def test_names(self, artifacts):
        with InferenceSession(artifacts(self.NAME)) as session:
            (info,) = session.get_inputs()
            with pytest.raises(InputError, match="no input named 'y'"):
                session.run({"y": np.zeros(info.shape, np.float32)})
            with pytest.raises(InputError, match="is missing"):
                session.run({})

    @pytest.mark.parametrize("device", ["gpu", "serial:/dev/none?speed=3", ""])
    def test_unknown_devices(self, artifacts, device):
        with pytest.raises(ConfigError):
            InferenceSession(artifacts(self.NAME), device)

    def test_missing_port(self, artifacts):
        with pytest.raises(DeviceError, match="/dev/nnloom-none"):
            InferenceSession(artifacts(self.NAME), "serial:/dev/nnloom-none", fallback=False)

    def test_interleaved_sessions_and_threads(self, artifacts, network_inputs):
        """Accelerator callbacks are global to the process in TVM: no session may answer for another."""
        names = [self.NAME, "tflite_micro_speech", "anomaly_detection"]
        sessions = {n: InferenceSession(artifacts(n), "model") for n in names}
        values = {n: network_inputs(n, s.get_inputs()[0], 6) for n, s in sessions.items()}
        want = {}
        for name in names:
            with InferenceSession(artifacts(name), "cpu") as cpu:
                want[name] = [next(iter(cpu.run(v).values())) for v in values[name]]
        for index in range(3):
            for name in names:
                np.testing.assert_array_equal(
                    next(iter(sessions[name].run(values[name][index]).values())), want[name][index]
                )
        failures = []

        def work(name):
            for value, expected in zip(values[name], want[name], strict=True):
                if not np.array_equal(next(iter(sessions[name].run(value).values())), expected):
                    failures.append(name)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_an_error_in_the_device_reaches_the_caller(self, artifacts, network_inputs):
        class Broken(Device):
            def load(self, artifact):
                pass

            def run_region(self, region, inputs, *, count_layers=False):
                raise DeviceError("cable pulled")

            def close(self):
                self.closed = True

        device = Broken()
        with InferenceSession(artifacts(self.NAME), device, fallback=False) as session:
            value = network_inputs(self.NAME, session.get_inputs()[0])[0]
            with pytest.raises(DeviceError, match=r"^cable pulled$"):
                session.run(value)
        assert device.closed
