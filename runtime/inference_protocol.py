"""Requests and responses of the Open Inference Protocol v2 (REST) as bytes, with Triton's binary tensors.

Every value of a request is checked before NumPy sees it, against the network that is served: whatever is sent, the
result is a `ParsedRequest` or a `Refusal`.

Protocol: https://github.com/kserve/open-inference-protocol; binary tensors: Triton's `binary_tensor_data` extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import TensorInfo
from nnloom.arch.dtypes import INT8, UINT8

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "ParsedRequest",
    "Refusal",
    "WantedOutput",
    "describe",
    "encode_json",
    "parse_request",
    "takes_batches",
    "write_response",
]

DATATYPES = {INT8: "INT8", "float32": "FP32", "int32": "INT32", UINT8: "UINT8", "int64": "INT64"}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()} | {"FP64": "float64"}
HEADER_LENGTH = "inference-header-content-length"
LONGEST_ECHO = 80
"""Characters of a client's text that an error message repeats."""
SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
"""Parameters of Triton's sequence extension"""
PIECE = 1 << 15
"""Numbers that are written as JSON in one go: other threads run in between."""


class Refusal(Exception):
    """An answer that is not a result."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class WantedOutput:
    """An output as the client wants it."""

    name: str
    binary: bool


@dataclass(frozen=True)
class ParsedRequest:
    """A request that fits the network."""

    arrays: dict[str, NDArray]
    """by input name"""
    batch: int
    """inferences"""
    outputs: tuple[WantedOutput, ...]
    id: str | None = None


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise Refusal(HTTPStatus.BAD_REQUEST, message)


def _shown(value: Any) -> str:
    """A client's value in an error message."""
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."


def takes_batches(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> bool:
    """Whether a request may hold several inferences, stacked along the first dimension."""
    return all(info.shape[:1] == (1,) for info in inputs) and all(info.shape for info in outputs)


def describe(info: TensorInfo, batches: bool) -> dict[str, Any]:
    """Metadata of a tensor; the first dimension is -1 where a request may choose it."""
    shape = [-1, *info.shape[1:]] if batches else list(info.shape)
    return {"name": info.name, "datatype": DATATYPES[info.dtype], "shape": shape}


def encode_json(value: Any) -> bytes:
    """JSON in ASCII: no text of a client, lone surrogates included, fails to encode."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _parameters(thing: dict[str, Any], where: str, known: Mapping[str, type]) -> dict[str, Any]:
    """The parameters of an object, all of which must be known."""
    parameters = thing.get("parameters")
    if parameters is None:
        return {}
    _expect(isinstance(parameters, dict), f"{where}: parameters must be an object")
    for key, value in parameters.items():
        _expect(
            key not in SEQUENCES,
            f"{where}: parameter {_shown(key)} is not supported: a request holds a whole sequence, its inferences "
            "stacked, and begins with the state that the network begins with",
        )
        _expect(
            key in known, f"{where}: parameter {_shown(key)} is not supported (supported: {', '.join(known) or 'none'})"
        )
        _expect(type(value) is known[key], f"{where}: parameter {key} must be {known[key].__name__}")
    return parameters


def _read_shape(info: TensorInfo, shape: Any, batches: bool, largest_batch: int) -> tuple[int, ...]:
    """The shape of an input's values, as the session takes it."""
    where = f"input {_shown(info.name)}"
    _expect(
        isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape),
        f"{where}: shape must be a list of integers of at least 0",
    )
    wanted = f"must have shape {[-1, *info.shape[1:]] if batches else list(info.shape)}"
    _expect(len(shape) <= len(info.shape), f"{where} {wanted}, not one of {len(shape)} dimensions")
    given = tuple(shape)
    if (1, *given) == info.shape:
        return info.shape
    fits = given == info.shape or (batches and given[1:] == info.shape[1:] and given[0] > 0)
    _expect(fits, f"{where} {wanted}, not [{', '.join(_shown(n) for n in given)}]")
    _expect(
        not batches or given[0] <= largest_batch,
        f"{where}: a request may hold {largest_batch} inferences, not {_shown(given[0]) if given else 1}",
    )
    return given


def _read_numbers(where: str, data: Any, datatype: str, shape: tuple[int, ...]) -> NDArray:
    """Values given as JSON, nested or flat in row-major order."""
    dtype, count = np.dtype(DTYPES[datatype]), math.prod(shape)
    _expect(isinstance(data, list), f"{where}: data must be a list of numbers")
    values, depth = data, 1
    while values and isinstance(values[0], list):
        depth += 1
        rectangular = set(map(type, values)) == {list} and len(set(map(len, values))) == 1
        _expect(rectangular and depth <= len(shape), f"{where}: data is not an array of the shape")
        values = list(chain.from_iterable(values))
    kinds = set(map(type, values))
    _expect(list not in kinds, f"{where}: data is not an array of the shape")
    _expect(kinds <= {int, float}, f"{where}: data must be numbers")
    _expect(len(values) == count, f"{where}: data has {len(values)} values, the shape {count}")
    message = f"{where}: data does not fit {datatype}"
    if dtype.kind == "f":
        try:
            with np.errstate(over="ignore"):
                return np.array(values, np.float64).astype(dtype).reshape(shape)
        except OverflowError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, message) from error
    _expect(float not in kinds, message)
    limits = np.iinfo(dtype)
    _expect(not values or (min(values) >= limits.min and max(values) <= limits.max), message)
    return np.array(values, dtype).reshape(shape)


def _read_tensor(
    tensor: Any, binary: memoryview, infos: Mapping[str, TensorInfo], batches: bool, largest_batch: int
) -> tuple[str, NDArray, int]:
    """(name, values, bytes taken of the binary part)."""
    _expect(isinstance(tensor, dict) and isinstance(tensor.get("name"), str), "an input needs a name")
    name, datatype = tensor["name"], tensor.get("datatype")
    where = f"input {_shown(name)}"
    _expect(name in infos, f"no input named {_shown(name)} (inputs: {', '.join(infos)})")
    _expect(
        isinstance(datatype, str) and datatype in DTYPES,
        f"{where}: datatype {_shown(datatype)} is none of {', '.join(DTYPES)}",
    )
    shape = _read_shape(infos[name], tensor.get("shape"), batches, largest_batch)
    parameters = _parameters(tensor, where, {"binary_data_size": int})
    if "binary_data_size" not in parameters:
        return name, _read_numbers(where, tensor.get("data"), datatype, shape), 0
    _expect("data" not in tensor, f"{where}: give data or binary_data_size, not both")
    dtype = np.dtype(DTYPES[datatype]).newbyteorder("<")
    size = math.prod(shape) * dtype.itemsize
    _expect(
        parameters["binary_data_size"] == size and size <= len(binary),
        f"{where}: binary_data_size must be {size}, and the data must follow the JSON",
    )
    return name, np.frombuffer(binary[:size], dtype).astype(DTYPES[datatype]).reshape(shape), size


def _read_outputs(request: dict[str, Any], outputs: Sequence[TensorInfo]) -> tuple[WantedOutput, ...]:
    parameters = _parameters(request, "the request", {"binary_data_output": bool})
    default = parameters.get("binary_data_output", False)
    wanted = request.get("outputs")
    if wanted is None or wanted == []:
        return tuple(WantedOutput(info.name, default) for info in outputs)
    _expect(isinstance(wanted, list), "outputs must be a list of objects")
    names, result = [info.name for info in outputs], {}
    for output in wanted:
        _expect(isinstance(output, dict) and isinstance(output.get("name"), str), "an output needs a name")
        name = output["name"]
        _expect(name in names, f"no output named {_shown(name)} (outputs: {', '.join(names)})")
        _expect(name not in result, f"output {_shown(name)} is asked for twice")
        binary = _parameters(output, f"output {_shown(name)}", {"binary_data": bool}).get("binary_data", default)
        result[name] = WantedOutput(name, binary)
    return tuple(result.values())


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def parse_request(
    body: bytes,
    header_length: str | None,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    *,
    largest_batch: int,
) -> ParsedRequest:
    """What a client asks for.

    Parameters
    ----------
    header_length
        Value of the header `HEADER_LENGTH`: bytes of the JSON part, binary tensors follow. None: all is JSON.

    Raises
    ------
    Refusal
        If anything about it is wrong; status 400.
    """
    length = len(body)
    if header_length is not None:
        fits = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        _expect(fits and int(header_length) <= length, f"{HEADER_LENGTH} must be 0 to {length}")
        length = int(header_length)
    try:
        request = json.loads(body[:length].decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "not JSON that is read here (nested too deeply)") from error
    except ValueError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"not JSON ({str(error)[:LONGEST_ECHO]})") from error
    _expect(isinstance(request, dict) and isinstance(request.get("inputs"), list), "the request needs inputs")
    identity = request.get("id")
    _expect(identity is None or isinstance(identity, str), "id must be a string")
    wanted = _read_outputs(request, outputs)
    infos, batches = {info.name: info for info in inputs}, takes_batches(inputs, outputs)
    binary, arrays = memoryview(body)[length:], {}
    for tensor in request["inputs"]:
        name, values, taken = _read_tensor(tensor, binary, infos, batches, largest_batch)
        _expect(name not in arrays, f"input {_shown(name)} is given twice")
        arrays[name] = values
        binary = binary[taken:]
    missing = [name for name in infos if name not in arrays]
    _expect(not missing, f"input {_shown(missing[0]) if missing else ''} is missing (inputs: {', '.join(infos)})")
    _expect(not binary, f"{len(binary)} bytes after the last input")
    sizes = {len(values) for values in arrays.values()} if batches else {1}
    _expect(len(sizes) == 1, "all inputs must hold the same number of inferences")
    return ParsedRequest(arrays, sizes.pop(), wanted, identity)


def _numbers_as_json(values: NDArray) -> bytes:
    flat = values.ravel()
    pieces = (json.dumps(flat[i : i + PIECE].tolist())[1:-1] for i in range(0, flat.size, PIECE))
    return f"[{', '.join(pieces)}]".encode("ascii")


def write_response(
    model: str, version: str, request: ParsedRequest, infos: Sequence[TensorInfo], results: Mapping[str, NDArray]
) -> tuple[bytes, dict[str, str]]:
    """(body, headers)."""
    by_name = {info.name: info for info in infos}
    outputs, blobs = [], []
    for wanted in request.outputs:
        info, values = by_name[wanted.name], results[wanted.name]
        entry: dict[str, Any] = {"name": info.name, "datatype": DATATYPES[info.dtype], "shape": list(values.shape)}
        if wanted.binary:
            blob = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
            outputs.append(encode_json({**entry, "parameters": {"binary_data_size": len(blob)}}))
            blobs.append(blob)
        else:
            outputs.append(encode_json(entry)[:-1] + b',"data":' + _numbers_as_json(values) + b"}")
    answer = {"model_name": model, "model_version": version}
    if request.id is not None:
        answer["id"] = request.id
    head = encode_json(answer)[:-1] + b',"outputs":[' + b",".join(outputs) + b"]}"
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *blobs]), headers
