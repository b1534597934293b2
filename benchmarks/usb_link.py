"""What the USB link takes: bytes a millisecond and the time of a round trip at the pins, and the networks' times.

    python benchmarks/usb_link.py           everything; some minutes
    python benchmarks/usb_link.py --bus     the bus alone

The bus is simulated: the RTL of a small system with its USB device in Verilator, a host in cocotb that asks for bytes
between any two packets that it sends, frames' starts and ends included. An inference's bytes are counted on the line
between the driver and a board in Python, its cycles are those of `benchmarks/boards.py`; its time is that of the bytes
each way, of the cycles, and of a round trip. Results go to benchmarks/results/usb_link.json and docs/usb.md.

This module is the benchmark's and cocotb's at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.task import bridge

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nnloom.arch.errors import DeviceError
from nnloom.arch.files import write_atomically
from nnloom.arch.isa import HostAddress, Register
from nnloom.runtime.devices.serial import SerialDevice, SerialLink
from nnloom.sim.cocotb import UsbPort
from nnloom.sim.cocotb.usb import start_usb_clocks
from tests.artifacts import SMALL

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "usb.md"
RESULTS = ROOT / "benchmarks" / "results" / "usb_link.json"
BEGIN, END = "<!-- usb: written by benchmarks/usb_link.py -->", "<!-- end of usb -->"
BOARD = "ulx3s-85f"
CONFIG = replace(SMALL, activation_bytes=32768)
BARS_MS = {"keyword_spotting": 1.0, "image_classification": 3.6, "visual_wake_words": 28.0, "anomaly_detection": 1.4}
PACKET = 64


def _rate(times: list[tuple[int, int]]) -> float:
    """Bytes a millisecond of packets that follow each other: (end in ps, bytes)."""
    return sum(size for _, size in times[1:]) / (times[-1][0] - times[0][0]) * 1e9


def _full(times: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest run of full packets."""
    runs: list[list[tuple[int, int]]] = [[]]
    for time in times:
        if time[1] == PACKET:
            runs[-1].append(time)
        elif runs[-1]:
            runs.append([])
    return max(runs, key=len)


@cocotb.test()
async def bus(dut: Any) -> None:
    """Rates of both directions, and a round trip."""
    await start_usb_clocks(dut)
    port = UsbPort(dut)
    await port.start()
    link = SerialLink(lambda: port, baud=port.baud, frame_seconds=0.01, clock=port.clock, sleep=port.sleep)
    device = SerialDevice(link)
    await bridge(link.connect)()
    rng = np.random.default_rng(0)
    count = CONFIG.activation_bytes // 4
    addresses = np.arange(HostAddress.ACTIVATIONS, HostAddress.ACTIVATIONS + 4 * count, 4, dtype=np.uint32)
    port.counts.out_times.clear()
    await bridge(device.write_words)(addresses, rng.integers(0, 1 << 32, count, np.uint32))
    out = _rate(port.counts.out_times)
    port.counts.in_times.clear()
    await bridge(device.read_words)(addresses[:2000])
    status = np.array([HostAddress.REGISTERS + Register.STATUS], np.uint32)
    trips = []
    for _ in range(20):
        before = port.clock()
        await bridge(device.read_words)(status)
        trips.append(port.clock() - before)
    result = {
        "out_bytes_ms": round(out, 1),
        "in_bytes_ms": round(_rate(_full(port.counts.in_times)), 1),
        "round_trip_us": round(1e6 * max(trips), 1),
        "answer_bits": [round(min(port.counts.answer_bits), 1), round(max(port.counts.answer_bits), 1)],
    }
    Path(os.environ["USB_RESULT"]).write_text(json.dumps(result))


def measure_bus() -> dict[str, Any]:
    """Simulate it."""
    from nnloom.sim.build import cocotb_environment
    from nnloom.sim.usb_bench import TOPLEVEL, build_usb_bench

    program = build_usb_bench(CONFIG)
    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        folder = Path(temporary)
        env = cocotb_environment(Path(__file__).stem, toplevel=TOPLEVEL, folder=folder)
        env |= {"USB_RESULT": str(folder / "result.json")}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT), env["PYTHONPATH"]])
        subprocess.run([str(program)], env=env, check=True, stdout=subprocess.DEVNULL)
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def count_bytes(name: str) -> dict[str, int]:
    """Bytes of an inference each way, after the network was loaded.

    Raises
    ------
    DeviceError
        If an output is not the CPU's.
    """
    from run import random_inputs

    from nnloom.compiler import zoo
    from nnloom.compiler.api import compile
    from nnloom.runtime import InferenceSession
    from tests.board_twin import twin_device

    with tempfile.TemporaryDirectory(prefix="nnloom-") as temporary:
        artifact = compile(zoo.fetch(name), board=BOARD, output=Path(temporary) / name).path
        with InferenceSession(artifact, "cpu") as cpu:
            line, device = twin_device(cpu.artifact.manifest.config)
            with InferenceSession(artifact, device, fallback=False) as session:
                first, second = (value[None] for value in random_inputs(artifact)[:2])
                session.run(first)
                line.arm()
                got, want = session.run(second), cpu.run(second)
                if any(not np.array_equal(got[output], want[output]) for output in want):
                    raise DeviceError(f"{name}: outputs differ")
    return {"bytes_out": line.count[True], "bytes_in": line.count[False]}


def end_to_end(entry: dict[str, Any], measured: dict[str, Any], clock_hz: float) -> float:
    """Milliseconds from the first byte to the last one."""
    bus_ms = entry["bytes_out"] / measured["out_bytes_ms"] + entry["bytes_in"] / measured["in_bytes_ms"]
    return round(bus_ms + 1e3 * entry["cycles"] / clock_hz + measured["round_trip_us"] / 1e3, 2)


def table(document: dict[str, Any]) -> str:
    """Of `docs/usb.md`."""
    bits = document["bus"]
    lines = [
        f"{bits['out_bytes_ms']:,.0f} bytes a millisecond to the board, {bits['in_bytes_ms']:,.0f} from it, "
        f"{bits['round_trip_us']:g} us for a round trip of the shortest frames. On `{BOARD}`:",
        "",
        "| network | bytes to the board | bytes from it | engine | end to end |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, entry in document["networks"].items():
        cells = [name.replace("_", " "), f"{entry['bytes_out']:,}", f"{entry['bytes_in']:,}"]
        cells += [f"{1e3 * entry['cycles'] / document['clock_hz']:.2f} ms", f"{entry['end_to_end_ms']:.2f} ms"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and write."""
    from run import write_readme

    from nnloom.boards import get

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bus", action="store_true", help="only the bus; the networks as they were measured before")
    options = parser.parse_args()
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"networks": {}}
    clock_hz = get(BOARD).clock_hz
    document |= {"command": "python benchmarks/usb_link.py", "board": BOARD, "clock_hz": clock_hz}
    document["bus"] = measure_bus()
    print(document["bus"], flush=True)
    rows = json.loads((RESULTS.parent / "boards.json").read_text())["boards"]
    (row,) = (row for row in rows if row["name"] == BOARD)
    for name in BARS_MS:
        entry = document["networks"].setdefault(name, {})
        if not options.bus:
            entry |= count_bytes(name)
        if entry:
            entry["cycles"] = row["networks"][name]["cycles"]
            entry["end_to_end_ms"] = end_to_end(entry, document["bus"], clock_hz)
            print(name, entry, flush=True)
    document["networks"] = {name: entry for name, entry in document["networks"].items() if entry}
    write_atomically(RESULTS, (json.dumps(document, indent=1) + "\n").encode())
    write_readme(table(document), DOCUMENT, begin_mark=BEGIN, end_mark=END)
    late = [name for name, entry in document["networks"].items() if entry["end_to_end_ms"] > BARS_MS[name]]
    print(f"later than the bar: {', '.join(late)}" if late else "all within the bars")
    return bool(late)


if __name__ == "__main__":
    raise SystemExit(main())
