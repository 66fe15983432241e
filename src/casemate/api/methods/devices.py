"""Methods of devices: which are offered, which are attached, which are assigned for each start.

Which classes there are, and which of their devices can be given to qubes, is declared in ``casemate.devices``. A
device is written ``BACKEND+PORT+IDENTITY`` in an argument, ``BACKEND:PORT:IDENTITY`` in an event, and
``PORT:IDENTITY key='value' ...`` in a list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping

from casemate import devices as device_classes
from casemate.api.context import Context
from casemate.api.method import Access, method
from casemate.devices.block import NAME as BLOCK
from casemate.devices.device_class import UNKNOWN_INTERFACE, Attachment, HostDevice
from casemate.model.devices import ANY, MODES, Assignment, DeviceRef, identity, options, port
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import (
    DeviceNotAssignedError,
    DisconnectedError,
    ProtocolError,
    ValueInvalidError,
    printable,
)

CLASSES = (*device_classes.load(), "mic")
"""The classes of this host, and one more that upstream's clients ask for by name; of microphones there is none."""

OFFERED_PREFIX = "/qubes-block-devices/"
"""Where a qube says in its database which block devices it offers: ``NAME/desc``, ``NAME/size``, ``NAME/mode``."""
MAX_OFFERED = 64
"""Limit of the Admin API (devices): block devices that a qube may say it offers."""

CODE = 7
"""Characters of an interface's code."""
_PAIR = re.compile(r"([a-z_][a-z0-9_-]{0,39})='((?:[^'\\\\]|\\\\.)*)'(?: |$)")
_OFFERED_NAME = re.compile(rb"[a-z][a-z0-9]{0,11}")
_OFFERED_SIZE = re.compile(rb"[0-9]{1,19}")
_DESCRIPTION = re.compile(rb"[ -~]{0,128}")


# -- how devices are written


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _line(head: str, pairs: Mapping[str, str]) -> str:
    return " ".join([head, *(f"{key}={_quoted(text)}" for key, text in pairs.items() if text)]) + "\n"


def _pairs(payload: str) -> dict[str, str]:
    """The list ``key='value' ...`` of a payload."""
    found: dict[str, str] = {}
    at = 0
    while at < len(payload):
        match = _PAIR.match(payload, at)
        if match is None or match[1] in found:
            raise ProtocolError(f"Not a list of key='value': {printable(payload[at:], 40)!r}")
        found[match[1]] = re.sub(r"\\(.)", r"\1", match[2])
        at = match.end()
    return found


def parse_ref(devclass: str, arg: str) -> DeviceRef:
    """A device in an argument. In an identity ``:`` is written ``+``; ``_`` stands for any."""
    parts = arg.split("+", 2)
    if len(parts) < 2:
        raise ProtocolError("A device is written BACKEND+PORT+IDENTITY")
    backend, where, ident = parts[0], parts[1], parts[2] if len(parts) == 3 else "_"
    ident = ident.replace("_______", UNKNOWN_INTERFACE).replace("+", ":")
    return DeviceRef(
        devclass,
        str(names.qube_name(backend)),
        ANY if where == "_" else port(where),
        ANY if ident in ("_", "0000:0000::" + UNKNOWN_INTERFACE, UNKNOWN_INTERFACE) else identity(ident),
    )


def _given_options(pairs: Mapping[str, str]) -> dict[str, str]:
    return {key[1:]: text for key, text in pairs.items() if key.startswith("_")}


def _check_payload(device: DeviceRef, dest: Domain, pairs: Mapping[str, str]) -> None:
    """Refuse a payload that contradicts the call: some facts are in both."""
    same = {
        "backend_domain": device.backend,
        "port_id": device.port,
        "devclass": device.devclass,
        "frontend_domain": dest.name,
    }
    for key, expected in same.items():
        if key in pairs and pairs[key] not in (expected, ANY) and expected != ANY:
            raise ProtocolError(f"{key} is {printable(pairs[key], 40)!r} in the payload and {expected!r} in the call")


def line(device: HostDevice, backend: str) -> str:
    """A device as the list of available ones has it."""
    return _line(f"{device.port}:{device.ident}", _described(device, backend))


def _described(device: HostDevice, backend: str) -> dict[str, str]:
    found = {
        "device_id": device.ident, "port_id": device.port, "devclass": device.klass, "backend_domain": backend,
        # Clients show the product; a USB device says its own name, which tells people more than its number.
        "vendor": device.vendor, "product": (device.klass == "usb" and device.name) or device.product,
        "name": device.name, "serial": device.serial,
        "interfaces": device.interfaces, "parent_port_id": device.whole,
        "parent_devclass": device.klass if device.whole else "",
    }  # fmt: skip
    if device.size is not None:
        # Upstream lets a class of devices add keys of its own with a leading "_".
        found.update({"_size": str(device.size), "_mode": "r" if device.readonly else "w"})
    return found


# -- which devices are offered


@method("admin.deviceclass.List", Access.READ)
def list_classes() -> str:
    """The classes of devices."""
    return "".join(f"{name}\n" for name in CLASSES if name != "mic")


@method("admin.vm.device.{klass}.Available", Access.EXECUTE, klass=CLASSES)
async def available(context: Context, klass: str, dest: Domain, arg: str = "") -> str:
    """The devices that a qube offers; the argument names one port.

    dom0 offers those of the host that it does not use itself, other qubes the block devices that they name in their
    database (which are what the qube says, and cannot be attached to others here).
    """
    if dest is dest.admin():
        found = context.devices.offered(klass)
    else:
        found = await _offered(context, dest) if klass == BLOCK else []
    return "".join(line(device, dest.name) for device in found if arg in ("", device.port))


async def _offered(context: Context, dest: Domain) -> list[HostDevice]:
    if context.state(dest) != "Running":
        return []
    try:
        untrusted_keys = await context.guests.database(dest.name, OFFERED_PREFIX)
    except DisconnectedError:
        return []
    return parse_offered(untrusted_keys)


def parse_offered(untrusted_keys: Mapping[str, bytes]) -> list[HostDevice]:
    """The block devices that a qube says it has. The qube is not trusted: a device with a malformed entry is left
    out."""
    by_name: dict[str, dict[str, bytes]] = {}
    for path, untrusted_value in untrusted_keys.items():
        name, _, key = path.removeprefix(OFFERED_PREFIX).partition("/")
        if _OFFERED_NAME.fullmatch(name.encode("utf-8", "replace")) and key in ("desc", "size", "mode"):
            if name not in by_name and len(by_name) >= MAX_OFFERED:
                continue
            by_name.setdefault(name, {})[key] = untrusted_value
    found = []
    for name, untrusted in sorted(by_name.items()):
        size, text = untrusted.get("size", b""), untrusted.get("desc", b"")
        if not _OFFERED_SIZE.fullmatch(size) or int(size) % 512:
            continue
        shown = text.decode("ascii") if _DESCRIPTION.fullmatch(text) else ""
        readonly = untrusted.get("mode", b"r") != b"w"
        found.append(HostDevice(BLOCK, name, name, name=shown, interfaces="b******", size=int(size), readonly=readonly))
    return found


# -- which devices are assigned


def _port_filter(arg: str) -> tuple[str, str]:
    backend, _, where = arg.partition("+")
    return backend, where


@method("admin.vm.device.{klass}.Assigned", Access.READ, klass=CLASSES)
def list_assigned(klass: str, dest: Domain, arg: str = "") -> str:
    """The devices that are assigned to a qube; the argument names one, ``BACKEND+PORT``."""
    backend, where = _port_filter(arg)
    found = []
    for one in dest.devices:
        device = one.device
        if device.devclass != klass or (arg and (device.backend, device.port) != (backend, where)):
            continue
        found.append(_given_line(dest, device, one.mode, one.options))
    return "".join(found)


def _given_line(dest: Domain, device: DeviceRef, mode: str, given: Iterable[tuple[str, str]]) -> str:
    pairs = {
        "device_id": device.ident, "port_id": device.port, "devclass": device.devclass,
        "backend_domain": device.backend, "mode": mode, "frontend_domain": dest.name,
        **{f"_{key}": text for key, text in given},
    }  # fmt: skip
    return _line(f"{device.backend}+{device.port}:{device.ident}", pairs)


@method("admin.vm.device.{klass}.Assign", Access.WRITE, klass=CLASSES)
def assign(context: Context, system: System, klass: str, dest: Domain, arg: str, payload: str = "") -> None:
    """Assign a device: the qube gets it at each start."""
    device, pairs = parse_ref(klass, arg), _pairs(payload)
    system.domains.find(device.backend)
    given = options(_given_options(pairs))
    context.devices.check(device, dict(given))
    if dest is system.admin:
        raise ValueInvalidError(f"Devices are not assigned to {dest.name}")
    _check_payload(device, dest, pairs)
    device = DeviceRef(klass, device.backend, device.port, _ident_of(device, pairs))
    dest.devices.add(Assignment(device, pairs.get("mode", "required"), given))


def _ident_of(device: DeviceRef, pairs: Mapping[str, str]) -> str:
    """The identity of the device: clients put it into the argument, the payload or both."""
    said = pairs.get("device_id", ANY)
    return identity(said) if device.ident == ANY and said != UNKNOWN_INTERFACE else device.ident


@method("admin.vm.device.{klass}.Unassign", Access.WRITE, klass=CLASSES)
def unassign(klass: str, dest: Domain, arg: str) -> None:
    """Remove an assignment."""
    dest.devices.remove(_assigned(dest, parse_ref(klass, arg)))


@method("admin.vm.device.{klass}.Set.assignment", Access.WRITE, klass=CLASSES)
def set_assignment(klass: str, dest: Domain, arg: str, payload: str) -> None:
    """Change the mode of an assignment: required, auto-attach or ask-to-attach."""
    device = _assigned(dest, parse_ref(klass, arg))
    if payload not in MODES:
        raise ProtocolError(f"Not a mode of an assignment: {printable(payload, 40)!r}; there are {', '.join(MODES)}")
    dest.devices.set_mode(device, payload)


def _assigned(dest: Domain, device: DeviceRef) -> DeviceRef:
    """The assignment of exactly that device, or else the only one of that port."""
    if device in dest.devices:
        return device
    same = [one.device for one in dest.devices if one.device.location() == device.location()]
    same = [one for one in same if one.devclass == device.devclass and ANY in (device.ident, one.ident)]
    if len(same) != 1:
        raise DeviceNotAssignedError(f"{device.devclass} device {device} is not assigned to {dest.name}")
    return same[0]


# -- which devices are attached


@method("admin.vm.device.{klass}.Attached", Access.EXECUTE, klass=CLASSES)
async def list_attached(context: Context, klass: str, dest: Domain, arg: str = "") -> str:
    """The devices that a running qube has; the argument names one, ``BACKEND+PORT``."""
    backend, where = _port_filter(arg)
    found = await context.devices.attached(dest, klass)
    return "".join(
        _attached_line(dest, klass, one) for one in found if not arg or (ADMIN, one.port) == (backend, where)
    )


def _attached_line(dest: Domain, klass: str, one: Attachment) -> str:
    # As upstream answers: an attached device has the mode "manual", also where an assignment attached it.
    return _given_line(dest, DeviceRef(klass, ADMIN, one.port, one.ident), "manual", sorted(one.options.items()))


@method("admin.casemate.device.Held", Access.EXECUTE, shows_qubes=True)
async def list_held(context: Context, system: System, sees: Callable[[str], bool], source: str) -> str:
    """Who has which device, of all qubes and classes in one call, as JSON.

    ``[{"qube": "work", "class": "block", "backend": "dom0", "port": "sda", "identity": "…", "attached": true,
    "mode": ""}, …]``: each entry is a device that a qube has now, or one that is assigned to it with that mode.
    """
    found: list[dict[str, object]] = []

    def add(qube: str, device: DeviceRef, attached: bool, mode: str) -> None:
        if source == ADMIN or sees(qube):
            found.append({
                "qube": qube, "class": device.devclass, "backend": device.backend, "port": device.port,
                "identity": device.ident, "attached": attached, "mode": mode,
            })  # fmt: skip

    domains = list(system.domains.ordered())
    for klass in CLASSES:
        attached = await context.devices.held(klass)
        for domain in domains:
            for one in attached.get(domain.uuid, ()):
                add(domain.name, DeviceRef(klass, ADMIN, one.port, one.ident), True, "")
    for domain in domains:
        for given in domain.devices:
            add(domain.name, given.device, False, given.mode)
    return json.dumps(found)


@method("admin.vm.device.{klass}.Attach", Access.EXECUTE, klass=CLASSES)
async def attach(context: Context, system: System, klass: str, dest: Domain, arg: str, payload: str = "") -> None:
    """Attach a device to a running qube, until the qube stops or the device is detached."""
    device, pairs = parse_ref(klass, arg), _pairs(payload)
    system.domains.find(device.backend)
    given = dict(options(_given_options(pairs)))
    context.devices.check(device, given)
    _check_payload(device, dest, pairs)
    await context.devices.attach(dest.name, device, given)


@method("admin.vm.device.{klass}.Detach", Access.EXECUTE, klass=CLASSES)
async def detach(context: Context, klass: str, dest: Domain, arg: str) -> None:
    """Detach a device from a running qube."""
    await context.devices.detach(dest.name, parse_ref(klass, arg))


# -- which devices are denied


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
    """Deny devices with some interfaces."""
    dest.set_text("devices_denied", "".join(sorted({*codes(dest.text("devices_denied")), *codes(payload)})))


@method("admin.vm.device.denied.Remove", Access.WRITE)
def remove_denied(dest: Domain, payload: str) -> None:
    """Allow devices with some interfaces again, or ``all``."""
    gone = set(codes(dest.text("devices_denied"))) if payload == "all" else set(codes(payload))
    dest.set_text("devices_denied", "".join(sorted({*codes(dest.text("devices_denied"))} - gone)))
