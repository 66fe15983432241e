"""Opens the newest backup that a profile has made, with the passphrase that the profile names: nobody types one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from casemate.backup import profile as profiles
from casemate.backup.incremental.reader import IncrementalBackup
from casemate.backup.incremental.repository import Repository
from casemate.backup.outer import members
from casemate.backup.profile import Profile, ProfileError
from casemate.backup.reader import Backup
from casemate.client.transport import python_path
from casemate.settings import Settings
from casemate.wire import names
from casemate.wire.admin import ADMIN
from casemate.wire.errors import printable

SERVICE = "qubes.BackupPassphrase"
"""Service of the qube that keeps the passphrase; its argument is the profile."""
PASSPHRASE_SECONDS = 120.0
"""How long a qube may take to give a passphrase: a person may have to type it there. As long as the daemon waits."""
_LONGEST = 4096
_TOOL = (sys.executable, "-P", "-m", "casemate.cli", "qvm-run", "--pass-io", "--no-gui", "--service", "--")
_FILES = "qubes-backup-*"
"""Names that a backup in a directory gets, with the time; the order of the names is that of the times."""


def passphrase_of(name: str, profile: Profile) -> bytes:
    """The passphrase that is in the profile, or that the qube gives which the profile names; ProfileError."""
    if profile.passphrase_text is not None:
        return profiles.check_passphrase(profile.passphrase_text)
    if profile.passphrase_vm is None:
        raise ProfileError(f"The profile {name} has neither passphrase_text nor passphrase_vm: name the backup itself")
    qube = str(names.qube_name(profile.passphrase_vm))
    try:
        done = subprocess.run(
            [*_TOOL, qube, f"{SERVICE}+{name}"], env={**os.environ, "PYTHONPATH": python_path()}, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PASSPHRASE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ProfileError(f"{qube} did not answer {SERVICE} within {PASSPHRASE_SECONDS:g} s") from None
    if done.returncode != 0 or len(done.stdout) > _LONGEST:
        raise ProfileError(f"{qube} gave no passphrase: {SERVICE} ended with status {done.returncode}")
    return profiles.check_passphrase(done.stdout.decode("utf-8", "surrogateescape").rstrip("\n"))


def newest(place: str) -> Path:
    """The backup itself: ``place``, or the newest in the directory ``place``; ProfileError where there is none."""
    path = Path(place)
    if not path.is_absolute():
        raise ProfileError("destination_path must be an absolute path")
    if not path.is_dir():
        return path
    found = sorted(one for one in path.glob(_FILES) if one.is_file() and not one.is_symlink())
    if not found:
        raise ProfileError(f"There is no backup in {printable(str(path), 200)}")
    return found[-1]


@contextlib.contextmanager
def newest_backup(settings: Settings, name: str) -> Iterator[Backup | IncrementalBackup]:
    """The newest backup by a profile, open until the block ends. ProfileError says what is not possible."""
    profile = profiles.find(name, profiles.directories(settings.state))
    if profile.destination_vm != ADMIN:
        raise ProfileError(
            f"Backups by {name} are in {profile.destination_vm}, where only their names tell the newest: "
            f"name one to qvm-backup-restore -d {profile.destination_vm}"
        )
    if profile.repository:
        place, state = Path(profile.destination_path), settings.state / "backup"
        Repository(place, b"", state).identity()  # before anybody is asked for a passphrase
        repository = Repository(place, passphrase_of(name, profile), state)
        with repository.held(shared=True):
            yield IncrementalBackup(repository, repository.snapshot(repository.find(repository.listing(), None)))
        return
    path = newest(profile.destination_path)
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below: what goes wrong in the block is no error of this file
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from None
    with file, contextlib.closing(Backup(members(file), passphrase_of(name, profile))) as backup:
        yield backup
