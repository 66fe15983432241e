"""What a new disposable has of its template: network, settings, features, tags."""

from __future__ import annotations

import pytest

from casemate.model import preloading
from casemate.model.domain import Domain
from casemate.model.system import System
from tests.builders import uuid


@pytest.fixture
def system() -> System:
    """A template of disposables, a net qube of the system and another one."""
    made = System.initial()
    made.add("TemplateVM", "deb", uuid=uuid(1))
    for number, name in enumerate(("net", "vpn"), 2):
        made.add("AppVM", name, uuid=uuid(number), template="deb").provides_network = True
    made.set_text("default_netvm", "net")
    made.add("AppVM", "dvm", uuid=uuid(5), template="deb").template_for_dispvms = True
    made.set_text("default_dispvm", "dvm")
    return made


def disposable(system: System, number: int = 10, template: str = "dvm") -> Domain:
    return system.add("DispVM", f"disp{number}", uuid=uuid(number), template=template, dispid=number)


@pytest.mark.parametrize("netvm", ["vpn", None])
def test_a_disposable_has_the_network_of_its_template(system: System, netvm: str | None) -> None:
    system.domains["dvm"].set_text("netvm", netvm or "")
    made = disposable(system)
    assert (made.netvm.name if made.netvm else None) == netvm
    assert made.is_set("netvm")


def test_a_setting_that_nobody_made_stays_a_default(system: System) -> None:
    made = disposable(system)
    assert not made.is_set("netvm") and made.netvm is system.domains["net"]


def test_settings_that_are_one_qubes_own_are_not_taken_over(system: System) -> None:
    dvm = system.domains["dvm"]
    for name, text in {
        "autostart": "True", "ip": "10.137.9.9", "mac": "00:16:3e:00:00:01", "memory": "500", "debug": "True",
        "keyboard_layout": "de++",
    }.items():  # fmt: skip
        dvm.set_text(name, text)
    made = disposable(system)
    assert not made.autostart and made.ip != dvm.ip and made.mac != dvm.mac
    assert made.debug and made.keyboard_layout == "de++"
    assert made.memory == 500 and not made.is_set("memory"), "it follows its template"


def test_features_and_tags(system: System) -> None:
    dvm = system.domains["dvm"]
    for name, value in {
        "service.cups": "1", "net.fake-ip": "192.168.1.2", "preload-dispvm-max": "2", "preload-dispvm": "disp1",
    }.items():  # fmt: skip
        dvm.features[name] = value
    dvm.tags.add("untrusted")
    made = disposable(system)
    assert dict(made.features) == {"service.cups": "1", "net.fake-ip": "192.168.1.2"}
    assert set(made.tags) == {"untrusted", "created-by-dom0"}
    dvm.features["service.cups"] = ""
    assert made.features["service.cups"] == "1", "as it was at that moment"


def test_what_a_disposable_opens_is_like_itself(system: System) -> None:
    other = system.add("AppVM", "anon", uuid=uuid(6), template="deb")
    other.template_for_dispvms = True
    made = disposable(system, 11, "anon")
    assert made.default_dispvm is system.domains["anon"]
    other.set_text("default_dispvm", "")
    assert disposable(system, 12, "anon").default_dispvm is None


def test_no_other_class_takes_anything_over(system: System) -> None:
    system.domains["deb"].features["service.cups"] = "1"
    system.domains["deb"].tags.add("untrusted")
    made = system.add("AppVM", "work", uuid=uuid(7), template="deb")
    assert dict(made.features) == {} and set(made.tags) == {"created-by-dom0"}


@pytest.mark.parametrize(
    "change",
    [
        lambda dvm: dvm.set_text("netvm", "vpn"),
        lambda dvm: dvm.tags.add("untrusted"),
        lambda dvm: dvm.set_text("debug", "True"),
    ],
)
def test_one_that_waits_is_outdated_when_a_fresh_one_would_differ(system: System, change: object) -> None:
    made = disposable(system)
    before = preloading.made_of(made)
    change(system.domains["dvm"])  # type: ignore[operator]
    assert preloading.made_of(made) != before
