"""qvm-create: make a qube."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.cli import creation, tool
from casemate.cli.progress import Waiting
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, LabelNotFoundError

PROG = "qvm-create"


NO_ROOT = ("AppVM", "DispVM")
"""Classes whose root volume is their template's, made anew at each start."""


def _import_root(qubes: Qubes, name: str, path: str) -> None:
    """Replace the root volume of a qube by an image, a file of this host."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            qubes.transport.send_file("admin.vm.volume.ImportWithSize", "root", name, b"%d\n" % length, file)
    except OSError as error:
        raise CasemateError(f"{path}: {error.strerror}") from None


def _make(args: argparse.Namespace, qubes: Qubes, klass: str, label: str, wanted: dict[str, str]) -> None:
    """Make the qube with all that was asked for; where a part fails, no qube is left."""
    template = args.template or wanted.pop("template", None)
    pools = creation.pools(args)
    image = args.copied or args.moved
    if klass == "StandaloneVM" and template:
        qubes.clone(template, args.VMNAME, klass, pools, label, volumes=("root",))
    elif klass == "TemplateVM" and template:
        qubes.clone(template, args.VMNAME, klass, pools, label)
    else:
        qubes.create(klass, args.VMNAME, label, template, pools)
    try:
        for name, value in wanted.items():
            qubes.set(args.VMNAME, name, value)
        if image:
            _import_root(qubes, args.VMNAME, image)
    except BaseException:
        qubes.remove(args.VMNAME)
        raise
    if args.moved:
        os.unlink(args.moved)  # noqa: PTH108 - only now: the qube has all of it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; where a property or the image is refused, no qube is left."""
    parser = tool.Parser(PROG, "Make a qube.")
    parser.add_argument("VMNAME", nargs="?", help="name of the new qube")
    parser.add_argument("-C", "--class", dest="klass", metavar="CLASS", help="class of the qube (default: AppVM)")
    parser.add_argument("-t", "--template", help="template that the qube is based on, or copied from (--standalone)")
    parser.add_argument("-l", "--label", help="label of the qube")
    parser.add_argument("--standalone", action="store_true", help="the same as --class StandaloneVM")
    parser.add_argument("--disp", action="store_true", help="the same as --class DispVM, red where no label is given")
    parser.add_argument(
        "--prop", "--property", action="append", default=[], metavar="NAME=VALUE", help="set a property"
    )
    parser.add_argument("--help-classes", action="store_true", help="list the classes and exit")
    root = parser.add_mutually_exclusive_group()
    root.add_argument("-r", "--root-copy-from", dest="copied", metavar="FILE", help="raw image for the root volume")
    root.add_argument("-R", "--root-move-from", dest="moved", metavar="FILE", help="the same, and remove FILE then")
    root.add_argument("--no-root", action="store_true", help=argparse.SUPPRESS)
    creation.pool_arguments(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        if args.help_classes:
            sys.stdout.write(qubes.call("admin.vmclass.List"))
            return 0
        wanted = creation.properties(args.prop)
        name = wanted.pop("name", None)
        args.VMNAME = args.VMNAME or name
        if not args.VMNAME:
            parser.error("the name of the new qube is needed")
        label = args.label or wanted.pop("label", None)
        klass = "StandaloneVM" if args.standalone else "DispVM" if args.disp else args.klass or "AppVM"
        if label is None and args.disp:
            label = "red"
        if label is None:
            parser.error("--label option is mandatory")
        image = args.copied or args.moved
        if image and klass in NO_ROOT:
            parser.error(f"a qube of class {klass} has its template's root volume; an image cannot replace it")
        if image and not os.path.isfile(image):  # noqa: PTH113
            parser.error(f"{image} is not a file")
        try:
            with Waiting(f"making {args.VMNAME}", args.quiet):
                _make(args, qubes, klass, label, wanted)
        except LabelNotFoundError as error:
            raise tool.UsageError(str(error)) from None
        return 0

    return tool.run(parser, body, argv)
