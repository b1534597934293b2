"""The HTML report: whole, closed, of harmless names; and in Chromium, where there is one."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nnloom.arch.artifact import Artifact
from nnloom.arch.output import check_output
from nnloom.arch.report import Report
from nnloom.cli import main
from nnloom.cli.html_report import SHARES, chrome_trace, html_page
from tests.artifacts import make_artifact
from tests.conftest import NETWORKS
from tests.graphs import random_graph

HOSTILE = (
    '</script><script>document.title="taken"</script><img src=http://x onerror=alert(1)>&lt;\u202e\x1b[2J{{data}}\ud800'
)
VOID = {"meta", "img", "input", "br"}


class Page(html.parser.HTMLParser):
    """Elements of a page, their attributes and texts; a closing tag must fit its opening one."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            last = self.elements[-1][1].get("id") or self.open[-1]
            self.texts[last] = self.texts.get(last, "") + data


@pytest.fixture
def small(tmp_path):
    make_artifact(tmp_path / "net", random_graph(np.random.default_rng(5), ["conv", "depthwise", "add", "dense"]))
    artifact = Artifact.load(tmp_path / "net")
    return artifact, Report.load(artifact)


def hostile(artifact: Artifact, report: Report) -> tuple[Artifact, Report]:
    """The same with names that would like to be more."""
    manifest = artifact.manifest
    inputs = tuple(dataclasses.replace(info, name=HOSTILE) for info in manifest.inputs)
    values = json.loads(json.dumps(report.values))
    values["model"] = HOSTILE
    for layer in values["layers"]:
        layer["name"] = layer["op"] = layer["output"] = HOSTILE
    values["layers"].append(
        {"name": HOSTILE, "op": HOSTILE, "target": "cpu", "reason": HOSTILE, "macs": 0, "inexact_reason": HOSTILE}
    )
    return dataclasses.replace(artifact, manifest=dataclasses.replace(manifest, inputs=inputs)), Report(values)


def test_page_is_whole_and_refers_to_nothing_outside(small):
    text = html_page(*small)
    page = Page(text)
    assert not re.search(
        r"https?://|url\(|@import|//[a-z]+\.[a-z]", text.replace('"http:" + "//www.w3.org/2000/svg"', "")
    )
    for tag, attributes in page.elements:
        assert "src" not in attributes and tag not in ("link", "img", "iframe", "object")
        assert attributes.get("href", "#").startswith("#")
    policy = next(a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert ("html", {"lang": "en"}) in page.elements
    assert text.count("</script>") == 2


def test_names_are_data_and_nothing_else(small):
    text = html_page(*hostile(*small))
    page = Page(text)
    plain = Page(html_page(*small))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert not set(text) & set("\u202e\x1b\ud800")
    text.encode()
    data = json.loads(page.texts["data"])
    assert data["layers"][0]["name"].startswith("</script><script>document.title")
    assert data["layers"][0]["name"].endswith("\\u202e\\x1b[2J{{data}}\\ud800")


def test_a_large_network_stays_below_500_kilobytes(small):
    artifact, report = small
    values = json.loads(json.dumps(report.values))
    template = values["layers"][0] | {"cycle_shares": dict.fromkeys(SHARES, 12345.67), "output_shape": [1, 56, 56, 128]}
    names = [f"model/block_{i}/inverted_residual/expand_convolution/Relu6" for i in range(501)]
    values["layers"] = [
        template | {"name": name, "inputs": [before, names[i // 2]], "output": name}
        for i, (before, name) in enumerate(itertools.pairwise(names))
    ]
    place = {"region": "region0", "granule": 1, "granules_per_bank": 2, "first_layer": 3, "last_layer": 4}
    values["memory"]["tensors"] = [place | {"name": name} for name in names]
    assert len(html_page(artifact, Report(values)).encode()) < 500_000


def test_trace_has_every_layer_one_after_the_other(artifacts):
    artifact = Artifact.load(artifacts("keyword_spotting"))
    report = Report.load(artifact)
    trace = json.loads(json.dumps(chrome_trace(artifact, report, [0.001, 0.002])))
    tracks = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [tracks[e["tid"]] for e in events] == ["host", "link", *["engine"] * 11, "link", "host"]
    end = 0.0
    for event in events:
        assert event["ts"] == pytest.approx(end, abs=0.01)
        end = event["ts"] + event["dur"]
    engine = sum(e["dur"] for e in events if tracks[e["tid"]] == "engine")
    assert engine == pytest.approx(report.values["cycles"] / 120, abs=0.01)
    assert [e["dur"] for e in events if tracks[e["tid"]] == "host"] == [1000, 2000]
    # 500 and 12 bytes at 3 Mbaud.
    assert [e["dur"] for e in events if tracks[e["tid"]] == "link"] == pytest.approx([5000 / 3, 40], abs=0.01)


def test_command_writes_page_and_trace(small, tmp_path, capsys):
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    assert main(["report", str(small[0].path), "-o", str(page), "--trace", str(trace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(page), "trace": str(trace)}
    assert Page(page.read_text()).texts["data"] and json.loads(trace.read_text())["traceEvents"]
    assert main(["report", str(small[0].path)]) == 0
    assert (small[0].path / "report.html").read_text() == page.read_text()
    check_output(small[0].path)  # the page is no reason not to replace the artifact
    assert main(["report", str(small[0].path), "-o", str(tmp_path / "no" / "folder.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["report", str(small[0].path), "--measured", "cpu"]) == 2


def chromium() -> str:
    """The browser's path; without one, the test is skipped with a message, and fails in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing = "no Chromium: the HTML report was not opened in a browser (apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return found


def opened(page: Path, folder: Path, *options: str) -> tuple[str, list[str]]:
    """The document after its scripts, and what the console said."""
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command += ["--disable-background-networking", "--enable-logging=stderr", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


USER = """
<script>{
const rows = () => [...document.querySelectorAll("#layers tbody tr")].map(row => row.cells[0].textContent);
const seen = { all: rows() };
const search = document.querySelector("input[type=search]");
search.value = "conv2d"; search.dispatchEvent(new Event("input")); seen.found = rows();
search.value = ""; search.dispatchEvent(new Event("input"));
const macs = [...document.querySelectorAll("#layers th button")].find(b => b.textContent === "MACs");
macs.click();
seen.sorted = [...document.querySelectorAll("#layers tbody tr")].map(r => +r.cells[4].textContent.replaceAll(",", ""));
seen.sort = macs.parentElement.getAttribute("aria-sort");
const timeline = document.querySelector("#timeline svg"), boxes = () => timeline.querySelectorAll("rect").length;
seen.boxes = [boxes()];
for (const key of ["+", "+", "+", "ArrowRight"]) timeline.dispatchEvent(new KeyboardEvent("keydown", { key }));
seen.boxes.push(boxes());
document.querySelector("#timeline .tools button:last-child").click(); seen.boxes.push(boxes());
const named = e => e.getAttribute("aria-label") || e.textContent.trim();
seen.unnamed = [...document.querySelectorAll("svg, input, button, [role=img]")].filter(e => !named(e)).length;
seen.dark = getComputedStyle(document.body).backgroundColor;
seen.wide = document.documentElement.scrollWidth > innerWidth;
document.body.replaceChildren(JSON.stringify(seen));
}</script>
"""


@pytest.mark.parametrize("name", NETWORKS)
def test_in_chromium(name, artifacts, tmp_path):
    chromium()
    artifact = Artifact.load(artifacts(name))
    report = Report.load(artifact)
    text = html_page(artifact, report)
    assert len(text.encode()) < 500_000
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{USER}</body>"))
    is_dark = name == NETWORKS[0]
    dom, console = opened(page, tmp_path / "profile", *(["--blink-settings=preferredColorScheme=0"] if is_dark else []))
    assert not console
    seen = json.loads(re.search(r"<body>(.*)</body>", dom, re.S)[1])
    layers = report.values["layers"]
    assert len(seen["all"]) == len(layers)
    assert len(seen["found"]) == sum("conv2d" in layer["name"].lower() + layer["op"] for layer in layers)
    assert seen["sorted"] == sorted((layer["macs"] for layer in layers), reverse=True)
    assert seen["sort"] == "descending"
    on_engine = sum(layer["target"] == "accelerator" for layer in layers)
    whole, zoomed, region = seen["boxes"]
    assert whole >= region >= on_engine and zoomed < whole
    assert seen["unnamed"] == 0 and not seen["wide"]
    assert seen["dark"] == ("rgb(20, 24, 29)" if is_dark else "rgb(255, 255, 255)")


def test_chromium_runs_nothing_that_a_name_says(small, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(html_page(*hostile(*small)))
    dom, console = opened(page, tmp_path / "profile")
    assert not console
    assert "<title>&lt;/script&gt;&lt;script&gt;document.title" in dom and "<img" not in dom
    # What this test listens to does speak.
    page.write_text(
        page.read_text().replace("</body>", "<script>throw new Error('x')</script><img src='http://x'></body>")
    )
    dom, console = opened(page, tmp_path / "profile")
    assert len(console) == 2
