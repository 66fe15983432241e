"""qvm-template: the templates that are here, and those that this host can build.

Where upstream's downloads packages made for its own hypervisor, templates here are built from the distribution's own
packages; the commands and their words are the same as far as that makes sense.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, FeatureNotFoundError, NotImplementedHereError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.wire.recipe import Recipe

PROG = "qvm-template"
_MISSING = ("download", "upgrade", "downgrade", "reinstall", "migrate", "repolist", "clean", "search")


def _buildable() -> dict[str, Recipe]:
    """The templates that can be built here by their names, and their recipes."""
    from casemate.wire.recipe import KINDS, RELEASES, Recipe  # imports more than the other commands need

    recipes = [Recipe(suite, kind) for suite in RELEASES for kind in KINDS]
    return {recipe.default_name: recipe for recipe in recipes}


def _installed(qubes: Qubes) -> list[str]:
    return [qube.name for qube in qubes.listed() if qube.klass == "TemplateVM"]


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    here = _installed(qubes)
    available = [name for name in _buildable() if name not in here]
    wanted = set(args.TEMPLATE)
    both = not args.installed and not args.available
    rows = [
        (state, name)
        for state, names, asked in (("installed", here, args.installed), ("available", available, args.available))
        if asked or both
        for name in names
        if not wanted or name in wanted
    ]
    if args.machine_readable:
        sys.stdout.write("".join(f"{kind}|{name}\n" for kind, name in rows))
    else:
        sys.stdout.write(table([["STATE", "TEMPLATE"], *([kind, name] for kind, name in rows)]))
    return 0 if rows or not wanted else 1


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    for name in args.TEMPLATE or _installed(qubes):
        rows = [["Name", name]]
        for key, feature in (
            ("System", "os-distribution"),
            ("First program", "init"),
            ("Updates", "updates-available"),
        ):
            try:
                rows.append([key, qubes.call("admin.vm.feature.Get", feature, name) or "-"])
            except FeatureNotFoundError:
                rows.append([key, "-"])
        volume = qubes.volume(name, "root")
        rows += [["Root volume", f"{int(volume['size']) >> 20} MiB, {int(volume['usage']) >> 20} MiB used"],
                 ["Used by", ", ".join(_users(qubes, [name])) or "-"]]  # fmt: skip
        sys.stdout.write(table(rows) + "\n")
    return 0


def _install(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli import template

    recipes = _buildable()
    for name in args.TEMPLATE:
        if name not in recipes:
            raise tool.UsageError(f"{name} cannot be built here; there are {', '.join(recipes)}")
    for name in args.TEMPLATE:
        status = template.install(qubes, recipes[name], name)
        if status:
            return status
    return 0


def _users(qubes: Qubes, names: Sequence[str]) -> list[str]:
    found = qubes.inventory(["template"])
    return [e["name"] for e in found if e.get("properties", {}).get("template", {}).get("value") in names]


def _remove(args: argparse.Namespace, qubes: Qubes) -> int:
    here = _installed(qubes)
    for name in args.TEMPLATE:
        if name not in here:
            raise tool.UsageError(f"{name} is no template that is here")
    doomed = [*(_users(qubes, args.TEMPLATE) if args.command == "purge" else ()), *args.TEMPLATE]
    if not args.yes:
        sys.stdout.write(f"These will be removed with everything in them: {', '.join(doomed)}\nAre you sure? [y/N] ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            sys.stderr.write("Nothing was removed.\n")
            return 1
    return tool.each(PROG, doomed, qubes.remove)


def _missing(args: argparse.Namespace, _qubes: Qubes) -> int:
    raise NotImplementedHereError(f"{args.command}: templates are built here, not downloaded (qvm-template install)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when nothing was found or done."""
    parser = tool.Parser(PROG, "List, build and remove templates.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True,
                                     parser_class=tool.Subparser)  # fmt: skip
    show = commands.add_parser("list", help="list templates that are here and that can be built")
    show.add_argument("TEMPLATE", nargs="*")
    show.add_argument("--installed", action="store_true", help="only those that are here")
    show.add_argument("--available", action="store_true", help="only those that can be built")
    show.add_argument("--machine-readable", action="store_true", help="STATE|TEMPLATE lines")
    show.set_defaults(action=_list)
    info = commands.add_parser("info", help="what is known of templates that are here")
    info.add_argument("TEMPLATE", nargs="*")
    info.set_defaults(action=_info)
    install = commands.add_parser("install", help="build a template")
    install.add_argument("TEMPLATE", nargs="+")
    install.set_defaults(action=_install)
    for verb, text in (("remove", "remove templates that no qube uses"), ("purge", "and the qubes that use them")):
        one = commands.add_parser(verb, help=text)
        one.add_argument("TEMPLATE", nargs="+")
        one.add_argument("--yes", action="store_true", help="do not ask")
        one.set_defaults(action=_remove)
    for verb in _MISSING:
        other = commands.add_parser(verb, help="not here: templates are built")
        other.add_argument("TEMPLATE", nargs="*")
        other.set_defaults(action=_missing)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        if ADMIN in getattr(args, "TEMPLATE", ()):
            raise CasemateError(f"{ADMIN} is no template")
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)
