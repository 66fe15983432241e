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
from casemate.wire.errors import CasemateError, NotImplementedHereError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.wire.recipe import Recipe

PROG = "qvm-template"
_MISSING = ("download", "upgrade", "downgrade", "reinstall", "clean", "repolist", "migrate-from-rpmdb")
"""Commands of upstream's tool about packages of templates, of which there are none here."""
REPOSITORY = "casemate"
"""What stands in the column of repositories: this host builds its templates itself."""
_NO_DOWNLOAD = "templates are built from the distribution's own packages, nothing is downloaded ready-made"
_TITLES = {"installed": "Installed Templates", "available": "Available Templates", "extra": "Extra Templates"}
"""Headings of lists by the state of the templates under them, as upstream's tool writes them."""
_FACTS = ("name", "epoch", "version", "release", "reponame", "size", "buildtime", "installtime", "license", "url",
          "summary", "description")  # fmt: skip
"""What ``info --machine-readable`` tells of a template, in its order; features ``template-*`` but for the size."""


def _buildable() -> dict[str, Recipe]:
    """The templates that can be built here by their names, and their recipes."""
    from casemate.wire.recipe import KINDS, RELEASES, Recipe  # imports more than the other commands need

    recipes = [Recipe(suite, kind) for suite in RELEASES for kind in KINDS]
    return {recipe.default_name: recipe for recipe in recipes}


def _installed(qubes: Qubes) -> list[str]:
    return [qube.name for qube in qubes.listed() if qube.klass == "TemplateVM"]


_UNKNOWN = {**dict.fromkeys(_FACTS, ""), "epoch": "0", "release": "0", "reponame": REPOSITORY, "size": "0",
            "buildtime": "1970-01-01 00:00:00"}  # fmt: skip
"""Stands for what is not known. Upstream's Template Manager reads numbers and dates, and fails at empty ones."""


def _facts(qubes: Qubes, name: str) -> dict[str, str]:
    """_FACTS of a template that is here, those of _UNKNOWN where nothing was noted at its creation."""
    features = qubes.features(name)
    found = {fact: features.get(f"template-{fact}") or _UNKNOWN[fact] for fact in _FACTS}
    return {**found, "name": name, "size": qubes.volume(name, "root")["usage"]}


def _facts_of_new(name: str, recipe: Recipe) -> dict[str, str]:
    """_FACTS of a template that can be built."""
    from casemate.wire.recipe import RELEASES

    return {
        **_UNKNOWN,
        "name": name,
        "version": RELEASES[recipe.suite],
        "summary": f"Debian {recipe.suite}, {recipe.kind}",
        "description": "Can be built on this host: qvm-template install",
    }


def _version(facts: dict[str, str]) -> str:
    """EPOCH:VERSION-RELEASE of a template, ``-`` where it is not known."""
    return f"{facts['epoch']}:{facts['version']}-{facts['release']}" if facts.get("version") else "-"


def _chosen(args: argparse.Namespace, qubes: Qubes) -> list[tuple[str, str]]:
    """State and name of the templates that a list shows; NotFoundError where there are none.

    A template that is here and cannot be built (any more) is ``extra``.
    """
    if not (args.installed or args.available or args.extras):
        args.all = True
    here, buildable = _installed(qubes), _buildable()
    lists = {
        "installed": here if args.all or args.installed else [],
        "available": [name for name in buildable if name not in here] if args.all or args.available else [],
        "extra": [name for name in here if name not in buildable] if args.extras else [],
    }
    from fnmatch import fnmatchcase

    found = [
        (state, name)
        for state, names in lists.items()
        for name in names
        if not args.TEMPLATE or any(fnmatchcase(name, pattern) for pattern in args.TEMPLATE)
    ]
    if not found:
        raise tool.UsageError("No matching templates to list")
    return found


def _show(args: argparse.Namespace, rows: list[tuple[str, dict[str, str]]]) -> bool:
    """Write rows for programs, where that was asked for: lines with ``|`` between the cells, or JSON."""
    if args.machine_readable:
        lines = ("|".join([state, *row.values()]).replace("\n", " ") for state, row in rows)
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    elif args.machine_readable_json:
        import json

        by_state: dict[str, list[dict[str, str]]] = {}
        for state, row in rows:
            by_state.setdefault(state, []).append(row)
        sys.stdout.write(json.dumps(by_state) + "\n")
    return bool(args.machine_readable or args.machine_readable_json)


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    rows = []
    for state, name in _chosen(args, qubes):
        facts = _facts(qubes, name) if state != "available" else {}
        rows.append((state, {"name": name, "evr": _version(facts), "reponame": REPOSITORY}))
    if not _show(args, rows):
        for state, title in _TITLES.items():
            cells = [list(row.values()) for which, row in rows if which == state]
            sys.stdout.write(f"{title}\n{table(cells)}" if cells else "")
    return 0


def _info(args: argparse.Namespace, qubes: Qubes) -> int:
    rows = []
    buildable = _buildable()
    for state, name in _chosen(args, qubes):
        facts = _facts_of_new(name, buildable[name]) if state == "available" else _facts(qubes, name)
        rows.append((state, facts))
    if _show(args, rows):
        return 0
    for state, facts in rows:
        facts = {**facts, "size": f"{int(facts['size']) / (1 << 20):.1f} MiB"}
        lines = [[key, ":", facts[fact]] for key, fact in (
            ("Name", "name"), ("Epoch", "epoch"), ("Version", "version"), ("Release", "release"), ("Size", "size"),
            ("Repository", "reponame"), ("Buildtime", "buildtime"), ("Install time", "installtime"), ("URL", "url"),
            ("License", "license"), ("Summary", "summary"), ("Description", "description"),
        )]  # fmt: skip
        if state != "available":
            lines.append(["Used by", ":", ", ".join(_users(qubes, [facts["name"]])) or "-"])
        sys.stdout.write(f"{_TITLES[state]}\n{table(lines)}\n")
    return 0


def _search(args: argparse.Namespace, qubes: Qubes) -> int:
    """Templates, here or to be built, whose name or summary has all the words (with --all: any of them)."""
    texts = {name: f"{name} {recipe.suite} {recipe.kind}" for name, recipe in _buildable().items()}
    for name in _installed(qubes):
        facts = _facts(qubes, name)
        texts[name] = f"{name} {facts['summary']}" + (f" {facts['description']}" if args.all else "")
    fits = any if args.all else all
    found = [name for name, words in texts.items() if fits(word.lower() in words.lower() for word in args.TEMPLATE)]
    sys.stdout.write(table([[name, ":", texts[name].partition(" ")[2]] for name in sorted(found)]))
    return 0 if found else 1


def _install(args: argparse.Namespace, qubes: Qubes) -> int:
    from casemate.cli import template

    recipes = _buildable()
    if args.pool:
        raise NotImplementedHereError("--pool: a template's volumes lie in the default pool (qubes-prefs default_pool)")
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
    if args.disassoc:
        raise NotImplementedHereError("--disassoc: give those qubes another template first (qvm-prefs QUBE template)")
    for name in args.TEMPLATE:
        if name not in here:
            raise tool.UsageError(f"{name} is no template that is here")
    doomed = [*(_users(qubes, args.TEMPLATE) if args.command == "purge" else ()), *args.TEMPLATE]
    if not args.yes:
        sys.stdout.write(f"These will be removed with everything in them: {', '.join(doomed)}\n")
        if not tool.confirmed("Are you sure?", "Nothing was removed.\n"):
            return 1
    return tool.each(PROG, doomed, qubes.remove)


def _missing(args: argparse.Namespace, _qubes: Qubes) -> int:
    raise NotImplementedHereError(f"{args.command}: templates are built here, not downloaded (qvm-template install)")


def _package_options(parser: argparse.ArgumentParser) -> None:
    """Options about packages that upstream's tool downloads; they do nothing here."""
    for option in ("--downloaddir", "--retries"):
        parser.add_argument(option, action=tool.Ignored, nargs=1, why=_NO_DOWNLOAD)
    for option in ("--nogpgcheck", "--allow-pv", "--skip-start"):
        parser.add_argument(option, action=tool.Ignored, why=_NO_DOWNLOAD)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; 1 when nothing was found or done."""
    parser = tool.Parser(PROG, "List, build and remove templates.")
    for option in ("--repo-files", "--keyring", "--updatevm", "--enablerepo", "--disablerepo", "--repoid",
                   "--releasever", "--cachedir"):  # fmt: skip
        parser.add_argument(option, action=tool.Ignored, nargs=1, why=_NO_DOWNLOAD)
    for option in ("--refresh", "--keep-cache"):
        parser.add_argument(option, action=tool.Ignored, why=_NO_DOWNLOAD)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    commands = parser.add_subparsers(title="commands", dest="command", required=True,
                                     parser_class=tool.Subparser)  # fmt: skip
    for verb, text, action in (("list", "list templates that are here and that can be built", _list),
                               ("info", "what is known of these templates", _info)):  # fmt: skip
        show = commands.add_parser(verb, help=text)
        show.add_argument("TEMPLATE", nargs="*", help="only these; patterns too")
        show.add_argument("--all", action="store_true", help="all (this is the default)")
        show.add_argument("--installed", action="store_true", help="only those that are here")
        show.add_argument("--available", action="store_true", help="only those that can be built")
        show.add_argument("--extras", action="store_true", help="only those that are here and cannot be built")
        for option in ("--upgrades", "--all-versions"):
            show.add_argument(option, action=tool.Ignored, why="a template is rebuilt, there are no versions to choose")
        readable = show.add_mutually_exclusive_group()
        readable.add_argument("--machine-readable", action="store_true", help="lines with | between the fields")
        readable.add_argument("--machine-readable-json", "--json", action="store_true", help="the same as JSON")
        show.set_defaults(action=action)
    search = commands.add_parser("search", help="find templates by words")
    search.add_argument("TEMPLATE", nargs="+", metavar="WORD")
    search.add_argument("--all", action="store_true", help="any word is enough, in descriptions too")
    search.set_defaults(action=_search)
    install = commands.add_parser("install", help="build a template")
    install.add_argument("TEMPLATE", nargs="+")
    install.add_argument("--pool", help=argparse.SUPPRESS)
    _package_options(install)
    install.set_defaults(action=_install)
    for verb, text in (("remove", "remove templates that no qube uses"), ("purge", "and the qubes that use them")):
        one = commands.add_parser(verb, help=text)
        one.add_argument("TEMPLATE", nargs="+")
        one.add_argument("--yes", action="store_true", default=argparse.SUPPRESS, help="do not ask")
        if verb == "remove":
            one.add_argument("--disassoc", action="store_true", help=argparse.SUPPRESS)
        one.set_defaults(action=_remove, disassoc=False)
    for verb in _MISSING:
        other = commands.add_parser(verb, help="not here: templates are built")
        other.add_argument("TEMPLATE", nargs="*")
        if verb == "repolist":
            for option in ("--all", "--enabled", "--disabled"):
                other.add_argument(option, action=tool.Ignored, why=_NO_DOWNLOAD)
        else:
            _package_options(other)
        other.set_defaults(action=_missing)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        if ADMIN in getattr(args, "TEMPLATE", ()):
            raise CasemateError(f"{ADMIN} is no template")
        status: int = args.action(args, qubes)
        return status

    return tool.run(parser, body, argv)
