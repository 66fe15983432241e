"""Methods of devices: there are no classes of devices here yet, so nothing is available, assigned or attached."""

from __future__ import annotations

from casemate.api.method import Access, method
from casemate.model.domain import Domain
from casemate.wire.errors import NotImplementedHereError, ValueInvalidError

CLASSES = ("block", "mic", "pci", "usb")
"""Classes that upstream's clients ask for by name even where none is listed."""

CODE = 7


@method("admin.deviceclass.List", Access.READ)
def list_classes() -> str:
    """The classes of devices."""
    return ""


@method("admin.vm.device.{klass}.{what}", Access.READ, klass=CLASSES, what=("Available", "Assigned", "Attached"))
def list_devices(klass: str, what: str, dest: Domain, arg: str = "") -> str:
    """The devices that a qube offers, is to get, or has."""
    return ""


@method(
    "admin.vm.device.{klass}.{what}",
    Access.EXECUTE,
    klass=CLASSES,
    what=("Assign", "Unassign", "Attach", "Detach", "Set.assignment"),
)
async def change_devices(klass: str, what: str, dest: Domain, arg: str, payload: str = "") -> None:
    """Give a qube a device, or take it back."""
    raise NotImplementedHereError(f"{dest.name}: {klass} devices are not supported here yet")


def codes(text: str) -> list[str]:
    """The interfaces in a list of 7-character codes."""
    if len(text) % CODE:
        raise ValueInvalidError("Interfaces of devices are written as 7-character codes")
    return [text[start : start + CODE] for start in range(0, len(text), CODE)]


@method("admin.vm.device.denied.List", Access.READ)
def list_denied(dest: Domain) -> str:
    """The interfaces of devices that the qube may not get."""
    return "\n".join(codes(dest.text("devices_denied")))


@method("admin.vm.device.denied.Add", Access.WRITE)
def add_denied(dest: Domain, payload: str) -> None:
    """Deny some interfaces of devices."""
    dest.set_text("devices_denied", "".join(sorted({*codes(dest.text("devices_denied")), *codes(payload)})))


@method("admin.vm.device.denied.Remove", Access.WRITE)
def remove_denied(dest: Domain, payload: str) -> None:
    """Allow some interfaces of devices again, or ``all``."""
    gone = set(codes(dest.text("devices_denied"))) if payload == "all" else set(codes(payload))
    dest.set_text("devices_denied", "".join(sorted({*codes(dest.text("devices_denied"))} - gone)))
