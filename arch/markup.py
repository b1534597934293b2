"""HTML of tables, for what notebooks show of sessions, profiles and reports (`_repr_html_`)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

__all__ = ["html_table"]


def html_table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose texts are escaped; numbers have separators and stand to the right."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td style="text-align:right">{value:,}</td>'
    return f"<td>{html.escape('' if value is None else str(value))}</td>"
