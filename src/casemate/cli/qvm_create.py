"""qvm-create: make a qube."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import creation, tool
from casemate.client.qubes import Qubes

PROG = "qvm-create"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; where a property is refused, no qube is left."""
    parser = tool.Parser(PROG, "Make a qube.")
    parser.add_argument("VMNAME", nargs="?", help="name of the new qube")
    parser.add_argument("-C", "--class", dest="klass", metavar="CLASS", help="class of the qube (default: AppVM)")
    parser.add_argument("-t", "--template", help="template that the qube is based on, or copied from (--standalone)")
    parser.add_argument("-l", "--label", help="label of the qube")
    parser.add_argument("--standalone", action="store_true", help="the same as --class StandaloneVM")
    parser.add_argument("--disp", action="store_true", help="the same as --class DispVM with a label of its own")
    parser.add_argument(
        "--prop", "--property", action="append", default=[], metavar="NAME=VALUE", help="set a property"
    )
    parser.add_argument("--help-classes", action="store_true", help="list the classes and exit")
    creation.pool_arguments(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        if args.help_classes:
            sys.stdout.write(qubes.call("admin.vmclass.List"))
            return 0
        if not args.VMNAME:
            parser.error("the name of the new qube is needed")
        wanted = creation.properties(args.prop)
        label = args.label or wanted.pop("label", None)
        template = args.template or wanted.pop("template", None)
        klass = args.klass or ("StandaloneVM" if args.standalone else "DispVM" if args.disp else "AppVM")
        if label is None:
            parser.error("--label option is mandatory")
        pools = creation.pools(args)
        if klass in ("StandaloneVM", "TemplateVM") and template:
            qubes.clone(template, args.VMNAME, klass, pools, label)
        else:
            qubes.create(klass, args.VMNAME, label, template, pools)
        try:
            for name, value in wanted.items():
                qubes.set(args.VMNAME, name, value)
        except BaseException:
            qubes.remove(args.VMNAME)
            raise
        return 0

    return tool.run(parser, body, argv)
