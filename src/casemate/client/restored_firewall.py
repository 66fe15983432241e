"""Firewall rules of a backup, as the Admin API takes them. Two forms: that of release 4, and the older one."""

from __future__ import annotations

from xml.parsers import expat

from casemate.wire import firewall
from casemate.wire.errors import CasemateError

_MAX_DEPTH = 8


def rules_of(data: bytes) -> str | None:
    """One rule a line; None when the file is neither form, or says what cannot be said here. Never fewer than it had:
    a rule that was lost could be the one that drops."""
    found = _elements(data)
    if not found:
        return None
    try:
        rules = _older(found) if found[0][0] == "QubesFirewallRules" else _present(found)
        return firewall.format_rules(rules)
    except (CasemateError, ValueError, KeyError):
        return None


def _elements(data: bytes) -> list[tuple[str, dict[str, str], str]]:
    """(tag, attributes, text) of each element, in document order; nothing for what is no plain XML."""
    found: list[tuple[str, dict[str, str], str]] = []
    open_ones: list[int] = []
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(open_ones) > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        open_ones.append(len(found))
        found.append((tag, attributes, ""))

    def text(more: str) -> None:
        tag, attributes, before = found[open_ones[-1]]
        found[open_ones[-1]] = (tag, attributes, before + more)

    def refuse(*_what: object) -> None:
        raise ValueError("a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _tag: open_ones.pop()
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError):
        return []
    return found


def _present(found: list[tuple[str, dict[str, str], str]]) -> list[firewall.Rule]:
    if found[0][0] != "firewall":
        raise ValueError
    rules: list[list[tuple[str, str]]] = []
    for tag, attributes, text in found:
        if tag == "rule":
            rules.append([])
        elif tag == "property":
            rules[-1].append(firewall.stored_part(attributes["name"], text))
    return [firewall.rule_of(parts) for parts in rules]


def _older(found: list[tuple[str, dict[str, str], str]]) -> list[firewall.Rule]:
    """The form until release 3.2: a policy for what no rule names, switches for ICMP and DNS, and the exceptions."""
    top = found[0][1]
    allow = top["policy"] == "allow"
    rules: list[list[tuple[str, str]]] = []
    for tag, given, _text in found[1:]:
        if tag != "rule":
            continue
        parts = [("action", "drop" if allow else "accept")]
        if given.get("proto", "any") != "any":
            parts.append(("proto", given["proto"]))
        if (given["address"], given.get("netmask", "0")) != ("0.0.0.0", "0"):  # noqa: S104
            key, address = firewall.stored_part("dsthost", given["address"])
            parts.append((key, f"{address}/{given.get('netmask', '32')}" if key == "dst4" else address))
        if given.get("port", "0") not in ("0", "None"):
            end = given.get("toport", "None")
            parts.append(("dstports", given["port"] if end in ("None", "") else f"{given['port']}-{end}"))
        rules.append(parts)
    if top.get("dns") == "allow":
        rules.append([("action", "accept"), ("specialtarget", "dns")])
    if top.get("icmp") == "allow":
        rules.append([("action", "accept"), ("proto", "icmp")])
    rules.append([("action", "accept" if allow else "drop")])
    return [firewall.rule_of(parts) for parts in rules]
