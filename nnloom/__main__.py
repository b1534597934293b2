"""`python -m nnloom`: the `nnloom` command."""

from nnloom.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
