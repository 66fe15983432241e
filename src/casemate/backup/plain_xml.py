"""XML of a backup: elements, attributes and text. Nothing else is accepted.

It comes from whoever made the backup. Entities and document types are refused, so that nothing can grow and nothing
outside is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.parsers import expat

from casemate.backup.errors import RefusedError


class Element:
    """An element. ``text`` is its own, without that of its children."""

    __slots__ = ("attributes", "children", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""

    def all(self, path: str) -> list[Element]:
        """Descendants along a path of tags."""
        found = [self]
        for tag in path.split("/"):
            found = [child for element in found for child in element.children if child.tag == tag]
        return found

    def walk(self) -> Iterator[Element]:
        """This one and all that is in it, in the order of the document."""
        yield self
        for child in self.children:
            yield from child.walk()


def parse(data: bytes, what: str, most_depth: int) -> Element:
    """The root element. RefusedError, which begins with ``what``, when the data is no plain XML or nested deeper."""
    parser = expat.ParserCreate()
    root = Element("", {})
    stack = [root]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > most_depth:
            raise RefusedError(f"{what} is nested too deeply")
        element = Element(tag, attributes)
        stack[-1].children.append(element)
        stack.append(element)

    def end(_tag: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def refuse(*_what: object) -> None:
        raise RefusedError(f"{what} has a document type or entities, which no writer makes")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ProcessingInstructionHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise RefusedError(f"{what} is not well formed: {error}") from None
    return root.children[0]
