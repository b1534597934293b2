"""Connections of `nnloom serve`: uvicorn's, with the limits it has not.

uvicorn waits for ever for the headers of a request and for the rest of a body that nobody reads; and answers in plain
text where a request is not HTTP. Imported by `runtime.server.serve` only, because uvicorn is an extra.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nnloom.arch.serving import ServerLimits

from .inference_protocol import encode_json

__all__ = ["LimitedServer", "connection_class"]


LINGER_SECONDS = 1.0
"""Time that a client has to read the last answer of a connection."""


def connection_class(limits: ServerLimits, refused: Callable[[str], None]) -> type[H11Protocol]:
    """The class of connections with these limits; `refused` is called with the reason when one is given up."""
    open_connections: dict[LimitedConnection, None] = {}  # the oldest first

    class LimitedConnection(H11Protocol):
        """One deadline at a time: for the next request's headers, or for what has been sent to be read."""

        _deadline: asyncio.TimerHandle | None = None
        _writable: asyncio.TimerHandle | None = None
        _answered = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            idle = next((c for c in open_connections if c._idle()), None)
            open_connections[self] = None
            if len(open_connections) > limits.connections:
                refused("connections")
                if idle is None:
                    self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{limits.connections} connections are open")
                    return
                del open_connections[idle]
                idle._give_up()
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            open_connections.pop(self, None)
            for timer in (self._deadline, self._writable):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_headers(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(limits.header_seconds, self._too_late)

        def _too_late(self) -> None:
            if self.conn.their_state is h11.SEND_BODY:
                refused("body")
            elif self.cycle is None or self.conn.trailing_data[0]:
                refused("headers")
            self._give_up()

        def _give_up(self) -> None:
            if not self.transport.is_closing():
                self.transport.close()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)  # what has been sent may be unread

        def data_received(self, data: bytes) -> None:
            if self._answered:
                return
            super().data_received(data)
            if not self._idle() and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def on_response_complete(self) -> None:
            # Also the time in which the rest of a refused request's body is thrown away.
            if self.transport.is_closing():
                self.loop.call_later(limits.body_seconds, self.transport.abort)
            else:
                self._expect_headers()
            super().on_response_complete()
            if not self._idle() and self._deadline is not None:  # the next request was here already
                self._deadline.cancel()
                self._deadline = None

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._give_up()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._writable = self.loop.call_later(limits.body_seconds, self._unread)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._writable is not None:
                self._writable.cancel()
                self._writable = None

        def _unread(self) -> None:
            refused("unread")
            self.transport.abort()

        def _should_upgrade(self) -> bool:
            return False

        def send_400_response(self, msg: str) -> None:
            refused("not HTTP")
            if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                self._answer(HTTPStatus.BAD_REQUEST, msg)
            else:  # in the middle of an answer
                self._give_up()

        def _answer(self, status: HTTPStatus, message: str) -> None:
            body = encode_json({"error": message})
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode("ascii") + body)
            # Closed at once, a connection with unread data is reset, and the answer may be lost.
            self._answered = True
            with contextlib.suppress(OSError):  # the client has gone meanwhile
                self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    return LimitedConnection


class LimitedServer(uvicorn.Server):
    """Calls `ending` before it waits for requests to finish."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: Any = None) -> None:
        """As uvicorn's."""
        self._ending()
        await super().shutdown(sockets)
