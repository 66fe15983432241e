"""The next version of a file that is known: only the qubes whose text is another one are read.

Everything else has to be the same, byte for byte, except the counters of the root element. Where it is not (a qube came
or went, a label is new, somebody edited the file), None says so, and the file is read as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from casemate.model.invariants import references
from casemate.model.state import State
from casemate.model.system import System
from casemate.store.scan import scan

_ROOT = re.compile(
    rb"<\?xml version='1\.0' encoding='utf-8'\?>\n"
    rb'<qubes casemate-format="1" generation="(0|[1-9][0-9]{0,17})" next-qid="([1-9][0-9]{0,8})">\n'
)
_ROOT_SIZE = 160
_END = b"    </domain>\n"
_NAME = re.compile(rb'\n        <property name="name">([ -;=?-~]+)</property>\n')
_VOLUMES = b"\n      <volume-config>\n"
_NO_VOLUMES = b"\n      <volume-config/>\n    </domain>\n"


@dataclass(frozen=True, slots=True)
class Layout:
    """A system that was read or written, and the file's bytes of it in their parts."""

    system: System
    head: bytes
    """From the root's start tag to the first qube."""
    texts: tuple[bytes, ...]
    """The qubes', in their order."""
    tail: bytes


def layout_of(system: System, data: bytes) -> Layout | None:
    """The parts of a file that was read; None where it is not as we write it."""
    root = _ROOT.match(data)
    states = sorted(system.domains.states(), key=lambda state: int(str(state.values["qid"])))
    texts = tuple(state.text for state in states if state.text is not None)
    if root is None or len(texts) != len(states) or not texts:
        return None
    begin = at = data.find(texts[0], root.end())
    for text in texts:
        if not data.startswith(text, at):
            return None
        at += len(text)
    return Layout(system, data[root.end() : begin], texts, data[at:])


def follow(data: bytes | bytearray, known: Layout) -> Layout | None:
    """The system that the file is now, given what it was before; None where it has to be read as a whole."""
    root = _ROOT.match(bytes(data[:_ROOT_SIZE]))  # of a copy: a match would keep the caller from using the memory again
    if root is None or not data.startswith(known.head, root.end()):
        return None
    at = root.end() + len(known.head)
    changed: list[tuple[int, State]] = []
    for index, text in enumerate(known.texts):
        if not data.startswith(text, at):
            end = data.find(_END, at) + len(_END)
            state = _scan(bytes(data[at:end]), known, text) if end > at else None
            if state is None:
                return None
            changed.append((index, state))
            at = end
        else:
            at += len(text)
    if data[at:] != known.tail:
        return None
    base = known.system
    generation, next_qid = int(root[1]), int(root[2])
    if next_qid < base.next_qid:
        return None
    system = base.copy()
    system.generation, system.next_qid = generation, next_qid
    texts = list(known.texts)
    for index, state in changed:
        if not system.domains.replace_state(state, texts[index]) or not _sound(system, state):
            return None
        assert state.text is not None
        texts[index] = state.text
    return Layout(system, known.head, tuple(texts), known.tail)


def _scan(text: bytes, known: Layout, before: bytes) -> State | None:
    """The state of a changed text. Volumes, most of a qube, are taken from the old one where their text is the same."""
    name = _NAME.search(before)
    old = known.system.domains.state(name[1].decode("ascii")) if name is not None else None
    at, there = text.find(_VOLUMES), before.find(_VOLUMES)
    if old is None or old.text != before or old.unknown or old.unknown_attributes or -1 in (at, there):
        return scan(text)
    if text[at:] != before[there:]:
        return scan(text)
    state = scan(text[:at] + _NO_VOLUMES)
    if state is not None:
        state.volumes = old.volumes.copy()
        state.text = text
    return state


def _sound(system: System, state: State) -> bool:
    """Whether what a qube refers to exists; nothing else can have changed that."""
    targets: Iterable[object] = (state.values.get(prop.name) for prop in references(state.klass))
    if not all(target is None or target in system.domains for target in targets):
        return False
    return state.values.get("label", "black") in system.labels
