"""``qubes.xml`` to a system; what each element means is stated in ``layout.py``.

What is not known here (elements, attributes, properties) is kept verbatim in the system, for the writer. A file that
is damaged is refused with the line and the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lxml import etree

from casemate.model.classes import Admin
from casemate.model.labels import BUILTIN
from casemate.model.properties import Holder
from casemate.model.qube import State
from casemate.model.system import ADMIN_VALUES, PoolConfig, System
from casemate.store import layout
from casemate.store.document import MalformedError, attributes, parse, verbatim
from casemate.store.layout import Element, Section, Tables, UnknownElement
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, StoreError, printable

_R = TypeVar("_R")


def read(data: bytes, source: str = "qubes.xml") -> System:
    """The system that the bytes of a file describe; raises StoreError. ``source`` is how messages call the file."""
    with _no_collection():
        root = parse(data, source)
        try:
            return _system(root)
        except MalformedError as error:
            raise StoreError(f"{source}:{error.line}: {error}") from error


def read_domain(text: bytes) -> State | None:
    """The state that the text of one qube describes; None for anything that is not quite sound.

    Whoever asks (``parts.follow``) then reads the whole file, which gives the error its right line.
    """
    try:
        return _domain(parse(text, ""))
    except (MalformedError, CasemateError):
        return None


def dangling(system: System, state: State) -> bool:
    """Whether a qube refers to a qube or a label that the system does not have."""
    values = state.values
    for prop in state.klass.references():
        target = values.get(prop.name)
        if target is not None and target not in system.domains:
            return True
    return values.get("label", "black") not in system.labels


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: it would look at thousands of new objects again and again, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Unknown:
    """What is not known here of one holder: elements, and attributes of elements that are known."""

    def __init__(self) -> None:
        self.elements: list[tuple[str, bytes]] = []
        self.attributes: list[tuple[str, str, str]] = []

    def note(self, place: str, given: dict[str, str], known: Iterable[str]) -> None:
        """Keep the attributes that are not known."""
        self.attributes.extend((place, key, value) for key, value in given.items() if key not in known)

    def give(self, holder: System | State) -> None:
        """Hand all of it over."""
        holder.unknown, holder.unknown_attributes = tuple(self.elements), tuple(self.attributes)


def _system(root: etree._Element) -> System:
    if root.tag != "qubes":
        raise MalformedError(root, f"the root element is {printable(str(root.tag), 40)!r}, not 'qubes'")
    version = _number(root, "casemate-format")
    if version > layout.FORMAT:
        raise MalformedError(root, f"written by a newer Casemate (format {version}; this one knows {layout.FORMAT})")
    system, tables, unknown = System(), Tables(), _Unknown()
    unknown.note("", attributes(root), layout.ROOT_ATTRIBUTES)
    system.generation = _number(root, "generation")
    sections = {section.tag: section for section in layout.SYSTEM_SECTIONS}
    for element in root:
        section = sections.get(str(element.tag))
        if section is not None:
            _section(element, section, tables, unknown)
        elif element.tag == "domains":
            for child in element:
                if child.tag == "domain":
                    state = _domain(child)
                    _checked(child, system.domains.insert_state, state)
                else:
                    unknown.elements.append(("domains", verbatim(child)))
        else:
            unknown.elements.append(("", verbatim(element)))
    for label in BUILTIN:
        tables.labels.setdefault(label.name, label)
    system.load_tables(tables.values, tables.labels, tables.pools or {"default": PoolConfig("default", "qcow2")})
    unknown.give(system)
    if ADMIN not in system.domains:
        system.domains.insert_state(State(Admin, dict(ADMIN_VALUES)))
    _check_references(system, root)
    used = max(map(layout.qid_of, system.domains.states()))
    system.next_qid = max(used + 1, _number(root, "next-qid"))
    return system


_DOMAIN_SECTIONS = {section.tag: section for section in layout.DOMAIN_SECTIONS}


def _domain(element: etree._Element) -> State:
    given = attributes(element)
    state = _checked(element, layout.new_state, given)
    unknown = _Unknown()
    unknown.note("", given, layout.DOMAIN_ATTRIBUTES)
    for child in element:
        section = _DOMAIN_SECTIONS.get(str(child.tag))
        devices = layout.take_devices(_element(child)) if child.tag == "devices" else None
        if section is not None:
            _section(child, section, state, unknown)
        elif devices is not None:
            state.devices.update(devices)
        else:
            unknown.elements.append(("", verbatim(child)))
    _checked(element, lambda values: layout.complete(state, values), given)
    unknown.give(state)
    return state


def _section(element: etree._Element, section: Section[Any, Any], target: object, unknown: _Unknown) -> None:
    """Read the elements of one section into ``target``."""
    tag, take, known = section.leaf, section.take, section.known
    for child in element:
        given: dict[str, str] = dict(child.items())  # type: ignore[arg-type]  # lxml's stubs allow for bytes
        text = child.text or ""
        try:
            if child.tag != tag:
                raise UnknownElement
            take(target, given, text)
        except UnknownElement:
            unknown.elements.append((section.tag, verbatim(child)))
            continue
        except CasemateError as error:
            raise MalformedError(child, str(error)) from error
        if len(child):
            raise MalformedError(child, f"{tag!r} has elements where text belongs")
        if known is not None and len(given) > len(known):
            unknown.note(section.place(given, text), given, known)


def _element(element: etree._Element) -> Element:
    return Element(
        str(element.tag), attributes(element), element.text or "", tuple(_element(child) for child in element)
    )


def _check_references(system: System, root: etree._Element) -> None:
    """What a property refers to exists. Done at the end, because a qube may be named before it comes."""
    holders: list[Holder] = [system]
    holders += [system.domains[str(s.values["name"])] for s in system.domains.states() if dangling(system, s)]
    for holder in holders:
        values = holder.values()
        for name in (*(prop.name for prop in holder.references()), "label"):
            if name in values:
                try:
                    holder.declaration(name).kind.require(values[name], system)
                except CasemateError as error:
                    raise MalformedError(
                        _place(root, holder, name), f"{holder.title()}: property {name}: {error}"
                    ) from error


def _place(root: etree._Element, holder: Holder, name: str) -> etree._Element:
    """The element of a property, for the line of a message."""
    for parent in (root, *root.iter("domain")):
        found = {e.get("name"): e for e in parent.iterfind("properties/property")}
        called = found["name"].text if "name" in found else None if parent is root else ADMIN
        if called == holder.subject() and name in found:
            return found[name]
    return root


def _number(element: etree._Element, name: str) -> int:
    try:
        return names.number(element.get(name, "0"))
    except CasemateError as error:
        raise MalformedError(element, f"{name}: {error}") from error


def _checked(element: etree._Element, work: Callable[[Any], _R], given: object) -> _R:
    """What ``work`` makes of ``given``, with the line of the element in its errors."""
    try:
        return work(given)
    except CasemateError as error:
        raise MalformedError(element, str(error)) from error
