"""qvm-console: use a running qube's serial console from this terminal."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import termios
import tty
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.calling import warn_of_policy
from casemate.client.console import Harmless, Shell, open_console
from casemate.client.qubes import Qubes
from casemate.streams.ready import readable
from casemate.wire.errors import DisconnectedError, NotHaltedError, NotRunningError

PROG = "qvm-console"
ESCAPE = 0x1D
"""Ctrl-] leaves, as it does in telnet and virsh."""


def _size() -> tuple[int, int]:
    try:
        found = os.get_terminal_size(0)
    except OSError:
        return 24, 80
    return found.lines or 24, found.columns or 80


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _attend(console: int, shell: Shell | None, harmless: Harmless | None) -> None:
    """Pass bytes both ways until the user leaves, the shell or the machine ends."""
    waiting: set[int] = {0, console}
    while True:
        sock = shell.sock if shell is not None else None
        ready = readable([*waiting, *([sock.fileno()] if sock is not None else [])])
        if console in ready:
            try:
                data = os.read(console, 65536)
            except OSError as error:
                if error.errno != errno.EIO:  # the link has closed its side
                    raise
                data = b""
            if not data:
                sys.stderr.write("\r\nThe machine has ended.\r\n")
                return
            _write(1, data if harmless is None else harmless.pass_on(data))
        if 0 in ready:
            data = os.read(0, 4096)
            before, leave, _ = data.partition(bytes([ESCAPE]))
            _write(console, before)
            if leave:
                return
            if not data:
                waiting.discard(0)  # what is still to be read may be wanted
                if sock is None:
                    return
        if sock is not None and sock.fileno() in ready and shell is not None and shell.ended():
            return


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    name = args.VMNAME
    if args.autostart:
        try:
            qubes.call("admin.vm.Start", "", name)
        except NotHaltedError:
            pass
    console = open_console(qubes.call("admin.vm.Console", "", name).strip(), name)
    saved = termios.tcgetattr(0) if os.isatty(0) else None
    shell = None
    try:
        if args.shell:
            warn_of_policy(qubes.transport.settings)
            try:
                rows, columns = _size()
                shell = Shell(qubes, name, rows, columns, os.environ.get("TERM", ""))
            except (DisconnectedError, NotRunningError, OSError) as error:
                sys.stderr.write(
                    f"No shell: the agent of {name} cannot be reached ({error}); what it prints is shown.\n"
                )
        if saved is not None:
            tty.setraw(0)
        if not args.quiet:
            sys.stderr.write(f"The console of {name}. Ctrl-] leaves.\r\n")
        _attend(console, shell, None if args.raw or not os.isatty(1) else Harmless())
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            sys.stderr.write("\n")
        if shell is not None:
            shell.close()
        os.close(console)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(
        PROG,
        "Use a running qube's serial console: what it prints at boot, and a shell of root. Ctrl-] leaves.",
        "There is one user at a time. A shell that was left without 'exit' is there again next time.",
    )
    parser.add_argument("--autostart", action="store_true", help="start the qube if it does not run")
    parser.add_argument("--no-shell", dest="shell", action="store_false", help="start no shell, only look and type")
    parser.add_argument("--raw", action="store_true", help="pass on control sequences that may do harm, too")
    parser.one_qube()
    return tool.run(parser, _body, argv)
