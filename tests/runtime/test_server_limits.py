"""`nnloom serve` as a process, attacked over sockets: hostile requests, slow clients, load, and signals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from nnloom.arch.errors import ConfigError
from nnloom.arch.serving import ServerLimits
from nnloom.compiler import compile
from nnloom.runtime import InferenceSession
from nnloom.runtime.server import serve
from tests.tflite_models import ModelWriter

MAIN = "import sys; from nnloom.cli import main; sys.exit(main(sys.argv[1:]))"
SHAPE = (1, 6, 6, 8)
COUNT = 288
INFER = "/v2/models/net/infer"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    m = ModelWriter(5)
    x = m.input(SHAPE)
    (folder / "model.tflite").write_bytes(m.finish(m.conv(x, 8)))
    return compile(folder / "model.tflite", output=folder / "artifact").path


@pytest.fixture(scope="module")
def session(artifact):
    with InferenceSession(artifact, "cpu") as session:
        yield session


@dataclass
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen
    port: int
    log: str

    def connect(self, seconds=20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def exchange(self, data: bytes, seconds=20.0) -> tuple[int, dict[str, str], bytes]:
        """Send bytes; (status, headers, body) of the answer."""
        with self.connect(seconds) as line:
            line.sendall(data)
            response = http.client.HTTPResponse(line)
            response.begin()
            headers = {key.lower(): value for key, value in response.getheaders()}
            return response.status, headers, response.read()

    def metric(self, name: str) -> float:
        text = self.exchange(request_bytes("GET", "/metrics"))[2].decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def serving(artifact, folder, *options, main=MAIN):
    log = folder / f"log-{time.monotonic_ns()}"
    command = [sys.executable, "-c", main, "serve", str(artifact), "--name", "net", "--port", "0", "--json"]
    with (
        log.open("w") as errors,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line, log.read_text()
            yield Served(process, int(json.loads(line)["address"].rpartition(":")[2]), str(log))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    options = ("--device", "cpu", "--header-seconds", "1", "--body-seconds", "1.5", "--max-batch", "16")
    with serving(artifact, folder, *options) as served:
        yield served
        assert served.process.poll() is None


def request_bytes(method, path, body=b"", headers=(), *, version="1.1"):
    lines = [f"{method} {path} HTTP/{version}", "host: x", *headers]
    if body and not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def post(value, headers=(), path=INFER):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return request_bytes("POST", path, body, headers)


def tensor(name="tensor_0", **changes):
    values = {"name": name, "datatype": "INT8", "shape": list(SHAPE), "data": [1] * COUNT}
    return {key: value for key, value in {**values, **changes}.items() if value is not ...}


def inputs(**changes):
    return post({"inputs": [tensor(**changes)]})


def raw(text):
    return post(text.encode("utf-8", "surrogatepass"))


def nested(depth, inner=1):
    value = inner
    for _ in range(depth):
        value = [value]
    return value


def lengths(text):
    """A tensor whose JSON is written by hand, for what json.dumps does not write."""
    start = '{"inputs":[{"name":"tensor_0","datatype":"INT8","shape":[1,6,6,8],'
    return raw(start + text + "}]}")


BINARY = {"binary_data_size": COUNT}
HEAD = json.dumps({"inputs": [tensor(data=..., parameters=BINARY)]}).encode()


def binary(blob=b"\1" * COUNT, head=HEAD, length=None):
    return post(head + blob, [f"inference-header-content-length: {len(head) if length is None else length}"])


GOOD = inputs()
HOSTILE = {
    # JSON
    "empty body": post(b""),
    "no JSON": raw("{"),
    "half a JSON": GOOD[:-20] + b" " * 20,
    "not UTF-8": post(b'{"inputs": "\xff\xfe"}'),
    "byte order mark": post(b"\xef\xbb\xbf{}"),
    "UTF-16": post('{"inputs": []}'.encode("utf-16")),
    "null bytes": post(b"\0" * 100),
    "a list": raw("[]"),
    "a number": raw("1"),
    "a string": raw('"inputs"'),
    "null": raw("null"),
    "nested 100,000 deep": raw("[" * 100_000),
    "nested objects": raw('{"inputs":' * 50_000),
    "closed nesting": raw("[" * 50_000 + "]" * 50_000),
    "NaN": lengths('"data":[NaN]'),
    "Infinity": lengths('"data":[-Infinity]'),
    "5,000 digits": lengths(f'"data":[{"9" * 5000}]'),
    "100,000 digits": lengths(f'"data":[{"9" * 100_000}]'),
    "exponent": lengths('"data":[1e999999999]'),
    "two documents": raw("{}{}"),
    "comment": raw("/* */ {}"),
    # inputs
    "no inputs": raw("{}"),
    "inputs null": raw('{"inputs": null}'),
    "inputs object": raw('{"inputs": {"tensor_0": []}}'),
    "inputs empty": raw('{"inputs": []}'),
    "input null": raw('{"inputs": [null]}'),
    "input string": raw('{"inputs": ["tensor_0"]}'),
    "input twice": post({"inputs": [tensor(), tensor()]}),
    "10,000 inputs": post({"inputs": [{"name": f"n{i}"} for i in range(10_000)]}),
    "unknown input besides": post({"inputs": [tensor(), tensor("x")]}),
    "id of a number": post({"id": 1, "inputs": [tensor()]}),
    "id of a list": post({"id": [], "inputs": [tensor()]}),
    # name
    "name missing": inputs(name=...),
    "name null": inputs(name=None),
    "name list": inputs(name=["tensor_0"]),
    "name empty": inputs(name=""),
    "name of a megabyte": inputs(name="x" * 1_000_000),
    "name with a lone surrogate": raw('{"inputs": [{"name": "\\ud800"}]}'),
    "name with controls": inputs(name="\x00\x1b[31m\r\n"),
    # datatype
    "datatype missing": inputs(datatype=...),
    "datatype a list": inputs(datatype=["INT8"]),
    "datatype an object": inputs(datatype={"a": 1}),
    "datatype a number": inputs(datatype=8),
    "datatype null": inputs(datatype=None),
    "datatype lower case": inputs(datatype="int8"),
    "datatype BYTES": inputs(datatype="BYTES"),
    "datatype object": inputs(datatype="O"),
    "datatype other than the input's": inputs(datatype="INT64"),
    # shape
    "shape missing": inputs(shape=...),
    "shape null": inputs(shape=None),
    "shape number": inputs(shape=288),
    "shape string": inputs(shape="1,6,6,8"),
    "shape empty": inputs(shape=[], data=[1]),
    "70 dimensions": inputs(shape=[1] * 66 + list(SHAPE)),
    "70 dimensions of one": inputs(shape=[1] * 70, data=[1]),
    "100,000 dimensions": inputs(shape=[1] * 100_000, data=[1]),
    "negative dimension": inputs(shape=[-1, 6, 6, 8]),
    "two negative dimensions": inputs(shape=[1, -6, -6, 8]),
    "dimension of zero": inputs(shape=[0, 6, 6, 8], data=[]),
    "zero and huge": inputs(shape=[0, 2**62, 2**62, 2**62], data=[]),
    "huge dimension": inputs(shape=[2**62, 6, 6, 8]),
    "dimension beyond 64 bits": inputs(shape=[10**30, 6, 6, 8]),
    "dimension of 4,000 digits": inputs(shape=[10**4000, 6, 6, 8]),
    "floating dimension": inputs(shape=[1.0, 6, 6, 8]),
    "boolean dimension": inputs(shape=[True, 6, 6, 8]),
    "string dimension": inputs(shape=["1", 6, 6, 8]),
    "nested dimension": inputs(shape=[[1], 6, 6, 8]),
    "permuted": inputs(shape=[1, 8, 6, 6]),
    "flat": inputs(shape=[COUNT]),
    "batch beyond the limit": inputs(shape=[17, 6, 6, 8], data=[1] * (17 * COUNT)),
    # data
    "data missing": inputs(data=...),
    "data null": inputs(data=None),
    "data string": inputs(data="x" * COUNT),
    "data number": inputs(data=1),
    "data object": inputs(data={"0": 1}),
    "data empty": inputs(data=[]),
    "one value short": inputs(data=[1] * (COUNT - 1)),
    "one value more": inputs(data=[1] * (COUNT + 1)),
    "strings": inputs(data=["1"] * COUNT),
    "long strings": inputs(data=["x" * 100_000, *["y"] * (COUNT - 1)]),
    "booleans": inputs(data=[True] * COUNT),
    "nulls": inputs(data=[None] * COUNT),
    "objects": inputs(data=[{}] * COUNT),
    "ragged": inputs(data=[[1] * 100, [1] * 188]),
    "numbers and lists": inputs(data=[1, [2] * 287]),
    "lists and numbers": inputs(data=[[2] * 287, 1]),
    "nested 70 deep": inputs(data=nested(70)),
    "nested 900 deep": inputs(data=nested(900)),
    "empty lists": inputs(data=[[] for _ in range(COUNT)]),
    "fractions": inputs(data=[0.5] * COUNT),
    "129": inputs(data=[129] + [1] * (COUNT - 1)),
    "beyond 64 bits": inputs(data=[2**64] * COUNT),
    "beyond float64": inputs(datatype="FP64", data=[10**400] * COUNT),
    "beyond float32": inputs(datatype="FP64", data=[1e300] * COUNT),
    "infinite as FP32": inputs(datatype="FP32", data=[1e300] * COUNT),
    # parameters
    "unknown parameter": post({"parameters": {"priority": 1}, "inputs": [tensor()]}),
    "unknown input parameter": inputs(parameters={"shared_memory_region": "x"}),
    "parameters a list": inputs(parameters=[1]),
    "parameters a string": post({"parameters": "x", "inputs": [tensor()]}),
    "binary_data_output a string": post({"parameters": {"binary_data_output": "no"}, "inputs": [tensor()]}),
    "output classification": post(
        {"inputs": [tensor()], "outputs": [{"name": "x", "parameters": {"classification": 3}}]}
    ),
    # outputs
    "outputs a string": post({"inputs": [tensor()], "outputs": "x"}),
    "outputs an object": post({"inputs": [tensor()], "outputs": {"name": "x"}}),
    "output null": post({"inputs": [tensor()], "outputs": [None]}),
    "output without a name": post({"inputs": [tensor()], "outputs": [{}]}),
    "output name a list": post({"inputs": [tensor()], "outputs": [{"name": []}]}),
    "output unknown": post({"inputs": [tensor()], "outputs": [{"name": "x"}]}),
    # binary tensors
    "binary short": binary(b"\1" * (COUNT - 1)),
    "binary long": binary(b"\1" * (COUNT + 1)),
    "binary without data": binary(b""),
    "binary and data": post({"inputs": [tensor(parameters=BINARY)]}),
    "binary size negative": binary(head=HEAD.replace(b"288", b"-288")),
    "binary size a string": binary(head=HEAD.replace(b"288", b'"288"')),
    "binary size huge": binary(head=HEAD.replace(b"288", b"9" * 30)),
    "binary size a boolean": binary(head=HEAD.replace(b"288", b"true")),
    "binary floats that are no numbers": binary(
        b"\xff" * 4 * COUNT,
        json.dumps(
            {"inputs": [tensor(data=..., datatype="FP32", parameters={"binary_data_size": 4 * COUNT})]}
        ).encode(),
    ),
    "header length beyond": binary(length=10**6),
    "header length of 5,000 digits": binary(length="9" * 5000),
    "header length negative": binary(length=-1),
    "header length a word": binary(length="all"),
    "header length not ASCII": binary(length="\xb2"),
    "header length of zero": binary(length=0),
    # HTTP
    "other model": post({"inputs": [tensor()]}, path="/v2/models/other/infer"),
    "other version": post({"inputs": [tensor()]}, path="/v2/models/net/versions/2/infer"),
    "model of 8,000 characters": post({}, path=f"/v2/models/{'x' * 8000}/infer"),
    "model name in bytes": post({}, path="/v2/models/%ff%fe%00/infer"),
    "path traversal": request_bytes("GET", "/v2/models/../../etc/passwd"),
    "no such path": request_bytes("GET", "/"),
    "GET of infer": request_bytes("GET", INFER),
    "DELETE of the model": request_bytes("DELETE", "/v2/models/net"),
    "unknown method": request_bytes("BREW", INFER),
    "compressed": post(b"\x1f\x8b" + b"\0" * 30, ["content-encoding: gzip"]),
    "too long": post(b"x", ["content-length: 99999999999"]),
    "content-length of 30 digits": post(b"x", [f"content-length: {'9' * 30}"]),
    "content-length a word": post(b"x", ["content-length: many"]),
    "content-length negative": post(b"x", ["content-length: -5"]),
    "two content-lengths": post(b"xx", ["content-length: 1", "content-length: 2"]),
    "chunk of a wrong size": post(b"zz\r\nx\r\n", ["transfer-encoding: chunked"]),
    "unknown transfer-encoding": post(b"x", ["transfer-encoding: magic"]),
    "header without a colon": request_bytes("GET", "/v2", headers=["nonsense"]),
    "no host": b"GET /v2/x HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP without a version": b"GET /v2\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n",
    "binary noise": bytes(range(256)) + b"\r\n\r\n",
}


def test_hostile_requests(served, session):
    """Each gets a JSON error with a status of the client's fault, and the next right request a right answer."""
    assert len(HOSTILE) >= 95
    before = served.metric("nnloom_http_requests_total{") + served.metric("nnloom_http_errors_total{")
    refused = served.metric("nnloom_http_connections_refused_total{")
    wrong = []
    for name, data in HOSTILE.items():
        status, headers, body = served.exchange(data)
        message = json.loads(body).get("error") if body.startswith(b"{") else None
        right = 400 <= status < 500 and headers["content-type"] == "application/json"
        if not right or not isinstance(message, str) or not 0 < len(message) < 400 or not message.isprintable():
            wrong.append((name, status, body[:200]))
    assert not wrong
    counted = served.metric("nnloom_http_requests_total{") + served.metric("nnloom_http_errors_total{")
    # Each is in one of the metrics; those that stop being HTTP in the body are in two.
    counted += served.metric("nnloom_http_connections_refused_total{")
    assert len(HOSTILE) <= counted - before - refused < len(HOSTILE) + 5
    assert served.metric('nnloom_http_requests_total{status="5') == 0
    status, _, body = served.exchange(GOOD)
    assert status == 200
    want = session.run(np.ones(SHAPE, np.int8))
    assert json.loads(body)["outputs"][0]["data"] == next(iter(want.values())).ravel().tolist()
    with open(served.log) as log:
        assert "Traceback" not in log.read()


def test_slow_clients_hold_nothing(served):
    """More clients than places, of each slow kind; a right request is answered at once, and all of them are ended."""
    head = post(b"x" * 10, ["content-length: 1000"])
    kinds = {
        "headers": b"POST /v2/models/net/infer HTTP/1.1\r\nhost: x\r\n",
        "body": head,
        "body of a request that is answered": head.replace(INFER.encode(), b"/v2/models/other/infer"),
        "nothing": b"",
    }
    lines = [served.connect() for _ in range(20) for _ in kinds]
    try:
        for line, data in zip(lines, [*kinds.values()] * 20, strict=True):
            line.sendall(data)
        begin = time.monotonic()
        for _ in range(3):
            assert served.exchange(GOOD)[0] == 200
        assert time.monotonic() - begin < 1.5
        end = time.monotonic() + 10
        statuses = []
        for line in lines:
            # Drops of data do not keep a connection: a byte every tenth of a second.
            line.settimeout(0.1)
            received = b""
            while time.monotonic() < end:
                try:
                    part = line.recv(10_000)
                except TimeoutError:
                    line.sendall(b"y")
                    continue
                except ConnectionError:
                    break
                received += part
                if not part:
                    break
            else:
                pytest.fail("a slow connection is still open")
            statuses.append(received[9:12])
    finally:
        for line in lines:
            line.close()
    assert [*map(statuses.count, (b"408", b"404", b""))] == [20, 20, 40]
    assert served.metric('nnloom_http_connections_refused_total{reason="headers"}') >= 40
    assert served.metric('nnloom_http_connections_refused_total{reason="body"}') >= 40
    assert served.metric('nnloom_http_requests_total{status="408"}') >= 20


def test_large_bodies_do_not_stop_the_others(served):
    """16 MB of JSON takes a second to parse; meanwhile short requests are answered as ever."""
    size = ServerLimits().body_bytes - 1000
    bodies = [b"[" + b"1," * (size // 2) + b"1]", b'{"inputs":[' + b"[]," * (size // 3 - 10) + b"[]]}"]
    longest = 0.0
    with ThreadPoolExecutor(2) as pool:
        large = [pool.submit(served.exchange, post(body), 60) for body in bodies]
        while not all(future.done() for future in large):
            begin = time.monotonic()
            assert served.exchange(GOOD)[0] == 200
            longest = max(longest, time.monotonic() - begin)
        assert [future.result()[0] for future in large] == [400, 400]
    assert longest < 1.0


def test_large_right_requests(served, session):
    """A batch whose JSON goes to the parser's process, and answers of several pieces."""
    x = np.random.default_rng(1).integers(-128, 128, (16, *SHAPE[1:]), np.int8)
    (info,) = session.get_inputs()
    body = json.dumps({"inputs": [tensor(shape=list(x.shape), datatype="FP64", data=(x * float(info.scale)).tolist())]})
    body += " " * 100_000
    want = session.run((x * float(info.scale)).astype(np.float64))
    for _ in range(2):
        status, _, answer = served.exchange(post(body.encode()))
        (output,) = json.loads(answer)["outputs"]
        assert status == 200 and output["data"] == want[output["name"]].ravel().tolist()


def test_load(served, session):
    """Sixteen clients with batches in JSON and binary, some that leave at once: every answer is the right one."""
    rng = np.random.default_rng(7)
    cases = [rng.integers(-128, 128, (n, *SHAPE[1:]), np.int8) for n in (1, 1, 2, 5)]
    (output,) = session.get_outputs()
    wants = [session.run(x)[output.name].tobytes() for x in cases]
    right = [0] * 16

    def client(index):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        for turn in range(20):
            which = (index + turn) % len(cases)
            x = cases[which]
            if (index, turn) in {(3, 5), (7, 9), (11, 2)}:
                with served.connect() as line:  # leaves without its answer
                    line.sendall(GOOD)
            if turn % 2:
                head = {"inputs": [tensor(shape=list(x.shape), data=..., parameters={"binary_data_size": x.size})]}
                head = json.dumps({**head, "parameters": {"binary_data_output": True}}).encode()
                connection.request(
                    "POST", INFER, head + x.tobytes(), {"inference-header-content-length": str(len(head))}
                )
                answer = connection.getresponse()
                body = answer.read()
                got = body[int(answer.headers["inference-header-content-length"]) :]
            else:
                body = json.dumps({"inputs": [tensor(shape=list(x.shape), data=x.ravel().tolist())]})
                connection.request("POST", INFER, body)
                answer = connection.getresponse()
                got = np.array(json.loads(answer.read())["outputs"][0]["data"], np.int8).tobytes()
            assert answer.status == 200
            right[index] += got == wants[which]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert right == [20] * 16
    assert served.metric("nnloom_pending_requests ") == 0


def test_connections_are_limited(artifact, tmp_path):
    with serving(artifact, tmp_path, "--device", "cpu", "--max-connections", "4") as served:
        idle = [served.connect() for _ in range(4)]
        assert served.exchange(GOOD)[0] == 200  # in the place of the oldest
        assert idle[0].recv(1) == b""
        busy = [served.connect() for _ in range(4)]
        for line in busy:
            line.sendall(post(b"", ["content-length: 5"]))
        time.sleep(0.3)
        status, headers, body = served.exchange(GOOD)
        assert status == 503 and headers["connection"] == "close" and "4 connections" in json.loads(body)["error"]
        for line in [*idle, *busy]:
            line.close()
        assert served.exchange(GOOD)[0] == 200


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_half_a_request_does_not_keep_it(artifact, tmp_path, which):
    """Half-sent headers and bodies, idle connections and unread answers; the end comes at once, in order."""
    with (
        serving(artifact, tmp_path, "--device", "cpu") as served,
        served.connect() as first,
        served.connect() as second,
    ):
        assert served.exchange(GOOD)[0] == 200
        first.sendall(b"POST /v2")
        second.sendall(post(b"x" * 10, ["content-length: 1000"]))
        time.sleep(0.3)
        begin = time.monotonic()
        served.process.send_signal(which)
        output = served.process.communicate(timeout=20)[0]
        assert time.monotonic() - begin < 5
        assert served.process.returncode == 0 and json.loads(output)["stats"]["requests"] == 1
        assert first.recv(100) == b"" and b" 503 " in second.recv(10_000)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.filterwarnings("error")
def test_a_signal_right_after_the_announcement_ends_it_in_order(session, which):
    addresses = []

    def ready(address):
        addresses.append(address)
        signal.raise_signal(which)

    assert serve(session, "net", host="127.0.0.1", port=0, ready=ready)
    port = int(addresses[0].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_an_endless_inference_does_not_keep_it(artifact, tmp_path):
    """The exit code is 1, after the time that was given."""
    endless = "import time; from nnloom.runtime import InferenceSession as S; S.run = lambda *_: time.sleep(60); "
    with serving(artifact, tmp_path, "--device", "cpu", "--grace-seconds", "0.5", main=endless + MAIN) as served:
        with served.connect() as line:
            line.sendall(GOOD)
            time.sleep(0.5)
            begin = time.monotonic()
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(20) == 1
        assert time.monotonic() - begin < 5
        with open(served.log) as log:
            assert (
                log.read().splitlines()[-1].endswith("an inference still ran 0.5 s after the signal; ended without it")
            )


def test_limits():
    assert ServerLimits(queue=1, grace_seconds=0).queue == 1
    for values, message in (
        ({"queue": 0}, "--queue must be at least 1, not 0"),
        ({"batch": -1}, "--max-batch must be at least 1, not -1"),
        ({"seconds": float("nan")}, "--max-seconds must be at least 0.001, not nan"),
        ({"header_seconds": 0}, "--header-seconds must be at least 0.001, not 0"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}$"):
            ServerLimits(**values)


class Slow:
    """A session whose inferences wait for a word."""

    def __init__(self, session):
        self.session, self.entered, self.leave = session, threading.Event(), threading.Event()
        self.runs = 0

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, values):
        self.runs += 1
        self.entered.set()
        assert self.leave.wait(20)
        return self.session.run(values)


def test_time_limit_and_its_place(session):
    """Status 504 in time; what runs keeps its place until it ends, and the rest of its batch does not run."""
    from starlette.testclient import TestClient

    from nnloom.runtime.server import make_application

    slow = Slow(session)
    body = {"inputs": [tensor(shape=[3, *SHAPE[1:]], data=[1] * 3 * COUNT)]}
    with TestClient(make_application(slow, "net", ServerLimits(queue=1, seconds=0.3))) as client:
        answer = client.post(INFER, json=body)
        assert answer.status_code == 504 and answer.json() == {"error": "no result within 0.3 s"}
        assert client.post(INFER, json=body).status_code == 503
        slow.leave.set()
        end = time.monotonic() + 20
        while client.post(INFER, json=body).status_code != 200:
            assert time.monotonic() < end
        assert slow.runs == 1 + 3
        assert 'nnloom_http_requests_total{status="504"} 1.0' in client.get("/metrics").text


def test_an_error_of_ours_is_json_and_counted(session):
    from starlette.testclient import TestClient

    from nnloom.runtime.server import make_application

    class Broken(Slow):
        def run(self, values):
            raise ZeroDivisionError("secret")

    with TestClient(make_application(Broken(session), "net"), raise_server_exceptions=False) as client:
        answer = client.post(INFER, json={"inputs": [tensor()]})
        assert answer.status_code == 500 and answer.json() == {"error": "internal error; the server's log tells"}
        metrics = client.get("/metrics").text
    assert 'nnloom_http_requests_total{status="500"} 1.0' in metrics and "nnloom_pending_requests 0.0" in metrics


def test_device_gauge(session):
    from starlette.testclient import TestClient

    from nnloom.runtime.server import make_application

    class Down(Slow):
        device_up = False
        device = "serial:/dev/ttyUSB0"

    for given, line in (
        (session, 'nnloom_device_up{device="cpu"} 1.0'),
        (Down(session), 'nnloom_device_up{device="serial:/dev/ttyUSB0"} 0.0'),
    ):
        with TestClient(make_application(given, "net")) as client:
            assert line in client.get("/metrics").text


def test_session_tells_whether_its_device_is_up(artifact):
    from nnloom.arch.errors import DeviceError
    from nnloom.runtime import DeviceWarning
    from nnloom.runtime.devices.model import ModelDevice

    class Failing(ModelDevice):
        broken = False
        simulated = False  # as a board: the CPU answers for it

        def run_region(self, region, inputs, **options):
            if self.broken:
                raise DeviceError("gone")
            return super().run_region(region, inputs, **options)

    device = Failing()
    with InferenceSession(artifact, device) as session:
        x = np.ones(SHAPE, np.int8)
        session.run(x)
        assert session.device_up
        device.broken = True
        with pytest.warns(DeviceWarning):
            session.run(x)
        assert not session.device_up
