"""Asks for the passphrase of a backup: from a file, standard input, or the terminal; never from the command line."""

from __future__ import annotations

import sys

from casemate.wire.errors import CasemateError

FILE_HELP = "file with the passphrase; - is standard input"
"""Help of the option ``--passphrase-file``."""
_LONGEST = 4096


class PassphraseInputError(CasemateError):
    """No passphrase could be had."""


def from_file(path: str) -> bytes:
    """The first line of a file; ``-`` is standard input."""
    try:
        if path == "-":
            line = sys.stdin.buffer.readline(_LONGEST)
        else:
            with open(path, "rb") as file:
                line = file.readline(_LONGEST)
    except OSError as error:
        raise PassphraseInputError(f"{path}: {error.strerror}") from None
    return _checked(line.rstrip(b"\r\n").decode("utf-8", "surrogateescape"))


def asked(file: str | None, new: bool = False) -> bytes:
    """The passphrase. ``new``: it will protect a backup, so it is asked for twice, and a weak one is warned of."""
    if file is not None:
        found = from_file(file)
    else:
        found = _typed("Passphrase of the backup: ")
        if new and _typed("Once more: ") != found:
            raise PassphraseInputError("The two are not the same")
    from casemate.backup.profile import WEAK_BITS, strength

    if new and strength(found.decode("utf-8", "replace")) < WEAK_BITS:
        sys.stderr.write(
            "This passphrase is weak: whoever gets the backup may try billions of them. Five random words are good.\n"
        )
    return found


def _checked(passphrase: str) -> bytes:
    from casemate.backup.profile import check_passphrase  # needs installed packages, which not every tool looks for

    return check_passphrase(passphrase)


def _typed(prompt: str) -> bytes:
    import getpass

    try:
        return _checked(getpass.getpass(prompt))
    except EOFError:
        raise PassphraseInputError("There is no terminal to ask for the passphrase: give --passphrase-file") from None
