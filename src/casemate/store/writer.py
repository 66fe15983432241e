"""A system to ``qubes.xml``: canonical order and indentation; what each element says is stated in ``layout.py``.

A qube that nobody changed is not written again: its text is kept with its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.store import layout
from casemate.store.document import leaf, start_tag
from casemate.store.layout import Element, Section
from casemate.store.parts import Parts

Places = Mapping[str, Mapping[str, str]]
"""Attributes that are not known here, by the place that they belong to."""


def write(system: System) -> bytes:
    """The bytes of the file for a system."""
    return compose(system)[0]


def compose(system: System) -> tuple[bytes, Parts]:
    """The bytes of the file for a system, and their parts."""
    extra = _by_place(system.unknown_attributes)
    ours = layout.root_attributes(system)
    root = start_tag("qubes", {**ours, **extra.get("", {})})
    more = root[len(start_tag("qubes", ours)) - 1 : -1]
    begin = b"<?xml version='1.0' encoding='utf-8'?>\n" + root + b"\n"
    out: list[bytes] = []
    for section in layout.SYSTEM_SECTIONS:
        out += _section(section, 1, system, extra, system.unknown)
    out.append(b"  <domains>\n")
    head, texts = b"".join(out), []
    for state in sorted(system.domains.states(), key=layout.qid_of):
        if state.text is None:
            state.text = _domain(system.domains[str(state.values["name"])])
        texts.append(state.text)
    out = [b"    " + element + b"\n" for place, element in system.unknown if place == "domains"]
    out.append(b"  </domains>\n")
    out += [b"  " + element + b"\n" for place, element in system.unknown if place == ""]
    out.append(b"</qubes>\n")
    tail = b"".join(out)
    return b"".join([begin, head, *texts, tail]), Parts(system, more, head, tuple(texts), tail)


def _domain(domain: Domain) -> bytes:
    unknown = domain.state.unknown
    extra = _by_place(domain.state.unknown_attributes)
    out = [b"    ", start_tag("domain", {**layout.domain_attributes(domain), **extra.get("", {})}), b"\n"]
    for section in layout.DOMAIN_SECTIONS:
        out += _section(section, 3, domain, extra, unknown)
    for devices in layout.give_devices(domain):
        out += _lines(devices, 3)
    out += [b"      " + element + b"\n" for place, element in unknown if place == ""]
    out.append(layout.DOMAIN_END)
    return b"".join(out)


def _section(
    section: Section[Any, Any], depth: int, source: System | Domain, extra: Places, unknown: Iterable[tuple[str, bytes]]
) -> Sequence[bytes]:
    indent = b"  " * depth
    inner: list[bytes] = []
    for given, text in section.give(source):
        more = extra.get(section.place(given, text)) if extra else None
        inner.append(leaf(section.leaf, {**given, **more} if more else given, text))
    inner += [element for place, element in unknown if place == section.tag]
    tag = section.tag.encode("ascii")
    if not inner:
        return [indent, b"<", tag, b"/>\n"]
    lines = [indent + b"  " + one + b"\n" for one in inner]
    return [indent, b"<", tag, b">\n", *lines, indent, b"</", tag, b">\n"]


def _lines(element: Element, depth: int) -> Iterator[bytes]:
    indent = b"  " * depth
    if not element.children:
        yield indent + leaf(element.tag, element.attributes, element.text) + b"\n"
        return
    yield indent + start_tag(element.tag, element.attributes) + b"\n"
    for child in element.children:
        yield from _lines(child, depth + 1)
    yield indent + b"</" + element.tag.encode("ascii") + b">\n"


def _by_place(unknown: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for place, key, value in unknown:
        found.setdefault(place, {})[key] = value
    return found
