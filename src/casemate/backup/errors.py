"""What can be wrong with a backup: all of it (refused), one file of it (damaged), or the passphrase."""

from __future__ import annotations

from casemate.wire.errors import CasemateError


class BackupError(CasemateError):
    """Base of the errors of this package."""


class RefusedError(BackupError):
    """The backup as a whole cannot be used, or its rest from here on."""


class PassphraseError(RefusedError):
    """The passphrase is not the one that the backup was made with, or its header was altered."""


class DamagedError(BackupError):
    """One file of the backup is not as it was written. Others may be."""


class UntriedError(DamagedError):
    """No passphrase was tried: the data is too short for a container, or asks for a key derivation that is refused."""
