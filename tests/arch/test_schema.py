"""Values against annotations: what passes, and one line for what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import jsonschema
import pytest

from nnloom.arch.schema import Count, SchemaError, check_value, json_schema


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0
    labels: tuple[str, ...] = ()
    next: Point | None = None


class Needed(TypedDict):
    name: str
    count: Count


class Record(Needed, total=False):
    parts: list[Needed]
    sizes: dict[str, int]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, int),
        (1 << 53, int),
        (3, float),
        (0.5, float),
        (True, bool),
        (None, None),
        ("", str),
        (object(), Any),
        (None, int | None),
        (3, int | None),
        ((1, 2), tuple[int, ...]),
        ([], list[str]),
        ({"a": 1}, dict[str, int]),
        (0, Count),
        (Point(1, 2.0, ("a",), Point(3)), Point),
        ({"name": "a", "count": 0}, Record),
        ({"name": "a", "count": 0, "parts": [{"name": "b", "count": 1}], "sizes": {}, "more": [object()]}, Record),
    ],
)
def test_what_passes(value, kind):
    check_value(value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (3.0, int, "v must be int, not 3.0"),
        (True, int, "v must be int, not True"),
        ((1 << 53) + 1, int, r"v must be at most 2\*\*53"),
        (-(1 << 53) - 1, int, r"v must be at most 2\*\*53"),
        (float("nan"), float, "v must be finite"),
        (float("-inf"), float, "v must be finite"),
        (1e301, float, "reasonable size"),
        ("3", float, "v must be float, not '3'"),
        (0, bool, "v must be bool"),
        (0, None, "v must be NoneType"),
        ("x" * 1000, int, r"v must be int, not 'x{59}\.\.\.$"),
        ("x\x1b[2J\n", int, r"not 'x\\x1b\[2J\\n'$"),
        ("3", int | None, "v must be int, not '3'"),
        ([1], tuple[int, ...], "v must be tuple"),
        ((1, "2"), tuple[int, ...], r"v\[1\] must be int"),
        ({1: 1}, dict[str, int], "a key of v must be str"),
        ({"a": "b"}, dict[str, int], r"v\['a'\] must be int"),
        (-1, Count, "v must be at least 0, not -1"),
        (Point("1"), Point, r"v\.x must be int"),
        (Point(1, next=Point(2, labels=(3,))), Point, r"v\.next\.labels\[0\] must be str"),
        ({"name": "a"}, Record, "v: count is missing"),
        ({"name": "a", "count": -1}, Record, r"v\.count must be at least 0"),
        ({"name": "a", "count": 1, "parts": [{"name": 1, "count": 1}]}, Record, r"v\.parts\[0\]\.name must be str"),
        ([], Record, "v must be dict"),
    ],
)
def test_what_does_not(value, kind, message):
    with pytest.raises(SchemaError, match=message) as caught:
        check_value(value, kind, "v")
    assert "\n" not in str(caught.value)


CASES = [3, -1, 0.5, True, None, "", "a", [], [1], {}, {"name": "n", "count": 0}, {"name": "n", "count": -1}]
KINDS = [int, float, str, bool, None, int | None, Count, list[int], dict[str, int], Literal["a", "b"], Needed, Record]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_json_schema_accepts_what_check_value_accepts(kind):
    validator = jsonschema.Draft202012Validator(json_schema(kind))
    for value in CASES:
        try:
            check_value(value, kind)
            accepted = True
        except SchemaError:
            accepted = False
        assert validator.is_valid(value) == accepted, (kind, value)


def test_json_schema_of_a_dataclass_closes_it_and_has_the_documentation():
    schema = json_schema(Needed, lambda record: {"count": f"of {record.__name__}"})
    assert schema["properties"]["count"] == {"type": "integer", "minimum": 0, "description": "of Needed"}

    @dataclass
    class Size:
        rows: int
        columns: int = 1

    schema = json_schema(Size)
    assert schema["required"] == ["rows"]
    assert not jsonschema.Draft202012Validator(schema).is_valid({"rows": 1, "depth": 2})
