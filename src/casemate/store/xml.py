"""System to qubes.xml and back, in upstream's R4 shape, driven by the declarations of the model.

What is not known here (elements, attributes, properties) is kept verbatim. Reading loads no DTD, no entity and
nothing from elsewhere; size and depth are bounded; an error names line and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar
from uuid import UUID, uuid5

from lxml import etree

from casemate.model.classes import CLASSES, Admin
from casemate.model.domain import Domain
from casemate.model.features import feature_value
from casemate.model.invariants import references
from casemate.model.kinds import Stored
from casemate.model.labels import BUILTIN, Label
from casemate.model.properties import Holder, Setting
from casemate.model.system import ADMIN, ADMIN_VALUES, PoolConfig, System
from casemate.model.volumes import VOLUME_NAMES, Volume
from casemate.wire import names
from casemate.wire.errors import CasemateError, StoreError, printable

MAX_SIZE = 64 << 20
MAX_DEPTH = 16
_NAMESPACE = UUID("5ca4e9bc-6a3f-4b57-9d1e-6b1f0c2a7d11")
"""Makes the UUID of a qube from a file that has none."""

_R = TypeVar("_R")
_IDENTITY = ("name", "qid", "uuid")


class _Malformed(Exception):
    """What is wrong, and in which line; becomes a StoreError that also names the file."""

    def __init__(self, element: etree._Element | None, reason: str) -> None:
        super().__init__(reason)
        self.line = 0 if element is None else element.sourceline or 0


# ---------------------------------------------------------------------------------------------------------- reading


def read(data: bytes, source: str = "qubes.xml") -> System:
    """The system that a file's bytes describe; raises StoreError."""
    if len(data) > MAX_SIZE:
        raise StoreError(f"{source}: larger than {MAX_SIZE} bytes")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise StoreError(f"{source}: a document type or an entity is not allowed")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise StoreError(f"{source}:{error.lineno or 0}: {printable(error.msg or 'not XML')}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise StoreError(f"{source}: a document type is not allowed")
    try:
        return _Reader().system(root)
    except _Malformed as error:
        raise StoreError(f"{source}:{error.line}: {error}") from error


class _Reader:
    """Reads one document."""

    def __init__(self) -> None:
        self.references: list[tuple[etree._Element, Holder, str]] = []

    def system(self, root: etree._Element) -> System:
        if root.tag != "qubes":
            raise _Malformed(root, f"the root element is {printable(str(root.tag), 40)!r}, not 'qubes'")
        system = System()
        labels: dict[str, Label] = {}
        pools: dict[str, PoolConfig] = {}
        unknown: list[tuple[str, bytes]] = []
        attributes = [("", key, value) for key, value in _attributes(root, ("generation", "next-qid"))]
        system.generation = _number(root, "generation")
        for section in root:
            if section.tag == "labels":
                for element in section:
                    self.label(element, labels, unknown, attributes)
            elif section.tag == "pools":
                for element in section:
                    if element.tag == "pool":
                        pool = self.pool(element)
                        if pools.setdefault(pool.name, pool) is not pool:
                            raise _Malformed(element, f"pool {pool.name!r} is named twice")
                    else:
                        unknown.append(("pools", _verbatim(element)))
            elif section.tag == "properties":
                system._values.update(self.values(section, system, {}, unknown, attributes))
            elif section.tag == "domains":
                for element in section:
                    if element.tag == "domain":
                        self.domain(element, system)
                    else:
                        unknown.append(("domains", _verbatim(element)))
            else:
                unknown.append(("", _verbatim(section)))
        for label in BUILTIN:
            labels.setdefault(label.name, label)
        system.load_tables(labels, pools or {"default": PoolConfig("default", "qcow2")})
        system.unknown, system.unknown_attributes = tuple(unknown), tuple(attributes)
        if ADMIN not in system.domains:
            system.domains.insert(Admin(system, ADMIN_VALUES))
        self.check_references(system)
        used = max((domain.qid for domain in system.domains.values()), default=0)
        system.next_qid = max(used + 1, _number(root, "next-qid"))
        return system

    def label(
        self,
        element: etree._Element,
        labels: dict[str, Label],
        unknown: list[tuple[str, bytes]],
        attributes: list[tuple[str, str, str]],
    ) -> None:
        if element.tag != "label":
            unknown.append(("labels", _verbatim(element)))
            return
        name = _checked(element, names.label_name, _text(element))
        ident = element.get("id", "")
        index = _checked(element, names.number, ident.removeprefix("label-") if ident.startswith("label-") else "")
        color = _checked(element, names.color, element.get("color", ""))
        if name in labels or any(index == other.index for other in labels.values()):
            raise _Malformed(element, f"label {name!r} or its number is named twice")
        labels[name] = Label(index, name, color)
        attributes.extend((f"label:{name}", *pair) for pair in _attributes(element, ("id", "color")))

    def pool(self, element: etree._Element) -> PoolConfig:
        name = _checked(element, names.pool_name, element.get("name", ""))
        driver = element.get("driver", "")
        if not driver:
            raise _Malformed(element, f"pool {name!r} has no driver")
        return PoolConfig(name, driver, dict(_attributes(element, ("name", "driver"))))

    def values(
        self,
        section: etree._Element,
        holder: Holder,
        fixed: Mapping[str, Stored],
        unknown: list[tuple[str, bytes]],
        attributes: list[tuple[str, str, str]],
    ) -> dict[str, Stored]:
        """The known properties of a section; ``fixed`` ones are left out, as they are known already."""
        values: dict[str, Stored] = {}
        seen: set[str] = set()
        referring = {prop.name for prop in references(type(holder))}
        for element in section:
            name = element.get("name", "")
            known = element.tag == "property" and holder.has(name)
            if not known or (holder.declaration(name).setting is Setting.READ_ONLY and name not in _IDENTITY):
                unknown.append(("properties", _verbatim(element)))
                continue
            if name in seen:
                raise _Malformed(element, f"property {name!r} is set twice")
            seen.add(name)
            attributes.extend((f"property:{name}", *pair) for pair in _attributes(element, ("name",)))
            if name in fixed:
                continue
            prop = holder.declaration(name)
            values[name] = _checked(element, prop.kind.parse, _text(element), f"property {name}: ")
            if name == "label" or name in referring:
                self.references.append((element, holder, name))
        return values

    def domain(self, element: etree._Element, system: System) -> None:
        klass = element.get("class", "")
        cls = CLASSES.get(klass)
        if cls is None:
            raise _Malformed(element, f"no such class of qubes: {printable(klass, 40)!r}")
        domain = cls(system, ADMIN_VALUES if cls is Admin else {})
        unknown: list[tuple[str, bytes]] = []
        attributes = [("", key, value) for key, value in _attributes(element, ("id", "class"))]
        features: dict[str, str] = {}
        tags: set[str] = set()
        volumes: dict[str, Volume] = {}
        for section in element:
            if section.tag == "properties":
                fixed = ADMIN_VALUES if cls is Admin else {}
                domain._values.update(self.values(section, domain, fixed, unknown, attributes))
            elif section.tag == "features":
                for child in section:
                    name = _checked(child, names.feature_name, child.get("name", ""))
                    features[name] = _checked(child, feature_value, _text(child))
                    attributes.extend((f"feature:{name}", *pair) for pair in _attributes(child, ("name",)))
            elif section.tag == "tags":
                for child in section:
                    tag = _checked(child, names.tag_name, child.get("name", ""))
                    tags.add(tag)
                    attributes.extend((f"tag:{tag}", *pair) for pair in _attributes(child, ("name",)))
            elif section.tag == "volume-config":
                for child in section:
                    if child.tag == "volume" and child.get("name") in VOLUME_NAMES:
                        volume = _volume(child)
                        volumes[volume.name] = volume
                    else:
                        unknown.append(("volume-config", _verbatim(child)))
            else:
                unknown.append(("", _verbatim(section)))
        self.identity(element, domain)
        domain.load_state(features, tags, volumes)
        domain.unknown, domain.unknown_attributes = tuple(unknown), tuple(attributes)
        try:
            system.domains.insert(domain)
        except CasemateError as error:
            raise _Malformed(element, str(error)) from error

    def identity(self, element: etree._Element, domain: Domain) -> None:
        values = domain._values
        ident = element.get("id", "")
        if "name" not in values:
            raise _Malformed(element, "a qube without a name")
        if "qid" not in values:
            values["qid"] = _checked(element, names.number, ident.removeprefix("domain-"), "qid: ")
        if ident and ident != f"domain-{values['qid']}":
            raise _Malformed(element, f"id {printable(ident, 40)!r} and qid {values['qid']} differ")
        if "uuid" not in values:
            values["uuid"] = uuid5(_NAMESPACE, f"{values['qid']} {values['name']}")
        for name, prop in domain.properties().items():
            if name not in values and domain.default_rule(name) is None:
                raise _Malformed(element, f"{values['name']}: property {prop.name!r} is missing")

    def check_references(self, system: System) -> None:
        for element, holder, name in self.references:
            try:
                holder.declaration(name).kind.require(holder.stored(name), system)
            except CasemateError as error:
                raise _Malformed(element, f"{holder.title()}: property {name}: {error}") from error


def _text(element: etree._Element) -> str:
    if len(element):
        raise _Malformed(element, f"{printable(str(element.tag), 40)!r} has elements where text belongs")
    return element.text or ""


def _attributes(element: etree._Element, known: Iterable[str]) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in element.attrib.items() if str(key) not in known]


def _number(element: etree._Element, name: str) -> int:
    return _checked(element, names.number, element.get(name, "0"), f"{name}: ")


def _checked(element: etree._Element, parse: Callable[[str], _R], text: str, what: str = "") -> _R:
    try:
        return parse(text)
    except CasemateError as error:
        raise _Malformed(element, f"{what}{error}") from error


def _bool(element: etree._Element, name: str) -> bool | None:
    value = element.get(name)
    if value is None:
        return None
    if value.lower() not in ("true", "false"):
        raise _Malformed(element, f"{name} is neither True nor False")
    return value.lower() == "true"


_VOLUME_ATTRIBUTES = (
    "name", "pool", "vid", "rw", "snap_on_start", "save_on_stop", "revisions_to_keep", "size", "source", "ephemeral",
)  # fmt: skip


def _volume(element: etree._Element) -> Volume:
    vid, source = element.get("vid", ""), element.get("source")
    if not vid:
        raise _Malformed(element, "a volume without vid")
    keep = element.get("revisions_to_keep", "0")
    return Volume(
        name=element.get("name", ""),
        pool=_checked(element, names.pool_name, element.get("pool", "")),
        vid=vid,
        size=_number(element, "size"),
        rw=_bool(element, "rw") or False,
        snap_on_start=_bool(element, "snap_on_start") or False,
        save_on_stop=_bool(element, "save_on_stop") or False,
        source=source or None,
        revisions_to_keep=-1 if keep == "-1" else _number(element, "revisions_to_keep"),
        ephemeral=_bool(element, "ephemeral"),
        extra=tuple(_attributes(element, _VOLUME_ATTRIBUTES)),
    )


def _verbatim(element: etree._Element) -> bytes:
    _check_depth(element, 1)
    return etree.tostring(element, encoding="utf-8", xml_declaration=False, with_tail=False)


def _check_depth(element: etree._Element, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Malformed(element, f"elements are nested more than {MAX_DEPTH} deep")
    for child in element:
        _check_depth(child, depth + 1)


# ---------------------------------------------------------------------------------------------------------- writing


def write(system: System) -> bytes:
    """The file's bytes for a system: canonical order and indentation; unchanged qubes are taken from their cache."""
    extra = _by_place(system.unknown_attributes)
    root = {"generation": str(system.generation), "next-qid": str(system.next_qid), **dict(extra.get("", ()))}
    out = [b"<?xml version='1.0' encoding='utf-8'?>\n", _open("qubes", root), b"\n"]
    labels = [
        _leaf("label", {"id": label.id, "color": label.color, **dict(extra.get(f"label:{label.name}", ()))}, label.name)
        for label in system.labels.values()
    ]
    out += _section("labels", 1, labels, system.unknown)
    pools = [
        _leaf("pool", {"name": pool.name, "driver": pool.driver, **pool.options})
        for _, pool in sorted(system.pools.items())
    ]
    out += _section("pools", 1, pools, system.unknown)
    out += _section("properties", 1, _properties(system, extra), system.unknown)
    out.append(b"  <domains>\n")
    for domain in sorted(system.domains.values(), key=lambda d: d.qid):
        if domain.stored_text is None:
            domain.stored_text = _domain(domain)
        out.append(domain.stored_text)
    out += [b"    " + element + b"\n" for place, element in system.unknown if place == "domains"]
    out.append(b"  </domains>\n")
    out += [b"  " + element + b"\n" for place, element in system.unknown if place == ""]
    out.append(b"</qubes>\n")
    return b"".join(out)


def _domain(domain: Domain) -> bytes:
    extra = _by_place(domain.unknown_attributes)
    out = [b"    ", _open("domain", {"id": f"domain-{domain.qid}", "class": domain.klass, **dict(extra.get("", ()))})]
    out.append(b"\n")
    out += _section("properties", 3, _properties(domain, extra), domain.unknown)
    features = [
        _leaf("feature", {"name": name, **dict(extra.get(f"feature:{name}", ()))}, value)
        for name, value in domain.features.items()
    ]
    out += _section("features", 3, features, domain.unknown)
    tags = [_leaf("tag", {"name": name, **dict(extra.get(f"tag:{name}", ()))}) for name in domain.tags]
    out += _section("tags", 3, tags, domain.unknown)
    volumes = [_leaf("volume", _volume_attributes(v)) for v in domain.volumes.values() if v is not None]
    out += _section("volume-config", 3, volumes, domain.unknown)
    out += [b"      " + element + b"\n" for place, element in domain.unknown if place == ""]
    out.append(b"    </domain>\n")
    return b"".join(out)


def _properties(holder: System | Domain, extra: Mapping[str, list[tuple[str, str]]]) -> Iterator[bytes]:
    fixed = _IDENTITY if isinstance(holder, Admin) else ()
    for name, stored in sorted(holder.values().items()):
        if name not in fixed:
            attributes = {"name": name, **dict(extra.get(f"property:{name}", ()))}
            yield _leaf("property", attributes, holder.declaration(name).kind.format(stored))


def _volume_attributes(volume: Volume) -> dict[str, str]:
    attributes = {
        "name": volume.name,
        "pool": volume.pool,
        "vid": volume.vid,
        "rw": str(volume.rw),
        "snap_on_start": str(volume.snap_on_start),
        "save_on_stop": str(volume.save_on_stop),
        "revisions_to_keep": str(volume.revisions_to_keep),
        "size": str(volume.size),
    }
    if volume.source is not None:
        attributes["source"] = volume.source
    if volume.ephemeral is not None:
        attributes["ephemeral"] = str(volume.ephemeral)
    return {**attributes, **dict(volume.extra)}


def _by_place(attributes: Iterable[tuple[str, str, str]]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for place, key, value in attributes:
        found.setdefault(place, []).append((key, value))
    return found


def _leaf(tag: str, attributes: Mapping[str, str], text: str = "") -> bytes:
    element = etree.Element(tag)
    for key, value in attributes.items():
        element.set(key, value)
    if text:
        element.text = text
    return etree.tostring(element, encoding="utf-8", xml_declaration=False)


def _open(tag: str, attributes: Mapping[str, str]) -> bytes:
    return _leaf(tag, attributes).removesuffix(b"/>") + b">"


def _section(tag: str, depth: int, leaves: Iterable[bytes], unknown: Iterable[tuple[str, bytes]]) -> list[bytes]:
    indent = b"  " * depth
    inner = [*leaves, *(element for place, element in unknown if place == tag)]
    if not inner:
        return [indent, b"<", tag.encode(), b"/>\n"]
    lines = [indent + b"  " + leaf + b"\n" for leaf in inner]
    return [indent, b"<", tag.encode(), b">\n", *lines, indent, b"</", tag.encode(), b">\n"]
