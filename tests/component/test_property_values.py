"""Properties hold what their declarations promise: read from a daemon of the lab, over libvirt's test driver."""

from __future__ import annotations

import time

from casemate.model.classes import CLASSES
from casemate.model.defaults import Fixed, Live, Never
from casemate.model.properties import Holder, Setting
from casemate.model.qube_settings import MACHINE_PROPERTIES
from casemate.model.system import System
from tests.component.laws.conftest import lab  # noqa: F401
from tests.component.laws.daemon import Lab


def values(lab: Lab, dest: str | None) -> dict[str, str]:  # noqa: F811
    """Every property of a qube or (None) of the system, as the Admin API tells it one by one."""
    call = "admin.property" if dest is None else "admin.vm.property"
    names = lab.qubes.call(f"{call}.List", "", dest or "dom0").split()
    found = {}
    for name in names:
        reply = lab.qubes.call(f"{call}.Get", name, dest or "dom0")
        default, kind, value = reply.split(" ", 2)
        assert default.startswith("default=") and kind.startswith("type="), reply
        found[name] = value
    return found


def live_ones(holder: type[Holder]) -> dict[str, str]:
    """The live properties of a class, and what each says while its source says nothing."""
    return {name: holder.declaration(name).kind.format(rule.otherwise) for name, rule in holder.live().items()}


def test_every_property_of_a_running_qube_has_its_value(lab: Lab) -> None:  # noqa: F811
    lab.create("one")
    klass = CLASSES["StandaloneVM"]
    halted, before = values(lab, "one"), time.time()
    lab.qubes.call("admin.vm.Start", "", "one")
    running = values(lab, "one")
    assert halted.keys() == running.keys() == klass.properties().keys()
    unset = live_ones(klass)
    assert unset
    for name, value in running.items():
        if name in unset:
            assert halted[name] == unset[name] != value, f"{name} is live, and nobody gives it a value"
        else:
            assert value == halted[name], f"{name} changes with the machine, and its declaration does not say so"
    assert before - 1 < float(running["start_time"]) < time.time() + 1 and int(running["xid"]) > 0
    entry = lab.qubes.call("admin.casemate.List", "", "dom0", '{"qubes": ["one"], "properties": ["start_time"]}')
    assert running["start_time"] in entry
    lab.qubes.call("admin.vm.Kill", "", "one")
    assert values(lab, "one") == halted


def test_every_property_of_the_system_has_its_value(lab: Lab) -> None:  # noqa: F811
    found, unset = values(lab, None), live_ones(System)
    assert found.keys() == System.properties().keys() and unset
    for name in unset:
        assert found[name] != unset[name], f"{name} is live, and nobody gives it a value"


def test_what_nobody_can_set_follows_from_something() -> None:
    """A read-only property is computed, live, or says why it never changes; else it is a promise that nobody keeps."""
    for holder in (System, *CLASSES.values()):
        for name, prop in holder.properties().items():
            rule = holder.defaults.get(name) or prop.default
            if prop.setting is Setting.READ_ONLY and name not in holder.defaults:
                assert rule is not None and (not isinstance(rule, Fixed) or isinstance(rule, Never)), name
            assert not isinstance(rule, Live | Never) or prop.setting is Setting.READ_ONLY, name
    assert set(CLASSES["AppVM"].live()) <= set(MACHINE_PROPERTIES), "its changes are announced"
