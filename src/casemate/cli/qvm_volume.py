"""qvm-volume: show and change the volumes of qubes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.cli.progress import Waiting
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, NotFoundError

PROG = "qvm-volume"
CONFIG = ("revisions_to_keep", "rw", "ephemeral")
_INFO = ("pool", "vid", "rw", "source", "save_on_stop", "snap_on_start", "size", "usage", "revisions_to_keep",
         "ephemeral", "is_outdated")  # fmt: skip
"""What ``info`` shows, in upstream's order; ``info VOLUME PROPERTY`` tells also what else the daemon says."""
_NO_REVISIONS = "-1"
_UNITS = "kmgt"


def size(text: str) -> int:
    """Bytes of a size: a number, or one with K, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024).

    A ``B`` may follow, upper and lower case are the same; UsageError for anything else. (upstream's parse_size)
    """
    word = text.strip().lower().removesuffix("b")
    binary = word.endswith("i")
    word = word.removesuffix("i")
    power = _UNITS.find(word[-1:]) + 1 if word[-1:] else 0
    digits = (word[:-1] if power else word).strip()
    if not (digits.isascii() and digits.isdecimal()) or (binary and not power):
        raise CasemateError(f"not a size: {text!r}; sizes are written in bytes, or as 10GiB (1024³) or 10GB (1000³)")
    unit: int = (1024 if binary else 1000) ** power
    return int(digits) * unit


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


def _wanted(args: argparse.Namespace, qubes: Qubes) -> list[tuple[str, set[str]]]:
    """The qubes whose volumes are to be listed, each with the names of the volumes that are meant (none: all)."""
    listed = qubes.listed()
    if args.all or args.exclude:
        return [(qube.name, set()) for qube in tool.choose(args, listed)]
    if not args.VMNAME:
        return [(qube.name, set()) for qube in listed]
    found: dict[str, set[str]] = {}
    for word in args.VMNAME:
        pattern, _, volume = word.partition(":")
        for name in tool.named([pattern], [qube.name for qube in listed]):
            found.setdefault(name, set()).update({volume} - {""})
    return list(found.items())


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.pool is not None and args.pool not in qubes.call("admin.pool.List").split():
        raise tool.UsageError(f"No such pool: {args.pool!r}")
    found: list[dict[str, str]] = []
    for name, only in _wanted(args, qubes):
        try:
            found += _volumes_of(qubes, name, only, args.pool)
        except NotFoundError:
            pass  # removed since the list of qubes was taken
    found.sort(key=lambda volume: (volume["pool"], volume["vid"]))
    if json_output.wanted(args):
        return json_output.write(found)
    rows = [[f"{v['pool']}:{v['vid']}", v["vm"], v["volume"], "Yes" if v["revisions"] else "No"] for v in found]
    sys.stdout.write(table([["POOL:VOLUME", "VMNAME", "VOLUME_NAME", "REVERT_POSSIBLE"], *rows]))
    return 0


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    info = {"is_outdated": "False", **qubes.volume(name, volume)}
    revisions = qubes.call("admin.vm.volume.ListSnapshots", volume, name).split()
    if args.property is not None:
        if args.property == "revisions":
            sys.stdout.write("".join(f"{one}\n" for one in revisions))
        elif args.property in info:
            sys.stdout.write(f"{info[args.property]}\n")
        else:
            raise CasemateError(f"a volume has no {args.property!r}; it has {', '.join([*_INFO, 'revisions'])}")
        return 0
    if json_output.wanted(args):
        return json_output.write({**info, "revisions": revisions})
    if info["revisions_to_keep"] == _NO_REVISIONS:
        info["revisions_to_keep"] += " (snapshot disabled)"
    sys.stdout.write(table([[key, info[key]] for key in _INFO]))
    sys.stdout.write("List of available revisions (for revert):" + (" none\n" if not revisions else "\n"))
    sys.stdout.write("".join(f"  {one}\n" for one in revisions))
    return 0


def _config(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    if args.property not in CONFIG:
        raise CasemateError(f"{args.property!r} cannot be set; {', '.join(CONFIG)} can")
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
            method = "admin.vm.volume.Import" if length is None else "admin.vm.volume.ImportWithSize"
            with Waiting(f"importing {args.VOLUME}", args.quiet):
                qubes.transport.send_file(method, volume, name, b"" if length is None else b"%d\n" % length, file)
    except OSError as error:
        raise CasemateError(f"{args.path}: {error.strerror}") from None
    return 0


def _sure(args: argparse.Namespace, what: str) -> bool:
    """Whether a person, or ``--force``, wants what cannot be taken back where no revisions are kept."""
    if args.force:
        return True
    sys.stdout.write(f"{what}\n(What it holds now stays as a revision, where the volume keeps any.)\n")
    return tool.confirmed("Are you sure?", "Nothing was changed.\n")


def _clear(args: argparse.Namespace, qubes: Qubes) -> int:
    name, volume = _split(args.VOLUME)
    if not _sure(args, f"This empties {args.VOLUME}."):
        return 1
    qubes.call("admin.vm.volume.Clear", volume, name)
    return 0


def _clone(args: argparse.Namespace, qubes: Qubes) -> int:
    source, target = _split(args.VOLUME), _split(args.target)
    for (name, volume), text in ((source, args.VOLUME), (target, args.target)):
        if qubes.volume(name, volume)["save_on_stop"] != "True":
            raise CasemateError(f"{text} is made anew at each start, so it cannot be copied or replaced")
    if not _sure(args, f"This replaces what is in {args.target} by what is in {args.VOLUME}."):
        return 1
    token = qubes.call("admin.vm.volume.CloneFrom", source[1], source[0])
    with Waiting(f"copying {args.VOLUME}", args.quiet):
        qubes.call("admin.vm.volume.CloneTo", target[1], target[0], token)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "Show and change the volumes of qubes. A volume is written VMNAME:VOLUME.")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to show what was asked for")
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)

    def command(name: str, aliases: list[str], text: str, action: object, one: bool = True) -> tool.Subparser:
        found: tool.Subparser = commands.add_parser(name, aliases=aliases, help=text)
        if one:
            found.add_argument("VOLUME", metavar="VMNAME:VOLUME")
        found.set_defaults(action=action)
        return found

    show = command("list", ["ls", "l"], "list volumes (this is the default)", _list, one=False)
    show.add_argument("-p", "--pool", help="only those in this pool")
    show.add_argument("--full", action="store_true", help="each line whole (they always are)")
    show.many_qubes()
    info = command("info", ["i"], "show how a volume is configured", _info)
    info.add_argument("property", nargs="?", metavar="PROPERTY", help="only this")
    json_output.option(parser, show, info)
    config = command("config", ["c", "set", "s"], "change how a volume is configured", _config)
    config.add_argument("property", metavar="PROPERTY", help=", ".join(CONFIG))
    config.add_argument("value", metavar="VALUE")
    resize = command("resize", ["extend"], "make a volume larger", _resize)
    resize.add_argument("size", metavar="SIZE", help="in bytes, or with KiB, MiB, GiB (1024), KB, MB, GB (1000)")
    resize.add_argument("-f", "--force", action="store_true", help=argparse.SUPPRESS)
    revert = command("revert", ["rv", "r"], "go back to an older state", _revert)
    revert.add_argument("revision", nargs="?", metavar="REVISION", help="which (default: the newest)")
    put = command("import", [], "replace a volume by an image", _import)
    put.add_argument("path", metavar="PATH", help="file with a raw image; - for standard input")
    put.add_argument("--size", help="how much data there is, where that cannot be seen from the file")
    put.add_argument("--no-resize", action="store_true", help="refuse an image that is larger than the volume")
    clone = command("clone", [], "replace a volume by a copy of another", _clone)
    clone.add_argument("target", metavar="VMNAME:VOLUME", help="the one that is replaced")
    clear = command("clear", ["cl"], "make a volume as it was when it was new", _clear)
    for one in (clone, clear):
        one.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.set_defaults(action=_list, VMNAME=[], all=False, exclude=[], pool=None)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)
