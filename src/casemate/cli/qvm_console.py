"""qvm-console: use a running qube's serial console from this terminal."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import re
import select
import socket
import sys
import termios
import tty
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import CasemateError, DisconnectedError, NotHaltedError, NotRunningError, ProtocolError
from casemate.wire.qrexec import Command

PROG = "qvm-console"
ESCAPE = 0x1D
"""Ctrl-] leaves, as it does in telnet and virsh."""
_BUSY = 3

_SHELL = """exec flock -n -o -E {busy} /run/casemate-console.lock sh -c '
export TERM={term} HOME=/root; cd /root 2>/dev/null || cd /
stty sane rows {rows} cols {columns} </dev/ttyS0
exec setsid -c -w "${{SHELL:-/bin/sh}}" -i </dev/ttyS0 >/dev/ttyS0 2>&1'
"""
"""A shell on the guest's side of the console. There is one at a time; it stays when its user goes without ending it."""

_SAFE = re.compile(rb"\x1b\[(?:[0-9;]{0,16}[A-HJKLMPSTXdfm@]|\?(?:1|7|25|2004)[hl])")
"""Sequences that move, erase and colour. Others can make a terminal answer, resize or rename itself."""
_BEGUN = re.compile(rb"\x1b(?:\[[0-9;?]{0,18})?\Z")
_PLAIN = re.compile(rb"[ -~\r\n\t\b\x07]+")


class Harmless:
    """What a qube prints, so that it can do no more to a terminal than to write on it."""

    def __init__(self) -> None:
        self._left = b""

    def pass_on(self, untrusted_data: bytes) -> bytes:
        """The part that may be shown now; a sequence that has only begun waits for its end."""
        data, at, out = self._left + untrusted_data, 0, []
        begun = _BEGUN.search(data)
        end = begun.start() if begun else len(data)
        while at < end:
            match = _PLAIN.match(data, at, end) or _SAFE.match(data, at)
            if match is not None:
                out.append(match[0])
                at = match.end()
            else:
                out.append(b"^[" if data[at] == 0x1B else b"_")
                at += 1
        self._left = data[end:]
        return b"".join(out)


class _Shell:
    """The call that keeps a shell on the guest's side."""

    def __init__(self, qubes: Qubes, name: str) -> None:
        rows, columns = _size()
        term = os.environ.get("TERM", "")
        term = term if re.fullmatch(r"[a-z0-9-]{1,32}", term) else "vt100"
        line = _SHELL.format(busy=_BUSY, term=term, rows=rows, columns=columns)
        self._side = CallerSide()
        self.sock: socket.socket | None = open_call(
            qubes, name, Command("root", "qubes.VMShell", None, ADMIN), autostart=False
        )
        self.sock.sendall(b"".join([*self._side.stdin(line.encode()), *self._side.stdin_eof()]))

    def ended(self) -> bool:
        """Look at what came; whether the shell is over. One that somebody else left there goes on without us."""
        assert self.sock is not None
        try:
            data = self.sock.recv(65536)
            for _piece in self._side.feed(data):
                pass
        except (OSError, ProtocolError):
            data = b""
        if data and self._side.exit_code is None:
            return False
        self.close()
        return self._side.exit_code is not None and self._side.exit_code != _BUSY

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def _size() -> tuple[int, int]:
    try:
        found = os.get_terminal_size(0)
    except OSError:
        return 24, 80
    return found.lines or 24, found.columns or 80


def _open(path: str, name: str) -> int:
    """The console's terminal, ours alone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise CasemateError(f"The console of {name} cannot be opened ({path}): {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise CasemateError(f"Somebody else uses the console of {name}") from None
    return fd


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _attend(console: int, shell: _Shell | None, harmless: Harmless | None) -> None:
    """Pass bytes both ways until the user leaves, the shell or the machine ends."""
    waiting: set[int] = {0, console}
    while True:
        sock = shell.sock if shell is not None else None
        ready = select.select([*waiting, *([sock.fileno()] if sock is not None else [])], [], [])[0]
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
    console = _open(qubes.call("admin.vm.Console", "", name).strip(), name)
    saved = termios.tcgetattr(0) if os.isatty(0) else None
    shell = None
    try:
        if args.shell:
            try:
                shell = _Shell(qubes, name)
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
