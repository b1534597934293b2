"""HTTP server of a session: the Open Inference Protocol v2 (REST, with binary tensors), health and metrics.

Protocol: https://github.com/kserve/open-inference-protocol; binary tensors: Triton's `binary_tensor_data` extension.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.errors import InputError, NnloomError, ToolMissingError

from .session import InferenceSession

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["LARGEST_BODY", "QUEUE", "make_application", "serve"]

QUEUE = 64
"""Requests that may wait or run; more are turned away."""
LARGEST_BODY = 16 << 20
"""Bytes of a request."""
VERSION = "1"
"""of the model: an artifact has one"""
DATATYPES = {"int8": "INT8", "float32": "FP32", "int32": "INT32", "uint8": "UINT8", "int64": "INT64"}
NAMES = {datatype: dtype for dtype, datatype in DATATYPES.items()} | {"FP64": "float64"}
HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class _Refusal(Exception):
    """An answer that is not a result."""

    status: HTTPStatus
    message: str


def _describe(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": DATATYPES[info.dtype], "shape": list(info.shape)}


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise _Refusal(HTTPStatus.BAD_REQUEST, message)


def _read_tensor(tensor: Any, binary: memoryview) -> tuple[str, NDArray, int]:
    """(name, values, bytes taken of the binary part)."""
    _expect(isinstance(tensor, dict) and isinstance(tensor.get("name"), str), "an input needs a name")
    name, shape, datatype = tensor["name"], tensor.get("shape"), tensor.get("datatype")
    _expect(
        isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape),
        f"input {name!r}: shape must be a list of integers",
    )
    _expect(datatype in NAMES, f"input {name!r}: datatype {datatype!r} is none of {', '.join(NAMES)}")
    dtype = np.dtype(NAMES[datatype]).newbyteorder("<")
    count = math.prod(shape)
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        _expect(
            isinstance(size, int) and size == count * dtype.itemsize and size <= len(binary),
            f"input {name!r}: binary_data_size must be {count * dtype.itemsize}, and the data must follow the JSON",
        )
        return name, np.frombuffer(binary[:size], dtype).reshape(shape), size
    try:
        data = np.array(tensor.get("data"))
    except ValueError as error:
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"input {name!r}: data is not an array ({error})") from error
    _expect(data.dtype.kind in "if", f"input {name!r}: data must be numbers")
    _expect(data.size == count, f"input {name!r}: data has {data.size} values, the shape {count}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        whole = data.dtype.kind == "i" and bool(np.all((data >= limits.min) & (data <= limits.max)))
        _expect(whole, f"input {name!r}: data does not fit {datatype}")
    return name, data.astype(dtype).reshape(shape), 0


def _read_request(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, NDArray]]:
    """(the JSON part, arrays by input name)."""
    length = len(body)
    if header_length is not None:
        _expect(header_length.isdecimal() and int(header_length) <= length, f"{HEADER_LENGTH} is wrong")
        length = int(header_length)
    try:
        request = json.loads(body[:length])
    except ValueError as error:
        raise _Refusal(HTTPStatus.BAD_REQUEST, f"not JSON ({error})") from error
    _expect(isinstance(request, dict) and isinstance(request.get("inputs"), list), "the request needs inputs")
    binary, arrays = memoryview(body)[length:], {}
    for tensor in request["inputs"]:
        name, values, taken = _read_tensor(tensor, binary)
        _expect(name not in arrays, f"input {name!r} is given twice")
        arrays[name] = values
        binary = binary[taken:]
    _expect(not binary, f"{len(binary)} bytes after the last input")
    return request, arrays


def _wants_binary(thing: dict[str, Any], key: str, default: bool) -> bool:
    parameters = thing.get("parameters")
    return bool(parameters.get(key, default)) if isinstance(parameters, dict) else default


def _write_response(
    model: str, request: dict[str, Any], infos: Iterable[TensorInfo], results: dict[str, NDArray]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers)."""
    by_name = {info.name: info for info in infos}
    default = _wants_binary(request, "binary_data_output", False)
    wanted = request.get("outputs") or [{"name": name} for name in by_name]
    _expect(isinstance(wanted, list) and all(isinstance(o, dict) for o in wanted), "outputs must be a list of objects")
    outputs, blobs = [], []
    for output in wanted:
        info = by_name.get(output.get("name", ""))
        _expect(info is not None, f"no output named {output.get('name')!r} (outputs: {', '.join(by_name)})")
        assert info is not None
        values = results[info.name]
        entry: dict[str, Any] = {"name": info.name, "datatype": DATATYPES[info.dtype], "shape": list(values.shape)}
        if _wants_binary(output, "binary_data", default):
            blob = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = values.ravel().tolist()
        outputs.append(entry)
    answer = {"model_name": model, "model_version": VERSION, "outputs": outputs}
    if isinstance(request.get("id"), str):
        answer["id"] = request["id"]
    head = json.dumps(answer).encode()
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *blobs]), headers


async def _body(request: Request, largest: int) -> bytes:
    """The body, but no more of it than is allowed."""
    refusal = _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {largest:,} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > largest:
        raise refusal
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise refusal
        parts.append(part)
    return b"".join(parts)


class _Server:
    """Handlers of one session."""

    def __init__(self, session: InferenceSession, name: str, *, queue: int, largest_body: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.session, self.name = session, name
        self.queue, self.largest_body = queue, largest_body
        self._places = threading.BoundedSemaphore(queue)
        self.registry = CollectorRegistry()
        self.requests = Counter("nnloom_http_requests", "Inference requests", ["status"], registry=self.registry)
        self.seconds = Histogram("nnloom_inference_seconds", "Time of a request in the session", registry=self.registry)
        self.waiting = Gauge("nnloom_pending_requests", "Requests that wait or run", registry=self.registry)
        self.registry.register(_SessionCollector(session))

    def _check_name(self, request: Request) -> None:
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if name != self.name or version != VERSION:
            message = f"no model {name!r} version {version!r}; there is {self.name!r} {VERSION}"
            raise _Refusal(HTTPStatus.NOT_FOUND, message)

    async def live(self, _: Request) -> Any:
        return {"live": True}

    async def ready(self, _: Request) -> Any:
        return {"ready": True}

    async def server(self, _: Request) -> Any:
        from importlib.metadata import version

        return {"name": "nnloom", "version": version("nnloom"), "extensions": ["binary_tensor_data"]}

    async def model(self, request: Request) -> Any:
        self._check_name(request)
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "nnloom",
            "inputs": [_describe(info) for info in self.session.get_inputs()],
            "outputs": [_describe(info) for info in self.session.get_outputs()],
        }

    async def model_ready(self, request: Request) -> Any:
        self._check_name(request)
        return {"name": self.name, "ready": True}

    async def metrics(self, _: Request) -> Response:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
        from starlette.responses import Response

        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def infer(self, request: Request) -> Response:
        from starlette.responses import Response

        if not self._places.acquire(blocking=False):
            raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.queue} requests are waiting; try again later")
        try:
            with self.waiting.track_inprogress():
                self._check_name(request)
                body = await _body(request, self.largest_body)
                parsed, arrays = _read_request(body, request.headers.get(HEADER_LENGTH))
                with self.seconds.time():
                    results = await asyncio.wrap_future(self.session.run_async(arrays))
                content, headers = _write_response(self.name, parsed, self.session.get_outputs(), results)
        finally:
            self._places.release()
        self.requests.labels("200").inc()
        return Response(content, headers=headers)


class _SessionCollector:
    """`session.stats()` as Prometheus counters."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily

        values = asdict(self._session.stats())
        for prefix, counts in (("nnloom_session_", values), ("nnloom_device_", values.pop("device"))):
            for name, count in counts.items():
                if isinstance(count, int):
                    yield CounterMetricFamily(f"{prefix}{name}", name.replace("_", " "), value=count)


def make_application(
    session: InferenceSession, name: str, *, queue: int = QUEUE, largest_body: int = LARGEST_BODY
) -> Starlette:
    """The ASGI application that serves a session under the model name `name`.

    Parameters
    ----------
    queue
        Requests that may wait or run; more get status 503.
    largest_body
        Bytes of a request; longer ones get status 413.

    Raises
    ------
    ToolMissingError
        If the packages of the extra "serve" are not installed.
    """
    try:
        import prometheus_client  # noqa: F401
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[serve]'") from error
    server = _Server(session, name, queue=queue, largest_body=largest_body)

    def answer(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                result = await handler(request)
            except _Refusal as refusal:
                status, message = refusal.status, refusal.message
            except InputError as error:
                status, message = HTTPStatus.BAD_REQUEST, str(error)
            except NnloomError as error:
                status, message = HTTPStatus.INTERNAL_SERVER_ERROR, str(error)
            else:
                return result if isinstance(result, Response) else JSONResponse(result)
            if handler == server.infer:
                server.requests.labels(str(int(status))).inc()
            headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            return JSONResponse({"error": message}, status, headers)

        return handle

    async def not_found(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse({"error": HTTPStatus(status).phrase}, status)

    versions = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    routes = [
        Route("/v2/health/live", answer(server.live)),
        Route("/v2/health/ready", answer(server.ready)),
        Route("/v2", answer(server.server)),
        Route("/metrics", answer(server.metrics)),
        *(Route(path, answer(server.model)) for path in versions),
        *(Route(f"{path}/ready", answer(server.model_ready)) for path in versions),
        *(Route(f"{path}/infer", answer(server.infer), methods=["POST"]) for path in versions),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: not_found})


def serve(
    session: InferenceSession,
    name: str,
    *,
    host: str,
    port: int,
    queue: int = QUEUE,
    largest_body: int = LARGEST_BODY,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a session over HTTP until SIGINT or SIGTERM; `ready` is called with the address once it listens.

    Raises
    ------
    ToolMissingError
        If the packages of the extra "serve" are not installed.
    InputError
        If the address cannot be used.
    """
    import socket

    application = make_application(session, name, queue=queue, largest_body=largest_body)
    try:
        import uvicorn
    except ImportError as error:
        raise ToolMissingError("uvicorn is not installed; pip install 'nnloom[serve]'") from error
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listener.getsockname()[1]}")
    config = uvicorn.Config(application, log_level="warning", limit_concurrency=None)
    # It has shut down in order when it raises the signal again.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
