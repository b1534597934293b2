"""HTTP server of a session: the Open Inference Protocol v2 (REST, with binary tensors), health and metrics.

A request passes these gates, each with a limit of `ServerLimits`: its connection and headers (`http_connection`), its
body, a place in the queue, parsing (`request_parser`), and its turn in the session. None of them blocks the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from nnloom.arch.errors import InputError, NnloomError, ToolMissingError
from nnloom.arch.serving import ServerLimits

from .inference_protocol import (
    HEADER_LENGTH,
    ParsedRequest,
    Refusal,
    describe,
    encode_json,
    takes_batches,
    write_response,
)
from .inputs import as_arrays, join_batch, split_batch
from .request_parser import RequestParser
from .session import InferenceSession

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["make_application", "serve"]

VERSION = "1"
"""of the model: an artifact has one"""
DISCONNECTED = "disconnected"
"""The "status" of a request in the metrics whose client left before the answer."""
_log = logging.getLogger(__name__)


class _Runner:
    """Runs requests one after the other in a thread, as long as somebody waits for them."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nnloom-serve")
        self._unfinished: set[Future[dict[str, NDArray]]] = set()

    def submit(self, request: ParsedRequest) -> tuple[Future[dict[str, NDArray]], threading.Event]:
        """(the results, what ends the request after its current inference)."""
        dropped = threading.Event()
        future = self._thread.submit(self._run, request, dropped)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future, dropped

    def _run(self, request: ParsedRequest, dropped: threading.Event) -> dict[str, NDArray]:
        infos = self._session.get_inputs()
        cases = split_batch(infos, as_arrays(infos, request.arrays))
        results: list[dict[str, NDArray]] = []
        self._session.reset_state()  # a request is a whole sequence: what others sent does not show
        for case in cases:
            if dropped.is_set():
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "dropped")
            results.append(self._session.run(case))
        if len(results) == 1:
            return results[0]
        return {name: join_batch([result[name] for result in results]) for name in results[0]}

    def close(self, seconds: float) -> bool:
        """Take no more; whether the inference that runs, if any, ended in this time."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        return not wait(tuple(self._unfinished), timeout=max(seconds, 0)).not_done


class _Server:
    """Handlers of one session."""

    def __init__(self, session: InferenceSession, name: str, limits: ServerLimits) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.session, self.name, self.limits = session, name, limits
        self.runner = _Runner(session)
        self.batches = takes_batches(session.get_inputs(), session.get_outputs())
        self._parser = RequestParser(session.get_inputs(), session.get_outputs(), largest_batch=limits.batch)
        self._places = threading.BoundedSemaphore(limits.queue)
        self._held = 0
        self._bodies: set[asyncio.Timeout] = set()
        self._ending = False
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "nnloom_http_requests",
            f"Inference requests by status of the answer, {DISCONNECTED!r} if the client left first",
            ["status"],
            registry=self.registry,
        )
        self.errors = Counter(
            "nnloom_http_errors", "Other requests that were refused", ["status"], registry=self.registry
        )
        self.connections = Counter(
            "nnloom_http_connections_refused",
            "Connections that were given up, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.seconds = Histogram("nnloom_inference_seconds", "Time of a request in the session", registry=self.registry)
        self.waiting = Gauge("nnloom_pending_requests", "Requests that wait or run", registry=self.registry)
        self.registry.register(_SessionCollector(session))

    def end(self) -> None:
        """Requests that are not here yet are turned away; those that wait or run are finished."""
        self._ending = True
        for timeout in self._bodies:
            timeout.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Release what the requests used, except the session."""
        await self._parser.close()

    def _check_name(self, request: Request) -> None:
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if name != self.name or version != VERSION:
            message = f"no model {name[:80]!r} version {version[:80]!r}; there is {self.name!r} {VERSION}"
            raise Refusal(HTTPStatus.NOT_FOUND, message)

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
            "inputs": [describe(info, self.batches) for info in self.session.get_inputs()],
            "outputs": [describe(info, self.batches) for info in self.session.get_outputs()],
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

        self._check_name(request)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding {encoding[:80]!r} is not supported")
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held + size > self.limits.held_bytes:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at once; try again later")
            self._held += size
            held += size

        try:
            body = await self._read_body(request, hold)
            content, headers = await self._answer(request, body)
        finally:
            self._held -= held
        return Response(content, headers=headers)

    async def _read_body(self, request: Request, hold: Callable[[int], None]) -> bytes:
        """The body, but no more of it than is allowed, and no longer."""
        largest = self.limits.body_bytes
        refusal = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {largest:,} bytes")
        declared = request.headers.get("content-length", "0")
        if len(declared) > 20 or (declared.isdecimal() and int(declared) > largest):
            raise refusal
        parts, size = [], 0
        try:
            async with asyncio.timeout(0 if self._ending else self.limits.body_seconds) as timeout:
                self._bodies.add(timeout)
                try:
                    async for part in request.stream():
                        hold(len(part))
                        size += len(part)
                        if size > largest:
                            raise refusal
                        parts.append(part)
                finally:
                    self._bodies.discard(timeout)
        except TimeoutError as error:
            if self._ending:
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server ends") from error
            message = f"the body did not come within {self.limits.body_seconds:g} s"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, message) from error
        return b"".join(parts)

    async def _answer(self, request: Request, body: bytes) -> tuple[bytes, dict[str, str]]:
        """(body, headers) of the answer to a request that is here as a whole."""
        if not self._places.acquire(blocking=False):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.limits.queue} requests are waiting; try again later")
        self.waiting.inc()
        running: Future[dict[str, NDArray]] | None = None

        def leave(_: object = None) -> None:
            self.waiting.dec()
            self._places.release()

        try:
            async with asyncio.timeout(self.limits.seconds):
                parsed = await self._parser.parse(body, request.headers.get(HEADER_LENGTH))
                with self.seconds.time():
                    running, dropped = self.runner.submit(parsed)
                    # What runs cannot be stopped: its place is free when it ends.
                    running.add_done_callback(leave)
                    try:
                        results = await self._unless_disconnected(request, asyncio.wrap_future(running))
                    finally:
                        dropped.set()
                return await asyncio.to_thread(
                    write_response, self.name, VERSION, parsed, self.session.get_outputs(), results
                )
        except TimeoutError as error:
            message = f"no result within {self.limits.seconds:g} s"
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, message) from error
        finally:
            if running is None:
                leave()

    async def _unless_disconnected(self, request: Request, work: asyncio.Future[Any]) -> Any:
        """The result; or ClientDisconnect, if nobody waits for it any more."""
        from starlette.requests import ClientDisconnect

        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                continue

        watch = asyncio.ensure_future(disconnected())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return work.result()
        finally:
            watch.cancel()
            work.cancel()


class _SessionCollector:
    """`session.stats()` as Prometheus counters, and whether the device answers."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        values = asdict(self._session.stats())
        for prefix, counts in (("nnloom_session_", values), ("nnloom_device_", values.pop("device"))):
            for name, count in counts.items():
                if isinstance(count, int):
                    yield CounterMetricFamily(f"{prefix}{name}", name.replace("_", " "), value=count)
        up = GaugeMetricFamily("nnloom_device_up", "0 while the device fails and the CPU answers", labels=["device"])
        up.add_metric([self._session.device], float(self._session.device_up))
        yield up


def make_application(session: InferenceSession, name: str, limits: ServerLimits | None = None) -> Starlette:
    """The ASGI application that serves a session under the model name `name`.

    Its server must see to the limits of connections and headers; `serve` does.

    Raises
    ------
    ToolMissingError
        If the packages of the extra "serve" are not installed.
    """
    try:
        import prometheus_client  # noqa: F401
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[serve]'") from error
    server = _Server(session, name, limits or ServerLimits())

    def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        return Response(encode_json(value), status, headers, "application/json")

    def answer(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        count = server.requests if handler == server.infer else server.errors

        async def handle(request: Request) -> Response:
            try:
                result = await handler(request)
            except Refusal as refusal:
                status, message = refusal.status, refusal.message
            except InputError as error:
                status, message = HTTPStatus.BAD_REQUEST, str(error)
            except NnloomError as error:
                status, message = HTTPStatus.INTERNAL_SERVER_ERROR, str(error)
            except ClientDisconnect:
                count.labels(DISCONNECTED).inc()
                return respond({"error": "nobody reads this"}, 499)
            except asyncio.CancelledError:  # the time of a graceful end is over
                status, message = HTTPStatus.SERVICE_UNAVAILABLE, "the server ends"
            except Exception:
                _log.exception("%s %s", request.method, request.url.path)
                status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log tells"
            else:
                if count is server.requests:
                    count.labels("200").inc()
                return result if isinstance(result, Response) else respond(result)
            count.labels(str(int(status))).inc()
            headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            return respond({"error": message}, status, headers)

        return handle

    async def not_found(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        server.errors.labels(str(error.status_code)).inc()
        return respond({"error": HTTPStatus(error.status_code).phrase}, error.status_code, dict(error.headers or {}))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        yield
        await server.close()

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
    application = Starlette(routes=routes, exception_handlers={HTTPException: not_found}, lifespan=lifespan)
    application.state.server = server
    return application


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does: in order, and the session is closed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(
    session: InferenceSession,
    name: str,
    *,
    host: str,
    port: int,
    limits: ServerLimits | None = None,
    ready: Callable[[str], None] = lambda _: None,
) -> bool:
    """Serve a session over HTTP until SIGINT or SIGTERM; `ready` is called with the address once it listens.

    Returns
    -------
    bool
        False if an inference still ran `limits.grace_seconds` after the signal; closing the session waits for it.

    Raises
    ------
    ToolMissingError
        If the packages of the extra "serve" are not installed.
    InputError
        If the address cannot be used.
    """
    import socket
    import time

    limits = limits or ServerLimits()
    application = make_application(session, name, limits)
    try:
        import uvicorn

        from .http_connection import LimitedServer, connection_class
    except ImportError as error:
        raise ToolMissingError(f"{error.name} is not installed; pip install 'nnloom[serve]'") from error
    server: _Server = application.state.server
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from error
    config = uvicorn.Config(
        application,
        http=connection_class(limits, lambda reason: server.connections.labels(reason).inc()),
        ws="none",
        log_level="error",
        proxy_headers=False,
        timeout_graceful_shutdown=limits.grace_seconds,  # type: ignore[arg-type]
    )
    ended = time.monotonic()

    def ending() -> None:
        nonlocal ended
        ended = time.monotonic()
        server.end()

    shown = f"[{host}]" if ":" in host else host
    web = LimitedServer(config, ending)
    # Signals are uvicorn's before the announcement, which is when others begin to send them. It raises them again once
    # it has shut down.
    with listener, contextlib.suppress(KeyboardInterrupt), _sigterm_as_interrupt(), web.capture_signals():
        ready(f"http://{shown}:{listener.getsockname()[1]}")
        web.run(sockets=[listener])
    return server.runner.close(ended + limits.grace_seconds - time.monotonic())
