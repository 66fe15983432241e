"""Qubes as we write them, read without an XML parser: several times faster, and only what is exactly in our layout.

Whatever differs in any way (an unknown element or attribute, an entity, another indentation) is not understood here
and goes the long way, through the parser. Nothing is guessed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from uuid import UUID

from casemate.model.classes import CLASSES, Admin
from casemate.model.domain import Domain
from casemate.model.features import feature_value
from casemate.model.kinds import Stored
from casemate.model.properties import Setting
from casemate.model.state import State
from casemate.model.volumes import VOLUME_NAMES, Volume
from casemate.wire import names
from casemate.wire.errors import CasemateError

_HEAD = re.compile(r'    <domain id="domain-([0-9]+)" class="([A-Za-z]+)">\n')
_LEAF = re.compile(
    r'        <(property|feature|tag|volume) name="([ -~]*?)"((?: [a-z_]+="[^"<>\t\r\n]*")*)(?:/>|>([^<>\r\n]*)</\1>)\n'
)
_ATTRIBUTE = re.compile(r' ([a-z_]+)="([^"]*)"')
_SECTIONS = ("properties", "features", "tags", "volume-config")
_OF = {"property": 0, "feature": 1, "tag": 2, "volume": 3}
_IDENTITY = ("name", "qid", "uuid")
_FLAG = {"True": True, "False": False}
_KNOWN = frozenset(
    ("pool", "vid", "rw", "snap_on_start", "save_on_stop", "revisions_to_keep", "size", "source", "ephemeral")
)


class _Other(Exception):
    """Not in our layout, or not sound: for the parser."""


def scan(text: bytes) -> State | None:
    """The state that a qube's text describes; None for what only the parser may judge."""
    if b"&" in text or not text.isascii():
        return None
    try:
        return _scan(text)
    except (_Other, CasemateError, KeyError, ValueError):
        return None


def _scan(raw: bytes) -> State:
    text = raw.decode("ascii")
    head = _HEAD.match(text)
    if head is None or head[2] == Admin.class_name:
        raise _Other
    cls = CLASSES[head[2]]
    at = head.end()
    state = State(cls, {})
    for number, section in enumerate(_SECTIONS):
        if text.startswith(f"      <{section}/>\n", at):
            at += len(section) + 10
            continue
        if not text.startswith(f"      <{section}>\n", at):
            raise _Other
        at += len(section) + 9
        while (leaf := _LEAF.match(text, at)) is not None:
            tag, name, more, value = leaf.groups()
            if _OF[tag] != number or (more and tag != "volume"):
                raise _Other
            at = leaf.end()
            if number == 0:
                if name in state.values:
                    raise _Other
                state.values[name] = _stored(cls, name, value or "")  # type: ignore[arg-type]  # a class is hashable
            elif number == 1:
                state.features[name] = _feature(name, value or "")
            elif number == 2:
                state.tags.add(_tag(name))
            else:
                state.volumes[name] = _volume(name, more)
        if not text.startswith(f"      </{section}>\n", at):
            raise _Other
        at += len(section) + 10
    if text[at:] != "    </domain>\n" or state.values.get("qid") != int(head[1]):
        raise _Other
    if not isinstance(state.values.get("uuid"), UUID) or not _required(cls) <= state.values.keys():  # type: ignore[arg-type]  # as above
        raise _Other
    state.text = raw
    return state


@lru_cache(8192)
def _stored(cls: type[Domain], name: str, text: str) -> Stored:
    prop = cls.properties()[name]
    if prop.setting is Setting.READ_ONLY and name not in _IDENTITY:
        raise _Other
    return prop.kind.parse(text)


@lru_cache(4096)
def _feature(name: str, value: str) -> str:
    names.feature_name(name)
    return feature_value(value)


@lru_cache(4096)
def _tag(name: str) -> str:
    return str(names.tag_name(name))


@lru_cache(64)
def _required(cls: type[Domain]) -> frozenset[str]:
    found = (name for name, prop in cls.properties().items() if name not in cls.defaults and prop.default is None)
    return frozenset((*found, "name"))


@lru_cache(1024)
def _number(text: str) -> int:
    return -1 if text == "-1" else names.number(text)


@lru_cache(256)
def _pool(text: str) -> str:
    return str(names.pool_name(text))


def _volume(name: str, more: str) -> Volume:
    found = _ATTRIBUTE.findall(more)
    given = dict(found)
    if (
        name not in VOLUME_NAMES
        or sum(len(k) + len(v) + 4 for k, v in found) != len(more)
        or not given.keys() <= _KNOWN
    ):
        raise _Other
    if not given["vid"] or given["size"].startswith("-"):
        raise _Other
    ephemeral = given.get("ephemeral")
    return Volume(
        name, _pool(given["pool"]), given["vid"], _number(given["size"]), _FLAG[given["rw"]],
        _FLAG[given["snap_on_start"]], _FLAG[given["save_on_stop"]], given.get("source") or None,
        _number(given["revisions_to_keep"]), None if ephemeral is None else _FLAG[ephemeral],
    )  # fmt: skip
