"""``casemate template``: build templates from recipes, build them anew for updates, list what they are made of."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from casemate.cli import json_output, tool
from casemate.cli.progress import Waiting
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.settings import load
from casemate.wire import os_release
from casemate.wire.errors import CasemateError, RecipeNotFoundError, ValueInvalidError, printable
from casemate.wire.recipe import KINDS, MAX_BYTES, RELEASES, STABLE, Recipe, decode, from_fields

_INSTALL = "admin.casemate.template.Install"
_REBUILD = "admin.casemate.template.Rebuild"
_RECIPE = "admin.casemate.template.Recipe"


def default_suite(path: Path = Path("/etc/os-release")) -> str:
    """The suite that templates come from where nobody names one: the host's own if it is Debian, else Debian stable."""
    try:
        fields = os_release.parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return STABLE
    suite = fields.get("VERSION_CODENAME", "")
    return suite if fields.get("ID") == "debian" and suite in RELEASES else STABLE


def read_recipe(path: Path) -> dict[str, Any]:
    """The fields of a recipe file, the content of its files read in; ValueInvalidError names what is wrong."""
    import base64
    import tomllib

    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueInvalidError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueInvalidError(f"{path}: {error}") from None
    files = fields.get("files", [])
    for file in files if isinstance(files, list) else []:
        if not isinstance(file, dict) or ("text" in file) == ("source" in file):
            raise ValueInvalidError(f'{path}: each of its files needs either text = "…" or source = "FILE"')
        if "source" in file:
            # Relative to the recipe, so that both can be kept in one directory.
            source = path.parent / str(file.pop("source"))
            try:
                with open(source, "rb") as opened:
                    data = opened.read(MAX_BYTES + 1)
            except OSError as error:
                raise ValueInvalidError(f"{source}: {error.strerror}") from None
        else:
            data = str(file.pop("text")).encode()
        file["data"] = base64.b64encode(data).decode("ascii")
    return fields


def wanted_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that a command line means: the file's, with suite, kind and packages of the options over it."""
    fields = read_recipe(Path(args.recipe)) if args.recipe else {}
    fields["suite"] = args.suite or fields.get("suite") or default_suite()
    fields["kind"] = args.kind or fields.get("kind") or "lean"
    packages = [name for text in args.include for name in text.split(",") if name]
    if packages:
        fields["packages"] = [*fields.get("packages", []), *packages]
    return from_fields(fields)


def _recipe_of(qubes: Qubes, name: str) -> Recipe | None:
    """What a template was built from; None for one that was cloned or made in another way."""
    try:
        return decode(qubes.call(_RECIPE, "", name).encode())
    except RecipeNotFoundError:
        return None


def _prepare(recipe: Recipe, fresh: bool) -> int:
    """Build image and kernel into the cache: a program of its own, which shows its progress."""
    argv = [sys.executable, "-P", "-m", "casemate.host.prepare", *(["--fresh"] if fresh else [])]
    environment = {**os.environ, **load().environment()}
    return subprocess.run(argv, env=environment, input=recipe.encode(), check=False).returncode


def install(qubes: Qubes, recipe: Recipe, name: str) -> int:
    """Build a template, unless there is one of that name; an exit status."""
    klass = {qube.name: qube.klass for qube in qubes.listed()}.get(name)
    if klass is not None:
        if klass != "TemplateVM":
            raise CasemateError(f"There is a qube {name} that is no template: choose another --name")
        # One without a recipe counts as the plain build: it may be older than recipes are.
        if (_recipe_of(qubes, name) or Recipe(recipe.suite, recipe.kind)) != recipe:
            raise CasemateError(f"There is a template {name} with another recipe: choose another --name")
        print(f"Template {name} is there already")
        return 0
    status = _prepare(recipe, fresh=False)
    if status != 0:
        return status
    with Waiting(f"making template {name}"):
        qubes.call(_INSTALL, name, payload=recipe.encode())
    print(f"Template {name} is ready")
    return 0


def _build(args: argparse.Namespace, qubes: Qubes) -> int:
    recipe = wanted_recipe(args)
    return install(qubes, recipe, args.name or recipe.default_name)


def _rebuild(args: argparse.Namespace, qubes: Qubes) -> int:
    for name in args.TEMPLATE:
        recipe = decode(qubes.call(_RECIPE, "", name).encode())
        status = _prepare(recipe, fresh=True)
        if status != 0:
            return status
        with Waiting(f"putting the new image into {name}"):
            qubes.call(_REBUILD, "", name)
        print(f"Template {name} is new; what it was is its newest revision: qvm-volume revert {name}:root")
    return 0


def _age(built: str) -> str:
    """How long ago ``YYYY-MM-DD HH:MM:SS`` (UTC) was, in days."""
    import calendar

    try:
        then = calendar.timegm(time.strptime(built, "%Y-%m-%d %H:%M:%S"))
    except ValueError:
        return "-"
    days = int(time.time() - then) // 86400
    return "today" if days <= 0 else "1 day" if days == 1 else f"{days} days"


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    rows = [["NAME", "SUITE", "KIND", "AGE", "SIZE", "KERNEL", "EXTRAS"]]
    facts = []
    for entry in qubes.inventory(["kernel"], None):
        if entry["class"] != "TemplateVM":
            continue
        name, features = str(entry["name"]), entry.get("features", {})
        recipe = _recipe_of(qubes, name)
        suite, kind, extras = "-", "-", "-"
        if recipe is not None:
            suite, kind = recipe.suite, recipe.kind
            extras = ",".join(recipe.packages) or ("yes" if recipe.extras else "-")
        usage = int(qubes.volume(name, "root").get("usage", "0"))
        used, built = usage >> 20, str(features.get("template-buildtime", ""))
        age = _age(built)
        kernel = str(entry["properties"]["kernel"]["value"]) or "-"
        facts.append({
            "name": name, "suite": recipe.suite if recipe else None, "kind": recipe.kind if recipe else None,
            "built": built or None, "usage": usage, "kernel": None if kernel == "-" else kernel,
            "packages": list(recipe.packages) if recipe else [], "extras": bool(recipe and recipe.extras),
        })  # fmt: skip
        rows.append([name, suite, kind, age, f"{used} MiB", kernel, printable(extras, 40)])
    if json_output.wanted(args):
        return json_output.write(facts)
    print(table(rows), end="")
    return 0


def add_to(commands: Any) -> None:
    """Add the command and its parts to the parser of ``casemate``."""
    template = commands.add_parser("template", help="build templates, build them anew, list them").add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser
    )
    build = template.add_parser("build", help="build a Debian template, from the cache if it was built before")
    build.add_argument("--suite", choices=tuple(RELEASES), help="Debian release (default: the host's, else stable)")
    build.add_argument("--kind", choices=KINDS, help="what is process 1 in it (default: lean)")
    build.add_argument("--name", help="name of the template (default: after what it is, such as debian-13)")
    build.add_argument("--include", action="append", default=[], metavar="PACKAGE,…", help="further Debian packages")
    build.add_argument("--recipe", metavar="FILE.toml", help="packages, files and commands, read from a file")
    build.set_defaults(body=_build)
    rebuild = template.add_parser("rebuild", help="build a template anew with today's packages, keeping its revisions")
    rebuild.add_argument(
        "TEMPLATE", nargs="+", help="name of a halted template; what was changed in it by hand is lost"
    )
    rebuild.set_defaults(body=_rebuild)
    show = template.add_parser("list", help="show suite, age, size and kernel of every template")
    json_output.option(show)
    show.set_defaults(body=_list)
