"""qrexec-client: run a command or a service in a domain, as upstream's program of this name does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from casemate.calls.caller import run_call, run_call_with
from casemate.calls.vchan_caller import DaemonConversation, serve
from casemate.calls.vchan_sockets import SocketDirectory
from casemate.cli import tool
from casemate.cli.calling import warn_of_policy
from casemate.cli.standard_streams import CLOSED
from casemate.client.qubes import Qubes
from casemate.wire import qrexec
from casemate.wire.errors import CallRefusedError, CasemateError, DisconnectedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from casemate.calls.caller import OnSilence

PROG = "qrexec-client"
SOCKET_DIR = "/var/run/qubes"
HOST = "dom0"
HOST_NAMES = (HOST, "@adminvm", "uuid:00000000-0000-0000-0000-000000000000")
API_SERVICES = ("admin.", "policy.")
"""Services of this host that are methods of the Admin API; upstream's policy editor calls them this way."""
EXIT_JOIN_FAILED = 137
"""Exit status when two domains could not be joined."""


def _parser() -> tool.Parser:
    parser = tool.Parser(
        PROG,
        "Run a command or a service in a domain. The other end is the daemon of that domain (casemate-qrexecd), or, "
        "where there is none, the qube of Casemate of that name.",
        "The command is USER:COMMAND; USER may be DEFAULT, and COMMAND may be 'QUBESRPC SERVICE[+ARGUMENT] SOURCE'.",
    )
    add = parser.add_argument
    add("-d", dest="domain", metavar="VM", default=HOST, help="the domain (default: this host)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("-l", dest="local", metavar="COMMAND", help="join stdin and stdout to this local command's")
    what.add_argument("-c", dest="join", metavar="ID,SRC-NAME,SRC-ID", help="join it to this request of a domain")
    what.add_argument("-e", dest="just", action="store_true", help="no input and no output; return when it was started")
    add("-E", dest="no_status", action="store_true", help="end with 0 whatever the command's exit status")
    add("-W", dest="wait", action="store_true", help="with -c: wait for the end of the call")
    add("-k", dest="kill", action="store_true", help="kill the domain at the end")
    add("-t", dest="out", action="store_true", default=None, help="make stdout harmless for a terminal")
    add("-T", dest="err", action="store_true", default=None, help="the same for stderr")
    add("-w", dest="seconds", metavar="SECONDS", type=float, default=10.0, help="for the connection; 0: no limit")
    add("-p", dest="prefix", metavar="TEXT", default="", help="input before that on stdin")
    add("--use-stdin-socket", dest="both", action="store_true", help="stdin is a socket: write output to it too")
    add("--socket-dir", metavar="DIR", default=SOCKET_DIR, help="where the daemons' sockets are")
    add("COMMAND", help="USER:COMMAND")
    return parser


def _run(
    args: argparse.Namespace,
    sock: socket.socket,
    chunk: int = qrexec.MAX_CHUNK,
    first: bytes = b"",
    look: OnSilence | None = None,
) -> int:
    first += os.fsencode(args.prefix)
    if args.just:
        return run_call(sock, None, None, None, first, chunk=chunk, on_silence=look)
    if args.local:
        return run_call_with(sock, ["/bin/sh", "-c", args.local], first, chunk, look)
    out, err = (os.isatty(fd) if wanted is None else wanted for fd, wanted in ((1, args.out), (2, args.err)))
    stdin = None if 0 in CLOSED else 0
    return run_call(sock, stdin, 0 if args.both else 1, 2, first, (out, err), chunk, look)


def _over_vchan(args: argparse.Namespace, path: str) -> int:
    place = SocketDirectory.of(os.environ)
    daemon = DaemonConversation(path)
    try:
        kind = qrexec.JUST_EXEC if args.just else qrexec.EXEC_CMDLINE
        domain, port = daemon.ask(kind, place.domain, 0, os.fsencode(args.COMMAND) + b"\0")
        sock, chunk = serve(place, domain, port, args.seconds or None, daemon.sock)
        return _run(args, sock, chunk)
    finally:
        daemon.close()


def _in_qube(args: argparse.Namespace, qubes: Qubes) -> int:
    """A qube of Casemate: by its link, as qvm-run does."""
    from casemate.cli.calling import open_call
    from casemate.cli.silence import Silence
    from casemate.client.calling import shell_line
    from casemate.wire.vmexec import encode_vmexec

    user, colon, text = args.COMMAND.partition(":")
    if not colon:
        raise tool.UsageError("The command is USER:COMMAND")
    text = text.removeprefix("nogui:")
    first = b""
    kind = qrexec.JUST_EXEC if args.just else qrexec.EXEC_CMDLINE
    if text.startswith("QUBESRPC "):
        command = qrexec.parse_command(f"{user}:{text}")
    elif args.just:
        # Without input, so the command is an argument of the service.
        command = qrexec.Command(user, "qubes.VMExec", encode_vmexec(["/bin/sh", "-c", text]), HOST)
    else:
        command = qrexec.Command(user, "qubes.VMShell", None, HOST)
        first = shell_line(text)
    sock = open_call(qubes, args.domain, command, autostart=False, kind=kind)
    return _run(args, sock, first=first, look=Silence(PROG, qubes, args.domain))


def _api_call(args: argparse.Namespace, command: qrexec.Command) -> int:
    """A method of the Admin API as a service of this host: standard input is its payload, standard output its reply."""
    from casemate.cli import qubesd_query

    words = [command.source, command.service, command.target or HOST, command.argument or ""]
    return qubesd_query.main([*(["-e"] if args.just else []), *words])


def _on_host(args: argparse.Namespace, qubes: Qubes) -> int:
    """A service or a command of this host, run here and now."""
    if ":QUBESRPC " in args.COMMAND and not args.local:
        command = qrexec.parse_command(args.COMMAND)
        if command.service.startswith(API_SERVICES):
            qubes.transport.connect().close()  # starts the daemon where none runs; the query does not
            return _api_call(args, command)
    from casemate.vchan.agent import Accounts
    from casemate.vchan.call import Failure, Program, service_of

    accounts = Accounts()
    found = service_of(os.fsencode(args.COMMAND), accounts.own, accounts)
    if isinstance(found, Failure):
        sys.stderr.write(found.why)
        return found.status
    if not isinstance(found, Program) or found.account is not None:
        raise tool.UsageError("On this host only programs are run, as the user who asks")
    environment = {**os.environ, **found.environment}
    if not args.local:
        os.execve(found.argv[0], list(found.argv), environment)
    import subprocess

    with (
        subprocess.Popen(["/bin/sh", "-c", args.local], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as local,
        subprocess.Popen(found.argv, env=environment, stdin=local.stdout, stdout=local.stdin) as service,
    ):
        for pipe in (local.stdin, local.stdout):
            if pipe is not None:
                pipe.close()  # or neither would ever see the other's end
        local.stdin = local.stdout = None
        return qrexec_status(service.wait())


def _serve_here(args: argparse.Namespace, source: str, request: bytes) -> int:
    """Serve the request of a domain with a service or a command of this host, and end with its exit status.

    The command names no user: it runs as who runs this program.
    """
    from casemate.calls.children import Children
    from casemate.streams.loop import Loop
    from casemate.vchan.agent import Accounts
    from casemate.vchan.call import Served, service_of

    place = SocketDirectory.of(os.environ)
    caller = DaemonConversation(f"{args.socket_dir}/qrexec.{source}")
    loop = Loop()
    try:
        domain, port = caller.ask(qrexec.SERVICE_CONNECT, 0, 0, request)
        accounts = Accounts()
        what = service_of(b"DEFAULT:" + os.fsencode(args.COMMAND), accounts.own, accounts)
        statuses: list[int] = []
        served = Served(
            loop,
            Children(loop),
            place.directory,
            lambda why: tool.say_error(PROG, why),
            wait_for_hello=True,
            seconds=args.seconds or None,
            account_of=accounts,
        )
        served.on_status = statuses.append
        served.serve(place.path(domain, place.domain, port), what, loop.stop)
        loop.run()
    finally:
        loop.close()
        caller.close()
    if not statuses:
        raise DisconnectedError("The caller went away before the service had ended")
    return 0 if args.no_status else statuses[0]


def qrexec_status(code: int) -> int:
    """What qrexec tells of a program's end."""
    return code if code >= 0 else 128 - code


def _join(args: argparse.Namespace) -> int:
    """Serve the request of a domain with a service of this host or of another domain."""
    ident, source, number = (args.join.split(",") + ["", ""])[:3]
    if not number.isdecimal() or not int(number) or source in HOST_NAMES or not 0 < len(os.fsencode(ident)) <= 31:
        raise tool.UsageError("-c wants ID,NAME,NUMBER of a request, as its domain's daemon knows it")
    request = os.fsencode(ident).ljust(qrexec.IDENT, b"\0")
    if args.domain in HOST_NAMES:
        return _serve_here(args, source, request)
    target = DaemonConversation(f"{args.socket_dir}/qrexec.{args.domain}")
    domain, port = target.ask(qrexec.EXEC_CMDLINE, int(number), 0, os.fsencode(args.COMMAND) + b"\0")
    caller = DaemonConversation(f"{args.socket_dir}/qrexec.{source}")
    caller.ask(qrexec.SERVICE_CONNECT, domain, port, request)
    if args.wait:
        target.wait_end()
        caller.wait_end()
    return 0


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    try:
        if args.join:
            try:
                return _join(args)
            except (CasemateError, OSError) as error:
                tool.say_error(PROG, error)
                return EXIT_JOIN_FAILED
        if args.domain in HOST_NAMES:
            return _on_host(args, qubes)
        path = f"{args.socket_dir}/qrexec.{args.domain}"
        run: Callable[[], int] = lambda: _over_vchan(args, path)
        if not os.path.exists(path):  # noqa: PTH110
            run = lambda: _in_qube(args, qubes)
        else:
            warn_of_policy(qubes.transport.settings)
        try:
            status = run()
        finally:
            if args.kill:
                qubes.call("admin.vm.Kill", "", args.domain)
        return 0 if args.no_status else status
    except CallRefusedError as error:
        tool.say_error(PROG, error)
        return qrexec.EXIT_REFUSED
    except DisconnectedError as error:
        tool.say_error(PROG, error)
        return qrexec.EXIT_VANISHED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is that of the command, 126 refused, 255 when the other end went away."""
    return tool.run(_parser(), _body, argv)
