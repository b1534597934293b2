"""`nnloom inspect`: what goes in and comes out stands first."""

from __future__ import annotations

import json

import numpy as np

from nnloom.cli import main
from tests.artifacts import make_artifact
from tests.graphs import random_graph


def test_inputs_and_outputs_stand_first(tmp_path, capsys):
    graph = random_graph(np.random.default_rng(3), ["conv", "dense"])
    make_artifact(tmp_path, graph)
    (source,), (result,) = graph.inputs, graph.outputs
    assert main(["inspect", str(tmp_path)]) == 0
    _, titles, first, second, blank, layers, *_ = capsys.readouterr().out.splitlines()
    assert titles.split() == ["name", "shape", "type", "scale", "zero", "point"]
    shape = f"1 x {source.rows} x {source.columns} x {source.channels}"
    assert first.split("  ")[0] == "input" and shape in first and f"{source.scale:.9g}" in first
    assert second.split()[:2] == ["output", result.name] and second.split()[-1] == str(result.zero_point)
    assert blank == "" and layers.startswith("layer")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["inputs"][0] == {
        "name": source.name,
        "shape": [1, source.rows, source.columns, source.channels],
        "dtype": "int8",
        "permutation": [],
        "scale": source.scale,
        "zero_point": source.zero_point,
    }
