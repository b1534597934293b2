"""Names of a netlist as those of its source, and such that every Verilog tool takes them.

Amaranth makes names unique within a module by numbers (`start$11`), names ports that are parts of signals after a net
(`port$2872$3`), and joins fields and submodules by dots. Here a signal that is a submodule's port is named after both
(`fetch__start`), a port after what it is connected to (`active_95_64`), and joints are two underscores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["name_as_source"]

_NAME = re.compile(r"\\\S+")
_NET_PORT = re.compile(r"port\$\d+\$\d+")
_NUMBER = re.compile(r"\$\d+$")
_WHOLE = re.compile(r"\\(\S+)(?: \[(\d+)(?::(\d+))?\])?$")
_SYSTEMVERILOG = """
accept_on alias always always_comb always_ff always_latch and assert assign assume automatic before begin bind
bins binsof bit break buf bufif0 bufif1 byte case casex casez cell chandle checker class clocking cmos config
const constraint context continue cover covergroup coverpoint cross deassign default defparam design disable
dist do edge else end endcase endchecker endclass endclocking endconfig endfunction endgenerate endgroup
endinterface endmodule endpackage endprimitive endprogram endproperty endsequence endspecify endtable endtask
enum event eventually expect export extends extern final first_match for force foreach forever fork forkjoin
function generate genvar global highz0 highz1 if iff ifnone ignore_bins illegal_bins implements implies import
incdir include initial inout input inside instance int integer interconnect interface intersect join join_any
join_none large let liblist library local localparam logic longint macromodule matches medium modport module
nand negedge nettype new nexttime nmos nor noshowcancelled not notif0 notif1 null or output package packed
parameter pmos posedge primitive priority program property protected pull0 pull1 pulldown pullup
pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase randsequence rcmos real realtime ref reg
reject_on release repeat restrict return rnmos rpmos rtran rtranif0 rtranif1 s_always s_eventually s_nexttime
s_until s_until_with scalared sequence shortint shortreal showcancelled signed small soft solve specify
specparam static string strong strong0 strong1 struct super supply0 supply1 sync_accept_on sync_reject_on
table tagged task this throughout time timeprecision timeunit tran tranif0 tranif1 tri tri0 tri1 triand trior
trireg type typedef union unique unique0 unsigned until until_with untyped use uwire var vectored virtual void
wait wait_order wand weak weak0 weak1 while wildcard wire with within wor xnor xor
"""
_KEYWORDS = frozenset(_SYSTEMVERILOG.split())


@dataclass
class _Cell:
    kind: str
    name: str
    connections: dict[str, str] = field(default_factory=dict)
    """signal by port"""


@dataclass
class _Module:
    name: str
    lines: list[str]
    wires: list[str] = field(default_factory=list)
    """also memories; without fields of others"""
    fields: list[str] = field(default_factory=list)
    ports: set[str] = field(default_factory=set)
    cells: list[_Cell] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    title: str = ""
    """name of the module itself: those of the instances on the way to it"""

    def claim(self, name: str) -> str:
        """A name that nothing in the module has yet."""
        name = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "unnamed"
        name = f"n{name}" if name[0].isdigit() else f"{name}_" if name in _KEYWORDS else name
        result, number = name, 1
        while result.lower() in self.used:
            number += 1
            result = f"{name}_{number}"
        self.used.add(result.lower())
        return result


def _parse(text: str) -> dict[str, _Module]:
    modules: dict[str, _Module] = {}
    module: _Module | None = None
    for line in text.splitlines():
        words = line.split()
        if line.startswith("module "):
            module = modules[words[1][1:]] = _Module(words[1][1:], [])
        if module is None or not words:
            continue
        module.lines.append(line)
        if words[0] in ("wire", "memory"):
            name = words[-1][1:]
            (module.fields if re.search(r"[.(]", name) else module.wires).append(name)
            if {"input", "output", "inout"} & set(words[1:-1]):
                module.ports.add(name)
        elif words[0] == "cell":
            module.cells.append(_Cell(words[1][1:], words[2][1:]))
        elif words[0] == "connect" and line.startswith("    "):
            module.cells[-1].connections[words[1][1:]] = " ".join(words[2:])
        elif line == "end":
            module = None
    return modules


def _joined(name: str) -> str:
    """With underscores for dots and indices."""
    return re.sub(r"[.(]", "__", name.replace(")(", "__").replace(")", ""))


def _name_module(module: _Module, modules: dict[str, _Module], hints: dict[str, str], *, top: bool) -> None:
    """Choose the names of a module; `hints`: what its parent connects to ports that are named after nets."""
    # In the order of the wires.
    for name in (name for name in module.wires if name in module.ports and not _NET_PORT.fullmatch(name)):
        module.names[name] = module.claim(name if top else _NUMBER.sub("", name))
    for cell in module.cells:
        if not cell.name[:1].isdigit():
            module.names[f"cell {cell.name}"] = module.claim(cell.name)
    behind = {
        match[1]: f"{cell.name}__{_NUMBER.sub('', port)}"
        for cell in module.cells
        if cell.kind in modules
        for port, signal in cell.connections.items()
        if (match := _WHOLE.fullmatch(signal)) and match[2] is None and not _NET_PORT.fullmatch(port)
    }
    # Those that were not made unique have their names first.
    for name in sorted(module.wires, key=lambda name: "$" in name):
        if name in module.names:
            continue
        base = _NUMBER.sub("", name)
        if _NET_PORT.fullmatch(name):
            base = hints.get(name, "port")
        elif base != name and name in behind:
            base = behind[name]
        module.names[name] = module.claim(base)
    for name in module.fields:
        root, rest = re.match(r"([^.(]*)(.*)", name).groups()  # type: ignore[union-attr]
        module.names[name] = module.claim(module.names.get(root, _NUMBER.sub("", root)) + _joined(rest))


def _hints(module: _Module, cell: _Cell) -> dict[str, str]:
    """What a module connects to those ports of a submodule that are named after nets."""
    found = {}
    for port, signal in cell.connections.items():
        match = _WHOLE.fullmatch(signal)
        if _NET_PORT.fullmatch(port) and match and match[1] in module.names:
            found[port] = "_".join([module.names[match[1]], *(part for part in match.groups()[1:] if part)])
    return found


def _rename(module: _Module, modules: dict[str, _Module], top: _Module) -> Iterator[str]:
    """The lines of a module with its names."""

    def own(match: re.Match[str]) -> str:
        return "\\" + module.names.get(match[0][1:], match[0][1:])

    cells = iter(module.cells)
    cell: _Cell | None = None
    for line in module.lines:
        words = line.split()
        if words[0] == "module":
            if module is top:
                yield "attribute \\top 1"
            yield f"module \\{module.title}"
        elif words[0] == "cell":
            cell = next(cells)
            kind = f"\\{modules[cell.kind].title}" if cell.kind in modules else words[1]
            name = module.names.get(f"cell {cell.name}")
            yield f"  cell {kind} {words[2] if name is None or words[2][0] == '$' else chr(92) + name}"
        elif words[0] == "connect" and line.startswith("    ") and cell is not None and cell.kind in modules:
            port = modules[cell.kind].names[words[1][1:]]
            yield f"    connect \\{port} {_NAME.sub(own, ' '.join(words[2:]))}"
        elif words[0] == "connect" and line.startswith("    "):
            yield f"    connect {words[1]} {_NAME.sub(own, ' '.join(words[2:]))}"
        elif words[:2] == ["parameter", "\\MEMID"]:
            memory = words[2].strip('"').lstrip("\\")
            yield f'    parameter \\MEMID "\\\\{module.names.get(memory, memory)}"'
        elif words[0] in ("attribute", "parameter"):
            yield line
        else:
            yield _NAME.sub(own, line)


def name_as_source(rtlil: str) -> str:
    """RTLIL with the names of its source; the ports of the top module keep theirs."""
    modules = _parse(rtlil)
    inside = {cell.kind for module in modules.values() for cell in module.cells}
    (top,) = (module for name, module in modules.items() if name not in inside)
    top.title = top.name
    pending: list[tuple[_Module, dict[str, str]]] = [(top, {})]
    while pending:
        module, hints = pending.pop()
        _name_module(module, modules, hints, top=module is top)
        for cell in module.cells:
            if cell.kind in modules:
                below = modules[cell.kind]
                below.title = f"{module.title}__{module.names[f'cell {cell.name}']}"
                pending.append((below, _hints(module, cell)))
    return "\n".join(line for module in modules.values() for line in _rename(module, modules, top)) + "\n"
