"""What qvm-prefs and qubes-prefs have in common: show, get, set and reset properties of a holder."""

from __future__ import annotations

import argparse
import sys

from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.admin import PropertyValue


def arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that come after the name of the holder, if it has one."""
    parser.add_argument("property", nargs="?", metavar="PROPERTY", help="name of a property")
    parser.add_argument("value", nargs="?", metavar="VALUE", help="its new value; empty for none")
    parser.add_argument("-D", "--default", "--delete", "--unset", action="store_true", help="give it its default again")
    parser.add_argument("--help-properties", action="store_true", help="show what each property is for, and exit")
    parser.add_argument("--hide-default", action="store_true", help="leave out properties that have their default")
    parser.add_argument("-g", "--get", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-s", "--set", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, qubes: Qubes, dest: str | None, parser: argparse.ArgumentParser) -> int:
    """Do what the arguments say, to a qube or (None) the system."""
    if args.help_properties:
        names = qubes.property_names(dest)
        sys.stdout.write(table([[name, qubes.help(dest, name)] for name in names]))
    elif args.property is None:
        if args.default:
            parser.error("--default needs the name of a property")
        sys.stdout.write(table(rows(qubes.properties(dest), args.hide_default)))
    elif args.default:
        if args.value is not None:
            parser.error("give a value or --default, not both")
        qubes.reset(dest, args.property)
    elif args.value is not None:
        value = args.value
        if value.lower() == "none" and qubes.get(dest, args.property).tag == "vm":
            value = ""  # no qube can be called that; upstream's tools take the word, and people write it
        qubes.set(dest, args.property, value)
    else:
        text = qubes.get(dest, args.property).text
        if text:
            sys.stdout.write(f"{text}\n")
    return 0


def rows(values: dict[str, PropertyValue], hide_default: bool) -> list[list[str]]:
    """Name, mark (``D`` default, ``-`` set, ``U`` without a value) and value of each property."""
    found = []
    for name, value in sorted(values.items()):
        if value.default and hide_default:
            continue
        if not value.text and value.tag in ("int", "bool"):
            found.append([name, "U", ""])
        else:
            text = "None" if not value.text and value.tag in ("vm", "label") else value.text
            found.append([name, "D" if value.default else "-", text])
    return found
