"""The cocotb test behind `nnloom.sim.rtl.RtlSimulator`: obeys commands from a socket until it is told to quit."""

import json
import os
import socket

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, FallingEdge, First, RisingEdge, Timer

PERIOD_NS = 10


async def _request(dut, address: int, *, write: int, word: int = 0) -> None:
    dut.req_write.value = write
    dut.req_address.value = address
    dut.req_data.value = word
    dut.req_valid.value = 1
    while True:
        await FallingEdge(dut.clk)
        if dut.req_ready.value:
            break
    await RisingEdge(dut.clk)
    dut.req_valid.value = 0


async def _read(dut, address: int) -> int:
    await _request(dut, address, write=0)
    while True:
        await FallingEdge(dut.clk)
        if dut.rsp_valid.value:
            return int(dut.rsp_data.value)


async def _interrupt(dut, address: int, word: int, cycles: int) -> None:
    await _request(dut, address, write=1, word=word)
    if cycles:
        await ClockCycles(dut.clk, cycles)
    dut.rst.value = 1
    await ClockCycles(dut.clk, 1)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 1)


async def _wait(dut, cycles: int) -> None:
    # Give a start command that was just played the time to take effect.
    await ClockCycles(dut.clk, 4)
    if int(dut.busy.value):
        done, limit = FallingEdge(dut.busy), Timer(cycles * PERIOD_NS, unit="ns")
        if await First(done, limit) is limit:
            raise TimeoutError(f"accelerator still busy after {cycles} cycles")
        await ClockCycles(dut.clk, 2)


@cocotb.test()
async def serve(dut):
    """Run commands: one JSON object a line, answered by one line."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["NNLOOM_SERVER_SOCKET"])
    stream = connection.makefile("rwb")
    for name in ("play", "req_valid", "req_write", "req_address", "req_data"):
        getattr(dut, name).value = 0
    dut.rsp_ready.value = 1
    dut.rst.value = 1
    Clock(dut.clk, PERIOD_NS, unit="ns", impl="gpi").start()
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 2)
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
                    result = [await _read(dut, address) for address in command["addresses"]]
                case "interrupt":
                    await _interrupt(dut, command["address"], command["word"], command["cycles"])
                case "wait":
                    await _wait(dut, command["cycles"])
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
