"""Every sample of a backup has the outcome that its manifest asks for: verified, and restored."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import time
from pathlib import Path

import pytest

from casemate.backup.errors import BackupError
from casemate.backup.outer import members
from casemate.backup.reader import Backup, Nothing, Report
from tests import backup_samples as samples

FULL = bool(os.environ.get("CASEMATE_FULL"))
NAMES = sorted(name for name in samples.manifest() if FULL or name not in samples.SLOW)
OUTCOMES = {
    "ok": {"whole"}, "refuse": {"refused"}, "refuse-fast": {"refused"}, "refuse-or-ok": {"whole", "refused"},
    "undetectable-by-format": {"noted"}, "default-template": {"whole"}, "warn": {"whole"},
    "refuse-unless-forced": {"refused"}, "refuse-or-first": {"refused", "whole"}, "ok-or-refuse": {"whole", "refused"},
    "warn-or-ok": {"noted", "whole"}, "refuse-or-ignore": {"refused", "whole"},
}  # fmt: skip


class Kept(Nothing):
    """A target that keeps all it gets, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self._image = bytearray()

    def begin(self, size: int) -> None:
        self._image = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        assert offset + len(data) <= len(self._image)
        self._image[offset : offset + len(data)] = data

    def finish_volume(self, qube: object, name: str) -> None:
        self.files[f"{qube.path}{name}.img"] = bytes(self._image)  # type: ignore[attr-defined]

    def file(self, qube: object, name: str, data: bytes) -> None:
        self.files[f"{qube.path}{name}"] = data  # type: ignore[attr-defined]


def read(name: str, target: Nothing, forced: str = "") -> Report:
    """Read a sample to its end; BackupError when it is refused at once."""
    passphrase = samples.manifest()[name]["passphrase"].encode()
    with contextlib.closing(Backup(members(io.BytesIO(samples.files()[name])), passphrase, forced)) as backup:
        return backup.run(target)


def outcome(report: Report) -> str:
    if not report.whole:
        return "refused"
    return "noted" if report.notes else "whole"


@pytest.mark.parametrize("name", NAMES)
def test_outcome(name: str) -> None:
    begin = time.process_time()
    try:
        found = outcome(read(name, Kept()))
    except BackupError as error:
        assert str(error)
        found = "refused"
    wanted = OUTCOMES[samples.manifest()[name]["expect"]]
    assert found in wanted or (found == "noted" and "whole" in wanted)
    if samples.manifest()[name]["expect"].startswith("refuse"):
        assert time.process_time() - begin < 2  # whatever it says, it costs next to nothing


@pytest.mark.parametrize("name", [name for name in NAMES if samples.manifest()[name]["expect"] == "ok"])
def test_good_samples_of_old_versions_have_the_content_that_went_in(name: str) -> None:
    target = Kept()
    report = read(name, target)
    assert report.whole and target.files
    assert report.header is not None
    if report.header.version == 4:
        return
    known = samples.contents()
    for file, data in target.files.items():
        assert hashlib.sha256(data).hexdigest() == known[file], file


def test_good_samples_of_version_4_agree() -> None:
    # The same qubes were written with each filter and container.
    found: dict[str, set[str]] = {}
    for name in ("v4-gzip-multichunk.qbk", "v4-none.qbk", "v4-bzip2.qbk", "v4-xz.qbk", "v4-zstd.qbk"):
        target = Kept()
        assert read(name, target).whole
        for file, data in target.files.items():
            found.setdefault(file, set()).add(hashlib.sha256(data).hexdigest())
    assert len(found) == 10
    assert all(len(hashes) == 1 for file, hashes in found.items() if file != "qubes.xml"), found


def test_nothing_of_a_damaged_file_is_handed_over_as_finished() -> None:
    for name in NAMES:
        if (
            samples.manifest()[name]["level"] not in ("outer", "content")
            or "refuse" not in samples.manifest()[name]["expect"]
        ):
            continue
        target = Kept()
        try:
            report = read(name, target)
        except BackupError:
            assert not target.files, name
            continue
        for verdict in report.verdicts.values():
            path = report.contents.qubes[verdict.name].path
            arrived = {file[len(path) :] for file in target.files if file.startswith(path)}
            assert arrived == verdict.arrived, (name, verdict)


def test_the_rest_of_a_backup_survives_a_damaged_file() -> None:
    report = read("v4-x-flip-chunk-salt.qbk", Kept())
    states = {name: verdict.state for name, verdict in report.verdicts.items()}
    assert states.pop("work") == "damaged"
    assert set(states.values()) == {"whole"}
    assert "checksum" in report.verdicts["work"].why


def test_a_wrong_passphrase_is_told_at_once() -> None:
    with pytest.raises(BackupError, match="passphrase is wrong"):
        Backup(members(io.BytesIO(samples.files()["v4-none.qbk"])), b"something else")


def test_memory_is_bounded_by_the_size_of_chunks(tmp_path: Path) -> None:
    # Far more than all samples together may take; a reader that believed their sizes would ask for a petabyte.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in (
        "v4-a-hugesize.qbk",
        "v4-c-inner-sparse-1EiB.qbk",
        "v4-d-kdf-mem-1TiB.qbk",
        "v4-c-xml-entity-bomb.qbk",
    ):
        with contextlib.suppress(BackupError):
            read(name, Nothing())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
