"""What a backup promises: the qubes in its copy of the store, with the files that each must have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from casemate.backup import plain_xml
from casemate.backup.errors import RefusedError
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, printable

MAX_STORE = 16 << 20
"""Limit of a backup (bytes): its copy of the store."""
MAX_VOLUME = 1 << 46
"""Limit of a backup (bytes): a volume of a version that does not tell its size."""
_MAX_DEPTH = 16
_PATH = re.compile(
    r"vm[0-9]{1,9}/?|dom0-home/[A-Za-z0-9_][A-Za-z0-9_.-]*|(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)+[A-Za-z0-9_.-]*/?"
)
CLASSES = ("TemplateVM", "AppVM", "StandaloneVM", "DispVM")


@dataclass(slots=True)
class StoredVolume:
    """A volume as the store describes it; ``size`` in bytes, None where the version does not tell."""

    name: str
    size: int | None
    kept: bool


@dataclass(slots=True)
class StoredQube:
    """A qube of the backup. ``path`` is what its files' names begin with, a slash at the end included."""

    name: str
    klass: str
    path: str
    size: int
    properties: dict[str, str] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    volumes: dict[str, StoredVolume] = field(default_factory=dict)
    devices: int = 0

    @property
    def images(self) -> dict[str, StoredVolume]:
        """The files of volumes that must be there."""
        return {f"{volume.name}.img": volume for volume in self.volumes.values() if volume.kept}


@dataclass(slots=True)
class Contents:
    """All of it. ``home`` is the path of the admin qube's home directory, "" when the backup has none."""

    qubes: dict[str, StoredQube]
    home: str


def parse(data: bytes) -> Contents:
    """What the backup's copy of the store says; RefusedError names what is impossible in it."""
    if len(data) > MAX_STORE:
        raise RefusedError(f"The store of the backup has {len(data)} bytes; at most {MAX_STORE} are possible")
    root = plain_xml.parse(data, "The store of the backup", _MAX_DEPTH)
    try:
        if root.tag == "qubes":
            contents = _parse_r4(root)
        elif root.tag == "QubesVmCollection":
            from casemate.backup.contents_r3 import parse_r3

            contents = parse_r3(root)
        else:
            raise RefusedError(f"The store of the backup begins with {printable(root.tag, 40)!r}")
    except RefusedError:
        raise
    except (CasemateError, KeyError, ValueError) as error:
        raise RefusedError(f"The store of the backup: {error}") from None
    _check_paths(contents)
    return contents


def _check_paths(contents: Contents) -> None:
    taken: dict[str, str] = {contents.home: ADMIN} if contents.home else {}
    for qube in contents.qubes.values():
        if not _PATH.fullmatch(qube.path) or ".." in qube.path.split("/"):
            raise RefusedError(f"The store of the backup: {qube.name} has the path {printable(qube.path, 80)!r}")
        for path, other in taken.items():
            if path.startswith(qube.path) or qube.path.startswith(path):
                raise RefusedError(f"The store of the backup: {qube.name} and {other} share the path {qube.path}")
        taken[qube.path] = qube.name


def _parse_r4(root: plain_xml.Element) -> Contents:
    out: dict[str, StoredQube] = {}
    home = ""
    ids: dict[str, str] = {}
    for element in root.all("domains/domain"):
        properties = {one.attributes["name"]: one.text for one in element.all("properties/property")}
        features = {one.attributes["name"]: one.text for one in element.all("features/feature")}
        included = bool(features.pop("backup-content", ""))
        path, size = features.pop("backup-path", ""), number(features.pop("backup-size", "0"))
        klass = element.attributes.get("class", "")
        if klass == "AdminVM":
            home = path if included else ""
            continue
        name = str(names.qube_name(properties.get("name", "")))
        ids[element.attributes.get("id", "")] = name
        if not included:
            continue
        if klass not in CLASSES:
            raise RefusedError(f"The store of the backup: {name} has the class {printable(klass, 40)!r}")
        volumes = {}
        for one in element.all("volume-config/volume"):
            given = one.attributes
            volume = str(names.argument(given["name"]))
            kept = given.get("save_on_stop") == "True"
            volumes[volume] = StoredVolume(volume, number(given["size"]) if "size" in given else None, kept)
        qube = StoredQube(name, klass, path if path.endswith("/") else f"{path}/", size, properties, features)
        qube.tags = [str(names.tag_name(one.attributes["name"])) for one in element.all("tags/tag")]
        qube.volumes = volumes
        qube.devices = len(element.all("devices/device"))
        add(out, qube)
    labels = {one.attributes.get("id", ""): one.text for one in root.all("labels/label")}
    for qube in out.values():
        for key, value in qube.properties.items():  # older releases wrote ids of elements here
            if key == "label":
                qube.properties[key] = labels.get(value, value)
            elif key in ("template", "netvm", "default_dispvm"):
                qube.properties[key] = ids.get(value, value)
    return Contents(out, home)


def add(out: dict[str, StoredQube], qube: StoredQube) -> None:
    """Add a qube; RefusedError when its name is there already."""
    if qube.name in out:
        raise RefusedError(f"The store of the backup has {qube.name} twice")
    out[qube.name] = qube


def number(text: str) -> int:
    """A size; ValueInvalidError for anything else."""
    return names.number(text or "0", "size", 0, 2**62)


def owner(contents: Contents, file: str) -> StoredQube | None:
    """The qube that a file of the backup belongs to."""
    for qube in contents.qubes.values():
        if file.startswith(qube.path):
            return qube
    return None
