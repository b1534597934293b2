"""The contract that every other nnloom package shares: configuration, instruction set, numerics, artifact.

Pure data and NumPy: nothing here imports Amaranth, TVM or a simulator, so that the runtime on a small
board can use it, and nothing here imports another nnloom package.
"""
