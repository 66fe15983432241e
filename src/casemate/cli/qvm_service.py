"""qvm-service: switch the services inside a qube on and off (features ``service.NAME``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError

PROG = "qvm-service"
PREFIX = "service."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Switch the services inside a qube on and off.")
    parser.one_qube()
    parser.add_argument("service", nargs="?", metavar="SERVICE", help="name of a service")
    parser.add_argument("value", nargs="?", metavar="VALUE", help="on or off")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("-l", "--list", action="store_true", help="list the services (this is the default)")
    action.add_argument("-e", "--enable", action="store_true", help="switch the service on")
    action.add_argument("-d", "--disable", action="store_true", help="switch the service off")
    action.add_argument(
        "-D", "--default", "--delete", "--unset", action="store_true", help="leave it to the qube whether it runs"
    )

    json_output.option(parser)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        name = args.VMNAME
        changes = args.enable or args.disable or args.default
        if args.service is None:
            if changes:
                parser.error("the name of a service is needed")
            found = sorted(item for item in qubes.features(name).items() if item[0].startswith(PREFIX))
            if json_output.wanted(args):
                return json_output.write({key[len(PREFIX) :]: bool(value) for key, value in found})
            sys.stdout.write(table([[key[len(PREFIX) :], _word(value)] for key, value in found]))
            return 0
        if args.value is not None and (changes or args.list):
            parser.error("give on or off, or an option, not both")
        feature = PREFIX + args.service
        if args.default:
            qubes.unset_feature(name, feature)
        elif args.enable or args.disable or args.value is not None:
            wanted = args.enable if args.value is None else _switch(args.value)
            qubes.call("admin.vm.feature.Set", feature, name, "1" if wanted else "")
        else:
            value = qubes.call("admin.vm.feature.Get", feature, name)
            if json_output.wanted(args):
                return json_output.write(bool(value))
            sys.stdout.write(_word(value) + "\n")
        return 0

    return tool.run(parser, body, argv)


def _switch(text: str) -> bool:
    """What a value on the command line means; CasemateError for another word."""
    words = {"on": True, "1": True, "yes": True, "true": True, "off": False, "0": False, "no": False, "false": False}
    if text.lower() not in words:
        raise CasemateError(f"a service is switched on or off, not {text!r}")
    return words[text.lower()]


def _word(value: str) -> str:
    return "on" if value else "off"
