"""The shape of ``qubes.xml``, stated once: which elements there are, and how each becomes a fact and comes from one.

The file has the shape of Qubes OS R4::

    <qubes casemate-format="1" generation="7" next-qid="4">
      <labels>      <label id="label-1" color="0xcc0000">red</label> …
      <pools>       <pool name="default" driver="qcow2"/> …
      <properties>  <property name="default_netvm">net</property> …       global properties
      <domains>
        <domain id="domain-3" class="AppVM">
          <properties>     <property name="label">blue</property> …
          <features>       <feature name="service.cups">1</feature> …
          <tags>           <tag name="created-by-dom0"/> …
          <volume-config>  <volume name="root" pool="default" vid="work/root" …/> …
          <devices class="block">  <device backend-domain="dom0" id="loop0" …/> …

A `Section` is one of these lists of like elements. ``take`` is how the reader (``reader.py``) puts one element into
what it builds, ``give`` what the writer (``writer.py``) writes, in canonical order. Both stand beside each other here,
so a new element is one entry. What ``take`` does not know raises `UnknownElement`, and the reader keeps it verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID, uuid5

from casemate.model.classes import CLASSES, Admin
from casemate.model.devices import Assignment, DeviceRef, device_class, identity, options, port
from casemate.model.domain import Domain
from casemate.model.features import feature_value
from casemate.model.kinds import Stored
from casemate.model.labels import Label
from casemate.model.properties import Holder, Setting
from casemate.model.qube import State
from casemate.model.system import ADMIN_VALUES, PoolConfig, System
from casemate.model.volumes import VOLUME_NAMES, Volume
from casemate.wire import names
from casemate.wire.errors import CasemateError, ValueInvalidError, printable

FORMAT = 1
"""Which shape of the file this is, in an attribute of its root; a file that says more is of a newer Casemate."""

ROOT_ATTRIBUTES = ("casemate-format", "generation", "next-qid")
"""Attributes of the root element; the file of Qubes OS has none of them, and each is 0 then."""

DOMAIN_BEGIN, DOMAIN_END = b"    <domain ", b"    </domain>\n"
"""How the text of each qube begins and ends where we wrote it (``parts.py``)."""

T = TypeVar("T", contravariant=True)
S = TypeVar("S", contravariant=True)


class UnknownElement(Exception):
    """An element that this version does not know. It is no error: the reader keeps the element as it is."""


@dataclass(frozen=True, slots=True)
class Section(Generic[T, S]):
    """A list of like elements: its own tag, the tag of each element, and how they are read and written."""

    tag: str
    leaf: str
    take: Callable[[T, dict[str, str], str], None]
    """Put one element (its attributes, its text) into what is read; raises CasemateError or UnknownElement."""
    give: Callable[[S], Iterable[tuple[dict[str, str], str]]]
    """The elements to be written (attributes, text), in canonical order."""
    name: Callable[[dict[str, str], str], str] = field(default=lambda given, text: given["name"])
    """What tells an element from its neighbours; attributes that are not known are kept under ``LEAF:NAME``."""
    known: frozenset[str] | None = frozenset({"name"})
    """The attributes that ``take`` understands; None where it keeps the others by itself."""

    def place(self, given: dict[str, str], text: str) -> str:
        """Where attributes of an element that are not known here are kept: ``property:NAME``."""
        return f"{self.leaf}:{self.name(given, text)}"


# ------------------------------------------------------------------------------------------------- properties


def _take_property(target: Tables | State, given: dict[str, str], text: str) -> None:
    name = given.get("name", "")
    if target.klass is Admin and name in ADMIN_VALUES:
        return  # the same in every system, whatever a file says
    stored = _stored(target.klass, name, text)  # type: ignore[arg-type]  # a class is hashable
    if name in target.values:
        raise ValueInvalidError(f"property {name!r} is set twice")
    target.values[name] = stored


@lru_cache(8192)
def _stored(holder: type[Holder], name: str, text: str) -> Stored:
    """The stored form of a property's text. Most values occur in many qubes, so they are kept."""
    prop = holder.properties().get(name)
    if prop is None or prop.setting is Setting.READ_ONLY:
        raise UnknownElement
    try:
        return prop.kind.parse(text)
    except CasemateError as error:
        raise ValueInvalidError(f"property {name}: {error}") from error


def _give_properties(holder: System | Domain) -> Iterable[tuple[dict[str, str], str]]:
    fixed = ADMIN_VALUES if isinstance(holder, Admin) else ()
    for name, stored in sorted(holder.values().items()):
        if name not in fixed:
            yield {"name": name}, holder.declaration(name).kind.format(stored)


PROPERTIES: Section[Tables | State, System | Domain] = Section(
    "properties", "property", _take_property, _give_properties
)

# ------------------------------------------------------------------------------------------ labels and pools


class Tables:
    """What a file says of the system, apart from its qubes."""

    klass: type[Holder] = System

    def __init__(self) -> None:
        self.labels: dict[str, Label] = {}
        self.pools: dict[str, PoolConfig] = {}
        self.values: dict[str, Stored] = {}
        """The global properties that are set."""


def _take_label(target: Tables, given: dict[str, str], text: str) -> None:
    name = str(names.label_name(text))
    ident = given.get("id", "")
    index = names.number(ident.removeprefix("label-") if ident.startswith("label-") else "")
    if name in target.labels or any(index == other.index for other in target.labels.values()):
        raise ValueInvalidError(f"label {name!r} or its number is named twice")
    target.labels[name] = Label(index, name, names.color(given.get("color", "")))


def _give_labels(system: System) -> Iterable[tuple[dict[str, str], str]]:
    for label in system.labels.values():
        yield {"id": label.id, "color": label.color}, label.name


def _take_pool(target: Tables, given: dict[str, str], _text: str) -> None:
    name = str(names.pool_name(given.pop("name", "")))
    driver = given.pop("driver", "")
    if not driver:
        raise ValueInvalidError(f"pool {name!r} has no driver")
    if name in target.pools:
        raise ValueInvalidError(f"pool {name!r} is named twice")
    target.pools[name] = PoolConfig(name, driver, given)


def _give_pools(system: System) -> Iterable[tuple[dict[str, str], str]]:
    for name, pool in sorted(system.pools.items()):
        yield {"name": name, "driver": pool.driver, **pool.options}, ""


SYSTEM_SECTIONS: tuple[Section[Any, System], ...] = (
    Section("labels", "label", _take_label, _give_labels, lambda given, text: text, frozenset({"id", "color"})),
    Section("pools", "pool", _take_pool, _give_pools, known=None),
    PROPERTIES,
)
"""What stands before the qubes, in the order of the file."""

# ----------------------------------------------------------------------------------- features, tags and volumes


def _take_feature(state: State, given: dict[str, str], text: str) -> None:
    name = given.get("name", "")
    state.features[name] = _feature(name, text)


@lru_cache(4096)
def _feature(name: str, value: str) -> str:
    names.feature_name(name)
    return feature_value(value)


def _give_features(domain: Domain) -> Iterable[tuple[dict[str, str], str]]:
    for name, value in domain.features.items():
        yield {"name": name}, value


def _take_tag(state: State, given: dict[str, str], _text: str) -> None:
    state.tags.add(_tag(given.get("name", "")))


@lru_cache(4096)
def _tag(name: str) -> str:
    return str(names.tag_name(name))


def _give_tags(domain: Domain) -> Iterable[tuple[dict[str, str], str]]:
    for tag in domain.tags:
        yield {"name": tag}, ""


@dataclass(frozen=True, slots=True)
class _Attribute:
    """One attribute of a ``volume`` element; the field of `Volume` has the same name."""

    name: str
    parse: Callable[[str], object]
    missing: object
    """What holds where the file does not say."""


def _flag(text: str) -> bool:
    """Upstream's Python writes ``True``, older files have ``true``."""
    if text not in ("True", "False", "true", "false"):
        raise ValueInvalidError("neither True nor False")
    return text in ("True", "true")


def _revisions(text: str) -> int:
    return -1 if text == "-1" else names.number(text)


_VOLUME = tuple(
    _Attribute(name, lru_cache(1024)(parse), missing)
    for name, parse, missing in (
        ("pool", names.pool_name, ""),
        ("vid", str, ""),
        ("rw", _flag, False),
        ("snap_on_start", _flag, False),
        ("save_on_stop", _flag, False),
        ("revisions_to_keep", _revisions, 0),
        ("size", names.number, 0),
        ("source", lambda text: text or None, None),
        ("ephemeral", _flag, None),
    )
)
"""In the order in which they are written; one whose value is None is left out. Others are kept in ``Volume.extra``."""


def _take_volume(state: State, given: dict[str, str], _text: str) -> None:
    name = given.pop("name", "")
    if name not in VOLUME_NAMES:
        raise UnknownElement
    values: dict[str, Any] = {}
    said = set(given)
    for attribute in _VOLUME:
        text = given.pop(attribute.name, None)
        try:
            values[attribute.name] = attribute.missing if text is None else attribute.parse(text)
        except CasemateError as error:
            raise ValueInvalidError(f"volume {name}: {attribute.name}: {error}") from error
    # A kept volume without a number of its own keeps as many older states as its pool says.
    own = "revisions_to_keep" in said or not values["save_on_stop"]
    if not values["vid"] or not values["pool"]:
        raise ValueInvalidError(f"volume {name} has no {'pool' if values['vid'] else 'vid'}")
    state.volumes[name] = Volume(name, **values, own_revisions=own, extra=tuple(given.items()))


def _give_volumes(domain: Domain) -> Iterable[tuple[dict[str, str], str]]:
    for volume in domain.volumes.values():
        if volume is not None:
            given = {"name": volume.name}
            for attribute in _VOLUME:
                value = getattr(volume, attribute.name)
                if value is not None and (volume.own_revisions or attribute.name != "revisions_to_keep"):
                    given[attribute.name] = str(value)
            yield {**given, **dict(volume.extra)}, ""


DOMAIN_SECTIONS: tuple[Section[Any, Domain], ...] = (
    PROPERTIES,
    Section("features", "feature", _take_feature, _give_features),
    Section("tags", "tag", _take_tag, _give_tags),
    Section("volume-config", "volume", _take_volume, _give_volumes, known=None),
)
"""What a qube consists of, in the order of the file; its devices follow."""

# ------------------------------------------------------------------------------------------------------ devices


class Element(NamedTuple):
    """An element that may have others in it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: tuple[Element, ...] = ()


_MODE_OF = {"yes": "required", "no": "auto-attach"}
"""Of ``required``, which R4.2 wrote where R4.3 writes ``mode``. Before both, whatever was assigned was required."""


def take_devices(section: Element) -> dict[DeviceRef, Assignment] | None:
    """The assignments of one class of devices; None where anything in the section is not known here.

    A section is taken as a whole or not at all, because an assignment of which we know one half would be carried out
    in another way than was meant. The reader keeps an unknown section verbatim.
    """
    found: dict[DeviceRef, Assignment] = {}
    try:
        devclass = device_class(section.attributes.get("class", ""))
        if len(section.attributes) != 1 or not section.children:
            return None
        for element in section.children:
            given = dict(element.attributes)
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
            pairs = {option.attributes.get("name", ""): option.text for option in element.children}
            plain = all(
                option.tag == "option" and len(option.attributes) == 1 and not option.children
                for option in element.children
            )
            if element.tag != "device" or given or not plain or len(pairs) != len(element.children) or ref in found:
                return None
            found[ref] = Assignment(ref, mode, options(pairs), None if "mode" in written else written)
    except (CasemateError, KeyError):
        return None
    return found


def give_devices(domain: Domain) -> Iterable[Element]:
    """The sections of a qube's assignments, one for each class of devices, in order."""
    by_class: dict[str, list[Element]] = {}
    for one in domain.devices:
        said = {
            "identity": one.device.ident,
            "mode": one.mode,
            "required": "yes" if one.mode == "required" else "no",
        }
        # A file of R4.2 has no mode; until the assignment changes it is written back as it was read.
        keys = ("identity", "mode") if one.written is None else one.written
        given = {"backend-domain": one.device.backend, "id": one.device.port, **{key: said[key] for key in keys}}
        pairs = tuple(Element("option", {"name": key}, value) for key, value in one.options)
        by_class.setdefault(one.device.devclass, []).append(Element("device", given, children=pairs))
    for devclass, elements in by_class.items():
        yield Element("devices", {"class": devclass}, children=tuple(elements))


# --------------------------------------------------------------------------------------------- a qube as a whole

DOMAIN_ATTRIBUTES = ("id", "class")
_NAMESPACE = UUID("5ca4e9bc-6a3f-4b57-9d1e-6b1f0c2a7d11")
"""Makes the UUID of a qube from a file that has none; always the same one for the same qid and name."""


def new_state(given: Mapping[str, str]) -> State:
    """An empty state of the class that the attributes of a ``domain`` element name."""
    klass = given.get("class", "")
    cls = CLASSES.get(klass)
    if cls is None:
        raise ValueInvalidError(f"no such class of qubes: {printable(klass, 40)!r}")
    return State(cls, dict(ADMIN_VALUES) if cls is Admin else {})


def complete(state: State, given: Mapping[str, str]) -> None:
    """Give a qube that was read what its file left out, and refuse one that lacks what nothing can replace."""
    values = state.values
    ident = given.get("id", "")
    if "name" not in values:
        raise ValueInvalidError("a qube without a name")
    if "qid" not in values:
        try:
            values["qid"] = names.number(ident.removeprefix("domain-"))
        except CasemateError as error:
            raise ValueInvalidError(f"qid: {error}") from error
    if ident and ident != f"domain-{values['qid']}":
        raise ValueInvalidError(f"id {printable(ident, 40)!r} and qid {values['qid']} differ")
    if "uuid" not in values:
        values["uuid"] = uuid5(_NAMESPACE, f"{values['qid']} {values['name']}")
    for name in state.klass.required():
        if name not in values:
            raise ValueInvalidError(f"{values['name']}: property {name!r} is missing")


def domain_attributes(domain: Domain) -> dict[str, str]:
    """The attributes of a ``domain`` element."""
    return {"id": f"domain-{domain.qid}", "class": domain.klass}


def root_attributes(system: System) -> dict[str, str]:
    """The attributes of the root element."""
    values = (FORMAT, system.generation, system.next_qid)
    return {key: str(value) for key, value in zip(ROOT_ATTRIBUTES, values, strict=True)}


def qid_of(state: State) -> int:
    """The number of a qube, by which the qubes of a file are in order."""
    return int(str(state.values["qid"]))
