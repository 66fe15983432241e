"""qvm-volume: show and change the volumes of qubes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, NotFoundError

PROG = "qvm-volume"
CONFIG = ("revisions_to_keep", "rw", "ephemeral")
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def size(text: str) -> int:
    """Bytes of a size such as ``10G``, ``10GiB`` or ``500``; raises UsageError."""
    word = text.lower().removesuffix("ib").removesuffix("b")
    shift = _UNITS.get(word[-1:], 0)
    digits = word[:-1] if shift else word
    if not (digits.isascii() and digits.isdecimal()):
        raise tool.UsageError(f"not a size: {text!r}")
    return int(digits) << shift


def _split(text: str) -> tuple[str, str]:
    qube, colon, volume = text.partition(":")
    if not colon or not volume:
        raise tool.UsageError(f"a volume is written VMNAME:VOLUME, not {text!r}")
    return qube, volume


def _volumes_of(qubes: Qubes, name: str, only: set[str], pool: str | None) -> list[dict[str, str]]:
    """A qube's volumes (those of ``only``, if there are any there) that lie in a pool (None: in any)."""
    found = []
    for volume in qubes.volumes(name):
        if only and volume not in only:
            continue
        info = qubes.volume(name, volume)
        if pool is None or info["pool"] == pool:
            old = qubes.call("admin.vm.volume.ListSnapshots", volume, name).split()
            found.append({**info, "vm": name, "volume": volume, "revisions": " ".join(old)})
    return found


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    wanted = args.VOLUME or []
    found: list[dict[str, str]] = []
    names = list(dict.fromkeys(w.partition(":")[0] for w in wanted)) or [q.name for q in qubes.listed()]
    for name in names:
        only = {w.partition(":")[2] for w in wanted if w.partition(":")[0] == name} - {""}
        try:
            found += _volumes_of(qubes, name, only, args.pool)
        except NotFoundError:
            if wanted:
                raise
            # Removed since the list of qubes was taken.
    if args.format == "json":
        import json

        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    rows = [[f"{v['pool']}:{v['vid']}", v["vm"], v["volume"], "Yes" if v["revisions"] else "No"] for v in found]
    sys.stdout.write(table([["POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE"], *rows]))
    return 0


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    info = qubes.volume(name, volume)
    revisions = qubes.call("admin.vm.volume.ListSnapshots", volume, name).split()
    if args.property is not None:
        if args.property == "revisions":
            sys.stdout.write("".join(f"{one}\n" for one in revisions))
        elif args.property in info:
            sys.stdout.write(f"{info[args.property]}\n")
        else:
            raise tool.UsageError(f"a volume has no {args.property!r}")
        return 0
    if args.format == "json":
        import json

        sys.stdout.write(json.dumps({**info, "revisions": revisions}, indent=2) + "\n")
        return 0
    sys.stdout.write(table([[key, text] for key, text in sorted(info.items())]))
    sys.stdout.write("List of available revisions (for revert):" + (" none\n" if not revisions else "\n"))
    sys.stdout.write("".join(f"  {one}\n" for one in revisions))
    return 0


def _config(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    qubes.call(f"admin.vm.volume.Set.{args.property}", volume, name, args.value)
    return 0


def _resize(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    wanted, now = size(args.size), int(qubes.volume(name, volume)["size"])
    if wanted < now:
        raise CasemateError(f"{args.VOLUME} has {now} bytes; a volume cannot become smaller")
    qubes.call("admin.vm.volume.Resize", volume, name, str(wanted))
    return 0


def _revert(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    revision = args.revision
    if revision is None:
        revisions = qubes.call("admin.vm.volume.ListSnapshots", volume, name).split()
        if not revisions:
            raise CasemateError(f"{args.VOLUME} has no older states")
        revision = revisions[-1]
    qubes.call("admin.vm.volume.Revert", volume, name, revision)
    return 0


def _import(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    now = int(qubes.volume(name, volume)["size"])
    try:
        with open(0 if args.path == "-" else args.path, "rb", closefd=args.path != "-") as file:
            if args.size is not None:
                length: int | None = size(args.size)
            else:
                length = os.fstat(file.fileno()).st_size if args.path != "-" else None
            if args.no_resize and length is not None and length > now:
                raise CasemateError(f"{args.VOLUME} has {now} bytes, too few for {length}")
            if length is None:
                qubes.transport.send_file("admin.vm.volume.Import", volume, name, b"", file)
            else:
                qubes.transport.send_file("admin.vm.volume.ImportWithSize", volume, name, b"%d\n" % length, file)
    except OSError as error:
        raise CasemateError(f"{args.path}: {error.strerror}") from None
    return 0


def _clear(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    qubes.call("admin.vm.volume.Clear", volume, name)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show and change the volumes of qubes. A volume is written VMNAME:VOLUME.")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to show what was asked for")
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)

    def command(name: str, aliases: list[str], text: str, action: object, one: bool = True) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = commands.add_parser(name, aliases=aliases, help=text)
        if one:
            found.add_argument("VOLUME", metavar="VMNAME:VOLUME")
        found.set_defaults(action=action)
        return found

    show = command("list", ["ls", "l"], "list volumes (this is the default)", _list, one=False)
    show.add_argument("-p", "--pool", help="only those in this pool")
    show.add_argument("VOLUME", nargs="*", metavar="VMNAME:VOLUME", help="only these; VMNAME for all of a qube")
    info = command("info", ["i"], "show how a volume is configured", _info)
    info.add_argument("property", nargs="?", metavar="PROPERTY", help="only this")
    config = command("config", ["c", "set", "s"], "change how a volume is configured", _config)
    config.add_argument("property", choices=CONFIG, metavar="PROPERTY", help=", ".join(CONFIG))
    config.add_argument("value", metavar="VALUE")
    resize = command("resize", ["extend"], "make a volume larger", _resize)
    resize.add_argument("size", metavar="SIZE", help="in bytes, or with KiB, MiB, GiB, TiB")
    resize.add_argument("-f", "--force", action="store_true", help=argparse.SUPPRESS)
    revert = command("revert", ["rv", "r"], "go back to an older state", _revert)
    revert.add_argument("revision", nargs="?", metavar="REVISION", help="which (default: the newest)")
    put = command("import", [], "replace a volume by an image", _import)
    put.add_argument("path", metavar="PATH", help="file with a raw image; - for standard input")
    put.add_argument("--size", help="how much data there is, where that cannot be seen from the file")
    put.add_argument("--no-resize", action="store_true", help="refuse an image that is larger than the volume")
    command("clear", ["cl"], "make a volume as it was when it was new", _clear)
    parser.set_defaults(action=_list, VOLUME=None, pool=None)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)
