"""The firewall rules of a qube; each access is one call of the Admin API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from casemate.client.qubes import Qubes as Client
from casemate.wire.firewall import ALLOW_ALL, Rule, format_rules, parse_rules, rule_of


class Firewall:
    """The rules of one qube in their order: the first that fits counts, what none fits is dropped.

    A rule is a dictionary of texts: ``{"action": "accept", "dsthost": "example.org", "proto": "tcp", "dstports":
    "443-443"}``. Keys are ``action`` (accept, drop), ``proto`` (tcp, udp, icmp), ``dst4``, ``dst6``, ``dsthost``,
    ``dstports``, ``icmptype``, ``specialtarget`` (dns), ``expire`` (seconds since 1970), ``comment``. ValueInvalidError
    for a rule that cannot be.
    """

    def __init__(self, client: Client, qube: str) -> None:
        self._client = client
        self._qube = qube

    @property
    def rules(self) -> list[Rule]:
        """All rules. Changing the list changes nothing; assign it to change them."""
        return parse_rules(self._client.call("admin.vm.firewall.Get", "", self._qube))

    @rules.setter
    def rules(self, rules: Iterable[Rule]) -> None:
        text = format_rules(rule_of(rule.items()) for rule in rules)
        self._client.call("admin.vm.firewall.Set", "", self._qube, text)

    def add(self, action: str, *, before: int | None = None, **parts: str | int) -> None:
        """Add a rule at the end, or before the one of that number: ``add("accept", dsthost="example.org")``."""
        rules = self.rules
        at = len(rules) if before is None else before
        new = rule_of([("action", action), *((key, str(value)) for key, value in parts.items())])
        self.rules = [*rules[:at], new, *rules[at:]]

    def reset(self) -> None:
        """Let everything through, as for a new qube."""
        self.rules = [dict(ALLOW_ALL)]

    def reload(self) -> None:
        """Have the rules read and enforced again, such as after the address of a name has changed."""
        self._client.call("admin.vm.firewall.Reload", "", self._qube)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __repr__(self) -> str:
        return f"<firewall of {self._qube}>"
