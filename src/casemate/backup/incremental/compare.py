"""What changed between two backups of a repository, in lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from casemate.backup.incremental.reader import IncrementalBackup


def differences(old: IncrementalBackup, new: IncrementalBackup) -> Iterator[str]:
    """``+`` a qube that is new, ``-`` one that has gone, ``~`` what changed of one. Nothing when nothing changed."""
    before, after = old.contents.qubes, new.contents.qubes
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"- {name}"
        elif name not in before:
            yield f"+ {name}"
        else:
            for what in _changes(old, new, name):
                yield f"~ {name}: {what}"


def _changes(old: IncrementalBackup, new: IncrementalBackup, name: str) -> Iterator[str]:
    before, after = old.contents.qubes[name], new.contents.qubes[name]
    if before.klass != after.klass:
        yield f"class {before.klass} → {after.klass}"
    yield from _pairs("property", before.properties, after.properties)
    yield from _pairs("feature", before.features, after.features)
    yield from _pairs("tag", dict.fromkeys(before.tags, ""), dict.fromkeys(after.tags, ""))
    small = [
        {file[len(one.path) :]: data.hex() for file, data in backup.snapshot.small.items() if file.startswith(one.path)}
        for backup, one in ((old, before), (new, after))
    ]
    for file in sorted(small[0].keys() | small[1].keys()):
        if small[0].get(file) != small[1].get(file):
            yield f"{file} {_word(file in small[0], file in small[1])}"
    for file in sorted(before.images.keys() | after.images.keys()):
        one, other = old.snapshot.volumes.get(before.path + file), new.snapshot.volumes.get(after.path + file)
        if one != other:
            yield f"volume {file.removesuffix('.img')} {_word(one is not None, other is not None)}"


def _pairs(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or key == "backup_timestamp":
            continue
        values = f": {before[key]} → {after[key]}" if key in before and key in after else ""
        yield f"{what} {key} {_word(key in before, key in after)}{values}"


def _word(was: bool, is_now: bool) -> str:
    return "changed" if was and is_now else "removed" if was else "added"
