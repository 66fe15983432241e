"""Methods of devices: the host's are listed as its kernel knows them; none can be given to a qube yet."""

from __future__ import annotations

from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.host.devices import HostDevice, HostDevices
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire.errors import DeviceNotAssignedError, NotImplementedHereError, ValueInvalidError, printable

CLASSES = (*HostDevices.CLASSES, "mic")
"""Classes that upstream's clients ask for by name; of microphones there is none."""

CODE = 7


@method("admin.deviceclass.List", Access.READ)
def list_classes() -> str:
    """The classes of devices."""
    return "".join(f"{name}\n" for name in HostDevices.CLASSES)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def line(device: HostDevice, backend: str) -> str:
    """A device as the list of available ones has it."""
    pairs = {
        "device_id": device.ident, "port_id": device.port, "devclass": device.klass, "backend_domain": backend,
        "vendor": device.vendor, "product": device.product, "name": device.name, "serial": device.serial,
        "interfaces": device.interfaces,
    }  # fmt: skip
    words = " ".join(f"{key}={_quoted(text)}" for key, text in pairs.items() if text)
    return f"{device.port}:{device.ident} {words}"


@method("admin.vm.device.{klass}.Available", Access.READ, klass=CLASSES)
def available(context: Context, system: System, klass: str, dest: Domain, arg: str = "") -> str:
    """The devices that a qube offers: dom0 those of the host, other qubes none yet; the argument names one port."""
    if dest is not system.admin or klass not in HostDevices.CLASSES:
        return ""
    found = [device for device in context.devices.list(klass) if arg in ("", device.port)]
    return "".join(f"{line(device, dest.name)}\n" for device in found)


@method("admin.vm.device.{klass}.{what}", Access.READ, klass=CLASSES, what=("Assigned", "Attached"))
def list_given(klass: str, what: str, dest: Domain, arg: str = "") -> str:
    """The devices that a qube is to get, or has: none yet."""
    return ""


@method(
    "admin.vm.device.{klass}.{what}",
    Access.EXECUTE,
    klass=CLASSES,
    what=("Assign", "Attach", "Set.assignment"),
)
async def change_devices(klass: str, what: str, dest: Domain, arg: str, payload: str = "") -> None:
    """Give a qube a device: not supported here yet."""
    raise NotImplementedHereError(f"{dest.name}: {klass} devices cannot be given to a qube here yet")


@method("admin.vm.device.{klass}.{what}", Access.EXECUTE, klass=CLASSES, what=("Unassign", "Detach"))
async def take_devices(klass: str, what: str, dest: Domain, arg: str) -> None:
    """Take a device back: no qube has any."""
    raise DeviceNotAssignedError(f"{dest.name} has no device {printable(arg, 80)!r}")


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
