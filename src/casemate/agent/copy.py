"""qvm-copy, qvm-move, qvm-copy-to-vm, qvm-move-to-vm inside a qube."""

from __future__ import annotations

import os
import sys

from casemate.calls.request import SOCKET, connect, request
from casemate.filecopy.pack import Progress, check_paths, remove_sent, send_files
from casemate.wire.errors import CallRefusedError, CasemateError
from casemate.wire.qrexec import EXIT_REFUSED

SERVICE = "qubes.Filecopy"


def main(argv: list[str]) -> int:
    """``qvm-copy FILE ...`` or ``qvm-copy-to-vm QUBE FILE ...``; 0 when all was confirmed, 126 refused, 1 failed.

    Files are removed by the ``move`` tools only after the receiver has confirmed all of them.
    """
    tool, words = argv[0], argv[1:]
    named = tool.endswith("-to-vm")
    if words[:1] == ["--"]:
        del words[0]
    elif words and words[0].startswith("-"):
        return _usage(tool, named)
    if len(words) < (2 if named else 1):
        return _usage(tool, named)
    target = words.pop(0) if named else "@default"
    try:
        check_paths(words)
        sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
        request(sock, target, SERVICE)
        progress = Progress()
        try:
            send_files(sock, words, progress, lambda text: print(f"{tool}: {text}", file=sys.stderr))
        finally:
            progress.end()
        if tool.startswith("qvm-move"):
            remove_sent(words)
    except CallRefusedError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except UnicodeEncodeError:
        print(f"{tool}: the name of a qube is ASCII", file=sys.stderr)
        return 1
    except CasemateError as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return 1
    return 0


def _usage(tool: str, named: bool) -> int:
    print(f"usage: {tool} {'QUBE ' if named else ''}FILE ...", file=sys.stderr)
    return 2
