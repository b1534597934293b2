"""`report.json` of an artifact: what was compiled, where it runs, what it costs; read and written here only.

Compilation writes it; simulation and build add what they measure. It is therefore sealed by itself and not by the
manifest, which says what it has to be a report of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from .artifact import REPORT_FILE, Artifact
from .errors import ArtifactError
from .files import write_atomically
from .markup import html_table
from .schema import Count, SchemaError, check_value

__all__ = [
    "REPORT_VERSION",
    "CycleSharesReport",
    "LayerReport",
    "ListReport",
    "MemoryReport",
    "Report",
    "ReportValues",
    "StateReport",
    "TableUse",
    "tables_of",
    "write_report",
]

REPORT_VERSION = 2
"""1 did not say what a layer reads, when it runs and where its cycles go."""


class _Waits(TypedDict):
    start: Count
    parameters: Count
    requantization: Count


class CycleSharesReport(TypedDict):
    """Where the estimated cycles of a layer go: `nnloom.compiler.cost.CycleShares`."""

    ideal: float
    second_pixel: float
    lanes: float
    taps: float
    no_macs: float
    requantization: float
    loads: float
    start: float


class _Larger(TypedDict):
    """What would take more of a network that was cut: a board with its own configuration or a searched one."""

    board: str
    config: dict[str, int | bool]
    config_source: str
    engine_share: float
    link_bytes_per_inference: Count
    cut: bool


class _Difference(TypedDict):
    channel: Count
    sums: Count
    """for so many sums the nearest multiplier gives another output than ONNX Runtime"""
    first: int
    """one of them"""


class _Rounding(TypedDict):
    channels: Count
    proved: Count
    """for which a multiplier rounds as ONNX Runtime does, for every sum that there can be"""
    nudged: Count
    """of these, whose multiplier is not the nearest to their factor"""
    sums: Count
    """of the other channels: those for which the nearest multiplier gives another output"""


class RoundingReport(_Rounding, total=False):
    """What is proved of products that round as ONNX Runtime does."""

    differences: list[_Difference]
    """the channels for which there is no such multiplier"""


class _Layer(TypedDict):
    name: str
    op: str
    target: Literal["accelerator", "cpu"]
    macs: Count


class LayerReport(_Layer, total=False):
    """A layer; those of the CPU have a reason instead of cycles."""

    reason: str
    """why the CPU runs it"""
    exact: bool
    """every bit is that of the reference kernels"""
    inexact_reason: str | None
    rounding: RoundingReport
    """of products of ONNX networks"""
    region: str
    """of the accelerator"""
    stage: Count
    """layers of one stage run together, on CPU or accelerator; stages follow each other"""
    inputs: list[str]
    """tensors that it reads; constants are left out"""
    output: str
    """tensor that it writes"""
    output_shape: list[Count]
    cycles_estimated: Count
    cycles_measured: Count | None
    """as the RTL or a board has counted them; None: not yet"""
    utilisation: float
    """macs / cycles / mac_units"""
    weight_bytes: Count
    cycle_shares: CycleSharesReport
    waits: _Waits
    """cycles without a step, as the counters of the engine tell them apart"""
    table: Count
    """number, from 1, of the table in which its results are looked up; left out: in none"""
    table_operators: list[str]
    """what the table computes: operators of the network, in order"""


class ExitReport(TypedDict):
    """An output that can be computed alone."""

    name: str
    """of the output"""
    cycles: Count
    """of the engine, estimated; with transfers from external memory, if it is in parts"""
    link_bytes: Count
    """that cross the host link for each inference"""
    layers: list[LayerReport]
    """of its regions"""


class StateReport(TypedDict):
    """What lasts from run to run."""

    name: str
    shape: list[Count]
    dtype: str


class _Tensor(TypedDict):
    region: str
    name: str
    granule: Count
    granules_per_bank: Count
    first_layer: int
    last_layer: int


class _Memory(TypedDict):
    weights_bytes: Count
    weights_available: Count
    program_bytes: Count
    program_available: Count
    parts: Count
    bytes_loaded_per_inference: Count
    activations_peak_bytes: Count
    activations_available: Count
    planner: list[str]
    tensors: list[_Tensor]


class _ListReport(TypedDict):
    region: str
    programs: Count
    weights: Count
    tensors: Count
    control: Count


class ListReport(_ListReport, total=False):
    """Cycles of a region's list in external memory: `nnloom.compiler.transfers.ListCycles`."""

    overlapped: Count
    """those of a transfer and of a program at once: they count twice above"""


class MemoryReport(_Memory, total=False):
    """What the network takes of the engine's memories."""

    parts_because: list[str]
    """the memories that make parts necessary"""
    tables: Count
    """tables of functions that the network uses; as many as the engine has are loaded once, more with the parts that
    need them"""
    tables_available: Count
    lists: list[ListReport]
    """of a network in parts on a board with external memory: one for each region"""


class _System(TypedDict):
    """What the board makes of the engine, before a build says more."""

    clock_mhz: float
    baud: Count
    """of the serial line; 0: none"""


class _Resource(TypedDict):
    used: Count
    available: Count


class _Values(TypedDict):
    report_version: int
    model: str
    model_sha256: str
    board: str
    config: dict[str, int | bool]
    config_hash: str
    config_source: str
    config_reason: str
    resources_estimated: dict[str, Count] | None
    states: list[StateReport]
    layers: list[LayerReport]
    macs: Count
    mac_units: Count
    cycles: Count
    cycles_estimated: Count
    cycles_measured: Count | None
    utilisation: float
    memory: MemoryReport


class ReportValues(_Values, total=False):
    """The values of a report: those of compilation, then those that a build adds. Others may be there, too."""

    system: _System
    exact: bool
    """every bit is that of the reference kernels"""
    rounding: RoundingReport
    """of all products of an ONNX network, wherever they run"""
    cpu_macs: Count
    engine_share: float
    """the accelerator's share of all multiply-accumulates"""
    cut: bool
    """the network is cut into more regions than it would need, for want of memory"""
    link_bytes_per_inference: Count
    would_take_more: _Larger | None
    bitstream: str | None
    """file name; None: Vivado has yet to make it"""
    project: str
    clock_mhz: float
    fmax_mhz: float | None
    latency_us: float | None
    resources: dict[str, _Resource]
    resources_by: str
    seed: int | None
    exits: list[ExitReport]
    """in the order of their depth: of the multiplications that they need"""
    flash_boot: bool
    """the bitstream loads the network in the board's flash"""


@dataclass(frozen=True)
class TableUse:
    """A table of the engine, and the layers whose results are looked up in it."""

    number: int
    computes: str
    layers: tuple[str, ...]


def tables_of(layers: Sequence[LayerReport]) -> list[TableUse]:
    """The tables that layers use, by number."""
    used: dict[int, list[LayerReport]] = {}
    for layer in layers:
        if "table" in layer:
            used.setdefault(layer["table"], []).append(layer)
    result = []
    for number, users in sorted(used.items()):
        # Chains of other operators may have the same 256 answers.
        computes = dict.fromkeys(" > ".join(layer.get("table_operators", ())) for layer in users)
        names = tuple(layer["name"] for layer in users)
        result.append(TableUse(number, ", ".join(filter(None, computes)), names))
    return result


class Report:
    """The report of an artifact.

    Attributes
    ----------
    values : ReportValues
        Plain JSON values.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Check the values (`SchemaError`)."""
        version = values.get("report_version")
        if version != REPORT_VERSION:
            raise SchemaError(f"report_version must be {REPORT_VERSION}, not {version!r}")
        check_value(dict(values), ReportValues)
        self.values = cast(ReportValues, dict(values))
        if not self.values["mac_units"]:
            raise SchemaError("mac_units must be at least 1")
        if min(self.values.get("clock_mhz", 1), self.values.get("system", {"clock_mhz": 1})["clock_mhz"]) <= 0:
            raise SchemaError("clock_mhz must be above 0")
        for name in ("clock_mhz", "fmax_mhz", "resources") if self.values.get("bitstream") else ():
            if self.values.get(name) is None:
                raise SchemaError(f"{name} of the bitstream is missing")
        for layer in self.values["layers"]:
            if layer["target"] == "accelerator":
                for name in ("region", "cycles_estimated"):
                    if name not in layer:
                        raise SchemaError(f"layer {layer['name'][:60]!r}: {name} is missing")

    @classmethod
    def load(cls, artifact: Artifact) -> Report:
        """Read the report of a verified artifact.

        Raises
        ------
        ArtifactError
            If it is missing, damaged, edited, or of another artifact.
        """
        path = artifact.path / REPORT_FILE
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; compile the model again")
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: not readable as JSON; compile the model again") from error
        seal = values.pop("sha256", None) if isinstance(values, dict) else None
        if not isinstance(values, dict) or seal != _seal(values):
            raise ArtifactError(f"{path}: edited or damaged; compile the model again")
        try:
            report = cls(values)
        except SchemaError as error:
            raise ArtifactError(f"{path}: {error}; compile the model again") from error
        manifest = artifact.manifest
        for name, want in (
            ("model", manifest.model),
            ("model_sha256", manifest.model_sha256),
            ("board", manifest.board),
            ("config", manifest.config.to_dict()),
            ("config_hash", f"{manifest.config.hash:#010x}"),
        ):
            if report.values[name] != want:  # type: ignore[literal-required]
                raise ArtifactError(f"{path}: {name} is not that of the artifact; compile the model again")
        names = {region.name for region in manifest.regions}
        if {layer["region"] for layer in report.values["layers"] if layer["target"] == "accelerator"} != names:
            raise ArtifactError(f"{path}: its regions are not those of the artifact; compile the model again")
        if [leave["name"] for leave in report.values.get("exits", ())] != [leave.name for leave in manifest.exits]:
            raise ArtifactError(f"{path}: its exits are not those of the artifact; compile the model again")
        return report

    def _repr_html_(self) -> str:
        values = self.values
        rows = [
            [
                layer["name"],
                layer["op"],
                layer.get("region", "CPU"),
                layer["macs"],
                layer.get("cycles_estimated"),
                layer.get("cycles_measured"),
                f"{100 * layer['utilisation']:.1f} %" if layer.get("utilisation") else layer.get("reason", ""),
            ]
            for layer in values["layers"]
        ]
        kind = "estimated" if values["cycles_measured"] is None else "measured"
        title = f"{values['model']} for {values['board']}: {values['cycles']:,} cycles ({kind}), "
        title += f"{100 * values['utilisation']:.1f} % of {values['mac_units']} multipliers"
        return html_table(title, ["layer", "operator", "runs on", "MACs", "estimated", "measured", "utilisation"], rows)

    def layers_of(self, region: str) -> list[LayerReport]:
        """The layers of a region, in order."""
        of_exits = (layer for leave in self.values.get("exits", ()) for layer in leave["layers"])
        return [layer for layer in (*self.values["layers"], *of_exits) if layer.get("region") == region]

    def milliseconds(self, leave: ExitReport) -> float:
        """How long an exit takes by the cost model: the engine at its clock, that of the bitstream if there is one, and
        its bytes on the serial line, if the board has one. What the CPU computes is not counted."""
        system = self.values.get("system")
        clock = self.values.get("clock_mhz") or (system["clock_mhz"] if system else 0)
        if not clock:
            raise ArtifactError(f"{REPORT_FILE}: it does not say the clock; compile the model again")
        baud = system["baud"] if system else 0
        return leave["cycles"] / clock / 1e3 + (1e4 * leave["link_bytes"] / baud if baud else 0.0)

    def note_cycles(self, layer_cycles: Mapping[str, Sequence[int]], total: int) -> None:
        """Put in measured cycles: of the layers of each region, and of all of an inference.

        Raises
        ------
        ArtifactError
            If the report has other layers.
        """
        values = self.values
        for region, cycles in layer_cycles.items():
            layers = self.layers_of(region)
            if len(layers) != len(cycles):
                raise ArtifactError(
                    f"{REPORT_FILE}: {len(layers)} layers of {region}, {len(cycles)} ran; compile the model again"
                )
            for layer, count in zip(layers, cycles, strict=True):
                layer["cycles_measured"] = count
                layer["utilisation"] = _utilisation(layer["macs"], count, values["mac_units"])
        values["cycles_measured"] = values["cycles"] = total
        values["utilisation"] = _utilisation(values["macs"], total, values["mac_units"])
        if values.get("fmax_mhz") and total:
            values["latency_us"] = round(total / values["clock_mhz"], 3)

    def note_build(self, figures: Mapping[str, Any]) -> None:
        """Put in the figures of a build: clock, resources, bitstream. Without timing analysis there is no latency."""
        timed = bool(figures["fmax_mhz"] and self.values["cycles"])
        latency = round(self.values["cycles"] / figures["clock_mhz"], 3) if timed else None
        self.values = Report({**self.values, **figures, "latency_us": latency}).values

    def save(self, artifact: Artifact) -> None:
        """Write it into the artifact, in place of the old one (OSError)."""
        write_report(artifact.path / REPORT_FILE, self.values)


def write_report(path: Path, values: Mapping[str, Any]) -> None:
    """Write a sealed report, with the version.

    Raises
    ------
    SchemaError
        If the values are not those of a report.
    OSError
    """
    plain = json.loads(json.dumps({**values, "report_version": REPORT_VERSION}))
    Report(plain)
    write_atomically(path, (json.dumps({**plain, "sha256": _seal(plain)}, indent=1) + "\n").encode())


def _utilisation(macs: int, cycles: int, mac_units: int) -> float:
    return round(macs / cycles / mac_units, 4) if cycles else 0.0


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
