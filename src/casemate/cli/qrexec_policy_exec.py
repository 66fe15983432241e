"""qrexec-policy-exec: asks what the policy says to a call, as a qrexec daemon would ask."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.calls.request import connect
from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.qrexec.evaluate import Allow, Ask, Decision, SystemInfo, evaluate
from casemate.qrexec.tokens import ADMIN, HOST
from casemate.vchan.decision import REQUESTED_SOURCE
from casemate.wire import names
from casemate.wire.errors import CasemateError, DisconnectedError
from casemate.wire.qrexec import parse_call, requested_target

PROG = "qrexec-policy-exec"


def _asked(args: argparse.Namespace, qubes: Qubes) -> str:
    """The daemon's answer."""
    lines = [f"source={args.SOURCE}", f"intended_target={args.TARGET}", f"service_and_arg={args.SERVICE}"]
    if args.assume_yes_for_ask:
        lines.append("assume_yes_for_ask=yes")
    if args.just_evaluate:
        lines.append("just_evaluate=yes")
    # casemate-qrexecd sets this where a relay speaks for a qube on another machine.
    if requested := os.environ.get(REQUESTED_SOURCE):
        lines.append(f"requested_source={names.qube_name(requested)}")
    qubes.call("admin.vm.List")  # starts the daemon where it does not run
    with connect(str(qubes.transport.settings.policy_socket)) as sock:
        sock.sendall(("\n".join(lines) + "\n\n").encode("ascii"))
        data = b""
        while more := sock.recv(65536):
            data += more
    if not data:
        raise DisconnectedError("The daemon does not understand the request")
    return data.decode("ascii")


def _evaluated(args: argparse.Namespace, qubes: Qubes) -> str:
    """The answer of the policy in other directories; nobody is asked about it."""
    from casemate.cli.policy_view import files, system

    info = system(qubes)
    service, argument = parse_call(args.SERVICE)
    target = requested_target(args.TARGET)
    found = evaluate(
        files(qubes.transport.settings, args.path).load(), info, args.SOURCE, service, argument or "", target
    )
    if isinstance(found, Ask) and args.assume_yes_for_ask:
        wished = HOST if target == ADMIN else target
        found = found.chosen(wished if wished in found.targets else found.default_target or found.targets[0])
    return _lines(found, info, target)


def _lines(found: Decision, info: SystemInfo, requested: str) -> str:
    if not isinstance(found, Allow):
        return "result=deny\n"
    target = HOST if found.target == ADMIN else found.target
    qube = info.find(target)
    lines = ["result=allow", f"user={found.user or 'DEFAULT'}", f"target={target}", f"requested_target={requested}",
             f"autostart={found.autostart}"]  # fmt: skip
    if qube is not None and not qube.is_admin:
        lines.append(f"target_uuid=uuid:{qube.uuid}")
    if found.call is not None:
        lines.append("service={}+{}".format(*found.call))
    return "".join(f"{line}\n" for line in lines)


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    try:
        parse_call(args.SERVICE)
        requested_target(args.TARGET)
        if args.SOURCE not in (ADMIN, HOST):
            names.qube_name(args.SOURCE)
    except CasemateError as error:
        raise tool.UsageError(str(error)) from None
    text = _evaluated(args, qubes) if args.path else _asked(args, qubes)
    if not args.quiet:
        sys.stdout.write(text)
    return 0 if text.startswith("result=allow\n") else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 0 when the call is allowed, 1 when it is not."""
    parser = tool.Parser(
        PROG,
        "Say what the policy says to a call. Nothing is called. Where the policy says `ask` the user is asked.",
        "The answer is lines KEY=VALUE: result=deny alone, or result=allow with target, user and what else is needed.",
    )
    parser.add_argument("SOURCE", help="the qube that calls")
    parser.add_argument("TARGET", help="the target that it asks for; empty for none")
    parser.add_argument("SERVICE", help="SERVICE or SERVICE+ARGUMENT")
    parser.add_argument("--assume-yes-for-ask", action="store_true", help="ask nobody, take it that the answer is yes")
    parser.add_argument("--just-evaluate", action="store_true", help="ask nobody, take it that the answer is no")
    parser.add_argument(
        "--path", action="append", default=[], metavar="DIR", help="the policy in this directory, not the one in "
        "place; nobody is asked. Twice: files of the first hide those of the second"
    )  # fmt: skip
    return tool.run(parser, _body, argv)
