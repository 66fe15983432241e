"""Firewall rules of a backup, as the Admin API takes them. Two forms: that of release 4, and the older one."""

from __future__ import annotations

from casemate.backup import plain_xml
from casemate.wire import firewall
from casemate.wire.errors import CasemateError

_MAX_DEPTH = 8
RULES = "firewall.rules"
"""A file of a qube that is in no backup: its rules as ``rules_of`` gives them. Empty: they cannot be read."""


def rules_of(data: bytes) -> str | None:
    """One rule a line; None when the file is neither form, or says what cannot be said here. Never fewer than it had:
    a rule that was lost could be the one that drops."""
    try:
        root = plain_xml.parse(data, "The firewall", _MAX_DEPTH)
        rules = _older(root) if root.tag == "QubesFirewallRules" else _present(root)
        return firewall.format_rules(rules)
    except (CasemateError, ValueError, KeyError):
        return None


def _present(root: plain_xml.Element) -> list[firewall.Rule]:
    if root.tag != "firewall":
        raise ValueError
    rules: list[list[tuple[str, str]]] = []
    for one in root.walk():
        if one.tag == "rule":
            rules.append([])
        elif one.tag == "property":
            rules[-1].append(firewall.stored_part(one.attributes["name"], one.text))
    return [firewall.rule_of(parts) for parts in rules]


def _older(root: plain_xml.Element) -> list[firewall.Rule]:
    """The form until release 3.2: a policy for what no rule names, switches for ICMP and DNS, and the exceptions."""
    top = root.attributes
    allow = top["policy"] == "allow"
    rules: list[list[tuple[str, str]]] = []
    for one in root.walk():
        if one.tag != "rule":
            continue
        given = one.attributes
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
