"""The limits of `nnloom serve` and their defaults, for the server and for the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

__all__ = ["ServerLimits"]


def _limit(default: float, option: str, doc: str) -> Any:
    return dataclasses.field(default=default, metadata={"option": option, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What a client may ask for. Each field names its option of `nnloom serve` and its meaning.

    Raises
    ------
    ConfigError
        If a limit is not positive.
    """

    queue: int = _limit(64, "--queue", "requests that may wait or run; more get status 503")
    body_bytes: int = _limit(16 << 20, "--max-bytes", "bytes of a request's body; more get status 413")
    batch: int = _limit(64, "--max-batch", "inferences of a request; more get status 400")
    seconds: float = _limit(60.0, "--max-seconds", "time for an answer once the body is here; then status 504")
    header_seconds: float = _limit(10.0, "--header-seconds", "time for the headers of a request; then disconnected")
    body_seconds: float = _limit(30.0, "--body-seconds", "time for the body of a request; then it gets status 408")
    connections: int = _limit(
        256,
        "--max-connections",
        "open connections; beyond, the oldest idle one is closed, else the new one gets 503",
    )
    grace_seconds: float = _limit(
        10.0, "--grace-seconds", "after SIGTERM or Ctrl-C: time for requests that wait or run before they are dropped"
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            lowest = 0 if field.name == "grace_seconds" else 1 if isinstance(field.default, int) else 0.001
            if not lowest <= value <= 1e12:  # false for NaN, too
                raise ConfigError(f"{field.metadata['option']} must be at least {lowest}, not {value:g}")

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies held at once, of all requests together; more get status 503."""
        return 16 * self.body_bytes
