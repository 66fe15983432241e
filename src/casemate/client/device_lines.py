"""Devices as the Admin API writes them: lines of its lists, arguments and payloads of its methods; pure."""

from __future__ import annotations

from casemate.wire.errors import ValueInvalidError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

ANY = "*"
"""Stands for whatever is at a port, or for a device at whatever port."""


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
    """The parts of BACKEND:PORT[:IDENTITY]; the identity is ``*`` where none is given. Raises ValueInvalidError."""
    backend, colon, rest = text.partition(":")
    if not backend or not colon or not rest:
        raise ValueInvalidError(f"a device is written BACKEND:DEVICE, not {text!r}")
    port, _, ident = rest.partition(":")
    return backend, port, ident or ANY


def argument(backend: str, port: str, ident: str) -> str:
    """A device as the argument of a method."""
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
