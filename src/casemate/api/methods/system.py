"""Methods about the system as a whole. Two of them are Casemate's own: the list of everything, and the status.

``admin.casemate.List`` answers with JSON, one object for each qube. Its payload, which may be empty, is JSON too::

    {"qubes": ["work"], "properties": ["label", "netvm"], "features": ["servicevm"], "tags": true}

``qubes`` limits the answer (default: all), ``properties`` and ``features`` name what is wanted (null: all of them;
default: none). The answer is a list in the order of ``admin.vm.List``::

    [{"name": "work", "class": "AppVM", "state": "Halted", "uuid": "…",
      "properties": {"label": {"default": false, "type": "label", "value": "blue"}},
      "features": {"servicevm": "1"}, "tags": ["created-by-dom0"]}]

A property that the qube's class lacks, or a feature that it does not have, is not in its object.

``admin.casemate.Status`` answers with a JSON object: what this host can do, and which protections it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from casemate.api.context import Context
from casemate.api.events import FrameSink, Stream, Visible
from casemate.api.live import value
from casemate.api.method import Access, method
from casemate.model.classes import CLASSES
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.wire.admin import ADMIN
from casemate.wire.errors import ProtocolError

_MOST_NAMES = 4096
"""Properties or features that one call may name, so that a mistake of a client costs little."""
_LIVE = frozenset(name for cls in CLASSES.values() for name in cls.live())
"""Properties whose values change without a change of the store: an answer with one of them cannot be kept."""


@method("admin.Events", Access.STREAM, shows_qubes=True)
def events(context: Context, dest: Domain, source: str, transport: FrameSink, visible: Visible) -> Stream:
    """A stream of events about the qube, or about everything (dom0)."""
    return Stream(context.events.add(transport, dest.name, visible, source), context.events.discard)


def _names(wish: dict[str, Any], key: str) -> list[str] | None:
    """The names asked for under ``key``; None for all."""
    found = wish.get(key, [])
    if found is None:
        return None
    if not isinstance(found, list) or len(found) > _MOST_NAMES or not all(isinstance(name, str) for name in found):
        raise ProtocolError(f"{key!r} must be a list of names, or null")
    return found


def _wish(payload: bytes) -> dict[str, Any]:
    try:
        wish = json.loads(payload or b"{}")
    except (ValueError, RecursionError) as error:
        raise ProtocolError("The payload is not JSON") from error
    if not isinstance(wish, dict) or not wish.keys() <= {"qubes", "properties", "features", "tags"}:
        raise ProtocolError("The payload must be an object with qubes, properties, features, tags")
    return wish


@method("admin.casemate.List", Access.READ, shows_qubes=True)
def list_all(context: Context, system: System, sees: Callable[[str], bool], source: str, payload: bytes = b"") -> str:
    """All qubes that the caller may see, with the asked-for properties, features and tags, in one call."""
    wish = _wish(payload)
    chosen = None if "qubes" not in wish else _names(wish, "qubes")
    domains: Iterable[Domain] = system.domains.ordered()
    if chosen is not None:
        domains = [system.domains[name] for name in chosen]
    if source != ADMIN:
        domains = [domain for domain in domains if sees(domain.name)]
    properties, features, tags = _names(wish, "properties"), _names(wish, "features"), bool(wish.get("tags"))
    kept: dict[str, tuple[str, str]] = {}
    if system.frozen and properties is not None and not _LIVE.intersection(properties):
        key = (tuple(properties), None if features is None else tuple(features), tags)
        kept = _parts.of(system, key)
    found = []
    for domain in domains:
        name = domain.name
        parts = kept.get(name)
        if parts is None:
            parts = kept[name] = _describe(context, domain, properties, features, tags)
        found.append(f"{parts[0]}{_words(context.state(domain))}{parts[1]}")
    return f"[{', '.join(found)}]"


class _Parts:
    """Answers about qubes, as JSON before and after the power state, kept as long as the snapshot is the same.

    ``qvm-ls`` asks the same question again and again, and most of the answer follows from the store alone.
    """

    WISHES = 16

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[System, dict[_Wish, dict[str, tuple[str, str]]]] = WeakKeyDictionary()

    def of(self, system: System, wish: _Wish) -> dict[str, tuple[str, str]]:
        """What is known already of an answer, by qube; the caller adds to it."""
        wishes = self._kept.setdefault(system, {})
        while len(wishes) >= self.WISHES and wish not in wishes:
            del wishes[next(iter(wishes))]
        return wishes.setdefault(wish, {})


_Wish = tuple[tuple[str, ...], tuple[str, ...] | None, bool]
_parts = _Parts()
_words = cache(json.dumps)  # of the few states


def _describe(
    context: Context, domain: Domain, properties: list[str] | None, features: list[str] | None, tags: bool
) -> tuple[str, str]:
    entry: dict[str, Any] = {"uuid": domain.uuid_text}
    wanted = domain.properties() if properties is None else [name for name in properties if domain.has(name)]
    if wanted:
        values = {name: value(context, domain, name) for name in wanted}
        entry["properties"] = {n: {"default": v.default, "type": v.tag, "value": v.text} for n, v in values.items()}
    if features is None:
        entry["features"] = dict(domain.features)
    elif features:
        entry["features"] = {name: domain.features[name] for name in features if name in domain.features}
    if tags:
        entry["tags"] = list(domain.tags)
    # Names of qubes and classes are letters, digits, '_', '-' and '.': JSON has them as they are.
    return f'{{"name": "{domain.name}", "class": "{domain.klass}", "state": ', f", {json.dumps(entry)[1:]}"


@method("admin.casemate.Status", Access.READ)
def status(context: Context) -> str:
    """What this host can do, and which protections it lacks."""
    return json.dumps(context.host.status())
