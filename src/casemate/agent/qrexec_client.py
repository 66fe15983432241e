"""qrexec-client-vm: ask another qube for a service.

    qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENT ...]]

With PROGRAM its stdin and stdout are the call's, else ours are. It asks Casemate's agent, or, in a domain on vchan
(VCHAN_DOMAIN is set, or only upstream's socket is there), an agent that speaks upstream's protocol.
"""

from __future__ import annotations

import os
import sys

from casemate.calls.caller import run_call, run_call_with
from casemate.calls.request import SOCKET, connect, request
from casemate.wire.errors import CallRefusedError, CasemateError, DisconnectedError
from casemate.wire.qrexec import EXIT_FAILED, EXIT_REFUSED, EXIT_VANISHED, MAX_CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

VCHAN_SOCKET = "/run/qubes/qrexec-agent"
USAGE = """\
usage: qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENT ...]]

Options:
  -t, --filter-escape-chars-stdout   make stdout harmless for a terminal (default when it is one)
  -T, --filter-escape-chars-stderr   the same for stderr
  --no-filter-escape-chars-stdout    do not, even for a terminal
  --no-filter-escape-chars-stderr
  --agent-socket=PATH                the agent's socket
  -p, --prefix-data=DATA             give the service DATA before what is on stdin
  -s, --source-qube=SOURCE           speak for another qube, where the policy lets this one relay (vchan only)
  --use-stdin-socket                 stdin is a socket: write output to it too
  --buffer-size=N                    taken and not needed
"""
_FLAGS = {
    "-t": ("out", True),
    "--filter-escape-chars-stdout": ("out", True),
    "--no-filter-escape-chars-stdout": ("out", False),
    "-T": ("err", True),
    "--filter-escape-chars-stderr": ("err", True),
    "--no-filter-escape-chars-stderr": ("err", False),
    "--use-stdin-socket": ("both", True),
}
_VALUES = {
    "-p": "prefix", "--prefix-data": "prefix", "-s": "source", "--source-qube": "source",
    "--agent-socket": "path", "--buffer-size": "size",
}  # fmt: skip


def _options(args: list[str]) -> tuple[dict[str, bool], dict[str, str]] | str:
    """Flags and values, taken off ``args``; or what is wrong with them."""
    flags: dict[str, bool] = {}
    values: dict[str, str] = {}
    while args and args[0].startswith("-"):
        option, equals, value = args.pop(0).partition("=")
        if option == "--" and not equals:
            break
        if option in _FLAGS and not equals:
            name, flag = _FLAGS[option]
            flags[name] = flag
        elif option in _VALUES and (equals or args):
            values[_VALUES[option]] = value if equals else args.pop(0)
        else:
            return f"unknown option {option[:80]!a}, or its value is missing"
    return flags, values


def main(argv: list[str]) -> int:
    """Exit status: the service's; 126 refused; 125 no call could be made; 255 the other end vanished."""
    args = argv[1:]
    found = _options(args)
    if isinstance(found, str):
        return _usage(found)
    flags, values = found
    if len(args) < 2:
        return _usage("TARGET and SERVICE are wanted")
    path = values.get("path") or os.environ.get("QREXEC_AGENT_SOCKET") or ""
    vchan = "VCHAN_DOMAIN" in os.environ or (not path and not os.path.exists(SOCKET) and os.path.exists(VCHAN_SOCKET))
    if values.get("source") and not vchan:
        return _usage("a qube speaks for another over vchan only")
    target, call, *program = args
    held = None
    try:
        if vchan:
            held, sock, chunk = _over_vchan(path or VCHAN_SOCKET, target, call, values.get("source", ""))
        else:
            sock, chunk = connect(path or SOCKET), MAX_CHUNK
            request(sock, target, call)
    except CallRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    except CasemateError as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n")
        return EXIT_FAILED
    except UnicodeEncodeError:
        return _usage("names of qubes and services are ASCII")
    first = os.fsencode(values.get("prefix", ""))
    visible = flags.get("out", os.isatty(1)), flags.get("err", os.isatty(2))
    stdout = 0 if flags.get("both") else 1
    try:
        if program:
            return run_call_with(sock, program, first, chunk)
        return run_call(sock, 0, stdout, 2, first, visible, chunk)
    except CasemateError as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n")
        return EXIT_VANISHED if isinstance(error, DisconnectedError) else EXIT_FAILED
    finally:
        if held is not None:
            held.close()  # tells the agent that the call has ended


def _over_vchan(path: str, target: str, call: str, source: str) -> tuple[socket.socket, socket.socket, int]:
    """(the connection to the agent, to be held; the call; most bytes in a message)."""
    from casemate.calls.vchan_caller import ask_agent, serve
    from casemate.calls.vchan_sockets import CONNECT_SECONDS, SocketDirectory

    held = connect(path)
    try:
        domain, port = ask_agent(held, target, call, source)
        return held, *serve(SocketDirectory.of(os.environ), domain, port, CONNECT_SECONDS, held)
    except BaseException:
        held.close()
        raise


def _usage(why: str) -> int:
    sys.stderr.write(f"qrexec-client-vm: {why}\n{USAGE}")
    return EXIT_FAILED
