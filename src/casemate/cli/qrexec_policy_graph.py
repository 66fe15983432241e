"""qrexec-policy-graph: draws who may call what where, as a graph for Graphviz."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.qrexec.evaluate import Allow, Ask, QubeInfo, SystemInfo, evaluate
from casemate.qrexec.rules import Action, Policy, Rule
from casemate.qrexec.tokens import ADMIN, DISPOSABLE, HOST
from casemate.wire.errors import CasemateError

PROG = "qrexec-policy-graph"
_COLORS = {Action.ALLOW: "red", Action.ASK: "orange"}

Edge = tuple[str, str, str, Rule]
"""Source, target, service with argument, the rule that decides."""


def _edges(policy: Policy, info: SystemInfo, args: argparse.Namespace) -> Iterator[Edge]:
    everyone = sorted(info.everyone(), key=lambda qube: qube.name)
    wanted = [name for qube in everyone for name in _asked_for(qube)]
    # A service that only rules for all services let pass is drawn by its name when it is asked for.
    named = {(service, argument) for service, _, argument in (word.partition("+") for word in args.service or ())}
    services = [
        (service, argument) for service, argument in sorted({*policy.services(), *named} - {("*", "")})
        if not args.service or (service or "*") in args.service or f"{service}+{argument}" in args.service
    ]  # fmt: skip
    for qube in everyone:
        if args.source and qube.name not in args.source:
            continue
        for service, argument in services:
            rules = policy.of_source(service, argument, qube.source_words)
            if all(rule.action is Action.DENY for rule in rules):
                continue
            for target in [*wanted, "@default", DISPOSABLE]:
                found = evaluate(policy, info, qube.name, service, argument, ADMIN if target == HOST else target)
                if isinstance(found, Ask):
                    ends = found.targets if args.include_ask else ()
                else:
                    ends = (HOST if found.target == ADMIN else found.target,) if isinstance(found, Allow) else ()
                for end in ends:
                    if found.rule is not None and (not args.target or end in args.target):
                        yield qube.name, end, _named(service, argument), found.rule


def _named(service: str, argument: str) -> str:
    return f"{service}+{argument}" if argument else service or "*"


def _asked_for(qube: QubeInfo) -> list[str]:
    return [qube.name, f"{DISPOSABLE}:{qube.name}"] if qube.template_for_dispvms else [qube.name]


def dot(edges: Iterator[Edge], *, full: bool, labels: bool) -> str:
    """The graph's text. Names and services have no character that would need escaping in it."""
    lines: dict[str, None] = {}
    for source, target, service, rule in edges:
        label = f' label="{" ".join([service, *(rule.parameters() if full else [])])}"' if labels else ""
        place = f' tooltip="{rule.location}"' if full else ""
        lines[f'  "{source}" -> "{target}" [{f"color={_COLORS[rule.action]}{label}{place}"}];\n'] = None
    return "digraph g {\n" + "".join(lines) + "}\n"


def _drawn(text: str) -> bytes:
    """The graph as a picture, where Graphviz is installed."""
    import subprocess

    try:
        done = subprocess.run(["dot", "-Tsvg"], input=text.encode("ascii"), capture_output=True, check=False)
    except FileNotFoundError:
        raise CasemateError("There is no dot here (package graphviz): without --svg its input is written") from None
    if done.returncode != 0:
        raise CasemateError(f"dot ended with status {done.returncode}")
    return done.stdout


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.policy_view import files, read_system, system

    if args.system_info:
        try:
            info = read_system(Path(args.system_info).read_text("utf-8"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CasemateError(f"{args.system_info}: not what internal.GetSystemInfo answers: {error}") from None
    else:
        info = system(qubes)
    policy = files(qubes.transport.settings, args.policy_dir).load()
    text = dot(_edges(policy, info, args), full=args.full_output, labels=not args.skip_labels)
    data = _drawn(text) if args.svg else text.encode("ascii")
    if args.output:
        try:
            Path(args.output).write_bytes(data)
        except OSError as error:
            raise CasemateError(f"{args.output}: {error.strerror}") from None
    else:
        sys.stdout.buffer.write(data) if args.svg else sys.stdout.write(text)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(
        PROG,
        "Draw which calls the policy allows (red) and asks about (orange), as text for Graphviz's dot.",
        "Each service and argument that a rule names is tried from every qube to every target. * is all others.",
    )
    add = parser.add_argument
    add("--source", nargs="+", metavar="VMNAME", help="only calls of these qubes")
    add("--target", nargs="+", metavar="TARGET", help="only calls that go to these: names, dom0, @dispvm:NAME")
    add("--service", nargs="+", metavar="SERVICE[+ARG]", help="only these services")
    add("--include-ask", action="store_true", help="also calls that the user is asked about")
    add("--full-output", action="store_true", help="also each rule's parameters, and its file and line as tooltip")
    add("--skip-labels", action="store_true", help="no names of services: one line for each two qubes")
    add("--output", metavar="FILE", help="write there instead of to standard output")
    add("--svg", action="store_true", help="make a picture with dot, which must be installed")
    add("--policy-dir", action="append", default=[], metavar="DIR", help="the policy in this directory; twice: files "
        "of the first hide those of the second")  # fmt: skip
    add("--system-info", metavar="FILE", help="the qubes in this file, as internal.GetSystemInfo tells of them")
    return tool.run(parser, _body, argv)
