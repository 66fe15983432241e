"""``--json``: the option of tools that list things, and how they write it; what it has is declared in json_schemas."""

from __future__ import annotations

import argparse
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.wire.admin import PropertyValue


def option(*parsers: argparse._ActionsContainer) -> None:
    """Give these parsers, a tool's own and those of its commands, ``--json``; ``args.format`` is then ``json``.

    The option has no default, because that of a command would take back what was said before the command. A tool
    without ``--format`` sets the default of ``format`` itself; ``wanted`` does not need one.
    """
    for parser in parsers:
        parser.add_argument("--json", dest="format", action="store_const", const="json", default=argparse.SUPPRESS,
                            help="as JSON")  # fmt: skip


def wanted(args: argparse.Namespace) -> bool:
    """Whether JSON was asked for."""
    return getattr(args, "format", None) == "json"


def write(data: object) -> int:
    """Write a value to standard output, indented, with all but ASCII escaped; the exit status 0."""
    import json  # here: most uses of a tool do not need it

    sys.stdout.write(json.dumps(data, indent=2) + "\n")
    return 0


def typed(value: PropertyValue) -> str | int | bool | None:
    """A property as JSON has it: numbers and truth values as such, null for no qube and no number."""
    if value.tag == "bool":
        return value.text == "True" if value.text else None
    if value.tag == "int":
        return int(value.text) if value.text else None
    return None if value.tag in ("vm", "label") and not value.text else value.text
