"""The host memory map and registers for other people's tools: JSON, CSV, a C header. All from `nnloom.arch.isa`."""

from __future__ import annotations

import ast
import csv
import enum
import inspect
import io
import textwrap
from typing import Any

from . import isa
from .config import AcceleratorConfig

__all__ = ["map_csv", "map_header", "map_values", "member_docs"]


def member_docs(enumeration: type[enum.Enum]) -> dict[str, str]:
    """The string below each member of an enumeration, on one line; members without one are left out."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(enumeration))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for item in definition.body:
        if isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            name = item.targets[0].id
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and name:
            found[name] = " ".join(str(item.value.value).split())
            name = ""
    return found


def map_values(config: AcceleratorConfig) -> dict[str, Any]:
    """The map of an engine as JSON values.

    windows: name, byte address, meaning; registers: name, byte address, meaning; status: bits of STATUS; error_causes:
    values of its field `error_cause`; counters: words of each layer in the COUNTERS window; constants: what else a
    driver of this configuration needs.
    """

    def members(enumeration: type[enum.IntEnum] | type[enum.IntFlag]) -> list[dict[str, Any]]:
        docs = member_docs(enumeration)
        return [{"name": str(m.name), "value": int(m), "doc": docs.get(str(m.name), "")} for m in enumeration]

    registers = [
        {"name": r["name"], "address": isa.HostAddress.REGISTERS + r["value"], "doc": r["doc"]}
        for r in members(isa.Register)
    ]
    windows = [
        {"name": w.name, "address": int(w), "doc": isa.MEMORY_WINDOWS.get(w, "the registers")} for w in isa.HostAddress
    ]
    return {
        "isa_version": isa.ISA_VERSION,
        "config_hash": config.hash,
        "windows": windows,
        "registers": registers,
        "status": members(isa.Status),
        "error_cause": {"lowest_bit": isa.ERROR_CAUSE_BIT, "bits": isa.ERROR_CAUSE_BITS},
        "error_causes": members(isa.ErrorCause),
        "counters": members(isa.Counter),
        "constants": {
            "magic": isa.MAGIC,
            "row_banks": config.row_banks,
            "granule": config.granule,
            "bank_granules": config.bank_granules,
            "weight_word_bytes": config.weight_word_bytes,
            "weight_stride": isa.weight_stride(config),
            "weight_words": config.weight_words,
            "program_words": config.program_words,
        },
    }


def map_csv(config: AcceleratorConfig) -> str:
    """The map as CSV with the columns kind, name, value and doc; addresses in hexadecimal."""
    values = map_values(config)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["kind", "name", "value", "doc"])
    for kind, key in (("window", "windows"), ("register", "registers")):
        writer.writerows([kind, item["name"], f"{item['address']:#010x}", item["doc"]] for item in values[key])
    for kind, key in (("status", "status"), ("error_cause", "error_causes"), ("counter", "counters")):
        writer.writerows([kind, item["name"], item["value"], item["doc"]] for item in values[key])
    writer.writerows(["constant", name, value, ""] for name, value in values["constants"].items())
    return text.getvalue()


def map_header(config: AcceleratorConfig) -> str:
    """The map as a C header of macros."""
    values = map_values(config)
    lines = [
        "/* Host memory map of an nnloom engine, made by nnloom export. Byte addresses of 32-bit words. */",
        "#ifndef NNLOOM_REGISTERS_H",
        "#define NNLOOM_REGISTERS_H",
        f"#define NNLOOM_ISA_VERSION {values['isa_version']}u",
        f"#define NNLOOM_CONFIG_HASH {values['config_hash']:#010x}u",
    ]

    def add(name: str, number: str, doc: str) -> None:
        lines.append(f"#define NNLOOM_{name} {number}u" + (f" /* {doc} */" if doc else ""))

    for window in values["windows"]:
        add(f"WINDOW_{window['name']}", f"{window['address']:#010x}", window["doc"])
    for register in values["registers"]:
        add(f"REG_{register['name']}", f"{register['address']:#010x}", register["doc"])
    for bit in values["status"]:
        add(f"STATUS_{bit['name']}", str(bit["value"]), bit["doc"])
    add("ERROR_CAUSE_BIT", str(values["error_cause"]["lowest_bit"]), "lowest bit of the cause in STATUS")
    add("ERROR_CAUSE_MASK", str((1 << values["error_cause"]["bits"]) - 1), "")
    for cause in values["error_causes"]:
        add(f"ERROR_{cause['name']}", str(cause["value"]), cause["doc"])
    for counter in values["counters"]:
        add(f"COUNTER_{counter['name']}", str(counter["value"]), counter["doc"])
    for name, number in values["constants"].items():
        add(name.upper(), f"{number:#x}" if name == "magic" else str(number), "")
    return "\n".join([*lines, "#endif"]) + "\n"
