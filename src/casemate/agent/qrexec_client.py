"""qrexec-client-vm: ask another qube for a service.

    qrexec-client-vm [-t] [-T] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENT ...]]

With PROGRAM its stdin and stdout are the call's, else ours are.
"""

from __future__ import annotations

import os
import sys

from casemate.pump.call import connect, request, run_call, run_call_with
from casemate.wire.errors import CallRefusedError, CasemateError, DisconnectedError
from casemate.wire.qrexec import EXIT_FAILED, EXIT_REFUSED, EXIT_VANISHED

SOCKET = "/run/qubes/qrexec-agent.sock"
USAGE = """\
usage: qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENT ...]]

Options:
  -t, --filter-escape-chars-stdout   make stdout harmless for a terminal (default when it is one)
  -T, --filter-escape-chars-stderr   the same for stderr
  --no-filter-escape-chars-stdout    do not, even for a terminal
  --no-filter-escape-chars-stderr
  --agent-socket=PATH                the agent's socket
  --buffer-size=N                    taken and not needed
"""


def main(argv: list[str]) -> int:
    """Exit status: the service's; 126 refused; 125 no call could be made."""
    path = os.environ.get("QREXEC_AGENT_SOCKET") or SOCKET
    visible: list[bool | None] = [None, None]
    args = argv[1:]
    while args and args[0].startswith("-"):
        option = args.pop(0)
        if option == "--":
            break
        if option in ("-t", "--filter-escape-chars-stdout"):
            visible[0] = True
        elif option in ("-T", "--filter-escape-chars-stderr"):
            visible[1] = True
        elif option == "--no-filter-escape-chars-stdout":
            visible[0] = False
        elif option == "--no-filter-escape-chars-stderr":
            visible[1] = False
        elif option.startswith("--agent-socket="):
            path = option.partition("=")[2]
        elif not option.startswith("--buffer-size="):
            return _usage(f"unknown option {option[:80]!a}")
    if len(args) < 2:
        return _usage("TARGET and SERVICE are wanted")
    target, call, *program = args
    try:
        sock = connect(path)
        request(sock, target, call)
    except CallRefusedError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_REFUSED
    except CasemateError as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n")
        return EXIT_FAILED
    except UnicodeEncodeError:
        return _usage("names of qubes and services are ASCII")
    out, err = (os.isatty(fd) if wanted is None else wanted for fd, wanted in ((1, visible[0]), (2, visible[1])))
    try:
        return run_call_with(sock, program) if program else run_call(sock, 0, 1, 2, visible=(out, err))
    except CasemateError as error:
        sys.stderr.write(f"qrexec-client-vm: {error}\n")
        return EXIT_VANISHED if isinstance(error, DisconnectedError) else EXIT_FAILED


def _usage(why: str) -> int:
    sys.stderr.write(f"qrexec-client-vm: {why}\n{USAGE}")
    return EXIT_FAILED
