"""The report: where cycles go adds up for every kind of layer; one version, one writer, one schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from nnloom.arch.artifact import REPORT_FILE, Artifact
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.errors import ArtifactError, UnsupportedOperatorError
from nnloom.arch.loopnest import Step, timed_steps
from nnloom.arch.report import REPORT_VERSION, Report, write_report
from nnloom.arch.schema import SchemaError
from nnloom.compiler.cost import cycle_shares, layer_cycles
from nnloom.compiler.emit import emit
from tests.artifacts import SMALL, make_artifact
from tests.engines import compact, without_overlap
from tests.graphs import KINDS, random_graph

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())
CONFIGS = {
    "small": SMALL,
    "default": AcceleratorConfig(),
    "two pixels": AcceleratorConfig(pixels=2),
    "one unit": without_overlap(requant_units=1),
    "compact": compact(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shares_of_cycles_are_those_of_the_steps(name):
    config, rng, seen = CONFIGS[name], np.random.default_rng(len(name)), set()
    for kind in [str(k) for k in KINDS] * 2:
        try:
            (region,) = emit(config, [random_graph(rng, [kind])]).regions
        except UnsupportedOperatorError:  # the compact engine lacks some
            continue
        work = [(item.macs, item.layer.output.channels) for item in region.layers]
        cycles = layer_cycles(config, region.descriptors)
        for d, share, (macs, _), total in zip(
            region.descriptors, cycle_shares(config, region.descriptors, work), work, cycles, strict=True
        ):
            steps = list(timed_steps(config, d))
            each = config.taps if config.compact else 1
            busy = each * sum(isinstance(item, Step) and item.multiply for _, item in steps)
            values = dataclasses.asdict(share)
            assert sum(values.values()) == pytest.approx(total)
            assert min(values.values()) >= 0, (kind, values)
            assert share.loads == each * len(steps) - busy, kind
            in_steps = share.ideal + share.second_pixel + share.lanes + share.taps + share.no_macs
            assert in_steps == pytest.approx(busy), kind
            assert share.ideal == pytest.approx(macs / config.multipliers, rel=1e-9), kind
            seen.add(kind)
    assert len(seen) > 2


def test_report_of_a_network_follows_the_schema(artifacts):
    artifact = Artifact.load(artifacts("keyword_spotting"))
    values = json.loads((artifact.path / REPORT_FILE).read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(values)
    layers = values["layers"]
    for layer in layers:
        if layer["target"] == "accelerator":
            assert sum(layer["cycle_shares"].values()) == pytest.approx(layer["cycles_estimated"], abs=0.05)
    # Each tensor is an input of the network, or some layer's output.
    written = {layer["output"] for layer in layers} | {info.name for info in artifact.manifest.inputs}
    assert {name for layer in layers for name in layer["inputs"]} <= written
    (quantize,) = [layer for layer in layers if layer["op"] == "quantize"]
    (softmax,) = [layer for layer in layers if layer["op"] == "softmax"]
    assert quantize["stage"] == layers[0]["stage"] < softmax["stage"]


def test_a_report_of_another_version_is_refused(tmp_path):
    make_artifact(tmp_path, random_graph(np.random.default_rng(1), ["conv"]))
    artifact = Artifact.load(tmp_path)
    report = Report.load(artifact)
    assert report.values["report_version"] == REPORT_VERSION
    jsonschema.Draft202012Validator(SCHEMA).validate(dict(report.values))
    with pytest.raises(SchemaError, match="report_version must be"):
        Report({**report.values, "report_version": 1})
    with pytest.raises(SchemaError, match="macs must be at least 0"):
        write_report(tmp_path / REPORT_FILE, {**report.values, "macs": -1})
    (tmp_path / REPORT_FILE).write_text("{}")
    with pytest.raises(ArtifactError, match="compile the model again"):
        Report.load(artifact)
