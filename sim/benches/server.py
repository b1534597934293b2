"""The cocotb test behind `nnloom.sim.rtl.RtlSimulator`: obeys commands from a socket until it is told to quit."""

import json
import os
import socket

import cocotb
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge

from nnloom.sim.portable.host_bus import HostBus, start_clock, wait_idle


async def _interrupt(dut, bus: HostBus, address: int, word: int, cycles: int) -> None:
    await bus.write_words([address], [word])
    if cycles:
        await ClockCycles(dut.clk, cycles)
    dut.rst.value = 1
    await ClockCycles(dut.clk, 1)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 1)


@cocotb.test()
async def serve(dut):
    """Run commands: one JSON object a line, answered by one line."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["NNLOOM_SERVER_SOCKET"])
    stream = connection.makefile("rwb")
    dut.play.value = 0
    bus = HostBus(dut)
    await start_clock(dut)
    while line := stream.readline():
        command = json.loads(line)
        result = None
        try:
            match command["op"]:
                case "play":
                    dut.play.value = 1
                    await RisingEdge(dut.playing)
                    await FallingEdge(dut.playing)
                    dut.play.value = 0
                    await ClockCycles(dut.clk, 4)
                case "read":
                    result = await bus.read_words(command["addresses"])
                case "interrupt":
                    await _interrupt(dut, bus, command["address"], command["word"], command["cycles"])
                case "wait":
                    await wait_idle(dut, cycles=command["cycles"])
                case "idle":
                    await ClockCycles(dut.clk, command["cycles"])
                case "quit":
                    stream.write(b'{"result": null}\n')
                    stream.flush()
                    return
            answer = {"result": result}
        except (TimeoutError, ValueError) as error:
            answer = {"error": str(error)}
        stream.write(json.dumps(answer).encode() + b"\n")
        stream.flush()
