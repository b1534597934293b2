"""Which serial ports `auto` takes for boards."""

from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from nnloom.arch import usb
from nnloom.runtime.devices.serial import find_boards


def _port(device, vid=None, pid=None, *, product=None, location=None):
    port = ListPortInfo(device)
    port.vid, port.pid, port.product, port.location = vid, pid, product, location
    return port


def test_ports_of_boards(monkeypatch):
    ports = [
        _port("/dev/ttyS0"),
        _port("/dev/ttyUSB0", 0x0403, 0x6015),
        _port("/dev/ttyUSB1", 0x0403, 0x6010, location="1-2:1.0"),
        _port("/dev/ttyUSB2", 0x0403, 0x6010, location="1-2:1.1"),
        _port("/dev/ttyUSB3", 0x2341, 0x0043, product="Arduino"),
        _port("/dev/ttyACM0", usb.VENDOR_ID, usb.PRODUCT_ID, product=usb.PRODUCT),
        # The same test number, another device.
        _port("/dev/ttyACM1", usb.VENDOR_ID, usb.PRODUCT_ID, product="pid.codes Test PID"),
    ]
    monkeypatch.setattr(list_ports, "comports", lambda: ports)
    assert find_boards() == ["/dev/ttyUSB0", "/dev/ttyUSB2", "/dev/ttyACM0"]
