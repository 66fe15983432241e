"""qvm-copy-to-vm and qvm-move-to-vm on the host: send files of the host into a qube."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.cli.report import Report
from casemate.client.qubes import Qubes
from casemate.filecopy.pack import Progress, check_paths, remove_sent, send_files
from casemate.wire.admin import ADMIN
from casemate.wire.errors import printable
from casemate.wire.qrexec import Command

SERVICE = "qubes.Filecopy"


def run(prog: str, remove: bool, argv: Sequence[str] | None) -> int:
    """Copy, and with ``remove`` remove here what the qube has confirmed."""
    parser = tool.Parser(prog, f"{'Move' if remove else 'Copy'} files into a qube, to ~/QubesIncoming/dom0 there.")
    parser.add_argument("--without-progress", action="store_true", help="do not show how much has been sent")
    parser.one_qube()
    parser.add_argument("FILE", nargs="+", help="files and directories")

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        check_paths(args.FILE)
        command = Command("DEFAULT", SERVICE, None, ADMIN)
        report = Report(qubes.transport.settings, command, args.VMNAME)
        sock = open_call(qubes, args.VMNAME, command, True, report)
        progress = Progress(-1 if args.without_progress or args.quiet else 2)
        try:
            send_files(sock, args.FILE, progress, lambda text: _warn(prog, text))
        finally:
            progress.end()
            report.step("ended")
        if remove:
            remove_sent(args.FILE)
        return 0

    return tool.run(parser, body, argv)


def _warn(prog: str, text: str) -> None:
    sys.stderr.write(f"{prog}: {printable(text)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run qvm-copy-to-vm; 0 only when the qube has confirmed everything."""
    return run("qvm-copy-to-vm", False, argv)
