"""System to qubes.xml and back, in upstream's R4 shape, driven by the declarations of the model.

What is not known here (elements, attributes, properties) is kept verbatim. Reading loads no DTD, no entity and
nothing from elsewhere; size and depth are bounded; an error names line and reason.

A qube that nobody changed is neither parsed nor written again: its text is kept with its state.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TypeVar, cast
from uuid import UUID, uuid5

from lxml import etree

from casemate.model.classes import CLASSES, Admin
from casemate.model.devices import Assignment, DeviceRef, device_class, identity, options, port
from casemate.model.domain import Domain
from casemate.model.features import feature_value
from casemate.model.invariants import references
from casemate.model.kinds import Stored
from casemate.model.labels import BUILTIN, Label
from casemate.model.properties import Holder, Setting
from casemate.model.state import State
from casemate.model.system import ADMIN, ADMIN_VALUES, PoolConfig, System
from casemate.model.volumes import VOLUME_NAMES, Volume
from casemate.store.follow import Layout
from casemate.store.scan import scan
from casemate.wire import names
from casemate.wire.errors import CasemateError, StoreError, printable

FORMAT = 1
"""Which shape of the file this is, in an attribute of its root; a file that says more is of a newer Casemate."""

MAX_SIZE = 64 << 20
MAX_DEPTH = 16
_NAMESPACE = UUID("5ca4e9bc-6a3f-4b57-9d1e-6b1f0c2a7d11")
"""Makes the UUID of a qube from a file that has none."""

_R = TypeVar("_R")
_IDENTITY = ("name", "qid", "uuid")
_ROOT = ("generation", "next-qid", "casemate-format")
_BEGIN, _END = b"    <domain ", b"    </domain>\n"


class _Malformed(Exception):
    """What is wrong, and in which line; becomes a StoreError that also names the file."""

    def __init__(self, element: etree._Element | None, reason: str) -> None:
        super().__init__(reason)
        self.line = 0 if element is None else element.sourceline or 0


# ---------------------------------------------------------------------------------------------------------- reading


def read(data: bytes, source: str = "qubes.xml", base: System | None = None) -> System:
    """The system that a file's bytes describe; raises StoreError.

    ``base`` is what the file was before: qubes whose text is still the same are taken from there.
    """
    with _no_collection():
        texts = _texts(data) if len(data) <= MAX_SIZE else []
        return (_read_quickly(data, source, texts, base) if texts else None) or _read(data, source, texts)


def parse(data: bytes, source: str) -> etree._Element:
    """The root of a document from anywhere; raises StoreError for what is not plain XML of bounded size."""
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
    return root


def _read(data: bytes, source: str, texts: Sequence[bytes], kept: Sequence[State] = ()) -> System:
    root = parse(data, source)
    try:
        reader = _Reader()
        system = reader.system(root, kept)
    except _Malformed as error:
        raise StoreError(f"{source}:{error.line}: {error}") from error
    if len(texts) == len(reader.states):
        for state, text in zip(reader.states, texts, strict=True):
            if text.startswith(b'    <domain id="domain-%d" ' % _qid(state)):
                state.text = text
    return system


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


def _texts(data: bytes) -> list[bytes]:
    """The qubes' texts of a file in our own layout; nothing for a file in which that would be a guess."""
    if b"casemate-format=" not in data[:400] or b"<!" in data or data.count(b"<?") != 1:
        return []
    first, *others = data.split(_END)
    if not others:
        return []
    others.pop()  # what follows the last qube
    begin = first.find(b"\n" + _BEGIN) + 1
    if not begin or not all(text.startswith(_BEGIN) for text in others):
        return []
    return [text + _END for text in (first[begin:], *others)]


def _read_quickly(data: bytes, source: str, texts: Sequence[bytes], base: System | None) -> System | None:
    """Let the parser see only what is not in ``base`` and not in our own layout; None where it should see all."""
    known = {} if base is None else {state.text: state for state in base.domains.states()}
    kept, other = [], []
    for text in texts:
        state = known.get(text) or scan(text)
        if state is None:
            other.append(text)
        else:
            kept.append(state)
    start = data.find(texts[0])
    end = start + sum(map(len, texts))
    if data[end - len(texts[-1]) : end] != texts[-1]:
        return None  # something stands between the qubes
    try:
        return _read(data[:start] + b"".join(other) + data[end:], source, other, kept)
    except CasemateError:
        return None  # read again as a whole, which names the right line


class _Reader:
    """Reads one document."""

    def __init__(self) -> None:
        self.states: list[State] = []
        """The qubes that were read, in their order."""
        self._values: dict[tuple[object, str], Stored] = {}
        self._features: set[tuple[str, str]] = set()
        self._tags: set[str] = set()

    def system(self, root: etree._Element, kept: Sequence[State] = ()) -> System:
        """The system of a document; ``kept`` are qubes of it that were read before."""
        if root.tag != "qubes":
            raise _Malformed(root, f"the root element is {printable(str(root.tag), 40)!r}, not 'qubes'")
        version = _number(root, "casemate-format")
        if version > FORMAT:
            raise _Malformed(root, f"written by a newer Casemate (format {version}; this one knows {FORMAT})")
        system = System()
        labels: dict[str, Label] = {}
        pools: dict[str, PoolConfig] = {}
        unknown: list[tuple[str, bytes]] = []
        attributes = [("", key, value) for key, value in _attributes(root, _ROOT)]
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
                system._values.update(self.values(section, system, (), unknown, attributes))
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
        for state in kept:
            system.domains.insert_state(state)
        if ADMIN not in system.domains:
            system.domains.insert(Admin(system, ADMIN_VALUES))
        _check_references(system, root)
        used = max((_qid(state) for state in system.domains.states()), default=0)
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
        fixed: Iterable[str],
        unknown: list[tuple[str, bytes]],
        attributes: list[tuple[str, str, str]],
    ) -> dict[str, Stored]:
        """The known properties of a section; ``fixed`` ones are left out, as they are known already."""
        values: dict[str, Stored] = {}
        table = holder.properties()
        fixed = set(fixed)
        seen = set()
        for element in section:
            name = element.get("name", "")
            prop = table.get(name)
            if (
                prop is None
                or element.tag != "property"
                or (prop.setting is Setting.READ_ONLY and name not in _IDENTITY)
            ):
                unknown.append(("properties", _verbatim(element)))
                continue
            if name in seen:
                raise _Malformed(element, f"property {name!r} is set twice")
            seen.add(name)
            if len(element.attrib) > 1:
                attributes.extend((f"property:{name}", *pair) for pair in _attributes(element, ("name",)))
            if name in fixed:
                continue
            text = _text(element)
            key = (prop, text)
            try:
                values[name] = self._values[key]
            except KeyError:
                stored = _checked(element, prop.kind.parse, text, f"property {name}: ")
                values[name] = self._values[key] = stored
        return values

    def domain(self, element: etree._Element, system: System) -> None:
        klass = element.get("class", "")
        cls = CLASSES.get(klass)
        if cls is None:
            raise _Malformed(element, f"no such class of qubes: {printable(klass, 40)!r}")
        domain = cls(system, ADMIN_VALUES if cls is Admin else {})
        state = domain.state
        unknown: list[tuple[str, bytes]] = []
        attributes = [("", key, value) for key, value in _attributes(element, ("id", "class"))]
        for section in element:
            if section.tag == "properties":
                fixed = ADMIN_VALUES if cls is Admin else ()
                state.values.update(self.values(section, domain, fixed, unknown, attributes))
            elif section.tag == "features":
                self.features(section, state.features, attributes)
            elif section.tag == "tags":
                self.tags(section, state.tags, attributes)
            elif section.tag == "volume-config":
                for child in section:
                    if child.tag == "volume" and child.get("name") in VOLUME_NAMES:
                        volume = _volume(child)
                        state.volumes[volume.name] = volume
                    else:
                        unknown.append(("volume-config", _verbatim(child)))
            elif section.tag == "devices":
                found = _devices(section)
                if found is None:
                    unknown.append(("", _verbatim(section)))
                else:
                    state.devices.update(found)
            else:
                unknown.append(("", _verbatim(section)))
        self.identity(element, domain)
        state.unknown, state.unknown_attributes = tuple(unknown), tuple(attributes)
        try:
            system.domains.insert(domain)
        except CasemateError as error:
            raise _Malformed(element, str(error)) from error
        self.states.append(state)

    def features(self, section: etree._Element, found: dict[str, str], attributes: list[tuple[str, str, str]]) -> None:
        for child in section:
            pair = (child.get("name", ""), _text(child))
            if pair not in self._features:
                _checked(child, names.feature_name, pair[0])
                _checked(child, feature_value, pair[1])
                self._features.add(pair)
            found[pair[0]] = pair[1]
            if len(child.attrib) > 1:
                attributes.extend((f"feature:{pair[0]}", *more) for more in _attributes(child, ("name",)))

    def tags(self, section: etree._Element, found: set[str], attributes: list[tuple[str, str, str]]) -> None:
        for child in section:
            tag = child.get("name", "")
            if tag not in self._tags:
                self._tags.add(_checked(child, names.tag_name, tag))
            found.add(tag)
            if len(child.attrib) > 1:
                attributes.extend((f"tag:{tag}", *more) for more in _attributes(child, ("name",)))

    def identity(self, element: etree._Element, domain: Domain) -> None:
        values = domain.state.values
        ident = element.get("id", "")
        if "name" not in values:
            raise _Malformed(element, "a qube without a name")
        if "qid" not in values:
            values["qid"] = _checked(element, names.number, ident.removeprefix("domain-"), "qid: ")
        if ident and ident != f"domain-{values['qid']}":
            raise _Malformed(element, f"id {printable(ident, 40)!r} and qid {values['qid']} differ")
        if "uuid" not in values:
            values["uuid"] = uuid5(_NAMESPACE, f"{values['qid']} {values['name']}")
        for name in _required(type(domain)):  # type: ignore[arg-type]  # a class is hashable
            if name not in values:
                raise _Malformed(element, f"{values['name']}: property {name!r} is missing")


@cache
def _referring(cls: type[Holder]) -> tuple[str, ...]:
    """The properties of a class that refer to something by its name."""
    return tuple(p.name for p in references(cls))


def _check_references(system: System, root: etree._Element) -> None:
    """What a property refers to exists. Done at the end, because a qube may be named before it comes."""
    qubes, labels = system.domains, system.labels
    _check_holder(system, system.values(), system, root)
    for state in qubes.states():
        values = state.values
        for name in _referring(state.klass):  # type: ignore[arg-type]  # a class is hashable
            target = values.get(name)
            if target is not None and target not in qubes:
                break
        else:
            if values.get("label", "black") in labels:
                continue
        _check_holder(qubes[str(values["name"])], values, system, root)


def _check_holder(holder: Holder, values: Mapping[str, Stored], system: System, root: etree._Element) -> None:
    for name in (*_referring(type(holder)), "label"):  # type: ignore[arg-type]  # a class is hashable
        if name in values:
            try:
                holder.declaration(name).kind.require(values[name], system)
            except CasemateError as error:
                raise _Malformed(_place(root, holder, name), f"{holder.title()}: property {name}: {error}") from error


def _place(root: etree._Element, holder: Holder, name: str) -> etree._Element:
    """The element of a property, for the line of a message."""
    for parent in (root, *root.iter("domain")):
        found = {e.get("name"): e for e in parent.iterfind("properties/property")}
        called = found["name"].text if "name" in found else None if parent is root else ADMIN
        if called == holder.subject() and name in found:
            return found[name]
    return root


def _qid(state: State) -> int:
    return int(str(state.values["qid"]))


@cache
def _required(cls: type[Holder]) -> tuple[str, ...]:
    """The properties of a class that have no default."""
    return tuple(name for name, prop in cls.properties().items() if name not in cls.defaults and prop.default is None)


def _text(element: etree._Element) -> str:
    if len(element):
        raise _Malformed(element, f"{printable(str(element.tag), 40)!r} has elements where text belongs")
    return element.text or ""


def _attributes(element: etree._Element, known: Iterable[str]) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in element.items() if str(key) not in known]


def _number(element: etree._Element, name: str) -> int:
    return _checked(element, names.number, element.get(name, "0"), f"{name}: ")


def _checked(element: etree._Element, parse: Callable[[str], _R], text: str, what: str = "") -> _R:
    try:
        return parse(text)
    except CasemateError as error:
        raise _Malformed(element, f"{what}{error}") from error


_WORDS = {None: None, "True": True, "False": False, "true": True, "false": False}


def _bool(element: etree._Element, name: str, given: Mapping[str, str]) -> bool | None:
    try:
        return _WORDS[given.get(name)]
    except KeyError:
        raise _Malformed(element, f"{name} is neither True nor False") from None


_VOLUME_ATTRIBUTES = (
    "name", "pool", "vid", "rw", "snap_on_start", "save_on_stop", "revisions_to_keep", "size", "source", "ephemeral",
)  # fmt: skip


_VOLUME_NAMES = frozenset(_VOLUME_ATTRIBUTES)


def _volume(element: etree._Element) -> Volume:
    given = cast(dict[str, str], dict(element.items()))
    if not given.get("vid"):
        raise _Malformed(element, "a volume without vid")
    keep = given.get("revisions_to_keep", "0")
    return Volume(
        name=given["name"],
        pool=_checked(element, _pool_name, given.get("pool", "")),
        vid=given["vid"],
        size=_checked(element, _count, given.get("size", "0"), "size: "),
        rw=_bool(element, "rw", given) or False,
        snap_on_start=_bool(element, "snap_on_start", given) or False,
        save_on_stop=_bool(element, "save_on_stop", given) or False,
        source=given.get("source") or None,
        revisions_to_keep=-1 if keep == "-1" else _checked(element, _count, keep, "revisions_to_keep: "),
        ephemeral=_bool(element, "ephemeral", given),
        extra=tuple(pair for pair in given.items() if pair[0] not in _VOLUME_NAMES),
    )


_MODE_OF = {"yes": "required", "no": "auto-attach"}
"""What R4.2 wrote as ``required``; before it, whatever was assigned was required."""


def _devices(section: etree._Element) -> dict[DeviceRef, Assignment] | None:
    """The assignments of one class; None where anything in it is not known here, so that all is kept as it is."""
    found: dict[DeviceRef, Assignment] = {}
    try:
        devclass = device_class(section.get("class", ""))
        if len(section.attrib) != 1 or not len(section):
            return None
        for element in section:
            given = dict(_attributes(element, ()))
            written = tuple(key for key in given if key not in ("backend-domain", "id"))
            ref = DeviceRef(
                devclass,
                str(names.qube_name(given.pop("backend-domain"))),
                port(given.pop("id", "*")),
                identity(given.pop("identity", "*")),
            )
            mode = given.pop("mode", None)
            if mode is None:
                mode = _MODE_OF[given.pop("required", "yes")]
            pairs = {option.get("name", ""): option.text or "" for option in element}
            plain = all(option.tag == "option" and len(option.attrib) == 1 and not len(option) for option in element)
            if element.tag != "device" or given or not plain or len(pairs) != len(element) or ref in found:
                return None
            found[ref] = Assignment(ref, mode, options(pairs), None if "mode" in written else written)
    except (CasemateError, KeyError):
        return None
    return found


def _device_sections(assignments: Iterable[Assignment]) -> Iterator[bytes]:
    opened = ""
    for one in assignments:
        if one.device.devclass != opened:
            if opened:
                yield b"      </devices>\n"
            opened = one.device.devclass
            yield b"      " + _open("devices", {"class": opened}) + b"\n"
        required = "yes" if one.mode == "required" else "no"
        said = {"identity": one.device.ident, "mode": one.mode, "required": required}
        attributes = {"backend-domain": one.device.backend, "id": one.device.port}
        attributes.update((key, said[key]) for key in (("identity", "mode") if one.written is None else one.written))
        if one.options:
            yield b"        " + _open("device", attributes) + b"\n"
            for key, value in one.options:
                yield b"          " + _leaf("option", {"name": key}, value) + b"\n"
            yield b"        </device>\n"
        else:
            yield b"        " + _leaf("device", attributes) + b"\n"
    if opened:
        yield b"      </devices>\n"


@lru_cache(1024)
def _count(text: str) -> int:
    return names.number(text)


@lru_cache(256)
def _pool_name(text: str) -> str:
    return str(names.pool_name(text))


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
    return compose(system)[0]


def compose(system: System) -> tuple[bytes, Layout]:
    """The file's bytes for a system, and their parts."""
    extra = _by_place(system.unknown_attributes)
    root = {
        "casemate-format": str(FORMAT),
        "generation": str(system.generation),
        "next-qid": str(system.next_qid),
        **dict(extra.get("", ())),
    }
    begin = b"".join([b"<?xml version='1.0' encoding='utf-8'?>\n", _open("qubes", root), b"\n"])
    out: list[bytes] = []
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
    head, texts = b"".join(out), []
    for state in sorted(system.domains.states(), key=_qid):
        if state.text is None:
            state.text = _domain(system.domains[str(state.values["name"])])
        texts.append(state.text)
    out = [b"    " + element + b"\n" for place, element in system.unknown if place == "domains"]
    out.append(b"  </domains>\n")
    out += [b"  " + element + b"\n" for place, element in system.unknown if place == ""]
    out.append(b"</qubes>\n")
    tail = b"".join(out)
    return b"".join([begin, head, *texts, tail]), Layout(system, head, tuple(texts), tail)


def _domain(domain: Domain) -> bytes:
    unknown = domain.state.unknown
    extra = _by_place(domain.state.unknown_attributes)
    out = [b"    ", _open("domain", {"id": f"domain-{domain.qid}", "class": domain.klass, **dict(extra.get("", ()))})]
    out.append(b"\n")
    out += _section("properties", 3, _properties(domain, extra), unknown)
    features = [
        _leaf("feature", {"name": name, **dict(extra.get(f"feature:{name}", ()))}, value)
        for name, value in domain.features.items()
    ]
    out += _section("features", 3, features, unknown)
    tags = [_leaf("tag", {"name": name, **dict(extra.get(f"tag:{name}", ()))}) for name in domain.tags]
    out += _section("tags", 3, tags, unknown)
    volumes = [_leaf("volume", _volume_attributes(v)) for v in domain.volumes.values() if v is not None]
    out += _section("volume-config", 3, volumes, unknown)
    out += _device_sections(domain.devices)
    out += [b"      " + element + b"\n" for place, element in unknown if place == ""]
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


_PLAIN = re.compile(r"[ !#-%'-;=?-~]*").fullmatch
"""Text that XML writes as it is."""


def _leaf(tag: str, attributes: Mapping[str, str], text: str = "") -> bytes:
    line = " ".join([tag, *(f'{key}="{value}"' for key, value in attributes.items())])
    if _PLAIN(text) and all(map(_PLAIN, attributes.values())) and line.isascii() and "{" not in line:
        return (f"<{line}>{text}</{tag}>" if text else f"<{line}/>").encode("ascii")
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
