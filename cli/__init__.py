"""The `nnloom` command."""
