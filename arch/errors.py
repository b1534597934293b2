"""The errors that a user can cause, each with the exit code of the command line.

A message states the rule, the value that broke it, and what to do, on one line.
"""

__all__ = [
    "ArtifactError",
    "BuildError",
    "CapacityError",
    "ConfigError",
    "DeviceError",
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


class DeviceError(NnloomError):
    """A device did not answer, or answered wrongly."""

    exit_code = 1


class BuildError(NnloomError):
    """Simulation build, synthesis, or place and route failed."""

    exit_code = 1


class ToolMissingError(NnloomError):
    """A tool or an optional dependency is not installed."""

    exit_code = 3
