"""Text from files that goes to a terminal."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what would command a terminal, or cannot be printed: names come from files of others.

    Parameters
    ----------
    lines
        Keep line ends.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or (lines and character == "\n")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )
