"""Imports the file of Qubes OS 3, in which each qube is one element and everything about it an attribute.

What has no counterpart today is told in notes, one line each, for the person who imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid5

from lxml import etree

from casemate.model.classes import CLASSES
from casemate.model.domain import Domain
from casemate.model.kinds import Stored
from casemate.model.system import System
from casemate.store.document import parse
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, StoreError, printable
from casemate.wire.release3 import CLASS_OF, HVM, LABELS, NET, SAME, literal

_NAMESPACE = UUID("8e1c7b1e-2b06-4c36-9b60-3f6a52f0c0a3")
"""Makes the UUID of a qube from a file that has none."""

# Attributes that are properties of the system, of the same name today.
_GLOBALS = ("default_template", "default_netvm", "updatevm", "clockvm")


class _Old:
    """One qube of the old file: its attributes, with errors that name the line."""

    def __init__(self, element: etree._Element, source: str) -> None:
        self.element = element
        self.source = source
        self.tag = str(element.tag)
        self.values = {str(key): str(value) for key, value in element.items()}
        self.qid = self.number("qid")
        self.name = str(names.qube_name(self.values["name"])) if "name" in self.values else ADMIN

    def fail(self, reason: str) -> StoreError:
        return StoreError(f"{self.source}:{self.element.sourceline or 0}: {reason}")

    def number(self, key: str) -> int:
        try:
            return names.number(self.values.get(key, ""))
        except CasemateError as error:
            raise self.fail(f"{key}: {error}") from error

    def reference(self, key: str) -> int | None:
        return None if self.values.get(key, "None") == "None" else self.number(key)

    def literal(self, key: str, kind: type) -> object:
        text = self.values.get(key)
        if not text:
            return kind()
        try:
            found = literal(text)
        except ValueError as error:
            raise self.fail(f"{key} is not a plain value") from error
        if not isinstance(found, kind):
            raise self.fail(f"{key} is not a {kind.__name__}")
        return found


def read_r3(data: bytes, source: str = "qubes.xml") -> tuple[System, list[str]]:
    """The system that an R3 file describes, and notes on what could not be taken over; raises StoreError."""
    root = parse(data, source)
    if root.tag != "QubesVmCollection":
        raise StoreError(f"{source}: the root element is {printable(str(root.tag), 40)!r}, not 'QubesVmCollection'")
    notes: list[str] = []
    old = []
    for element in root:
        if element.tag in CLASS_OF:
            try:
                old.append(_Old(element, source))
            except CasemateError as error:
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"{source}:{element.sourceline or 0}: {error}") from error
        else:
            notes.append(f"line {element.sourceline}: {printable(str(element.tag), 40)} is not known; left out")
    by_qid = {one.qid: one for one in old}
    if len(by_qid) != len(old):
        raise StoreError(f"{source}: a qid is used twice")
    system = System.initial()
    try:
        for one in old:
            if CLASS_OF[one.tag] is not None:
                _add(system, one, by_qid, notes)
        _globals(system, _attributes(root), by_qid, notes)
        for one in old:
            if CLASS_OF[one.tag] is not None:
                _connect(system, one, by_qid)
    except CasemateError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{source}: {error}") from error
    system.next_qid = max((*by_qid, 0)) + 1
    system.changes.clear()
    return system, notes


def _attributes(element: etree._Element) -> dict[str, str]:
    return {str(key): str(value) for key, value in element.items()}


def _add(system: System, one: _Old, by_qid: Mapping[int, _Old], notes: list[str]) -> None:
    """Add the qube itself. References to other qubes are set later, when all qubes are there."""
    klass = CLASSES[str(CLASS_OF[one.tag])]
    template = one.reference("template_qid")
    if klass.class_name == "StandaloneVM" and template is not None:
        klass = CLASSES["AppVM"]
    elif klass.has("template") and template is None:
        klass = CLASSES["StandaloneVM"]
    label = one.values.get("label", "red")
    values: dict[str, Stored] = {
        "name": one.name,
        "qid": one.qid,
        "uuid": UUID(one.values["uuid"]) if one.values.get("uuid") else uuid5(_NAMESPACE, f"{one.qid} {one.name}"),
        "label": LABELS.get(label, label),
    }
    if values["label"] not in system.labels:
        raise one.fail(f"{one.name}: no such label: {printable(label, 40)!r}")
    domain = klass(system, values)
    domain.load_state({}, {"created-by-dom0"}, {name: rule.new(one.name, name, "default")
                                                for name, rule in klass.layout.items()})  # fmt: skip
    system.domains.insert(domain)
    if klass.has("template"):
        base = by_qid.get(template or 0)
        if base is None:
            raise one.fail(f"{one.name}: no qube has the qid of its template, {template}")
        domain.state.values["template"] = base.name
    for name in SAME:
        text = one.values.get(name)
        if text and text != "None" and domain.has(name):
            _put(domain, name, text)
    if one.values.get("uses_default_kernelopts") == "True":
        domain.state.values.pop("kernelopts", None)
    if one.values.get("uses_default_kernel") != "True" and one.values.get("kernel") and domain.has("kernel"):
        kernel = one.values["kernel"]
        _put(domain, "kernel", "" if kernel == "None" else kernel)
    if one.tag in HVM:
        _put(domain, "virt_mode", "hvm")
    if one.tag in NET:
        _put(domain, "provides_network", "True")
    for service, enabled in sorted(_mapping(one.literal("services", dict))):
        domain.features.set(f"service.{service}", "1" if enabled else "")
    devices = one.literal("pcidevs", list)
    if devices:
        notes.append(f"{one.name}: PCI devices {printable(str(devices), 200)} have to be assigned again")


def _put(domain: Domain, name: str, text: str) -> None:
    """Set a property without a check of what it refers to, which may not be there yet."""
    domain.state.values[name] = domain.declaration(name).kind.parse(text)


def _mapping(found: object) -> list[tuple[str, bool]]:
    return [(str(key), bool(value)) for key, value in found.items()] if isinstance(found, dict) else []


def _globals(system: System, given: Mapping[str, str], by_qid: Mapping[int, _Old], notes: list[str]) -> None:
    for key in _GLOBALS:
        text = given.get(key, "None")
        if text == "None":
            continue
        target = by_qid.get(names.number(text))
        if target is None:
            notes.append(f"{key}: no qube has qid {printable(text, 20)}; left out")
        elif target.qid:
            system.set(key, target.name)
    if given.get("default_kernel", "None") != "None":
        system.set_text("default_kernel", given["default_kernel"])
    firewall = given.get("default_fw_netvm", "None")
    if firewall != "None":
        notes.append("default_fw_netvm is no setting any more; the qubes' own netvm says the same")


def _connect(system: System, one: _Old, by_qid: Mapping[int, _Old]) -> None:
    """Set the network that the qube really had: the defaults of R3 differed between classes, so they do not help."""
    domain: Domain = system.domains[one.name]
    if domain.klass == "DispVM" and domain.template is not None:
        _put(domain.template, "template_for_dispvms", "True")
    if not domain.has("netvm"):
        return
    if one.values.get("uses_default_netvm") == "True" and one.tag not in NET:
        return
    qid = one.reference("netvm_qid")
    target = None if qid is None else by_qid.get(qid)
    _put(domain, "netvm", "" if target is None or target.qid == 0 else target.name)
