"""A file's bytes in parts: what stands before the qubes, the text of each qube, what follows.

::

    <?xml …?><qubes …>            begin   counters of the system: different after every save
      <labels> … <domains>        head
        <domain …> … </domain>    texts   one for each qube
        <domain …> … </domain>
      </domains></qubes>          tail

With the parts of the version before at hand, the next version of a file costs what differs: `split` takes a file of
our own layout apart after it was read as a whole, `follow` compares a new version with it, byte for byte, and reads
only the qubes whose text is another one. Where anything else differs (a qube came or went, a label is new, somebody
edited the head), it answers None, and the file is read as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casemate.model.qube import State
from casemate.model.system import System
from casemate.store.layout import DOMAIN_BEGIN, DOMAIN_END, FORMAT, qid_of
from casemate.store.reader import dangling, read_domain

_BEGIN = re.compile(
    rb"<\?xml version='1\.0' encoding='utf-8'\?>\n"
    rb'<qubes casemate-format="%d" generation="(0|[1-9][0-9]{0,17})" next-qid="([1-9][0-9]{0,8})"([^<>]*)>\n' % FORMAT
)
_BEGIN_SIZE = 1024
"""Bytes in which `_BEGIN` must match; a root with longer attributes, of whatever kind, has no parts."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A system that was read or written, and the bytes of its file in parts."""

    system: System
    more: bytes
    """Attributes of the root that are not known here, as in a file that Qubes OS wrote."""
    head: bytes
    """From the root's start tag to the first qube."""
    texts: tuple[bytes, ...]
    """Those of the qubes, in the order of their numbers."""
    tail: bytes


def split(system: System, data: bytes) -> Parts | None:
    """The parts of a file that was just read, each qube's text kept with its state; None for a file of another layout.

    Nothing is guessed: a file with comments or other processing instructions, in which a text could look like the end
    of a qube, has no parts.
    """
    begin = _BEGIN.match(data[:_BEGIN_SIZE])
    if begin is None or b"<!" in data or data.count(b"<?") != 1:
        return None
    states = sorted(system.domains.states(), key=qid_of)
    first = at = data.find(b"\n" + DOMAIN_BEGIN, begin.end() - 1) + 1
    texts = []
    for state in states:
        end = data.find(DOMAIN_END, at) + len(DOMAIN_END)
        text = data[at:end]
        if not text.startswith(b'%sid="domain-%d" ' % (DOMAIN_BEGIN, qid_of(state))):
            return None
        texts.append(text)
        at = end
    # An element that is not known may have a line like the end of a qube in it. Behind the true end there is none.
    if data.find(DOMAIN_BEGIN, at) >= 0 or data.find(DOMAIN_END, at) >= 0:
        return None
    for state, text in zip(states, texts, strict=True):
        state.text = text
    return Parts(system, begin[3], data[begin.end() : first], tuple(texts), data[at:])


def follow(data: bytes | bytearray, known: Parts) -> Parts | None:
    """The system that the file is now, given what it was before; None where it has to be read as a whole."""
    begin = _BEGIN.match(bytes(data[:_BEGIN_SIZE]))  # a copy: a match on the buffer would keep it from being resized
    if begin is None or begin[3] != known.more or not data.startswith(known.head, begin.end()):
        return None
    at = begin.end() + len(known.head)
    changed: list[tuple[int, State, bytes]] = []
    for index, text in enumerate(known.texts):
        if data.startswith(text, at):
            at += len(text)
            continue
        end = data.find(DOMAIN_END, at) + len(DOMAIN_END)
        new = bytes(data[at:end])
        state = None if b"<!" in new or b"<?" in new else read_domain(new)
        if state is None:
            return None
        changed.append((index, state, new))
        at = end
    if data[at:] != known.tail:
        return None
    generation, next_qid = int(begin[1]), int(begin[2])
    if next_qid < known.system.next_qid:
        return None
    system = known.system.copy()
    system.generation, system.next_qid = generation, next_qid
    texts = list(known.texts)
    for index, state, new in changed:
        if not system.domains.replace_state(state, texts[index]) or dangling(system, state):
            return None
        state.text = texts[index] = new
    return Parts(system, known.more, known.head, tuple(texts), known.tail)
