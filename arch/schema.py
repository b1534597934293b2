"""Checks that values read from a file are what the annotations of a dataclass or TypedDict say; the same as a JSON
schema."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

__all__ = ["AtLeast", "Count", "SchemaError", "check_value", "json_schema"]

LARGEST = 1 << 53
"""Magnitude of an integer that JSON carries exactly everywhere."""


class SchemaError(ValueError):
    """A value is not what its annotation says; the message is one line."""


@dataclasses.dataclass(frozen=True)
class AtLeast:
    """Annotation of a number: the smallest that is allowed."""

    minimum: int


Count = Annotated[int, AtLeast(0)]
"""An integer that counts something."""


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def check_value(value: Any, kind: Any, where: str = "") -> None:
    """Check a value against an annotation, and all that it holds.

    Parameters
    ----------
    value
        JSON values, or dataclasses and tuples made from them.
    kind
        The annotation: int, float, str, bool, None, Any, a union, `tuple[X, ...]`, `list[X]`, `dict[str, X]`, a
        dataclass, a TypedDict or a `Literal` of strings; numbers may be `Annotated` with `AtLeast`.
    where
        Name of the value, for the message.

    Raises
    ------
    SchemaError
        If the value, or one in it, is of another type, too small, not finite, or beyond 2**53.
    """
    if kind is Any:
        return
    origin = typing.get_origin(kind)
    if origin is Annotated:
        inner, *conditions = typing.get_args(kind)
        check_value(value, inner, where)
        for condition in conditions:
            if isinstance(condition, AtLeast) and value < condition.minimum:
                raise SchemaError(f"{where} must be at least {condition.minimum}, not {value}")
    elif origin is Literal:
        if not isinstance(value, str) or value not in typing.get_args(kind):
            raise SchemaError(f"{where} must be one of {', '.join(typing.get_args(kind))}, not {_shown(value)}")
    elif origin in (Union, types.UnionType):
        _check_union(value, typing.get_args(kind), where)
    elif origin in (tuple, list):
        _check_type(value, origin, where)
        (inner, *_) = typing.get_args(kind)
        for index, item in enumerate(value):
            check_value(item, inner, f"{where}[{index}]")
    elif origin is dict:
        _check_type(value, dict, where)
        _, inner = typing.get_args(kind)
        for key, item in value.items():
            _check_type(key, str, f"a key of {where}")
            check_value(item, inner, f"{where}[{key!r}]")
    elif typing.is_typeddict(kind):
        _check_record(value, kind, where)
    elif _is_dataclass(kind):
        _check_type(value, kind, where)
        for name, hint in _hints(kind).items():
            check_value(getattr(value, name), hint, f"{where}.{name}" if where else name)
    elif kind is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise SchemaError(f"{where} must be finite, not {value}")
        if abs(value) > 1e300:
            raise SchemaError(f"{where} must be a number of reasonable size, not {value:.3g}")
    else:
        _check_type(value, kind, where)
        if kind is int and abs(value) > LARGEST:
            raise SchemaError(f"{where} must be at most 2**53 in magnitude")


def _check_union(value: Any, kinds: tuple[Any, ...], where: str) -> None:
    errors = []
    for kind in kinds:
        try:
            check_value(value, kind, where)
            return
        except SchemaError as error:
            errors.append(error)
    # What the value comes closest to says most.
    raise next((e for e, kind in zip(errors, kinds, strict=True) if kind is not types.NoneType), errors[0])


def _check_record(value: Any, kind: Any, where: str) -> None:
    _check_type(value, dict, where)
    for name in sorted(kind.__required_keys__):
        if name not in value:
            raise SchemaError(f"{where}: {name} is missing" if where else f"{name} is missing")
    hints = _hints(kind)
    for name, item in value.items():
        _check_type(name, str, f"a key of {where}")
        if name in hints:
            check_value(item, hints[name], f"{where}.{name}" if where else name)


def _check_type(value: Any, kind: Any, where: str) -> None:
    kind = types.NoneType if kind is None else kind
    if type(value) is not kind and not (_is_dataclass(kind) and isinstance(value, kind)):
        raise SchemaError(f"{where} must be {kind.__name__}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def json_schema(kind: Any, documentation: Callable[[type], Mapping[str, str]] = lambda _: {}) -> dict[str, Any]:
    """The JSON schema (2020-12) of what `check_value` accepts.

    Parameters
    ----------
    kind
        The annotation.
    documentation
        Descriptions of a record's fields, by name.

    Raises
    ------
    TypeError
        If the annotation is none that `check_value` describes.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if origin is Annotated:
        schema = json_schema(arguments[0], documentation)
        return schema | {"minimum": max(c.minimum for c in arguments[1:])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [json_schema(each, documentation) for each in arguments]}
    if origin in (tuple, list):
        return {"type": "array", "items": json_schema(arguments[0], documentation)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": json_schema(arguments[1], documentation)}
    if typing.is_typeddict(kind) or _is_dataclass(kind):
        texts = documentation(kind)
        properties = {
            name: json_schema(hint, documentation) | ({"description": texts[name]} if texts.get(name) else {})
            for name, hint in _hints(kind).items()
        }
        if typing.is_typeddict(kind):  # others may be there
            return {"type": "object", "properties": properties, "required": sorted(kind.__required_keys__)}
        needed = sorted(f.name for f in dataclasses.fields(kind) if not _has_default(f))
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    return {"type": _JSON_TYPES[types.NoneType if kind is None else kind]}


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}
