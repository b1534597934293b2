"""cocotb tests of one's own against a compiled network: drivers, monitor, scoreboard, runner (docs/cocotb.md).

`Accelerator` is all that most tests need. The classes that drive a simulation (all but `run_tests` and the helpers for
simulators) are used within a cocotb test.
"""

from nnloom.sim.portable.axi_lite_host import AxiLiteHost
from nnloom.sim.portable.host_bus import EngineWrite, HostBus, WishboneHost, WriteMonitor, start_clock, wait_idle
from nnloom.sim.portable.simulators import find_simulators, find_verilator, simulator_environment

from .accelerator import Accelerator, Host, rtl_writes
from .port import LinePort
from .runner import run_tests
from .uart import UartPort
from .usb import UsbPort, start_usb_clocks

__all__ = [
    "Accelerator",
    "AxiLiteHost",
    "EngineWrite",
    "Host",
    "HostBus",
    "LinePort",
    "UartPort",
    "UsbPort",
    "WishboneHost",
    "WriteMonitor",
    "find_simulators",
    "find_verilator",
    "rtl_writes",
    "run_tests",
    "simulator_environment",
    "start_clock",
    "start_usb_clocks",
    "wait_idle",
]
