"""Translates libvirt's errors into ours: the only table of its codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from casemate.wire.errors import (
    AlreadyExistsError,
    CasemateError,
    HypervisorError,
    NotFoundError,
    NotImplementedHereError,
    NotStartedError,
    OutOfMemoryError,
    printable,
)

_SPECIAL: dict[str, type[CasemateError]] = {
    "VIR_ERR_NO_MEMORY": OutOfMemoryError,
    "VIR_ERR_NO_DOMAIN": NotFoundError,
    "VIR_ERR_DOM_EXIST": AlreadyExistsError,
    "VIR_ERR_OPERATION_INVALID": NotStartedError,
    "VIR_ERR_NO_SUPPORT": NotImplementedHereError,
    "VIR_ERR_CONFIG_UNSUPPORTED": NotImplementedHereError,
    "VIR_ERR_ARGUMENT_UNSUPPORTED": NotImplementedHereError,
    "VIR_ERR_OPERATION_UNSUPPORTED": NotImplementedHereError,
}
"""Codes that mean something to a user; every other one is a HypervisorError."""

_LEVELS = ("VIR_ERR_NONE", "VIR_ERR_WARNING", "VIR_ERR_ERROR")  # levels of an error, not codes

CODES: dict[int, type[CasemateError]] = {
    value: _SPECIAL.get(name, HypervisorError)
    for name, value in vars(libvirt).items()
    if name.startswith("VIR_ERR_") and isinstance(value, int) and name not in _LEVELS
}
"""Every code that the installed libvirt knows."""


def code_of(error: libvirt.libvirtError) -> int:
    """libvirt's number; ``VIR_ERR_INTERNAL_ERROR`` where the binding lost it."""
    code = error.get_error_code()
    return code if isinstance(code, int) else int(libvirt.VIR_ERR_INTERNAL_ERROR)


def translate(error: libvirt.libvirtError, action: str) -> CasemateError:
    """Our error for one of libvirt's; ``action`` says what was asked, as in "start work"."""
    said = " ".join((error.get_error_message() or "no reason given").split())
    cls = CODES.get(code_of(error), HypervisorError)
    if "Cannot allocate memory" in said:  # QEMU's words inside an internal error
        cls = OutOfMemoryError
    text = printable(f"Cannot {action}: {said}", 1024)
    return NotFoundError(message=text) if cls is NotFoundError else cls(text)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn libvirt's errors of a block into ours, the cause kept."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise translate(error, action) from error
