"""qubesd-query: one call of the Admin API as it is, for shell scripts and services."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.transport import receive, send_request
from casemate.settings import load
from casemate.wire.admin import MAX_REQUEST, build_request
from casemate.wire.errors import CasemateError, DaemonAccessError

PROG = "qubesd-query"
MAX_LINE = 1024


def _line(most: int) -> bytes:
    """One line of printable ASCII, without its end."""
    found = bytearray()
    while len(found) <= most:
        byte = os.read(0, 1)
        if byte == b"\n":
            return bytes(found)
        if not byte or not 0x20 <= byte[0] <= 0x7E:
            raise tool.UsageError("the line on standard input has no end, or a byte that is not printable ASCII")
        found += byte
    raise tool.UsageError(f"the line on standard input is longer than {most} bytes")


def _payload(args: argparse.Namespace) -> bytes:
    if args.empty:
        return b""
    most = args.max_bytes if args.max_bytes is not None else MAX_LINE if args.single_line else MAX_REQUEST
    if args.single_line:
        return _line(most)
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        raise tool.UsageError(f"standard input has more than {most} bytes")
    return data


def _ask(args: argparse.Namespace) -> int:
    request = build_request(args.METHOD, args.ARGUMENT, args.DEST, _payload(args), args.SRC)
    status, address = None, args.connect or load().api_address
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError as error:
            raise DaemonAccessError(f"{address}: {error.strerror}") from error
        send_request(connection, request)
        while data := receive(connection):
            if status is None:
                status = int(data[:1]) if data[:1].isdigit() else 1
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    if args.null:
        sys.stdout.buffer.write(b"\0")
    return (1 if status is None else status) if args.fail else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The reply is standard output; with --fail its first digit is the exit status."""
    parser = tool.Parser(PROG, "Make one call of the Admin API; standard input is its payload.")
    parser.add_argument("-c", "--connect", metavar="PATH", help="the socket to ask (default: the daemon's)")
    parser.add_argument("-e", "--empty", action="store_true", help="no payload; do not read standard input")
    parser.add_argument("--fail", action="store_true", help="exit status: the kind of the reply, 0 for success")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="most bytes of payload")
    parser.add_argument("--single-line", action="store_true", help="the payload is one line of printable ASCII")
    parser.add_argument("--null", action="store_true", help="write a NUL after the reply")
    for name, text in (("SRC", "qube that asks"), ("METHOD", "name of the method"), ("DEST", "qube that it is about")):
        parser.add_argument(name, help=text)
    parser.add_argument("ARGUMENT", nargs="?", default="", help="argument of the method")
    try:
        args = parser.parse_args(argv)
        return _ask(args)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except CasemateError as error:
        tool.say_error(PROG, error)
        return error.exit_status or 1
