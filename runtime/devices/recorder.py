"""A device that writes down what a driver does on the host bus: the images that others load are made of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Part
from nnloom.arch.isa import ISA_VERSION, MAGIC, HostAddress, Register, Status

from .base import HostBusDevice, Identity

__all__ = ["BusRecorder"]


class BusRecorder(HostBusDevice):
    """The engine of whatever artifact is loaded, always at rest; its registers but STATUS read zero."""

    def __init__(self) -> None:
        super().__init__()
        self._identity: Identity | None = None
        self._accesses: list[tuple[int, int]] = []

    def identify(self) -> Identity:
        """As the artifact's engine."""
        assert self._identity is not None, "load an artifact first"
        return self._identity

    def load(self, artifact: Artifact) -> None:
        """Write down what loads the artifact."""
        self._identity = Identity(MAGIC, ISA_VERSION, artifact.manifest.config.hash)
        super().load(artifact)

    def load_part(self, part: Part) -> None:
        """Write down what is loaded before a part of a region begins, whatever ran before."""
        self._forget_parts()
        self._load_part(part)

    def write_words(self, addresses: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
        """Write down words, each with its address."""
        self._accesses += zip(addresses.tolist(), words.tolist(), strict=True)

    def read_words(self, addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """STATUS says that the last program has ended."""
        return np.where(addresses == HostAddress.REGISTERS + Register.STATUS, int(Status.DONE), 0).astype(np.uint32)

    def take_accesses(self) -> list[tuple[int, int]]:
        """Address and word of each write since the last call."""
        accesses, self._accesses = self._accesses, []
        return accesses
