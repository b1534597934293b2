"""Large requests are parsed in a process of their own: JSON of megabytes holds Python's lock for a second.

The process is this module as a script. On its standard input comes first what the network is, then a request after the
other; on its standard output go the results; each is a pickle after its length.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import struct
import sys
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, BinaryIO

from nnloom.arch.artifact import TensorInfo

from .inference_protocol import ParsedRequest, Refusal, parse_request

__all__ = ["LARGE", "RequestParser"]

LARGE = 1 << 16
"""Bytes of JSON from which a request goes to the process; smaller ones take a millisecond or two."""
_LENGTH = struct.Struct("<Q")


def _pack(value: Any) -> bytes:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class RequestParser:
    """Parses requests for one network off the event loop: small ones in a thread, large ones in a process."""

    def __init__(self, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], *, largest_batch: int) -> None:
        self._inputs, self._outputs, self._largest_batch = tuple(inputs), tuple(outputs), largest_batch
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def parse(self, body: bytes, header_length: str | None) -> ParsedRequest:
        """As `inference_protocol.parse_request`; the process is killed if this is cancelled."""
        json_bytes = len(body)
        if header_length is not None and header_length.isdecimal() and len(header_length) < 20:
            json_bytes = min(json_bytes, int(header_length))
        if json_bytes < LARGE:
            return await asyncio.to_thread(
                parse_request, body, header_length, self._inputs, self._outputs, largest_batch=self._largest_batch
            )
        async with self._turn:
            try:
                result = await self._ask(body, header_length)
            except (EOFError, OSError) as error:  # it died, of memory most likely
                self._kill()
                raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request cannot be parsed here") from error
            except BaseException:
                self._kill()
                raise
        if isinstance(result, Refusal):
            raise result
        return result

    async def _ask(self, body: bytes, header_length: str | None) -> ParsedRequest | Refusal:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the server, which ends this one
            )
            assert self._process.stdin is not None
            self._process.stdin.write(_pack((self._inputs, self._outputs, self._largest_batch)))
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(_pack((body, header_length)))
        await self._process.stdin.drain()
        (length,) = _LENGTH.unpack(await self._process.stdout.readexactly(_LENGTH.size))
        return pickle.loads(await self._process.stdout.readexactly(length))

    def _kill(self) -> asyncio.subprocess.Process | None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
        return process

    async def close(self) -> None:
        """End the process, whatever it does."""
        process = self._kill()
        if process is not None:
            await process.wait()


def _receive(stream: BinaryIO) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return pickle.loads(stream.read(*_LENGTH.unpack(head)))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    network = _receive(source)
    if network is None:
        return
    inputs, outputs, largest_batch = network
    while (request := _receive(source)) is not None:
        result: ParsedRequest | Refusal
        try:
            body, header_length = request
            result = parse_request(body, header_length, inputs, outputs, largest_batch=largest_batch)
        except Refusal as refusal:
            result = refusal
        sink.write(_pack(result))
        sink.flush()


if __name__ == "__main__":
    _main()
