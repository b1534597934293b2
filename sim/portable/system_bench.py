"""Test bench of an exported system: `pytest` runs it.

Over its serial line it loads the network that lies in `artifact`, runs the recorded inputs and compares each output,
bit by bit, with the golden model's answer. Needs nnloom with its simulation (`pip install 'nnloom[sim]'`), pytest, and
Icarus Verilog or Verilator. `SIM=icarus pytest` chooses the simulator, `WAVES=1` writes waves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
import pytest

from nnloom.sim.cocotb import Accelerator, UartPort
from nnloom.sim.portable.simulators import run_bench

HERE = Path(__file__).resolve().parent
EXPORT = json.loads((HERE / "export.json").read_text())
TOP = "nnloom_system"


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
    run_bench(Path(__file__).resolve(), TOP, (TOP,), prefer="verilator", setenv=monkeypatch.setenv)
