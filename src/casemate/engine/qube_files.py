"""What is kept of a qube beside the collection, in a directory named by its UUID.

``STATE/qubes/UUID/firewall.xml`` has its firewall rules, ``notes.txt`` its notes, ``menus.tsv`` its menus, and
``recipe.json`` what a template was built from. A UUID is never used again, so a new qube that takes an old name finds
nothing of its predecessor.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from lxml import etree

from casemate.host.files import remove_tree, replace_file
from casemate.wire import firewall
from casemate.wire.errors import CasemateError, NotesError, StoreError, ValueInvalidError
from casemate.wire.firewall import ALLOW_ALL, Rule

MAX_FIREWALL = 1 << 20
MAX_NOTES = 256_000
"""Limit of the Admin API (bytes): notes about a qube."""
MAX_MENUS = 1 << 20
MAX_RECIPE = 1 << 16


class QubeFiles:
    """The files of all qubes of one state directory. Each is replaced as a whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = threading.Lock()
        self._parsed: dict[UUID, tuple[bytes, list[Rule]]] = {}

    def _path(self, uuid: UUID, name: str) -> Path:
        return self._directory / str(uuid) / name

    def _read(self, uuid: UUID, name: str, limit: int) -> bytes | None:
        path = self._path(uuid, name)
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error
        if len(data) > limit:
            raise StoreError(f"{path} is longer than {limit} bytes")
        return data

    def _write(self, uuid: UUID, name: str, data: bytes) -> None:
        path = self._path(uuid, name)
        try:
            with self._writing:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace_file(path, data)
        except OSError as error:
            raise StoreError(f"{path}: not saved: {error.strerror}") from error

    def has_rules(self, uuid: UUID) -> bool:
        """Whether anybody gave the qube firewall rules."""
        return self._path(uuid, "firewall.xml").exists()

    def rules(self, uuid: UUID) -> list[Rule]:
        """The qube's firewall rules that have not expired. A damaged file is an error, never a hole in the wall."""
        data = self._read(uuid, "firewall.xml", MAX_FIREWALL)
        if data is None:
            return [dict(ALLOW_ALL)]
        # Each change of the collection asks for the rules of all running qubes. Parsing 256 takes 5 ms; the file itself
        # is read each time, so nothing old is ever returned.
        known = self._parsed.get(uuid)
        if known is None or known[0] != data:
            known = self._parsed[uuid] = data, self._parse(uuid, data)
        now = time.time()
        return [dict(rule) for rule in known[1] if "expire" not in rule or int(rule["expire"]) > now]

    def _parse(self, uuid: UUID, data: bytes) -> list[Rule]:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        try:
            root = etree.fromstring(data, parser)
            return [
                firewall.rule_of(
                    firewall.stored_part(str(p.get("name")), p.text or "") for p in rule.iterfind("properties/property")
                )
                for rule in root.iterfind("rules/rule")
            ]
        except (etree.XMLSyntaxError, ValueInvalidError) as error:
            raise StoreError(f"{self._path(uuid, 'firewall.xml')}: {error}") from error

    def set_rules(self, uuid: UUID, rules: Sequence[Rule]) -> None:
        """Replace the qube's firewall rules."""
        self._write(uuid, "firewall.xml", _firewall_file(rules))

    def notes(self, uuid: UUID) -> str:
        """What people wrote about the qube."""
        try:
            data = self._read(uuid, "notes.txt", MAX_NOTES)
        except StoreError as error:
            raise NotesError(str(error)) from error
        return "" if data is None else data.decode("utf-8", "replace")

    def set_notes(self, uuid: UUID, text: str) -> None:
        """Replace the notes; empty text takes them away."""
        data = text.encode()
        if len(data) > MAX_NOTES:
            raise NotesError(f"Notes may have {MAX_NOTES} bytes at most")
        try:
            if data:
                self._write(uuid, "notes.txt", data)
            else:
                self._path(uuid, "notes.txt").unlink(missing_ok=True)
        except CasemateError as error:
            raise NotesError(str(error)) from error

    def menus(self, uuid: UUID) -> str:
        """The qube's menus, as wire.menus writes them."""
        data = self._read(uuid, "menus.tsv", MAX_MENUS)
        return "" if data is None else data.decode("ascii", "replace")

    def set_menus(self, uuid: UUID, text: str) -> None:
        """Replace the qube's menus."""
        self._write(uuid, "menus.tsv", text.encode("ascii"))

    def recipe(self, uuid: UUID) -> bytes | None:
        """What a template was built from, encoded; None where it was not built from a recipe."""
        return self._read(uuid, "recipe.json", MAX_RECIPE)

    def set_recipe(self, uuid: UUID, data: bytes) -> None:
        """Keep what a template was built from."""
        self._write(uuid, "recipe.json", data)

    def stored(self, uuid: UUID) -> dict[str, bytes]:
        """The files that belong into a backup, by name: firewall rules and notes, where there are any."""
        found = {}
        if self.has_rules(uuid):
            # Upstream's reader knows one kind of destination, whatever it is.
            rules = [
                {re.sub("^dst[46]$", "dsthost", key): text for key, text in rule.items()} for rule in self.rules(uuid)
            ]
            found["firewall.xml"] = _firewall_file(rules)
        if notes := self.notes(uuid):
            found["notes.txt"] = notes.encode()
        return found

    def remove(self, uuid: UUID) -> None:
        """Remove the files of a qube that was removed."""
        remove_tree(self._directory / str(uuid))
        self._parsed.pop(uuid, None)


def _firewall_file(rules: Sequence[Rule]) -> bytes:
    root = etree.Element("firewall", version="2")
    parent = etree.SubElement(root, "rules")
    for rule in rules:
        properties = etree.SubElement(etree.SubElement(parent, "rule"), "properties")
        for key, text in rule.items():
            etree.SubElement(properties, "property", name=key).text = text
    return etree.tostring(root, pretty_print=True, encoding="UTF-8")
