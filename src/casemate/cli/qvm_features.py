"""qvm-features: show and change the features of a qube."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes

PROG = "qvm-features"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; asked for a feature that is not there, its exit status is 1."""
    parser = tool.Parser(PROG, "Show and change the features of a qube. An empty value means false.")
    parser.one_qube()
    parser.add_argument("feature", nargs="?", metavar="FEATURE", help="name of a feature")
    parser.add_argument("value", nargs="?", metavar="VALUE", help="its new value; '' for false")
    parser.add_argument("-D", "--default", "--delete", "--unset", action="store_true", help="take the feature away")

    json_output.option(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        name = args.VMNAME
        if args.feature is None:
            if args.default:
                parser.error("--unset needs the name of a feature")
            found = sorted(qubes.features(name).items())
            if json_output.wanted(args):
                return json_output.write(dict(found))
            sys.stdout.write(table([[key, value] for key, value in found]))
        elif args.default:
            if args.value is not None:
                parser.error("give a value or --unset, not both")
            qubes.unset_feature(name, args.feature)
        elif args.value is not None:
            qubes.call("admin.vm.feature.Set", args.feature, name, args.value)
        else:
            value = qubes.call("admin.vm.feature.Get", args.feature, name)
            if json_output.wanted(args):
                return json_output.write(value)
            sys.stdout.write(value + "\n")
        return 0

    return tool.run(parser, body, argv)
