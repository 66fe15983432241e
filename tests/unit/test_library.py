"""The public library, in this process: over a daemon's real socket, and calls into a qube without a machine."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import casemate
from casemate import errors
from casemate.library.qube import Qube
from casemate.library.qubes import Qubes
from casemate.model.classes import CLASSES
from casemate.model.system import System
from casemate.wire.errors import all_errors
from tests.builders import short_directory, wait_for
from tests.fakes.shell import found_by_tools

SOURCE = Path(casemate.__file__).parents[1]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Qubes]:
    """Qubes ``deb`` (a template), ``net`` and ``work`` of a daemon of the test's own."""
    with short_directory() as directory, found_by_tools(directory, monkeypatch):
        found = casemate.Qubes()
        found.create("deb", "TemplateVM", label="black")
        found.default_template = "deb"
        found.create("net", label="orange", provides_network=True, netvm=None)
        found.default_netvm = "net"
        found.create("work", label="blue", template="deb")
        yield found


@pytest.fixture
def served(app: Qubes) -> Iterator[Qube]:
    """The qube ``work``, whose calls are served by a process of this host."""
    work = app["work"]
    link = app.settings.link_socket("work")
    link.parent.mkdir(parents=True)
    services = app.settings.state / "rpc"
    services.mkdir()
    for name, text in {
        "qubes.VMShell": "exec bash",
        "qubes.VMExec": f'exec {sys.executable} -m casemate.agent.entry vmexec "$QREXEC_SERVICE_ARGUMENT"',
        "test.Upper": "exec tr a-z A-Z",
        "test.Flood": "exec head -c 50000000 /dev/zero",
        "test.Sleep": "exec sleep 1000",
        "test.Argument": 'printf %s "$1"; echo to stderr >&2; exit 7',
    }.items():
        (services / name).write_text(f"#!/bin/sh\n{text}\n")
        (services / name).chmod(0o755)
    environment = {**os.environ, "QREXEC_SERVICE_PATH": str(services), "PYTHONPATH": f"{SOURCE.parent}:{SOURCE}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.qube", str(link), str(link.with_name("agent.sock"))],
        env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield work
    finally:
        process.kill()
        process.communicate()


def test_qubes_are_found_and_listed(app: Qubes) -> None:
    assert [qube.name for qube in app] == ["dom0", "deb", "net", "work"] and len(app) == 4
    assert "work" in app and app["work"] in app and "nobody" not in app and app.get("nobody") is None
    assert app.get("no such/name") is None and app.get("") is None
    assert (app["work"].klass, str(app["work"]), repr(app["work"])) == ("AppVM", "work", "<AppVM work>")
    assert app["work"] == app["work"] != app["net"] and len({app["work"], app["work"]}) == 1
    assert app.get(f"uuid:{app['work'].uuid}") == app["work"]
    with pytest.raises(KeyError) as caught:
        app["nobody"]
    assert isinstance(caught.value, errors.QubesVMNotFoundError) and "'nobody'" in str(caught.value)


def test_what_is_kept_of_a_running_qube_goes_on(app: Qubes) -> None:
    work = app["work"]
    assert [(qube.name, qube.klass) for qube in work.fork(2)] == [("work-0", "DispVM"), ("work-1", "DispVM")]
    assert app.snapshots() == []
    work.snapshot("ready")
    (kept,) = app.snapshots()
    assert (kept.name, kept.qube, kept.base, kept.made, kept.bytes) == ("ready", "work", "base", 1, 3 << 20)
    assert [qube.name for qube in app.resume("ready")] == ["work-0"] and len(app.resume(kept, 3)) == 3
    app.drop_snapshot(kept)
    assert app.snapshots() == []


def test_properties_are_attributes(app: Qubes) -> None:
    work = app["work"]
    assert (work.memory, work.netvm, work.provides_network) == (400, app["net"], False)
    assert work.is_default("memory") and work.properties()["template"] == app["deb"]
    work.memory, work.netvm = 600, None
    assert (work.memory, work.netvm, work.is_default("memory")) == (600, None, False)
    work.netvm = app["net"]
    del work.memory
    assert work.memory == 400
    assert (
        app.default_template == app["deb"] and app.clockvm is None and app.properties()["default_netvm"].name == "net"
    )
    app.clockvm = "net"
    del app.default_netvm
    assert app.clockvm.name == "net" and app.default_netvm is None
    assert not hasattr(work, "no_such_thing") and getattr(app, "no_such_thing", 5) == 5
    with pytest.raises(errors.NoSuchPropertyError):
        work.no_such_thing = 1
    with pytest.raises(errors.QubesPropertyValueError):
        work.memory = "much"
    with pytest.raises(errors.ValueInvalidError):
        work.memory = [1]
    for name in ("name", "klass", "state", "start", "features"):
        with pytest.raises(AttributeError):
            setattr(work, name, "x")


def test_no_member_hides_a_property() -> None:
    ours = {name for name in vars(Qube) if not name.startswith("_")}
    theirs = {name for cls in CLASSES.values() for name in cls.properties()}
    assert ours & theirs == {"name", "klass"}
    assert {name for name in vars(Qubes) if not name.startswith("_")} & set(System.properties()) == set()


def test_features_tags_notes_and_firewall(app: Qubes) -> None:
    work = app["work"]
    work.features["service.cups"] = True
    work.features["empty"] = False
    app["deb"].features["from-template"] = "yes"
    assert work.features.all() == {"service.cups": "1", "empty": ""} == dict(work.features)
    assert work.features.effective("from-template") == "yes" and work.features.effective("none", "-") == "-"
    assert "none" not in work.features and work.features.get("none") is None and len(work.features) == 2
    del work.features["empty"]
    with pytest.raises(KeyError):
        del work.features["empty"]
    work.tags.add("mine")
    work.tags.add("other")
    assert {"mine", "other"} <= set(work.tags) and "mine" in work.tags
    work.tags.discard("mine")
    work.tags.discard("mine")
    assert "mine" not in work.tags
    work.notes = "two\nlines"
    assert work.notes == "two\nlines"
    work.firewall.rules = [{"action": "drop"}]
    work.firewall.add("accept", dsthost="example.org", proto="tcp", dstports=443, before=0)
    assert [rule["action"] for rule in work.firewall] == ["accept", "drop"]
    assert work.firewall.rules[0]["dstports"] == "443-443"
    with pytest.raises(errors.ValueInvalidError):
        work.firewall.add("perhaps")
    work.firewall.reset()
    assert work.firewall.rules == [{"action": "accept"}]


def test_qubes_are_made_whole_or_not_at_all(app: Qubes) -> None:
    with pytest.raises(errors.PropertyValueError):
        app.create("half", memory="much")
    assert "half" not in app
    with pytest.raises(errors.AlreadyExistsError):
        app.create("work")
    app["work"].tags.add("mine")
    copy = app["work"].clone("copy", label="green")
    assert "mine" in copy.tags and copy.label == "green" and copy.netvm == app["work"].netvm
    copy.remove()
    assert "copy" not in app
    with pytest.raises(errors.InUseError):
        app.remove("net")


def test_power(app: Qubes) -> None:
    work = app["work"]
    assert work.state == "Halted" and not work.running
    work.start()
    work.start()
    assert work.running
    work.pause()
    assert work.state == "Paused"
    work.unpause()
    work.shutdown(timeout=30)
    work.shutdown()
    assert work.state == "Halted"
    with pytest.raises(errors.NotStartedError):
        work.kill()
    with pytest.raises(TimeoutError):
        work.wait_for("Running", 0.2)


def test_volumes(app: Qubes) -> None:
    private = app["work"].volumes["private"]
    assert private.size > 1 << 20 and private.pool == "default" and private.info["save_on_stop"] == "True"
    private.resize(private.size + (1 << 30))
    private.set("revisions_to_keep", 2)
    assert private.info["revisions_to_keep"] == "2"
    with pytest.raises(KeyError):
        app["work"].volumes["other"]
    with pytest.raises(errors.CasemateError):
        private.revert()


def test_devices_of_a_class(app: Qubes) -> None:
    work = app["work"]
    assert {"block", "pci", "usb"} <= set(work.devices)
    with pytest.raises(KeyError):
        work.devices["floppy"]
    assert work.devices["block"].available() == work.devices["block"].attached() == []
    with pytest.raises(errors.ValueInvalidError):
        work.devices["block"].attach("nonsense")
    with pytest.raises(errors.DeviceNotFoundError):
        work.devices["block"].assign("dom0:sdz")
    with pytest.raises(errors.ValueInvalidError):
        work.devices["block"].assign("dom0:sdz:*", mode="sometimes")
    work.devices["block"].assign("dom0:sdz:*", read_only=True)
    (given,) = work.devices["block"].assigned()
    assert (str(given), given.ident, given.facts["mode"], given.facts["_read-only"]) == (
        "dom0:sdz", "*", "required", "yes",
    )  # fmt: skip
    work.devices["block"].unassign("dom0:sdz")
    assert work.devices["block"].assigned() == []


def test_the_system(app: Qubes) -> None:
    assert app.labels()[:2] == ["red", "orange"] and app.pools()["default"]["driver"] == "qcow2"
    (entry,) = app.inventory(properties=["memory"], tags=True, qubes=["work"])
    assert entry["properties"]["memory"]["value"] == 400 or entry["properties"]["memory"]["value"] == "400"
    assert app.call("admin.vm.tag.List", "", "work").split() == [b"created-by-dom0"]


def test_events_arrive_and_end(app: Qubes) -> None:
    work = app["work"]
    with app.events(timeout=30) as events:
        work.tags.add("mine")
        names = []
        for event in events:
            names.append(event.name)
            if event.qube == "work":
                break
    assert names == ["connection-established", "domain-tag-add:mine"]
    with work.events(timeout=0.2) as events:
        assert [event.name for event in events] == ["connection-established"]
        with pytest.raises(TimeoutError):
            events.next(0.05)


def test_a_loop_over_events_ends_when_another_thread_closes_them(app: Qubes) -> None:
    events = app.events()
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(event.name for event in events))
    thread.start()
    app["work"].tags.add("mine")
    time.sleep(0.1)  # so that it mostly waits by now; it must end whenever it is closed
    events.close()
    thread.join(30)
    assert not thread.is_alive()
    assert list(events) == []


def test_events_of_a_daemon_that_ends_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_directory() as directory:
        with found_by_tools(directory, monkeypatch):
            events = casemate.Qubes().events()
        with events, pytest.raises(errors.DaemonAccessError):
            list(events)
        with pytest.raises(errors.DaemonAccessError):
            casemate.Qubes(directory, start_daemon=False).labels()


def test_commands_run(served: Qube) -> None:
    done = served.run("cat; echo oops >&2; exit 3", input="a question")
    assert (done.stdout, done.stderr, done.returncode, done.qube) == (b"a question", b"oops\n", 3, "work")
    with pytest.raises(errors.CallFailedError, match="status 3: oops") as caught:
        done.check()
    assert caught.value.completed is done
    assert served.run("printf '%s\n' 'it'\"'\"'s'").text == "it's"
    argument = served.call("test.Argument", "some+thing", check=False)
    assert (argument.stdout, argument.returncode) == (b"some+thing", 7)
    with pytest.raises(errors.CallFailedError):
        served.call("test.Argument")


def test_much_data_goes_both_ways_at_once(served: Qube) -> None:
    data = os.urandom(1 << 10).hex().encode() * (4 << 10)
    assert served.call("test.Upper", input=data, timeout=120).stdout == data.upper()


def test_files_go_through_without_being_kept(served: Qube, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"abcdefgh" * (1 << 20))
    with open(tmp_path / "in", "rb") as source, open(tmp_path / "out", "wb") as target:
        done = served.call("test.Upper", input=source, output=target, most=1000, timeout=120)
    assert done.stdout == b"" and (tmp_path / "out").read_bytes() == b"ABCDEFGH" * (1 << 20)


def test_a_service_that_ends_before_it_has_read_its_input(served: Qube) -> None:
    done = served.run("exit 5", input=bytes(4 << 20), timeout=60)
    assert done.returncode == 5


def test_output_and_time_have_bounds(served: Qube) -> None:
    with pytest.raises(errors.OutputTooLongError, match="more than 1000000 bytes"):
        served.call("test.Flood", most=1_000_000, timeout=60)
    begin = time.monotonic()
    with pytest.raises(errors.CallTimeoutError) as caught:
        served.call("test.Sleep", timeout=0.3)
    assert isinstance(caught.value, TimeoutError) and time.monotonic() - begin < 30


def test_calls_that_do_not_come_about(app: Qubes) -> None:
    with pytest.raises(errors.NotRunningError):
        app["work"].run(["id"], start=False)
    with pytest.raises(errors.ValueInvalidError):
        app["dom0"].run(["id"])


def test_the_lock_is_held_over_several_saves(app: Qubes) -> None:
    """What one block saves twice is seen by the daemon, and nobody writes between the two."""
    store = casemate.open_store()
    done: list[float] = []
    with app.events() as events:
        with store.write() as t:
            t.system.domains["work"].tags.add("first")
            t.save()
            assert "first" in casemate.open_store().snapshot().domains["work"].tags
            other = threading.Thread(target=lambda: (app["net"].tags.add("late"), done.append(1)))
            other.start()
            time.sleep(0.2)
            assert not done, "the daemon wrote while the lock was held"
            t.system.domains["work"].features["by"] = "me"
        other.join(30)
        assert done and app["work"].features["by"] == "me" and "first" in app["work"].tags
        names = set()
        wait_for(lambda: names.add(events.next(30).name) or "domain-feature-set:by" in names)  # type: ignore[func-returns-value]
        assert "domain-tag-add:first" in names
    with pytest.raises(RuntimeError), store.write() as t:
        t.system.domains["work"].tags.add("dropped")
        raise RuntimeError
    assert "dropped" not in app["work"].tags
    store.close()


def test_every_error_has_its_name_of_the_api() -> None:
    for cls in (one for one in all_errors() if one.__module__ == "casemate.wire.errors"):
        assert getattr(errors, cls.__name__) is cls
        named = getattr(errors, cls.wire_name, None)
        assert named is not None and issubclass(cls, named), cls.wire_name


def test_the_import_is_lazy_and_its_names_are_all_there() -> None:
    program = (
        "import sys, casemate\n"
        "assert not [m for m in sys.modules if m.startswith('casemate.')], sys.modules\n"
        "for name in casemate.__all__: getattr(casemate, name)\n"
        "assert set(casemate.__all__) <= set(dir(casemate))\n"
        "try: casemate.nothing\n"
        "except AttributeError: pass\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    # As tools run, without site: what Qubes imports is the standard library and the wire.
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import casemate; casemate.Qubes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True)
    assert not {"lxml", "asyncio", "casemate.store", "casemate.model"} & set(done.stdout.split())
