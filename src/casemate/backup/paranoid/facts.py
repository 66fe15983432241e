"""What is in a backup, and how reading it went, as values of JSON: said in the disposable, believed on no word here.

``..._of`` make values of what a disposable said, and refuse all that reading the backup on this host would refuse:
names, classes and sizes are checked again. Text for a person becomes printable and short.
"""

from __future__ import annotations

from typing import Any

from casemate.backup.contents import CLASSES, MAX_VOLUME, Contents, StoredQube, StoredVolume, add
from casemate.backup.reader import Report, Verdict
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, ProtocolError, printable

_STATES = ("whole", "damaged", "missing")
_MAX_TEXT = 1 << 20
_MAX_WHY = 400
_MAX_NOTES = 100


def contents_said(contents: Contents) -> dict[str, object]:
    """All that a restore needs to know of the qubes."""
    return {
        "home": bool(contents.home),
        "qubes": [
            {
                "name": one.name, "class": one.klass, "size": one.size, "properties": one.properties,
                "features": one.features, "tags": one.tags, "devices": int(one.devices),
                "volumes": [[volume.name, volume.size, volume.kept] for volume in one.volumes.values()],
            }
            for one in contents.qubes.values()
        ],
    }  # fmt: skip


def contents_of(said: Any) -> Contents:
    """The same, of what was said. ProtocolError."""
    try:
        qubes: dict[str, StoredQube] = {}
        for one in _list(said["qubes"]):
            add(qubes, _qube(one))
        return Contents(qubes, "dom0-home/" if _bool(said["home"]) else "")
    except ProtocolError:
        raise
    except (CasemateError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"What it says of the backup is not possible: {printable(str(error), 200)}") from None


def _qube(said: Any) -> StoredQube:
    name, klass = str(names.qube_name(_text(said["name"]))), _text(said["class"])
    if klass not in CLASSES:
        raise ProtocolError(f"{name} has the class {printable(klass, 40)!r}")
    # The path is that of its files in the archive, which stays in the disposable.
    qube = StoredQube(name, klass, f"{name}/", _size(said["size"]), _texts(said["properties"]))
    qube.features = _texts(said["features"])
    qube.tags = [str(names.tag_name(_text(tag))) for tag in _list(said["tags"])]
    qube.devices = _size(said["devices"])
    for volume, size, kept in _list(said["volumes"]):
        found = str(names.argument(_text(volume)))
        qube.volumes[found] = StoredVolume(found, None if size is None else _size(size, MAX_VOLUME), _bool(kept))
    return qube


def report_said(report: Report) -> dict[str, object]:
    """How it went."""
    return {
        "verdicts": {one.name: [one.state, one.why] for one in report.verdicts.values()},
        "home": None if report.home is None else [report.home.state, report.home.why],
        "error": report.error, "notes": report.notes,
    }  # fmt: skip


def report_of(said: Any, contents: Contents, asked: list[str], home: bool) -> Report:
    """The same, of what was said about the qubes ``asked`` for. ProtocolError.

    One that nothing is said about is missing. What arrived is not said; whoever took it knows.
    """
    try:
        verdicts = {}
        for name in asked:
            state, why = said["verdicts"].get(name, ("missing", "nothing was said about it"))
            verdicts[name] = _verdict(name, state, why)
        found = None
        if home:
            state, why = said["home"] or ("missing", "nothing was said about it")
            found = _verdict(ADMIN, state, why)
        notes = [printable(_text(one), _MAX_WHY) for one in _list(said["notes"])[:_MAX_NOTES]]
        return Report(None, contents, verdicts, found, printable(_text(said["error"]), _MAX_WHY), notes)
    except ProtocolError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"What it says of the end is not possible: {printable(str(error), 200)}") from None


def _verdict(name: str, state: Any, why: Any) -> Verdict:
    if state not in _STATES:
        raise ProtocolError(f"{name} is said to be {printable(str(state), 40)!r}")
    return Verdict(name, state, printable(_text(why), _MAX_WHY))


def why_of(body: bytes) -> str:
    """Why it failed, for a person."""
    return printable(body.decode("utf-8", "replace"), _MAX_WHY)


def _list(said: Any) -> list[Any]:
    if not isinstance(said, list):
        raise ProtocolError("a list was expected")
    return said


def _bool(said: Any) -> bool:
    if not isinstance(said, bool):
        raise ProtocolError("true or false was expected")
    return said


def _size(said: Any, most: int = 2**62) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said <= most:
        raise ProtocolError("a number was expected, within its limits")
    return said


def _text(said: Any) -> str:
    """Text that can be sent on. Half a pair of surrogates, which JSON can say, cannot."""
    if not isinstance(said, str) or len(said) > _MAX_TEXT:
        raise ProtocolError("text was expected, of at most a mebibyte")
    try:
        said.encode("utf-8")
    except UnicodeEncodeError:
        raise ProtocolError("text was expected, and is none") from None
    return said


def _texts(said: Any) -> dict[str, str]:
    if not isinstance(said, dict):
        raise ProtocolError("names with texts were expected")
    return {_text(key): _text(value) for key, value in said.items()}
