"""The errors that a user can cause, each with the exit code of the command line.

A message states the rule, the value that broke it, and what to do, on one line.
"""

from __future__ import annotations

import enum

__all__ = [
    "ArtifactError",
    "BuildError",
    "CapacityError",
    "ConfigError",
    "DeviceCause",
    "DeviceError",
    "IllegalProgramError",
    "InputError",
    "ModelError",
    "NnloomError",
    "ToolMissingError",
    "UnsupportedOperatorError",
]


class NnloomError(Exception):
    """Base of every error that nnloom raises on purpose."""

    exit_code = 2


class ModelError(NnloomError):
    """The model file cannot be read, or holds something that nnloom cannot compile."""


class UnsupportedOperatorError(ModelError):
    """An operator has neither an accelerator lowering nor a CPU route."""


class ConfigError(NnloomError):
    """A configuration, board name or option is invalid."""


class CapacityError(NnloomError):
    """The network does not fit the memories of the configuration."""


class InputError(NnloomError):
    """An input array has the wrong name, shape, dtype or content."""


class ArtifactError(NnloomError):
    """An artifact directory is missing, damaged, edited, or made for something else."""


class IllegalProgramError(ArtifactError):
    """A program asks for something that the engine does not have, or for addresses beyond its memories."""


class DeviceCause(enum.StrEnum):
    """What kept a device from answering, for programs; the message of the error is for people."""

    SILENT = "silent"
    """nothing answered"""
    OTHER_CONFIGURATION = "other configuration"
    """an nnloom accelerator, but not the one that the artifact was compiled for"""
    OTHER_VERSION = "other version"
    """of the protocol or the instruction set, or no nnloom accelerator"""
    NO_PERMISSION = "no permission"
    """this user may not open the port"""
    IN_USE = "in use"
    """another program has the port open, or the device runs its program"""
    CLOSED = "closed"
    """the session or device was closed before"""
    FAULT = "fault"
    """everything else"""


class DeviceError(NnloomError):
    """A device did not answer, or answered wrongly."""

    exit_code = 1

    def __init__(self, message: str, *, cause: DeviceCause = DeviceCause.FAULT) -> None:
        super().__init__(message)
        self.cause = cause


class BuildError(NnloomError):
    """Simulation build, synthesis, or place and route failed."""

    exit_code = 1


class ToolMissingError(NnloomError):
    """A tool or an optional dependency is not installed."""

    exit_code = 3
