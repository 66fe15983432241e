"""How devices are written on a command line, and described to people; pure."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.cli.tool import UsageError
from casemate.client import device_lines
from casemate.client.device_lines import ANY as ANY
from casemate.client.device_lines import parse_line as parse_line
from casemate.client.device_lines import payload as payload
from casemate.client.device_lines import place as place
from casemate.wire.errors import ValueInvalidError

_KINDS = (
    ("Network", ("u02****", "ue0****", "p02****", "p0703**")),
    ("Keyboard", ("u03**01", "p0900**")),
    ("Mouse", ("u03**02", "p0902**")),
    ("Input", ("u03****", "p09****")),
    ("Printer", ("u07****",)),
    ("Camera", ("u06****", "u0e****", "p0903**")),
    ("Microphone", ("m******",)),
    ("Audio", ("u01****", "p0401**", "p0403**", "p0408**")),
    ("Multimedia", ("u10****", "p03****", "p04****")),
    ("USB_Storage", ("u08****",)),
    ("Block_Storage", ("b******",)),
    ("Storage", ("p01****",)),
    ("Bluetooth", ("ue00101", "p0d11**")),
    ("Smart_Card_Readers", ("u0b****",)),
    ("Display", ("p0300**", "p0380**")),
    ("Memory", ("p05****",)),
    ("PCI_Bridge", ("p06****",)),
    ("Docking_Station", ("p0a****",)),
    ("Processor", ("p0b****", "p40****")),
    ("PCI_Serial_Bus", ("p0c****",)),
    ("PCI_USB", ("p0c03**",)),
)
"""Words for interfaces that matter to people, by code: bus, then class, subclass and protocol in hexadecimal.

The codes are those of PCI and USB-IF; the words are upstream's (its DeviceCategory), which scripts look for.
"""
_CODE = 7
"""Characters of an interface's code."""


def split(text: str) -> tuple[str, str, str]:
    """BACKEND:PORT[:IDENTITY] of the command line; the identity is ``*`` where none is given. Raises UsageError."""
    try:
        return device_lines.split(text)
    except ValueInvalidError as error:
        raise UsageError(str(error)) from None


def wire(text: str) -> str:
    """BACKEND:PORT[:IDENTITY] of the command line as the argument of a method. Raises UsageError."""
    return device_lines.argument(*split(text))


def kind(interfaces: str, devclass: str) -> str:
    """A word for what a device is, from its interfaces' codes: the first that has one, by its closest pattern."""
    for at in range(0, len(interfaces), _CODE):
        code = interfaces[at : at + _CODE]
        best, word = 0, ""
        for name, patterns in _KINDS:
            for pattern in patterns:
                same = sum(a == b for a, b in zip(code, pattern, strict=False))
                fits = len(code) == _CODE and all(b in (a, "*") for a, b in zip(code, pattern, strict=True))
                if fits and same > best:
                    best, word = same, name
        if word:
            return word
    return f"{devclass.upper()} device"


def description(device: Mapping[str, str]) -> str:
    """``KIND: VENDOR PRODUCT`` of a device of a list; what is not known is said."""

    def first(*keys: str) -> str:
        return next((device[key] for key in keys if device.get(key, "unknown") not in ("", "unknown")), "")

    devclass = device.get("devclass", "")
    what = first("product", "name", "serial")
    if not what and device.get("parent_port_id"):
        return f"sub-device of {device.get('backend_domain', '')}:{device['parent_port_id']}"
    vendor = first("vendor", "manufacturer") or "unknown vendor"
    return f"{kind(device.get('interfaces', ''), devclass)}: {vendor} {what or f'unknown {devclass} device'}"
