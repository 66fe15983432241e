"""Law 1: a machine is defined in libvirt at creation and just before start; looking at a qube never defines it."""

from __future__ import annotations

from tests.component.laws.daemon import Lab
from tests.component.laws.processes import scaled


def test_watchers_and_workers_on_the_same_names(lab: Lab) -> None:
    """4 watchers, 2 workers, and the daemon's own questions to libvirt without pause."""
    rounds = scaled(100, 1000)  # of each of two workers
    watchers = [lab.spawn("tests.component.laws.client", "watch") for _ in range(4)]
    workers = [
        lab.spawn("tests.component.laws.client", "churn", str(rounds), str(seed), "one", "two", "three")
        for seed in (1, 2)
    ]
    created = started = 0
    for worker in workers:
        out, _ = worker.communicate(timeout=280)
        assert worker.returncode == 0, (out, lab.log())
        one, other = out.split()
        created, started = created + int(one), started + int(other)
    for watcher in watchers:
        out, _ = watcher.communicate(b"stop\n", timeout=60)
        assert watcher.returncode == 0 and int(out) > 0, (out, lab.log())
    defined, undefined, really_started, known = lab.ask()
    assert created > rounds / 2 and started >= really_started > rounds / 2  # a start of one that runs is a success
    assert known == lab.names(), "libvirt lists a machine that the store lacks, or lacks one"
    assert (defined, undefined) == (
        created + really_started,
        created - len(known),
    ), "something else defined or undefined"
    for name in known:
        if "power_state=Halted" not in lab.qubes.call("admin.vm.CurrentState", "", name):
            lab.qubes.call("admin.vm.Kill", "", name)
        lab.qubes.call("admin.vm.Remove", "", name)
    for name in ("one", "two", "three"):
        lab.create(name)
    assert lab.ask()[3] == ["one", "three", "two"]


def test_looking_defines_nothing_and_starting_defines_again(lab: Lab) -> None:
    lab.create("one")
    uuid = lab.qubes.get("one", "uuid").text
    assert lab.ask()[:2] == (1, 0), "creation defines, once"
    assert lab.ask("forget", "one") == (1, 1, 0, [])
    for method, arg in (("admin.vm.CurrentState", ""), ("admin.vm.property.GetAll", ""), ("admin.vm.List", ""),
                        ("admin.vm.property.Get", "xid"), ("admin.vm.volume.List", "")):  # fmt: skip
        lab.qubes.call(method, arg, "one")
    assert "power_state=Halted" in lab.qubes.call("admin.vm.CurrentState", "", "one")
    assert lab.qubes.get("one", "xid").text == "-1"
    assert lab.ask() == (1, 1, 0, []), "looking defines nothing"
    lab.qubes.call("admin.vm.Start", "", "one")
    assert lab.ask() == (2, 1, 1, ["one"]), "a start does, once"
    assert lab.qubes.get("one", "uuid").text == uuid
    lab.qubes.call("admin.vm.Kill", "", "one")
    lab.qubes.call("admin.vm.Remove", "", "one")
    assert lab.ask() == (2, 2, 1, [])
