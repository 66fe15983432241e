"""The two smaller sockets beside the Admin API's: what host programs ask, what qubes say of themselves."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.api import server
from casemate.client.qubes import Qubes
from casemate.qdb.client import QubesDB
from casemate.wire import admin
from casemate.wire.errors import (
    CasemateError,
    InUseError,
    NotHaltedError,
    PermissionDeniedError,
    ProtocolError,
    StorageError,
)
from tests.component.rig import SOURCE, Rig, rig
from tests.fakes.daemon import FakeDaemon, running
from tests.unit.test_api import client, exchange

BIN = SOURCE.parent / "bin"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with running(tmp_path) as found:
        client(found)
        yield found


@pytest.fixture
def qubes(daemon: FakeDaemon) -> Qubes:
    return client(daemon)


@pytest.fixture
def guest(daemon: FakeDaemon) -> Iterator[Rig]:
    """A link and an agent for the qube "work", without a machine."""
    directory = daemon.socket.parent / "qubes" / "work"
    directory.mkdir(parents=True)
    with rig(directory) as found:
        yield found


def ask(daemon: FakeDaemon, kind: str, method: str, arg: str = "", dest: str = "dom0", payload: bytes = b"",
        source: str = "dom0") -> str:  # fmt: skip
    path = daemon.socket.parent / f"qubesd.{kind}.sock"
    reply = exchange(path, admin.build_request(method, arg, dest, payload, source))
    return admin.parse_reply(reply).decode()


def test_each_socket_serves_its_own_family_alone(daemon: FakeDaemon) -> None:
    for kind, method in (("internal", "admin.vm.List"), ("misc", "admin.vm.List"), ("misc", "internal.GetSystemInfo"),
                         ("internal", "qubes.NotifyUpdates")):  # fmt: skip
        with pytest.raises(ProtocolError, match="No such method"):
            ask(daemon, kind, method)
    for method in ("internal.GetSystemInfo", "qubes.NotifyUpdates"):
        with pytest.raises(ProtocolError, match="No such method"):
            admin.parse_reply(exchange(daemon.socket, admin.build_request(method)))
    with pytest.raises(PermissionDeniedError):
        ask(daemon, "internal", "internal.GetSystemInfo", source="work")


def test_system_info_has_what_a_policy_needs_and_follows_the_state(daemon: FakeDaemon, qubes: Qubes) -> None:
    qubes.call("admin.vm.tag.Set", "office", "work")
    qubes.call("admin.vm.property.Set", "template_for_dispvms", "work", b"True")
    found = json.loads(ask(daemon, "internal", "internal.GetSystemInfo"))["domains"]
    assert sorted(found) == ["deb", "dom0", "work"]
    work = found["work"]
    assert {k: work[k] for k in ("type", "label", "icon", "template_for_dispvms", "power_state")} == {
        "type": "AppVM", "label": "0x3465a4", "icon": "appvm-blue", "template_for_dispvms": True,
        "power_state": "Halted",
    }  # fmt: skip
    assert "office" in work["tags"] and found["dom0"]["type"] == "AdminVM"
    assert set(work) == {
        "internal", "tags", "type", "template_for_dispvms", "default_dispvm", "icon", "label", "guivm", "relayvm",
        "transport_rpc", "power_state", "uuid",
    }  # fmt: skip
    qubes.call("admin.vm.Start", "", "work")
    qubes.call("admin.vm.Pause", "", "work")
    states = json.loads(ask(daemon, "internal", "internal.GetSystemInfo"))["domains"]
    assert states["work"]["power_state"] == "Paused"
    qubes.call("admin.vm.Unpause", "", "work")
    states = json.loads(ask(daemon, "internal", "internal.GetSystemInfo"))["domains"]
    assert states["work"]["power_state"] == "Running"


def test_an_import_in_two_steps(daemon: FakeDaemon, qubes: Qubes) -> None:
    size, path = ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work", b"4096").split()
    assert size == "4096" and os.stat(path).st_size == 4096
    # A program of a qube's user passes through to an image of its own, also when an import came first.
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o711
    with pytest.raises(InUseError):
        ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work")
    Path(path).write_bytes(b"new" * 1000 + bytes(1096))
    ask(daemon, "internal", "internal.vm.volume.ImportEnd", "private", "work", b"ok")
    assert daemon.parts.volumes.images["work", "private"].startswith(b"newnew")
    assert not Path(path).exists()
    with pytest.raises(ProtocolError, match="no import"):
        ask(daemon, "internal", "internal.vm.volume.ImportEnd", "private", "work", b"ok")


def test_an_import_that_fails_changes_nothing(
    daemon: FakeDaemon, qubes: Qubes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _size, path = ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work").split()
    Path(path).write_bytes(b"half")
    with pytest.raises(StorageError, match="disk is full"):
        ask(daemon, "internal", "internal.vm.volume.ImportEnd", "private", "work", b"fail\ndisk is full")
    assert ("work", "private") not in daemon.parts.volumes.images and not Path(path).exists()
    # A program that died: its import makes room once it has been silent for long.
    _size, path = ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work").split()
    os.utime(path, (1, 1))
    _size, other = ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work").split()
    assert other != path and not Path(path).exists()
    ask(daemon, "internal", "internal.vm.volume.ImportEnd", "private", "work", b"ok")
    qubes.call("admin.vm.Start", "", "work")
    with pytest.raises(NotHaltedError):
        ask(daemon, "internal", "internal.vm.volume.ImportBegin", "private", "work")
    with pytest.raises(CasemateError):
        ask(daemon, "internal", "internal.vm.volume.ImportBegin", "nothing", "deb")
    assert not list((daemon.store.path.parent / "spool").iterdir())


def test_sleep_pauses_what_runs_and_waking_leaves_what_was_paused(
    daemon: FakeDaemon, qubes: Qubes, guest: Rig, tmp_path: Path
) -> None:
    qubes.create("AppVM", "idle", "red", "deb")
    for name in ("work", "idle"):
        qubes.call("admin.vm.Start", "", name)
    qubes.call("admin.vm.Pause", "", "idle")
    told = tmp_path / "told"
    guest.service("qubes.SuspendPreAll", f"echo before >>{told}\n")
    guest.service("qubes.SetDateTime", f"cat >>{told}\n")
    guest.service("qubes.SuspendPostAll", f"echo after >>{told}\n")
    ask(daemon, "internal", "internal.SuspendPre")
    assert {q.name: q.state for q in qubes.listed()}["work"] == "Paused"
    assert told.read_text() == "before\n"
    ask(daemon, "internal", "internal.SuspendPost")
    states = {q.name: q.state for q in qubes.listed()}
    assert (states["work"], states["idle"]) == ("Running", "Paused")
    lines = told.read_text().split("\n")
    assert lines[0] == "before" and lines[2] == "after" and lines[1][:2] == "20" and lines[1].endswith("+00:00")


def asked(guest: Rig, **values: str) -> None:
    """Features as the guest asks for them; ``_`` stands for ``-``."""
    assert guest.call("no.Such")[0] == 127  # answered once both ends have met
    with QubesDB(guest.guest_run / "qubesdb.sock") as database:
        for name, value in values.items():
            database.write("/features-request/" + name.replace("_", "-"), value.encode())
    assert guest.call("no.Such")[0] == 127  # the same channel: what was written has arrived


def test_features_that_a_qube_may_ask_for(daemon: FakeDaemon, qubes: Qubes) -> None:
    directory = daemon.socket.parent / "qubes" / "deb"
    directory.mkdir(parents=True)
    qubes.call("admin.vm.feature.Set", "gui", "deb", b"")
    qubes.call("admin.vm.feature.Set", "supported-service.old", "deb", b"1")
    with rig(directory) as guest:
        asked(guest, qrexec="1", gui="1", vmexec="1", os="Linux", internal="1", **{"supported_service.new": "1"})
        ask(daemon, "misc", "qubes.FeaturesRequest", source="deb")
    features = dict(daemon.store.snapshot().domains["deb"].features)
    assert features == {"qrexec": "1", "gui": "", "vmexec": "1", "os": "Linux", "supported-service.new": "1"}


@pytest.mark.parametrize("value", ["a b", "x" * 129, "ä", "a;b", "$(id)"])
def test_features_with_values_of_no_feature_are_refused_as_a_whole(
    daemon: FakeDaemon, qubes: Qubes, guest: Rig, value: str
) -> None:
    asked(guest, vmexec="1", os=value)
    with pytest.raises(CasemateError):
        ask(daemon, "misc", "qubes.FeaturesRequest", source="work")
    assert not dict(daemon.store.snapshot().domains["work"].features)


def test_a_qube_with_a_template_gets_nothing_for_itself(daemon: FakeDaemon, qubes: Qubes, guest: Rig) -> None:
    asked(guest, vmexec="1")
    ask(daemon, "misc", "qubes.FeaturesRequest", source="work")
    assert not dict(daemon.store.snapshot().domains["work"].features)
    with pytest.raises(CasemateError):
        ask(daemon, "misc", "qubes.FeaturesRequest", source="deb")  # it does not run: nobody to read from


def test_updates(daemon: FakeDaemon, qubes: Qubes) -> None:
    ask(daemon, "misc", "qubes.NotifyUpdates", payload=b"3\n", source="work")
    deb = daemon.store.snapshot().domains["deb"].features
    assert deb["updates-available"] == "1" and "last-update" not in deb
    ask(daemon, "misc", "qubes.NotifyUpdates", payload=b"0", source="work")  # a hint that there are none is no news
    assert daemon.store.snapshot().domains["deb"].features["updates-available"] == "1"
    qubes.call("admin.vm.Start", "", "deb")
    ask(daemon, "misc", "qubes.NotifyUpdates", payload=b"0", source="deb")
    deb = daemon.store.snapshot().domains["deb"].features
    assert deb["updates-available"] == "" and deb["last-update"] == deb["last-updates-check"]
    for payload in (b"", b"-1", b"many", b"1" * 30, b"1 2"):
        with pytest.raises(CasemateError):
            ask(daemon, "misc", "qubes.NotifyUpdates", payload=payload, source="deb")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a socket to a group")
def test_a_second_place_for_the_group_of_administrators(daemon: FakeDaemon) -> None:
    group = grp.getgrgid(65534).gr_name  # stands for the group, which need not exist here
    asked = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'admin.vm.List+ dom0 name dom0\\0'); s.shutdown(1); sys.stdout.buffer.write(s.recv(9))"
    )
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        os.chmod(directory, 0o711)
        place = Path(directory) / "qubesd.sock"
        patch.setattr(server, "GROUP", group)
        asyncio.run_coroutine_threadsafe(daemon.server.also(place), daemon.loop).result(10)
        assert (place.stat().st_mode & 0o777, place.stat().st_gid) == (0o660, 65534)
        for groups, answered in (("65534", True), ("1", False)):
            argv = ["setpriv", "--reuid", "65534", "--regid", "1", "--groups", groups, sys.executable, "-c", asked]
            done = subprocess.run([*argv, str(place)], capture_output=True, cwd="/")
            assert done.stdout.startswith(b"0\0") is answered, done


def test_menus_of_a_template_are_its_qubes_menus(daemon: FakeDaemon, qubes: Qubes) -> None:
    directory = daemon.socket.parent / "qubes" / "deb"
    directory.mkdir(parents=True)
    settings = qubes.transport.settings
    env = {**os.environ, **settings.environment(), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def tool(*argv: str, status: int = 0, data: str = "") -> str:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, input=data, timeout=60)
        assert done.returncode == status, done
        return done.stdout

    with rig(directory) as guest:
        guest.service("qubes.GetAppmenus", r"printf '/usr/share/applications/ed.desktop:Name=Editor\n'")
        assert tool("qvm-sync-appmenus", "deb") == "deb: 1 entries\n"
        guest.service("qubes.GetAppmenus", "yes /x.desktop:Name=y")
        tool("qvm-sync-appmenus", "deb", status=125)
        tool("qvm-sync-appmenus", "work", status=2)
    assert tool("qvm-appmenus", "--get-available", "work") == "ed.desktop - Editor\n"
    assert tool("qvm-appmenus", "--get-available", "--fields", "name,icon", "work") == "ed.desktop|Editor|\n"
    tool("qvm-appmenus", "--set-whitelist", "-", "work", data="ed.desktop\nother.desktop\n")
    assert tool("qvm-appmenus", "--get-whitelist", "work") == "ed.desktop\nother.desktop\n"
    assert tool("qvm-appmenus", "--update", "--force", "work") == ""
    # As Qube Manager, New qube and a clone by upstream's library ask.
    fields = ("--file-field", "Comment", "--file-field", "Icon")
    assert tool("qvm-appmenus", "--get-available", *fields, "work") == "ed.desktop|Editor||\n"
    available = ("--get-available", "--i-understand-format-is-unstable", "--file-field", "Comment")
    assert tool("qvm-appmenus", *available, "--template", "work", "deb") == "ed.desktop|Editor|\n"
    tool("qvm-appmenus", "--set-default-whitelist", "-", "deb", data="ed.desktop\n")
    assert tool("qvm-appmenus", "--get-default-whitelist", "deb") == "ed.desktop\n"
    assert tool("qvm-appmenus", "--get-default-whitelist", "work") == ""
    assert tool("qvm-appmenus", "--init", "--update", "--source", "deb", "work", "dom0") == ""
    assert tool("qvm-appmenus", "--get-whitelist", "work") == "ed.desktop\nother.desktop\n"  # it has some already
    tool("qvm-features", "-D", "work", "menu-items")
    tool("qvm-appmenus", "--init", "--update", "--source", "deb", "work")
    assert tool("qvm-appmenus", "--get-whitelist", "work") == "ed.desktop\n"
    tool("qvm-appmenus", "--set-whitelist", "-", "--update", "--get-whitelist", "work", data="new.desktop\n")
    assert tool("qvm-appmenus", "--get-whitelist", "work") == "new.desktop\n"
    assert tool("qvm-appmenus", "--remove", "gone") == ""
    with pytest.raises(ProtocolError):
        ask(daemon, "misc", "qubes.SyncAppMenus", payload=b"", source="work")
