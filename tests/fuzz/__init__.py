"""A generator of networks: random quantized TFLite files, with LiteRT as the judge of what nnloom makes of them.

`python -m tests.fuzz --minutes 30` for a long run; see `tests.fuzz.__main__`.
"""
