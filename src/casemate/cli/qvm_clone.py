"""qvm-clone: make a qube like another, with copies of its disks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from casemate.cli import creation, tool
from casemate.cli.progress import Waiting
from casemate.client.qubes import Qubes

PROG = "qvm-clone"


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.VMNAME not in {qube.name for qube in qubes.listed()}:
        raise tool.UsageError(f"no such domain: {args.VMNAME!r}")
    failed = (lambda error: tool.say_error(PROG, error)) if args.ignore_errors else None
    with Waiting(f"cloning {args.VMNAME}", args.quiet):
        qubes.clone(args.VMNAME, args.new, args.klass, creation.pools(args), failed=failed)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; where a part fails, no qube is left."""
    parser = tool.Parser(PROG, "Make a qube like another, with copies of its disks.")
    parser.one_qube()
    parser.add_argument("new", metavar="NEWVM", help="name of the new qube")
    parser.add_argument("-C", "--class", dest="klass", metavar="CLASS", help="class of the new qube")
    parser.add_argument("--ignore-errors", action="store_true", help="go on where a setting is refused")
    creation.pool_arguments(parser)
    return tool.run(parser, _body, argv)
