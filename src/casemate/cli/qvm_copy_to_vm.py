"""qvm-copy-to-vm and qvm-move-to-vm on the host: send files of the host into a qube."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.cli.report import Report
from casemate.cli.silence import Silence
from casemate.client.qubes import Qubes
from casemate.filecopy.pack import ALL_NAMES, Progress, check_paths, name_beyond_plain, remove_sent, send_files
from casemate.wire.admin import ADMIN
from casemate.wire.errors import printable
from casemate.wire.qrexec import Command

SERVICE = "qubes.Filecopy"


def run(prog: str, remove: bool, argv: Sequence[str] | None) -> int:
    """Copy, and with ``remove`` remove here what the qube has confirmed."""
    parser = tool.Parser(prog, f"{'Move' if remove else 'Copy'} files into a qube, to ~/QubesIncoming/dom0 there.")
    add = parser.add_argument
    add("--without-progress", action="store_true", help="do not show how much has been sent")
    add("--with-progress", dest="without_progress", action="store_false", help="show it on a terminal (default)")
    add("--ignore-symlinks", action="store_true", help="leave links out")
    add("--no-ignore-symlinks", dest="ignore_symlinks", action="store_false", help="send links (default)")
    add(
        "--allow-all-names", action="store_true",
        help="ask the receiver to take names with any characters; done by itself where a name needs it"
    )  # fmt: skip
    parser.one_qube()
    parser.add_argument("FILE", nargs="+", help="files and directories")

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        check_paths(args.FILE)
        ignore = args.ignore_symlinks
        all_names = args.allow_all_names or bool(name_beyond_plain(args.FILE, ignore))
        command = Command("DEFAULT", SERVICE, ALL_NAMES if all_names else None, ADMIN)
        report = Report(qubes.transport.settings, command, args.VMNAME)
        sock = open_call(qubes, args.VMNAME, command, True, report, quiet=args.quiet)
        look = Silence(prog, qubes, args.VMNAME, report)
        progress = Progress(-1 if args.without_progress or args.quiet else 2)
        try:
            send_files(sock, args.FILE, progress, lambda text: _warn(prog, text), ignore, look)
        finally:
            progress.end()
            report.step("ended")
        if remove:
            remove_sent(args.FILE, ignore)
        return 0

    return tool.run(parser, body, argv)


def _warn(prog: str, text: str) -> None:
    sys.stderr.write(f"{prog}: {printable(text)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run qvm-copy-to-vm; 0 only when the qube has confirmed everything."""
    return run("qvm-copy-to-vm", False, argv)
