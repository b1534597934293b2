"""The `nnloom` command."""

import sys

try:
    from .main import main
except KeyboardInterrupt:  # main() says so itself, once it is there
    print("nnloom: error: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["main"]
