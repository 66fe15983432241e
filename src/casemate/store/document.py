"""XML as the store uses it: a bounded parser for files from anywhere, and the text of single elements.

The parser loads no DTD, no entity and nothing from elsewhere, and bounds size and depth. What it refuses is an error
that names file, line and reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from lxml import etree

from casemate.wire.errors import StoreError, printable

MAX_SIZE = 64 << 20
"""Limit of the store (bytes): size of `qubes.xml`. That is some 60,000 qubes; a larger file is no collection of qubes
but an accident."""
MAX_TEXT = 10_000_000
"""Limit of the store (bytes): one text in `qubes.xml`. It is libxml2's own limit (XML_MAX_TEXT_LENGTH), which its 2.9
does not hold for a text that arrives in one piece."""
_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""Marks at the start of UTF-16, which may also come without one: then one of the first two bytes is NUL."""
MAX_DEPTH = 16
"""Limit of the store: depth of its elements of a kind that is not known here. Ours are nested 6 deep."""


class MalformedError(Exception):
    """What is wrong in a document, and in which line. ``reader`` turns it into a StoreError that names the file."""

    def __init__(self, element: etree._Element | None, reason: str) -> None:
        super().__init__(reason)
        self.line = 0 if element is None else element.sourceline or 0


def parse(data: bytes, source: str) -> etree._Element:
    """The root element of a document from anywhere; raises StoreError for what is not plain XML of bounded size."""
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
    # The search above looks for ASCII bytes. A file in UTF-16 passes it, so the parsed document is asked too.
    if root.getroottree().docinfo.internalDTD is not None:
        raise StoreError(f"{source}: a document type is not allowed")
    if (data[:2] in _MARKS or b"\0" in data[:2]) and len(data) % 2:
        raise StoreError(f"{source}: ends within a character")  # libxml2 2.9 drops the odd byte without a word
    # A smaller file can have no longer text: nearly no file is looked through.
    if len(data) > MAX_TEXT and any(len(text) > MAX_TEXT for text in root.itertext()):
        raise StoreError(f"{source}: a text is longer than {MAX_TEXT} bytes")
    return root


def attributes(element: etree._Element) -> dict[str, str]:
    """The attributes of an element, in the order of the file."""
    return {str(key): str(value) for key, value in element.items()}


def verbatim(element: etree._Element) -> bytes:
    """The bytes of an element with all that is in it, to be written again as they are."""
    _check_depth(element, 1)
    return etree.tostring(element, encoding="utf-8", xml_declaration=False, with_tail=False)


def _check_depth(element: etree._Element, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise MalformedError(element, f"elements are nested more than {MAX_DEPTH} deep")
    for child in element:
        _check_depth(child, depth + 1)


_PLAIN = re.compile(r"[ !#-%'-;=?-~]*").fullmatch
"""Text that XML writes as it is: printable ASCII without ``"``, ``&``, ``<`` and ``>``."""


def leaf(tag: str, given: Mapping[str, str], text: str = "") -> bytes:
    """The bytes of an element without others in it."""
    line = " ".join([tag, *(f'{key}="{value}"' for key, value in given.items())])
    # Nearly every element takes this short cut, which is ten times faster than to have lxml make and write it.
    # A key with "{" is a name in a namespace, which only lxml can write.
    if _PLAIN(text) and all(map(_PLAIN, given.values())) and line.isascii() and "{" not in line:
        return (f"<{line}>{text}</{tag}>" if text else f"<{line}/>").encode("ascii")
    element = etree.Element(tag)
    for key, value in given.items():
        element.set(key, value)
    if text:
        element.text = text
    return etree.tostring(element, encoding="utf-8", xml_declaration=False)


def start_tag(tag: str, given: Mapping[str, str]) -> bytes:
    """The bytes that open an element."""
    return leaf(tag, given).removesuffix(b"/>") + b">"
