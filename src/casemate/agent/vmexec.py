"""Runs the command in the argument of qubes.VMExec: ``vmexec ENCODED``."""

from __future__ import annotations

import os
import sys

from casemate.wire.errors import ValueInvalidError
from casemate.wire.qrexec import EXIT_FAILED, EXIT_NO_SERVICE
from casemate.wire.vmexec import decode_vmexec


def main(argv: list[str]) -> int:
    """Become the command; 125 for an argument that is not one, 127 for a command that is not there."""
    try:
        if len(argv) != 2:
            raise ValueInvalidError("qubes.VMExec wants the command as its argument")
        words = decode_vmexec(argv[1])
    except ValueInvalidError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    try:
        os.execvp(words[0], words)
    except FileNotFoundError:
        sys.stderr.write(f"{words[0].decode('ascii', 'backslashreplace')}: not found\n")
        return EXIT_NO_SERVICE
    except OSError as error:
        sys.stderr.write(f"{words[0].decode('ascii', 'backslashreplace')}: {error.strerror}\n")
        return 126
