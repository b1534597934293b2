"""Logic of your own in front of the engine: a camera's pixels become the input of a network, within one FPGA.

    nnloom compile image_classification.tflite --board ulx3s-85f -o build/ic
    python examples/camera.py build/ic

simulates two frames in Verilator and compares every output with the golden model's. `Rgb565` is the logic: it makes
int8 values of the two bytes a pixel that camera modules send. `Camera` connects it with the engine. On a board the
engine comes with the rest of the system (docs/streams.md); here the test bench loads it over its host bus. The
artifact's network takes one image of three channels; operators behind its region on the accelerator are left out.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.triggers import FallingEdge
from cocotb_tools.check_results import get_results
from numpy.typing import NDArray

from nnloom.arch.artifact import Artifact, Region
from nnloom.arch.config import AcceleratorConfig
from nnloom.arch.files import Scratch
from nnloom.arch.flash_image import flash_image
from nnloom.hw.emit import emit_verilog
from nnloom.hw.stream_ports import StreamEngine, StreamOctet
from nnloom.sim.build import build_simulator, build_verilator, cocotb_environment
from nnloom.sim.cocotb import HostBus, start_clock
from nnloom.sim.golden import GoldenModel

HOST_PORTS = {
    **{"req_valid": In(1), "req_ready": Out(1), "req_write": In(1), "req_address": In(32), "req_data": In(32)},
    **{"rsp_valid": Out(1), "rsp_ready": In(1), "rsp_data": Out(32)},
}
"""Those of the host bus that `nnloom.sim.cocotb.HostBus` drives"""
ARTIFACT = "CAMERA_ARTIFACT"
"""Variable of the environment that tells the test bench which artifact it simulates."""
FRAMES = 2


class Rgb565(wiring.Component):
    """Pixels of 5, 6 and 5 bits, the byte with red first, to three int8 values: 0 to 31 become -128 to 127."""

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pixel, count = Signal(16), Signal(3)
        """`count`: 0 and 1 take the bytes, 2 to 4 give red, green and blue."""
        red, green, blue = pixel[11:], pixel[5:11], pixel[:5]
        value = Mux(count == 2, Cat(red[2:], red), Mux(count == 3, Cat(green[4:], green), Cat(blue[2:], blue)))
        m.d.comb += [self.i.ready.eq(count < 2), self.o.valid.eq(count >= 2), self.o.payload.eq(value ^ 0x80)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [pixel.eq(Cat(self.i.payload, pixel)), count.eq(count + 1)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += count.eq(Mux(count == 4, 0, count + 1))
        return m


class Camera(wiring.Component):
    """The engine behind `Rgb565`.

    Members
    -------
    pixels : In(stream of bytes)
    scores : Out(stream of StreamOctet); the outputs of the network's region
    enable : In; the network is loaded
    busy, failed : Out; a program runs; the last one has failed
    req_valid and so on : the host bus, as of `nnloom.hw.engine_top.EngineTop`
    """

    def __init__(self, config: AcceleratorConfig, region: Region) -> None:
        self.config, self.region = config, region
        streams = {"pixels": In(stream.Signature(8)), "scores": Out(stream.Signature(StreamOctet))}
        super().__init__({**streams, "enable": In(1), "busy": Out(1), "failed": Out(1), **HOST_PORTS})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.front_end = front_end = Rgb565()
        m.submodules.engine = engine = StreamEngine(self.config, self.region)
        connect(m, flipped(self.pixels), front_end.i)
        connect(m, front_end.o, engine.i)
        connect(m, engine.o, flipped(self.scores))
        request, response = engine.host.request, engine.host.response
        m.d.comb += [
            engine.enable.eq(self.enable),
            self.busy.eq(engine.busy),
            self.failed.eq(engine.failed),
            request.valid.eq(self.req_valid),
            request.payload.eq(Cat(self.req_write, self.req_address, self.req_data)),
            self.req_ready.eq(request.ready),
            self.rsp_valid.eq(response.valid),
            self.rsp_data.eq(response.payload.data),
            response.ready.eq(self.rsp_ready),
        ]
        return m


def values_of(frame: NDArray[np.uint16]) -> NDArray[np.int8]:
    """What `Rgb565` makes of pixels, in NumPy: int8 [..., 3]."""
    red, green, blue = frame >> 11, frame >> 5 & 63, frame & 31
    values = np.stack([red << 3 | red >> 2, green << 2 | green >> 4, blue << 3 | blue >> 2], axis=-1)
    return (values.astype(np.int16) - 128).astype(np.int8)


def answers(artifact: Artifact, image: NDArray[np.int8]) -> bytes:
    """The region's outputs, by the golden model."""
    (region,) = artifact.manifest.regions
    model = GoldenModel(artifact.manifest.config, artifact.program, artifact.weights, artifact.tables)
    model.write_tensor(region.inputs[0], image.reshape(region.inputs[0].shape))
    model.run(region.program_start)
    return b"".join(model.read_tensor(location).tobytes() for location in region.outputs)


async def feed(dut: Any, data: bytes) -> None:
    """The camera, which pauses now and then. At falling edges everything has settled."""
    pauses = random.Random(1)
    for byte in data:
        dut.pixels__valid.value = 0
        while pauses.random() < 0.1:
            await FallingEdge(dut.clk)
        dut.pixels__payload.value, dut.pixels__valid.value = byte, 1
        taken = False
        while not taken:
            taken = bool(dut.pixels__ready.value)
            await FallingEdge(dut.clk)
    dut.pixels__valid.value = 0


async def take(dut: Any) -> bytes:
    """The outputs of an inference; whoever takes them pauses, too."""
    pauses, data, last = random.Random(2), bytearray(), False
    while not last:
        ready = pauses.random() < 0.7
        dut.scores__ready.value = int(ready)
        if ready and dut.scores__valid.value:
            payload = int(dut.scores__payload.value)
            data.append(payload & 0xFF)
            last = bool(payload >> 8)
        await FallingEdge(dut.clk)
    dut.scores__ready.value = 0
    return bytes(data)


@cocotb.test()
async def frames_are_answered_as_by_the_golden_model(dut: Any) -> None:
    """Frames one after the other; the answers are awaited meanwhile."""
    artifact = Artifact.load(os.environ[ARTIFACT])
    for name in ("enable", "pixels__valid", "scores__ready"):
        getattr(dut, name).value = 0
    host = HostBus(dut)
    await start_clock(dut)
    for burst in flash_image(artifact.image).bursts:
        await host.write_words(burst.addresses().tolist(), burst.words.tolist())
    dut.enable.value = 1
    (region,) = artifact.manifest.regions
    (place,) = region.inputs
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 1 << 16, (FRAMES, place.rows, place.columns), np.uint16)
    await FallingEdge(dut.clk)
    cocotb.start_soon(feed(dut, frames.astype(">u2").tobytes()))
    for number, frame in enumerate(frames):
        got, want = await take(dut), answers(artifact, values_of(frame))
        assert got == want, f"frame {number} is answered otherwise than by the golden model"
        assert not dut.failed.value
        print(f"frame {number}: {len(got)} outputs, those of the golden model", flush=True)


def main(arguments: list[str]) -> None:
    """Write the Verilog, build the simulator, run the test above."""
    if len(arguments) != 1:
        raise SystemExit(f"usage: {sys.argv[0]} ARTIFACT")
    artifact = Artifact.load(arguments[0])
    regions = artifact.manifest.regions
    if len(regions) != 1 or [place.channels for place in regions[0].inputs] != [3]:
        raise SystemExit(f"{arguments[0]}: not a network of one region with one input of three channels")
    config, region = artifact.manifest.config, regions[0]
    design = Camera(config, region)
    ports = [*HOST_PORTS, "clk", "rst", "enable", "busy", "failed"]
    ports += [f"{name}__{part}" for name in ("pixels", "scores") for part in ("valid", "ready", "payload")]

    def build(folder: Path) -> None:
        print("building the simulator (once for each network, a minute or two)", flush=True)
        (folder / "camera.v").write_text(emit_verilog(design, "camera"))
        build_verilator(folder, toplevel="camera", sources=["camera.v"], public=ports)

    simulator = build_simulator("sim", __file__, [str(config.hash), repr(region)], build)
    with Scratch("camera") as scratch:
        environment = cocotb_environment(Path(__file__).stem, toplevel="camera", folder=scratch.path)
        environment[ARTIFACT] = str(Path(arguments[0]).absolute())
        subprocess.run([str(simulator / "camera")], env=environment, cwd=scratch.path, check=True)
        tests, failed = get_results(scratch.path / "results.xml")
    if failed or not tests:
        raise SystemExit("the simulation differs from the golden model; what cocotb says stands above")


if __name__ == "__main__":
    main(sys.argv[1:])
