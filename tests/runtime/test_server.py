"""The HTTP server: with a client made by others, and with requests that are wrong."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nnloom.arch.serving import ServerLimits
from nnloom.cli import main
from nnloom.compiler import compile
from nnloom.runtime import InferenceSession
from nnloom.runtime.server import make_application
from tests.tflite_models import ModelWriter


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    m = ModelWriter(5)
    x = m.input((1, 6, 6, 8))
    (folder / "model.tflite").write_bytes(m.finish(m.conv(x, 8)))
    return compile(folder / "model.tflite", output=folder / "artifact").path


@pytest.fixture(scope="module")
def session(artifact):
    with InferenceSession(artifact, "model") as session:
        yield session


@pytest.fixture(scope="module")
def client(session):
    from starlette.testclient import TestClient

    with TestClient(make_application(session, "net", ServerLimits(body_bytes=20_000, batch=8))) as client:
        yield client


MAIN = "import sys; from nnloom.cli import main; sys.exit(main(sys.argv[1:]))"


def inputs(seed=0):
    return np.random.default_rng(seed).integers(-128, 128, (1, 6, 6, 8), np.int8)


def request(session, x, **fields):
    (info,) = session.get_inputs()
    values = {"name": info.name, "datatype": "INT8", "shape": list(x.shape), "data": x.tolist()}
    return {"inputs": [{**values, **fields}]}


def test_metadata(client, session):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/net/ready").json() == {"name": "net", "ready": True}
    (info,) = session.get_outputs()
    described = client.get("/v2/models/net/versions/1").json()
    assert described["outputs"] == [{"name": info.name, "datatype": "INT8", "shape": [-1, *info.shape[1:]]}]
    (given,) = session.get_inputs()
    assert described["inputs"] == [{"name": given.name, "datatype": "INT8", "shape": [-1, *given.shape[1:]]}]
    assert described["versions"] == ["1"] and described["platform"] == "nnloom"


def test_inference_as_json(client, session):
    x = inputs()
    answer = client.post("/v2/models/net/infer", json={**request(session, x), "id": "seven"}).json()
    (output,) = answer["outputs"]
    want = session.run(x)[output["name"]]
    assert answer["id"] == "seven" and answer["model_name"] == "net" and output["shape"] == list(want.shape)
    np.testing.assert_array_equal(np.array(output["data"], np.int8).reshape(want.shape), want)


def test_batch_and_floating_point(client, session):
    x = np.concatenate([inputs(seed) for seed in range(3)])
    (output,) = client.post("/v2/models/net/infer", json=request(session, x)).json()["outputs"]
    want = session.run(x)[output["name"]]
    assert output["shape"] == list(want.shape) and output["data"] == want.ravel().tolist()
    (info,) = session.get_inputs()
    real = (inputs(1).astype(np.float64) - info.zero_point) * info.scale
    body = request(session, real, datatype="FP32")
    (output,) = client.post("/v2/models/net/infer", json=body).json()["outputs"]
    assert output["data"] == session.run(inputs(1))[output["name"]].ravel().tolist()


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"data": [1, 2]}, 400, "data has 2 values, the shape 288"),
        ({"data": [[1], [2, 3]]}, 400, "not an array"),
        ({"data": ["1"] * 288}, 400, "must be numbers"),
        ({"data": "x"}, 400, "must be a list of numbers"),
        ({"data": [200] * 288}, 400, "does not fit INT8"),
        ({"data": [0.5] * 288}, 400, "does not fit INT8"),
        ({"shape": [1, 6, 6, 4], "data": [1] * 144}, 400, "must have shape"),
        ({"shape": [-1]}, 400, "shape must be a list of integers"),
        ({"shape": 3}, 400, "shape must be a list of integers"),
        ({"datatype": "BYTES"}, 400, "datatype 'BYTES' is none of"),
        ({"name": "other"}, 400, "no input named 'other'"),
        ({"name": None}, 400, "an input needs a name"),
        ({"parameters": {"binary_data_size": 288}}, 400, "give data or binary_data_size, not both"),
        ({"data": [1e39] * 288, "datatype": "FP64"}, 400, "beyond float32"),
    ],
)
def test_bad_tensor(client, session, change, status, message):
    answer = client.post("/v2/models/net/infer", json=request(session, inputs(), **change))
    assert answer.status_code == status and message in answer.json()["error"]


def test_bad_request(client, session):
    def post(path="/v2/models/net/infer", **arguments):
        answer = client.post(path, **arguments)
        return answer.status_code, answer.json()["error"]

    good = request(session, inputs())
    assert post(content=b"{") == (
        400,
        "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
    )
    assert post(json=[]) == (400, "the request needs inputs")
    assert post(json={"inputs": []})[0] == 400
    assert post(json={"inputs": good["inputs"] * 2})[1].endswith("is given twice")
    assert post(json={**good, "outputs": [{"name": "x"}]})[1].startswith("no output named 'x'")
    assert post(json=good, headers={"inference-header-content-length": "x"})[0] == 400
    assert post(content=b"x" * 20_001) == (413, "a request may have 20,000 bytes")
    assert post(content=(b"x" * 10_000 for _ in range(3))) == (413, "a request may have 20,000 bytes")
    assert post("/v2/models/other/infer", json=good)[0] == 404
    assert post("/v2/models/net/versions/2/infer", json=good)[0] == 404
    assert client.get("/v3").json() == {"error": "Not Found"}
    assert client.get("/v2/models/net/infer").status_code == 405
    assert client.post("/v2/models/net/infer", json=good).status_code == 200


def test_full_queue_and_metrics(session):
    from starlette.testclient import TestClient

    entered, leave = threading.Event(), threading.Event()

    class Slow:
        def __getattr__(self, name):
            return getattr(session, name)

        def run(self, values):
            entered.set()
            leave.wait(20)
            return session.run(values)

    body = request(session, inputs())
    with TestClient(make_application(Slow(), "net", ServerLimits(queue=1))) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v2/models/net/infer", json=body)
        assert entered.wait(20)
        refused = client.post("/v2/models/net/infer", json=body)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "nnloom_pending_requests 1.0" in client.get("/metrics").text
        leave.set()
        assert first.result(20).status_code == 200
        metrics = client.get("/metrics").text
    assert 'nnloom_http_requests_total{status="503"} 1.0' in metrics
    assert 'nnloom_http_requests_total{status="200"} 1.0' in metrics
    assert "nnloom_inference_seconds_count 1.0" in metrics and "nnloom_pending_requests 0.0" in metrics
    assert f"nnloom_session_requests_total {float(session.stats().requests)}" in metrics
    assert "nnloom_device_crc_errors_total 0.0" in metrics


def test_client_made_by_others(artifact, session):
    """`nnloom serve` in a process of its own, and Triton's client with JSON and binary tensors."""
    import re
    import signal
    import subprocess
    import sys

    import tritonclient.http as triton

    command = [sys.executable, "-c", MAIN, "serve", str(artifact), "--device", "cpu", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            address = json.loads(process.stdout.readline())["address"]
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
            client = triton.InferenceServerClient(address.removeprefix("http://"))
            assert client.is_server_live() and client.is_model_ready("model")
            (info,), (output,) = session.get_inputs(), session.get_outputs()
            for binary in (True, False):
                x = inputs(9 + binary)
                tensor = triton.InferInput(info.name, list(x.shape), "INT8")
                tensor.set_data_from_numpy(x, binary_data=binary)
                wanted = [triton.InferRequestedOutput(output.name, binary_data=binary)]
                result = client.infer("model", [tensor], outputs=wanted)
                np.testing.assert_array_equal(result.as_numpy(output.name), session.run(x)[output.name])
            client.close()
            process.send_signal(signal.SIGINT)
            last = json.loads(process.communicate(timeout=20)[0])
            assert last["stats"]["requests"] == 2
        finally:
            process.kill()


def test_bad_address(artifact, capsys):
    for arguments, message in (
        (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1:8000"),
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--queue", "0"], "--queue must be at least 1"),
    ):
        assert main(["serve", str(artifact), "--device", "cpu", *arguments]) == 2
        assert message in capsys.readouterr().err
