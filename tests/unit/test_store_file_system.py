"""Where the store may lie: file systems of other machines are refused, by the table of mounts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pytest import LogCaptureFixture, MonkeyPatch

from casemate.store import file_system
from casemate.store.store import Store
from casemate.wire.errors import StoreError

MOUNTS = rb"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw,relatime shared:2 master:3 - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/local rw - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/with\040space\134x rw - cifs //server/share rw
33 22 0:42 / /over rw - nfs server:/a rw
34 33 8:3 / /over rw - btrfs /dev/sdc1 rw
35 22 0:43 / /ssh rw - fuse.sshfs me@there: rw
nonsense
"""


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/casemate", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/.local/share/casemate", "nfs4"),
        ("/homes/me", "ext4"),
        ("/home/local/casemate", "xfs"),
        ("/mnt/with space\\x/state", "cifs"),
        ("/over/state", "btrfs"),
        ("/ssh/state", "fuse.sshfs"),
    ],
)
def test_the_innermost_and_last_mount_says_the_type(directory: str, kind: str) -> None:
    assert file_system.type_of(Path(directory), MOUNTS) == kind


def test_an_empty_table_says_nothing() -> None:
    assert file_system.type_of(Path("/"), b"") == ""


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    """A directory that the table of mounts says is on NFS."""
    table = tmp_path / "mountinfo"
    state = tmp_path / "state"
    state.mkdir()
    table.write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / {state} rw - nfs4 server:/state rw\n")
    monkeypatch.setattr(file_system, "MOUNTS", table)
    monkeypatch.delenv(file_system.OVERRIDE, raising=False)
    return state


def test_a_store_of_other_machines_is_refused_before_anything_is_made(remote: Path) -> None:
    store = Store(remote / "qubes.xml")
    for _ in range(2):
        with pytest.raises(StoreError, match="nfs4.*CASEMATE_REMOTE_STORE=1"):
            store.change(lambda system: system.admin.features.set("n", "1"))
        with pytest.raises(StoreError, match="nfs4"), store.read():
            pass
        with pytest.raises(StoreError, match="nfs4"):
            store.snapshot()
    assert list(remote.iterdir()) == []


def test_through_a_symbolic_link_too(remote: Path) -> None:
    link = remote.with_name("link")
    link.symlink_to(remote)
    with pytest.raises(StoreError, match="nfs4"):
        Store(link / "qubes.xml").snapshot()


def test_who_insists_is_warned(remote: Path, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture) -> None:
    monkeypatch.setenv(file_system.OVERRIDE, "1")
    with caplog.at_level(logging.WARNING):
        Store(remote / "qubes.xml").change(lambda system: system.admin.features.set("n", "1"))
    assert "nfs4" in caplog.text and caplog.text.count("will lose changes") == 1
    assert Store(remote / "qubes.xml").snapshot().admin.features["n"] == "1"


def test_elsewhere_nothing_is_refused(remote: Path) -> None:
    Store(remote.with_name("qubes.xml")).change(lambda system: system.admin.features.set("n", "1"))
