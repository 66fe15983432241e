"""What goes into a backup, whatever its form: the chosen qubes, their small files, the copy of the store."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from lxml import etree

from casemate.engine.qube_files import QubeFiles
from casemate.model.domain import Domain
from casemate.model.system import System
from casemate.store import writer
from casemate.wire import names
from casemate.wire.admin import ADMIN


@dataclass(frozen=True, slots=True)
class Chosen:
    """A qube of the backup, its kept volumes, and the bytes that these take."""

    domain: Domain
    volumes: tuple[str, ...]
    size: int

    @property
    def path(self) -> str:
        """What the names of its files begin with."""
        return f"vm{self.domain.qid}/"


def encoded(data: bytes) -> str:
    """Bytes as JSON can carry them."""
    return base64.b64encode(data).decode("ascii")


def files_of(chosen: list[Chosen], files: QubeFiles) -> list[dict[str, str]]:
    """The files of a backup in their order, as the process that writes it gets them.

    A volume has its ``name`` in the backup and the key ``volume``, a name for it that stays the same; a small file has
    its ``name`` and its ``data``.
    """
    found: list[dict[str, str]] = []
    for one in chosen:
        for volume in one.volumes:
            found.append({"name": f"{one.path}{volume}.img", "volume": f"{one.domain.uuid}/{volume}"})
        small = files.stored(one.domain.uuid)
        if not one.volumes and not small:
            small = {"empty": b""}  # a qube without any file would look lost
        found += [{"name": one.path + name, "data": encoded(data)} for name, data in small.items()]
    return found


def store_copy(system: System, chosen: dict[int, Chosen]) -> bytes:
    """The store with what a reader looks for: which qubes are in the backup, where, and how large they are.

    Upstream's reader also wants label and template said of each qube, where ours leaves out what is the default.
    """
    root = etree.fromstring(writer.write(system))
    for element in root.iterfind("domains/domain"):
        qid = element.findtext("properties/property[@name='qid']")
        domain = system.domains[element.findtext("properties/property[@name='name']") or ADMIN]
        for key, named in (("label", domain.label), ("template", domain.template if domain.has("template") else None)):
            properties = element.find("properties")
            if named is not None and properties is not None and properties.find(f"property[@name='{key}']") is None:
                etree.SubElement(properties, "property", name=key).text = named.name
        features = element.find("features")
        if features is None:
            features = etree.SubElement(element, "features")
        for feature in features.findall("feature"):
            if str(feature.get("name")).startswith("backup-") or feature.get("name") in names.KEPT_FEATURES:
                features.remove(feature)
        one = chosen.get(int(qid)) if qid else None
        marks = (
            {"backup-content": "1", "backup-path": one.path, "backup-size": str(one.size)}
            if one
            else {"backup-content": ""}
        )
        for key, value in marks.items():
            etree.SubElement(features, "feature", name=key).text = value
    return etree.tostring(root, encoding="utf-8", xml_declaration=True)
