"""qvm-device: list devices and give them to qubes; called as qvm-block, qvm-pci or qvm-usb it knows the class."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from casemate.cli import tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import DeviceNotAssignedError, NotFoundError

PROG = "qvm-device"
_MODES = {"required": "required", "ask": "ask-to-attach", "auto": "auto-attach"}


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


def wire(text: str) -> str:
    """BACKEND:PORT[:ID] as the argument of a method."""
    backend, colon, rest = text.partition(":")
    if not colon or not rest:
        raise tool.UsageError(f"a device is written BACKEND:DEVICE, not {text!r}")
    port, _, ident = rest.partition(":")
    return f"{backend}+{port.replace('*', '_')}+{ident.replace(':', '+').replace('*', '_') or '_'}"


def payload(devclass: str, device: str, mode: str, options: dict[str, str]) -> str:
    """What Attach and Assign take besides the device, ``device`` as wire() writes it."""
    backend, port, _ = device.split("+", 2)
    pairs = {
        "port_id": port.replace("_", "*") if port == "_" else port,
        "devclass": devclass,
        "backend_domain": backend,
    }
    pairs |= {"mode": mode, **{f"_{key}": text for key, text in options.items()}}
    quoted = {key: text.replace("\\", "\\\\").replace("'", "\\'") for key, text in pairs.items()}
    return " ".join(f"{key}='{text}'" for key, text in quoted.items())


def _listed(qubes: Qubes, devclass: str, what: str, name: str) -> list[dict[str, str]]:
    try:
        lines = qubes.call(f"admin.vm.device.{devclass}.{what}", "", name).splitlines()
    except NotFoundError:
        return []  # removed since the list of qubes was taken: it has no devices, and uses none
    return [parse_line(line) for line in lines]


def _place(device: dict[str, str]) -> str:
    return f"{device.get('backend_domain', '')}:{device.get('port_id', '')}"


def _said(options: dict[str, str]) -> str:
    words = sorted(f"{key[1:]}={text}" for key, text in options.items() if key.startswith("_"))
    return f" ({', '.join(words)})" if words else ""


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    everyone = [qube.name for qube in qubes.listed()]
    wanted = args.VMNAME or everyone
    for name in wanted:
        if name not in everyone:
            raise NotFoundError(name)
    used: dict[str, list[str]] = {}
    given: dict[str, dict[str, str]] = {}
    for name in everyone:
        for what, word in (("Attached", "{}"), ("Assigned", "{} [{}]")):
            for device in _listed(qubes, args.devclass, what, name):
                text = word.format(name, device.get("mode", "")) + _said(device)
                used.setdefault(_place(device), []).append(text)
                if name in wanted:
                    given[_place(device)] = device
    found = []
    for name in everyone:
        for device in _listed(qubes, args.devclass, "Available", name):
            if name in wanted or _place(device) in given:
                found.append(device)
                given.pop(_place(device), None)
    # What is assigned and is not there now, too.
    found += [{"place": place, **device, "name": "(not there now)"} for place, device in sorted(given.items())]
    for device in found:
        device["used_by"] = ", ".join(used.get(_place(device), []))
    if args.format == "json":
        import json

        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    rows = []
    for device in found:
        what = " ".join(filter(None, (device.get("vendor", ""), device.get("product", ""), device.get("name", ""))))
        rows.append([_place(device), what, device["used_by"]])
    sys.stdout.write(table([["BACKEND:DEVID", "DESCRIPTION", "USED BY"], *rows]) if rows else "")
    return 0


def _by_path(devclass: str, qubes: Qubes, text: str, among: Sequence[str] | None = None) -> str:
    """BACKEND:DEVICE; a file of dom0 is the loop device over it (of those ``among``), where there is one."""
    backend, _, path = text.partition(":")
    if devclass != "block" or backend != ADMIN or not path.startswith("/"):
        return text
    import os

    wanted = os.path.realpath(path)
    ports = [one["port_id"] for one in _listed(qubes, devclass, "Available", ADMIN) if one.get("name") == wanted]
    chosen = [port for port in ports if among is None or f"{ADMIN}:{port}" in among]
    if not chosen:
        raise tool.UsageError(f"there is no loop device over {wanted}{'' if among is None else ' in that qube'}")
    return f"{ADMIN}:{chosen[0]}"


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    device = wire(_by_path(args.devclass, qubes, args.DEVICE))
    backend, port, _ = device.split("+", 2)
    found = qubes.call(f"admin.vm.device.{args.devclass}.Available", port, backend).splitlines()
    if not found:
        raise tool.UsageError(f"{backend} offers no {args.devclass} device {port}")
    facts = parse_line(found[0])
    sys.stdout.write(table([[key.lstrip("_"), text] for key, text in sorted(facts.items()) if key != "place"]))
    return 0


def _options(args: argparse.Namespace) -> dict[str, str]:
    found = {}
    for text in args.options:
        for word in text.split(","):
            key, equals, value = word.partition("=")
            found[key] = value if equals else "yes"
    if args.ro:
        found["read-only"] = "yes"
    return found


def _attach(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.loop_device import LoopDevice

    options = _options(args)
    backend, _, place = args.DEVICE.partition(":")
    with ExitStack() as held:
        if args.devclass == "block" and backend == ADMIN and place.startswith("/"):
            readonly = options.get("read-only") == "yes" or options.get("devtype") == "cdrom"
            place = held.enter_context(LoopDevice(place, readonly))
        device = wire(f"{backend}:{place}")
        said = payload(args.devclass, device, "manual", options)
        qubes.call(f"admin.vm.device.{args.devclass}.Attach", device, args.VMNAME, said)
    return 0


def _assign(args: argparse.Namespace, qubes: Qubes) -> int:
    device = wire(args.DEVICE)
    if args.by_port:
        device = "+".join([*device.split("+", 2)[:2], "_"])
    elif args.by_device:
        backend, _, ident = device.split("+", 2)
        if ident == "_":
            raise tool.UsageError("--device needs the identity: BACKEND:PORT:IDENTITY")
        device = f"{backend}+_+{ident}"
    said = payload(args.devclass, device, _MODES[args.mode], _options(args))
    qubes.call(f"admin.vm.device.{args.devclass}.Assign", device, args.VMNAME, said)
    return 0


def _take(args: argparse.Namespace, qubes: Qubes) -> int:
    """Detach or unassign one device, or all."""
    what, verb = ("Attached", "Detach") if args.command in ("detach", "dt", "d") else ("Assigned", "Unassign")
    if args.DEVICE is not None:
        attached = [_place(one) for one in _listed(qubes, args.devclass, what, args.VMNAME)]
        devices = [wire(_by_path(args.devclass, qubes, args.DEVICE, attached))]
    else:
        found = _listed(qubes, args.devclass, what, args.VMNAME)
        devices = [wire(f"{_place(one)}:{one.get('device_id', '*')}") for one in found]
    for device in devices:
        try:
            qubes.call(f"admin.vm.device.{args.devclass}.{verb}", device, args.VMNAME)
        except DeviceNotAssignedError:
            if args.DEVICE is not None:
                raise
    return 0


def main(argv: Sequence[str] | None = None, devclass: str | None = None) -> int:
    """Run the tool; ``devclass`` is the class that the name of the tool says."""
    parser = tool.Parser(PROG if devclass is None else f"qvm-{devclass}", "List devices and give them to qubes.")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to list devices")
    if devclass is None:
        parser.add_argument("-l", "--list-device-classes", action=_Classes, help="list the classes of devices and exit")
        parser.add_argument("devclass", metavar="CLASS", help="class of devices: block, pci, usb")
    else:
        parser.set_defaults(devclass=devclass)
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the devices that qubes offer, and who has them")
    show.add_argument("VMNAME", nargs="*", help="only those of these qubes")
    show.set_defaults(action=_list)
    info = commands.add_parser("info", aliases=["i"], help="show what is known of a device")
    info.add_argument("DEVICE", metavar="BACKEND:DEVICE")
    info.set_defaults(action=_info)
    for verb, aliases, text in (
        ("attach", ["at", "a"], "give a running qube a device"),
        ("assign", ["as", "s"], "give a qube a device at each start"),
    ):
        one = commands.add_parser(verb, aliases=aliases, help=text)
        one.add_argument("VMNAME")
        one.add_argument("DEVICE", metavar="BACKEND:DEVICE", help="for block devices of dom0 also dom0:/PATH of a file")
        one.add_argument("-o", "--option", action="append", default=[], dest="options", metavar="OPTION=VALUE",
                         help="read-only=yes|no, frontend-dev=vdX, devtype=disk|cdrom")  # fmt: skip
        one.add_argument("--ro", action="store_true", help="the qube may not write to it")
        one.set_defaults(action=_attach if verb == "attach" else _assign)
        if verb == "assign":
            how = one.add_mutually_exclusive_group()
            for mode, flags, meaning in (
                ("required", ("-r", "--required"), "do not start the qube without it"),
                ("ask", ("-q", "--ask", "--ask-to-attach"), "ask when it is there"),
                ("auto", ("-a", "--auto", "--auto-attach"), "attach it when it is there (this is the default)"),
            ):
                how.add_argument(*flags, action="store_const", dest="mode", const=mode, default="auto", help=meaning)
            what = one.add_mutually_exclusive_group()
            what.add_argument("--port", action="store_true", dest="by_port", help="whatever is at that port")
            what.add_argument("--device", action="store_true", dest="by_device", help="that device at any port")
    for verb, aliases, text in (
        ("detach", ["dt", "d"], "take a device, or all, from a running qube"),
        ("unassign", ["un", "u"], "do not give it, or any, any more"),
    ):
        one = commands.add_parser(verb, aliases=aliases, help=text)
        one.add_argument("VMNAME")
        one.add_argument("DEVICE", metavar="BACKEND:DEVICE", nargs="?", help="also dom0:/PATH; all where none is named")
        one.set_defaults(action=_take)
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
