"""The sequences of events that upstream's clients rely on, from the real daemon on libvirt's test driver."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from casemate.client.transport import Events
from casemate.store.store import Store
from casemate.wire.admin import CONNECTED, Event
from casemate.wire.errors import CasemateError
from tests.component.laws.conftest import lab  # noqa: F401
from tests.component.laws.daemon import Lab

UNSET = [("property-reset:xid", {"name": "xid"}), ("property-reset:stubdom_xid", {"name": "stubdom_xid"}),
         ("property-reset:start_time", {"name": "start_time"})]  # fmt: skip
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@contextmanager
def listening(lab: Lab, dest: str = "dom0") -> Iterator[Events]:  # noqa: F811
    with lab.qubes.transport.events(dest, timeout=20) as events:
        assert events.next(20) == Event("", CONNECTED, {})
        yield events


def take(events: Events, count: int) -> list[tuple[str, str, dict[str, str]]]:
    """The next events; the random id of a start is checked and left out."""
    found, guids = [], set()
    for _ in range(count):
        subject, name, details = events.next(20)
        details = dict(details)
        if "start_guid" in details:
            guids.add(guid := details.pop("start_guid"))
            assert GUID.fullmatch(guid)
            details["start_guid"] = "*"
        found.append((subject, name, details))
    assert len(guids) <= 1
    return found


def expect(events: Events, subject: str, *expected: tuple[str, dict[str, str]]) -> None:
    assert take(events, len(expected)) == [(subject, *one) for one in expected]


def test_life_of_a_qube(lab: Lab) -> None:  # noqa: F811
    with listening(lab) as events:
        lab.create("one")
        assert take(events, 3) == [
            ("", "domain-add", {"vm": "one"}),
            ("one", "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"}),
            ("one", "domain-create-on-disk", {}),
        ]
        lab.qubes.call("admin.vm.Start", "", "one")
        guid = {"start_guid": "*"}
        expect(
            events, "one",
            ("domain-pre-start", {"mem_required": str(400 << 20), **guid}), ("domain-pre-spawn", guid),
            *UNSET, ("domain-spawn", guid), ("domain-qdb-create", {}), ("domain-pre-unpaused", {}),
            ("domain-unpaused", {}), ("domain-start", guid),
        )  # fmt: skip
        lab.qubes.call("admin.vm.Pause", "", "one")
        expect(events, "one", ("domain-pre-paused", {}), ("domain-paused", {}))
        lab.qubes.call("admin.vm.Unpause", "", "one")
        expect(events, "one", ("domain-pre-unpaused", {}), ("domain-unpaused", {}))
        lab.qubes.call("admin.vm.Shutdown", "force", "one")
        expect(events, "one", ("domain-pre-shutdown", {"force": "True"}))
        lab.qubes.call("admin.vm.Kill", "", "one")  # its guest stops
        expect(events, "one", ("domain-stopped", {}), *UNSET, ("domain-shutdown", {}))
        lab.qubes.call("admin.vm.Start", "", "one")
        take(events, 10)
        lab.qubes.call("admin.vm.Kill", "", "one")
        expect(events, "one", ("domain-stopped", {}), *UNSET, ("domain-shutdown", {}))
        lab.qubes.call("admin.vm.Remove", "", "one")
        expect(events, "", ("domain-pre-delete", {"vm": "one"}), ("domain-delete", {"vm": "one"}))


def test_a_start_that_fails(lab: Lab) -> None:  # noqa: F811
    lab.create("broken")
    (lab.settings.state / "pools/touch/broken/private").unlink()
    with listening(lab) as events:
        with pytest.raises(CasemateError, match="missing"):
            lab.qubes.call("admin.vm.Start", "", "broken")
        got = take(events, 2)
        assert [name for _, name, _ in got] == ["domain-pre-start", "domain-start-failed"]
        assert "missing" in got[1][2]["reason"]


def test_a_net_qube_starts_before_who_needs_it_is_up(lab: Lab) -> None:  # noqa: F811
    for name in ("net", "app"):
        lab.create(name)
    lab.qubes.set("net", "provides_network", "True")
    lab.qubes.set("app", "netvm", "net")
    with listening(lab) as events:
        lab.qubes.call("admin.vm.Start", "", "app")
        names = [(e.subject, e.name) for e in (events.next(20) for _ in range(20))]
    assert names.index(("net", "domain-start")) < names.index(("app", "domain-pre-spawn"))


def test_a_net_qube_that_does_not_start_fails_who_needs_it(lab: Lab) -> None:  # noqa: F811
    for name in ("net", "app"):
        lab.create(name)
    lab.qubes.set("net", "provides_network", "True")
    lab.qubes.set("app", "netvm", "net")
    (lab.settings.state / "pools/touch/net/private").unlink()
    with listening(lab) as events:
        with pytest.raises(CasemateError, match="missing"):
            lab.qubes.call("admin.vm.Start", "", "app")
        got = [(event.subject, event.name) for event in (events.next(20) for _ in range(4))]
    failed = ["domain-pre-start", "domain-start-failed"]
    assert got == [(name, word) for name in ("net", "app") for word in failed]


def test_settings_features_and_tags(lab: Lab) -> None:  # noqa: F811
    lab.create("one")
    with listening(lab) as events, listening(lab, "one") as mine, listening(lab, "dom0") as third:
        lab.qubes.set("one", "memory", "601")
        lab.qubes.reset("one", "memory")
        lab.qubes.call("admin.vm.feature.Set", "a", "one", "b")
        lab.qubes.call("admin.vm.feature.Set", "a", "one", "")
        lab.qubes.call("admin.vm.feature.Remove", "a", "one")
        lab.qubes.call("admin.vm.tag.Set", "t", "one")
        lab.qubes.call("admin.vm.tag.Remove", "t", "one")
        lab.qubes.set(None, "stats_interval", "5")
        changed = {"name": "memory", "newvalue": "601", "oldvalue": "400"}
        reset = {"name": "memory", "oldvalue": "601"}
        again = {"feature": "a", "value": "", "oldvalue": "b"}
        expected = [
            ("one", "property-pre-set:memory", changed), ("one", "property-set:memory", changed),
            ("one", "property-pre-reset:memory", reset), ("one", "property-pre-del:memory", reset),
            ("one", "property-reset:memory", reset), ("one", "property-del:memory", reset),
            ("one", "domain-feature-pre-set:a", {"feature": "a", "value": "b"}),
            ("one", "domain-feature-set:a", {"feature": "a", "value": "b"}),
            ("one", "domain-feature-pre-set:a", again), ("one", "domain-feature-set:a", again),
            ("one", "domain-feature-pre-delete:a", {"feature": "a"}),
            ("one", "domain-feature-delete:a", {"feature": "a"}),
            ("one", "domain-tag-add:t", {"tag": "t"}), ("one", "domain-tag-delete:t", {"tag": "t"}),
            ("", "property-pre-set:stats_interval", {"name": "stats_interval", "newvalue": "5", "oldvalue": "3"}),
            ("", "property-set:stats_interval", {"name": "stats_interval", "newvalue": "5", "oldvalue": "3"}),
        ]  # fmt: skip
        for stream in (events, third):
            assert take(stream, len(expected)) == expected
        assert take(mine, len(expected) - 2) == expected[:-2]


def test_what_another_process_changes_is_announced(lab: Lab) -> None:  # noqa: F811
    lab.create("one")
    store = Store(lab.settings.store_file)
    with listening(lab) as events:
        with store.write() as transaction:
            one = transaction.system.domains["one"]
            one.set_text("memory", "500")
            one.features.set("f", "1")
            one.tags.add("t")
        names = {event.name for event in (events.next(20) for _ in range(5))}
        assert names == {
            "property-pre-set:memory", "property-set:memory", "domain-feature-pre-set:f", "domain-feature-set:f",
            "domain-tag-add:t",
        }  # fmt: skip
        with store.write() as transaction:
            transaction.system.remove("one")
        assert events.next(20) == Event("", "domain-delete", {"vm": "one"})
    store.close()


def test_after_a_restart_a_client_starts_anew(lab: Lab) -> None:  # noqa: F811
    lab.create("one")
    with listening(lab) as events:
        lab.daemon.kill()
        lab.daemon.wait()
        with pytest.raises(CasemateError):
            events.next(20)
    again = lab.spawn("tests.component.laws.lab")
    assert again.stdout is not None and again.stdout.readline() == b"ready\n"
    with listening(lab) as events:
        lab.qubes.set("one", "memory", "444")
        assert events.next(20).details["newvalue"] == "444"
