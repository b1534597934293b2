"""What memories of a board hold, as two words: registers of the board keep them, drivers and flash images write them.

A reset clears the registers, so a driver that reads the words of what it would load can leave loading out. External
memory has such registers (`nnloom.arch.memory_system`), and the engine behind a flash (`nnloom.arch.flash_image`).
"""

from __future__ import annotations

import hashlib

import numpy as np

from .artifact import EngineImage
from .memory_system import CONTENT_WORDS

__all__ = ["content_words", "engine_content"]


def content_words(*pieces: bytes) -> tuple[int, ...]:
    """What the registers say when these bytes are there: `CONTENT_WORDS` words, never zero."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    words = np.frombuffer(digest.digest()[: 4 * CONTENT_WORDS], "<u4").tolist()
    return tuple(word | 1 for word in words)


def engine_content(image: EngineImage) -> tuple[int, ...]:
    """The words of an engine that is loaded with all of an image."""
    return content_words(
        image.config.hash.to_bytes(4, "little"),
        image.program.astype("<u4").tobytes(),
        np.ascontiguousarray(image.weights, np.uint8).tobytes(),
        np.ascontiguousarray(image.tables, np.uint8).tobytes(),
    )
