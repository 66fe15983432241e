"""qvm-ls: list qubes; all that is shown comes in one call (two with disks)."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence

from casemate.cli import json_output, tool
from casemate.cli.table import raw, table
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import NotFoundError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Entry = dict[str, Any]

PROG = "qvm-ls"

FORMATS = {
    "simple": ("name", "state", "class", "label", "template", "netvm"),
    "network": ("name", "state", "netvm", "ip", "ipback", "gateway"),
    "kernel": ("name", "state", "class", "template", "kernel", "kernelopts"),
    "full": ("name", "state", "class", "label", "qid", "xid", "uuid"),
    "prefs": ("name", "label", "template", "netvm", "vcpus", "initialmem", "maxmem", "virt_mode"),
    "disk": (
        "name", "state", "disk",
        "priv-curr", "priv-max", "priv-used", "root-curr", "root-max", "root-used",
    ),
}  # fmt: skip
"""Sets of columns by name."""

DESCRIPTIONS = {
    "name": "name of the qube",
    "state": "power state",
    "class": "class",
    "uuid": "UUID",
    "ipback": "address, of a qube that provides network",
    "gateway": "gateway that the qube sees",
    "memory": "MiB of memory that a running qube has now",
    "initialmem": "MiB of memory that it starts with (property memory)",
    "flags": "type (0 dom0, a AppVM, d DispVM, s StandaloneVM, t TemplateVM; capital: virt_mode hvm), state (first "
    "letter, - halted), then U updateable, N provides network, R installed by RPM, i internal, D debug, A autostart",
    "tags": "tags, between commas",
    "disk": "MiB that all volumes take on the disk",
    "priv-curr": "MiB that the private volume takes",
    "priv-max": "MiB that the private volume may take",
    "priv-pool": "pool of the private volume",
    "priv-used": "how full the private volume is, in per cent",
    "root-curr": "MiB that the root volume takes",
    "root-max": "MiB that the root volume may take",
    "root-pool": "pool of the root volume",
    "root-used": "how full the root volume is, in per cent",
}
"""What the columns that are not simply properties show."""

_FIXED = ("name", "state", "class", "uuid")
_FLAGS = {"updateable": "U", "provides_network": "N", "installed_by_rpm": "R", "internal": "i", "debug": "D",
          "autostart": "A"}  # fmt: skip
"""Properties that column FLAGS tells with a letter, in its order."""
_SOURCES = {
    "ipback": ("ip", "provides_network"),
    "gateway": ("visible_gateway",),
    "initialmem": ("memory",),
    "memory": (),
    "flags": ("virt_mode", *(name for name in _FLAGS if name != "internal")),
}
"""Properties that a column is made of, where it is not the property of its own name."""
_DISKS = tuple(name for name in DESCRIPTIONS if name == "disk" or name.startswith(("priv-", "root-")))
_NUMERIC = ("memory", "initialmem", "disk", "priv-curr", "priv-max", "priv-used", "root-curr", "root-max", "root-used",
            "xid", "qid", "maxmem", "qrexec_timeout", "shutdown_timeout", "vcpus")  # fmt: skip
"""Columns that --sort orders as numbers; one without a number counts as 0."""
_TRUE = ("1", "true", "True")
"""Values of the features internal and servicevm that --internal and --servicevm take for yes."""


def _property(entry: Entry, name: str) -> str:
    found = entry.get("properties", {}).get(name)
    return "" if found is None else str(found["value"])


def _disk(entry: Entry, column: str) -> str:
    volumes: dict[str, dict[str, str]] = entry.get("volumes", {})
    if column == "disk":
        return str(sum(int(v.get("usage", "0")) for v in volumes.values()) >> 20)
    volume = volumes.get("private" if column.startswith("priv") else "root", {})
    if column.endswith("-pool"):
        return volume.get("pool", "")
    if not volume:
        return "0"  # as upstream: dom0 has no volumes, so they take nothing
    size, usage = int(volume.get("size", "0")), int(volume.get("usage", "0"))
    if column.endswith("-max"):
        return str(size >> 20)
    if column.endswith("-curr"):
        return str(usage >> 20)
    # Upstream divides whole MiB; dividing bytes would show another number for nearly empty volumes.
    return f"{(usage >> 20) * 100 // (size >> 20)}%" if size >> 20 else "0"


def _flags(entry: Entry) -> str:
    """Eight characters: type, state, and a letter or ``-`` for each of _FLAGS."""
    letters = {"TemplateVM": "t", "AppVM": "a", "StandaloneVM": "s", "DispVM": "d"}
    kind = "0" if entry["class"] == "AdminVM" else letters.get(entry["class"], "-")
    if _property(entry, "virt_mode") == "hvm":
        kind = kind.upper()
    state = "-" if entry["state"] in ("Halted", "NA") else entry["state"][0].lower()
    known = {**{name: _property(entry, name) == "True" for name in _FLAGS},
             "internal": bool(entry.get("features", {}).get("internal"))}  # fmt: skip
    return kind + state + "".join(letter if known[name] else "-" for name, letter in _FLAGS.items())


def _plain(column: str) -> Callable[[Entry], str]:
    """What shows a column, decided once for all qubes."""
    if column in _FIXED:
        return lambda entry: str(entry[column])
    if column in _DISKS or column in _SOURCES or column == "tags":
        return lambda entry: cell(entry, column)

    def show(entry: Entry) -> str:
        try:
            return str(entry["properties"][column]["value"]) or "-"
        except KeyError:
            return "-"

    return show


def cell(entry: Entry, column: str) -> str:
    """What a column shows of a qube; ``-`` for nothing."""
    if column in _FIXED:
        return str(entry[column])
    if column in _DISKS:
        return _disk(entry, column) or "-"
    if column == "tags":
        return ",".join(entry.get("tags", [])) or "-"
    if column == "memory":
        return str(entry.get("memory", "-"))
    if column == "initialmem":
        return _property(entry, "memory") or "-"
    if column == "flags":
        return _flags(entry)
    if column == "ipback":
        return (_property(entry, "ip") if _property(entry, "provides_network") == "True" else "") or "-"
    if column == "gateway":
        return _property(entry, "visible_gateway") or "-"
    return _property(entry, column) or "-"


def _needs(columns: Sequence[str]) -> set[str]:
    needed: set[str] = set()
    for column in columns:
        if column not in _FIXED and column not in _DISKS and column != "tags":
            needed.update(_SOURCES.get(column, (column,)))
    return needed


def _pairs(texts: Sequence[str]) -> dict[str, str | None]:
    """``KEY=VALUE`` filters; None asks for a key that is unset, quotes for one that is empty."""
    found: dict[str, str | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise tool.UsageError(f"Not KEY=VALUE: {text!r}")
        found[key] = None if not value else "" if value in ("''", '""') else value
    return found


def _filters(args: argparse.Namespace) -> list[Callable[[Entry], bool]]:
    found: list[Callable[[Entry], bool]] = []
    states = {word for word, wanted in (("Running", args.running), ("Paused", args.paused)) if wanted}
    if args.running:
        states.update(("Transient", "Halting"))
    if args.halted:
        states.add("Halted")
    if states:
        found.append(lambda e: e["state"] in states)
    if args.klass:
        found.append(lambda e: e["class"] in args.klass)
    for option, name in ((args.label, "label"), (args.template_source, "template"), (args.netvm_is, "netvm")):
        if option:
            found.append(lambda e, o=option, n=name: _property(e, n) in o)  # type: ignore[misc]
    if args.tags:
        found.append(lambda e: bool(set(args.tags) & set(e.get("tags", []))))
    if args.exclude_tags:
        found.append(lambda e: not set(args.exclude_tags) & set(e.get("tags", [])))
    for wish, name in ((args.internal, "internal"), (args.servicevm, "servicevm")):
        if wish:
            found.append(
                lambda e, w=wish, n=name: (e.get("features", {}).get(n) in _TRUE) == w.startswith("y")  # type: ignore[misc]
            )
    if args.pending_update:
        found.append(lambda e: bool(e.get("features", {}).get("updates-available")))
    for key, value in _pairs(args.features).items():
        found.append(lambda e, k=key, v=value: e.get("features", {}).get(k) == v)  # type: ignore[misc]
    for key, value in _pairs(args.prefs).items():
        found.append(lambda e, k=key, v=value or "": _property(e, k) == v)  # type: ignore[misc]
    return found


def _collect(args: argparse.Namespace, qubes: Qubes, columns: Sequence[str]) -> list[Entry]:
    properties = _needs(columns)
    properties.update(_pairs(args.prefs))
    asked = (("label", args.label), ("template", args.template_source), ("netvm", args.netvm_is),
             ("netvm", args.tree), ("provides_network", args.tree))  # fmt: skip
    properties.update(name for name, wish in asked if wish)
    features = set(_pairs(args.features))
    wishes = (("internal", args.internal), ("servicevm", args.servicevm), ("updates-available", args.pending_update))
    features.update(name for name, wish in wishes if wish)
    if "flags" in columns:
        features.add("internal")
    gc.disable()  # nothing of this short life is a cycle, and looking through thousands of new objects takes time
    entries = qubes.inventory(properties, features, bool(args.tags or args.exclude_tags or "tags" in columns))
    known = sorted(entry["name"] for entry in entries)
    wanted = tool.named(args.VMNAME, known)
    if args.exclude and not args.all:
        raise tool.UsageError("--exclude can only be used with --all")
    tool.named(args.exclude, known)
    entries = [e for e in entries if (not args.VMNAME or e["name"] in wanted) and e["name"] not in args.exclude]
    filters = _filters(args)
    if filters:
        entries = [entry for entry in entries if all(matches(entry) for matches in filters)]
    if any(column in _DISKS for column in columns):
        for entry in entries:
            try:
                names = qubes.volumes(entry["name"]) if entry["name"] != ADMIN else []
                entry["volumes"] = {name: qubes.volume(entry["name"], name) for name in names}
            except NotFoundError:
                pass  # removed since the list of qubes was taken: its sizes are not known any more
    if "memory" in columns:
        for entry in entries:
            if entry["state"] not in ("Halted", "NA"):
                entry["memory"] = _memory_now(qubes, entry["name"])
    return entries


def _memory_now(qubes: Qubes, name: str) -> str:
    """MiB that a running qube has; ``-`` where it has stopped or gone since."""
    try:
        words = dict(word.partition("=")[::2] for word in qubes.call("admin.vm.CurrentState", "", name).split())
    except NotFoundError:
        return "-"
    return str(int(words.get("mem", "0")) >> 10)


def _tree(entries: list[Entry]) -> list[tuple[int, Entry]]:
    """The qubes below those that they get their network from, with their depth.

    First come those that are in no tree: without a net qube and serving none, or below a qube that is not listed.
    """
    names = {entry["name"] for entry in entries}
    children: dict[str, list[Entry]] = {}
    alone, roots = [], []
    for entry in entries:
        net = _property(entry, "netvm")
        if net in names:
            children.setdefault(net, []).append(entry)
        elif not net and _property(entry, "provides_network") == "True":
            roots.append(entry)
        else:
            alone.append(entry)
    found: list[tuple[int, Entry]] = []

    def walk(entry: Entry, depth: int) -> None:
        found.append((depth, entry))
        for child in children.get(entry["name"], []):
            walk(child, depth + 1)

    for entry in (*alone, *roots):
        walk(entry, 0)
    return found


def _columns(args: argparse.Namespace) -> list[str]:
    if args.raw_list:
        return ["name"]
    if args.fields:
        columns = [word.strip().lower() for word in args.fields.split(",")]
        if not all(columns):
            raise tool.UsageError("--fields has an empty name of a column")
        return [column if column in _DISKS else column.replace("-", "_") for column in columns]
    for option, name in ((args.network, "network"), (args.kernel, "kernel"), (args.disk, "disk")):
        if option:
            return list(FORMATS[name])
    return list(FORMATS["simple" if args.format in (None, "json") else args.format])


_STATE_COLOURS = {"Running": "good", "Halted": "faint", "NA": "faint", "Crashed": "bad"}


def _painter(columns: Sequence[str]) -> Callable[[int, str], str] | None:
    """What colours states and labels; None where standard output takes no colours."""
    from casemate.cli import colour

    if not colour.wanted(sys.stdout):
        return None

    def paint(column: int, text: str) -> str:
        word = text.strip()
        if columns[column] == "state":
            return colour.paint(text, _STATE_COLOURS.get(word, "warn"))
        return colour.paint(text, word) if columns[column] == "label" else text

    return paint


def _json(entries: list[Entry], columns: list[str]) -> list[dict[str, str | None]]:
    values = [{column: cell(entry, column) for column in columns} for entry in entries]
    return [{key: None if value == "-" else value for key, value in entry.items()} for entry in values]


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    if args.help_formats:
        rows = [[f"  {name}", ",".join(columns).upper()] for name, columns in sorted(FORMATS.items())]
        sys.stdout.write(f"Available formats:\n{table(rows)}\n")
        return 0
    if args.help_columns:
        sys.stdout.write(table([[name.upper(), text] for name, text in DESCRIPTIONS.items()]))
        sys.stdout.write("Any property of qubes is a column too.\n")
        return 0
    columns = _columns(args)
    entries = _collect(args, qubes, columns)
    key = (args.sort or "name").lower()
    if args.sort and key not in columns:
        raise tool.UsageError(f"--sort: {key} is not among the columns")

    sorts_by = _plain(key)

    def order(entry: Entry) -> tuple[int, str]:
        text = sorts_by(entry)
        if key in _NUMERIC:
            digits = text.removesuffix("%").lstrip("-")
            number = int(digits) if digits.isascii() and digits.isdecimal() else 0
            return (-number if text.startswith("-") else number, "")
        return (0, text.upper() if args.ignore_case else text)

    entries.sort(key=lambda entry: str(entry["name"]))  # the order of those that are equal in another column
    entries.sort(key=order, reverse=args.reverse)
    if args.format == "json":
        return json_output.write(_json(entries, columns))
    rows = []
    shown = [_plain(column) for column in columns]
    for depth, entry in _tree(entries) if args.tree else [(0, entry) for entry in entries]:
        cells = [show(entry) for show in shown]
        if depth and "name" in columns:
            position = columns.index("name")
            cells[position] = "  " * (depth - 1) + "└─" + cells[position]
        rows.append(cells)
    if args.raw_list or args.raw_data:
        sys.stdout.write(raw(rows))
    else:
        head = [column.upper().replace("_", "-") for column in columns]
        sys.stdout.write(table([head, *rows], _painter(columns)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(PROG, "List qubes.")
    parser.many_qubes()
    show = parser.add_argument_group("what to show")
    kind = show.add_mutually_exclusive_group()
    kind.add_argument("-o", "--format", choices=[*FORMATS, "json"], help="a set of columns; json for programs")
    kind.add_argument("-O", "--fields", metavar="FIELD,...", help="columns, by name")
    kind.add_argument("-n", "--network", action="store_true", help="the same as --format network")
    kind.add_argument("-k", "--kernel", action="store_true", help="the same as --format kernel")
    kind.add_argument("-d", "--disk", action="store_true", help="the same as --format disk")
    kind.add_argument("--raw-list", action="store_true", help="names only, one a line")
    json_output.option(show)
    show.add_argument("--raw-data", action="store_true", help="no header, '|' between columns")
    show.add_argument("-t", "--tree", action="store_true", help="below the qube that each gets its network from")
    show.add_argument("--help-formats", action="store_true", help="list the formats and exit")
    show.add_argument("--help-columns", action="store_true", help="list the columns and exit")
    show.add_argument("--spinner", action="store_true", help=argparse.SUPPRESS)
    show.add_argument("--no-spinner", action="store_true", help=argparse.SUPPRESS)
    which = parser.add_argument_group("which qubes")
    which.add_argument("--class", dest="klass", nargs="+", metavar="CLASS", help="of these classes")
    which.add_argument("--label", nargs="+", metavar="LABEL", help="with these labels")
    which.add_argument("--tags", nargs="+", metavar="TAG", help="with any of these tags")
    which.add_argument("--exclude-tags", nargs="+", metavar="TAG", help="with none of these tags")
    which.add_argument("--running", action="store_true", help="that run")
    which.add_argument("--paused", action="store_true", help="that are paused")
    which.add_argument("--halted", action="store_true", help="that are halted")
    which.add_argument("--template-source", nargs="+", metavar="TEMPLATE", help="based on these templates")
    which.add_argument("--netvm-is", nargs="+", metavar="NETVM", help="with these net qubes")
    which.add_argument("--internal", choices=["y", "yes", "n", "no"], help="that are internal, or not")
    which.add_argument("--servicevm", choices=["y", "yes", "n", "no"], help="that serve others, or not")
    which.add_argument("--pending-update", action="store_true", help="for which there are updates")
    which.add_argument("--features", nargs="+", default=[], metavar="FEATURE=VALUE", help="with these features")
    which.add_argument("--prefs", nargs="+", default=[], metavar="PROPERTY=VALUE", help="with these properties")
    order = parser.add_argument_group("order")
    order.add_argument("--sort", metavar="COLUMN", help="by this column (default: name)")
    order.add_argument("--reverse", action="store_true", help="backwards")
    order.add_argument("--ignore-case", action="store_true", help="upper and lower case are the same")
    return tool.run(parser, _body, argv)
