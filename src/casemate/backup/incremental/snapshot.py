"""A snapshot: one backup in a repository. Its settings and small files, and which layers each volume is made of."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from calendar import timegm
from dataclasses import dataclass, field

from casemate.backup.errors import DamagedError
from casemate.wire.errors import printable

MAX_SNAPSHOT = 128 << 20
"""Limit of an incremental backup (bytes): a snapshot, without the volumes."""
SNAPSHOT = "backup-"
"""What the name of a snapshot's archive begins with; its id follows."""
_ID = re.compile(r"[0-9]{8}-[0-9]{6}")
LAYER_NAME = re.compile(r"layer-[0-9a-f]{16}")
"""The form of a layer's name. The digits are random."""
_FORM = "%Y%m%d-%H%M%S"
_VERSION = 1
_MARK = f"casemate-{_VERSION}"


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A layer that a volume needs. ``sha256`` and ``length`` (bytes) are those of its stream."""

    name: str
    sha256: str
    length: int

    def as_json(self) -> list[object]:
        """What ``layer_ref`` reads."""
        return [self.name, self.sha256, self.length]


@dataclass(frozen=True, slots=True)
class VolumeRef:
    """A volume: its size in bytes; its full layer, and the difference from it if there is one."""

    size: int
    layers: tuple[LayerRef, ...]


@dataclass(slots=True)
class Snapshot:
    """All of a backup but the content of volumes. Files have the names that a backup of version 4 gives them."""

    id: str
    store: bytes
    small: dict[str, bytes] = field(default_factory=dict)
    volumes: dict[str, VolumeRef] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, LayerRef]:
        """All layers that its volumes need, by name."""
        return {layer.name: layer for volume in self.volumes.values() for layer in volume.layers}

    def build(self) -> bytes:
        """What ``parse`` reads."""
        return json.dumps(
            {
                "version": _VERSION,
                "id": self.id,
                "store": base64.b64encode(self.store).decode("ascii"),
                "small": {name: base64.b64encode(data).decode("ascii") for name, data in self.small.items()},
                "volumes": {
                    name: {"size": one.size, "layers": [layer.as_json() for layer in one.layers]}
                    for name, one in self.volumes.items()
                },
            },
            sort_keys=True,
        ).encode("ascii")

    def summary(self, data: bytes, qubes: int, fresh: int) -> str:
        """What borg keeps as the comment of the archive whose content is ``data``. ``fresh``: bytes given to borg.

        Words, because borg replaces what is in braces.
        """
        digest = hashlib.sha256(data).hexdigest()
        return " ".join((_MARK, digest, str(qubes), str(fresh), *sorted(self.layers)))


@dataclass(frozen=True, slots=True)
class Summary:
    """What the list of a repository tells of a snapshot. ``bytes``: what was new in it, before compression."""

    id: str
    sha256: str
    qubes: int
    bytes: int
    layers: frozenset[str]

    @property
    def time(self) -> int:
        """When it was made, in seconds since 1970."""
        return moment(self.id)


def new_id(newest: str, now: float) -> str:
    """An id: the time in UTC, to the second. Always after the ``newest`` ("" for none), whatever the clock says."""
    at = max(int(now), moment(newest) + 1) if newest else int(now)
    return time.strftime(_FORM, time.gmtime(at))


def moment(snapshot_id: str) -> int:
    """The time that an id stands for, in seconds since 1970."""
    return timegm(time.strptime(snapshot_id, _FORM))


def is_id(text: str) -> bool:
    """Whether this is the form of an id, and a time that there is."""
    if not _ID.fullmatch(text):
        return False
    try:
        moment(text)
    except ValueError:
        return False
    return True


def parse_summary(name: str, comment: str) -> Summary | None:
    """What an archive is; None when it is no snapshot of ours."""
    snapshot_id = name.removeprefix(SNAPSHOT)
    if not name.startswith(SNAPSHOT) or not is_id(snapshot_id):
        return None
    words = comment.split(" ")
    if len(words) < 4 or words[0] != _MARK or not words[2].isdecimal() or not words[3].isdecimal():
        return None
    return Summary(snapshot_id, words[1], int(words[2]), int(words[3]), frozenset(words[4:]))


def parse(data: bytes, expected: Summary) -> Snapshot:
    """The snapshot; DamagedError unless it is what its summary says."""
    what = f"Backup {expected.id}"
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise DamagedError(f"{what} is not as it was written")
    try:
        found = json.loads(data)
        if found["version"] != _VERSION:
            raise DamagedError(f"{what} has the version {printable(str(found['version']), 20)}; only 1 can be read")
        return Snapshot(
            id=expected.id,
            store=base64.b64decode(found["store"]),
            small={str(name): base64.b64decode(text) for name, text in found["small"].items()},
            volumes={
                str(name): VolumeRef(int(one["size"]), tuple(layer_ref(layer) for layer in one["layers"]))
                for name, one in found["volumes"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{what} is malformed: {error}") from None


def layer_ref(found: list[object]) -> LayerRef:
    """A layer as JSON has it; ValueError."""
    name, digest, length = found
    if not isinstance(name, str) or not LAYER_NAME.fullmatch(name):
        raise ValueError("no name of a layer")
    return LayerRef(name, str(digest), int(str(length)))
