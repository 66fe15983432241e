"""qvm-copy, qvm-move, qvm-copy-to-vm, qvm-move-to-vm inside a qube: their command line, and the call."""

from __future__ import annotations

import os
import sys

from casemate.calls.request import SOCKET, connect, request
from casemate.filecopy.pack import (
    ALL_NAMES,
    ALL_NAMES_HINT,
    Progress,
    check_paths,
    name_beyond_plain,
    remove_sent,
    send_files,
)
from casemate.wire import qfile
from casemate.wire.errors import CallRefusedError, CasemateError
from casemate.wire.qrexec import EXIT_REFUSED

SERVICE = "qubes.Filecopy"


def main(argv: list[str]) -> int:
    """``qvm-copy FILE ...`` or ``qvm-copy-to-vm QUBE FILE ...``; 0 when all was confirmed, 126 refused, 1 failed.

    Files are removed by the ``move`` tools only after the receiver has confirmed all of them. Where a name has
    characters that receivers refuse by default, the call is ``qubes.Filecopy+allow-all-names``.
    """
    tool, words = argv[0], argv[1:]
    named = tool.endswith("-to-vm")
    shows, ignore_links, asks = True, False, False
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word in ("--with-progress", "--without-progress"):
            shows = word == "--with-progress"
        elif word in ("--ignore-symlinks", "--no-ignore-symlinks"):
            ignore_links = word == "--ignore-symlinks"
        elif word == f"--{ALL_NAMES}":
            asks = True
        elif word in ("-h", "--help"):
            print(_usage(tool, named))
            return 0
        else:
            print(_usage(tool, named), file=sys.stderr)
            return 2
    if len(words) < (2 if named else 1):
        print(_usage(tool, named), file=sys.stderr)
        return 2
    target = words.pop(0) if named else "@default"
    odd = b""
    try:
        check_paths(words)
        odd = name_beyond_plain(words, ignore_links)
        sock = connect(os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET)
        request(sock, target, f"{SERVICE}+{ALL_NAMES}" if odd or asks else SERVICE)
        progress = Progress(2 if shows else -1)
        try:
            send_files(sock, words, progress, lambda text: print(f"{tool}: {text}", file=sys.stderr), ignore_links)
        finally:
            progress.end()
        if tool.startswith("qvm-move"):
            remove_sent(words, ignore_links)
    except CallRefusedError as error:
        print(error, file=sys.stderr)
        if odd:
            print(
                f'{tool}: "{qfile.shown(odd)}" has characters that need {ALL_NAMES}. {ALL_NAMES_HINT}', file=sys.stderr
            )
        return EXIT_REFUSED
    except UnicodeEncodeError:
        print(f"{tool}: the name of a qube is ASCII", file=sys.stderr)
        return 1
    except CasemateError as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return 1
    return 0


def _usage(tool: str, named: bool) -> str:
    return f"""usage: {tool} [OPTION ...] {"QUBE " if named else ""}FILE ...
  --without-progress   do not show how much has been sent (--with-progress: show it)
  --ignore-symlinks    leave links out (--no-ignore-symlinks: send them)
  --{ALL_NAMES}    ask the receiver to take names with any characters; done by itself where a name needs it"""
