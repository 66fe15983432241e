"""qvm-device: list devices and give them to qubes; called as qvm-block, qvm-pci or qvm-usb it knows the class."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from casemate.cli import device_text as text
from casemate.cli import json_output, tool
from casemate.cli.device_text import ANY
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, DeviceNotAssignedError, NotFoundError

PROG = "qvm-device"
_MODES = {"required": "required", "ask": "ask-to-attach", "auto": "auto-attach"}


def _listed(qubes: Qubes, devclass: str, what: str, name: str) -> list[dict[str, str]]:
    try:
        lines = qubes.call(f"admin.vm.device.{devclass}.{what}", "", name).splitlines()
    except NotFoundError:
        return []  # removed since the list of qubes was taken: it has no devices, and uses none
    return [text.parse_line(line) for line in lines]


def _checked_class(args: argparse.Namespace, qubes: Qubes) -> None:
    """CasemateError for a class of devices that this host has not."""
    known = qubes.call("admin.deviceclass.List").split()
    if args.devclass not in known and args.devclass != "mic":
        raise CasemateError(f"there is no class of devices {args.devclass!r}; there are {', '.join(known)}")


def _user(device: dict[str, str], name: str, mode: str) -> str:
    """A qube that has a device, how, and the options that it was given with."""
    options = ", ".join(f"{key[1:]}={text}" for key, text in device.items() if key.startswith("_"))
    return f"{name} ({mode}: {options})" if options else f"{name} ({mode})"


def _matches(rule: dict[str, str], place: str, ident: str) -> bool:
    """Whether an assignment means the device at a place with an identity."""
    backend, _, port = place.partition(":")
    return (
        rule.get("backend_domain") == backend
        and rule.get("port_id") in (ANY, port)
        and rule.get("device_id", ANY) in (ANY, ident)
    )


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    _checked_class(args, qubes)
    everyone = [qube.name for qube in qubes.listed()]
    if args.all or args.exclude or args.VMNAME:
        wanted = [qube.name for qube in tool.choose(args, qubes.listed())]
    else:
        wanted = everyone
    attached = {name: _listed(qubes, args.devclass, "Attached", name) for name in everyone}
    offered = {name: _listed(qubes, args.devclass, "Available", name) for name in everyone}
    there = {text.place(device): device for devices in offered.values() for device in devices}
    used: dict[str, list[str]] = {}
    shown: dict[str, dict[str, str]] = {}
    for name in everyone:
        shown.update({text.place(device): device for device in offered[name] if name in wanted})
        for device in attached[name]:
            where = text.place(device)
            used.setdefault(where, []).append(_user(device, name, "attached"))
            if name in wanted:
                shown[where] = there.get(where, device)
    found = [{**device, "used_by": ", ".join(used.get(where, []))} for where, device in shown.items()]
    found += _assignments(args, qubes, everyone) if args.assignments else []
    if json_output.wanted(args):
        return json_output.write(found)
    sbdf = args.with_sbdf and args.devclass == "pci"
    rows = []
    for device in found:
        what = device.get("description") or text.description(device)
        address = [device.get("_sbdf") or device.get("port_id", "").replace("_", ":")] if sbdf else []
        rows.append([text.place(device), *address, what, device["used_by"]])
    # Without a terminal there is no header: scripts read each line as a device.
    head = [["BACKEND:DEVID", *(["SBDF"] if sbdf else []), "DESCRIPTION", "USED BY"]] if sys.stdout.isatty() else []
    sys.stdout.write(table([*head, *sorted(rows)]))
    return 0


def _assignments(args: argparse.Namespace, qubes: Qubes, everyone: Sequence[str]) -> list[dict[str, str]]:
    """A line for each device that is assigned, whether it is there or not, with the qubes that would get it."""
    rules = [(name, rule) for name in everyone for rule in _listed(qubes, args.devclass, "Assigned", name)]
    found: dict[tuple[str, str], dict[str, str]] = {}
    for _name, rule in rules:
        where, ident = text.place(rule), rule.get("device_id", ANY)
        users = [
            "*" + _user(other, owner, other.get("mode", ""))
            for owner, other in rules
            if _matches(other, where, ident) and owner != rule.get("backend_domain")
        ]
        found[where, ident] = {
            **rule, "description": "any device" if ident == ANY else ident, "used_by": ", ".join(users),
        }  # fmt: skip
    return list(found.values())


def _by_path(devclass: str, qubes: Qubes, device: str, among: Sequence[str] | None = None) -> str:
    """BACKEND:DEVICE; a file of dom0 is the loop device over it (of those ``among``), where there is one."""
    backend, _, path = device.partition(":")
    if devclass != "block" or backend != ADMIN or not path.startswith("/"):
        return device
    import os

    wanted = os.path.realpath(path)
    ports = [one["port_id"] for one in _listed(qubes, devclass, "Available", ADMIN) if one.get("name") == wanted]
    chosen = [port for port in ports if among is None or f"{ADMIN}:{port}" in among]
    if not chosen:
        raise tool.UsageError(f"there is no loop device over {wanted}{'' if among is None else ' in that qube'}")
    return f"{ADMIN}:{chosen[0]}"


def _offered(args: argparse.Namespace, qubes: Qubes, device: str) -> dict[str, str] | None:
    """What a backend says of a device, None where it does not offer it (now); CasemateError without that backend."""
    backend, port, ident = text.split(_by_path(args.devclass, qubes, device))
    lines = qubes.call(f"admin.vm.device.{args.devclass}.Available", port, backend).splitlines() if port != ANY else []
    found = [text.parse_line(line) for line in lines]
    return next((one for one in found if ident in (ANY, one.get("device_id"))), None)


def _not_offered(args: argparse.Namespace) -> CasemateError:
    backend, port, _ = text.split(args.DEVICE)
    return CasemateError(f"{backend} does not offer {args.devclass} device {port!r}")


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    _checked_class(args, qubes)
    if args.DEVICE is None:
        return 0
    device = _offered(args, qubes, args.DEVICE)
    if device is None:
        raise _not_offered(args)
    if json_output.wanted(args):
        return json_output.write(device)
    lines = [text.description(device), f"device ID: {device.get('device_id', '')}"]
    lines += [f"{key[1:].replace('_', ' ')}: {value}" for key, value in device.items() if key.startswith("_")]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _options(args: argparse.Namespace) -> dict[str, str]:
    found = {}
    for words in args.options:
        for word in words.split(","):
            key, equals, value = word.partition("=")
            found[key] = value if equals else "yes"
    if "ro" in found:  # the older word
        said = found.pop("ro").lower()
        if said not in ("1", "true", "yes", "0", "false", "no"):
            raise tool.UsageError(f"ro={said}: it is yes or no")
        found["read-only"] = "yes" if said in ("1", "true", "yes") else "no"
    if args.ro:
        found["read-only"] = "yes"
    return found


def _attach(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli.loop_device import LoopDevice

    _checked_class(args, qubes)
    options = _options(args)
    backend, _, where = args.DEVICE.partition(":")
    with ExitStack() as held:
        if args.devclass == "block" and backend == ADMIN and where.startswith("/"):
            readonly = options.get("read-only") == "yes" or options.get("devtype") == "cdrom"
            where = held.enter_context(LoopDevice(where, readonly))
        device = text.wire(f"{backend}:{where}")
        said = text.payload(args.devclass, device, "manual", options)
        try:
            qubes.call(f"admin.vm.device.{args.devclass}.Attach", device, args.VMNAME, said)
        except CasemateError as error:
            if not args.persistent:
                raise
            tool.say_error(PROG, error)  # it is assigned all the same, for the qube's next start
        if args.persistent:
            said = text.payload(args.devclass, device, "required", options)
            qubes.call(f"admin.vm.device.{args.devclass}.Assign", device, args.VMNAME, said)
    return 0


def _assign(args: argparse.Namespace, qubes: Qubes) -> int:
    """Assign a device as it is now: what has another identity at the port later is another device.

    ``--port`` means whatever is at the port, and is the way to assign what is not there yet; ``--device`` means that
    identity at any port.
    """
    _checked_class(args, qubes)
    backend, port, ident = text.split(_by_path(args.devclass, qubes, args.DEVICE))
    if args.only_port:
        ident = ANY
    elif ident == ANY or not args.only_device:
        device = _offered(args, qubes, args.DEVICE)
        if device is None:
            raise CasemateError(f"{_not_offered(args)}; --port assigns whatever will be there")
        ident = device.get("device_id", ANY)
    if args.only_device:
        port = ANY
    argument = text.wire(f"{backend}:{port}:{ident}")
    said = text.payload(args.devclass, argument, _MODES[args.mode], _options(args))
    qubes.call(f"admin.vm.device.{args.devclass}.Assign", argument, args.VMNAME, said)
    return 0


def _take(args: argparse.Namespace, qubes: Qubes) -> int:
    """Detach or unassign those devices of a qube that are meant: one, one at any port, or all."""
    _checked_class(args, qubes)
    what, verb = ("Attached", "Detach") if args.command in ("detach", "dt", "d") else ("Assigned", "Unassign")
    lines = qubes.call(f"admin.vm.device.{args.devclass}.{what}", "", args.VMNAME).splitlines()
    given = [text.parse_line(line) for line in lines]
    if args.DEVICE is not None:
        meant = _by_path(args.devclass, qubes, args.DEVICE, [text.place(one) for one in given])
        backend, port, ident = text.split(meant)
        given = [
            one
            for one in given
            if one.get("backend_domain") == backend
            and (ANY if args.only_device else port) in (ANY, one.get("port_id"))
            and (ident == ANY or ident == one.get("device_id"))
            and not (args.only_port and one.get("device_id", ANY) != ANY)
            and not (args.only_device and one.get("port_id") != ANY)
        ]
        if not given:
            raise DeviceNotAssignedError(f"{args.DEVICE} is not {what.lower()} {'to' if verb == 'Detach' else 'for'} "
                                         f"{args.VMNAME}")  # fmt: skip
    for device in given:
        argument = text.wire(f"{text.place(device)}:{device.get('device_id', ANY)}")
        try:
            qubes.call(f"admin.vm.device.{args.devclass}.{verb}", argument, args.VMNAME)
        except DeviceNotAssignedError:
            if args.DEVICE is not None:
                raise
    return 0


def main(argv: Sequence[str] | None = None, devclass: str | None = None) -> int:
    """Run the tool; ``devclass`` is the class that the name of the tool says."""
    parser = tool.Parser(PROG if devclass is None else f"qvm-{devclass}",
                         f"List {devclass + ' ' if devclass else ''}devices and give them to qubes.")  # fmt: skip
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to list devices")
    parser.add_argument("-l", "--list-device-classes", "--list-classes", action=_Classes,
                        help="list the classes of devices and exit")  # fmt: skip
    if devclass is None:
        parser.add_argument("devclass", metavar="CLASS", help="class of devices: block, pci, usb")
    else:
        parser.set_defaults(devclass=devclass)
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the devices that qubes offer, and who has them")
    show.many_qubes()
    show.add_argument("-s", "--assignments", action="store_true",
                      help="also what is assigned, there or not, with * before who would get it")  # fmt: skip
    show.add_argument("--with-sbdf", "--resolve-paths", action="store_true", help="also the address of PCI devices")
    show.set_defaults(action=_list)
    info = commands.add_parser("info", aliases=["i"], help="show what is known of a device")
    info.add_argument("DEVICE", metavar="BACKEND:DEVICE", nargs="?")
    info.set_defaults(action=_info)
    json_output.option(parser, show, info)
    for verb, aliases, said in (
        ("attach", ["at", "a"], "give a running qube a device"),
        ("assign", ["as", "s"], "give a qube a device at each start"),
    ):
        one = commands.add_parser(verb, aliases=aliases, help=said)
        one.add_argument("VMNAME")
        one.add_argument("DEVICE", metavar="BACKEND:DEVICE", help="for block devices of dom0 also dom0:/PATH of a file")
        one.add_argument("-o", "--option", action="append", default=[], dest="options", metavar="OPTION=VALUE",
                         help="read-only=yes|no, frontend-dev=vdX, devtype=disk|cdrom")  # fmt: skip
        one.add_argument("--ro", action="store_true", help="the qube may not write to it")
        one.set_defaults(action=_attach if verb == "attach" else _assign)
        if verb == "attach":
            one.add_argument("-p", "--persistent", action="store_true", help="and assign it, required, for each start")
        if verb == "assign":
            how = one.add_mutually_exclusive_group()
            for mode, flags, meaning in (
                ("required", ("-r", "--required"), "do not start the qube without it"),
                ("ask", ("--ask", "--ask-to-attach"), "ask when it is there"),
                ("auto", ("-a", "--auto", "--auto-attach"), "attach it when it is there (this is the default)"),
            ):
                how.add_argument(*flags, action="store_const", dest="mode", const=mode, default="auto", help=meaning)
            _which(one)
    for verb, aliases, said in (
        ("detach", ["dt", "d"], "take a device, or all, from a running qube"),
        ("unassign", ["un", "u"], "do not give it, or any, any more"),
    ):
        one = commands.add_parser(verb, aliases=aliases, help=said)
        one.add_argument("VMNAME")
        one.add_argument("DEVICE", metavar="BACKEND:DEVICE", nargs="?", help="also dom0:/PATH; all where none is named")
        if verb == "unassign":
            _which(one)
        one.set_defaults(action=_take)
    parser.set_defaults(action=_list, VMNAME=[], all=False, exclude=[], assignments=False, with_sbdf=False,
                        only_port=False, only_device=False)  # fmt: skip

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)


def _which(parser: argparse.ArgumentParser) -> None:
    """Options of assign and unassign: what of BACKEND:PORT:IDENTITY counts."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--port", "--only-port", action="store_true", dest="only_port", help="whatever is at that port")
    what.add_argument("--device", "--only-device", action="store_true", dest="only_device",
                      help="that device at any port")  # fmt: skip


class _Classes(argparse.Action):
    """Lists the classes of devices; nothing else is needed then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(Qubes().call("admin.deviceclass.List"))
        parser.exit()
