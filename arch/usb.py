"""How a board tells itself on USB, where its link is a USB device of its own (`nnloom.hw.usb_serial`)."""

__all__ = ["CRYSTAL_HZ", "MANUFACTURER", "PORTS", "PRODUCT", "PRODUCT_ID", "VENDOR_ID"]

VENDOR_ID = 0x1209
"""pid.codes, which gives numbers to open hardware"""
PRODUCT_ID = 0x0001
"""the one that pid.codes keeps for everyone's tests: who sells a device needs a number of their own"""
MANUFACTURER = "nnloom"
PRODUCT = "nnloom accelerator"
"""tells the board from other devices with that number"""
PORTS = ("usb_dp", "usb_dn", "usb_pullup")
"""ports of a system to the socket: D+, D-, the resistor that pulls D+ up"""
CRYSTAL_HZ = 25e6
"""what USB's clocks are made of"""
