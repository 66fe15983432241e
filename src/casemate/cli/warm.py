"""``casemate warm``: the warm images, from which qubes go on instead of booting."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, printable
from casemate.wire.images import ListedImage, parse_lines


def add_to(commands: Any) -> None:
    """Add the command ``warm``."""
    warm = commands.add_parser("warm", help="list, make and drop warm images, from which qubes go on")
    verbs = warm.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=tool.Subparser)
    show = verbs.add_parser("list", help="the images that there are")
    json_output.option(show)
    show.set_defaults(body=_list)
    build = verbs.add_parser("build", help="make the image for a template of disposables, or for an app qube, now")
    build.add_argument("QUBE", nargs="?", help="which of both (default: the default disposable template)")
    build.set_defaults(body=_build)
    drop = verbs.add_parser("drop", help="remove images; a start that misses one has it made again")
    which = drop.add_mutually_exclusive_group(required=True)
    which.add_argument("KEY", nargs="?", help="as list shows it")
    which.add_argument("--all", action="store_true", help="all of them")
    drop.set_defaults(body=_drop)


def _images(qubes: Qubes) -> list[ListedImage]:
    return parse_lines(ListedImage, qubes.call("admin.casemate.warm.List"))


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    images = _images(qubes)
    if json_output.wanted(args):
        return json_output.write([asdict(image) for image in images])
    rows = [["KEY", "TEMPLATE", "MADE", "USED", "SIZE"]]
    for image in images:
        made, used = (time.strftime("%Y-%m-%d %H:%M", time.localtime(when)) for when in (image.made, image.used))
        rows.append([printable(image.key), printable(image.template), made, used, f"{image.bytes >> 20} MiB"])
    print(table(rows), end="")
    return 0


def _build(args: argparse.Namespace, qubes: Qubes) -> int:
    name = args.QUBE or qubes.get(None, "default_dispvm").text
    if not name:
        raise CasemateError("Name a disposable template: there is no default one (qubes-prefs default_dispvm)")
    print(f"Warm image {printable(qubes.call('admin.casemate.warm.Build', '', name))} of {name} is there")
    return 0


def _drop(args: argparse.Namespace, qubes: Qubes) -> int:
    for key in [image.key for image in _images(qubes)] if args.all else [args.KEY]:
        qubes.call("admin.casemate.warm.Drop", key)
    return 0
