"""Firewall rules as text, one a line: read strictly, written in one form. The same for daemon and tools."""

from __future__ import annotations

from casemate.wire import names
from casemate.wire.errors import ValueInvalidError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_RULES = 256
"""Limit of the Admin API: firewall rules of a qube."""
MAX_COMMENT = 64
MAX_EXPIRE = 2**40
_MAX_HOST = 253
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")

ACTIONS = ("accept", "drop")
PROTOCOLS = ("tcp", "udp", "icmp")
SPECIAL = ("dns",)
KEYS = ("action", "proto", "dst4", "dst6", "dsthost", "dstports", "icmptype", "specialtarget", "expire", "comment")
"""The parts of a rule in the order in which they are written."""

Rule = dict[str, str]
"""A rule: its parts by name, in the order of KEYS."""

ALLOW_ALL: Rule = {"action": "accept"}
"""The one rule of a qube that nobody gave any."""


def _refuse(what: str, text: str) -> ValueInvalidError:
    return ValueInvalidError(f"Firewall rule: invalid {what}: {printable(text, 80)!r}")


def _network(family: int, text: str) -> str:
    from ipaddress import IPv4Network, IPv6Network

    try:
        found = IPv4Network(text, strict=False) if family == 4 else IPv6Network(text, strict=False)
    except ValueError:
        raise _refuse(f"IPv{family} network", text) from None
    if "/" in text:
        names.number(text.partition("/")[2], "length of a prefix", 0, 32 if family == 4 else 128)
    if "%" in text:
        raise _refuse(f"IPv{family} network", text)
    return str(found)


def _host(text: str) -> str:
    """A name, or ``*.`` and a name of two labels or more, for all names below it."""
    labels = text.split(".")
    if labels[0] == "*" and len(labels) > 2:
        labels = labels[1:]
    if len(text) > _MAX_HOST or any(
        not 1 <= len(label) <= 63 or not set(label) <= _LABEL or label[0] == "-" or label[-1] == "-" for label in labels
    ):
        raise _refuse("host name", text)
    if labels[-1].isdigit():
        raise _refuse("host name (it looks like an address)", text)
    return text


def _ports(text: str) -> str:
    low, dash, high = text.partition("-")
    first = names.number(low, "port", 1, 65535)
    last = names.number(high, "port", 1, 65535) if dash else first
    if last < first:
        raise _refuse("range of ports", text)
    return f"{first}-{last}"


def _choice(what: str, text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise _refuse(f"{what} (one of {', '.join(choices)})", text)
    return text


def value(key: str, text: str) -> str:
    """One part of a rule in its one form; raises ValueInvalidError."""
    if key == "action":
        return _choice("action", text, ACTIONS)
    if key == "proto":
        return _choice("protocol", text, PROTOCOLS)
    if key == "dst4":
        return _network(4, text)
    if key == "dst6":
        return _network(6, text)
    if key == "dsthost":
        return _host(text)
    if key == "dstports":
        return _ports(text)
    if key == "icmptype":
        return str(names.number(text, "ICMP type", 0, 255))
    if key == "specialtarget":
        return _choice("special target", text, SPECIAL)
    if key == "expire":
        return str(names.number(text, "expire", 0, MAX_EXPIRE))
    if key == "comment":
        if len(text) > MAX_COMMENT or any(not " " <= c <= "~" for c in text):
            raise _refuse(f"comment (printable ASCII, at most {MAX_COMMENT} characters)", text)
        return text
    raise _refuse("part of a rule", key)


def rule_of(parts: Iterable[tuple[str, str]]) -> Rule:
    """A rule of its parts, each checked alone and with the others; raises ValueInvalidError."""
    found: Rule = {}
    for key, text in parts:
        if key in found:
            raise _refuse("part given twice", key)
        found[key] = value(key, text)
    if "action" not in found:
        raise ValueInvalidError("Firewall rule: action is missing")
    destinations = [key for key in ("dst4", "dst6", "dsthost") if key in found]
    if len(destinations) > 1:
        raise ValueInvalidError("Firewall rule: only one destination is possible")
    if "dstports" in found and found.get("proto") not in ("tcp", "udp"):
        raise ValueInvalidError("Firewall rule: dstports needs proto=tcp or proto=udp")
    if "icmptype" in found and found.get("proto") != "icmp":
        raise ValueInvalidError("Firewall rule: icmptype needs proto=icmp")
    if "specialtarget" in found and (destinations or "icmptype" in found or "dstports" in found):
        raise ValueInvalidError("Firewall rule: specialtarget stands without a destination, ports and icmptype")
    return {key: found[key] for key in KEYS if key in found}


def stored_part(key: str, text: str) -> tuple[str, str]:
    """A part of a rule as upstream's file has it: there ``dsthost`` is an address or a network, too."""
    if key != "dsthost":
        return key, text
    from ipaddress import ip_network

    try:
        return f"dst{ip_network(text, strict=False).version}", text
    except ValueError:
        return key, text


def parse_rule(line: str) -> Rule:
    """The rule that a line means; the comment, if any, is the last part and may contain spaces."""
    parts: list[tuple[str, str]] = []
    rest = line
    while rest:
        if rest.startswith("comment="):
            parts.append(("comment", rest[8:]))
            break
        word, _, rest = rest.partition(" ")
        key, equals, text = word.partition("=")
        if not equals:
            raise _refuse("part of a rule", word)
        parts.append((key, text))
    return rule_of(parts)


def parse_rules(text: str) -> list[Rule]:
    """All rules of a text; raises ValueInvalidError and then none of them counts."""
    rules = [parse_rule(line) for line in text.split("\n") if line]
    if len(rules) > MAX_RULES:
        raise ValueInvalidError(f"There may be {MAX_RULES} firewall rules at most")
    return rules


def format_rule(rule: Rule) -> str:
    """The line that means a rule."""
    return " ".join(f"{key}={rule[key]}" for key in KEYS if key in rule)


def format_rules(rules: Iterable[Rule]) -> str:
    """The text that means these rules."""
    return "".join(f"{format_rule(rule)}\n" for rule in rules)
