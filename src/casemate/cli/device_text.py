"""How devices are written: lines of the Admin API's lists, arguments of its methods, descriptions for people; pure."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.cli.tool import UsageError

ANY = "*"
"""Stands for whatever is at a port, or for a device at whatever port."""

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


def parse_line(line: str) -> dict[str, str]:
    """A line of a list of devices: ``place`` and the pairs ``key='value'`` after it."""
    place, _, rest = line.partition(" ")
    found = {"place": place}
    while rest:
        key, equals, rest = rest.partition("='")
        if not equals:
            break
        value, at = [], 0
        while at < len(rest) and rest[at] != "'":
            at += rest[at] == "\\"
            value.append(rest[at : at + 1])
            at += 1
        found[key] = "".join(value)
        rest = rest[at + 2 :]
    return found


def split(text: str) -> tuple[str, str, str]:
    """BACKEND:PORT[:IDENTITY] of the command line; the identity is ``*`` where none is given. Raises UsageError."""
    backend, colon, rest = text.partition(":")
    if not backend or not colon or not rest:
        raise UsageError(f"a device is written BACKEND:DEVICE, not {text!r}")
    port, _, ident = rest.partition(":")
    return backend, port, ident or ANY


def wire(text: str) -> str:
    """BACKEND:PORT[:IDENTITY] as the argument of a method."""
    backend, port, ident = split(text)
    return f"{backend}+{port.replace(ANY, '_')}+{ident.replace(':', '+').replace(ANY, '_')}"


def payload(devclass: str, device: str, mode: str, options: Mapping[str, str]) -> str:
    """What Attach and Assign take besides the device, ``device`` as wire() writes it."""
    backend, port, _ = device.split("+", 2)
    pairs = {
        "port_id": ANY if port == "_" else port,
        "devclass": devclass,
        "backend_domain": backend,
    }
    pairs |= {"mode": mode, **{f"_{key}": text for key, text in options.items()}}
    quoted = {key: text.replace("\\", "\\\\").replace("'", "\\'") for key, text in pairs.items()}
    return " ".join(f"{key}='{text}'" for key, text in quoted.items())


def place(device: Mapping[str, str]) -> str:
    """Where a device of a list is: BACKEND:PORT."""
    return f"{device.get('backend_domain', '')}:{device.get('port_id', '')}"


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
