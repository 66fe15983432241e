"""qvm-device: list devices and give them to qubes; called as qvm-block, qvm-pci or qvm-usb it knows the class."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from casemate.cli import tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes

PROG = "qvm-device"


def parse_line(line: str) -> dict[str, str]:
    """A line of a list of devices: ``place`` and the pairs ``key='value'`` after it."""
    place, _, rest = line.partition(" ")
    found = {"place": place}
    while rest:
        key, equals, rest = rest.partition("='")
        if not equals:
            break
        value, at = [], 0
        while at < len(rest) and rest[at] != "'":
            at += rest[at] == "\\"
            value.append(rest[at : at + 1])
            at += 1
        found[key] = "".join(value)
        rest = rest[at + 2 :]
    return found


def _wire(text: str) -> str:
    """BACKEND:PORT[:ID] as the argument of a method."""
    backend, colon, rest = text.partition(":")
    if not colon or not rest:
        raise tool.UsageError(f"a device is written BACKEND:DEVICE, not {text!r}")
    port, _, ident = rest.partition(":")
    return f"{backend}+{port}+{ident.replace(':', '+').replace('*', '_') or '_'}"


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    names = args.VMNAME or [qube.name for qube in qubes.listed()]
    found = []
    for name in names:
        for line in qubes.call(f"admin.vm.device.{args.devclass}.Available", "", name).splitlines():
            device = parse_line(line)
            device["used_by"] = ""
            found.append(device)
    if args.format == "json":
        import json

        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    rows = []
    for device in found:
        what = [device.get("vendor", ""), device.get("product", ""), device.get("name", "")]
        rows.append([f"{device.get('backend_domain', '')}:{device.get('port_id', '')}", " ".join(filter(None, what))])
    sys.stdout.write(table([["BACKEND:DEVID", "DESCRIPTION"], *rows]) if rows else "")
    return 0


def _change(verb: str) -> Callable[[argparse.Namespace, Qubes], int]:
    def change(args: argparse.Namespace, qubes: Qubes) -> int:
        device = _wire(args.DEVICE)
        backend, port, _ = device.split("+", 2)
        payload = ""
        if verb in ("Attach", "Assign"):
            mode = "required" if getattr(args, "required", False) else "manual"
            pairs = {"port_id": port, "devclass": args.devclass, "backend_domain": backend, "mode": mode}
            payload = " ".join(f"{key}='{text}'" for key, text in pairs.items())
        qubes.call(f"admin.vm.device.{args.devclass}.{verb}", device, args.VMNAME, payload)
        return 0

    return change


def main(argv: Sequence[str] | None = None, devclass: str | None = None) -> int:
    """Run the tool; ``devclass`` is the class that the name of the tool says."""
    parser = tool.Parser(PROG if devclass is None else f"qvm-{devclass}", "List devices and give them to qubes.")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to list devices")
    if devclass is None:
        parser.add_argument("-l", "--list-device-classes", action=_Classes, help="list the classes of devices and exit")
        parser.add_argument("devclass", metavar="CLASS", help="class of devices: block, pci, usb")
    else:
        parser.set_defaults(devclass=devclass)
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=argparse.ArgumentParser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the devices that qubes offer")
    show.add_argument("VMNAME", nargs="*", help="only those of these qubes")
    show.set_defaults(action=_list)
    for verb, aliases, text in (
        ("attach", ["at", "a"], "give a running qube a device"),
        ("detach", ["dt", "d"], "take a device from a running qube"),
        ("assign", ["as"], "give a qube a device at each start"),
        ("unassign", ["un"], "do not give it any more"),
    ):
        one = commands.add_parser(verb, aliases=aliases, help=text)
        one.add_argument("VMNAME")
        one.add_argument("DEVICE", metavar="BACKEND:DEVICE")
        if verb == "assign":
            one.add_argument("--required", action="store_true", help="do not start the qube without it")
        one.set_defaults(action=_change(verb.capitalize()))
    parser.set_defaults(action=_list, VMNAME=None)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)


class _Classes(argparse.Action):
    """Lists the classes of devices; nothing else is needed then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(Qubes().call("admin.deviceclass.List"))
        parser.exit()
