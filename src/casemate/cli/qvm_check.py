"""qvm-check: tell scripts whether qubes exist, run, are paused, are templates, or reach the network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PROG = "qvm-check"
SOME = 3


def _matches(args: argparse.Namespace, entry: dict[str, Any]) -> bool:
    if args.running and entry["state"] not in ("Running", "Transient", "Halting", "Paused", "Suspended"):
        return False
    if args.paused and entry["state"] != "Paused":
        return False
    if args.template and entry["class"] != "TemplateVM":
        return False
    return not args.networked or bool(entry.get("properties", {}).get("netvm", {}).get("value"))


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    found = {entry["name"]: entry for entry in qubes.inventory(["netvm"] if args.networked else ())}
    if args.exclude and not args.all:
        raise tool.UsageError("--exclude can only be used with --all")
    if not args.VMNAME and not args.all:
        raise tool.UsageError("Give the name of a qube, or --all")
    wanted = [name for name in found if name != ADMIN] if args.all else list(dict.fromkeys(args.VMNAME))
    wanted = [name for name in wanted if name not in args.exclude]
    conditions = [word for word in ("running", "paused", "template", "networked") if getattr(args, word)]
    existing = [name for name in wanted if name in found]
    matching = [name for name in existing if _matches(args, found[name])]
    if not args.quiet:
        # On standard error, in upstream's layout: the answer for scripts is the exit status, and some capture stdout.
        what = ", ".join(conditions or ["exists"])
        shown = [f"{name}: {what}" for name in sorted(matching)] or ([f"None of qubes: {what}"] if conditions else [])
        shown += [f"{name}: non-existent!" for name in wanted if name not in found]
        sys.stderr.write("".join(f"{PROG}: {line}\n" for line in shown))
    if len(existing) < len(wanted) or not matching:
        return 1
    return 0 if len(matching) == len(existing) else SOME


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool: 0 if all match, 3 if some do, 1 if none does or one does not exist."""
    parser = tool.Parser(PROG, "Tell by the exit status whether qubes exist and are in a state.")
    parser.many_qubes()
    parser.add_argument("--running", action="store_true", help="do they run?")
    parser.add_argument("--paused", action="store_true", help="are they paused?")
    parser.add_argument("--template", action="store_true", help="are they templates?")
    parser.add_argument("--networked", action="store_true", help="do they have a net qube?")
    return tool.run(parser, _body, argv)
