"""The documents of an export: ports, timing, memory map, tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from amaranth.lib.wiring import Signature

from nnloom.arch.artifact import Artifact, TensorLocation
from nnloom.arch.isa import HostAddress, Register
from nnloom.arch.register_map import map_values

__all__ = ["core_file", "core_name", "engine_page", "system_page"]

_PORTS = {
    "clk": "clock; everything is synchronous to its rising edge",
    "rst": "synchronous reset, active high, one cycle or more: ends a program; the memories keep their content",
    "req_valid": "a request is offered; it must stay as it is until it is taken",
    "req_ready": "the request is taken at the next rising edge if `req_valid` is high, too",
    "req_write": "1: write, 0: read",
    "req_address": "byte address, a multiple of 4; see the memory map",
    "req_data": "what is written",
    "rsp_valid": "the answer to a read is offered; it stays until it is taken. Writes have no answer",
    "rsp_ready": "the answer is taken at the next rising edge if `rsp_valid` is high, too; may stay high",
    "rsp_data": "what was read",
    "busy": "a program runs",
    "write_valid": "for test benches: the engine writes to its activation memory",
    "write_bank": "row bank of the write: row y of a tensor lies in bank y mod 4",
    "write_granule": "the lower one of two neighbouring granules",
    "write_enable": "bit 0: the lower granule is written; bit 1: the next one",
    "write_data": "both granules, lowest byte in the lowest bits",
    "rx": "serial line into the system: idle high, 8 data bits, no parity, one stop bit",
    "tx": "serial line out of the system",
}


def _table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _ports(signature: Signature) -> Iterator[str]:
    rows: list[list[object]] = [[f"`{name}`", "in", 1, _PORTS[name]] for name in ("clk", "rst")]
    for name, member in signature.members.items():
        direction = "in" if member.flow.name == "In" else "out"
        rows.append([f"`{name}`", direction, member.shape, _PORTS.get(name, "as the bus's standard says")])
    return _table(["port", "direction", "bits", "meaning"], rows)


def _tensors(direction: str, locations: Sequence[TensorLocation]) -> Iterator[list[object]]:
    for t in locations:
        yield [
            direction,
            f"`{t.name}`",
            " x ".join(map(str, (t.rows, t.columns, t.channels))),
            t.base,
            t.row_stride,
            t.pixel_stride,
            f"{t.scale:g}",
            t.zero_point,
        ]


def _network(artifact: Artifact, cycles: Sequence[tuple[str, int]]) -> Iterator[str]:
    manifest = artifact.manifest
    yield from (
        "## The network in the engine",
        "",
        "Tensors are int8, [rows, columns, channels]. Byte c of the pixel in row y and column x lies in bank y mod 4,",
        "at byte `(base + y // 4 * row_stride) * granule + x * pixel_stride + c` of that bank; bank b begins at",
        f"`{HostAddress.ACTIVATIONS:#010x} + b * bank_granules * granule`. Constants are in `registers/nnloom.h`.",
        "",
    )
    for number, region in enumerate(manifest.regions):
        start = "parts, each loaded in turn: see the cases" if region.parts else f"PROGRAM_START {region.program_start}"
        yield from (f"Region {number}, {region.name} ({start}):", "")
        rows = [*_tensors("in", region.inputs), *_tensors("out", region.outputs)]
        titles = ["", "tensor", "shape", "base", "row_stride", "pixel_stride", "scale", "zero point"]
        yield from _table(titles, rows)
    if cycles:
        yield from ("Cycles of each layer, as estimated by `nnloom compile`:", "")
        yield from _table(["layer", "cycles"], [[f"`{name}`", f"{count:,}"] for name, count in cycles])


def _registers(artifact: Artifact) -> Iterator[str]:
    values = map_values(artifact.manifest.config)
    yield from ("## Memory map", "", "Byte addresses of 32-bit words, little endian.", "")
    yield from _table(
        ["window", "address", "layout"],
        [[w["name"], f"`{w['address']:#010x}`", w["doc"]] for w in values["windows"]],
    )
    yield from _table(
        ["register", "address", "meaning"],
        [[r["name"], f"`{r['address']:#010x}`", r["doc"]] for r in values["registers"]],
    )
    yield from _table(
        ["bit of STATUS", "value", "meaning"], [[s["name"], s["value"], s["doc"]] for s in values["status"]]
    )


def _page(name: str, artifact: Artifact, signatures: Mapping[str, Signature], **values: object) -> str:
    """Fill the template of a page."""
    manifest, base = artifact.manifest, HostAddress.REGISTERS
    ports = [line for top, s in signatures.items() for line in (f"## Ports of `{top}`", "", *_ports(s))]
    text = Template((Path(__file__).parent / name).read_text()).substitute(
        values,
        model=manifest.model,
        board=manifest.board,
        config=f"{manifest.config.hash:#010x}",
        ports="\n".join(ports),
        map="\n".join(_registers(artifact)),
        core=core_name(artifact),
        program_start=f"{base + Register.PROGRAM_START:#010x}",
        control=f"{base + Register.CONTROL:#010x}",
        status=f"{base + Register.STATUS:#010x}",
    )
    return text.rstrip() + "\n"


def engine_page(
    artifact: Artifact,
    signatures: Mapping[str, Signature],
    *,
    images: Sequence[str],
    cycles: Sequence[tuple[str, int]],
    cases: int,
) -> str:
    """README of an exported engine. signatures: of each top module; cycles: estimates, by layer."""
    return _page(
        "engine.md",
        artifact,
        signatures,
        images=", ".join(f"`{name}`" for name in images) or "no memory images: each part is loaded by its case",
        cases=cases,
        network="\n".join(_network(artifact, cycles)),
    )


def system_page(
    artifact: Artifact, signatures: Mapping[str, Signature], *, clock_hz: float, baud: int, cases: int
) -> str:
    """README of an exported system."""
    return _page(
        "system.md",
        artifact,
        signatures,
        clock=f"{clock_hz / 1e6:g}",
        baud=f"{baud:,}",
        cases=cases,
        network="\n".join(_network(artifact, ())),
    )


def core_name(artifact: Artifact) -> str:
    """FuseSoC's name of the core, without its version."""
    model = re.sub(r"\W+", "_", artifact.manifest.model, flags=re.ASCII).strip("_").lower()
    return f"nnloom:accelerator:{model or 'network'}"


def core_file(artifact: Artifact, *, top: str, files: Sequence[str]) -> str:
    """FuseSoC's description (CAPI2). files: Verilog, relative to it."""
    listed = "".join(f"      - {file}\n" for file in files)
    return f"""CAPI=2:
name: {core_name(artifact)}:0
description: int8 neural network accelerator, made by nnloom export

filesets:
  rtl:
    files:
{listed}    file_type: verilogSource

targets:
  default: &default
    filesets: [rtl]
    toplevel: {top}
  lint:
    <<: *default
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wno-lint, -Wno-style]
"""
