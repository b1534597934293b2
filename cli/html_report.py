"""`nnloom report`: an artifact as one HTML page that fetches nothing, and its timeline as a Chrome trace.

What the page shows is JSON within it, drawn by the script of `report.html`. Names come from the model's file: they are
made printable here, and the script sets them as text only.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from typing import Any

from nnloom.arch.artifact import Artifact, TensorInfo, TensorLocation
from nnloom.arch.report import LayerReport, Report, tables_of
from nnloom.arch.table_places import loaded_bytes

from .text import printable

__all__ = ["HostSeconds", "chrome_trace", "html_page"]

TEMPLATE = "report.html"
HostSeconds = Sequence[float]
"""What the CPU took for each stage of an inference, as it was measured"""

SHARES = {
    "ideal": "ideal",
    "second_pixel": "second pixel idle",
    "lanes": "lanes without a channel",
    "taps": "taps without a product",
    "no_macs": "steps without MACs (pools, sums, copies)",
    "requantization": "waiting for requantization",
    "loads": "loads of parameters and window columns",
    "start": "starts and ends of layers",
}
"""Keys of `CycleSharesReport` -> what the page calls them"""
TRACKS = ("host", "link", "engine")
WAITS = ("start", "parameters", "requantization")


@dataclass(frozen=True, kw_only=True)
class _Event:
    """Something that takes time, in microseconds from the start of an inference."""

    track: str
    start: float
    length: float
    name: str
    note: str
    fill: str
    region: str = ""
    layer: int | None = None
    """which one of those on the page it is"""


def html_page(artifact: Artifact, report: Report, host: HostSeconds | None = None) -> str:
    """The page of an artifact; `host` as it was measured, if it was."""
    data = json.dumps(_safe(_page(artifact, report, host)), separators=(",", ":"))
    for character in "<>&":  # nothing may end the element that holds it
        data = data.replace(character, f"\\u{ord(character):04x}")
    text = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    title = html.escape(f"{printable(report.values['model'])}: nnloom report")
    # Not one replacement after the other: a name may look like the next placeholder.
    before, rest = text.split("{{title}}")
    middle, after = rest.split("{{data}}")
    return before + title + middle + data + after


def chrome_trace(artifact: Artifact, report: Report, host: HostSeconds | None = None) -> dict[str, Any]:
    """The timeline as JSON values of the trace event format, which Perfetto and chrome://tracing read."""
    names = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": index, "args": {"name": track}}
        for index, track in enumerate(TRACKS)
    ]
    process = {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": f"{report.values['model']} (nnloom)"}}
    events = [
        {
            "name": event.name,
            "cat": event.track,
            "ph": "X",
            "ts": round(event.start, 4),
            "dur": round(event.length, 4),
            "pid": 1,
            "tid": TRACKS.index(event.track),
            "args": {"note": event.note, **({"region": event.region} if event.region else {})},
        }
        for event in _timeline(artifact, report, host)
    ]
    safe = _safe({"traceEvents": [process, *names, *events], "displayTimeUnit": "ns"})
    return dict(safe)


def _safe(value: Any) -> Any:
    """JSON values whose texts have nothing that steers the direction of text, or cannot be printed."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    return value


def _page(artifact: Artifact, report: Report, host: HostSeconds | None) -> dict[str, Any]:
    values = report.values
    config = artifact.manifest.config
    layers = _in_order(report)
    return {
        "title": values["model"],
        "subtitle": f"for {values['board']}, configuration {values['config_hash']} ({values['config_reason']})",
        "cards": _cards(report, _timeline(artifact, report, host)),
        "notes": _notes(report),
        "tensors": _tensors(artifact),
        "shares": list(SHARES.items()),
        "layers": [_row(index, layer) for index, layer in enumerate(layers)],
        "timeline": _timeline_data(artifact, report, host),
        "sizes": _sizes(report),
        "tables": [[table.number, table.computes, ", ".join(table.layers)] for table in tables_of(layers)],
        "memory": _memory(artifact, report),
        "roof": {
            "multipliers": config.multipliers,
            "bytes": config.multipliers // config.pixels,
            "single": config.multipliers // config.pixels,
        },
        "graph": _graph(artifact, layers),
        "resources": [[name, r["used"], r["available"]] for name, r in values.get("resources", {}).items()],
        "resources_note": _clock(report),
    }


def _in_order(report: Report) -> list[LayerReport]:
    """The layers in the order in which they run: within a stage, the CPU's come first."""
    return sorted(report.values["layers"], key=lambda layer: (layer.get("stage", 0), layer["target"] != "cpu"))


def _clock_mhz(report: Report) -> float:
    """The clock of the build, else the board's."""
    system = report.values.get("system")
    return report.values.get("clock_mhz") or (system["clock_mhz"] if system else 1.0)


def _cards(report: Report, events: Sequence[_Event]) -> list[list[str]]:
    values = report.values
    clock = _clock_mhz(report)
    measured = values["cycles_measured"] is not None
    link = sum(event.length for event in events if event.track == "link")
    cards = [
        ["board", values["board"], f"{values['mac_units']} multipliers"],
        ["MACs on the engine", f"{100 * values.get('engine_share', 1.0):.1f} %", f"{values['macs']:,} MACs"],
        ["engine", f"{values['cycles']:,} cycles", "counted" if measured else "estimated by the cost model"],
        ["latency of the engine", f"{values['cycles'] / clock:,.1f} us", f"at {clock:g} MHz"],
        ["utilisation", f"{100 * values['utilisation']:.1f} %", "MACs / cycles / multipliers"],
    ]
    if link:
        share = f"{values.get('link_bytes_per_inference', 0):,} bytes of tensors at the line rate"
        cards.append(["host link", f"{link / 1000:,.2f} ms", share])
    if values.get("fmax_mhz"):
        cards.append(["clock reached", f"{values['fmax_mhz']:g} MHz", f"for {clock:g} MHz"])
    exact = values.get("exact", True)
    cards.append(["bits", "exact" if exact else "not all exact", "against the reference kernels"])
    return cards


def _notes(report: Report) -> list[str]:
    values = report.values
    memory = values["memory"]
    notes = []
    if values.get("cut"):
        regions = len({layer.get("region") for layer in values["layers"] if layer.get("region")})
        notes.append(f"The network does not fit the activation memory at once: it runs in {regions} regions.")
        if more := values.get("would_take_more"):
            notes.append(
                f"{more['board']} with {more['config'].get('activation_bytes', 0):,} bytes of activation memory "
                f"would take {100 * more['engine_share']:.1f} % of the MACs."
            )
    if memory["parts"]:
        notes.append(
            f"{memory['parts']} parts are loaded for each inference, {memory['bytes_loaded_per_inference']:,} bytes: "
            + "; ".join(memory.get("parts_because", []))
        )
    return notes


def _tensors(artifact: Artifact) -> list[list[Any]]:
    manifest = artifact.manifest
    kinds: list[tuple[str, tuple[TensorInfo, ...]]] = [
        ("input", manifest.inputs),
        ("output", manifest.outputs),
        ("state", manifest.states),
    ]
    return [
        [kind, info.name, _shape(info.shape), info.dtype, f"{info.scale:g}", str(info.zero_point)]
        if info.scale
        else [kind, info.name, _shape(info.shape), info.dtype, "", ""]
        for kind, infos in kinds
        for info in infos
    ]


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"


def _row(index: int, layer: LayerReport) -> dict[str, Any]:
    shares, waits = layer.get("cycle_shares"), layer.get("waits")
    return {
        "index": index,
        "name": layer["name"],
        "op": layer["op"],
        "on": layer.get("region", "CPU"),
        "macs": layer["macs"],
        "estimated": layer.get("cycles_estimated"),
        "counted": layer.get("cycles_measured"),
        "utilisation": layer.get("utilisation"),
        "weights": layer.get("weight_bytes"),
        "shares": [shares[name] for name in SHARES] if shares else None,  # type: ignore[literal-required]
        "waits": [waits[name] for name in WAITS] if waits else None,  # type: ignore[literal-required]
        "reason": layer.get("reason", ""),
        "inexact": layer.get("inexact_reason") or "",
    }


def _timeline(artifact: Artifact, report: Report, host: HostSeconds | None) -> list[_Event]:
    """What happens in an inference, one thing after the other."""
    return list(_events(artifact, report, host))


def _events(artifact: Artifact, report: Report, host: HostSeconds | None) -> Iterator[_Event]:
    system = report.values.get("system")
    baud = system["baud"] if system else 0
    clock = _clock_mhz(report)
    regions = {region.name: (index, region) for index, region in enumerate(artifact.manifest.regions)}
    sizes = iter(loaded_bytes(artifact.manifest.config, [p for _, region in regions.values() for p in region.parts]))
    loaded = {name: list(islice(sizes, len(region.parts))) for name, (_, region) in regions.items()}
    now = 0.0
    stages: dict[int, list[tuple[int, LayerReport]]] = {}
    for number, layer in enumerate(_in_order(report)):
        stages.setdefault(layer.get("stage", 0), []).append((number, layer))

    def line(name: str, size: int, region: str) -> Iterator[_Event]:
        nonlocal now
        if baud:
            seconds = 10 * size / baud
            note = f"{size:,} bytes at {baud:,} baud, without frames"
            yield _Event(
                track="link", start=now, length=1e6 * seconds, name=name, note=note, fill="var(--link)", region=region
            )
            now += 1e6 * seconds

    for stage, layers in sorted(stages.items()):
        on_cpu = [layer for _, layer in layers if layer["target"] == "cpu"]
        if on_cpu:
            seconds = host[stage] if host is not None and stage < len(host) else 0.0
            note = ", ".join(f"{layer['name']} ({layer['op']})" for layer in on_cpu)
            timed = "" if host is not None else "; not timed (--measured does)"
            yield _Event(
                track="host",
                start=now,
                length=1e6 * seconds,
                name=", ".join(layer["op"] for layer in on_cpu),
                note=note + timed,
                fill="var(--host)",
            )
            now += 1e6 * seconds
        engine = [(number, layer) for number, layer in layers if layer["target"] != "cpu"]
        if not engine:
            continue
        name = engine[0][1]["region"]
        index, region = regions[name]
        yield from line(f"inputs of {name}", _bytes(region.inputs), name)
        for size in loaded[name]:
            yield from line(f"a part of {name}", size, name)
        for number, layer in engine:
            counted = layer.get("cycles_measured")
            cycles = counted if counted is not None else layer["cycles_estimated"]
            note = f"{layer['op']}, {cycles:,} cycles, {'counted' if counted is not None else 'estimated'}"
            fill = f"var(--c{index % 8})"
            length = cycles / clock
            yield _Event(
                track="engine",
                start=now,
                length=length,
                name=layer["name"],
                note=note,
                fill=fill,
                region=name,
                layer=number,
            )
            now += length
        yield from line(f"outputs of {name}", _bytes(region.outputs), name)


def _bytes(tensors: Sequence[TensorLocation]) -> int:
    return sum(tensor.rows * tensor.columns * tensor.channels for tensor in tensors)


def _timeline_data(artifact: Artifact, report: Report, host: HostSeconds | None) -> dict[str, Any]:
    events = _timeline(artifact, report, host)
    spans: dict[str, list[float]] = {}
    for event in events:
        if event.track == "engine":
            spans.setdefault(event.region, [event.start, 0.0])[1] = event.start + event.length
    note = f"One inference; engine at {_clock_mhz(report):g} MHz. "
    note += (
        "The host's share as measured on this computer."
        if host is not None
        else "What the host computes is not timed: nnloom report --measured does that."
    )
    return {
        "unit": "us",
        "tracks": list(TRACKS),
        "end": max((e.start + e.length for e in events), default=0.0),
        "events": [
            [
                TRACKS.index(e.track),
                round(e.start, 4),
                round(e.length, 4),
                e.name if e.layer is None else e.layer,
                e.note,
                e.fill,
            ]
            for e in events
        ],
        "regions": [[name, round(start, 4), round(end, 4)] for name, (start, end) in spans.items()],
        "note": f"{note} Plus and minus, or Ctrl and the wheel, zoom.",
    }


def _sizes(report: Report) -> list[list[Any]]:
    memory = report.values["memory"]
    parts = "loaded in parts" if memory["parts"] else ""
    return [
        ["weights", memory["weights_bytes"], memory["weights_available"], parts],
        ["program", memory["program_bytes"], memory["program_available"], parts],
        ["activations, at most", memory["activations_peak_bytes"], memory["activations_available"], ""],
    ]


def _memory(artifact: Artifact, report: Report) -> dict[str, Any]:
    config = artifact.manifest.config
    tensors = report.values["memory"]["tensors"]
    order = _in_order(report)
    regions = []
    for region in artifact.manifest.regions:
        layers = [index for index, layer in enumerate(order) if layer.get("region") == region.name]
        regions.append(
            {
                "name": region.name,
                "layers": layers,
                "tensors": [
                    [t["name"], t["granule"], t["granules_per_bank"], t["first_layer"], t["last_layer"]]
                    for t in tensors
                    if t["region"] == region.name
                ],
            }
        )
    return {
        "bytes": config.granule * config.row_banks,
        "available": config.activation_bytes,
        "peak": max((t["granule"] + t["granules_per_bank"] for t in tensors), default=1),
        "regions": regions,
    }


def _graph(artifact: Artifact, layers: Sequence[LayerReport]) -> dict[str, Any]:
    """Region and shape of each operator in the order in which they run, and connections between them by index."""
    numbers = {region.name: index for index, region in enumerate(artifact.manifest.regions)}
    writers: dict[str, list[int]] = {}
    edges: dict[tuple[int, int], None] = {}
    for index, layer in enumerate(layers):
        for name in layer.get("inputs", []):
            for writer in writers.get(name, []):
                edges[writer, index] = None
        writers.setdefault(layer.get("output", ""), []).append(index)
    return {
        "nodes": [
            [
                numbers[layer["region"]] if "region" in layer else -1,
                _shape(layer["output_shape"]) if "output_shape" in layer else "",
            ]
            for layer in layers
        ],
        "edges": sorted(edges),
        "regions": list(numbers),
    }


def _clock(report: Report) -> str:
    values = report.values
    by = f" by {values['resources_by']}" if values.get("resources_by") else ""
    if values.get("fmax_mhz"):
        return (
            f"{values['bitstream']}: {values['fmax_mhz']} MHz reached for a clock of {values['clock_mhz']:g} MHz{by}."
        )
    return f"The clock of {_clock_mhz(report):g} MHz has not been checked{by}."
