"""Which rule decides whether a qube reaches a place, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from casemate.model.domain import Domain
from casemate.network.explain import Step, explain, parse_place
from casemate.wire.errors import ValueInvalidError
from casemate.wire.firewall import Rule, parse_rule
from tests.builders import small_system


def steps(rules: Sequence[str], host: str, port: int | None = None, proto: str = "tcp", *, uplink: bool = True,
          running: bool = True, ipv6: bool = True) -> list[Step]:  # fmt: skip
    system = small_system()
    if ipv6:
        system.domains["net"].features["ipv6"] = "1"
    if uplink:
        system.domains["net"].features["net.uplink"] = "pasta"
    found: list[Rule] = [parse_rule(rule) for rule in rules]

    def of(domain: Domain) -> list[Rule]:
        return found if domain.name == "work" else [{"action": "accept"}]

    place = parse_place(host, port, proto)
    return explain(system.domains["work"], place, of, lambda name: running, frozenset({"192.0.2.2"}), 1000.0)


def verdict(*args: object, **options: object) -> bool | None:
    found = [step.passes for step in steps(*args, **options)]  # type: ignore[arg-type]
    return False if False in found else None if None in found else True


def test_a_rule_is_named_with_what_would_change_it() -> None:
    found = steps(["action=accept proto=tcp dst4=198.51.100.0/24 dstports=80-90"], "198.51.100.7", 80)
    assert [step.passes for step in found] == [True, True]
    assert found[0].why.startswith("rule 0: action=accept")
    assert found[0].change == "qvm-firewall work add --before 0 drop dst4=198.51.100.7 proto=tcp dstports=80"


def test_the_default_is_no_and_says_how_to_change_that() -> None:
    found = steps(["action=accept proto=tcp dst4=198.51.100.0/24"], "203.0.113.1", 443)
    assert [step.passes for step in found] == [False]
    assert found[0].change == "qvm-firewall work add accept dst4=203.0.113.1 proto=tcp dstports=443"


@pytest.mark.parametrize(
    "rules, host, port, passes",
    [
        (["action=drop dst4=198.51.100.7", "action=accept"], "198.51.100.7", 80, False),
        (["action=drop dst4=198.51.100.7", "action=accept"], "198.51.100.8", 80, True),
        (["action=accept dsthost=a.example.org"], "a.example.org", 80, True),
        (["action=accept dsthost=*.example.org"], "a.b.example.org", 80, True),
        (["action=accept dsthost=a.example.org"], "b.example.org", 80, False),
        (["action=accept dsthost=a.example.org"], "198.51.100.7", 80, None),
        (["action=drop dsthost=a.example.org", "action=accept"], "198.51.100.7", 80, None),
        (["action=accept dsthost=a.example.org", "action=accept"], "198.51.100.7", 80, True),
        (["action=accept dst4=198.51.100.7"], "a.example.org", 80, None),
        (["action=accept proto=tcp dstports=80-80"], "198.51.100.7", None, None),
        (["action=accept expire=999"], "198.51.100.7", 80, False),
        (["action=accept expire=1001"], "198.51.100.7", 80, True),
        (["action=accept specialtarget=dns"], "10.139.1.1", 53, True),
        (["action=accept specialtarget=dns"], "198.51.100.7", 53, False),
        (["action=accept"], "192.0.2.2", 22, False),
        (["action=accept"], "127.0.0.1", 22, False),
        (["action=accept"], "10.137.0.9", 22, False),
        (["action=accept"], "224.0.0.1", 22, False),
        (["action=accept dst6=::/0"], "2001:db8::1", 22, True),
        (["action=accept dst4=0.0.0.0/0"], "2001:db8::1", 22, False),
    ],
)
def test_verdicts(rules: list[str], host: str, port: int | None, passes: bool | None) -> None:
    assert verdict(rules, host, port) is passes


def test_what_does_not_run_or_has_no_way_out_is_named() -> None:
    found = steps(["action=accept"], "198.51.100.7", 80, running=False)
    assert found[-1] == Step("net", False, "net is not running", "qvm-start net")
    found = steps(["action=accept"], "198.51.100.7", 80, uplink=False)
    assert found[-1] == Step("net", False, "net has no uplink", "qvm-features net net.uplink pasta")


@pytest.mark.parametrize(
    "host, port, proto", [("a b", 80, "tcp"), ("x", 0, "tcp"), ("x", 1, "sctp"), ("x", 1, "icmp"), ("1.2.3", 1, "tcp")]
)
def test_no_place(host: str, port: int, proto: str) -> None:
    with pytest.raises(ValueInvalidError):
        parse_place(host, port, proto)


def test_a_qube_without_ipv6_is_told_so() -> None:
    found = steps(["action=accept"], "2001:db8::1", 22, ipv6=False)
    assert [(step.where, step.passes, step.why) for step in found] == [("work", False, "work has no IPv6")]
