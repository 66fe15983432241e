"""qvm-run: run a command or a service in a qube, started for it if need be."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.calls.caller import run_call, run_call_with
from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.cli.report import Report
from casemate.cli.silence import Silence
from casemate.cli.standard_streams import CLOSED
from casemate.client.calling import Disposable, shell_line
from casemate.client.qubes import Qubes
from casemate.wire import qrexec, vmexec
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, DisconnectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROG = "qvm-run"


class _Parser(tool.Parser):
    """Options may also stand between the qube and the command; what follows the command is the command's."""

    def __init__(self) -> None:
        super().__init__(
            PROG,
            "Run a command in a qube. Without --pass-io its output is thrown away.",
            "One word is a command line for the qube's shell; several words are a program and its arguments.",
        )
        add = self.add_argument
        add("-u", "--user", help="run as this user of the qube")
        add("-a", "--autostart", "--auto", action="store_true", default=True, help="start the qube (default)")
        add("-n", "--no-autostart", "--no-auto", dest="autostart", action="store_false", help="do not start the qube")
        add("-p", "--pass-io", action="store_true", help="join stdin, stdout and stderr to the command's")
        add("--localcmd", metavar="COMMAND", help="join stdin and stdout to this local command's")
        add("--service", action="store_true", help="the command is the name of a service")
        add("--no-shell", dest="shell", action="store_false", help="do not use the qube's shell")
        add("--gui", action=tool.Ignored, why="qubes draw on no screen of this host")
        add("--no-gui", "--nogui", action="store_true", help=argparse.SUPPRESS)
        for what in ("output", "stderr"):
            names = [f"--color-{what}", f"--colour-{what}"]
            add(*names, type=_color, metavar="NUMBER", help=f"show {what} in this ANSI colour (31: red)")
            names = [f"--no-color-{what}", f"--no-colour-{what}"]
            add(*names, dest=f"color_{what}", action="store_const", const=None, help=argparse.SUPPRESS)
        add("--all", action="store_true", help="all running qubes except dom0")
        add("--exclude", action="append", default=[], metavar="VMNAME", help="not this one of --all")
        add("-d", "--dispvm", metavar="TEMPLATE", nargs="?", const="", help="a new disposable (=TEMPLATE: of that)")
        add("--filter-escape-chars", action="store_true", default=None, help="make output harmless (on a terminal)")
        add("--no-filter-escape-chars", dest="filter_escape_chars", action="store_false", help="pass it on as it is")
        add("WORDS", nargs=argparse.REMAINDER, metavar="[VMNAME] COMMAND [ARGUMENT ...]")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base, in two steps."""
        words = list(sys.argv[1:] if args is None else args)
        for i, word in enumerate(words):
            if not word.startswith("-") or word == "--":
                break
            # A template may follow as a word of its own only where "--" ends the options.
            if word in ("-d", "--dispvm") and words[i + 2 : i + 3] != ["--"]:
                words[i] = "--dispvm="
        found = super().parse_args(words, namespace)
        named = not found.all and found.dispvm is None
        found.VMNAME = ""
        if named and found.WORDS and found.WORDS[0] != "--":
            found.VMNAME, *rest = found.WORDS
            found = super().parse_args(rest, found)
        if found.WORDS[:1] == ["--"]:
            del found.WORDS[0]
        if named and not found.VMNAME and found.WORDS:
            found.VMNAME = found.WORDS.pop(0)
        self._check(found, named)
        return found

    def _check(self, found: argparse.Namespace, named: bool) -> None:
        if not found.WORDS or (named and not found.VMNAME):
            self.error("the name of a qube and a command are wanted")
        if found.service and len(found.WORDS) > 1:
            self.error("a service takes no further words")
        if found.exclude and not found.all:
            self.error("--exclude can only be used with --all")
        if found.service and not found.shell:
            self.error("--no-shell does not apply to --service")
        if found.all and (found.dispvm is not None or found.pass_io or found.localcmd):
            self.error("--all does not go together with --dispvm, --pass-io and --localcmd")


def _color(text: str) -> str:
    """The number of a colour of text (ECMA-48): 30 to 37, 90 to 97."""
    if not (text.isascii() and text.isdecimal() and int(text) in (*range(30, 38), *range(90, 98))):
        raise argparse.ArgumentTypeError(f"not a colour: {text!r}; there are 30 to 37 and 90 to 97")
    return text


class _Colored:
    """Colours on a terminal while a command's output comes, and the terminal's own again afterwards."""

    def __init__(self, args: argparse.Namespace) -> None:
        colors = ((1, args.color_output), (2, args.color_stderr))
        self._used = [(fd, color) for fd, color in colors if color is not None and os.isatty(fd)]

    def __enter__(self) -> None:
        for fd, color in self._used:
            os.write(fd, f"\033[0;{color}m".encode())

    def __exit__(self, *_: object) -> None:
        for fd, _color_of in self._used:
            os.write(fd, b"\033[0m")


def service_of(args: argparse.Namespace) -> tuple[str, str | None, bytes]:
    """Service, argument and the first bytes of its stdin for what is to be run."""
    words: list[str] = args.WORDS
    if args.service:
        service, argument = qrexec.parse_call(words[0])
        return service, argument, b""
    if len(words) > 1 or not args.shell:
        return "qubes.VMExec", vmexec.encode_vmexec(words), b""
    return "qubes.VMShell", None, shell_line(words[0])


def _run_in(args: argparse.Namespace, qubes: Qubes, name: str, autostart: bool) -> int:
    service, argument, first = service_of(args)
    command = qrexec.Command(args.user or "DEFAULT", service, argument, ADMIN)
    if not args.quiet and not args.pass_io and not args.localcmd:
        sys.stderr.write(f"Running {' '.join(args.WORDS)!a} on {name}\n")
    report = Report(qubes.transport.settings, command, name)
    sock = open_call(qubes, name, command, autostart, report, quiet=args.quiet)
    status = qrexec.EXIT_VANISHED
    look = Silence(PROG, qubes, name, report)
    try:
        if args.localcmd:
            status = run_call_with(sock, ["/bin/sh", "-c", args.localcmd], first, on_silence=look)
        elif args.pass_io:
            wanted = args.filter_escape_chars
            out, err = (os.isatty(fd) if wanted is None else wanted for fd in (1, 2))
            with _Colored(args):
                stdin = None if 0 in CLOSED else 0
                status = run_call(sock, stdin, 1, 2, first, (out, err), on_silence=look)
        else:
            status = run_call(sock, None, None, None, first, on_silence=look)
    except DisconnectedError as error:
        tool.say_error(PROG, f"{name}: {error}")
        return qrexec.EXIT_VANISHED
    finally:
        report.step("ended", status=status)
    if status == qrexec.EXIT_NO_SERVICE and args.service and not args.quiet:
        tool.say_error(PROG, f"{name}: the service ended with status 127; is there a {service}?")
    return status


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.dispvm is not None:
        with Disposable(qubes, args.dispvm) as name:
            return _run_in(args, qubes, name, True)
    if not args.all:
        if args.VMNAME in (ADMIN, "@adminvm"):
            raise tool.UsageError("Commands of this host are not run through qvm-run")
        return _run_in(args, qubes, args.VMNAME, args.autostart)
    worst = 0
    running = [
        q.name for q in qubes.listed() if q.name != ADMIN and q.state == "Running" and q.name not in args.exclude
    ]
    for name in running:
        try:
            status = _run_in(args, qubes, name, False)
        except CasemateError as error:
            tool.say_error(PROG, f"{name}: {error}")
            status = error.exit_status
        worst = max(worst, status)
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is that of the command, 255 when the qube went away, 126 when it was refused."""
    return tool.run(_Parser(), _body, argv)
