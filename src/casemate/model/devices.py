"""Names of devices, and assignments: which device a qube gets at its start, as the store keeps it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from casemate.wire.errors import DeviceAssignmentModeError, ValueInvalidError, printable

ANY = "*"
"""For a port or an identity: whatever is there."""
MODES = ("auto-attach", "ask-to-attach", "required")
"""Modes of an assignment. A device that was attached by hand has the mode ``manual`` and is not stored."""
MAX_ASSIGNMENTS = 64
"""Limit of the Admin API (devices): devices assigned to a qube."""

_PORT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_IDENT = re.compile(r"[A-Za-z0-9_:.,+-]{1,128}")
_CLASS = re.compile(r"[a-z]{1,16}")
_OPTION = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VALUE = re.compile(r"[A-Za-z0-9_.:/-]{0,64}")


def _need(pattern: re.Pattern[str], text: str, what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueInvalidError(f"Not {what}: {printable(text, 80)!r}")
    return text


def device_class(text: str) -> str:
    """The name of a class of devices."""
    return _need(_CLASS, text, "a class of devices")


def port(text: str) -> str:
    """Where a device is, as its backend names it: ``loop0``, ``1-1``; or ANY."""
    return text if text == ANY else _need(_PORT, text, "a port of a device")


def identity(text: str) -> str:
    """What a device is, as its backend names it; or ANY."""
    return text if text == ANY else _need(_IDENT, text, "the identity of a device")


def options(pairs: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Options of an attachment, in order of names."""
    return tuple(
        (_need(_OPTION, key, "an option of a device"), _need(_VALUE, pairs[key], f"a value of option {printable(key)}"))
        for key in sorted(pairs)
    )


@dataclass(frozen=True, slots=True, order=True)
class DeviceRef:
    """One device, or any of a port or of an identity."""

    devclass: str
    backend: str
    port: str = ANY
    ident: str = ANY

    def __str__(self) -> str:
        """As events have it: ``BACKEND:PORT:IDENTITY``."""
        return f"{self.backend}:{self.port}:{self.ident}"

    def location(self) -> str:
        """Where it is: ``BACKEND:PORT``."""
        return f"{self.backend}:{self.port}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """A device that a qube gets at its start. A change replaces the object."""

    device: DeviceRef
    mode: str
    options: tuple[tuple[str, str], ...] = ()
    written: tuple[str, ...] | None = None
    """Attributes that its element in the store had besides backend and port; None: all. Files of older versions have
    fewer, and an assignment is written as it was read until it changes."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise DeviceAssignmentModeError(
                f"Not a mode of an assignment: {printable(self.mode, 40)!r}; there are {', '.join(MODES)}"
            )
        if self.device.port == ANY and self.device.ident == ANY:
            raise ValueInvalidError("An assignment names a port or an identity, or both")


def denies(devices_denied: str, interfaces: str) -> str:
    """The first of a device's interfaces that a list of denied ones covers; empty where none does.

    Interfaces are codes of 7 characters, a letter for the kind and six hexadecimal digits; ``*`` stands for any
    character, on both sides.
    """
    denied = [devices_denied[at : at + 7] for at in range(0, len(devices_denied), 7)]
    for at in range(0, len(interfaces), 7):
        code = interfaces[at : at + 7]
        if any(all(b in (a, "*") or a == "*" for a, b in zip(code, one, strict=False)) for one in denied):
            return code
    return ""
