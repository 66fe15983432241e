"""qvm-firewall: show and change the firewall rules of a qube."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from casemate.cli import json_output, tool
from casemate.cli.table import table
from casemate.client.qubes import Qubes
from casemate.wire.firewall import ALLOW_ALL, KEYS, Rule, format_rules, parse_rules, rule_of

PROG = "qvm-firewall"
_HEAD = ["NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL TARGET", "ICMP TYPE", "EXPIRE", "COMMENT"]


def _rules(qubes: Qubes, name: str) -> list[Rule]:
    return parse_rules(qubes.call("admin.vm.firewall.Get", "", name))


def _store(qubes: Qubes, name: str, rules: list[Rule]) -> None:
    qubes.call("admin.vm.firewall.Set", "", name, format_rules(rules))


_ORDER = ("action", "dsthost", "proto", "dstports", "icmptype")
"""What parts without a name are, each once; a protocol takes away the last or the last but one."""


def read(words: Sequence[str]) -> Rule:
    """A rule as a person writes it: ``accept example.com tcp 443``, ``action=accept dsthost=example.com``, or a mix.

    A part without a name is the next of _ORDER that was not given yet. ``dsthost`` may be an address or a network,
    ``dst4`` and ``dst6`` any of these, ``expire=+N`` is in N seconds, ``dstports=N`` is one port. UsageError for what
    is no part of a rule, ValueInvalidError for a value that a part cannot have.
    """
    parts: list[tuple[str, str]] = []
    left = list(_ORDER)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            if not left:
                raise tool.UsageError(f"a rule has no further part for {word!r}")
            key, text = left[0], word
        if key not in KEYS:
            raise tool.UsageError(f"not understood: {word!r}; a rule has {', '.join(KEYS)}")
        if not text:
            raise tool.UsageError(f"{key}= needs a value")
        key = _family(text) if key in ("dsthost", "dst4", "dst6") else key
        taken = ["dsthost" if key in ("dst4", "dst6") else key]
        if key == "proto":  # then the other kind of number is not looked for
            taken.append("dstports" if text == "icmp" else "icmptype")
        left = [name for name in left if name not in taken]
        if key == "expire" and text.startswith("+") and text[1:].isdecimal():
            text = str(int(time.time()) + int(text[1:]))
        parts.append((key, text))
    return rule_of(parts)


def _family(text: str) -> str:
    """Whether a host is written as an IPv4 or IPv6 address or network, or by its name."""
    if text[:1].isdigit() and not text.strip("0123456789./"):
        return "dst4"
    return "dst6" if ":" in text else "dsthost"


def _row(number: int, rule: Rule) -> list[str]:
    host = rule.get("dsthost") or rule.get("dst4") or rule.get("dst6") or "-"
    first, _, last = rule.get("dstports", "").partition("-")
    ports = first if first == last else f"{first}-{last}"
    cells = [
        rule["action"], host, rule.get("proto", "-"), ports or "-", rule.get("specialtarget", "-"),
        rule.get("icmptype", "-"), _left(rule["expire"]) if "expire" in rule else "-", rule.get("comment", "-"),
    ]  # fmt: skip
    return [str(number), *cells]


def _left(expire: str) -> str:
    """How long a rule still holds, in seconds (``+300s``), or since when it does not (``-5s``)."""
    return f"{int(expire) - time.time():+.0f}s"


def _list(args: argparse.Namespace, qubes: Qubes) -> int:
    rules = _rules(qubes, args.VMNAME)
    if json_output.wanted(args):
        return json_output.write(rules)
    if args.raw:
        sys.stdout.write(format_rules(rules))
    else:
        sys.stdout.write(table([_HEAD, *(_row(number, rule) for number, rule in enumerate(rules))]))
    return 0


def _number(text: str, rules: list[Rule]) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < len(rules)):
        raise tool.UsageError(f"there is no rule number {text}")
    return int(text)


def _add(args: argparse.Namespace, qubes: Qubes) -> int:
    rules, rule = _rules(qubes, args.VMNAME), read(args.rule)
    at = len(rules) if args.before is None else _number(args.before, rules)
    _store(qubes, args.VMNAME, [*rules[:at], rule, *rules[at:]])
    return 0


def _delete(args: argparse.Namespace, qubes: Qubes) -> int:
    rules = _rules(qubes, args.VMNAME)
    if (args.rule_no is None) == (not args.rule):
        raise tool.UsageError("give the rule, or --rule-no and its number")
    if args.rule_no is not None:
        at = _number(args.rule_no, rules)
    else:
        wanted = read(args.rule)
        if wanted not in rules:
            raise tool.UsageError("there is no such rule")
        at = rules.index(wanted)
    _store(qubes, args.VMNAME, [*rules[:at], *rules[at + 1 :]])
    return 0


def _reset(args: argparse.Namespace, qubes: Qubes) -> int:
    _store(qubes, args.VMNAME, [dict(ALLOW_ALL)])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = tool.Parser(
        PROG,
        "Show and change the firewall rules of a qube. The first rule that fits counts; what none fits is dropped.",
        "A rule: ACTION [HOST [PROTOCOL [PORTS or ICMPTYPE]]], or the same by name: action=accept|drop, dsthost=, "
        "proto=tcp|udp|icmp, dstports=A-B, icmptype=, specialtarget=dns, expire=EPOCH or +SECONDS, comment=.",
    )
    parser.one_qube()
    parser.add_argument("-r", "--reload", action="store_true", help="apply the rules again, also when nothing changed")
    parser.add_argument("--raw", action="store_true", help="list the rules as the daemon writes them")
    parser.add_argument("--format", choices=["table", "json"], default="table", help="how to list the rules")
    commands = parser.add_subparsers(title="commands", dest="command", parser_class=tool.Subparser)
    show = commands.add_parser("list", aliases=["ls", "l"], help="list the rules (this is the default)")
    show.set_defaults(action=_list)
    json_output.option(parser, show)
    add = commands.add_parser("add", aliases=["a"], help="add a rule at the end, or before another")
    add.add_argument("--before", metavar="NUMBER", help="put it before that rule")
    add.add_argument("rule", nargs="+", metavar="PART", help="parts of the rule")
    add.set_defaults(action=_add)
    delete = commands.add_parser("del", aliases=["remove", "d"], help="remove a rule")
    delete.add_argument("--rule-no", metavar="NUMBER", help="the one with that number")
    delete.add_argument("rule", nargs="*", metavar="PART", help="parts of the rule")
    delete.set_defaults(action=_delete)
    commands.add_parser("reset", help="let everything through again").set_defaults(action=_reset)
    parser.set_defaults(action=_list)

    def body(args: argparse.Namespace, qubes: Qubes) -> int:
        status: int = args.action(args, qubes)
        if args.reload:
            qubes.call("admin.vm.firewall.Reload", "", args.VMNAME)
        return status

    return tool.run(parser, body, argv)
