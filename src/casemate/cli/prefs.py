"""What qvm-prefs and qubes-prefs have in common: show, get, set and reset properties of a holder."""

from __future__ import annotations

import argparse
import sys

from casemate.cli import json_output
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
    json_output.option(parser)
    parser.add_argument("-g", "--get", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-s", "--set", action="store_true", help=argparse.SUPPRESS)


def run(args: argparse.Namespace, qubes: Qubes, dest: str | None, parser: argparse.ArgumentParser) -> int:
    """Do what the arguments say, to a qube or (None) the system."""
    if args.help_properties:
        names = qubes.property_names(dest)
        sys.stdout.write(table([[name, qubes.help(dest, name)] for name in names]))
        return 0
    if args.property is None:
        if args.default:
            parser.error("--default needs the name of a property")
        values = qubes.properties(dest)
        if json_output.wanted(args):
            found = sorted(values.items())
            return json_output.write({key: _fact(one) for key, one in found if not (args.hide_default and one.default)})
        sys.stdout.write(listing(values, args.hide_default))
        return 0
    args.property = args.property.replace("-", "_")  # virt-mode is read as virt_mode: columns of qvm-ls have the dash
    if args.default:
        if args.value is not None:
            parser.error("give a value or --default, not both")
        qubes.reset(dest, args.property)
    elif args.value is not None:
        value = args.value
        if value.lower() == "none" and qubes.get(dest, args.property).tag == "vm":
            value = ""  # no qube can be called that; upstream's tools take the word, and people write it
        qubes.set(dest, args.property, value)
    else:
        one = qubes.get(dest, args.property)
        if json_output.wanted(args):
            return json_output.write(_fact(one))
        # Empty text is a value and gets its line; no qube, no label and no number are none, and get nothing.
        if not (args.hide_default and one.default) and (one.text or one.tag == "str"):
            sys.stdout.write(f"{one.text}\n")
    return 0


def _fact(value: PropertyValue) -> dict[str, object]:
    """A property as JSON."""
    return {"value": json_output.typed(value), "type": value.tag, "default": bool(value.default)}


def listing(values: dict[str, PropertyValue], hide_default: bool) -> str:
    """A line for each property: name, mark (``D`` default, ``-`` set, ``U`` without a value) and value."""
    width = max(map(len, values), default=0)
    lines = []
    for name, value in sorted(values.items()):
        if not value.text and value.tag in ("int", "bool"):
            lines.append(f"{name:{width}}  U\n")
        elif not (value.default and hide_default):
            text = "None" if not value.text and value.tag in ("vm", "label") else value.text
            lines.append(f"{name:{width}}  {'D' if value.default else '-'}  {text}\n")
    return "".join(lines)
