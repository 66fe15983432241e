"""Reads a backup once, from its beginning to its end, and says of each qube whether it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from casemate.backup import contents as stored
from casemate.backup import header as headers
from casemate.backup.chunks import Chunks
from casemate.backup.contents import MAX_VOLUME, Contents, StoredQube
from casemate.backup.errors import DamagedError, RefusedError
from casemate.backup.filters import Source
from casemate.backup.header import STORE, BackupHeader
from casemate.backup.outer import Member
from casemate.backup.tar_header import NoHeaderError
from casemate.backup.tar_reader import Collected, Reader, Sink, only_file
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, printable

MAX_SMALL = 1 << 20
"""Limit of a backup (bytes): a file of a qube other than a volume."""
MANIFEST = "manifest.json"
"""Our own member at the end of a backup: each file's size and hash. Upstream's reader leaves it out."""


class Target(Protocol):
    """Where qubes go. A call may raise CasemateError: the qube then counts as damaged."""

    def volume(self, qube: StoredQube, name: str) -> Sink:
        """A sink for the volume of that name (``private``)."""

    def finish_volume(self, qube: StoredQube, name: str) -> None:
        """All of that volume has arrived."""

    def file(self, qube: StoredQube, name: str, data: bytes) -> None:
        """A small file of the qube (``firewall.xml``)."""

    def progress(self, count: int, /) -> object:
        """So many bytes of content have been read since the last call."""


class Nothing:
    """A target that keeps nothing: for verifying."""

    def __init__(self, progress: Callable[[int], object] = lambda _count: None) -> None:
        self.progress = progress

    def begin(self, size: int) -> None:
        """See ``Sink``."""

    def write(self, offset: int, data: memoryview) -> None:
        """See ``Sink``."""

    def volume(self, qube: StoredQube, name: str) -> Sink:
        """See ``Target``."""
        return self

    def finish_volume(self, qube: StoredQube, name: str) -> None:
        """See ``Target``."""

    def file(self, qube: StoredQube, name: str, data: bytes) -> None:
        """See ``Target``."""


@dataclass(slots=True)
class Verdict:
    """What became of one qube: ``state`` is ``whole``, ``damaged`` or ``missing``; ``why`` is for a person."""

    name: str
    state: str = "missing"
    why: str = ""
    arrived: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Report:
    """What was found. ``verdicts`` has all that was asked for; ``home`` the admin qube's home directory (None: not
    asked for); ``header`` that of a backup in a file."""

    header: BackupHeader | None
    contents: Contents
    verdicts: dict[str, Verdict]
    home: Verdict | None
    error: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[Verdict]:
        """The verdicts, that of the home directory last."""
        return [*self.verdicts.values(), *([self.home] if self.home else [])]

    @property
    def whole(self) -> bool:
        """True when everything that was asked for is there, to its last byte."""
        return not self.error and all(verdict.state == "whole" for verdict in self.all)


class Backup:
    """A backup being read. First the header and the store, then ``run`` for the rest; ``close`` in any case."""

    def __init__(self, found: Iterator[Member], passphrase: bytes, forced_filter: str = "") -> None:
        """Reads the header and the store; PassphraseError, RefusedError. ``found`` has the members of the backup."""
        self.header, first = headers.read(found, passphrase, forced_filter)
        self._chunks = Chunks(found, first, self.header, passphrase)
        try:
            self._files = self._chunks.files()
            self.contents = self._read_store()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop reading."""
        self._chunks.close()

    def _read_store(self) -> Contents:
        name, source = next(self._files, ("", None))
        if name != STORE or source is None:
            raise RefusedError(
                f"The backup does not begin with its store: {printable(name or 'nothing', 80)} comes first"
            )
        sink = Collected()
        try:
            only_file(source, STORE, stored.MAX_STORE, sink)
        except DamagedError as error:
            raise RefusedError(str(error)) from None
        return stored.parse(bytes(sink.data))

    def run(self, target: Target, only: Collection[str] | None = None, home: bool = True) -> Report:
        """Read the rest. ``only``: names of the qubes that matter (None: all). ``home``: also the home directory."""
        qubes = [qube for name, qube in self.contents.qubes.items() if only is None or name in only]
        report = Report(
            self.header, self.contents, {qube.name: Verdict(qube.name) for qube in qubes},
            Verdict(ADMIN) if home and self.contents.home else None,
        )  # fmt: skip
        if self.header.version == 3 and not self.header.compressed:
            report.notes.append(
                "Backups of version 3 do not protect the order of a file's parts. This one is not compressed, so parts "
                "that were exchanged would not be noticed."
            )
        paths = tuple(qube.path for qube in qubes)
        all_of_it = only is None

        def wanted(file: str) -> bool:
            return (
                file.startswith(paths) or bool(report.home and self._in_home(file)) or (all_of_it and "/" not in file)
            )

        self._chunks.wanted = wanted
        foreign = False
        manifest: dict[str, tuple[int, str]] = {}
        hashes: dict[str, tuple[int, str]] = {}
        try:
            for file, source in self._files:
                if not wanted(file):
                    continue
                counted = _Counted(source, target.progress)
                self._file(file, counted, report, target, manifest)
                hashes[file] = (counted.size, counted.hash.hexdigest())
        except RefusedError as error:
            report.error = str(error)
            foreign = isinstance(error, NoHeaderError)
        self._judge(report, manifest, hashes)
        if foreign and all(verdict.state == "whole" for verdict in report.all):
            # Junk at the end, such as a stick or a partition that was written to before.
            report.error = ""
            report.notes.append("After the end of the backup there is something that is no part of it.")
        return report

    def _in_home(self, file: str) -> bool:
        return file.startswith("dom0-home/")

    def _file(
        self, file: str, source: Source, report: Report, target: Target, manifest: dict[str, tuple[int, str]]
    ) -> None:
        qube = stored.owner(self.contents, file)
        if qube is None:
            if file == MANIFEST:
                manifest.update(_manifest(source))
            elif report.home is not None and self._in_home(file):
                _attempt(report.home, lambda: _walk(source, file, report.home))
            else:
                raise RefusedError(f"{printable(file, 80)} belongs to no qube of the backup")
            return
        verdict = report.verdicts[qube.name]
        if verdict.state == "damaged":
            return
        name = file[len(qube.path) :]
        if name == ".":
            _attempt(verdict, lambda: self._directory(qube, source, verdict, target))
        else:
            _attempt(verdict, lambda: self._one(qube, name, source, verdict, target))

    def _one(self, qube: StoredQube, name: str, source: Source, verdict: Verdict, target: Target) -> None:
        image = qube.images.get(name)
        if image is not None:
            most = MAX_VOLUME if image.size is None else image.size
            only_file(source, f"{qube.path}{name}", most, target.volume(qube, image.name))
            target.finish_volume(qube, image.name)
        elif name.endswith(".img"):
            raise DamagedError(f"{name} is a volume that {qube.name} does not keep")
        else:
            sink = Collected()
            only_file(source, f"{qube.path}{name}", MAX_SMALL, sink)
            target.file(qube, name, bytes(sink.data))
        verdict.arrived.add(name)

    def _directory(self, qube: StoredQube, source: Source, verdict: Verdict, target: Target) -> None:
        """A template of version 3 or 2: its whole directory, of which the volumes count."""
        reader = Reader(source)
        for entry in reader.entries():
            name = entry.name.removeprefix(f"{qube.path}./")
            image = qube.images.get(name)
            if image is None or name in verdict.arrived:
                reader.skip(entry)
                continue
            if entry.kind != "0" or entry.size > MAX_VOLUME:
                raise DamagedError(f"{qube.name}: {name} is not a regular file of a possible size")
            reader.copy(entry, target.volume(qube, image.name))
            target.finish_volume(qube, image.name)
            verdict.arrived.add(name)

    def _judge(self, report: Report, manifest: dict[str, tuple[int, str]], hashes: dict[str, tuple[int, str]]) -> None:
        for verdict in report.verdicts.values():
            qube = self.contents.qubes[verdict.name]
            missing = sorted({*qube.images, *_promised(manifest, qube.path)} - verdict.arrived)
            altered = [
                file for file, found in manifest.items()
                if file.startswith(qube.path) and file in hashes and hashes[file] != found
            ]  # fmt: skip
            if verdict.state == "damaged":
                continue
            if missing:
                state = "damaged" if verdict.arrived else "missing"
                verdict.state, verdict.why = state, f"{', '.join(missing)} did not arrive"
            elif altered:
                verdict.state, verdict.why = "damaged", f"{altered[0]} is not what was written"
            elif not qube.images and not verdict.arrived:
                verdict.why = "nothing of it arrived"
            else:
                verdict.state = "whole"
            if verdict.state != "whole" and report.error:
                verdict.why += f" ({report.error})"
        if report.home is not None and not report.home.why:
            report.home.state = "whole" if report.home.arrived else "missing"


def _promised(manifest: dict[str, tuple[int, str]], path: str) -> Iterator[str]:
    return (file[len(path) :] for file in manifest if file.startswith(path))


class _Counted(Source):
    """A source that tells how far it is, and hashes what passes."""

    def __init__(self, source: Source, progress: Callable[[int], object]) -> None:
        self._source = source
        self._progress = progress
        self.what = source.what
        self.size = 0
        self.hash = hashlib.sha256()

    def some(self, most: int) -> memoryview:
        piece = self._source.some(most)
        self.size += len(piece)
        self.hash.update(piece)
        self._progress(len(piece))
        return piece


def _attempt(verdict: Verdict, action: Callable[[], object]) -> None:
    """Do something for a qube; what goes wrong with it alone becomes its verdict."""
    try:
        action()
    except RefusedError as error:
        verdict.state, verdict.why = "damaged", str(error)
        raise
    except CasemateError as error:
        verdict.state, verdict.why = "damaged", str(error)


def _walk(source: Source, file: str, verdict: Verdict | None) -> None:
    """See that an archive of a directory is whole."""
    assert verdict is not None
    reader = Reader(source)
    for entry in reader.entries():
        reader.skip(entry)
    verdict.arrived.add(file)


def _manifest(source: Source) -> dict[str, tuple[int, str]]:
    sink = Collected()
    only_file(source, MANIFEST, MAX_SMALL * 16, sink)
    try:
        found = json.loads(bytes(sink.data))
        return {str(file): (int(one["size"]), str(one["sha256"])) for file, one in found["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # somebody else's; ours is checked by its hash of authentication already
