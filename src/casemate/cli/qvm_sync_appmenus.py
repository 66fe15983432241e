"""qvm-sync-appmenus: ask a qube for the entries of its menus and keep them."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from casemate.calls.caller import run_call
from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, ProtocolError
from casemate.wire.menus import MAX_TEXT
from casemate.wire.qrexec import Command

PROG = "qvm-sync-appmenus"
SERVICE = "qubes.GetAppmenus"


def fetch(qubes: Qubes, name: str) -> bytes:
    """What a qube says its menus are, at most what may be kept; it is started for that."""
    sock = open_call(qubes, name, Command("DEFAULT", SERVICE, None, ADMIN), True)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    found = bytearray()

    def collect() -> None:
        while len(found) <= MAX_TEXT and (data := os.read(reading, 1 << 16)):
            found.extend(data)
        os.close(reading)  # with more to come the call ends by itself

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        status = run_call(sock, None, writing, 2, visible=(False, True))
    finally:
        os.close(writing)
        thread.join()
    if len(found) > MAX_TEXT:
        raise ProtocolError(f"{name} has more menus than {MAX_TEXT} bytes")
    if status:
        raise CasemateError(f"{name}: {SERVICE} ended with status {status}")
    return bytes(found)


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    name = args.VMNAME
    template = qubes.properties(name).get("template")
    if template is not None and template.text:
        raise tool.UsageError(f"{name} has its menus from {template.text}; ask that")
    qubes.transport.speak_for(name, "qubes.SyncAppMenus", fetch(qubes, name))
    if not args.quiet:
        count = len(qubes.call("admin.casemate.Menus", "", name).splitlines())
        sys.stdout.write(f"{name}: {count} entries\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Ask a template or standalone qube for the entries of its menus and keep them.")
    parser.one_qube()
    return tool.run(parser, _body, argv)
