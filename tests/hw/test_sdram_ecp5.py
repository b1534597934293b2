"""The ECP5's pads for SDRAM: which cells Yosys makes of them, and the margins of what is read."""

import json

import pytest

from nnloom.hw.emit import emit_rtlil, run_yosys
from nnloom.hw.sdram_ecp5 import Ecp5SdramPins, read_margins
from nnloom.hw.sdram_timing import ULX3S_SDRAM


@pytest.mark.fpga
def test_every_pad_has_its_registers(tmp_path) -> None:
    """nextpnr puts flip-flops with `syn_useioff` into the pad that is their only user."""
    (tmp_path / "design.il").write_text(emit_rtlil(Ecp5SdramPins(ULX3S_SDRAM), "top"))
    run_yosys("read_rtlil design.il\nsynth_ecp5 -top top -json design.json\n", folder=tmp_path)
    module = json.loads((tmp_path / "design.json").read_text())["modules"]["top"]
    cells = list(module["cells"].values())
    registers = [cell for cell in cells if cell["type"] == "TRELLIS_FF"]
    assert all("syn_useioff" in register["attributes"] for register in registers)
    pads = [cell for cell in cells if cell["type"] == "TRELLIS_IO"]
    bidirectional = [pad for pad in pads if pad["parameters"]["DIR"] == "BIDIR"]
    chip = ULX3S_SDRAM
    outputs = 1 + 5 + chip.address_bits + 2 + chip.data_bits // 8
    assert (len(pads), len(bidirectional)) == (outputs + chip.data_bits, chip.data_bits)
    # One register an output but the clock; data pads have three of their own.
    assert len(registers) == outputs - 1 + 3 * chip.data_bits
    users: dict[int, int] = {}
    for cell in cells:
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "input":
                for bit in bits:
                    users[bit] = users.get(bit, 0) + 1
    for pad in pads:
        assert users[pad["connections"]["I"][0]] == 1
    for pad in bidirectional:
        assert users[pad["connections"]["T"][0]] == users[pad["connections"]["O"][0]] == 1
    assert module["ports"]["sdram_d_15"]["direction"] == "inout"
    assert {"sdram_clk", "sdram_cke", "sdram_csn", "sdram_rasn", "sdram_casn", "sdram_wen"} <= set(module["ports"])


def test_read_margins() -> None:
    """At 120 MHz a round trip of 2 to 7 ns is right; at 50 MHz the word after would be taken."""
    for round_trip, fits in ((1.5, False), (2, True), (4.5, True), (7, True), (7.5, False)):
        assert (min(read_margins(ULX3S_SDRAM, 120e6, round_trip_ns=round_trip)) > 0) == fits, round_trip
    assert read_margins(ULX3S_SDRAM, 50e6, round_trip_ns=4.5)[1] < 0
